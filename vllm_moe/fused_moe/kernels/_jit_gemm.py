# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, no-untyped-call, no-any-return"
# ruff: noqa: ANN001, ANN202 -- Triton reads annotations and branches at compile time

"""Triton kernels of the experts: products of rows sorted by expert, and the activation between them.

Which expert a program works for is read from the counts on the device, so the launch does not depend on them:
programs beyond the last tile return at once.
"""

import triton
import triton.language as tl

from vllm_moe.fused_moe.kernels._jit_rows import (
    BLOCKS,
    NONE,
    STATIC_TENSOR,
    TOKEN,
    _round_to,
    _scale_of,
)

__all__ = ["activation_kernel", "grouped_gemm_kernel"]

# What one scale of the left side covers: nothing, an expert's rows (all rows when compact), a row, a block
# of it.
A_UNSCALED = tl.constexpr(0)
A_EXPERT = tl.constexpr(1)
A_ROW = tl.constexpr(2)
A_BLOCK = tl.constexpr(3)
# What one scale of the weights covers: nothing, an expert, an output channel, a block.
B_UNSCALED = tl.constexpr(0)
B_EXPERT = tl.constexpr(1)
B_CHANNEL = tl.constexpr(2)
B_BLOCK = tl.constexpr(3)

SILU = tl.constexpr(0)
GELU = tl.constexpr(1)
RELU2 = tl.constexpr(2)


@triton.jit(do_not_specialize=["rows"])
def grouped_gemm_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    a_scale_ptr,
    b_scale_ptr,
    counts_ptr,
    rows,
    N: tl.constexpr,
    K: tl.constexpr,
    B_STRIDE_E: tl.constexpr,
    B_STRIDE_N: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS2: tl.constexpr,
    BATCHED: tl.constexpr,
    A_KIND: tl.constexpr,
    B_KIND: tl.constexpr,
    GROUP_N: tl.constexpr,
    GROUP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``c = a @ b[expert].T`` for one tile of one expert's rows and of the output channels."""
    tile = tl.program_id(1)
    if BATCHED:
        tiles = tl.cdiv(rows, BLOCK_M)
        expert = tile // tiles
        first = (tile % tiles) * BLOCK_M
        count = tl.load(counts_ptr + expert)
        start = expert.to(tl.int64) * rows
    else:
        number = tl.arange(0, EXPERTS2)
        counts = tl.load(counts_ptr + number, mask=number < EXPERTS, other=0)
        tiles = (counts + BLOCK_M - 1) // BLOCK_M
        expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32))
        if expert >= EXPERTS:
            return
        first = (tile - tl.sum(tl.where(number < expert, tiles, 0))) * BLOCK_M
        count = tl.sum(tl.where(number == expert, counts, 0))
        start = tl.sum(tl.where(number < expert, counts, 0)).to(tl.int64)
    if first >= count:
        return
    m = first + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    row = start + m
    real = m < count
    b_base = b_ptr + expert.to(tl.int64) * B_STRIDE_E
    integers: tl.constexpr = a_ptr.dtype.element_ty == tl.int8
    if integers and A_KIND != A_BLOCK:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, K, BLOCK_K):
        inside = begin + k < K
        a = tl.load(
            a_ptr + row[:, None] * K + (begin + k)[None, :], mask=real[:, None] & inside[None, :], other=0.0
        )
        b = tl.load(
            b_base + n[None, :].to(tl.int64) * B_STRIDE_N + (begin + k)[:, None],
            mask=(n < N)[None, :] & inside[:, None],
            other=0.0,
        )
        if b.dtype != a.dtype:
            b = b.to(a.dtype)
        if A_KIND == A_BLOCK or B_KIND == B_BLOCK:
            if integers:  # noqa: SIM108 -- Triton compiles one branch of an if, both of a ternary
                part = tl.dot(a, b, out_dtype=tl.int32).to(tl.float32)
            else:
                part = tl.dot(a, b, input_precision="ieee")
            if A_KIND == A_BLOCK:
                scales = tl.cdiv(K, GROUP_K)
                part *= tl.load(a_scale_ptr + row * scales + begin // GROUP_K, mask=real, other=0.0)[:, None]
            if B_KIND == B_BLOCK:
                place = (expert * tl.cdiv(N, GROUP_N) + n // GROUP_N) * tl.cdiv(K, GROUP_K) + begin // GROUP_K
                part *= tl.load(b_scale_ptr + place, mask=n < N, other=0.0)[None, :]
            total += part
        elif integers:
            total = tl.dot(a, b, total, out_dtype=tl.int32)
        else:
            total = tl.dot(a, b, total, input_precision="ieee")
    result = total.to(tl.float32)
    if A_KIND == A_EXPERT:
        result *= tl.load(a_scale_ptr + (expert if BATCHED else 0))
    elif A_KIND == A_ROW:
        result *= tl.load(a_scale_ptr + row, mask=real, other=0.0)[:, None]
    if B_KIND == B_EXPERT:
        result *= tl.load(b_scale_ptr + expert)
    elif B_KIND == B_CHANNEL:
        result *= tl.load(b_scale_ptr + expert * N + n, mask=n < N, other=0.0)[None, :]
    tl.store(
        c_ptr + row[:, None] * N + n[None, :],
        result.to(c_ptr.dtype.element_ty),
        mask=real[:, None] & (n < N)[None, :],
    )


@triton.jit(do_not_specialize=["rows"])
def activation_kernel(
    x_ptr,
    out_ptr,
    scale_ptr,
    static_scale_ptr,
    amax_ptr,
    counts_ptr,
    rows,
    WIDTH: tl.constexpr,
    GATED: tl.constexpr,
    FUNCTION: tl.constexpr,
    DTYPE: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS2: tl.constexpr,
    BATCHED: tl.constexpr,
    MEASURING: tl.constexpr,
    KIND: tl.constexpr,
    LIMIT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Activate one row, round it to ``DTYPE``, and quantize that, or (measuring) enter it in the maximum."""
    row = tl.program_id(0)
    number = 0
    if BATCHED:
        number = row // rows
        if row % rows >= tl.load(counts_ptr + number):
            return
    else:
        experts = tl.arange(0, EXPERTS2)
        if row >= tl.sum(tl.load(counts_ptr + experts, mask=experts < EXPERTS, other=0)):
            return
    if KIND == BLOCKS:
        group = tl.arange(0, BLOCK // GROUP)
        column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    else:
        column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = row.to(tl.int64) * (2 * WIDTH if GATED else WIDTH) + column
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if FUNCTION == SILU:
        active = x / (1.0 + tl.exp(-x))
    elif FUNCTION == GELU:
        active = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        positive = tl.maximum(x, 0.0)
        active = positive * positive
    if GATED:
        active *= tl.load(x_ptr + place + WIDTH, mask=inside, other=0.0).to(tl.float32)
    active = tl.where(inside, active, 0.0).to(DTYPE)
    values = active.to(tl.float32)
    if MEASURING:
        tl.atomic_max(amax_ptr + number, tl.max(tl.abs(values)))
        return
    target_ptr = out_ptr + row.to(tl.int64) * WIDTH + column
    kind: tl.constexpr = out_ptr.dtype.element_ty
    if KIND == NONE:
        tl.store(target_ptr, active, mask=inside)
    elif KIND == BLOCKS:
        scale = _scale_of(tl.max(tl.abs(values), 1), LIMIT)
        inverse = tl.div_rn(tl.full((BLOCK // GROUP,), 1.0, tl.float32), scale)
        tl.store(target_ptr, _round_to(values * inverse[:, None], kind), mask=inside)
        scales = tl.cdiv(WIDTH, GROUP)
        tl.store(scale_ptr + row.to(tl.int64) * scales + group, scale, mask=group < scales)
    else:
        if KIND == TOKEN:
            scale = _scale_of(tl.max(tl.abs(values)), LIMIT)
            tl.store(scale_ptr + row, scale)
        elif KIND == STATIC_TENSOR:
            scale = tl.load(static_scale_ptr)
        else:
            scale = _scale_of(tl.load(amax_ptr + number), LIMIT)
            tl.store(scale_ptr + number, scale)
        scaled = values * tl.div_rn(1.0, scale)
        if KIND == STATIC_TENSOR:
            scaled = tl.minimum(tl.maximum(scaled, -LIMIT), LIMIT)
        tl.store(target_ptr, _round_to(scaled, kind), mask=inside)
