"""Experts for Intel GPUs (vLLM: ``experts/xpu_moe.py``), in torch operations that any device has.

vLLM calls one fused kernel of Intel's library here. The interface is the same: unquantized activations come
in, and the experts weight and reduce their own output.
"""

from typing import ClassVar

import torch

from vllm_moe.fused_moe.config import FP8_DTYPE, GroupShape, QuantKey
from vllm_moe.fused_moe.experts._standard import StandardExperts

__all__ = ["XPUExperts", "XPUExpertsFp8"]


class XPUExperts(StandardExperts):
    """Unquantized weights and activations."""

    _torch_only: ClassVar[bool] = True

    @property
    def expects_unquantized_inputs(self) -> bool:
        """Give True: activations are quantized here, if at all."""
        return True

    @staticmethod
    def _supports_device(device: torch.device) -> bool:
        return device.type in {"xpu", "cpu"}

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        return weight_key is None and activation_key is None


class XPUExpertsFp8(XPUExperts):
    """Fp8 weights with a scale an expert; activations unquantized, or fp8 with a computed scale."""

    @staticmethod
    def _supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
        activations = {None, QuantKey(FP8_DTYPE, False, GroupShape.PER_TENSOR)}
        return (
            weight_key == QuantKey(FP8_DTYPE, True, GroupShape.PER_TENSOR) and activation_key in activations
        )
