"""The honest backend in the batched format, and for router logits; and the rows of all that derive from it."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch

from checks._package import package
from checks._rows import Backend, Layer, Place, Vendor
from checks.honest import Flight, Honest, Prepared, current_micro_batch, micro_batch
from checks.wire import Received, as_bytes

__all__ = ["HonestBatched", "HonestMonolithic", "row_of"]


class HonestBatched(Honest):
    """The same in the batched format."""

    @property
    def activation_format(self) -> Any:
        """The batched format."""
        return self.fused_moe.formats.BatchedExperts

    def rows_per_expert(self) -> int:
        """How many rows there are for an expert."""
        return self.layer.max_num_tokens * self.ranks

    def result(self, got: Received, scheme: str, config: Any, weights_dtype: torch.dtype, flight: Flight) -> Prepared:
        """Each expert's rows first, then whatever is there."""
        flat, flat_scale = self.incoming(got, scheme, config)
        total, rows = int(got.total), self.rows_per_expert()
        ids = self.global_ids(got.ids)[:total]
        local = torch.where(ids >= 0, self.layer.expert_map.long()[ids.clamp(min=0)], -1)
        experts = self.layer.num_local_experts
        wanted = (local.unsqueeze(0) == torch.arange(experts, device=local.device).view(-1, 1, 1)).any(dim=2)
        place = wanted.cumsum(dim=1) - 1
        expert, token = torch.where(wanted)
        out = self.wire.owned("batched", self.slot(), (experts, rows, flat.size(1)), flat)
        slot = self.row_index(place[expert, token])
        out.view(torch.uint8)[expert, slot] = flat.view(torch.uint8)[token]
        scale = flat_scale
        if flat_scale is not None and flat_scale.size(0) > 1:
            scale = self.wire.owned("scales", self.slot(), (experts, rows, flat_scale.size(1)), flat_scale)
            scale[expert, slot] = flat_scale[token]
        elif flat_scale is not None:
            one_row = not (scheme.endswith(("static", "tensor")))
            shape = (experts, rows, flat_scale.size(1)) if one_row else (experts, 1, 1)
            scale = flat_scale.view(1, 1, -1).repeat(*shape[:2], 1)
        flight.expert_rows = torch.where(wanted, place, -1)
        flight.weights = torch.where(
            local.unsqueeze(0) == torch.arange(experts, device=local.device).view(-1, 1, 1),
            got.weights[:total].unsqueeze(0),
            0.0,
        ).sum(dim=2)
        counts = self.count_batched(wanted.sum(dim=1).to(torch.int32))
        return out, scale, self.fused_moe.metadata(counts, None), None, None

    def row_index(self, place: torch.Tensor) -> torch.Tensor:
        """Where an expert's n-th row is."""
        return place

    def count_batched(self, counts: torch.Tensor) -> torch.Tensor:
        """int32 ``[num_local_experts]``."""
        return counts

    def finalize_async(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: Any,
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """Sum an expert's rows by token, then as in the standard format."""
        flight = self.flights[current_micro_batch()]
        assert flight.expert_rows is not None
        assert flight.weights is not None
        got, hidden = flight.received, fused_expert_output.size(2)
        summed = torch.zeros((got.rows.size(0), hidden), dtype=torch.float32, device=output.device)
        for expert in range(fused_expert_output.size(0)):
            (token,) = torch.where(flight.expert_rows[expert] >= 0)
            rows = fused_expert_output[expert, self.row_index(flight.expert_rows[expert, token])].float()
            weight = 1.0 if apply_router_weight_on_input else flight.weights[expert, token].unsqueeze(1)
            summed[token] += rows * weight
        ids = self.combine_ids(flight, topk_ids)
        combined, hook = self.wire.combine(summed.to(fused_expert_output.dtype), ids, got, return_recv_hook=True)
        assert hook is not None
        return hook, lambda: self.write(output, combined[: output.size(0)])


class HonestMonolithic(Honest):
    """Gathers every rank's rows and router logits; the standard format."""

    declares: ClassVar[dict[str, Any]] = {"monolithic": True, "micro_batch": None, "vendor": None}

    def topk_indices_dtype(self) -> torch.dtype | None:
        """There are no topk ids."""
        return None

    def supports_async(self) -> bool:
        """There is one way only."""
        return False

    def prepare(  # type: ignore[override]  # the other interface
        self,
        a1: torch.Tensor,
        router_logits: torch.Tensor,
        quant_config: Any,
        defer_input_quant: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Gather rows and logits."""
        self.check_capacity(a1.size(0))
        scheme = "none" if defer_input_quant else self.scheme(quant_config)
        rows, scale = self.outgoing(a1, scheme, quant_config)
        parts = [rows, router_logits.contiguous()] + ([] if scale is None else [scale])
        raw = torch.cat([as_bytes(part) for part in parts], dim=1)
        everyone, self.counts = self.wire.gather(raw)()
        flat = torch.cat([everyone[rank, :n] for rank, n in enumerate(self.counts)])
        columns = torch.split(flat, [part.size(1) * part.element_size() for part in parts], dim=1)
        values = [
            column.contiguous().view(-1).view(part.dtype).view(-1, part.size(1))
            for column, part in zip(columns, parts, strict=True)
        ]
        got_scale = values[2] if scale is not None else None
        if scheme.endswith("static"):
            got_scale = self.scales_of(values[0], scheme, quant_config)
        if scheme == "fp8_tensor":
            values[0], got_scale = self.quantized_after(values[0], values[0].size(0), quant_config)
        return values[0], got_scale, values[1]

    def finalize(self, fused_expert_output: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Sum over the ranks."""
        blocks = torch.zeros(
            (self.place.world_size, self.layer.max_num_tokens, fused_expert_output.size(1)),
            device=fused_expert_output.device,
        )
        for rank, block in enumerate(torch.split(fused_expert_output, self.counts)):
            blocks[rank, : block.size(0)] = block
        parts = self.wire.send_back(blocks)()
        return parts.sum(dim=0)[: self.counts[self.place.rank]].to(fused_expert_output.dtype)


def _make(kind: type[Honest], fused_moe: str, place: Place, layer: Layer) -> Any:
    """An instance of ``kind`` that is a backend of the package under test."""
    found = package(fused_moe)
    base = found.monolithic if issubclass(kind, HonestMonolithic) else found.modular
    made = type(kind.__name__, (kind, base), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    return kind.build(made, place, layer, found)


def row_of(kind: type[Honest], fused_moe: str) -> Backend:
    """The row of the honest backend, or of a wrong one."""
    declared: dict[str, Any] = {
        "packages": tuple(dict.fromkeys(("checks.honest", __name__, kind.__module__))),
        "dtypes": ("bfloat16", "float16", "float32"),
        "placements": ("linear", "round_robin", "redundant"),
        "reductions": ("delegate", "noop") if not issubclass(kind, HonestBatched) else ("delegate",),
        "micro_batch": micro_batch,
        "vendor": Vendor("wire", "wire"),
    }
    for parent in reversed(kind.__mro__):
        declared |= vars(parent).get("declares", {})
    return Backend(kind.__name__, partial(_make, kind, fused_moe), fused_moe=fused_moe, **declared)
