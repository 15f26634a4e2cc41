"""Quantization of activation rows: fp8 (e4m3) and int8, with static or computed scales.

A quantized value is ``clamp(x * (1 / scale))`` rounded to nearest even, and ``scale = max(amax, 1e-10) /
limit`` where it is computed, so that a row of zeros keeps a usable scale. All of it is float32 arithmetic,
in torch and in Triton, and both give the same bits.
"""

from enum import IntEnum
from typing import NamedTuple

import torch

from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.kernels._device import triton_rows

__all__ = [
    "QuantKind",
    "QuantScheme",
    "dequantize",
    "quantize_rows",
    "quantize_rows_torch",
    "quantize_scheme",
]

SMALLEST_AMAX = 1e-10
_LIMITS = {FP8_DTYPE: 448.0, torch.int8: 127.0}


class QuantKind(IntEnum):
    """Which elements share a scale, and where the scale comes from."""

    NONE = 0
    STATIC_TENSOR = 1
    DYNAMIC_TENSOR = 2
    TOKEN = 3
    BLOCK = 4


class QuantScheme(NamedTuple):
    """A quantization of rows, as kernels take it."""

    kind: QuantKind
    dtype: torch.dtype | None
    group: int
    """Consecutive elements of a row that share a scale, for ``BLOCK``; otherwise 0."""
    static_scale: torch.Tensor | None
    """float32 of one element, for ``STATIC_TENSOR``."""

    @property
    def limit(self) -> float:
        """The largest magnitude that the quantized type holds (127 for int8, so that it is symmetric)."""
        return _LIMITS[self.dtype] if self.dtype is not None else 0.0

    def scales_per_row(self, hidden: int) -> int:
        """Give how many scales a row of ``hidden`` elements has of its own; 0 when rows share one."""
        if self.kind is QuantKind.BLOCK:
            return -(-hidden // self.group)
        return 1 if self.kind is QuantKind.TOKEN else 0


UNQUANTIZED = QuantScheme(QuantKind.NONE, None, 0, None)


def quantize_scheme(quant_config: FusedMoEQuantConfig) -> QuantScheme:
    """Give the scheme that ``quant_config`` asks for the layer's input."""
    dtype = quant_config.quant_dtype
    if dtype is None:
        return UNQUANTIZED
    if quant_config.block_shape is not None:
        return QuantScheme(QuantKind.BLOCK, dtype, quant_config.block_shape[1], None)
    if quant_config.is_per_act_token:
        return QuantScheme(QuantKind.TOKEN, dtype, 0, None)
    if quant_config.a1_scale is not None:
        return QuantScheme(QuantKind.STATIC_TENSOR, dtype, 0, quant_config.a1_scale)
    return QuantScheme(QuantKind.DYNAMIC_TENSOR, dtype, 0, None)


def scale_from_amax(amax: torch.Tensor, limit: float) -> torch.Tensor:
    """Give the scale under which magnitudes up to ``amax`` fit ``limit``."""
    return amax.float().clamp(min=SMALLEST_AMAX) / limit


def quantize_with_scale(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``values / scale`` in ``dtype``; ``scale`` is float32 and broadcasts to ``values``."""
    limit = _LIMITS[dtype]
    scaled = (values.float() * scale.float().reciprocal()).clamp_(-limit, limit)
    if dtype is torch.int8:
        scaled = scaled.round_()
    return scaled.to(dtype)


def _in_blocks(values: torch.Tensor, group: int) -> torch.Tensor:
    """``[rows, hidden]`` as ``[rows, blocks, group]``, the last block filled up with zeros."""
    blocks = -(-values.size(-1) // group)
    padded = torch.nn.functional.pad(values, (0, blocks * group - values.size(-1)))
    return padded.view(*values.shape[:-1], blocks, group)


def quantize_rows_torch(
    a: torch.Tensor, scheme: QuantScheme, row_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Quantize ``a`` ``[rows, hidden]``; give the quantized tensor and its float32 scales.

    The scales are ``[1, 1]`` for a per-tensor scheme, ``[rows, 1]`` per token and ``[rows, blocks]`` per
    block. ``row_mask``, bool ``[rows]``, keeps rows out of a computed per-tensor scale: padding rows may
    hold anything. An unquantized scheme gives ``(a, None)``.
    """
    if scheme.kind is QuantKind.NONE or scheme.dtype is None:
        return a, None
    hidden = a.size(1)
    if scheme.kind is QuantKind.STATIC_TENSOR:
        assert scheme.static_scale is not None
        scale = scheme.static_scale.view(1, 1)
    elif scheme.kind is QuantKind.DYNAMIC_TENSOR:
        row_amax = a.abs().amax(1, keepdim=True).float() if a.numel() else a.new_zeros(a.size(0), 1).float()
        if row_mask is not None:
            row_amax = row_amax.masked_fill(~row_mask[:, None], 0.0)
        largest = row_amax.amax(0, keepdim=True) if a.size(0) else row_amax.new_zeros(1, 1)
        scale = scale_from_amax(largest, scheme.limit)
    elif scheme.kind is QuantKind.TOKEN:
        scale = scale_from_amax(a.abs().amax(1, keepdim=True), scheme.limit)
    else:
        blocks = _in_blocks(a, scheme.group)
        scale = scale_from_amax(blocks.abs().amax(2), scheme.limit)
        quantized = quantize_with_scale(blocks, scale[:, :, None], scheme.dtype)
        return quantized.flatten(1)[:, :hidden].contiguous(), scale
    return quantize_with_scale(a, scale, scheme.dtype), scale


def quantize_rows(
    a: torch.Tensor, scheme: QuantScheme, row_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`quantize_rows_torch` in one launch on CUDA (more for a computed per-tensor scale)."""
    if a.is_cuda and scheme.kind is not QuantKind.NONE:
        result: tuple[torch.Tensor, torch.Tensor | None] = triton_rows().quantize_rows(a, scheme, row_mask)
        return result
    return quantize_rows_torch(a, scheme, row_mask)


def dequantize(quantized: torch.Tensor, scale: torch.Tensor | None, group: int = 0) -> torch.Tensor:
    """Give the float32 values of ``quantized`` ``[..., rows, hidden]``, unscaled when ``scale`` is None.

    ``scale`` is ``[..., rows or 1, 1]``, or ``[..., rows, blocks]`` for blocks of ``group`` elements of a
    row.
    """
    values = quantized.float()
    if scale is None:
        return values
    if not group:
        return values * scale
    return values * scale.repeat_interleave(group, -1)[..., : values.size(-1)]
