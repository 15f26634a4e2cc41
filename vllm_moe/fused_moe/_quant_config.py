"""Quantization of activations and weights; :mod:`config` gives these their public names."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

__all__ = [
    "FP8_DTYPE",
    "FUSED_MOE_UNQUANTIZED_CONFIG",
    "FusedMoEQuantConfig",
    "FusedMoEQuantDesc",
    "GroupShape",
    "QuantKey",
    "fp8_w8a8_moe_quant_config",
    "int8_w8a8_moe_quant_config",
]

FP8_DTYPE = torch.float8_e4m3fn
"""The 8-bit floating point type: 4 exponent bits, 3 mantissa bits, largest value 448."""

_QUANT_DTYPES = (FP8_DTYPE, torch.int8)


class _Group(NamedTuple):
    row: int
    col: int


class GroupShape(_Group):
    """Rows and columns that share one scale; -1 means the whole extent."""

    __slots__ = ()

    PER_TENSOR: ClassVar["GroupShape"]
    PER_TOKEN: ClassVar["GroupShape"]


GroupShape.PER_TENSOR = GroupShape(-1, -1)
GroupShape.PER_TOKEN = GroupShape(1, -1)


class QuantKey(NamedTuple):
    """A quantization scheme as a comparable value, for experts to say which ones they support."""

    dtype: torch.dtype
    static: bool
    """True when the scale is known beforehand, False when it is computed from the values."""
    group_shape: GroupShape

    def __str__(self) -> str:
        names = {GroupShape.PER_TENSOR: "per tensor", GroupShape.PER_TOKEN: "per token"}
        where = names.get(self.group_shape, f"per {self.group_shape.row}x{self.group_shape.col} block")
        return f"{str(self.dtype).removeprefix('torch.')} {'static' if self.static else 'dynamic'} {where}"


@dataclass(frozen=True)
class FusedMoEQuantDesc:
    """Quantization of one tensor of the layer."""

    dtype: torch.dtype | None = None
    """The quantized type; None leaves the tensor as it is."""
    shape: GroupShape | None = None
    scale: torch.Tensor | None = None
    """float32. For activations one element, or None to compute it from values; for weights see ``make``."""


@dataclass(frozen=True)
class FusedMoEQuantConfig:
    """Quantization of the activations before each of the two matrix products, and of the two weights.

    Build one with :meth:`make`. The source of names and scale shapes is vLLM's class of the same name.
    """

    _a1: FusedMoEQuantDesc
    _a2: FusedMoEQuantDesc
    _w1: FusedMoEQuantDesc
    _w2: FusedMoEQuantDesc

    @property
    def quant_dtype(self) -> torch.dtype | None:
        """The dtype that ``prepare`` quantizes activations to; None means not at all."""
        return self._a1.dtype

    @property
    def weight_quant_dtype(self) -> torch.dtype | None:
        """The dtype of the expert weights; None means as the activations come."""
        return self._w1.dtype

    @property
    def is_quantized(self) -> bool:
        """Whether activations are quantized."""
        return self.quant_dtype is not None

    @property
    def is_per_act_token(self) -> bool:
        """Whether each token (row) has its own activation scale."""
        return self._a1.shape == GroupShape.PER_TOKEN

    @property
    def per_act_token_quant(self) -> bool:
        """The same as :attr:`is_per_act_token`, under vLLM's other name."""
        return self.is_per_act_token

    @property
    def per_out_ch_quant(self) -> bool:
        """Whether each output channel of the weights has its own scale."""
        return self._w1.shape == GroupShape.PER_TOKEN

    @property
    def is_per_tensor(self) -> bool:
        """Whether one activation scale serves a whole tensor (one expert's rows in the batched format)."""
        return self._a1.shape == GroupShape.PER_TENSOR

    @property
    def block_shape(self) -> list[int] | None:
        """``[rows, columns]`` of a weight block; activations use one row by that many columns."""
        shape = self._a1.shape
        if shape is None or shape in {GroupShape.PER_TENSOR, GroupShape.PER_TOKEN}:
            return None
        return [shape.row, shape.col]

    @property
    def is_block_quantized(self) -> bool:
        """Whether a row's columns are quantized in blocks, each with its scale."""
        return self.block_shape is not None

    @property
    def a1_scale(self) -> torch.Tensor | None:
        """The static scale of the layer's input, float32 of one element."""
        return self._a1.scale

    @property
    def a2_scale(self) -> torch.Tensor | None:
        """The static scale of the activation's output, float32 of one element."""
        return self._a2.scale

    @property
    def w1_scale(self) -> torch.Tensor | None:
        """Scales of the first weight."""
        return self._w1.scale

    @property
    def w2_scale(self) -> torch.Tensor | None:
        """Scales of the second weight."""
        return self._w2.scale

    @property
    def use_fp8_w8a8(self) -> bool:
        """Whether activations are fp8."""
        return self.quant_dtype == FP8_DTYPE

    @property
    def use_int8_w8a8(self) -> bool:
        """Whether activations are int8."""
        return self.quant_dtype == torch.int8

    @property
    def activation_key(self) -> QuantKey | None:
        """The activations' scheme as a comparable value; None when they are not quantized."""
        if self.quant_dtype is None or self._a1.shape is None:
            return None
        shape = self._a1.shape if self.block_shape is None else GroupShape(1, self._a1.shape.col)
        return QuantKey(self.quant_dtype, self.a1_scale is not None, shape)

    @property
    def weight_key(self) -> QuantKey | None:
        """The weights' scheme as a comparable value; None when they are not quantized."""
        if self._w1.dtype is None:
            return None
        return QuantKey(self._w1.dtype, True, self._w1.shape or GroupShape.PER_TENSOR)

    def scale_shape(self, max_tokens: int, hidden_dim: int) -> tuple[int, int] | None:
        """Give the shape of the float32 scale of ``[max_tokens, hidden_dim]``; None if unquantized."""
        if not self.is_quantized:
            return None
        if self.block_shape is not None:
            return (max_tokens, -(-hidden_dim // self.block_shape[1]))
        return (max_tokens, 1) if self.is_per_act_token else (1, 1)

    def batched_scale_shape(
        self, num_experts: int, max_tokens: int, hidden_dim: int
    ) -> tuple[int, int, int] | None:
        """Give the shape of the scale of ``[num_experts, max_tokens, hidden_dim]``; None if unquantized."""
        shape = self.scale_shape(max_tokens, hidden_dim)
        return None if shape is None else (num_experts, *shape)

    @staticmethod
    def make(
        quant_dtype: torch.dtype | None = None,
        per_act_token_quant: bool = False,
        per_out_ch_quant: bool = False,
        block_shape: list[int] | None = None,
        w1_scale: torch.Tensor | None = None,
        w2_scale: torch.Tensor | None = None,
        a1_scale: torch.Tensor | None = None,
        a2_scale: torch.Tensor | None = None,
        weight_dtype: torch.dtype | None = None,
    ) -> "FusedMoEQuantConfig":
        """Build a configuration from flags, as vLLM's method of this name does.

        - ``quant_dtype``: ``torch.float8_e4m3fn``, ``torch.int8``, or None for unquantized activations.
        - ``per_act_token_quant``: one activation scale a token; otherwise one a tensor, unless
          ``block_shape``.
        - ``per_out_ch_quant``: one weight scale an output channel, ``[experts, out, 1]``.
        - ``block_shape``: ``[rows, columns]`` of a weight block; the activations then have one scale for
          each ``columns`` consecutive elements of a row. Weight scales are ``[experts, out / rows, in /
          columns]``.
        - ``w1_scale``, ``w2_scale``: weight scales, float32; per tensor they are ``[experts]`` or
          ``[experts, 1, 1]``.
        - ``a1_scale``, ``a2_scale``: static activation scales of one element; None computes them from the
          values.
        - ``weight_dtype``: the weights' dtype if it differs from ``quant_dtype``.

        Raises ValueError for a combination that means nothing.
        """
        if quant_dtype is not None and quant_dtype not in _QUANT_DTYPES:
            raise ValueError(
                f"FusedMoEQuantConfig: activations cannot be quantized to {quant_dtype}, expected one of "
                f"{', '.join(str(dtype) for dtype in _QUANT_DTYPES)} or None."
            )
        if block_shape is not None and (per_act_token_quant or per_out_ch_quant):
            raise ValueError(
                f"FusedMoEQuantConfig: block_shape={block_shape} already says which elements share a "
                "scale. Leave per_act_token_quant and per_out_ch_quant False, or block_shape None."
            )
        if block_shape is not None and (len(block_shape) != 2 or min(block_shape) < 1):
            raise ValueError(
                f"FusedMoEQuantConfig: block_shape is {block_shape}, expected [rows, columns], both >= 1."
            )
        dynamic_only = per_act_token_quant or block_shape is not None
        for name, scale in (("a1_scale", a1_scale), ("a2_scale", a2_scale)):
            if scale is None:
                continue
            if quant_dtype is None:
                raise ValueError(
                    f"FusedMoEQuantConfig: {name} is given, but quant_dtype is None. Leave one out."
                )
            if dynamic_only:
                raise ValueError(
                    f"FusedMoEQuantConfig: {name} is given, but per token and per block scales are "
                    f"computed from the values. Leave {name} out."
                )
            if scale.numel() != 1 or scale.dtype != torch.float32:
                raise ValueError(
                    f"FusedMoEQuantConfig: {name} is {scale.dtype} of shape {tuple(scale.shape)}, expected "
                    "torch.float32 of one element (one static scale for the whole tensor)."
                )
        a_shape: GroupShape | None = None
        w_shape: GroupShape | None = None
        if block_shape is not None:
            a_shape = w_shape = GroupShape(block_shape[0], block_shape[1])
        else:
            if quant_dtype is not None:
                a_shape = GroupShape.PER_TOKEN if per_act_token_quant else GroupShape.PER_TENSOR
            if per_out_ch_quant:
                w_shape = GroupShape.PER_TOKEN
        weight_dtype = quant_dtype if weight_dtype is None else weight_dtype
        return FusedMoEQuantConfig(
            _a1=FusedMoEQuantDesc(quant_dtype, a_shape, a1_scale),
            _a2=FusedMoEQuantDesc(quant_dtype, a_shape, a2_scale),
            _w1=FusedMoEQuantDesc(weight_dtype, w_shape, w1_scale),
            _w2=FusedMoEQuantDesc(weight_dtype, w_shape, w2_scale),
        )


FUSED_MOE_UNQUANTIZED_CONFIG = FusedMoEQuantConfig.make()
"""Nothing is quantized."""


def fp8_w8a8_moe_quant_config(
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    per_act_token_quant: bool = False,
    per_out_ch_quant: bool = False,
    block_shape: list[int] | None = None,
) -> FusedMoEQuantConfig:
    """fp8 activations and fp8 weights; see :meth:`FusedMoEQuantConfig.make` for the arguments."""
    return FusedMoEQuantConfig.make(
        FP8_DTYPE,
        per_act_token_quant=per_act_token_quant,
        per_out_ch_quant=per_out_ch_quant,
        block_shape=block_shape,
        w1_scale=w1_scale,
        w2_scale=w2_scale,
        a1_scale=a1_scale,
        a2_scale=a2_scale,
    )


def int8_w8a8_moe_quant_config(
    w1_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    per_act_token_quant: bool = True,
) -> FusedMoEQuantConfig:
    """int8 activations and int8 weights; see :meth:`FusedMoEQuantConfig.make` for the arguments."""
    return FusedMoEQuantConfig.make(
        torch.int8,
        per_act_token_quant=per_act_token_quant,
        w1_scale=w1_scale,
        w2_scale=w2_scale,
    )
