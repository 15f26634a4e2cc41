"""Helpers that prepare/finalize and experts share (vLLM: ``fused_moe/utils.py``)."""

from math import prod

import torch

from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.kernels.batched import weighted_rows_torch
from vllm_moe.fused_moe.kernels.quantize import quantize_rows, quantize_scheme
from vllm_moe.fused_moe.kernels.routing import count_expert_num_tokens

__all__ = [
    "count_expert_num_tokens",
    "moe_kernel_quantize_input",
    "normalize_batched_scales_shape",
    "normalize_scales_shape",
    "resize_cache",
    "validate_topk",
    "weigh_input",
]


def resize_cache(x: torch.Tensor, v: tuple[int, ...]) -> torch.Tensor:
    """Give the first ``prod(v)`` elements of ``x`` as a view of shape ``v``.

    Raises ValueError when ``x`` has fewer.
    """
    if prod(v) > x.numel():
        raise ValueError(
            f"resize_cache: shape {v} needs {prod(v)} elements, but the workspace has {x.numel()}."
        )
    return x.flatten()[: prod(v)].view(v)


def moe_kernel_quantize_input(
    A: torch.Tensor,
    A_scale: torch.Tensor | None,
    quant_dtype: torch.dtype | None,
    per_act_token_quant: bool,
    block_shape: list[int] | None = None,
    *,
    row_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Quantize activations ``[tokens, hidden]`` into a new tensor; give it and its float32 scales.

    - ``A_scale``: the static per-tensor scale, one element; None computes scales from the values.
    - ``quant_dtype``: None leaves ``A`` unquantized and gives ``(A, A_scale)``.
    - ``per_act_token_quant``: scales ``[tokens, 1]``; with ``block_shape`` they are ``[tokens, blocks]``,
      each over ``block_shape[1]`` elements of a row; otherwise one scale, ``[1, 1]``.
    - ``row_mask``: bool ``[tokens]``; rows where it is False are padding and do not enter a computed
      per-tensor scale.

    Raises ValueError for a combination that :meth:`FusedMoEQuantConfig.make` refuses.
    """
    if quant_dtype is None:
        return A, A_scale
    quant_config = FusedMoEQuantConfig.make(
        quant_dtype, per_act_token_quant=per_act_token_quant, block_shape=block_shape, a1_scale=A_scale
    )
    return quantize_rows(A, quantize_scheme(quant_config), row_mask)


def normalize_scales_shape(scales: torch.Tensor | None) -> torch.Tensor | None:
    """Scales as two dimensions: ``[1, 1]`` for a single one, else ``[tokens, scales of a token]``."""
    if scales is None:
        return None
    return scales.view(1, 1) if scales.numel() == 1 else scales.view(-1, scales.size(-1))


def normalize_batched_scales_shape(scales: torch.Tensor | None, num_experts: int) -> torch.Tensor | None:
    """Scales as three dimensions, experts first; a single scale is repeated for each expert."""
    if scales is None or scales.dim() == 3:
        return scales
    if scales.numel() == 1:
        return scales.view(1, 1, 1).repeat(num_experts, 1, 1)
    return scales.view(num_experts, -1, scales.size(-1))


def validate_topk(where: str, a1: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor) -> None:
    """Raise unless ``a1`` is ``[tokens, hidden]`` and ids (integers) and weights are both ``[tokens, topk]``.

    Raises ValueError for shapes, TypeError for ids that are not integers; ``where`` opens the message.
    """
    fits = a1.dim() == 2 and topk_ids.dim() == 2 and topk_ids.size(0) == a1.size(0)
    if not fits or topk_weights.shape != topk_ids.shape:
        raise ValueError(
            f"{where}: a1 is {tuple(a1.shape)}, topk_weights {tuple(topk_weights.shape)} and topk_ids "
            f"{tuple(topk_ids.shape)}, expected [tokens, hidden] and twice [tokens, topk]."
        )
    if topk_ids.dtype.is_floating_point or topk_ids.dtype in {torch.bool, torch.complex64, torch.complex128}:
        raise TypeError(f"{where}: topk_ids is {topk_ids.dtype}, expected an integer dtype.")


def weigh_input(where: str, a1: torch.Tensor, topk_weights: torch.Tensor) -> torch.Tensor:
    """Give ``a1`` ``[tokens, hidden]`` times its weights ``[tokens, 1]``, as a new tensor of its dtype.

    Raises ValueError when a token has more than one weight: its rows would differ by expert, and there is
    only one.
    """
    if topk_weights.size(1) != 1:
        raise ValueError(
            f"{where}: apply_router_weight_on_input needs topk 1, found topk {topk_weights.size(1)}: one "
            "row cannot carry several experts' weights. Apply the weights in finalize."
        )
    return weighted_rows_torch(a1, topk_weights)
