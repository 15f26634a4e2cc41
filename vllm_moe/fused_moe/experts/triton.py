"""Experts for the standard format: a Triton grouped product (vLLM: ``TritonExperts`` in ``fused_moe.py``)."""

from typing import ClassVar

import torch

from vllm_moe.fused_moe.experts._standard import StandardExperts

__all__ = ["TritonExperts"]


class TritonExperts(StandardExperts):
    """Sorts tokens by expert without padding or waiting for the device, and multiplies tile by tile."""

    _torch_only: ClassVar[bool] = False

    @staticmethod
    def _supports_device(device: torch.device) -> bool:
        return device.type == "cuda"
