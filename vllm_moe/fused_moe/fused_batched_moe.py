"""Experts for the batched format (vLLM: ``fused_moe/fused_batched_moe.py``)."""

from typing import ClassVar

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import QuantKey
from vllm_moe.fused_moe.kernels.grouped import grouped_mlp, grouped_mlp_torch, supports_quant_scheme
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate

__all__ = ["BatchedTritonExperts", "NaiveBatchedExperts"]


class _BatchedExperts(mk.FusedMoEExpertsModular):
    """Experts on ``[num_local_experts, max_num_tokens * num_dispatchers, hidden]``; padding is not read."""

    _torch_only: ClassVar[bool]
    """Whether torch does the work on every device, rather than Triton where there is CUDA."""

    @staticmethod
    def activation_format() -> mk.FusedMoEActivationFormat:
        """Give the batched format."""
        return mk.FusedMoEActivationFormat.BatchedExperts

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return supports_quant_scheme(weight_key, activation_key)

    def supports_expert_map(self) -> bool:
        """Give False: rows are in their experts' places already."""
        return False

    def finalize_weight_and_reduce_impl(self) -> mk.TopKWeightAndReduce:
        """Give the one that leaves it to the prepare/finalize, which knows where the rows came from."""
        return TopKWeightAndReduceDelegate()

    def workspace_shapes(
        self,
        M: int,
        N: int,
        K: int,
        topk: int,
        global_num_experts: int,
        local_num_experts: int,
        expert_tokens_meta: mk.ExpertTokensMetadata | None,
        activation: MoEActivation,
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Give room for every expert's ``M`` rows; torch allocates for itself."""
        output = (local_num_experts, M, K)
        if self._torch_only:
            return (0,), (0,), output
        return (local_num_experts, M, N), (local_num_experts, M, activation.output_size(N)), output

    def apply(
        self,
        output: torch.Tensor,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        a2_scale: torch.Tensor | None,
        workspace13: torch.Tensor,
        workspace2: torch.Tensor,
        expert_tokens_meta: mk.ExpertTokensMetadata | None,
        apply_router_weight_on_input: bool,
    ) -> None:
        """Write experts' rows, neither weighted nor reduced, to ``[num_local_experts, rows, hidden]``.

        Padding rows of ``output`` are left as they are. Raises ValueError without the counts of tokens, or
        for quantized experts without scales.
        """
        if expert_tokens_meta is None:
            raise ValueError(
                f"{type(self).__name__}.apply: expert_tokens_meta is None, but the batched format cannot "
                "tell rows from padding without it. Use a prepare/finalize that counts."
            )
        compute = grouped_mlp_torch if self._torch_only else grouped_mlp
        # Outputs share memory with the first product's scratch, which is read no more when they are written.
        compute(
            output,
            hidden_states,
            a1q_scale,
            expert_tokens_meta.expert_num_tokens,
            w1,
            w2,
            activation,
            self.quant_config,
            workspace13,
            workspace2,
        )


class NaiveBatchedExperts(_BatchedExperts):
    """In torch, on any device: all experts at once, padded to the fullest, in float32."""

    _torch_only: ClassVar[bool] = True

    @staticmethod
    def _supports_device(device: torch.device) -> bool:
        return True


class BatchedTritonExperts(_BatchedExperts):
    """In Triton: tiles beyond an expert's rows cost nothing but their start."""

    _torch_only: ClassVar[bool] = False

    @staticmethod
    def _supports_device(device: torch.device) -> bool:
        return device.type == "cuda"
