"""Dispatch of one rank's tokens into the batched layout, ``[num_local_experts, rows, hidden]``."""

import torch

from vllm_moe.fused_moe.kernels._device import triton_rows
from vllm_moe.fused_moe.kernels.quantize import (
    QuantKind,
    QuantScheme,
    quantize_rows_torch,
    quantize_with_scale,
    scale_from_amax,
)
from vllm_moe.fused_moe.kernels.routing import ExpertPlacement, route_torch

__all__ = ["batched_prepare", "batched_prepare_torch"]


def check_prepare(a1: torch.Size, topk_weights: torch.Size | None, topk_ids: torch.Size, rows: int) -> None:
    """Raise ValueError when the shapes of :func:`batched_prepare`'s arguments do not fit together."""
    if len(a1) != 2 or len(topk_ids) != 2 or a1[0] != topk_ids[0]:
        raise ValueError(
            f"batched_prepare: a1 is {tuple(a1)} and topk_ids {tuple(topk_ids)}, expected [tokens, "
            "hidden] and [tokens, topk]."
        )
    if a1[0] > rows:
        raise ValueError(
            f"batched_prepare: {a1[0]} tokens, but the layout has {rows} rows for each expert, and one "
            "expert may get a row of every token. Pass fewer tokens, or build the layout for more."
        )
    if topk_weights is not None and (topk_ids[1] != 1 or topk_weights != topk_ids):
        raise ValueError(
            f"batched_prepare: router weights {tuple(topk_weights)} for topk_ids {tuple(topk_ids)}: "
            "weights can be applied to the input only with topk 1, expected [tokens, 1] for both."
        )


def weighted_rows_torch(a1: torch.Tensor, topk_weights: torch.Tensor | None) -> torch.Tensor:
    """Give ``a1`` times its weights ``[tokens, 1]``, rounded once, in a new tensor; or else ``a1``."""
    return a1 if topk_weights is None else (a1.float() * topk_weights.float()).to(a1.dtype)


def _as_words(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Give contiguous ``[n, width]`` tensors in the widest words that fit them all: a copy needs no dtype."""
    # Not every accelerator has 16-byte words.
    for word in (torch.complex128, torch.int64) if tensors[0].device.type == "cpu" else (torch.int64,):
        size = word.itemsize
        if all(
            tensor.size(1) * tensor.element_size() % size == 0
            and tensor.storage_offset() * tensor.element_size() % size == 0
            and tensor.data_ptr() % size == 0
            for tensor in tensors
        ):
            break
    else:
        word = torch.uint8
    row_bytes = tensors[0].size(1) * tensors[0].element_size()
    return [t.view(-1).view(word).view(t.size(0), row_bytes // word.itemsize) for t in tensors]


def scatter_rows_torch(target: torch.Tensor, source: torch.Tensor, slots: torch.Tensor) -> None:
    """``target[slots[t, k]] = source[t]`` for every slot that is not negative.

    ``target`` is contiguous ``[n, width]``, ``source`` ``[tokens, width]`` of the same dtype, ``slots``
    integer ``[tokens, topk]``; slots of one token may be equal, those of two tokens may not.
    """
    if target.size(1) == 0:
        return
    target, source = _as_words(target, source.contiguous())
    token, k = torch.where(slots >= 0)
    if token.numel() == slots.numel():
        target[slots.long()] = source[:, None]
    else:
        target[slots[token, k].long()] = source.index_select(0, token)


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
    check_prepare(a1.shape, None if topk_weights is None else topk_weights.shape, topk_ids.shape, rows)
    experts, hidden = placement.num_local_experts, a1.size(1)
    slots, counts = route_torch(topk_ids, placement, rows)
    (wanted,) = torch.where((slots >= 0).any(1))
    if wanted.numel() < a1.size(0):
        a1, slots = a1.index_select(0, wanted), slots.index_select(0, wanted)
        topk_weights = None if topk_weights is None else topk_weights.index_select(0, wanted)
    a1 = weighted_rows_torch(a1, topk_weights)

    batched = torch.empty(experts * rows, hidden, dtype=scheme.dtype or a1.dtype, device=a1.device)
    scale: torch.Tensor | None = None
    if scheme.kind is QuantKind.DYNAMIC_TENSOR:
        assert scheme.dtype is not None
        row_amax = a1.abs().amax(1).float() if a1.numel() else a1.new_zeros(a1.size(0)).float()
        token, k = torch.where(slots >= 0)
        amax = torch.zeros(experts, dtype=torch.float32, device=a1.device)
        amax.scatter_reduce_(0, slots[token, k].long() // rows, row_amax[token], "amax")
        scale = scale_from_amax(amax, scheme.limit)
        for column in slots.unbind(1):
            # An expert's scale is its own, so a row is quantized for each of its experts.
            column_scale = scale[column.clamp(min=0).long() // rows]
            quantized = quantize_with_scale(a1, column_scale[:, None], scheme.dtype)
            scatter_rows_torch(batched, quantized, column[:, None])
        scale = scale.view(experts, 1, 1)
    else:
        quantized, row_scale = quantize_rows_torch(a1, scheme)
        scatter_rows_torch(batched, quantized, slots)
        if scheme.kind is QuantKind.STATIC_TENSOR:
            assert row_scale is not None
            scale = row_scale.view(1, 1, 1).repeat(experts, 1, 1)
        elif row_scale is not None:
            scale = torch.empty(experts * rows, row_scale.size(1), dtype=torch.float32, device=a1.device)
            scatter_rows_torch(scale, row_scale, slots)
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
        result: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor] = triton_rows().batched_prepare(
            a1, topk_weights, topk_ids, placement, rows, scheme
        )
        return result
    return batched_prepare_torch(a1, topk_weights, topk_ids, placement, rows, scheme)
