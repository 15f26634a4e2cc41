# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, no-any-return, name-defined"
# ruff: noqa: ANN001, ANN202, SIM102 -- Triton reads annotations and branches at compile time
"""Triton kernels that route, quantize, scatter and gather rows; ``_triton_rows`` launches them.

Row offsets are 64-bit. Positions come from counting earlier tokens, never from atomics, so that they are the
same in every run; the one atomic is a maximum, whose result does not depend on the order.
"""

import triton
import triton.language as tl

from vllm_moe.fused_moe.kernels.quantize import SMALLEST_AMAX

__all__ = ["amax_kernel", "gather_kernel", "route_kernel", "scatter_kernel"]

# How a program finds the rows that its token goes to or comes from.
IDENTITY = tl.constexpr(0)  # row of its own number (scatter), or one row a slot (gather)
SLOTS = tl.constexpr(1)  # slots that a routing launch wrote
COUNTING = tl.constexpr(2)  # counts for itself
COMPACT = tl.constexpr(3)  # slots, squeezed together by the experts' counts

# quantize.QuantKind, for the kernels.
NONE = tl.constexpr(0)
STATIC_TENSOR = tl.constexpr(1)
DYNAMIC_TENSOR = tl.constexpr(2)
TOKEN = tl.constexpr(3)
GROUPED = tl.constexpr(4)

MIN_AMAX = tl.constexpr(SMALLEST_AMAX)


@triton.jit
def _local_experts(ids, to_physical_ptr, expert_map_ptr, bound, map_bound, first_expert, experts):
    """Give the local expert of each id, -1 where there is none or another rank has it."""
    if to_physical_ptr is not None:
        ids = tl.load(to_physical_ptr + ids, mask=(ids >= 0) & (ids < bound), other=-1)
    if expert_map_ptr is not None:
        ids = tl.load(expert_map_ptr + ids, mask=(ids >= 0) & (ids < map_bound), other=-1)
    local = ids - first_expert
    return tl.where((ids >= 0) & (local >= 0) & (local < experts), local, -1).to(tl.int32)


@triton.jit
def _refuse_ids_out_of_range(ids, bound):
    tl.device_assert(
        (ids >= -1) & (ids < bound), "topk_ids holds an id outside -1 (no expert) to num_experts - 1"
    )


@triton.jit(do_not_specialize=["tokens"])
def route_kernel(
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    slots_ptr,
    counts_ptr,
    static_scale_ptr,
    scale_ptr,
    amax_ptr,
    tokens,
    topk,
    rows,
    bound,
    map_bound,
    first_expert,
    experts,
    LIMIT: tl.constexpr,
    BOUNDED: tl.constexpr,
    TOPK2: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program an expert: its tokens' positions, in token order, and their number."""
    expert = tl.program_id(0)
    k = tl.arange(0, TOPK2)
    count = 0
    token = tl.arange(0, TOKENS)
    inside = (token < tokens)[:, None] & (k < topk)[None, :]
    following = tl.load(ids_ptr + token[:, None] * topk + k[None, :], mask=inside, other=-1)
    for start in range(0, tokens, TOKENS):
        ids = following
        token = start + tl.arange(0, TOKENS)
        inside = (token < tokens)[:, None] & (k < topk)[None, :]
        place = token[:, None] * topk + k[None, :]
        # The next ids are on their way while these are counted.
        more = (token + TOKENS < tokens)[:, None] & (k < topk)[None, :]
        following = tl.load(ids_ptr + place + TOKENS * topk, mask=more, other=-1)
        if BOUNDED:
            if expert == 0:
                _refuse_ids_out_of_range(ids, bound)
        local = _local_experts(ids, to_physical_ptr, expert_map_ptr, bound, map_bound, first_expert, experts)
        mine = local == expert
        named = tl.max(mine.to(tl.int32), 1)
        position = count + tl.cumsum(named, 0) - 1
        if slots_ptr is not None:
            slot = tl.broadcast_to((expert * rows + position)[:, None], (TOKENS, TOPK2))
            tl.store(slots_ptr + place, slot, mask=inside & mine)
            if expert == 0:
                tl.store(slots_ptr + place, tl.full((TOKENS, TOPK2), -1, tl.int32), mask=inside & (local < 0))
        count += tl.sum(named)
    tl.store(counts_ptr + expert, count)
    if static_scale_ptr is not None:
        tl.store(scale_ptr + expert, tl.load(static_scale_ptr))
    if amax_ptr is not None:
        tl.store(amax_ptr + expert, 0.0)
        tl.store(scale_ptr + expert, tl.div_rn(tl.full((), MIN_AMAX, tl.float32), LIMIT))


@triton.jit
def _local_experts_before(
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    tokens,
    topk,
    bound,
    map_bound,
    first_expert,
    experts,
    TOPK2: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Give the local experts of the first ``tokens`` tokens, ``[TOKENS, TOPK2]``, -1 where there is none."""
    token = tl.arange(0, TOKENS)
    k = tl.arange(0, TOPK2)
    inside = (token < tokens)[:, None] & (k < topk)[None, :]
    ids = tl.load(ids_ptr + token[:, None] * topk + k[None, :], mask=inside, other=-1)
    return _local_experts(ids, to_physical_ptr, expert_map_ptr, bound, map_bound, first_expert, experts)


@triton.jit
def _four_positions(
    before,
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    bound,
    map_bound,
    first_expert,
    experts,
    BASE: tl.constexpr,
    TOPK: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Count the earlier tokens that name the experts of slots ``BASE`` to ``BASE + 3``: 16 bits each, "
    "one sum for all."""
    packed = tl.zeros((TOKENS,), tl.int64)
    for j in tl.static_range(4):
        if BASE + j < TOPK:
            chosen = tl.load(ids_ptr + BASE + j)
            expert = _local_experts(
                chosen, to_physical_ptr, expert_map_ptr, bound, map_bound, first_expert, experts
            )
            # No expert (-1) must not match the earlier slots without one.
            named = tl.max((before == tl.where(expert < 0, -2, expert)).to(tl.int32), 1)
            packed += named.to(tl.int64) << (16 * j)
    return tl.sum(packed)


@triton.jit
def _round_to(values, dtype: tl.constexpr, LIMIT: tl.constexpr):
    """Clamp float32 values to the limit and round them to nearest even, in ``dtype``."""
    values = tl.minimum(tl.maximum(values, -LIMIT), LIMIT)
    if dtype == tl.int8:
        # Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded to an integer, to even if
        # halfway.
        values = (values + 12582912.0) - 12582912.0
    return values.to(dtype)


@triton.jit(do_not_specialize=["tokens"])
def scatter_kernel(
    a_ptr,
    weight_ptr,
    ids_ptr,
    slots_ptr,
    counts_ptr,
    to_physical_ptr,
    expert_map_ptr,
    static_scale_ptr,
    amax_ptr,
    row_scale_ptr,
    out_ptr,
    scale_ptr,
    slots_out_ptr,
    tokens,
    hidden,
    groups,
    a_stride,
    topk,
    rows,
    bound,
    map_bound,
    first_expert,
    experts,
    LIMIT: tl.constexpr,
    FIND: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    BOUNDED: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK2: tl.constexpr,
    TOKENS: tl.constexpr,
    EXPERTS2: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """One program a token and chunk of its row: read it once, quantize it once, write it to each of its rows.

    With ``COUNTING`` one more program for each expert counts its tokens.
    """
    program = tl.program_id(0)
    token = program // CHUNKS
    chunk = program % CHUNKS
    if FIND == COUNTING:
        if token >= tokens:
            expert = program - tokens * CHUNKS
            every = _local_experts_before(
                ids_ptr,
                to_physical_ptr,
                expert_map_ptr,
                tokens,
                topk,
                bound,
                map_bound,
                first_expert,
                experts,
                TOPK2,
                TOKENS,
            )
            count = tl.sum(tl.max((every == expert).to(tl.int32), 1))
            tl.store(counts_ptr + expert, count)
            if KIND == STATIC_TENSOR:
                tl.store(scale_ptr + expert, tl.load(static_scale_ptr))
            return
    some = -1
    for j in tl.static_range(TOPK):
        place = token * topk + j
        if FIND == IDENTITY:
            some = 0
        elif FIND == COUNTING:
            chosen = tl.load(ids_ptr + place)
            if BOUNDED:
                _refuse_ids_out_of_range(chosen, bound)
            some = tl.maximum(
                some,
                _local_experts(
                    chosen, to_physical_ptr, expert_map_ptr, bound, map_bound, first_expert, experts
                ),
            )
        else:
            some = tl.maximum(some, tl.load(slots_ptr + place))
    if FIND == COMPACT:
        expert_number = tl.arange(0, EXPERTS2)
        counts = tl.load(counts_ptr + expert_number, mask=expert_number < experts, other=0)
        if chunk == 0:
            for j in tl.static_range(TOPK):
                slot = tl.load(slots_ptr + token * topk + j)
                start = tl.sum(tl.where(expert_number < slot // rows, counts, 0))
                tl.store(slots_out_ptr + token * topk + j, tl.where(slot < 0, -1, start + slot % rows))
    if some < 0:
        return

    # The row is on its way while the slots are being counted.
    row_ptr = a_ptr + token.to(tl.int64) * a_stride
    if KIND == GROUPED:
        group = chunk * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
        column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    else:
        group = chunk
        column = chunk * BLOCK + tl.arange(0, BLOCK)
    wanted = column < hidden
    values = tl.load(row_ptr + column, mask=wanted, other=0.0)
    if FIND == COUNTING:
        before = _local_experts_before(
            ids_ptr,
            to_physical_ptr,
            expert_map_ptr,
            token,
            topk,
            bound,
            map_bound,
            first_expert,
            experts,
            TOPK2,
            TOKENS,
        )
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + token).to(tl.float32)
        values = (values.to(tl.float32) * weight).to(values.dtype)

    if KIND == TOKEN:
        scale = tl.div_rn(tl.maximum(tl.max(tl.abs(values.to(tl.float32))), MIN_AMAX), LIMIT)
        quantized = _round_to(values.to(tl.float32) * tl.div_rn(1.0, scale), out_ptr.dtype.element_ty, LIMIT)
    elif KIND == GROUPED:
        scale = tl.div_rn(tl.maximum(tl.max(tl.abs(values.to(tl.float32)), 1), MIN_AMAX), LIMIT)
        quantized = _round_to(
            values.to(tl.float32) * tl.div_rn(1.0, scale)[:, None], out_ptr.dtype.element_ty, LIMIT
        )
    elif KIND == STATIC_TENSOR:
        scale = tl.load(static_scale_ptr)
        quantized = _round_to(values.to(tl.float32) * tl.div_rn(1.0, scale), out_ptr.dtype.element_ty, LIMIT)
    else:
        quantized = values

    # A token that names an expert twice writes the same row twice.
    for j in tl.static_range(TOPK):
        place = token * topk + j
        if FIND == IDENTITY:
            slot = token
        elif FIND == COUNTING:
            if j % 4 == 0:
                packed = _four_positions(
                    before,
                    ids_ptr + token * topk,
                    to_physical_ptr,
                    expert_map_ptr,
                    bound,
                    map_bound,
                    first_expert,
                    experts,
                    j,
                    TOPK,
                    TOKENS,
                )
            expert = _local_experts(
                tl.load(ids_ptr + place),
                to_physical_ptr,
                expert_map_ptr,
                bound,
                map_bound,
                first_expert,
                experts,
            )
            position = ((packed >> (16 * (j % 4))) & 0xFFFF).to(tl.int32)
            slot = tl.where(expert < 0, -1, expert * rows + position)
        else:
            slot = tl.load(slots_ptr + place)
            if FIND == COMPACT:
                start = tl.sum(tl.where(expert_number < slot // rows, counts, 0))
                slot = tl.where(slot < 0, -1, start + slot % rows)
        if slot >= 0:
            if KIND == DYNAMIC_TENSOR:
                # One scale an expert, so the same row may differ between its experts.
                expert = 0 if FIND == IDENTITY else slot // rows
                scale = tl.div_rn(tl.maximum(tl.load(amax_ptr + expert), MIN_AMAX), LIMIT)
                if chunk == 0:
                    if slot % rows == 0:
                        tl.store(scale_ptr + expert, scale)
                own = _round_to(
                    values.to(tl.float32) * tl.div_rn(1.0, scale), out_ptr.dtype.element_ty, LIMIT
                )
                tl.store(out_ptr + slot.to(tl.int64) * hidden + column, own, mask=wanted)
            else:
                tl.store(out_ptr + slot.to(tl.int64) * hidden + column, quantized, mask=wanted)
            if KIND == TOKEN:
                tl.store(scale_ptr + slot, scale)
            if KIND == GROUPED:
                tl.store(scale_ptr + slot.to(tl.int64) * groups + group, scale, mask=group < groups)
            if row_scale_ptr is not None:
                if chunk == 0:
                    for start in range(0, groups, 128):
                        piece = start + tl.arange(0, 128)
                        moved = tl.load(
                            row_scale_ptr + token.to(tl.int64) * groups + piece, mask=piece < groups
                        )
                        tl.store(scale_ptr + slot.to(tl.int64) * groups + piece, moved, mask=piece < groups)


@triton.jit
def amax_kernel(
    a_ptr,
    weight_ptr,
    mask_ptr,
    slots_ptr,
    amax_ptr,
    hidden,
    a_stride,
    topk,
    rows,
    FIND: tl.constexpr,
    TOPK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a token: its largest magnitude enters the maximum of each of its experts (or the only "
    "one)."""
    token = tl.program_id(0)
    if FIND == IDENTITY:
        if mask_ptr is not None:
            if tl.load(mask_ptr + token) == 0:
                return
    else:
        some = -1
        for j in tl.static_range(TOPK):
            some = tl.maximum(some, tl.load(slots_ptr + token * topk + j))
        if some < 0:
            return
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, hidden, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(a_ptr + token.to(tl.int64) * a_stride + column, mask=column < hidden, other=0.0)
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + token).to(tl.float32)
            values = (values.to(tl.float32) * weight).to(values.dtype)
        largest = tl.maximum(largest, tl.abs(values.to(tl.float32)))
    amax = tl.max(largest)
    if FIND == IDENTITY:
        tl.atomic_max(amax_ptr, amax)
    else:
        for j in tl.static_range(TOPK):
            slot = tl.load(slots_ptr + token * topk + j)
            if slot >= 0:
                tl.atomic_max(amax_ptr + slot // rows, amax)


@triton.jit(do_not_specialize=["tokens"])
def gather_kernel(
    rows_ptr,
    weight_ptr,
    ids_ptr,
    slots_ptr,
    to_physical_ptr,
    expert_map_ptr,
    out_ptr,
    tokens,
    hidden,
    rows_stride,
    out_stride,
    topk,
    rows,
    bound,
    map_bound,
    first_expert,
    experts,
    FIND: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK2: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """One program a token and chunk: add up its rows, weighted, in float32 and in the order of its slots."""
    program = tl.program_id(0)
    token = program // CHUNKS
    column = (program % CHUNKS) * BLOCK + tl.arange(0, BLOCK)
    wanted = column < hidden
    if FIND == COUNTING:
        before = _local_experts_before(
            ids_ptr,
            to_physical_ptr,
            expert_map_ptr,
            token,
            topk,
            bound,
            map_bound,
            first_expert,
            experts,
            TOPK2,
            TOKENS,
        )
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(TOPK):
        place = token * topk + j
        if FIND == SLOTS:
            slot = tl.load(slots_ptr + place)
        elif FIND == IDENTITY:
            slot = tl.where(tl.load(ids_ptr + place) < 0, -1, place)
        else:
            if j % 4 == 0:
                packed = _four_positions(
                    before,
                    ids_ptr + token * topk,
                    to_physical_ptr,
                    expert_map_ptr,
                    bound,
                    map_bound,
                    first_expert,
                    experts,
                    j,
                    TOPK,
                    TOKENS,
                )
            expert = _local_experts(
                tl.load(ids_ptr + place),
                to_physical_ptr,
                expert_map_ptr,
                bound,
                map_bound,
                first_expert,
                experts,
            )
            position = ((packed >> (16 * (j % 4))) & 0xFFFF).to(tl.int32)
            slot = tl.where(expert < 0, -1, expert * rows + position)
        # Predicated, not branched over, so that all loads of a token are under way together.
        row_ptr = rows_ptr + slot.to(tl.int64) * rows_stride
        part = tl.load(row_ptr + column, mask=wanted & (slot >= 0), other=0.0).to(tl.float32)
        if weight_ptr is not None:
            # The weight of a slot without a row may be anything, NaN too.
            part *= tl.load(weight_ptr + place, mask=slot >= 0, other=0.0).to(tl.float32)
        total += part
    tl.store(
        out_ptr + token.to(tl.int64) * out_stride + column, total.to(out_ptr.dtype.element_ty), mask=wanted
    )
