"""Launches of the Triton kernels on rows; the functions have the signatures of their torch twins.

Two shapes of the same work. For a few tokens (decode) every program counts for itself in the ids of all
earlier tokens, which are in the cache anyway: one launch in all. For more, one program an expert walks over
the ids once and writes each slot's row down, and a second launch moves the data.
"""

import torch

from vllm_moe.fused_moe.kernels._jit_rows import (
    COMPACT,
    COUNTING,
    IDENTITY,
    SLOTS,
    amax_kernel,
    gather_kernel,
    route_kernel,
    scatter_kernel,
)
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

MOST_COUNTED_IDS = 2048
"""Up to so many ids (a power of two of tokens times one of topk), each program counts for itself."""

# An id out of range has to be refused without waiting for the device, so the kernel traps. The overflow
# checks that come with the debug option are not wanted.
_ASSERTING = {"debug": True, "sanitize_overflow": False}


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _signed_ids(topk_ids: torch.Tensor) -> torch.Tensor:
    """``topk_ids``, contiguous and of a signed type: the kernels compare with -1."""
    if not topk_ids.dtype.is_signed:
        topk_ids = topk_ids.to(torch.int64)
    return topk_ids.contiguous()


def _contiguous_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) == 1 else tensor.contiguous()


def _bounds(placement: ExpertPlacement) -> tuple[bool, int, int]:
    """Whether ids are bounded, by what, and how many entries ``expert_map`` has."""
    to_physical, expert_map = placement.global_to_physical, placement.expert_map
    map_bound = 0 if expert_map is None else expert_map.numel()
    if to_physical is not None:
        return True, to_physical.numel(), map_bound
    if expert_map is not None:
        return True, map_bound, map_bound
    return placement.num_experts is not None, placement.num_experts or 0, 0


def _first(placement: ExpertPlacement) -> int:
    return placement.first_expert if placement.expert_map is None else 0


def _launch_route(
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
    rows: int,
    slots: torch.Tensor | None,
    counts: torch.Tensor,
    scheme: QuantScheme = UNQUANTIZED,
    scale: torch.Tensor | None = None,
    amax: torch.Tensor | None = None,
) -> None:
    tokens, topk = topk_ids.shape
    bounded, bound, map_bound = _bounds(placement)
    topk2 = _power_of_two(topk)
    block = max(16, min(_power_of_two(tokens), 8192 // topk2))
    route_kernel[(placement.num_local_experts,)](
        topk_ids,
        placement.global_to_physical,
        placement.expert_map,
        slots,
        counts,
        scheme.static_scale,
        scale,
        amax,
        tokens,
        topk,
        rows,
        bound,
        map_bound,
        _first(placement),
        placement.num_local_experts,
        LIMIT=scheme.limit,
        BOUNDED=bounded,
        TOPK2=topk2,
        TOKENS=block,
        num_warps=16 if block * topk2 >= 8192 else 4,
        **_ASSERTING,
    )


def route(topk_ids: torch.Tensor, placement: ExpertPlacement, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`~vllm_moe.fused_moe.kernels.routing.route_torch`."""
    topk_ids = _signed_ids(topk_ids)
    slots = torch.empty(topk_ids.shape, dtype=torch.int32, device=topk_ids.device)
    counts = torch.empty(placement.num_local_experts, dtype=torch.int32, device=topk_ids.device)
    _launch_route(topk_ids, placement, rows, slots, counts)
    return slots, counts


def count_expert_num_tokens(
    topk_ids: torch.Tensor, num_local_experts: int, expert_map: torch.Tensor | None
) -> torch.Tensor:
    """See :func:`~vllm_moe.fused_moe.kernels.routing.count_expert_num_tokens_torch`."""
    counts = torch.empty(num_local_experts, dtype=torch.int32, device=topk_ids.device)
    # One column, so that an expert named twice in a row counts twice.
    ids = _signed_ids(topk_ids).view(-1, 1)
    _launch_route(ids, ExpertPlacement(num_local_experts, expert_map=expert_map), 0, None, counts)
    return counts


def _scatter_shape(tokens: int, hidden: int, element_size: int, scheme: QuantScheme) -> tuple[int, int]:
    """Columns of one program and its warps."""
    whole = _power_of_two(hidden)
    if scheme.kind is QuantKind.TOKEN:
        return whole, max(4, min(16, whole // 1024))
    group = max(scheme.group, 1)
    if tokens * hidden * element_size >= 8 * 2**20:
        block = min(whole, 8192)
    else:
        block = min(whole, 2048)
    block = max(block, group)
    return block, max(1, min(8, block * element_size // 2048))


def _check_group(scheme: QuantScheme) -> None:
    if scheme.kind is QuantKind.BLOCK and scheme.group & (scheme.group - 1):
        raise ValueError(
            f"Quantization in blocks of {scheme.group} elements: the CUDA kernel takes powers of two "
            "only. Use 128, or quantize on the CPU."
        )


def _launch_scatter(
    find: int,
    a: torch.Tensor,
    weight: torch.Tensor | None,
    topk_ids: torch.Tensor | None,
    slots: torch.Tensor | None,
    counts: torch.Tensor | None,
    placement: ExpertPlacement,
    rows: int,
    scheme: QuantScheme,
    out: torch.Tensor,
    scale: torch.Tensor | None,
    amax: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
    slots_out: torch.Tensor | None = None,
) -> None:
    tokens, hidden = a.shape
    like = topk_ids if topk_ids is not None else slots
    topk = 1 if like is None else like.size(1)
    bounded, bound, map_bound = _bounds(placement)
    block, warps = _scatter_shape(tokens, hidden, a.element_size(), scheme)
    chunks = -(-hidden // block)
    counting = find == COUNTING.value
    programs = tokens * chunks + (placement.num_local_experts if counting else 0)
    if programs == 0:
        return
    groups = scheme.scales_per_row(hidden) if row_scale is None else row_scale.size(1)
    scatter_kernel[(programs,)](
        a,
        weight,
        topk_ids,
        slots,
        counts,
        placement.global_to_physical,
        placement.expert_map,
        scheme.static_scale,
        amax,
        row_scale,
        out,
        scale,
        slots_out,
        tokens,
        hidden,
        groups,
        a.stride(0),
        topk,
        rows,
        bound,
        map_bound,
        _first(placement),
        placement.num_local_experts,
        LIMIT=scheme.limit,
        FIND=find,
        KIND=int(scheme.kind),
        GROUP=scheme.group,
        BOUNDED=bounded,
        TOPK=topk,
        TOPK2=_power_of_two(topk),
        TOKENS=_power_of_two(tokens) if counting else 1,
        EXPERTS2=_power_of_two(placement.num_local_experts),
        BLOCK=block,
        CHUNKS=chunks,
        num_warps=warps,
        **_ASSERTING,
    )


def _launch_amax(
    find: int,
    a: torch.Tensor,
    weight: torch.Tensor | None,
    row_mask: torch.Tensor | None,
    slots: torch.Tensor | None,
    rows: int,
    amax: torch.Tensor,
) -> None:
    tokens, hidden = a.shape
    if tokens == 0:
        return
    topk = 1 if slots is None else slots.size(1)
    amax_kernel[(tokens,)](
        a,
        weight,
        row_mask,
        slots,
        amax,
        hidden,
        a.stride(0),
        topk,
        rows,
        FIND=find,
        TOPK=topk,
        BLOCK=min(_power_of_two(hidden), 4096),
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
    topk_ids = _signed_ids(topk_ids)
    weight = None if topk_weights is None else topk_weights.contiguous()
    tokens, topk = topk_ids.shape
    hidden = a1.size(1)
    experts = placement.num_local_experts
    device = a1.device
    out = torch.empty((experts, rows, hidden), dtype=scheme.dtype or a1.dtype, device=device)
    counts = torch.empty(experts, dtype=torch.int32, device=device)
    scale: torch.Tensor | None = None
    amax: torch.Tensor | None = None
    per_row = scheme.scales_per_row(hidden)
    if scheme.kind is not QuantKind.NONE:
        shape = (experts, rows, per_row) if per_row else (experts, 1, 1)
        scale = torch.empty(shape, dtype=torch.float32, device=device)
    if scheme.kind is QuantKind.DYNAMIC_TENSOR:
        amax = torch.empty(experts, dtype=torch.float32, device=device)
    few = _power_of_two(tokens) * _power_of_two(topk) <= MOST_COUNTED_IDS
    if few and amax is None:
        _launch_scatter(
            COUNTING.value, a1, weight, topk_ids, None, counts, placement, rows, scheme, out, scale
        )
        return out, scale, counts
    slots = torch.empty((tokens, topk), dtype=torch.int32, device=device)
    _launch_route(topk_ids, placement, rows, slots, counts, scheme, scale, amax)
    if amax is not None:
        _launch_amax(SLOTS.value, a1, weight, None, slots, rows, amax)
    _launch_scatter(SLOTS.value, a1, weight, None, slots, counts, placement, rows, scheme, out, scale, amax)
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
        _launch_amax(IDENTITY.value, a, None, row_mask, None, max(tokens, 1), amax)
    placement = ExpertPlacement(1)
    _launch_scatter(
        IDENTITY.value, a, None, None, None, None, placement, max(tokens, 1), scheme, out, scale, amax
    )
    return out, scale


def permute_tokens(
    hidden_states: torch.Tensor,
    scale: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """See :func:`~vllm_moe.fused_moe.kernels.permute.permute_tokens_torch`."""
    tokens, topk = topk_ids.shape
    slots, counts = route(topk_ids, placement, max(tokens, 1))
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
        None,
        None,
        slots,
        counts,
        placement,
        max(tokens, 1),
        UNQUANTIZED,
        target,
        permuted_scale if row_scale is not None else None,
        row_scale=row_scale,
        slots_out=compact,
    )
    return permuted, permuted_scale, compact, counts


def _gather_shape(tokens: int, hidden: int) -> tuple[int, int]:
    """Columns of one program and its warps."""
    whole = _power_of_two(hidden)
    if tokens * hidden >= 2**22:
        block = min(whole, 2048)
        return block, max(1, block // 512)
    block = min(whole, 1024)
    return block, max(1, block // 256)


def _launch_gather(
    find: int,
    output: torch.Tensor,
    fused_rows: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor | None,
    slots: torch.Tensor | None,
    placement: ExpertPlacement,
    rows: int,
) -> None:
    tokens, hidden = output.shape
    if tokens == 0 or hidden == 0:
        return
    like = topk_ids if topk_ids is not None else slots
    assert like is not None
    topk = like.size(1)
    fused_rows = _contiguous_rows(fused_rows)
    direct = output.stride(1) == 1 and not share_memory(output, fused_rows)
    target = output if direct else torch.empty_like(output, memory_format=torch.contiguous_format)
    weights = None if topk_weights is None else topk_weights.contiguous()
    _, bound, map_bound = _bounds(placement)
    block, warps = _gather_shape(tokens, hidden)
    chunks = -(-hidden // block)
    gather_kernel[(tokens * chunks,)](
        fused_rows,
        weights,
        topk_ids,
        slots,
        placement.global_to_physical,
        placement.expert_map,
        target,
        tokens,
        hidden,
        fused_rows.stride(0),
        target.stride(0),
        topk,
        rows,
        bound,
        map_bound,
        _first(placement),
        placement.num_local_experts,
        FIND=find,
        TOPK=topk,
        TOPK2=_power_of_two(topk),
        TOKENS=_power_of_two(tokens) if find == COUNTING.value else 1,
        BLOCK=block,
        CHUNKS=chunks,
        num_warps=warps,
    )
    if target is not output:
        output.copy_(target)


def combine_rows(
    output: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, topk_weights: torch.Tensor | None
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.combine_rows_torch`."""
    _launch_gather(SLOTS.value, output, rows, topk_weights, None, slots.contiguous(), ExpertPlacement(1), 1)


def weight_and_reduce(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.weight_and_reduce_torch`."""
    rows = fused_expert_output.reshape(-1, fused_expert_output.size(-1))
    _launch_gather(
        IDENTITY.value, output, rows, topk_weights, _signed_ids(topk_ids), None, ExpertPlacement(1), 1
    )


def batched_finalize(
    output: torch.Tensor,
    fused_expert_output: torch.Tensor,
    topk_weights: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> None:
    """See :func:`~vllm_moe.fused_moe.kernels.reduce.batched_finalize_torch`."""
    rows = fused_expert_output.size(1)
    tokens, topk = topk_ids.shape
    fused_rows = fused_expert_output.reshape(-1, fused_expert_output.size(2))
    topk_ids = _signed_ids(topk_ids)
    if _power_of_two(tokens) * _power_of_two(topk) <= MOST_COUNTED_IDS:
        _launch_gather(COUNTING.value, output, fused_rows, topk_weights, topk_ids, None, placement, rows)
        return
    slots, _ = route(topk_ids, placement, rows)
    _launch_gather(SLOTS.value, output, fused_rows, topk_weights, None, slots, placement, rows)
