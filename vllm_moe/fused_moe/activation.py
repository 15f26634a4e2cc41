"""Activation functions between the two expert matrix products (vLLM: ``fused_moe/activation.py``)."""

from enum import Enum

import torch
from torch.nn import functional

__all__ = ["MoEActivation", "apply_moe_activation"]


class MoEActivation(Enum):
    """An activation; gated ones take ``[..., 2 * n]``, gate half before up half, and give ``[..., n]``."""

    SILU = "silu"
    GELU = "gelu"
    SILU_NO_MUL = "silu_no_mul"
    GELU_NO_MUL = "gelu_no_mul"
    RELU2_NO_MUL = "relu2_no_mul"

    @property
    def is_gated(self) -> bool:
        """Whether the input holds a gate half and an up half that are multiplied."""
        return not self.value.endswith("_no_mul")

    def output_size(self, input_size: int) -> int:
        """Width of the result for an input of width ``input_size``.

        Raises ValueError when a gated activation is given an odd width.
        """
        if not self.is_gated:
            return input_size
        if input_size % 2:
            raise ValueError(
                f"{self.value} halves its input into gate and up, which needs an even width, found "
                f"{input_size}. Use an even intermediate size or {self.value}_no_mul."
            )
        return input_size // 2


def apply_moe_activation(
    activation: MoEActivation,
    output: torch.Tensor,
    input: torch.Tensor,  # noqa: A002 -- vLLM's name
) -> torch.Tensor:
    """Write ``activation(input)`` into ``output`` and return it; ``input`` is left as it is.

    ``input`` is ``[..., n]`` (``[..., 2 * n]`` for a gated activation), ``output`` is ``[..., n]``. The
    arithmetic is float32 whatever the dtypes, and is rounded once, into ``output``.

    Raises ValueError when the shapes do not fit.
    """
    width = activation.output_size(input.size(-1))
    expected = (*input.shape[:-1], width)
    if tuple(output.shape) != expected:
        raise ValueError(
            f"{activation.value} of {tuple(input.shape)} gives {expected}, but output is "
            f"{tuple(output.shape)}. "
            "Allocate output with that shape."
        )
    values = input.float()
    if activation.is_gated:
        gate, up = values[..., :width], values[..., width:]
        active = functional.silu(gate) if activation is MoEActivation.SILU else functional.gelu(gate)
        return output.copy_(active * up)
    if activation is MoEActivation.SILU_NO_MUL:
        return output.copy_(functional.silu(values))
    if activation is MoEActivation.GELU_NO_MUL:
        return output.copy_(functional.gelu(values))
    return output.copy_(torch.relu(values).square())
