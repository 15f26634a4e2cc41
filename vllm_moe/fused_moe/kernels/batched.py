"""Dispatch of one rank's tokens into the batched layout, ``[num_local_experts, rows, hidden]``."""

import torch

from vllm_moe.fused_moe.kernels.quantize import (
    QuantKind,
    QuantScheme,
    quantize_rows_torch,
    quantize_with_scale,
    scale_from_amax,
)
from vllm_moe.fused_moe.kernels.routing import ExpertPlacement, first_slots_torch, route_torch

__all__ = ["batched_prepare", "batched_prepare_torch"]


def _check(a1: torch.Tensor, topk_weights: torch.Tensor | None, topk_ids: torch.Tensor, rows: int) -> None:
    if a1.dim() != 2 or topk_ids.dim() != 2 or a1.size(0) != topk_ids.size(0):
        raise ValueError(
            f"batched_prepare: a1 is {tuple(a1.shape)} and topk_ids {tuple(topk_ids.shape)}, expected "
            "[tokens, hidden] and [tokens, topk]."
        )
    if a1.size(0) > rows:
        raise ValueError(
            f"batched_prepare: {a1.size(0)} tokens, but the layout has {rows} rows for each expert, and "
            "one expert may get a row of every token. Pass fewer tokens, or build the layout for more."
        )
    if topk_weights is not None and (topk_ids.size(1) != 1 or topk_weights.shape != topk_ids.shape):
        raise ValueError(
            f"batched_prepare: router weights {tuple(topk_weights.shape)} for topk_ids "
            f"{tuple(topk_ids.shape)}: weights "
            "can be applied to the input only with topk 1, expected [tokens, 1] for both."
        )


def weighted_rows_torch(a1: torch.Tensor, topk_weights: torch.Tensor | None) -> torch.Tensor:
    """``a1`` times its router weights ``[tokens, 1]``, rounded once, in a new tensor; ``a1`` itself "
    "without weights."""
    return a1 if topk_weights is None else (a1.float() * topk_weights.float()).to(a1.dtype)


def _set_rows(target: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> None:
    """``target[index] = source``; index_copy_ knows no fp8, so that goes byte by byte."""
    if target.element_size() == 1:
        target, source = target.view(torch.uint8), source.view(torch.uint8)
    target.index_copy_(0, index, source)


def _select_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    if source.element_size() == 1:
        return source.view(torch.uint8).index_select(0, index).view(source.dtype)
    return source.index_select(0, index)


def batched_prepare_torch(
    a1: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
    rows: int,
    scheme: QuantScheme,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Quantize the tokens that local experts want, and copy each to its experts, in token order.

    - ``a1``: ``[tokens, hidden]``, any strides.
    - ``topk_weights``: ``[tokens, 1]`` to multiply the rows by first; None for no weighting here.
    - ``topk_ids``: integer ``[tokens, topk]``, -1 for a slot without an expert.
    - ``rows``: rows of each expert, at least ``tokens``.

    Returns the batched activations ``[num_local_experts, rows, hidden]`` in the scheme's dtype; float32
    scales ``[num_local_experts, rows, blocks]`` (``blocks`` 1 per token; ``[num_local_experts, 1, 1]`` for
    per-tensor schemes, a computed one being that of the expert's own rows), None when unquantized; and the
    counts, int32 ``[num_local_experts]``. Padding rows and their scales are left uninitialized.

    Raises ValueError when the shapes do not fit, or on the CPU for an id out of range.
    """
    _check(a1, topk_weights, topk_ids, rows)
    experts, hidden = placement.num_local_experts, a1.size(1)
    slots, counts = route_torch(topk_ids, placement, rows)
    token, k = torch.where(first_slots_torch(slots))
    target = slots[token, k].long()
    wanted = torch.zeros(a1.size(0), dtype=torch.bool, device=a1.device)
    wanted[token] = True
    (source,) = torch.where(wanted)
    source_of = (wanted.cumsum(0) - 1)[token]

    selected = a1 if source.numel() == a1.size(0) else a1.index_select(0, source)
    weights = None if topk_weights is None else topk_weights.index_select(0, source)
    selected = weighted_rows_torch(selected, weights)

    batched = torch.empty(experts * rows, hidden, dtype=scheme.dtype or a1.dtype, device=a1.device)
    scale: torch.Tensor | None = None
    if scheme.kind is QuantKind.DYNAMIC_TENSOR:
        assert scheme.dtype is not None
        expert = target // rows
        row_amax = (
            selected.abs().amax(1).float() if selected.numel() else selected.new_zeros(len(source)).float()
        )
        amax = torch.zeros(experts, dtype=torch.float32, device=a1.device)
        amax.scatter_reduce_(0, expert, row_amax[source_of], "amax")
        scale = scale_from_amax(amax, scheme.limit).view(experts, 1, 1)
        copies = selected.index_select(0, source_of)
        _set_rows(batched, target, quantize_with_scale(copies, scale.view(-1, 1)[expert], scheme.dtype))
    else:
        quantized, row_scale = quantize_rows_torch(selected, scheme)
        _set_rows(batched, target, _select_rows(quantized, source_of))
        if scheme.kind is QuantKind.STATIC_TENSOR:
            assert row_scale is not None
            scale = row_scale.view(1, 1, 1).repeat(experts, 1, 1)
        elif row_scale is not None:
            scale = torch.empty(experts * rows, row_scale.size(1), dtype=torch.float32, device=a1.device)
            scale.index_copy_(0, target, row_scale.index_select(0, source_of))
            scale = scale.view(experts, rows, -1)
    return batched.view(experts, rows, hidden), scale, counts


def batched_prepare(
    a1: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
    rows: int,
    scheme: QuantScheme,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """:func:`batched_prepare_torch` on CUDA in one launch up to 512 tokens, two above, torch elsewhere.

    A computed per-tensor scale takes one launch more.
    """
    if a1.is_cuda:
        from vllm_moe.fused_moe.kernels import _triton_rows  # noqa: PLC0415 -- Triton is imported only where CUDA is

        _check(a1, topk_weights, topk_ids, rows)
        return _triton_rows.batched_prepare(a1, topk_weights, topk_ids, placement, rows, scheme)
    return batched_prepare_torch(a1, topk_weights, topk_ids, placement, rows, scheme)
