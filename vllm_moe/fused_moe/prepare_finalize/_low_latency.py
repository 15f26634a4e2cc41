"""What the two low-latency backends share: the batched format, and receive halves apart from the sends.

NIXL EP descends from DeepEP and its calls are the same but for their names.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.kernels.quantize import dequantize
from vllm_moe.fused_moe.kernels.reduce import share_memory
from vllm_moe.fused_moe.prepare_finalize._common import (
    check_activations,
    check_capacity,
    is_fp8_block128,
    quantize_batched,
    refuse_ids_out_of_range,
    routed_input,
)
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate
from vllm_moe.fused_moe.ubatching import dbo_current_ubatch_id
from vllm_moe.transports import LOW_LATENCY_HIDDEN_SIZES, topk_index_dtype

__all__ = ["QUANT_BLOCK_SIZE", "LowLatencyPrepareAndFinalize"]

QUANT_BLOCK_SIZE = 128
"""The kernels quantize dispatched rows in chunks of this many elements."""


_UNRECEIVED: WeakKeyDictionary[object, Callable[[], None]] = WeakKeyDictionary()
"""For each buffer, the receive half of its last send, if that has not run yet.

A send clears the counters of the buffer's other half, so the send before it has to have been received,
whoever made it: another micro-batch, or another layer on the same buffer. vLLM's driver runs that hook before
each send; here the backends do, and running it again later does nothing.
"""


def _receive_earlier(buffer: object) -> None:
    hook = _UNRECEIVED.get(buffer)
    if hook is not None:
        hook()


def _register(buffer: object, hook: Callable[[], None] | None) -> Callable[[], None]:
    """Note a send's receive half, and give it in a form that runs once."""
    assert hook is not None  # it was asked for
    receive = hook

    def once() -> None:
        if _UNRECEIVED.get(buffer) is once:
            del _UNRECEIVED[buffer]
            receive()

    _UNRECEIVED[buffer] = once
    return once


@dataclass(frozen=True)
class _InFlight:
    """What one micro-batch's combine needs to know of its dispatch."""

    handle: Any
    topk_ids: torch.Tensor
    topk_weights: torch.Tensor


class LowLatencyPrepareAndFinalize(mk.FusedMoEPrepareAndFinalizeModular):
    """Base of the low-latency backends; see them for the arguments.

    A token that names an expert twice is sent to it once, with both weights: the kernels have room for
    ``max_tokens_per_rank`` rows from a rank to an expert, and would overrun it otherwise.
    """

    SUPPORTED_HIDDEN_SIZES = LOW_LATENCY_HIDDEN_SIZES

    @classmethod
    def maybe_roundup_layer_hidden_size(cls, hidden_size: int) -> int:
        """Give the smallest hidden size, at least ``hidden_size``, that the kernels are compiled for.

        Raises ValueError when there is none.
        """
        for supported in cls.SUPPORTED_HIDDEN_SIZES:
            if supported >= hidden_size:
                return supported
        raise ValueError(
            f"{cls.__name__}: hidden size {hidden_size} is larger than the largest that the kernels are "
            "compiled for, "
            f"{cls.SUPPORTED_HIDDEN_SIZES[-1]}. Use another backend."
        )

    def __init__(
        self,
        buffer: object,
        max_tokens_per_rank: int,
        num_dispatchers: int,
        use_fp8_dispatch: bool = False,
        global_to_physical: torch.Tensor | None = None,
        physical_to_global: torch.Tensor | None = None,
        local_expert_global_ids: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self._shared_buffer = buffer
        self.max_tokens_per_rank = max_tokens_per_rank
        self.num_dispatchers_ = num_dispatchers
        self.use_fp8_dispatch = use_fp8_dispatch
        self._ids_dtype = topk_index_dtype(buffer)
        self.global_to_physical = self._as_ids(global_to_physical)
        self.physical_to_global = self._as_ids(physical_to_global)
        self.local_expert_global_ids = self._as_ids(local_expert_global_ids)
        self.handles: dict[int, _InFlight] = {}

    @abstractmethod
    def _dispatch(
        self, a1: torch.Tensor, topk_ids: torch.Tensor, num_experts: int
    ) -> tuple[Any, torch.Tensor, Any, Any, Callable[[], None] | None]:
        """Call the vendor's dispatch, asking for a hook: ``(rows, counts, handle, event, hook)``."""

    @abstractmethod
    def _combine(
        self,
        rows: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Any,
        out: torch.Tensor,
    ) -> tuple[torch.Tensor, Any, Callable[[], None] | None]:
        """Call the vendor's combine, asking for a hook: ``(out, event, hook)``."""

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The batched format."""
        return mk.FusedMoEActivationFormat.BatchedExperts

    def num_dispatchers(self) -> int:
        """Give the size of the expert-parallel group."""
        return self.num_dispatchers_

    def output_is_reduced(self) -> bool:
        """Give True: combine adds up over the ranks."""
        return True

    def max_num_tokens_per_rank(self) -> int | None:
        """Give the number of tokens that the buffer was made for."""
        return self.max_tokens_per_rank

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give the dtype that the library was compiled for; other integers are converted."""
        return self._ids_dtype

    def supports_async(self) -> bool:
        """Give True."""
        return True

    def prepare_async(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        quant_config: FusedMoEQuantConfig,
        defer_input_quant: bool = False,
    ) -> tuple[Callable[[], None], mk.ReceiverType]:
        """Send the tokens; the hook waits for the others', the receiver quantizes what the kernels did not.

        ``num_experts`` counts physical experts, ``expert_map`` is not needed.

        Raises NotImplementedError for ``defer_input_quant``; ValueError for activations that are not bf16, a
        hidden size without a kernel, too many tokens, ids out of range (on the CPU), and weights on the input
        with topk over 1.
        """
        where = f"{type(self).__name__}.prepare"
        if defer_input_quant:
            raise NotImplementedError(
                f"{where}: defer_input_quant is not supported. Choose experts that take quantized input."
            )
        rows = routed_input(where, a1, topk_weights, topk_ids, apply_router_weight_on_input)
        check_activations(where, a1, (torch.bfloat16,))
        check_capacity(where, a1, self.max_tokens_per_rank)
        if a1.size(1) not in self.SUPPORTED_HIDDEN_SIZES:
            sizes = ", ".join(str(size) for size in self.SUPPORTED_HIDDEN_SIZES)
            raise ValueError(
                f"{where}: hidden size {a1.size(1)} is not one that the kernels are compiled for ({sizes}). "
                "Round it "
                "up with maybe_roundup_layer_hidden_size."
            )
        table = self.global_to_physical
        refuse_ids_out_of_range(where, topk_ids, num_experts if table is None else table.numel())
        weights = torch.ones_like(topk_weights) if apply_router_weight_on_input else topk_weights
        ids, weights = _merge_repeated(self._physical(topk_ids), weights.to(torch.float32))
        _receive_earlier(self._shared_buffer)
        received, counts, handle, _, hook = self._dispatch(rows.contiguous(), ids, num_experts)
        # Copies, all of them: the caller may reuse its tensors before finalize.
        self.handles[dbo_current_ubatch_id()] = _InFlight(handle, ids, weights)

        def receive() -> mk.PrepareResultType:
            a1q, a1q_scale = self._quantize(received, counts, a1.dtype, quant_config)
            return a1q, a1q_scale, mk.ExpertTokensMetadata(counts, None), None, None

        return _register(self._shared_buffer, hook), receive

    def prepare(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        quant_config: FusedMoEQuantConfig,
        defer_input_quant: bool = False,
    ) -> mk.PrepareResultType:
        """Do as :meth:`prepare_async` and wait.

        Gives activations ``[local experts, num_dispatchers * max_tokens_per_rank, hidden]``, their scales,
        and counts; ids and weights stay the caller's.
        """
        hook, receive = self.prepare_async(
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
        return receive()

    def finalize_async(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: mk.TopKWeightAndReduce,
    ) -> tuple[Callable[[], None], Callable[[], None]]:
        """Send the experts' rows back; the hook waits for the others', the receiver has ``output`` written.

        The routing is that which ``prepare`` was given. Raises RuntimeError when no ``prepare`` came before,
        ValueError when the experts want another reduction than the kernels'.
        """
        where = f"{type(self).__name__}.finalize"
        if not isinstance(weight_and_reduce_impl, TopKWeightAndReduceDelegate):
            raise ValueError(  # noqa: TRY004 -- it is the choice of experts that is wrong
                f"{where}: the kernels weight and reduce, but the experts ask for "
                f"{type(weight_and_reduce_impl).__name__}. Choose experts that leave it to the backend."
            )
        ubatch = dbo_current_ubatch_id()
        flight = self.handles.get(ubatch)
        if flight is None:
            raise RuntimeError(f"{where}: called before prepare for micro-batch {ubatch}.")
        rows = fused_expert_output.to(torch.bfloat16).contiguous()
        direct = output.is_contiguous() and output.dtype is torch.bfloat16 and not share_memory(output, rows)
        out = output if direct else torch.empty(output.shape, dtype=torch.bfloat16, device=output.device)
        _receive_earlier(self._shared_buffer)
        _, _, hook = self._combine(rows, flight.topk_ids, flight.topk_weights, flight.handle, out)

        def receive() -> None:
            if not direct:
                output.copy_(out)

        return _register(self._shared_buffer, hook), receive

    def finalize(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: mk.TopKWeightAndReduce,
    ) -> None:
        """Do as :meth:`finalize_async` and wait: ``output`` is written on return."""
        hook, receive = self.finalize_async(
            output,
            fused_expert_output,
            topk_weights,
            topk_ids,
            apply_router_weight_on_input,
            weight_and_reduce_impl,
        )
        hook()
        receive()

    def _as_ids(self, table: torch.Tensor | None) -> torch.Tensor | None:
        return None if table is None else table.to(self._ids_dtype)

    def _physical(self, topk_ids: torch.Tensor) -> torch.Tensor:
        ids = topk_ids.to(torch.int64)
        if self.global_to_physical is None:
            return ids
        return torch.where(ids < 0, -1, self.global_to_physical[ids.clamp(min=0)].to(torch.int64))

    def _quantize(
        self,
        received: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        counts: torch.Tensor,
        dtype: torch.dtype,
        quant_config: FusedMoEQuantConfig,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if isinstance(received, torch.Tensor):
            return quantize_batched(received, counts, quant_config)
        rows, scales = received
        if is_fp8_block128(quant_config):
            return rows, scales
        # fp8 was for the way only: the experts want something else.
        return quantize_batched(dequantize(rows, scales, QUANT_BLOCK_SIZE).to(dtype), counts, quant_config)


def _merge_repeated(topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the first slot that names an expert carry the weights of all, and the others -1; new tensors."""
    topk = topk_ids.size(1)
    same = topk_ids.unsqueeze(2) == topk_ids.unsqueeze(1)
    earlier = torch.ones(topk, topk, dtype=torch.bool, device=topk_ids.device).tril(-1)
    repeated = (same & earlier).any(dim=2)
    kept = (topk_ids >= 0) & ~repeated
    together = torch.where(same, topk_weights.unsqueeze(1), 0).sum(dim=2)
    return torch.where(kept, topk_ids, -1), torch.where(kept, together, 0)
