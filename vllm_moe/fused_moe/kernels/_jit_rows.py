# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, no-untyped-call, no-any-return"
# ruff: noqa: ANN001, ANN202, SIM102 -- Triton reads annotations and branches at compile time

"""Triton kernels that route, quantize, scatter and gather rows; ``_triton_rows`` launches them.

Row offsets are 64-bit. Positions come from counting earlier tokens, never from atomics, so that they are the
same in every run; the one atomic is a maximum, whose result does not depend on the order. What stays the same
from call to call (sizes of the layer, its placement) is a compile-time constant: the launches stay short, and
divisions become shifts and multiplications.
"""

import triton
import triton.language as tl

from vllm_moe.fused_moe.kernels.quantize import SMALLEST_AMAX

__all__ = ["amax_kernel", "gather_kernel", "place_kernel", "scatter_kernel", "tally_kernel"]

# How a program finds the rows that its token goes to or comes from.
IDENTITY = tl.constexpr(0)  # row of its own number (scatter), or one row a slot (gather)
SLOTS = tl.constexpr(1)  # slots that place_kernel wrote
COUNTING = tl.constexpr(2)  # counts for itself, from tallies of the chunks before its own where there are any
COMPACT = tl.constexpr(3)  # slots, squeezed together by the experts' counts

# config.QuantKind, for the kernels.
NONE = tl.constexpr(0)
STATIC_TENSOR = tl.constexpr(1)
DYNAMIC_TENSOR = tl.constexpr(2)
TOKEN = tl.constexpr(3)
BLOCKS = tl.constexpr(4)

MIN_AMAX = tl.constexpr(SMALLEST_AMAX)


@triton.jit
def _local_experts(
    ids,
    to_physical_ptr,
    expert_map_ptr,
    BOUND: tl.constexpr,
    MAP_BOUND: tl.constexpr,
    FIRST: tl.constexpr,
    EXPERTS: tl.constexpr,
):
    """Give the local expert of each id, -1 where there is none or another rank has it."""
    if to_physical_ptr is not None:
        ids = tl.load(to_physical_ptr + ids, mask=(ids >= 0) & (ids < BOUND), other=-1)
    if expert_map_ptr is not None:
        ids = tl.load(expert_map_ptr + ids, mask=(ids >= 0) & (ids < MAP_BOUND), other=-1)
    local = ids - FIRST
    return tl.where((ids >= 0) & (local >= 0) & (local < EXPERTS), local, -1).to(tl.int32)


@triton.jit
def _refuse_ids_out_of_range(ids, BOUND: tl.constexpr):
    tl.device_assert(
        (ids >= -1) & (ids < BOUND), "topk_ids holds an id outside -1 (no expert) to num_experts - 1"
    )


@triton.jit(do_not_specialize=["tokens", "chunks"])
def tally_kernel(
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    tally_ptr,
    tokens,
    chunks,
    TOPK: tl.constexpr,
    BOUNDED: tl.constexpr,
    BOUND: tl.constexpr,
    MAP_BOUND: tl.constexpr,
    FIRST: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
    EXPERT_BLOCK: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):
    """One program a chunk of tokens and block of experts: how many tokens of the chunk name each expert."""
    if OVERLAPPED:
        tl.extra.cuda.gdc_launch_dependents()
    chunk = tl.program_id(0)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    expert = tl.program_id(1) * EXPERT_BLOCK + tl.arange(0, EXPERT_BLOCK)
    named = tl.zeros((CHUNK, EXPERT_BLOCK), tl.int32)
    for k in tl.static_range(TOPK):
        ids = tl.load(ids_ptr + token * TOPK + k, mask=token < tokens, other=-1)
        if BOUNDED:
            if tl.program_id(1) == 0:
                _refuse_ids_out_of_range(ids, BOUND)
        local = _local_experts(ids, to_physical_ptr, expert_map_ptr, BOUND, MAP_BOUND, FIRST, EXPERTS)
        named = named | (local[:, None] == expert[None, :]).to(tl.int32)
    tl.store(tally_ptr + expert * chunks + chunk, tl.sum(named, 0), mask=expert < EXPERTS)


@triton.jit
def _tallied(tally_ptr, OVERLAPPED: tl.constexpr):
    """Give ``tally_ptr``, once the tallies are there: an overlapped launch starts before they are."""
    if OVERLAPPED:
        # The zero that this gives ties the loads that follow to the wait.
        zero = tl.inline_asm_elementwise(
            "griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
        tally_ptr += zero
    return tally_ptr


@triton.jit
def _earlier_in_chunk(
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    token,
    first,
    TOPK: tl.constexpr,
    TOPK2: tl.constexpr,
    BOUND: tl.constexpr,
    MAP_BOUND: tl.constexpr,
    FIRST: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Give the local experts of tokens ``first`` to ``token - 1``, ``[WIDTH, TOPK2]``, filled up with -1."""
    other = first + tl.arange(0, WIDTH)
    k = tl.arange(0, TOPK2)
    inside = (other < token)[:, None] & (k < TOPK)[None, :]
    ids = tl.load(ids_ptr + other[:, None] * TOPK + k[None, :], mask=inside, other=-1)
    return _local_experts(ids, to_physical_ptr, expert_map_ptr, BOUND, MAP_BOUND, FIRST, EXPERTS)


@triton.jit
def _position(earlier, expert, tally_ptr, chunk, chunks, WIDTH: tl.constexpr):
    """Count the tokens that name ``expert`` in ``earlier`` and in the chunks before ``chunk``."""
    named = tl.max((earlier == expert).to(tl.int32), 1)
    if tally_ptr is not None:
        before = tl.arange(0, WIDTH)
        named += tl.load(tally_ptr + expert * chunks + before, mask=before < chunk, other=0)
    return tl.sum(named)


@triton.jit
def _count(
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    tally_ptr,
    expert,
    tokens,
    chunks,
    TOPK: tl.constexpr,
    TOPK2: tl.constexpr,
    BOUND: tl.constexpr,
    MAP_BOUND: tl.constexpr,
    FIRST: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Count the tokens that name ``expert``."""
    if tally_ptr is not None:
        chunk = tl.arange(0, WIDTH)
        count = tl.sum(tl.load(tally_ptr + expert * chunks + chunk, mask=chunk < chunks, other=0))
    else:
        every = _earlier_in_chunk(
            ids_ptr,
            to_physical_ptr,
            expert_map_ptr,
            tokens,
            0,
            TOPK,
            TOPK2,
            BOUND,
            MAP_BOUND,
            FIRST,
            EXPERTS,
            WIDTH,
        )
        count = tl.sum(tl.max((every == expert).to(tl.int32), 1))
    return count


@triton.jit(do_not_specialize=["tokens", "chunks", "rows"])
def place_kernel(
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    tally_ptr,
    slots_ptr,
    counts_ptr,
    scale_ptr,
    amax_ptr,
    tokens,
    chunks,
    rows,
    TOPK: tl.constexpr,
    TOPK2: tl.constexpr,
    BOUNDED: tl.constexpr,
    BOUND: tl.constexpr,
    MAP_BOUND: tl.constexpr,
    FIRST: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAPPED: tl.constexpr,
    LIMIT: tl.constexpr,
):
    """One program a token: the row of each of its slots. Then one program an expert: its count."""
    token = tl.program_id(0)
    if tally_ptr is not None:
        tally_ptr = _tallied(tally_ptr, OVERLAPPED)
    if token >= tokens:
        expert = token - tokens
        count = _count(
            ids_ptr,
            to_physical_ptr,
            expert_map_ptr,
            tally_ptr,
            expert,
            tokens,
            chunks,
            TOPK,
            TOPK2,
            BOUND,
            MAP_BOUND,
            FIRST,
            EXPERTS,
            WIDTH,
        )
        tl.store(counts_ptr + expert, count)
        if amax_ptr is not None:
            tl.store(amax_ptr + expert, 0.0)
            tl.store(scale_ptr + expert, tl.div_rn(tl.full((), MIN_AMAX, tl.float32), LIMIT))
        return
    earlier = _earlier_in_chunk(
        ids_ptr,
        to_physical_ptr,
        expert_map_ptr,
        token,
        token // CHUNK * CHUNK,
        TOPK,
        TOPK2,
        BOUND,
        MAP_BOUND,
        FIRST,
        EXPERTS,
        WIDTH,
    )
    for j in tl.static_range(TOPK):
        chosen = tl.load(ids_ptr + token * TOPK + j)
        if BOUNDED:
            _refuse_ids_out_of_range(chosen, BOUND)
        expert = _local_experts(chosen, to_physical_ptr, expert_map_ptr, BOUND, MAP_BOUND, FIRST, EXPERTS)
        slot = -1
        if expert >= 0:
            slot = expert * rows + _position(earlier, expert, tally_ptr, token // CHUNK, chunks, WIDTH)
        tl.store(slots_ptr + token * TOPK + j, slot)


@triton.jit
def _round_to(values, dtype: tl.constexpr):
    """Round float32 values to nearest even, in ``dtype``; a scale of their own keeps them in its range."""
    if dtype == tl.int8:
        # Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded to an integer, to even if
        # halfway.
        values = (values + 12582912.0) - 12582912.0
    return values.to(dtype)


@triton.jit
def _scale_of(amax, LIMIT: tl.constexpr):
    return tl.div_rn(tl.maximum(amax, MIN_AMAX), LIMIT)


@triton.jit(do_not_specialize=["tokens", "chunks", "rows"])
def scatter_kernel(
    a_ptr,
    weight_ptr,
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    tally_ptr,
    slots_ptr,
    counts_ptr,
    static_scale_ptr,
    amax_ptr,
    row_scale_ptr,
    out_ptr,
    scale_ptr,
    slots_out_ptr,
    tokens,
    chunks,
    rows,
    HIDDEN: tl.constexpr,
    A_STRIDE: tl.constexpr,
    SCALES: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK2: tl.constexpr,
    BOUNDED: tl.constexpr,
    BOUND: tl.constexpr,
    MAP_BOUND: tl.constexpr,
    FIRST: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS2: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAPPED: tl.constexpr,
    FIND: tl.constexpr,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program a token and part of its row: read it once, quantize it once, write it to each of its rows.

    When counting, one more program for each expert counts its tokens.
    """
    program = tl.program_id(0)
    token = program // PARTS
    part = program % PARTS
    if FIND == COUNTING:
        if token >= tokens:
            number = program - tokens * PARTS
            if tally_ptr is not None:
                tally_ptr = _tallied(tally_ptr, OVERLAPPED)
            count = _count(
                ids_ptr,
                to_physical_ptr,
                expert_map_ptr,
                tally_ptr,
                number,
                tokens,
                chunks,
                TOPK,
                TOPK2,
                BOUND,
                MAP_BOUND,
                FIRST,
                EXPERTS,
                WIDTH,
            )
            tl.store(counts_ptr + number, count)
            if KIND == STATIC_TENSOR:
                tl.store(scale_ptr + number, tl.load(static_scale_ptr))
            return

    # Slots, or the experts whose slots are still to be counted.
    found = ()
    some = -1
    for j in tl.static_range(TOPK):
        if FIND == IDENTITY:
            one = token
        elif FIND == COUNTING:
            chosen = tl.load(ids_ptr + token * TOPK + j)
            if BOUNDED:
                _refuse_ids_out_of_range(chosen, BOUND)
            one = _local_experts(chosen, to_physical_ptr, expert_map_ptr, BOUND, MAP_BOUND, FIRST, EXPERTS)
        else:
            one = tl.load(slots_ptr + token * TOPK + j)
        found += (one,)
        some = tl.maximum(some, one)
    if FIND == COMPACT:
        number = tl.arange(0, EXPERTS2)
        counts = tl.load(counts_ptr + number, mask=number < EXPERTS, other=0)
        squeezed = ()
        for j in tl.static_range(TOPK):
            start = tl.sum(tl.where(number < found[j] // rows, counts, 0))
            slot = tl.where(found[j] < 0, -1, start + found[j] % rows)
            if part == 0:
                tl.store(slots_out_ptr + token * TOPK + j, slot)
            squeezed += (slot,)
        found = squeezed
    if some < 0:
        return

    # The row is on its way while the slots are being counted.
    if KIND == BLOCKS:
        group = part * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
        column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    else:
        group = part
        column = part * BLOCK + tl.arange(0, BLOCK)
    wanted = column < HIDDEN
    values = tl.load(a_ptr + token.to(tl.int64) * A_STRIDE + column, mask=wanted, other=0.0)
    if FIND == COUNTING:
        earlier = _earlier_in_chunk(
            ids_ptr,
            to_physical_ptr,
            expert_map_ptr,
            token,
            token // CHUNK * CHUNK,
            TOPK,
            TOPK2,
            BOUND,
            MAP_BOUND,
            FIRST,
            EXPERTS,
            WIDTH,
        )
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + token).to(tl.float32)
        values = (values.to(tl.float32) * weight).to(values.dtype)

    if KIND == TOKEN:
        scale = _scale_of(tl.max(tl.abs(values.to(tl.float32))), LIMIT)
        quantized = _round_to(values.to(tl.float32) * tl.div_rn(1.0, scale), out_ptr.dtype.element_ty)
    elif KIND == BLOCKS:
        scale = _scale_of(tl.max(tl.abs(values.to(tl.float32)), 1), LIMIT)
        inverse = tl.div_rn(tl.full((BLOCK // GROUP,), 1.0, tl.float32), scale)
        quantized = _round_to(values.to(tl.float32) * inverse[:, None], out_ptr.dtype.element_ty)
    elif KIND == STATIC_TENSOR:
        scaled = values.to(tl.float32) * tl.div_rn(1.0, tl.load(static_scale_ptr))
        quantized = _round_to(tl.minimum(tl.maximum(scaled, -LIMIT), LIMIT), out_ptr.dtype.element_ty)
    else:
        quantized = values

    if FIND == COUNTING:
        if tally_ptr is not None:
            tally_ptr = _tallied(tally_ptr, OVERLAPPED)
    # A token that names an expert twice writes the same row twice.
    for j in tl.static_range(TOPK):
        if found[j] >= 0:
            if FIND == COUNTING:
                slot = found[j] * rows + _position(
                    earlier, found[j], tally_ptr, token // CHUNK, chunks, WIDTH
                )
            else:
                slot = found[j]
            target_ptr = out_ptr + slot.to(tl.int64) * HIDDEN + column
            if KIND == DYNAMIC_TENSOR:
                # One scale an expert, so the same row may differ between its experts.
                number = 0 if FIND == IDENTITY else slot // rows
                own_scale = _scale_of(tl.load(amax_ptr + number), LIMIT)
                if part == 0:
                    if slot % rows == 0:
                        tl.store(scale_ptr + number, own_scale)
                # Rows that a mask kept out of the maximum may be beyond it.
                own = tl.minimum(tl.maximum(values.to(tl.float32) * tl.div_rn(1.0, own_scale), -LIMIT), LIMIT)
                tl.store(target_ptr, _round_to(own, out_ptr.dtype.element_ty), mask=wanted)
            else:
                tl.store(target_ptr, quantized, mask=wanted)
            if KIND == TOKEN:
                tl.store(scale_ptr + slot, scale)
            if KIND == BLOCKS:
                tl.store(scale_ptr + slot.to(tl.int64) * SCALES + group, scale, mask=group < SCALES)
            if row_scale_ptr is not None:
                if part == 0:
                    for start in range(0, SCALES, 128):
                        piece = start + tl.arange(0, 128)
                        moved = tl.load(
                            row_scale_ptr + token.to(tl.int64) * SCALES + piece, mask=piece < SCALES
                        )
                        tl.store(scale_ptr + slot.to(tl.int64) * SCALES + piece, moved, mask=piece < SCALES)


@triton.jit(do_not_specialize=["rows"])
def amax_kernel(
    a_ptr,
    weight_ptr,
    mask_ptr,
    slots_ptr,
    amax_ptr,
    rows,
    HIDDEN: tl.constexpr,
    A_STRIDE: tl.constexpr,
    TOPK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a token: its largest magnitude enters the maximum of each of its experts.

    Without slots there is one maximum for all rows that the mask, if any, lets through.
    """
    token = tl.program_id(0)
    if mask_ptr is not None:
        if tl.load(mask_ptr + token) == 0:
            return
    if slots_ptr is not None:
        found = ()
        some = -1
        for j in tl.static_range(TOPK):
            slot = tl.load(slots_ptr + token * TOPK + j)
            found += (slot,)
            some = tl.maximum(some, slot)
        if some < 0:
            return
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, HIDDEN, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(a_ptr + token.to(tl.int64) * A_STRIDE + column, mask=column < HIDDEN, other=0.0)
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + token).to(tl.float32)
            values = (values.to(tl.float32) * weight).to(values.dtype)
        largest = tl.maximum(largest, tl.abs(values.to(tl.float32)))
    amax = tl.max(largest)
    if slots_ptr is None:
        tl.atomic_max(amax_ptr, amax)
    else:
        for j in tl.static_range(TOPK):
            if found[j] >= 0:
                tl.atomic_max(amax_ptr + found[j] // rows, amax)


@triton.jit(do_not_specialize=["chunks", "rows"])
def gather_kernel(
    rows_ptr,
    weight_ptr,
    ids_ptr,
    to_physical_ptr,
    expert_map_ptr,
    tally_ptr,
    slots_ptr,
    out_ptr,
    chunks,
    rows,
    HIDDEN: tl.constexpr,
    ROWS_STRIDE: tl.constexpr,
    OUT_STRIDE: tl.constexpr,
    TOPK: tl.constexpr,
    TOPK2: tl.constexpr,
    BOUND: tl.constexpr,
    MAP_BOUND: tl.constexpr,
    FIRST: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    OVERLAPPED: tl.constexpr,
    FIND: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program a token and part of its row: add up its weighted rows in float32, slot by slot."""
    program = tl.program_id(0)
    token = program // PARTS
    column = (program % PARTS) * BLOCK + tl.arange(0, BLOCK)
    wanted = column < HIDDEN
    if FIND == COUNTING:
        earlier = _earlier_in_chunk(
            ids_ptr,
            to_physical_ptr,
            expert_map_ptr,
            token,
            token // CHUNK * CHUNK,
            TOPK,
            TOPK2,
            BOUND,
            MAP_BOUND,
            FIRST,
            EXPERTS,
            WIDTH,
        )
    found = ()
    for j in tl.static_range(TOPK):
        place = token * TOPK + j
        if FIND == SLOTS:
            slot = tl.load(slots_ptr + place)
        elif FIND == IDENTITY:
            slot = tl.where(tl.load(ids_ptr + place) < 0, -1, place)
        else:
            slot = _local_experts(
                tl.load(ids_ptr + place), to_physical_ptr, expert_map_ptr, BOUND, MAP_BOUND, FIRST, EXPERTS
            )
        found += (slot,)
    if FIND == COUNTING:
        if tally_ptr is not None:
            tally_ptr = _tallied(tally_ptr, OVERLAPPED)
        placed = ()
        for j in tl.static_range(TOPK):
            slot = -1
            if found[j] >= 0:
                slot = found[j] * rows + _position(
                    earlier, found[j], tally_ptr, token // CHUNK, chunks, WIDTH
                )
            placed += (slot,)
        found = placed
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(TOPK):
        row_ptr = rows_ptr + found[j].to(tl.int64) * ROWS_STRIDE
        if FIND == IDENTITY:
            # Nearly every slot has a row: predicated loads are all under way together.
            values = tl.load(row_ptr + column, mask=wanted & (found[j] >= 0), other=0.0).to(tl.float32)
            if weight_ptr is not None:
                # The weight of a slot without a row may be anything, NaN too.
                values *= tl.load(weight_ptr + token * TOPK + j, mask=found[j] >= 0, other=0.0).to(tl.float32)
            total += values
        # Most slots may belong to other ranks: a branch around them costs less than their arithmetic.
        elif found[j] >= 0:
            values = tl.load(row_ptr + column, mask=wanted, other=0.0).to(tl.float32)
            if weight_ptr is not None:
                values *= tl.load(weight_ptr + token * TOPK + j).to(tl.float32)
            total += values
    tl.store(
        out_ptr + token.to(tl.int64) * OUT_STRIDE + column, total.to(out_ptr.dtype.element_ty), mask=wanted
    )
