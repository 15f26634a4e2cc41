"""Prepare/finalize by DeepEP's low-latency kernels (vLLM: ``prepare_finalize/deepep_ll.py``)."""

from collections.abc import Callable
from typing import Any

import torch

from vllm_moe.fused_moe.prepare_finalize._low_latency import QUANT_BLOCK_SIZE, LowLatencyPrepareAndFinalize
from vllm_moe.transports import DeepEpBuffer, missing_transport

__all__ = ["DEEPEP_QUANT_BLOCK_SHAPE", "DEEPEP_QUANT_BLOCK_SIZE", "DeepEPLLPrepareAndFinalize"]

DEEPEP_QUANT_BLOCK_SIZE = QUANT_BLOCK_SIZE
DEEPEP_QUANT_BLOCK_SHAPE = [DEEPEP_QUANT_BLOCK_SIZE, DEEPEP_QUANT_BLOCK_SIZE]


class DeepEPLLPrepareAndFinalize(LowLatencyPrepareAndFinalize):
    """Sends tokens straight into their experts' rows of the batched format.

    - ``buffer``: a ``deep_ep.Buffer`` in low-latency mode, or one over ``torch.distributed``.
    - ``max_tokens_per_rank``: the most tokens of a rank, the same on all; times the ranks a multiple of 4.
    - ``num_dispatchers``: the size of the expert-parallel group.
    - ``use_fp8_dispatch``: let the kernels quantize to fp8 in blocks of 128 elements.
    - ``global_to_physical``, ``physical_to_global``, ``local_expert_global_ids``: integer tables, for experts
      that are placed round-robin or have copies; ids go through the first before they are sent.

    Raises MissingTransportError when ``buffer`` is None.
    """

    def __init__(
        self,
        buffer: DeepEpBuffer | None,
        max_tokens_per_rank: int,
        num_dispatchers: int,
        use_fp8_dispatch: bool = False,
        global_to_physical: torch.Tensor | None = None,
        physical_to_global: torch.Tensor | None = None,
        local_expert_global_ids: torch.Tensor | None = None,
    ) -> None:
        if buffer is None:
            raise missing_transport(type(self).__name__, "deep_ep", "buffer", "TorchDeepEpBuffer")
        super().__init__(
            buffer,
            max_tokens_per_rank,
            num_dispatchers,
            use_fp8_dispatch,
            global_to_physical,
            physical_to_global,
            local_expert_global_ids,
        )
        self.buffer = buffer

    def _dispatch(
        self, a1: torch.Tensor, topk_ids: torch.Tensor, num_experts: int
    ) -> tuple[Any, torch.Tensor, Any, Any, Callable[[], None] | None]:
        return self.buffer.low_latency_dispatch(
            a1,
            topk_ids.to(self._ids_dtype),
            self.max_tokens_per_rank,
            num_experts,
            use_fp8=self.use_fp8_dispatch,
            async_finish=False,
            return_recv_hook=True,
        )

    def _combine(
        self,
        rows: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Any,
        out: torch.Tensor,
    ) -> tuple[torch.Tensor, Any, Callable[[], None] | None]:
        return self.buffer.low_latency_combine(
            rows,
            topk_ids.to(self._ids_dtype),
            topk_weights,
            handle,
            zero_copy=False,
            async_finish=False,
            return_recv_hook=True,
            out=out,
        )
