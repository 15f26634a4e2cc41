"""Prepare/finalize by DeepEP's high-throughput kernels (vLLM: ``prepare_finalize/deepep_ht.py``)."""

from collections.abc import Callable
from typing import Any

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize._common import (
    DispatchQuantization,
    check_activations,
    is_fp8_block128,
    reduce_rows,
    refuse_ids_out_of_range,
    routed_input,
)
from vllm_moe.fused_moe.ubatching import dbo_current_ubatch_id
from vllm_moe.transports import DeepEpBuffer, missing_transport, topk_index_dtype

__all__ = ["DeepEPHTPrepareAndFinalize"]

_ROW_BYTES = 512
"""The kernels copy rows in units of 32 lanes x 16 bytes."""


class DeepEPHTPrepareAndFinalize(mk.FusedMoEPrepareAndFinalizeModular):
    """Sends each token once to every rank that has one of its experts; the standard format.

    - ``buffer``: a ``deep_ep.Buffer``, or one over ``torch.distributed``.
    - ``num_dispatchers``: the size of the expert-parallel group, which the kernels' configuration goes by.
    - ``dp_size``: the data-parallel size; kept, as in vLLM, and used for nothing.
    - ``rank_expert_offset``: this rank's first expert.

    The kernels carry bf16, or fp8 with a scale for each 128 elements; every other quantization is made after
    the dispatch.

    Raises MissingTransportError when ``buffer`` is None.
    """

    # The numbers of ranks that DeepEP has tuned configurations for.
    available_rank_configs = (2, 4, 8, 16, 24, 32, 64, 128, 144, 160)

    @staticmethod
    def maybe_roundup_layer_hidden_size(hidden_size: int, dtype: torch.dtype) -> int:
        """Give the smallest hidden size, at least ``hidden_size``, whose rows the kernels can copy."""
        row_bytes = -(-hidden_size * dtype.itemsize // _ROW_BYTES) * _ROW_BYTES
        return row_bytes // dtype.itemsize

    def __init__(
        self, buffer: DeepEpBuffer | None, num_dispatchers: int, dp_size: int, rank_expert_offset: int
    ) -> None:
        super().__init__()
        if buffer is None:
            raise missing_transport(type(self).__name__, "deep_ep", "buffer", "TorchDeepEpBuffer")
        self.buffer = buffer
        self.num_dispatchers_ = num_dispatchers
        self.dp_size = dp_size
        self.rank_expert_offset = rank_expert_offset
        self.handles: dict[int, Any] = {}
        self._ids_dtype = topk_index_dtype(buffer)

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The standard format."""
        return mk.FusedMoEActivationFormat.Standard

    def num_dispatchers(self) -> int:
        """Give the size of the expert-parallel group."""
        return self.num_dispatchers_

    def output_is_reduced(self) -> bool:
        """Give True: combine adds up over the ranks."""
        return True

    def max_num_tokens_per_rank(self) -> int | None:
        """Give None: there is no limit."""
        return None

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give the dtype that the library was compiled for; other integers are converted."""
        return self._ids_dtype

    def supports_async(self) -> bool:
        """Give True."""
        return True

    def _config(self, which: str) -> Any:
        """Give the vendor's tuned configuration for this many ranks; None for its default."""
        get_config = getattr(self.buffer, which, None)
        if get_config is None or self.num_dispatchers_ not in self.available_rank_configs:
            return None
        return get_config(self.num_dispatchers_)

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
    ) -> mk.ReceiverType:
        """Send the tokens; the receiver waits for the others' and quantizes what was not.

        Raises ValueError for activations that are not bf16, ids out of range (on the CPU), a hidden size that
        the kernels cannot copy, and weights on the input with topk over 1.
        """
        where = f"{type(self).__name__}.prepare"
        rows = routed_input(where, a1, topk_weights, topk_ids, apply_router_weight_on_input)
        check_activations(where, a1, (torch.bfloat16,))
        refuse_ids_out_of_range(where, topk_ids, num_experts)
        expected = self.maybe_roundup_layer_hidden_size(a1.size(1), a1.dtype)
        if a1.size(1) != expected:
            raise ValueError(
                f"{where}: hidden size {a1.size(1)} is not one that the kernels can copy, the next is "
                f"{expected}. Round "
                "it up with maybe_roundup_layer_hidden_size."
            )
        block128 = is_fp8_block128(quant_config)
        quantization = DispatchQuantization.make(
            quant_config, defer_input_quant=defer_input_quant, carries_rows=block128, carries_scales=block128
        )
        rows, scale = quantization.send(rows)
        rows = rows.contiguous()
        ids = topk_ids.to(self._ids_dtype).contiguous()
        weights = topk_weights.to(torch.float32).contiguous()

        per_rank, per_rdma_rank, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(ids, num_experts)
        received, got_ids, got_weights, counts, handle, event = self.buffer.dispatch(
            rows if scale is None else (rows, scale.contiguous()),
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_rdma_rank,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=ids,
            topk_weights=weights,
            expert_alignment=1,
            config=self._config("get_dispatch_config"),
            async_finish=True,
        )
        self.handles[dbo_current_ubatch_id()] = handle

        def receive() -> mk.PrepareResultType:
            if event.event is not None:
                event.current_stream_wait()
            assert got_ids is not None  # ids and weights were sent
            assert got_weights is not None
            got, got_scale = received if isinstance(received, tuple) else (received, None)
            a1q, a1q_scale = quantization.receive(got, got_scale, None)
            # The kernels give local ids, -1 for other ranks' experts.
            global_ids = torch.where(got_ids < 0, -1, got_ids + self.rank_expert_offset)
            meta = mk.ExpertTokensMetadata.make_from_list(counts, got.device)
            # The kernels work on a stream of their own: what they read has to live until they have been
            # waited for.
            alive.clear()
            return a1q, a1q_scale, meta, global_ids, got_weights.to(topk_weights.dtype)

        alive = [rows, ids, weights]
        return receive

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

        Gives the received activations ``[rows, hidden]``, their scales, counts, and the rows' ids (global; -1
        for other ranks' experts) and weights (0 there).
        """
        return self.prepare_async(
            a1,
            topk_weights,
            topk_ids,
            num_experts,
            expert_map,
            apply_router_weight_on_input,
            quant_config,
            defer_input_quant,
        )()

    def finalize_async(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: mk.TopKWeightAndReduce,
    ) -> Callable[[], None]:
        """Weight and reduce the received rows and send them back; the receiver waits and writes ``output``.

        Raises RuntimeError when no ``prepare`` came before.
        """
        ubatch = dbo_current_ubatch_id()
        if ubatch not in self.handles:
            raise RuntimeError(
                f"{type(self).__name__}.finalize: called before prepare for micro-batch {ubatch}."
            )
        reduced = reduce_rows(
            weight_and_reduce_impl, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input
        )
        # Combine carries nothing but bf16.
        rows = reduced.to(torch.bfloat16).contiguous()
        combined, _, event = self.buffer.combine(
            rows, self.handles[ubatch], config=self._config("get_combine_config"), async_finish=True
        )

        def receive() -> None:
            if event.event is not None:
                event.current_stream_wait()
            alive.clear()
            output.copy_(combined)

        alive = [rows]
        return receive

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
        self.finalize_async(
            output,
            fused_expert_output,
            topk_weights,
            topk_ids,
            apply_router_weight_on_input,
            weight_and_reduce_impl,
        )()
