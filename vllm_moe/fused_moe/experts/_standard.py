"""What experts for the standard format have in common: sort tokens by expert, compute, bring them back."""

from typing import ClassVar

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe import kernels
from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import QuantKey
from vllm_moe.fused_moe.kernels.grouped import supports_quant_scheme
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP

__all__ = ["StandardExperts"]


class StandardExperts(mk.FusedMoEExpertsModular):
    """Experts on ``[tokens, hidden]`` that weight and reduce their output themselves.

    Without an ``expert_map``, local expert ``i`` is global expert ``ep_rank * num_local_experts + i``. Ids
    that are negative, or of other ranks' experts, are passed over: a token without a local expert has a zero
    row.
    """

    _torch_only: ClassVar[bool]
    """Whether torch does the work on every device, rather than Triton where there is CUDA."""

    @staticmethod
    def activation_format() -> mk.FusedMoEActivationFormat:
        """Give the standard format."""
        return mk.FusedMoEActivationFormat.Standard

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return supports_quant_scheme(weight_key, activation_key)

    def supports_expert_map(self) -> bool:
        """Give True."""
        return True

    def finalize_weight_and_reduce_impl(self) -> mk.TopKWeightAndReduce:
        """Give the one that does nothing: ``apply`` has weighted and reduced."""
        return TopKWeightAndReduceNoOP()

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
        """Give room for a row of each slot, and ``(M, K)`` for the output; torch allocates for itself."""
        if self._torch_only:
            return (0,), (0,), (M, K)
        return (M * topk, N), (M * topk, activation.output_size(N)), (M, K)

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
        """Write the weighted sum of each token's local experts into ``output`` ``[tokens, hidden]``.

        Rows that come without a scale are quantized here first, if the quantization asks for it. The counts
        that ``prepare`` may have returned are not needed: they are taken from ``topk_ids``.
        """
        quantize, permute, compute, combine = (
            (
                kernels.quantize_rows_torch,
                kernels.permute_tokens_torch,
                kernels.grouped_mlp_torch,
                kernels.combine_rows_torch,
            )
            if self._torch_only
            else (
                kernels.quantize_rows,
                kernels.permute_tokens,
                kernels.grouped_mlp,
                kernels.combine_rows,
            )
        )
        if a1q_scale is None and self.quant_config.is_quantized:
            scheme = kernels.quantize_scheme(self.quant_config)
            hidden_states, a1q_scale = quantize(hidden_states, scheme, (topk_ids.to(torch.int64) >= 0).any(1))
        local = w1.size(0)
        first = 0
        if expert_map is None and global_num_experts > local:
            first = self.moe_config.ep_rank * local
        placement = kernels.ExpertPlacement(local, first, None, expert_map)
        rows, row_scale, slots, counts = permute(hidden_states, a1q_scale, topk_ids, placement)
        result = torch.empty(rows.shape, dtype=output.dtype, device=output.device)
        compute(
            result, rows, row_scale, counts, w1, w2, activation, self.quant_config, workspace13, workspace2
        )
        combine(output, result, slots, None if apply_router_weight_on_input else topk_weights)
