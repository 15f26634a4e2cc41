"""A small backend that keeps every property, in steps that can be spoilt one at a time.

A deliberately wrong backend is a subclass with one step done as a real backend once did it: ``defect`` says what went
wrong, ``seen_in`` where. Nothing here is made to be fast.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from checks._package import FP8, Package, package
from checks._rows import Backend, Layer, Place, Vendor
from checks.wire import Received, Wire, as_bytes

__all__ = ["Honest", "HonestBatched", "HonestMonolithic", "micro_batch", "row_of"]

_MICRO_BATCH: ContextVar[int] = ContextVar("checks_micro_batch", default=0)

Prepared = tuple[torch.Tensor, torch.Tensor | None, Any, torch.Tensor | None, torch.Tensor | None]


@contextmanager
def micro_batch(number: int) -> Iterator[None]:
    """Run the body as this micro-batch."""
    token = _MICRO_BATCH.set(number)
    try:
        yield
    finally:
        _MICRO_BATCH.reset(token)


@dataclass
class _Flight:
    own_ids: torch.Tensor
    received: Received
    expert_rows: torch.Tensor | None = None
    weights: torch.Tensor | None = None


class Honest:
    """Sends rows to the ranks of their experts; the standard format."""

    defect: ClassVar[str] = ""
    """What is wrong, as a clause; empty in the honest one."""
    seen_in: ClassVar[str] = ""
    """The backend that it was seen in, with numbers of vLLM pull requests or issues."""
    caught_in: ClassVar[int] = 2
    """The smallest world in which it shows."""
    declares: ClassVar[dict[str, Any]] = {}
    """What its row declares differently."""
    needs: ClassVar[str] = "cpu"
    """The device that it shows on."""

    def __init__(self, place: Place, layer: Layer, fused_moe: Package) -> None:
        self.place, self.layer, self.fused_moe = place, layer, fused_moe
        self.ranks = self.group_size()
        self.wire = Wire(place, layer.max_num_tokens, layer.num_local_experts)
        self.flights: dict[int, _Flight] = {}

    @classmethod
    def build(cls, kind: type, place: Place, layer: Layer, fused_moe: Package) -> Any:
        """What its factory gives; ``kind`` is this class as a backend of the package under test."""
        return kind(place, layer, fused_moe)

    # What it says about itself

    def group_size(self) -> int:
        """The ranks that tokens come from."""
        return self.place.world_size

    @property
    def activation_format(self) -> Any:
        """The standard format."""
        return self.fused_moe.formats.Standard

    def topk_indices_dtype(self) -> torch.dtype | None:
        """What the wire takes."""
        return torch.int32

    def max_num_tokens_per_rank(self) -> int | None:
        """The wire's capacity."""
        return self.layer.max_num_tokens

    def num_dispatchers(self) -> int:
        """The ranks that tokens come from."""
        return self.ranks

    def output_is_reduced(self) -> bool:
        """The wire sums over the ranks."""
        return True

    def supports_async(self) -> bool:
        """Both halves are there."""
        return True

    # Steps of prepare

    def weighted_input(self, a1: torch.Tensor, weights: torch.Tensor, on_input: bool) -> torch.Tensor:
        """The rows to send, weighted if that is asked for, in memory of their own."""
        if not on_input:
            return a1
        if weights.size(1) != 1:
            raise ValueError("apply_router_weight_on_input needs topk 1")
        return (a1.float() * weights).to(a1.dtype)

    def check_capacity(self, tokens: int) -> None:
        """Refuse more tokens than there is room for."""
        if tokens > self.layer.max_num_tokens:
            raise ValueError(f"{tokens} tokens, but max_num_tokens is {self.layer.max_num_tokens}")

    def check_ids(self, ids: torch.Tensor, num_experts: int) -> None:
        """Refuse ids that name nothing."""
        if ids.numel() and (int(ids.min()) < -1 or int(ids.max()) >= num_experts):
            raise ValueError(f"ids from {int(ids.min())} to {int(ids.max())}, expected -1 to {num_experts - 1}")

    def physical_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids as the wire knows them."""
        if self.layer.tables is None:
            return ids
        return torch.where(ids < 0, -1, self.layer.tables[0][ids.long().clamp(min=0)])

    def global_ids(self, physical: torch.Tensor) -> torch.Tensor:
        """Ids as the caller knows them, where they are this rank's; -1 elsewhere."""
        local = self.layer.num_local_experts
        mine = (physical >= 0) & (physical // local == self.place.rank)
        ids = physical.long()
        if self.layer.tables is not None:
            ids = self.layer.tables[1][ids.clamp(min=0)]
        return torch.where(mine, ids, -1)

    def wire_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids in the wire's dtype."""
        return ids.to(torch.int32).contiguous()

    def scheme(self, config: Any) -> str:
        """One of :data:`checks._package.QUANTIZATIONS`."""
        if config.quant_dtype is None:
            return "none"
        kind = "fp8" if config.quant_dtype is FP8 else "int8"
        if config.block_shape is not None:
            return f"{kind}_block"
        if config.per_act_token_quant:
            return f"{kind}_token"
        return f"{kind}_static" if config.a1_scale is not None else f"{kind}_tensor"

    def scales_of(self, x: torch.Tensor, scheme: str, config: Any) -> torch.Tensor:
        """float32 scales: ``[1, 1]``, ``[rows, 1]`` or ``[rows, blocks]``."""
        limit = 448.0 if scheme.startswith("fp8") else 127.0
        if scheme.endswith("static"):
            return torch.as_tensor(config.a1_scale).float().view(1, 1)
        if scheme.endswith("tensor"):
            amax = x.abs().amax().float() if x.numel() else x.new_zeros((), dtype=torch.float32)
            return (amax.clamp(min=1e-10) / limit).view(1, 1)
        blocks = x.size(1) // config.block_shape[1] if scheme.endswith("block") else 1
        grouped = x.view(x.size(0), blocks, x.size(1) // blocks).abs().amax(dim=2)
        return grouped.float().clamp(min=1e-10) / limit

    def quantize(self, x: torch.Tensor, scale: torch.Tensor, scheme: str) -> torch.Tensor:
        """``x`` in the scheme's dtype."""
        wide = scale.repeat_interleave(x.size(1) // scale.size(1), dim=1)
        if scheme.startswith("fp8"):
            return (x.float() / wide).clamp(-448.0, 448.0).to(FP8)
        return (x.float() / wide).clamp(-127.0, 127.0).round().to(torch.int8)

    def quantized_after(self, rows: torch.Tensor, total: int, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Received rows under one scale, computed from those that are real."""
        scale = self.scales_of(rows[:total], "fp8_tensor", config)
        return self.quantize(rows, scale, "fp8_tensor"), scale

    def mark_padding(self, ids: torch.Tensor, total: int) -> torch.Tensor:
        """Ids with -1 in rows that hold nothing."""
        ids[total:] = -1
        return ids

    def count(self, ids: torch.Tensor, own_ids: torch.Tensor) -> torch.Tensor | None:
        """int32 ``[num_local_experts]`` from global ``ids`` of received rows, -1 where not ours."""
        local = self.layer.expert_map.long()[ids.clamp(min=0)]
        return torch.bincount(local[ids >= 0], minlength=self.layer.num_local_experts).to(torch.int32)

    def slot(self) -> int:
        """The memory to use: one for each micro-batch."""
        return _MICRO_BATCH.get()

    def send(
        self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor | None
    ) -> tuple[Received, Callable[[], None]]:
        """Call the library."""
        got, hook = self.wire.dispatch(rows, weights, ids, scale, slot=self.slot(), return_recv_hook=True)
        assert hook is not None
        return got, hook

    def outgoing(self, a1: torch.Tensor, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows as they travel, and the scales that travel with them."""
        if scheme in {"none", "fp8_tensor"}:
            return a1.contiguous(), None
        scale = self.scales_of(a1, scheme, config)
        rows = self.quantize(a1, scale, scheme)
        return rows, None if scheme.endswith("static") else scale

    def incoming(self, got: Received, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Activations and scales as prepare gives them."""
        if scheme == "fp8_tensor":
            return self.quantized_after(got.rows, int(got.total), config)
        if scheme.endswith("static"):
            return got.rows, self.scales_of(got.rows, scheme, config)
        return got.rows, got.scales

    def result(self, got: Received, scheme: str, config: Any, weights_dtype: torch.dtype, flight: _Flight) -> Prepared:
        """What prepare gives once the rows are here."""
        rows, scale = self.incoming(got, scheme, config)
        total = int(got.total)
        ids = self.mark_padding(self.global_ids(got.ids), total)
        weights = torch.where(ids < 0, 0.0, got.weights).to(weights_dtype)
        counts = self.count(ids[:total], flight.own_ids)
        meta = None if counts is None else self.fused_moe.metadata(counts, None)
        return rows, scale, meta, ids, weights

    def prepare_async(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        quant_config: Any,
        defer_input_quant: bool = False,
    ) -> tuple[Callable[[], None], Callable[[], Prepared]]:
        """Send; the hook waits."""
        self.check_capacity(a1.size(0))
        self.check_ids(topk_ids, num_experts if self.layer.tables is None else self.layer.tables[0].numel())
        scheme = "none" if defer_input_quant else self.scheme(quant_config)
        weighted = self.weighted_input(a1, topk_weights, apply_router_weight_on_input)
        rows, scale = self.outgoing(weighted, scheme, quant_config)
        ids = self.wire_ids(self.physical_ids(topk_ids))
        got, hook = self.send(rows, topk_weights.float().contiguous(), ids, scale)
        flight = self.flights[_MICRO_BATCH.get()] = _Flight(ids.clone(), got)
        return hook, lambda: self.result(got, scheme, quant_config, topk_weights.dtype, flight)

    def prepare(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        quant_config: Any,
        defer_input_quant: bool = False,
    ) -> Prepared:
        """Send and wait."""
        hook, receiver = self.prepare_async(
            a1,
            topk_weights,
            topk_ids,
            num_experts,
            expert_map,
            apply_router_weight_on_input,
            quant_config,
            defer_input_quant,
        )
        hook()
        return receiver()

    # Steps of finalize

    def weigh(self, fused: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, on_input: bool) -> torch.Tensor:
        """One row for each received row: ``[rows, hidden]`` float32 of ``[rows, topk, hidden]``."""
        kept = torch.where((ids >= 0).unsqueeze(2), fused.float(), 0.0)
        return (kept if on_input else kept * weights.float().unsqueeze(2)).sum(dim=1)

    def reduced(
        self, fused: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, on_input: bool, impl: Any
    ) -> torch.Tensor:
        """What is sent back."""
        if fused.dim() == 2:
            return fused
        return self.weigh(fused, weights, ids, on_input).to(fused.dtype)

    def combine_ids(self, flight: _Flight, given_ids: torch.Tensor) -> torch.Tensor:
        """The routing that the combine goes by: this rank's own."""
        return flight.own_ids

    def write(self, output: torch.Tensor, combined: torch.Tensor) -> None:
        """Put the result into ``output``."""
        output.copy_(combined)

    def finalize_async(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: Any,
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """Send back; the hook waits, the receiver writes."""
        flight = self.flights[_MICRO_BATCH.get()]
        rows = self.reduced(
            fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input, weight_and_reduce_impl
        )
        ids = self.combine_ids(flight, topk_ids)
        combined, hook = self.wire.combine(rows, ids, flight.received, return_recv_hook=True)
        assert hook is not None
        return hook, lambda: self.write(output, combined[: output.size(0)])

    def finalize(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: Any,
    ) -> None:
        """Send back and wait."""
        hook, receiver = self.finalize_async(
            output,
            fused_expert_output,
            topk_weights,
            topk_ids,
            apply_router_weight_on_input,
            weight_and_reduce_impl,
        )
        hook()
        receiver()


class HonestBatched(Honest):
    """The same in the batched format."""

    @property
    def activation_format(self) -> Any:
        """The batched format."""
        return self.fused_moe.formats.BatchedExperts

    def rows_per_expert(self) -> int:
        """How many rows there are for an expert."""
        return self.layer.max_num_tokens * self.ranks

    def result(self, got: Received, scheme: str, config: Any, weights_dtype: torch.dtype, flight: _Flight) -> Prepared:
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
        flight = self.flights[_MICRO_BATCH.get()]
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
        "packages": tuple(dict.fromkeys(("checks.honest", kind.__module__))),
        "dtypes": ("bfloat16", "float16", "float32"),
        "placements": ("linear", "round_robin", "redundant"),
        "reductions": ("delegate", "noop") if not issubclass(kind, HonestBatched) else ("delegate",),
        "micro_batch": micro_batch,
        "vendor": Vendor("wire", "wire"),
    }
    for parent in reversed(kind.__mro__):
        declared |= vars(parent).get("declares", {})
    return Backend(kind.__name__, partial(_make, kind, fused_moe), fused_moe=fused_moe, **declared)
