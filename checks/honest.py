"""A small backend that keeps every property, in steps that can be spoilt one at a time.

A deliberately wrong backend is a subclass with one step done as a real backend once did it: ``defect`` says what went
wrong, ``seen_in`` where. Nothing here is made to be fast.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from checks._package import FP8, Package
from checks._rows import Layer, Place
from checks.wire import Received, Wire

__all__ = ["Flight", "Honest", "Prepared", "current_micro_batch", "micro_batch"]

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


def current_micro_batch() -> int:
    """The micro-batch that the body runs as; 0 where there is none."""
    return _MICRO_BATCH.get()


@dataclass
class Flight:
    """What is kept between a prepare and its finalize."""

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
        self.flights: dict[int, Flight] = {}

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
        return current_micro_batch()

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

    def result(self, got: Received, scheme: str, config: Any, weights_dtype: torch.dtype, flight: Flight) -> Prepared:
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
        flight = self.flights[current_micro_batch()] = Flight(ids.clone(), got)
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

    def combine_ids(self, flight: Flight, given_ids: torch.Tensor) -> torch.Tensor:
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
        flight = self.flights[current_micro_batch()]
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
