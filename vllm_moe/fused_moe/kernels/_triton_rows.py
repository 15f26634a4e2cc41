
"""Launches of the Triton kernels on rows; the functions have the signatures of their torch twins.

A token's row at an expert is the number of earlier tokens that name the expert. Up to ``MOST_COUNTED_IDS``
(decode) every program counts for itself in the ids of all earlier tokens, which are in the cache anyway: one
launch in all. Above, a first launch tallies each chunk of tokens for each expert, and a program then counts
within its chunk only and adds the tallies before it: two launches, the second of which starts while the
first still runs and reads its rows meanwhile.

Launches are planned once for each combination of sizes, dtypes and placement, and kept.
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from vllm_moe.fused_moe.kernels._jit_rows import (
    COMPACT,
    COUNTING,
    IDENTITY,
    SLOTS,
    amax_kernel,
    gather_kernel,
    place_kernel,
    scatter_kernel,
    tally_kernel,
)
from vllm_moe.fused_moe.kernels._launch import OVERLAPS, Launch
from vllm_moe.fused_moe.kernels.batched import check_prepare
from vllm_moe.fused_moe.kernels.quantize import SMALLEST_AMAX, QuantKind, QuantScheme
from vllm_moe.fused_moe.kernels.reduce import check_finalize, share_memory
from vllm_moe.fused_moe.kernels.routing import ExpertPlacement

__all__ = [
    "batched_finalize",
    "batched_prepare",
    "combine_rows",
    "count_expert_num_tokens",
    "permute_tokens",
    "quantize_rows",
    "route",
    "weight_and_reduce",
]

MOST_COUNTED_IDS = 4096
_CHUNK = 32
_PLANS = 4096


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _signed_ids(topk_ids: torch.Tensor) -> torch.Tensor:
    """``topk_ids``, contiguous and of a signed type: the kernels compare with -1."""
    if not topk_ids.dtype.is_signed:
        topk_ids = topk_ids.to(torch.int64)
    return topk_ids.contiguous()


def _contiguous_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) == 1 else tensor.contiguous()


class _Placement(NamedTuple):
    """What of an :class:`ExpertPlacement` decides about the code: everything but the tables' contents."""

    experts: int
    first: int
    bound: int
    """One beyond the largest id, or -1 where ids are not bounded."""
    map_bound: int
    to_physical: torch.dtype | None
    expert_map: torch.dtype | None

    @property
    def constants(self) -> tuple[int, int, int, int]:
        return max(self.bound, 0), self.map_bound, self.first, self.experts


def _placement_key(placement: ExpertPlacement) -> _Placement:
    to_physical, expert_map = placement.global_to_physical, placement.expert_map
    bound = -1 if placement.num_experts is None else placement.num_experts
    if to_physical is None and expert_map is None:
        return _Placement(placement.num_local_experts, placement.first_expert, bound, 0, None, None)
    map_bound = 0 if expert_map is None else expert_map.numel()
    return _Placement(
        placement.num_local_experts,
        placement.first_expert if expert_map is None else 0,
        map_bound if to_physical is None else to_physical.numel(),
        map_bound,
        None if to_physical is None else to_physical.dtype,
        None if expert_map is None else expert_map.dtype,
    )


class _Counting(NamedTuple):
    """How positions are counted: chunk by chunk after a launch that tallies the chunks, or all in one."""

    tally: Launch | None
    tally_shape: tuple[int, int]
    chunks: int
    constants: tuple[int, int, bool]
    """Tokens of a chunk, width of the vectors that are counted, and whether the next launch overlaps."""

    @property
    def overlapped(self) -> bool:
        return self.constants[2]


@lru_cache(_PLANS)
def _plan_counting(
    tokens: int, topk: int, ids_dtype: torch.dtype, placement: _Placement, rows: int, most: int, step: int
) -> _Counting:
    if placement.experts * rows >= 2**31:
        raise ValueError(
            f"{placement.experts} experts with {rows} rows each are {placement.experts * rows} rows, "
            "expected fewer than 2^31. Pass fewer tokens at a time."
        )
    if tokens * topk <= most:
        chunk = max(_power_of_two(tokens), 16)
        return _Counting(None, (0, 0), 1, (chunk, chunk, False))
    # As many chunks as tokens in a chunk when there are many, so that neither count is long.
    chunk = max(step, _power_of_two(int(tokens**0.5)))
    chunks = -(-tokens // chunk)
    block = min(_power_of_two(placement.experts), 32)
    launch = Launch(
        tally_kernel,
        (chunks, -(-placement.experts // block)),
        (tokens, chunks),
        (topk, placement.bound >= 0, *placement.constants, chunk, block, OVERLAPS),
        num_warps=8,
    )
    return _Counting(
        launch, (placement.experts, chunks), chunks, (chunk, max(chunk, _power_of_two(chunks)), OVERLAPS)
    )


def _count(
    topk_ids: torch.Tensor, placement: ExpertPlacement, key: _Placement, rows: int
) -> tuple[_Counting, torch.Tensor | None]:
    """Plan the counting, and start the tallies where there are several chunks."""
    tokens, topk = topk_ids.shape
    counting = _plan_counting(tokens, topk, topk_ids.dtype, key, rows, MOST_COUNTED_IDS, _CHUNK)
    if counting.tally is None:
        return counting, None
    tally = torch.empty(counting.tally_shape, dtype=torch.int32, device=topk_ids.device)
    counting.tally(topk_ids, placement.global_to_physical, placement.expert_map, tally)
    return counting, tally


@lru_cache(_PLANS)
def _plan_place(
    tokens: int,
    topk: int,
    ids_dtype: torch.dtype,
    placement: _Placement,
    rows: int,
    counting: _Counting,
    limit: float | None,
) -> Launch:
    """Plan the launch that writes slots down; ``limit`` is that of the scales it prepares, None without."""
    topk2 = _power_of_two(topk)
    chunk, width, overlapped = counting.constants
    return Launch(
        place_kernel,
        (tokens + placement.experts, 1),
        (tokens, counting.chunks, rows),
        (
            topk,
            topk2,
            placement.bound >= 0,
            *placement.constants,
            chunk,
            width,
            overlapped,
            limit or 0.0,
        ),
        num_warps=max(1, min(4, width * topk2 // 512)),
        overlapped=overlapped,
    )


def _place_slots(
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
    rows: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give slots and counts."""
    key = _placement_key(placement)
    counting, tally = _count(topk_ids, placement, key, rows)
    tokens, topk = topk_ids.shape
    slots = torch.empty((tokens, topk), dtype=torch.int32, device=topk_ids.device)
    counts = torch.empty(key.experts, dtype=torch.int32, device=topk_ids.device)
    _plan_place(tokens, topk, topk_ids.dtype, key, rows, counting, None)(
        topk_ids, placement.global_to_physical, placement.expert_map, tally, slots, counts, None, None
    )
    return slots, counts


def route(topk_ids: torch.Tensor, placement: ExpertPlacement, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`~vllm_moe.fused_moe.kernels.routing.route_torch`."""
    return _place_slots(_signed_ids(topk_ids), placement, rows)


def count_expert_num_tokens(
    topk_ids: torch.Tensor, num_local_experts: int, expert_map: torch.Tensor | None
) -> torch.Tensor:
    """See :func:`~vllm_moe.fused_moe.kernels.routing.count_expert_num_tokens_torch`."""
    # One column, so that an expert named twice in a row counts twice.
    ids = _signed_ids(topk_ids).view(-1, 1)
    return _place_slots(ids, ExpertPlacement(num_local_experts, expert_map=expert_map), 1)[1]


class _Scheme(NamedTuple):
    """What of a :class:`QuantScheme` decides about the code: everything but a static scale's value."""

    kind: QuantKind
    dtype: torch.dtype | None
    group: int
    limit: float
    scales: int
    """Scales of a row of its own, or of those that travel with it."""


_UNQUANTIZED = _Scheme(QuantKind.NONE, None, 0, 0.0, 0)


def _scheme_key(scheme: QuantScheme, hidden: int) -> _Scheme:
    if scheme.kind is QuantKind.NONE:
        return _UNQUANTIZED
    if scheme.kind is QuantKind.BLOCK and scheme.group & (scheme.group - 1):
        raise ValueError(
            f"Quantization in blocks of {scheme.group} elements: the CUDA kernel takes powers of two "
            "only. Use 128, or quantize on the CPU."
        )
    return _Scheme(scheme.kind, scheme.dtype, scheme.group, scheme.limit, scheme.scales_per_row(hidden))


def _scatter_shape(tokens: int, hidden: int, kind: QuantKind) -> tuple[int, int]:
    """Columns of one program and its warps; the best of those tried on an H200."""
    whole = _power_of_two(hidden)
    if kind is QuantKind.TOKEN:
        return whole, max(4, min(16, whole // 1024))
    block = min(whole, 2048 if tokens * hidden < 2**21 else 4096)
    return block, max(1, min(4, block // 512))


@lru_cache(_PLANS)
def _plan_scatter(
    find: int,
    tokens: int,
    hidden: int,
    a_stride: int,
    dtypes: tuple[torch.dtype | None, ...],
    topk: int,
    placement: _Placement,
    rows: int,
    scheme: _Scheme,
    counting: _Counting | None,
    extra: bool,
) -> Launch:
    """Plan the launch that moves rows; ``dtypes`` (of inputs) and ``extra`` only tell plans apart."""
    block, warps = _scatter_shape(tokens, hidden, scheme.kind)
    block = max(block, scheme.group)
    parts = -(-hidden // block)
    chunks, constants, programs = 1, (1, 1, False), tokens * parts
    if counting is not None:
        chunks, constants = counting.chunks, counting.constants
        programs += placement.experts
    return Launch(
        scatter_kernel,
        (programs, 1),
        (tokens, chunks, rows),
        (
            hidden,
            a_stride,
            scheme.scales,
            topk,
            _power_of_two(topk),
            placement.bound >= 0,
            *placement.constants,
            _power_of_two(placement.experts),
            *constants,
            find,
            int(scheme.kind),
            scheme.limit,
            scheme.group,
            block,
            parts,
        ),
        num_warps=warps,
        overlapped=constants[2],
    )


@lru_cache(_PLANS)
def _plan_amax(
    tokens: int, hidden: int, a_stride: int, dtypes: tuple[torch.dtype | None, ...], topk: int, rows: int
) -> Launch:
    """Plan the launch that finds largest magnitudes; ``dtypes`` only tell plans apart."""
    block = min(_power_of_two(hidden), 4096)
    return Launch(amax_kernel, (tokens, 1), (rows,), (hidden, a_stride, topk, block), num_warps=4)


class _PreparePlan(NamedTuple):
    """What a prepare of one shape allocates and starts."""

    placement: _Placement
    scheme: _Scheme
    out_shape: tuple[int, int, int]
    out_dtype: torch.dtype
    scale_shape: tuple[int, int, int]
    counting: _Counting
    scatter: Launch
    dynamic: tuple[Launch, Launch] | None
    """With a computed per-tensor scale: the launches that place slots and find maxima, before ``scatter``."""


@lru_cache(_PLANS)
def _plan_prepare(
    a_shape: torch.Size,
    a_stride: int,
    ids_shape: torch.Size,
    weights_shape: torch.Size | None,
    dtypes: tuple[torch.dtype | None, ...],
    placement: _Placement,
    rows: int,
    scheme: _Scheme,
    most: int,
    step: int,
) -> _PreparePlan:
    """Check the shapes and plan every launch; ``dtypes`` are those of activations, ids and weights."""
    check_prepare(a_shape, weights_shape, ids_shape, rows)
    (tokens, hidden), topk, experts = a_shape, ids_shape[1], placement.experts
    a_dtype, ids_dtype, weight_dtype = dtypes
    assert a_dtype is not None
    assert ids_dtype is not None
    counting = _plan_counting(tokens, topk, ids_dtype, placement, rows, most, step)
    dynamic = None
    if scheme.kind is QuantKind.DYNAMIC_TENSOR:
        dynamic = (
            _plan_place(tokens, topk, ids_dtype, placement, rows, counting, scheme.limit),
            _plan_amax(tokens, hidden, a_stride, (a_dtype, weight_dtype, None), topk, rows),
        )
    find, own_counting = (COUNTING.value, counting) if dynamic is None else (SLOTS.value, None)
    return _PreparePlan(
        placement,
        scheme,
        (experts, rows, hidden),
        scheme.dtype or a_dtype,
        (experts, rows, scheme.scales) if scheme.scales else (experts, 1, 1),
        counting,
        _plan_scatter(
            find, tokens, hidden, a_stride, dtypes, topk, placement, rows, scheme, own_counting, False
        ),
        dynamic,
    )


def batched_prepare(
    a1: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
    rows: int,
    scheme: QuantScheme,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """See :func:`~vllm_moe.fused_moe.kernels.batched.batched_prepare_torch`."""
    a1 = _contiguous_rows(a1)
    topk_ids = _signed_ids(topk_ids)
    weight = None if topk_weights is None else topk_weights.contiguous()
    plan = _plan_prepare(
        a1.shape,
        a1.stride(0),
        topk_ids.shape,
        None if weight is None else weight.shape,
        (a1.dtype, topk_ids.dtype, None if weight is None else weight.dtype),
        _placement_key(placement),
        rows,
        _scheme_key(scheme, a1.size(-1)),
        MOST_COUNTED_IDS,
        _CHUNK,
    )
    device = a1.device
    to_physical, expert_map = placement.global_to_physical, placement.expert_map
    out = torch.empty(plan.out_shape, dtype=plan.out_dtype, device=device)
    counts = torch.empty(plan.out_shape[0], dtype=torch.int32, device=device)
    scale = tally = None
    if plan.scheme.dtype is not None:
        scale = torch.empty(plan.scale_shape, dtype=torch.float32, device=device)
    if plan.counting.tally is not None:
        tally = torch.empty(plan.counting.tally_shape, dtype=torch.int32, device=device)
        plan.counting.tally(topk_ids, to_physical, expert_map, tally)
    if plan.dynamic is None:
        plan.scatter(
            a1, weight, topk_ids, to_physical, expert_map, tally, None, counts,
            scheme.static_scale, None, None, out, scale, None,
        )  # fmt: skip
        return out, scale, counts
    place, find_amax = plan.dynamic
    slots = torch.empty(topk_ids.shape, dtype=torch.int32, device=device)
    amax = torch.empty(plan.out_shape[0], dtype=torch.float32, device=device)
    place(topk_ids, to_physical, expert_map, tally, slots, counts, scale, amax)
    find_amax(a1, weight, None, slots, amax)
    plan.scatter(a1, weight, None, None, None, None, slots, None, None, amax, None, out, scale, None)
    return out, scale, counts


_ALONE = _Placement(1, 0, -1, 0, None, None)


def quantize_rows(
    a: torch.Tensor, scheme: QuantScheme, row_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See :func:`~vllm_moe.fused_moe.kernels.quantize.quantize_rows_torch`."""
    if scheme.kind is QuantKind.NONE or scheme.dtype is None:
        return a, None
    a = _contiguous_rows(a)
    tokens, hidden = a.shape
    stride = a.stride(0)
    kind = _scheme_key(scheme, hidden)
    out = torch.empty((tokens, hidden), dtype=scheme.dtype, device=a.device)
    amax: torch.Tensor | None = None
    if kind.scales:
        scale = torch.empty((tokens, kind.scales), dtype=torch.float32, device=a.device)
    elif scheme.static_scale is not None:
        scale = scheme.static_scale.view(1, 1)
    else:
        amax = torch.zeros(1, dtype=torch.float32, device=a.device)
        scale = torch.full((1, 1), SMALLEST_AMAX / scheme.limit, dtype=torch.float32, device=a.device)
        mask_dtype = None if row_mask is None else row_mask.dtype
        _plan_amax(tokens, hidden, stride, (a.dtype, mask_dtype), 1, 1)(a, None, row_mask, None, amax)
    # The first row writes the scale of all of them: rows is a number that no other row is a multiple of.
    scatter = _plan_scatter(
        IDENTITY.value, tokens, hidden, stride, (a.dtype,), 1, _ALONE, max(tokens, 1), kind, None, False
    )
    scatter(a, *[None] * 7, scheme.static_scale, amax, None, out, scale, None)
    return out, scale


def permute_tokens(
    hidden_states: torch.Tensor,
    scale: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """See :func:`~vllm_moe.fused_moe.kernels.permute.permute_tokens_torch`."""
    tokens, topk = topk_ids.shape
    rows = max(tokens, 1)
    slots, counts = _place_slots(_signed_ids(topk_ids), placement, rows)
    compact = torch.empty_like(slots)
    hidden_states = _contiguous_rows(hidden_states)
    hidden = hidden_states.size(1)
    permuted = hidden_states.new_empty(tokens * topk, hidden)
    permuted_scale, row_scale, scales = scale, None, 0
    if scale is not None and scale.size(0) == tokens and scale.numel() != 1:
        row_scale, scales = scale.contiguous(), scale.size(1)
        permuted_scale = scale.new_empty(tokens * topk, scales)
    source, target = hidden_states, permuted
    if source.element_size() == 1:
        source, target = source.view(torch.uint8), target.view(torch.uint8)
    key = _Placement(placement.num_local_experts, 0, -1, 0, None, None)
    scatter = _plan_scatter(
        COMPACT.value,
        tokens,
        hidden,
        source.stride(0),
        (source.dtype,),
        topk,
        key,
        rows,
        _UNQUANTIZED._replace(scales=scales),
        None,
        row_scale is not None,
    )
    target_scale = None if row_scale is None else permuted_scale
    scatter(source, *[None] * 5, slots, counts, None, None, row_scale, target, target_scale, compact)
    return permuted, permuted_scale, compact, counts


@lru_cache(_PLANS)
def _plan_gather(
    find: int,
    tokens: int,
    hidden: int,
    strides: tuple[int, int],
    dtypes: tuple[torch.dtype | None, ...],
    topk: int,
    placement: _Placement,
    rows: int,
    counting: _Counting | None,
) -> Launch:
    """Plan the launch that adds rows up; ``dtypes`` only tell plans apart."""
    # The best on an H200 of those tried.
    block = min(_power_of_two(hidden), 1024)
    parts = -(-hidden // block)
    chunks, constants = (1, (1, 1, False)) if counting is None else (counting.chunks, counting.constants)
    return Launch(
        gather_kernel,
        (tokens * parts, 1),
        (chunks, rows),
        (
            hidden,
            *strides,
            topk,
            _power_of_two(topk),
            *placement.constants,
            *constants,
            find,
            block,
            parts,
        ),
        num_warps=max(1, block // 512),
        overlapped=constants[2],
    )


def _start_gather(
    launch: Launch,
    output: torch.Tensor,
    rows: torch.Tensor,
    weights: torch.Tensor | None,
    ids: torch.Tensor | None,
    slots: torch.Tensor | None,
    placement: ExpertPlacement,
    tally: torch.Tensor | None,
    target: torch.Tensor,
) -> None:
    launch(rows, weights, ids, placement.global_to_physical, placement.expert_map, tally, slots, target)
    if target is not output:
        output.copy_(target)


def _target(output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``output`` if the kernel may write it directly, else a tensor to be copied there."""
    if output.stride(-1) == 1 and not share_memory(output, rows):
        return output
    return torch.empty_like(output, memory_format=torch.contiguous_format)


def _gather_known(
    find: int,
    output: torch.Tensor,
    rows: torch.Tensor,
    topk_weights: torch.Tensor | None,
    slots_or_ids: torch.Tensor,
) -> None:
    """Gather where the rows are known without counting: by slots, or one row for each id."""
    rows = _contiguous_rows(rows)
    weights = None if topk_weights is None else topk_weights.contiguous()
    target = _target(output, rows)
    launch = _plan_gather(
        find,
        output.size(0),
        output.size(1),
        (rows.stride(0), target.stride(0)),
        (rows.dtype, target.dtype, None if weights is None else weights.dtype, slots_or_ids.dtype),
        slots_or_ids.size(1),
        _ALONE,
        1,
        None,
    )
    ids, slots = (None, slots_or_ids) if find == SLOTS.value else (slots_or_ids, None)
    _start_gather(launch, output, rows, weights, ids, slots, _EVERYWHERE, None, target)


_EVERYWHERE = ExpertPlacement(1)


def combine_rows(
    output: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, topk_weights: torch.Tensor | None
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.combine_rows_torch`."""
    _gather_known(SLOTS.value, output, rows, topk_weights, slots.contiguous())


def weight_and_reduce(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.weight_and_reduce_torch`."""
    rows = fused_expert_output.reshape(-1, fused_expert_output.size(-1))
    _gather_known(IDENTITY.value, output, rows, topk_weights, _signed_ids(topk_ids))


@lru_cache(_PLANS)
def _plan_finalize(
    output_shape: torch.Size,
    fused_shape: torch.Size,
    ids_shape: torch.Size,
    weights_shape: torch.Size | None,
    strides: tuple[int, int],
    dtypes: tuple[torch.dtype, ...],
    placement: _Placement,
    most: int,
    step: int,
) -> tuple[_Counting, Launch]:
    """Check the shapes and plan every launch; ``dtypes`` are those of rows, output, ids and any weights."""
    check_finalize(output_shape, fused_shape, weights_shape, ids_shape, placement.experts)
    tokens, topk = ids_shape
    rows = fused_shape[1]
    counting = _plan_counting(tokens, topk, dtypes[2], placement, rows, most, step)
    gather = _plan_gather(
        COUNTING.value, tokens, fused_shape[2], strides, dtypes, topk, placement, rows, counting
    )
    return counting, gather


def batched_finalize(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.batched_finalize_torch`."""
    rows = _contiguous_rows(fused_expert_output.reshape(-1, fused_expert_output.size(-1)))
    ids = _signed_ids(topk_ids)
    weights = None if topk_weights is None else topk_weights.contiguous()
    target = _target(output, rows)
    dtypes = (rows.dtype, target.dtype, ids.dtype)
    counting, gather = _plan_finalize(
        output.shape,
        fused_expert_output.shape,
        ids.shape,
        None if weights is None else weights.shape,
        (rows.stride(0), target.stride(0)),
        dtypes if weights is None else (*dtypes, weights.dtype),
        _placement_key(placement),
        MOST_COUNTED_IDS,
        _CHUNK,
    )
    tally = None
    if counting.tally is not None:
        tally = torch.empty(counting.tally_shape, dtype=torch.int32, device=ids.device)
        counting.tally(ids, placement.global_to_physical, placement.expert_map, tally)
    _start_gather(gather, output, rows, weights, ids, None, placement, tally, target)
