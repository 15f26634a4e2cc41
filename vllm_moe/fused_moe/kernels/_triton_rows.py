"""Launches of the Triton kernels on rows; the functions have the signatures of their torch twins.

A token's row at an expert is the number of earlier tokens that name the expert. Up to
``MOST_COUNTED_TOKENS`` (decode) every program counts for itself in the ids of all earlier tokens, which are
in the cache anyway: one launch in all. Above, a first launch tallies each chunk of tokens for each expert,
and a program then counts within its chunk only and adds the tallies before it: two launches.
"""

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
from vllm_moe.fused_moe.kernels._launch import OVERLAPS, Launcher
from vllm_moe.fused_moe.kernels.quantize import SMALLEST_AMAX, UNQUANTIZED, QuantKind, QuantScheme
from vllm_moe.fused_moe.kernels.reduce import share_memory
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

MOST_COUNTED_TOKENS = 256
_CHUNK = 32

_tally = Launcher(tally_kernel)
_place = Launcher(place_kernel)
_scatter = Launcher(scatter_kernel)
_amax = Launcher(amax_kernel)
_gather = Launcher(gather_kernel)


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _signed_ids(topk_ids: torch.Tensor) -> torch.Tensor:
    """``topk_ids``, contiguous and of a signed type: the kernels compare with -1."""
    if not topk_ids.dtype.is_signed:
        topk_ids = topk_ids.to(torch.int64)
    return topk_ids.contiguous()


def _contiguous_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) == 1 else tensor.contiguous()


class _Routing(NamedTuple):
    """How the kernels find a token's experts and its rows there."""

    ids: torch.Tensor
    tally: torch.Tensor | None
    chunks: int
    chunk: int
    width: int
    topk: int
    topk2: int
    placement: ExpertPlacement
    bounds: tuple[int, int, int, int]
    """Bound of the ids and of the map, first local expert and number of local ones."""
    bounded: bool

    @property
    def overlapped(self) -> bool:
        """Whether the launch that uses the tallies may start before they are all written."""
        return self.tally is not None and OVERLAPS

    @property
    def tables(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self.placement.global_to_physical, self.placement.expert_map


def _routing(topk_ids: torch.Tensor, placement: ExpertPlacement, rows: int) -> _Routing:
    """Set the counting up, and tally the chunks where there are several."""
    experts = placement.num_local_experts
    if experts * rows >= 2**31:
        raise ValueError(
            f"{experts} experts with {rows} rows each are {experts * rows} rows, expected fewer than "
            "2^31. Pass fewer tokens at a time."
        )
    tokens, topk = topk_ids.shape
    to_physical, expert_map = placement.global_to_physical, placement.expert_map
    map_bound = 0 if expert_map is None else expert_map.numel()
    first = placement.first_expert if expert_map is None else 0
    bound = placement.num_experts
    if to_physical is not None:
        bound = to_physical.numel()
    elif expert_map is not None:
        bound = map_bound
    bounds = (bound or 0, map_bound, first, experts)
    topk2 = _power_of_two(topk)
    if tokens <= MOST_COUNTED_TOKENS:
        chunk = max(_power_of_two(tokens), 16)
        return _Routing(topk_ids, None, 1, chunk, chunk, topk, topk2, placement, bounds, bound is not None)
    # As many chunks as tokens in a chunk when there are many, so that neither count is long.
    chunk = max(_CHUNK, _power_of_two(int(tokens**0.5)))
    chunks = -(-tokens // chunk)
    tally = torch.empty((experts, chunks), dtype=torch.int32, device=topk_ids.device)
    width = max(chunk, _power_of_two(chunks))
    routing = _Routing(
        topk_ids, tally, chunks, chunk, width, topk, topk2, placement, bounds, bound is not None
    )
    block = min(_power_of_two(experts), 32)
    _tally(
        chunks,
        (topk_ids, to_physical, expert_map, tally),
        (tokens, chunks),
        (topk, routing.bounded, *bounds, chunk, block, OVERLAPS),
        num_warps=8,
        programs_y=-(-experts // block),
    )
    return routing


def _place_slots(
    routing: _Routing,
    rows: int,
    limit: float = 0.0,
    scale: torch.Tensor | None = None,
    amax: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, topk = routing.ids.shape
    device = routing.ids.device
    slots = torch.empty((tokens, topk), dtype=torch.int32, device=device)
    counts = torch.empty(routing.placement.num_local_experts, dtype=torch.int32, device=device)
    _place(
        tokens + counts.numel(),
        (routing.ids, *routing.tables, routing.tally, slots, counts, scale, amax),
        (tokens, routing.chunks, rows),
        (
            topk,
            routing.topk2,
            routing.bounded,
            *routing.bounds,
            routing.chunk,
            routing.width,
            routing.overlapped,
            limit,
        ),
        num_warps=max(1, min(4, routing.width * routing.topk2 // 512)),
        overlapped=routing.overlapped,
    )
    return slots, counts


def route(topk_ids: torch.Tensor, placement: ExpertPlacement, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`~vllm_moe.fused_moe.kernels.routing.route_torch`."""
    return _place_slots(_routing(_signed_ids(topk_ids), placement, rows), rows)


def count_expert_num_tokens(
    topk_ids: torch.Tensor, num_local_experts: int, expert_map: torch.Tensor | None
) -> torch.Tensor:
    """See :func:`~vllm_moe.fused_moe.kernels.routing.count_expert_num_tokens_torch`."""
    # One column, so that an expert named twice in a row counts twice.
    ids = _signed_ids(topk_ids).view(-1, 1)
    placement = ExpertPlacement(num_local_experts, expert_map=expert_map)
    return _place_slots(_routing(ids, placement, 1), 1)[1]


def _scatter_shape(tokens: int, hidden: int, scheme: QuantScheme) -> tuple[int, int]:
    """Columns of one program and its warps; the best of those tried on an H200."""
    whole = _power_of_two(hidden)
    if scheme.kind is QuantKind.TOKEN:
        return whole, max(4, min(16, whole // 1024))
    few = tokens * hidden < 2**21
    block = max(min(whole, 2048 if few else 4096), scheme.group)
    return block, max(1, min(4, block // 512))


def _check_group(scheme: QuantScheme) -> None:
    if scheme.kind is QuantKind.BLOCK and scheme.group & (scheme.group - 1):
        raise ValueError(
            f"Quantization in blocks of {scheme.group} elements: the CUDA kernel takes powers of two "
            "only. Use 128, or quantize on the CPU."
        )


def _launch_scatter(
    find: int,
    a: torch.Tensor,
    scheme: QuantScheme,
    out: torch.Tensor,
    scale: torch.Tensor | None,
    *,
    routing: _Routing | None = None,
    rows: int = 1,
    weight: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    counts: torch.Tensor | None = None,
    amax: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
    slots_out: torch.Tensor | None = None,
) -> None:
    tokens, hidden = a.shape
    block, warps = _scatter_shape(tokens, hidden, scheme)
    parts = -(-hidden // block)
    ids = tally = to_physical = expert_map = None
    topk, topk2, bounded, bounds, chunk, width, chunks = 1, 1, False, (0, 0, 0, 1), 1, 1, 1
    overlapped = False
    programs = tokens * parts
    if routing is not None:
        topk, topk2, bounds = routing.topk, routing.topk2, routing.bounds
    if find == COUNTING.value:
        assert routing is not None
        ids, tally = routing.ids, routing.tally
        to_physical, expert_map = routing.tables
        bounded, chunk, width, chunks = routing.bounded, routing.chunk, routing.width, routing.chunks
        overlapped = routing.overlapped
        programs += routing.placement.num_local_experts
    if programs == 0:
        return
    scales = scheme.scales_per_row(hidden) if row_scale is None else row_scale.size(1)
    _scatter(
        programs,
        (
            a,
            weight,
            ids,
            to_physical,
            expert_map,
            tally,
            slots,
            counts,
            scheme.static_scale,
            amax,
            row_scale,
            out,
            scale,
            slots_out,
        ),
        (tokens, chunks, rows),
        (
            hidden,
            a.stride(0),
            scales,
            topk,
            topk2,
            bounded,
            *bounds,
            _power_of_two(bounds[3]),
            chunk,
            width,
            overlapped,
            find,
            int(scheme.kind),
            scheme.limit,
            scheme.group,
            block,
            parts,
        ),
        num_warps=warps,
        overlapped=overlapped,
    )


def _launch_amax(
    a: torch.Tensor,
    weight: torch.Tensor | None,
    row_mask: torch.Tensor | None,
    slots: torch.Tensor | None,
    rows: int,
    amax: torch.Tensor,
) -> None:
    tokens, hidden = a.shape
    if tokens:
        topk = 1 if slots is None else slots.size(1)
        block = min(_power_of_two(hidden), 4096)
        _amax(
            tokens,
            (a, weight, row_mask, slots, amax),
            (rows,),
            (hidden, a.stride(0), topk, block),
            num_warps=4,
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
    _check_group(scheme)
    a1 = _contiguous_rows(a1)
    weight = None if topk_weights is None else topk_weights.contiguous()
    hidden = a1.size(1)
    experts = placement.num_local_experts
    device = a1.device
    routing = _routing(_signed_ids(topk_ids), placement, rows)
    out = torch.empty((experts, rows, hidden), dtype=scheme.dtype or a1.dtype, device=device)
    scale: torch.Tensor | None = None
    if scheme.kind is not QuantKind.NONE:
        per_row = scheme.scales_per_row(hidden)
        shape = (experts, rows, per_row) if per_row else (experts, 1, 1)
        scale = torch.empty(shape, dtype=torch.float32, device=device)
    if scheme.kind is QuantKind.DYNAMIC_TENSOR:
        amax = torch.empty(experts, dtype=torch.float32, device=device)
        slots, counts = _place_slots(routing, rows, scheme.limit, scale, amax)
        _launch_amax(a1, weight, None, slots, rows, amax)
        _launch_scatter(
            SLOTS.value,
            a1,
            scheme,
            out,
            scale,
            routing=routing,
            rows=rows,
            weight=weight,
            slots=slots,
            amax=amax,
        )
    else:
        counts = torch.empty(experts, dtype=torch.int32, device=device)
        _launch_scatter(
            COUNTING.value,
            a1,
            scheme,
            out,
            scale,
            routing=routing,
            rows=rows,
            weight=weight,
            counts=counts,
        )
    return out, scale, counts


def quantize_rows(
    a: torch.Tensor, scheme: QuantScheme, row_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See :func:`~vllm_moe.fused_moe.kernels.quantize.quantize_rows_torch`."""
    if scheme.kind is QuantKind.NONE or scheme.dtype is None:
        return a, None
    _check_group(scheme)
    a = _contiguous_rows(a)
    tokens, hidden = a.shape
    out = torch.empty((tokens, hidden), dtype=scheme.dtype, device=a.device)
    amax: torch.Tensor | None = None
    per_row = scheme.scales_per_row(hidden)
    if per_row:
        scale = torch.empty((tokens, per_row), dtype=torch.float32, device=a.device)
    elif scheme.static_scale is not None:
        scale = scheme.static_scale.view(1, 1)
    else:
        amax = torch.zeros(1, dtype=torch.float32, device=a.device)
        scale = torch.full((1, 1), SMALLEST_AMAX / scheme.limit, dtype=torch.float32, device=a.device)
        _launch_amax(a, None, row_mask, None, 1, amax)
    # The scale of all rows is written by the first: rows is a number that no other row is a multiple of.
    _launch_scatter(IDENTITY.value, a, scheme, out, scale, rows=max(tokens, 1), amax=amax)
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
    routing = _routing(_signed_ids(topk_ids), placement, rows)
    slots, counts = _place_slots(routing, rows)
    compact = torch.empty_like(slots)
    hidden_states = _contiguous_rows(hidden_states)
    permuted = hidden_states.new_empty(tokens * topk, hidden_states.size(1))
    permuted_scale = scale
    row_scale: torch.Tensor | None = None
    if scale is not None and scale.size(0) == tokens and scale.numel() != 1:
        row_scale = scale.contiguous()
        permuted_scale = scale.new_empty(tokens * topk, scale.size(1))
    source, target = hidden_states, permuted
    if source.element_size() == 1:
        source, target = source.view(torch.uint8), target.view(torch.uint8)
    _launch_scatter(
        COMPACT.value,
        source,
        UNQUANTIZED,
        target,
        permuted_scale if row_scale is not None else None,
        routing=routing,
        rows=rows,
        slots=slots,
        counts=counts,
        row_scale=row_scale,
        slots_out=compact,
    )
    return permuted, permuted_scale, compact, counts


def _gather_shape(tokens: int, hidden: int) -> tuple[int, int]:
    """Columns of one program and its warps; the best of those tried on an H200."""
    block = min(_power_of_two(hidden), 1024 if tokens * hidden < 2**20 else 8192)
    return block, max(1, min(8, block // 512))


def _launch_gather(
    find: int,
    output: torch.Tensor,
    fused_rows: torch.Tensor,
    topk_weights: torch.Tensor | None,
    *,
    ids: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    routing: _Routing | None = None,
    rows: int = 1,
) -> None:
    tokens, hidden = output.shape
    if tokens == 0 or hidden == 0:
        return
    tally = to_physical = expert_map = None
    topk2, bounds, chunk, width, chunks = 1, (0, 0, 0, 1), 1, 1, 1
    overlapped = False
    dense = find == IDENTITY.value
    if routing is not None:
        overlapped = routing.overlapped
        everywhere = routing.placement.num_experts
        dense = everywhere is not None and 2 * routing.placement.num_local_experts > everywhere
        ids, tally = routing.ids, routing.tally
        to_physical, expert_map = routing.tables
        topk2, bounds = routing.topk2, routing.bounds
        chunk, width, chunks = routing.chunk, routing.width, routing.chunks
    like = ids if slots is None else slots
    assert like is not None
    fused_rows = _contiguous_rows(fused_rows)
    direct = output.stride(1) == 1 and not share_memory(output, fused_rows)
    target = output if direct else torch.empty_like(output, memory_format=torch.contiguous_format)
    block, warps = _gather_shape(tokens, hidden)
    parts = -(-hidden // block)
    _gather(
        tokens * parts,
        (
            fused_rows,
            None if topk_weights is None else topk_weights.contiguous(),
            ids,
            to_physical,
            expert_map,
            tally,
            slots,
            target,
        ),
        (chunks, rows),
        (
            hidden,
            fused_rows.stride(0),
            target.stride(0),
            like.size(1),
            topk2,
            *bounds,
            chunk,
            width,
            overlapped,
            find,
            dense,
            block,
            parts,
        ),
        num_warps=warps,
        overlapped=overlapped,
    )
    if target is not output:
        output.copy_(target)


def combine_rows(
    output: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, topk_weights: torch.Tensor | None
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.combine_rows_torch`."""
    _launch_gather(SLOTS.value, output, rows, topk_weights, slots=slots.contiguous())


def weight_and_reduce(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.weight_and_reduce_torch`."""
    rows = fused_expert_output.reshape(-1, fused_expert_output.size(-1))
    _launch_gather(IDENTITY.value, output, rows, topk_weights, ids=_signed_ids(topk_ids))


def batched_finalize(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.batched_finalize_torch`."""
    rows = fused_expert_output.size(1)
    fused_rows = fused_expert_output.reshape(-1, fused_expert_output.size(2))
    routing = _routing(_signed_ids(topk_ids), placement, rows)
    _launch_gather(COUNTING.value, output, fused_rows, topk_weights, routing=routing, rows=rows)
