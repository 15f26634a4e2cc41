"""Weighting and adding up the rows of one token."""

import torch
from torch.nn import functional

from vllm_moe.fused_moe.kernels._device import triton_rows
from vllm_moe.fused_moe.kernels.routing import ExpertPlacement, route_torch

__all__ = [
    "batched_finalize",
    "batched_finalize_torch",
    "combine_rows",
    "combine_rows_torch",
    "weight_and_reduce",
    "weight_and_reduce_torch",
]

_CACHED_ELEMENTS = 2**19


def share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether some byte may belong to both tensors: one storage, and overlapping extents in it."""
    if not a.numel() or not b.numel() or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    spans = []
    for tensor in (a, b):
        first = tensor.storage_offset() * tensor.element_size()
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        spans.append((first, first + (last + 1) * tensor.element_size()))
    return spans[0][0] < spans[1][1] and spans[1][0] < spans[0][1]


def _in_two_bfloat16(values: torch.Tensor) -> torch.Tensor:
    """Give float32 ``[n]`` as bfloat16 ``[2 n]``: pairs that add up to a value to 16 significant bits."""
    high = values.to(torch.bfloat16)
    low = torch.where(high.isfinite(), values - high.float(), 0).to(torch.bfloat16)
    return torch.stack((high, low), 1).view(-1)


def combine_rows_torch(
    output: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, topk_weights: torch.Tensor | None
) -> None:
    """``output[t] = sum over k of topk_weights[t, k] * rows[slots[t, k]]``, slots of -1 left out; in float32.

    - ``output``: ``[tokens, hidden]``, any strides; every element is written. It may overlap ``rows``.
    - ``rows``: ``[n, hidden]``; only those that a slot names are read.
    - ``slots``: integer ``[tokens, topk]``.
    - ``topk_weights``: ``[tokens, topk]``, or None for weights of one.

    On the CPU bfloat16 rows are multiplied by weights of 16 significant bits, twice what the rows have.
    """
    taken = slots >= 0
    numbers = taken.sum(1)
    ends = numbers.cumsum(0)
    starts = ends - numbers
    sources = slots[taken].long()
    weights = None if topk_weights is None else topk_weights[taken].float()
    # The CPU's embedding_bag adds up in float32 and rounds once, whatever the rows are (exact halves not to even).
    rounded_once = rows.dtype is torch.float32 or rows.dtype is output.dtype is torch.bfloat16
    if rows.device.type == "cpu" and rounded_once and rows.stride(1) == 1:
        if weights is not None and rows.dtype is torch.bfloat16:
            sources, starts, weights = sources.repeat_interleave(2), 2 * starts, _in_two_bfloat16(weights)
        output.copy_(
            functional.embedding_bag(sources, rows, starts, mode="sum", per_sample_weights=weights)
        )
        return
    result = torch.empty(output.shape, dtype=output.dtype, device=output.device)
    # A few tokens at a time, so that their float32 rows stay in the cache.
    step = max(1, _CACHED_ELEMENTS // max(rows.size(1) * slots.size(1), 1))
    for first in range(0, slots.size(0), step):
        last = min(first + step, slots.size(0))
        begin, end = int(starts[first]), int(ends[last - 1])
        if begin == end:
            result[first:last] = 0
            continue
        result[first:last] = functional.embedding_bag(
            torch.arange(end - begin, device=slots.device),
            rows.index_select(0, sources[begin:end]).float(),
            starts[first:last] - begin,
            mode="sum",
            per_sample_weights=None if weights is None else weights[begin:end],
        )
    output.copy_(result)


def combine_rows(
    output: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, topk_weights: torch.Tensor | None
) -> None:
    """:func:`combine_rows_torch` in one launch on CUDA, torch elsewhere."""
    if rows.is_cuda:
        triton_rows().combine_rows(output, rows, slots, topk_weights)
    else:
        combine_rows_torch(output, rows, slots, topk_weights)


def _as_rows(fused_expert_output: torch.Tensor) -> torch.Tensor:
    """``[..., hidden]`` as ``[rows, hidden]``: a view where strides allow it, else a copy."""
    return fused_expert_output.reshape(-1, fused_expert_output.size(-1))


def _check_combined(
    name: str, output: torch.Size, topk_weights: torch.Size | None, topk_ids: torch.Size, hidden: int
) -> None:
    if tuple(output) != (topk_ids[0], hidden):
        raise ValueError(
            f"{name}: output is {tuple(output)}, expected {(topk_ids[0], hidden)}: a row for each row of "
            "topk_ids, as wide as the experts' output."
        )
    if topk_weights is not None and topk_weights != topk_ids:
        raise ValueError(
            f"{name}: topk_weights is {tuple(topk_weights)} and topk_ids {tuple(topk_ids)}, expected "
            "equal shapes [tokens, topk]."
        )


def check_finalize(
    output: torch.Size,
    fused_expert_output: torch.Size,
    topk_weights: torch.Size | None,
    topk_ids: torch.Size,
    experts: int,
) -> None:
    """Raise ValueError when the shapes of :func:`batched_finalize`'s arguments do not fit together."""
    if len(fused_expert_output) != 3 or fused_expert_output[0] != experts:
        raise ValueError(
            f"batched_finalize: fused_expert_output is {tuple(fused_expert_output)}, expected [{experts}, "
            "rows, hidden]: one slice for each local expert."
        )
    if topk_ids[0] > fused_expert_output[1]:
        raise ValueError(
            f"batched_finalize: {topk_ids[0]} tokens, but fused_expert_output has "
            f"{fused_expert_output[1]} rows for "
            "each expert, so it does not come from a prepare of these tokens. Pass the topk_ids that "
            "prepare had."
        )
    _check_combined("batched_finalize", output, topk_weights, topk_ids, fused_expert_output[2])


def batched_finalize_torch(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> None:
    """Gather each token's rows from the batched layout, weight and add them up, in float32, to ``output``.

    - ``output``: ``[tokens, hidden]``, any strides; every element is written (zero where no slot is local).
      It may overlap ``fused_expert_output``.
    - ``fused_expert_output``: ``[num_local_experts, rows, hidden]``; padding rows are not read.
    - ``topk_weights``: ``[tokens, topk]``, or None for weights of one. ``topk_ids``: those that ``prepare``
      had.

    Raises ValueError when the shapes do not fit together.
    """
    weights_shape = None if topk_weights is None else topk_weights.shape
    check_finalize(
        output.shape, fused_expert_output.shape, weights_shape, topk_ids.shape, placement.num_local_experts
    )
    slots, _ = route_torch(topk_ids, placement, fused_expert_output.size(1))
    combine_rows_torch(output, _as_rows(fused_expert_output), slots, topk_weights)


def batched_finalize(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> None:
    """:func:`batched_finalize_torch` in one launch (two above 512 tokens) on CUDA, torch elsewhere."""
    if fused_expert_output.is_cuda:
        triton_rows().batched_finalize(output, fused_expert_output, topk_weights, topk_ids, placement)
    else:
        batched_finalize_torch(output, fused_expert_output, topk_weights, topk_ids, placement)


def _check_contiguous(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
) -> None:
    tokens, topk = topk_ids.shape
    hidden = fused_expert_output.size(-1)
    if tuple(fused_expert_output.shape) not in {(tokens, topk, hidden), (tokens * topk, hidden)}:
        raise ValueError(
            f"weight_and_reduce: fused_expert_output is {tuple(fused_expert_output.shape)}, expected "
            f"{tokens, topk} or [{tokens * topk}] rows of the hidden size: one for each slot of topk_ids."
        )
    weights_shape = None if topk_weights is None else topk_weights.shape
    _check_combined("weight_and_reduce", output.shape, weights_shape, topk_ids.shape, hidden)


def weight_and_reduce_torch(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
) -> None:
    """Weight and add up the ``topk`` rows of each token, in float32, into ``output``.

    - ``output``: ``[tokens, hidden]``, any strides; every element is written. It may overlap the experts'
      output.
    - ``fused_expert_output``: ``[tokens, topk, hidden]`` or ``[tokens * topk, hidden]``.
    - ``topk_weights``: ``[tokens, topk]``, or None for weights of one.
    - ``topk_ids``: ``[tokens, topk]``; rows whose id is negative are not read.

    Raises ValueError when the shapes do not fit together.
    """
    _check_contiguous(output, fused_expert_output, topk_weights, topk_ids)
    every = torch.arange(topk_ids.numel(), device=topk_ids.device).view(topk_ids.shape)
    slots = torch.where(topk_ids.to(torch.int64) < 0, -1, every)
    combine_rows_torch(output, _as_rows(fused_expert_output), slots, topk_weights)


def weight_and_reduce(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
) -> None:
    """:func:`weight_and_reduce_torch` in one launch on CUDA, torch elsewhere."""
    if fused_expert_output.is_cuda:
        _check_contiguous(output, fused_expert_output, topk_weights, topk_ids)
        triton_rows().weight_and_reduce(output, fused_expert_output, topk_weights, topk_ids)
    else:
        weight_and_reduce_torch(output, fused_expert_output, topk_weights, topk_ids)
