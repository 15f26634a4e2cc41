"""Experts that route for themselves, made of a router and modular experts for the standard format."""

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import FusedMoEConfig, FusedMoEQuantConfig, QuantKey, RoutingMethodType
from vllm_moe.fused_moe.experts.torch_reference import TorchExperts
from vllm_moe.fused_moe.experts.triton import TritonExperts
from vllm_moe.fused_moe.router import fused_topk

__all__ = ["RoutingExperts"]


class RoutingExperts(mk.FusedMoEExpertsMonolithic):
    """Softmax routing, then Triton experts on CUDA and torch experts elsewhere."""

    def __init__(self, moe_config: FusedMoEConfig, quant_config: FusedMoEQuantConfig) -> None:
        super().__init__(moe_config, quant_config)
        on_cuda = torch.device(moe_config.device).type == "cuda"
        self._experts = (TritonExperts if on_cuda else TorchExperts)(moe_config, quant_config)

    @staticmethod
    def activation_format() -> mk.FusedMoEActivationFormat:
        """Give the standard format."""
        return mk.FusedMoEActivationFormat.Standard

    @staticmethod
    def _supports_device(device: torch.device) -> bool:
        return True

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return TorchExperts._supports_quant_scheme(weight_key, activation_key)  # noqa: SLF001 -- made of them

    def supports_expert_map(self) -> bool:
        """Give True."""
        return True

    def apply(
        self,
        hidden_states: torch.Tensor,
        w1: torch.Tensor,
        w2: torch.Tensor,
        router_logits: torch.Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: torch.Tensor | None,
        a1q_scale: torch.Tensor | None,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Choose ``experts_per_token`` experts for each row; give their weighted sum, ``[tokens, hidden]``.

        The result has the layer's ``in_dtype``. Raises ValueError when weights are wanted on the input,
        which is quantized already.
        """
        if apply_router_weight_on_input:
            raise ValueError(
                "RoutingExperts.apply: apply_router_weight_on_input is True, but the weights are known "
                "only here, after the input was prepared. Leave it False."
            )
        renormalize = self.moe_config.routing_method is RoutingMethodType.Renormalize
        topk = self.moe_config.experts_per_token
        topk_weights, topk_ids = fused_topk(hidden_states, router_logits, topk, renormalize)
        dtype = self.moe_config.in_dtype
        M, N, K = hidden_states.size(0), w1.size(1), hidden_states.size(1)
        shapes = self._experts.workspace_shapes(
            M, N, K, topk, global_num_experts, w1.size(0), None, activation
        )
        workspace13, workspace2, output = (
            torch.empty(shape, dtype=dtype, device=hidden_states.device) for shape in shapes
        )
        if M:
            self._experts.apply(
                output=output,
                hidden_states=hidden_states,
                w1=w1,
                w2=w2,
                topk_weights=topk_weights,
                topk_ids=topk_ids,
                activation=activation,
                global_num_experts=global_num_experts,
                expert_map=expert_map,
                a1q_scale=a1q_scale,
                a2_scale=self.quant_config.a2_scale,
                workspace13=workspace13,
                workspace2=workspace2,
                expert_tokens_meta=None,
                apply_router_weight_on_input=False,
            )
        return output
