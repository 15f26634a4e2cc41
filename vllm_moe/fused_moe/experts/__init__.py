"""Experts for the standard format; those for the batched format are in :mod:`fused_batched_moe`."""

from vllm_moe.fused_moe.experts.monolithic import RoutingExperts
from vllm_moe.fused_moe.experts.torch_reference import TorchExperts
from vllm_moe.fused_moe.experts.triton import TritonExperts
from vllm_moe.fused_moe.experts.xpu import XPUExperts, XPUExpertsFp8

__all__ = ["RoutingExperts", "TorchExperts", "TritonExperts", "XPUExperts", "XPUExpertsFp8"]
