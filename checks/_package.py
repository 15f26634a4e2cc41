"""The fused_moe package under test: where base classes, enums, configuration and reductions are taken from."""

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import torch

__all__ = ["DEFAULT_PACKAGE", "FP8", "QUANTIZATIONS", "STATIC_SCALE", "Package", "package"]

DEFAULT_PACKAGE = "vllm_moe.fused_moe"
FP8 = torch.float8_e4m3fn
QUANTIZATIONS = ("none", "fp8_static", "fp8_tensor", "fp8_token", "fp8_block", "int8_token")
"""Dtype, and what shares a scale: the whole tensor (known beforehand, or computed), a row, 128 elements of a row."""
STATIC_SCALE = 0.25


class Package:
    """A package that is laid out as vLLM's ``fused_moe`` is.

    Raises ImportError when one of the three modules that the interface lives in cannot be imported.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.mk = self._module("modular_kernel")
        self.config = self._module("config")
        self.reductions = self._module("topk_weight_and_reduce")

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.name}.{name}")

    @property
    def base(self) -> Any:
        """The base of all backends."""
        return self.mk.FusedMoEPrepareAndFinalize

    @property
    def modular(self) -> Any:
        """The base of backends that are given topk ids and weights."""
        return self.mk.FusedMoEPrepareAndFinalizeModular

    @property
    def monolithic(self) -> Any:
        """The base of backends that are given router logits."""
        return self.mk.FusedMoEPrepareAndFinalizeMonolithic

    @property
    def formats(self) -> Any:
        """The enum of activation formats."""
        return self.mk.FusedMoEActivationFormat

    @property
    def metadata(self) -> Any:
        """The class of token counts."""
        return self.mk.ExpertTokensMetadata

    def quant_config(self, quantization: str, device: torch.device) -> Any:
        """The package's configuration for one of :data:`QUANTIZATIONS`."""
        make = self.config.FusedMoEQuantConfig.make
        if quantization == "none":
            return make()
        kind, _, group = quantization.partition("_")
        return make(
            FP8 if kind == "fp8" else torch.int8,
            per_act_token_quant=group == "token",
            block_shape=[128, 128] if group == "block" else None,
            a1_scale=torch.tensor([STATIC_SCALE], device=device) if group == "static" else None,
        )

    def reduction(self, name: str, rank: int) -> Any:
        """A weight-and-reduce implementation: ``delegate``, ``contiguous``, ``noop`` or ``naive_batched``."""
        if name == "naive_batched":
            return self.reductions.TopKWeightAndReduceNaiveBatched(rank)
        names = {"delegate": "Delegate", "contiguous": "Contiguous", "noop": "NoOP"}
        return getattr(self.reductions, f"TopKWeightAndReduce{names[name]}")()


@cache
def package(name: str = DEFAULT_PACKAGE) -> Package:
    """Load a package once."""
    return Package(name)
