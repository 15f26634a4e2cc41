"""Launches of the Triton kernels of the experts; the function has the signature of its torch twin."""

from functools import lru_cache
from math import prod

import torch
import triton.language as tl

from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.kernels._jit_gemm import (
    A_BLOCK,
    A_EXPERT,
    A_ROW,
    A_UNSCALED,
    B_BLOCK,
    B_CHANNEL,
    B_EXPERT,
    B_UNSCALED,
    GELU,
    RELU2,
    SILU,
    activation_kernel,
    grouped_gemm_kernel,
)
from vllm_moe.fused_moe.kernels._launch import Launch
from vllm_moe.fused_moe.kernels.quantize import QuantKind, QuantScheme, quantize_scheme

__all__ = ["grouped_mlp"]

_FUNCTIONS = {
    MoEActivation.SILU: SILU,
    MoEActivation.SILU_NO_MUL: SILU,
    MoEActivation.GELU: GELU,
    MoEActivation.GELU_NO_MUL: GELU,
    MoEActivation.RELU2_NO_MUL: RELU2,
}
_PLANS = 4096
_TRITON_DTYPES: dict[torch.dtype | None, tl.dtype] = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _weight_scale(
    name: str, weights: torch.Tensor, scale: torch.Tensor | None, block_shape: list[int] | None
) -> tuple[torch.Tensor | None, int]:
    if scale is None:
        return None, B_UNSCALED.value
    experts, out, width = weights.shape
    if block_shape is not None:
        expected = (experts, -(-out // block_shape[0]), -(-width // block_shape[1]))
        if tuple(scale.shape) == expected:
            return scale.contiguous(), B_BLOCK.value
    elif scale.numel() == experts:
        return scale.contiguous(), B_EXPERT.value
    elif scale.numel() == experts * out:
        return scale.contiguous(), B_CHANNEL.value
    raise ValueError(
        f"Scales of {name} are {tuple(scale.shape)} for weights {tuple(weights.shape)}, expected one for "
        f"each expert, output channel{'' if block_shape is None else f' or block of {block_shape}'}."
    )


@lru_cache(_PLANS)
def _plan_gemm(
    row_shape: tuple[int, ...],
    weight_shape: tuple[int, int, int],
    strides: tuple[int, int],
    dtypes: tuple[torch.dtype, ...],
    kinds: tuple[int, int],
    block_shape: tuple[int, int] | None,
) -> Launch:
    """Plan one product; ``dtypes`` are those of rows, weights and result."""
    experts, out, width = weight_shape
    batched = len(row_shape) == 3
    per_expert = row_shape[-2]
    # Rows that an expert has if they are spread evenly; a tile much larger would be mostly empty.
    even = -(-prod(row_shape[:-1]) // experts)
    block_m = min(64 if batched else 128, max(16, _power_of_two(even)))
    block_n = 64 if dtypes[0] is torch.float32 else 128
    block_k = 32 if dtypes[0] is torch.float32 else 64
    group_n, group_k = block_shape or (1, 1)
    if block_shape is not None:
        if group_k & (group_k - 1) or group_k < 16:
            raise ValueError(
                f"Blocks of {group_k} elements: the CUDA kernel takes powers of two from 16 up. Use 128, "
                "or run on the CPU."
            )
        # One scale a step, so a step must not straddle two blocks.
        block_k = min(block_k, group_k)
    tiles = experts * -(-per_expert // block_m) if batched else -(-per_expert // block_m) + experts
    return Launch(
        grouped_gemm_kernel,
        (-(-out // block_n), tiles),
        (per_expert,),
        (
            out,
            width,
            *strides,
            experts,
            _power_of_two(experts),
            batched,
            *kinds,
            group_n,
            group_k,
            block_m,
            block_n,
            block_k,
        ),
        num_warps=8 if block_m * block_n > 64 * 128 else 4,
    )


def _multiply(
    rows: torch.Tensor,
    row_scale: torch.Tensor | None,
    weights: torch.Tensor,
    weight_scale: tuple[torch.Tensor | None, int],
    result: torch.Tensor,
    counts: torch.Tensor,
    block_shape: list[int] | None,
) -> None:
    """Write ``rows @ weights[expert].T`` of the real rows, scaled, into ``result``."""
    if weights.stride(2) != 1:
        weights = weights.contiguous()
    a_kind = A_UNSCALED.value
    if row_scale is not None:
        row_scale = row_scale.contiguous()
        if block_shape is not None:
            a_kind = A_BLOCK.value
        else:
            a_kind = A_EXPERT.value if row_scale.size(-2) == 1 else A_ROW.value
    experts, out, width = weights.shape
    plan = _plan_gemm(
        tuple(rows.shape),
        (experts, out, width),
        (weights.stride(0), weights.stride(1)),
        (rows.dtype, weights.dtype, result.dtype),
        (a_kind, weight_scale[1]),
        None if block_shape is None else (block_shape[0], block_shape[1]),
    )
    plan(rows, weights, result, row_scale, weight_scale[0], counts)


@lru_cache(_PLANS)
def _plan_activation(
    row_shape: tuple[int, ...],
    width: int,
    activation: MoEActivation,
    dtypes: tuple[torch.dtype | None, ...],
    experts: int,
    measuring: bool,
    kind: QuantKind,
    limit: float,
    group: int,
) -> Launch:
    """Plan the activation; ``dtypes`` are those of its input and of its unquantized and quantized results."""
    batched = len(row_shape) == 3
    programs = prod(row_shape[:-1])
    block = max(_power_of_two(width), group)
    return Launch(
        activation_kernel,
        (programs, 1),
        (row_shape[-2],),
        (
            width,
            activation.is_gated,
            _FUNCTIONS[activation].value,
            _TRITON_DTYPES[dtypes[1]],
            experts,
            _power_of_two(experts),
            batched,
            measuring,
            int(kind),
            limit,
            group,
            block,
        ),
        num_warps=max(1, min(8, block // 512)),
    )


def _activated(
    middle: torch.Tensor,
    counts: torch.Tensor,
    activation: MoEActivation,
    quant_config: FusedMoEQuantConfig,
    workspace2: torch.Tensor,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Activate real rows of ``middle``, quantized as the second product wants them, and give their scales."""
    scheme = quantize_scheme(quant_config)
    if quant_config.a2_scale is not None:
        scheme = QuantScheme(QuantKind.STATIC_TENSOR, scheme.dtype, 0, quant_config.a2_scale)
    elif scheme.kind is QuantKind.STATIC_TENSOR:
        scheme = QuantScheme(QuantKind.DYNAMIC_TENSOR, scheme.dtype, 0, None)
    batched = middle.dim() == 3
    shape = (*middle.shape[:-1], width)
    device = middle.device
    out = workspace2.flatten()[: prod(shape)].view(shape)
    scale: torch.Tensor | None = None
    amax: torch.Tensor | None = None
    if scheme.dtype is not None:
        out = torch.empty(shape, dtype=scheme.dtype, device=device)
        per_row = scheme.scales_per_row(width)
        if per_row:
            scale = torch.empty((*shape[:-1], per_row), dtype=torch.float32, device=device)
        else:
            scale_shape = (counts.numel(), 1, 1) if batched else (1, 1)
            if scheme.static_scale is None:
                amax = torch.zeros(scale_shape, dtype=torch.float32, device=device)
                scale = torch.empty_like(amax)
            else:
                scale = scheme.static_scale.view(1).expand(scale_shape[0]).contiguous().view(scale_shape)
    for measuring in (True, False) if amax is not None else (False,):
        plan = _plan_activation(
            tuple(middle.shape),
            width,
            activation,
            (middle.dtype, workspace2.dtype, scheme.dtype),
            counts.numel(),
            measuring,
            scheme.kind,
            scheme.limit,
            scheme.group,
        )
        plan(middle, out, scale, scheme.static_scale, amax, counts)
    return out, scale


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
    """See :func:`~vllm_moe.fused_moe.kernels.grouped.grouped_mlp_torch`.

    ``workspace13`` has room for ``[..., w1.size(1)]`` and ``workspace2`` for the activation's result, both of
    ``output``'s dtype.
    """
    if not rows.numel():
        return
    if quant_config.is_quantized and row_scale is None:
        raise ValueError(
            "Quantized experts got rows without scales: either prepare left the quantization to experts "
            "that do not do it, or it lost them."
        )
    block_shape = quant_config.block_shape
    shape = (*rows.shape[:-1], w1.size(1))
    middle = workspace13.flatten()[: prod(shape)].view(shape)
    scale1 = _weight_scale("w1", w1, quant_config.w1_scale, block_shape)
    scale2 = _weight_scale("w2", w2, quant_config.w2_scale, block_shape)
    width = activation.output_size(w1.size(1))
    rows = rows.contiguous()
    _multiply(rows, row_scale, w1, scale1, middle, counts, block_shape)
    active, active_scale = _activated(middle, counts, activation, quant_config, workspace2, width)
    _multiply(active, active_scale, w2, scale2, output, counts, block_shape)
