"""The experts' arithmetic on rows that are already sorted by expert: two products and the activation between.

Rows come in either of two layouts. Batched: ``[experts, rows, width]``, an expert's rows first, then
padding. Compact: ``[rows, width]``, expert after expert without padding, the rest unused. ``counts`` tells
how many rows each expert has in both.
"""

import torch

from vllm_moe.fused_moe.activation import MoEActivation, apply_moe_activation
from vllm_moe.fused_moe.config import FusedMoEQuantConfig, GroupShape, QuantKey
from vllm_moe.fused_moe.kernels._device import triton_gemm
from vllm_moe.fused_moe.kernels.quantize import (
    QuantKind,
    QuantScheme,
    dequantize,
    quantize_rows_torch,
    quantize_scheme,
    quantize_with_scale,
    scale_from_amax,
)

__all__ = ["dequantize_weights", "grouped_mlp", "grouped_mlp_torch", "supports_quant_scheme"]


def supports_quant_scheme(weight_key: QuantKey | None, activation_key: QuantKey | None) -> bool:
    """Whether :func:`grouped_mlp` can multiply such activations by such weights.

    Unquantized ones by any; quantized ones by weights of the same dtype, in blocks if both have blocks as
    wide.
    """
    if activation_key is None:
        return True
    if weight_key is None or weight_key.dtype != activation_key.dtype:
        return False
    whole = {GroupShape.PER_TENSOR, GroupShape.PER_TOKEN}
    if activation_key.group_shape in whole:
        return weight_key.group_shape in whole
    return weight_key.group_shape.col == activation_key.group_shape.col


def dequantize_weights(
    weights: torch.Tensor, scale: torch.Tensor | None, block_shape: list[int] | None
) -> torch.Tensor:
    """float32 values of ``weights`` ``[experts, out, in]``.

    ``scale`` is ``[experts]`` or ``[experts, 1, 1]`` per tensor, ``[experts, out, 1]`` (or ``[experts,
    out]``) per output channel, and ``[experts, blocks of out, blocks of in]`` with ``block_shape``; None
    leaves the values as they are.

    Raises ValueError for a scale of another shape.
    """
    values = weights.float()
    if scale is None:
        return values
    experts, out, width = weights.shape
    if block_shape is not None:
        expected = (experts, -(-out // block_shape[0]), -(-width // block_shape[1]))
        if tuple(scale.shape) == expected:
            # Along a row first, where there are few rows: repeating whole rows is a copy.
            wide = scale.repeat_interleave(block_shape[1], 2)[:, :, :width]
            return values * wide.repeat_interleave(block_shape[0], 1)[:, :out]
    elif scale.numel() == experts:
        return values * scale.view(experts, 1, 1)
    elif scale.numel() == experts * out:
        return values * scale.view(experts, out, 1)
    raise ValueError(
        f"Scales of shape {tuple(scale.shape)} do not fit weights {tuple(weights.shape)} "
        f"{'per tensor or per channel' if block_shape is None else f'in blocks of {block_shape}'}. Give "
        "one scale for each expert, output channel or block."
    )


def _padded(rows: torch.Tensor, counts: torch.Tensor, fullest: int) -> torch.Tensor:
    """Compact rows as ``[experts, fullest, width]``; padding repeats some row."""
    starts = counts.cumsum(0) - counts
    index = starts[:, None] + torch.arange(fullest, device=rows.device)
    return rows[index.clamp(max=max(rows.size(0) - 1, 0)).long()]


def _quantize_middle(
    values: torch.Tensor, real: torch.Tensor, quant_config: FusedMoEQuantConfig, *, batched: bool
) -> torch.Tensor:
    """``values`` ``[experts, rows, n]`` after the quantization of the second product's input, as float32."""
    scheme = quantize_scheme(quant_config)
    if scheme.kind is QuantKind.NONE or scheme.dtype is None:
        return values.float()
    if quant_config.a2_scale is not None:
        scheme = QuantScheme(QuantKind.STATIC_TENSOR, scheme.dtype, 0, quant_config.a2_scale)
    elif scheme.dtype is not None and scheme.kind in {QuantKind.STATIC_TENSOR, QuantKind.DYNAMIC_TENSOR}:
        # One scale an expert in the batched layout, one in all in the compact one, over real rows only.
        amax = values.float().abs().amax(2).masked_fill(~real, 0.0)
        amax = amax.amax(1, keepdim=True)[:, :, None] if batched else amax.amax().view(1, 1, 1)
        scale = scale_from_amax(amax, scheme.limit)
        return quantize_with_scale(values, scale, scheme.dtype).float() * scale
    quantized, scale_of_rows = quantize_rows_torch(values.flatten(0, 1), scheme)
    return dequantize(quantized, scale_of_rows, scheme.group).view(values.shape)


def grouped_mlp_torch(
    output: torch.Tensor,
    rows: torch.Tensor,
    row_scale: torch.Tensor | None,
    counts: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    activation: MoEActivation,
    quant_config: FusedMoEQuantConfig,
    workspace13: torch.Tensor,
    workspace2: torch.Tensor,
) -> None:
    """Write ``w2 @ activation(w1 @ row)`` of each real row into the same place of ``output``.

    - ``output``, ``rows``: ``[experts, r, hidden]`` (batched) or ``[r, hidden]`` (compact); only the real
      rows of ``output`` are written.
    - ``row_scale``: as ``prepare`` gives it for ``rows`` (``[experts, r or 1, blocks]``, ``[r or 1,
      blocks]``).
    - ``counts``: int32 ``[experts]``.
    - ``w1`` ``[experts, n, hidden]``, ``w2`` ``[experts, hidden, n']``; ``quant_config`` has their scales.
    - ``workspace13``, ``workspace2``: scratch for the CUDA kernels, unused here. ``output`` may share memory
      with ``workspace13``, not with ``rows``.
    """
    experts = w1.size(0)
    # On the CPU the fullest expert is known without waiting; all of them are then one batched product.
    fullest = int(counts.max()) if counts.numel() else 0
    if fullest == 0:
        return
    batched = rows.dim() == 3
    block = quant_config.block_shape[1] if quant_config.block_shape is not None else 0
    if batched:
        values = rows[:, :fullest]
        scale = row_scale if row_scale is None or row_scale.size(1) == 1 else row_scale[:, :fullest]
    else:
        values = _padded(rows, counts, fullest)
        scale = row_scale
        if row_scale is not None and row_scale.size(0) > 1:
            scale = _padded(row_scale, counts, fullest)
    if quant_config.is_quantized and row_scale is None:
        raise ValueError(
            "Quantized experts got rows without scales: either prepare left the quantization to experts "
            "that do not do it, or it lost them."
        )
    real = torch.arange(fullest, device=rows.device) < counts[:, None]
    # Padding holds anything; zeros keep it from slowing the products down.
    values = dequantize(values, scale, block).masked_fill(~real[:, :, None], 0.0)
    middle = torch.bmm(values, dequantize_weights(w1, quant_config.w1_scale, quant_config.block_shape).mT)
    middle = middle.to(output.dtype)
    width = activation.output_size(w1.size(1))
    active = torch.empty(experts, fullest, width, dtype=output.dtype, device=rows.device)
    apply_moe_activation(activation, active, middle)
    active = _quantize_middle(active, real, quant_config, batched=batched)
    result = torch.bmm(active, dequantize_weights(w2, quant_config.w2_scale, quant_config.block_shape).mT)
    if batched:
        output[:, :fullest] = torch.where(real[:, :, None], result.to(output.dtype), output[:, :fullest])
    else:
        output[: int(counts.sum())] = result[real].to(output.dtype)


def grouped_mlp(
    output: torch.Tensor,
    rows: torch.Tensor,
    row_scale: torch.Tensor | None,
    counts: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    activation: MoEActivation,
    quant_config: FusedMoEQuantConfig,
    workspace13: torch.Tensor,
    workspace2: torch.Tensor,
) -> None:
    """:func:`grouped_mlp_torch` as Triton products on CUDA, torch elsewhere."""
    run = triton_gemm().grouped_mlp if rows.is_cuda else grouped_mlp_torch
    run(output, rows, row_scale, counts, w1, w2, activation, quant_config, workspace13, workspace2)
