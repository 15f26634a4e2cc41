"""Experts for the standard format in torch, on any device: what the Triton ones are compared with."""

from typing import ClassVar

import torch

from vllm_moe.fused_moe.experts._standard import StandardExperts

__all__ = ["TorchExperts"]


class TorchExperts(StandardExperts):
    """Pads each expert to the fullest one and multiplies all of them at once, in float32."""

    _torch_only: ClassVar[bool] = True

    @staticmethod
    def _supports_device(device: torch.device) -> bool:
        return True
