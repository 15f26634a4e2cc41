"""Prepare/finalize where tokens stay on their rank (vLLM: ``prepare_finalize/no_dp_ep.py``)."""

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.kernels.quantize import QuantKind, quantize_rows, quantize_scheme
from vllm_moe.fused_moe.topk_weight_and_reduce import (
    TopKWeightAndReduceContiguous,
    TopKWeightAndReduceDelegate,
)
from vllm_moe.fused_moe.utils import validate_topk, weigh_input

__all__ = [
    "MoEPrepareAndFinalizeNoDPEPModular",
    "MoEPrepareAndFinalizeNoDPEPMonolithic",
    "make_moe_prepare_and_finalize_no_dp_ep",
]


class MoEPrepareAndFinalizeNoDPEPModular(mk.FusedMoEPrepareAndFinalizeModular):
    """Quantizes, dispatches nothing, then weights and reduces, in the standard format."""

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The standard format."""
        return mk.FusedMoEActivationFormat.Standard

    def max_num_tokens_per_rank(self) -> int | None:
        """Give None: there is no limit."""
        return None

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give None: any integer dtype will do."""
        return None

    def num_dispatchers(self) -> int:
        """Give 1: tokens come from this rank alone."""
        return 1

    def output_is_reduced(self) -> bool:
        """Give False: with experts on several ranks, each adds up its own only."""
        return False

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
        """Quantize ``a1`` ``[tokens, hidden]``; unquantized or deferred, the very tensor is given back.

        The scales are those of :meth:`FusedMoEQuantConfig.scale_shape`. Rows whose ids are all negative do
        not enter a computed per-tensor scale. Raises ValueError for weights on the input with topk over 1.
        """
        where = "MoEPrepareAndFinalizeNoDPEPModular.prepare"
        validate_topk(where, a1, topk_weights, topk_ids)
        if apply_router_weight_on_input:
            a1 = weigh_input(where, a1, topk_weights)
        if defer_input_quant:
            return a1, None, None, None, None
        scheme = quantize_scheme(quant_config)
        row_mask = None
        if scheme.kind is QuantKind.DYNAMIC_TENSOR:
            row_mask = (topk_ids.to(torch.int64) >= 0).any(1)
        a1q, a1q_scale = quantize_rows(a1, scheme, row_mask)
        return a1q, a1q_scale, None, None, None

    def finalize(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: mk.TopKWeightAndReduce,
    ) -> None:
        """Weight and reduce into ``output`` ``[tokens, hidden]``, as the experts ask for."""
        if isinstance(weight_and_reduce_impl, TopKWeightAndReduceDelegate):
            weight_and_reduce_impl = TopKWeightAndReduceContiguous()
        weight_and_reduce_impl.apply(
            output, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input
        )


class MoEPrepareAndFinalizeNoDPEPMonolithic(mk.FusedMoEPrepareAndFinalizeMonolithic):
    """Quantizes for experts that route for themselves; the standard format."""

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The standard format."""
        return mk.FusedMoEActivationFormat.Standard

    def max_num_tokens_per_rank(self) -> int | None:
        """Give None: there is no limit."""
        return None

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give None: there are no topk ids."""
        return None

    def num_dispatchers(self) -> int:
        """Give 1: tokens come from this rank alone."""
        return 1

    def output_is_reduced(self) -> bool:
        """Give False: with experts on several ranks, each adds up its own only."""
        return False

    def prepare(
        self,
        a1: torch.Tensor,
        router_logits: torch.Tensor,
        quant_config: FusedMoEQuantConfig,
        defer_input_quant: bool = False,
    ) -> mk.PrepareMonolithicResultType:
        """Quantize ``a1`` ``[tokens, hidden]``; ``router_logits`` are given back as they are."""
        if defer_input_quant:
            return a1, None, router_logits
        a1q, a1q_scale = quantize_rows(a1, quantize_scheme(quant_config))
        return a1q, a1q_scale, router_logits

    def finalize(self, fused_expert_output: torch.Tensor) -> torch.Tensor:
        """Give ``fused_expert_output`` ``[tokens, hidden]`` itself: it is weighted and reduced."""
        return fused_expert_output


def make_moe_prepare_and_finalize_no_dp_ep(
    use_monolithic: bool,
) -> MoEPrepareAndFinalizeNoDPEPModular | MoEPrepareAndFinalizeNoDPEPMonolithic:
    """Make the monolithic or the modular one."""
    return MoEPrepareAndFinalizeNoDPEPMonolithic() if use_monolithic else MoEPrepareAndFinalizeNoDPEPModular()
