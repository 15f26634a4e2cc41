"""Each torch kernel against plain loops, and each Triton kernel against its torch twin.

The Triton half runs on a CUDA device, or anywhere in Triton's interpreter (``TRITON_INTERPRET=1``, with
triton installed); the interpreter rounds to fp8 inexactly, so that there the quantized values have a
tolerance.
"""

import importlib.util
import os
import subprocess
import sys
import warnings
from typing import NamedTuple

import pytest
import torch

from tests.vllm_moe.reference import (
    combine,
    expert_rows,
    fp8_values,
    quantization_error_bound,
    relative_error,
)
from vllm_moe.fused_moe.config import FP8_DTYPE
from vllm_moe.fused_moe.kernels import (
    ExpertPlacement,
    QuantKind,
    QuantScheme,
    batched_finalize,
    batched_finalize_torch,
    batched_prepare,
    batched_prepare_torch,
    combine_rows,
    combine_rows_torch,
    count_expert_num_tokens,
    count_expert_num_tokens_torch,
    dequantize,
    permute_tokens,
    permute_tokens_torch,
    quantize_rows,
    quantize_rows_torch,
    route,
    route_torch,
    weight_and_reduce,
    weight_and_reduce_torch,
)

SCHEMES = {
    "none": QuantScheme(QuantKind.NONE, None, 0, None),
    "fp8 static": QuantScheme(QuantKind.STATIC_TENSOR, FP8_DTYPE, 0, torch.tensor([0.013])),
    "fp8 dynamic": QuantScheme(QuantKind.DYNAMIC_TENSOR, FP8_DTYPE, 0, None),
    "fp8 token": QuantScheme(QuantKind.TOKEN, FP8_DTYPE, 0, None),
    "fp8 block": QuantScheme(QuantKind.BLOCK, FP8_DTYPE, 128, None),
    "int8 token": QuantScheme(QuantKind.TOKEN, torch.int8, 0, None),
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED),
    reason="needs a CUDA device, or triton installed and TRITON_INTERPRET=1",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISONS = (float("nan"), float("inf"), 1e30)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(7)


class Case(NamedTuple):
    """Tokens and where they go."""

    a1: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor
    placement: ExpertPlacement


def make_case(
    tokens: int,
    topk: int,
    experts: int,
    local: int,
    hidden: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    ids_dtype: torch.dtype = torch.int64,
    tables: str = "",
) -> Case:
    """Random tokens whose ids hold -1 and repeats; local experts are the last ones, or as tables say."""
    generator = torch.Generator().manual_seed(seed)
    a1 = (
        torch.randn(tokens, hidden, generator=generator)
        * torch.rand(tokens, 1, generator=generator).exp()
        * 2
    )
    ids = torch.randint(-1, experts, (tokens, topk), generator=generator).to(ids_dtype)
    to_physical = expert_map = None
    if "physical" in tables:
        to_physical = torch.randperm(experts, generator=generator).to(torch.int32)
    if "map" in tables:
        expert_map = torch.full((experts,), -1, dtype=torch.int32)
        expert_map[torch.randperm(experts, generator=generator)[:local]] = torch.arange(
            local, dtype=torch.int32
        )
    placement = ExpertPlacement(local, experts - local, to_physical, expert_map, experts)
    weights = torch.rand(tokens, topk, generator=generator)
    return Case(a1.to(dtype), weights, ids, placement)


def local_of(placement: ExpertPlacement, expert: int) -> int | None:
    """Where one global expert is, by the definition of a placement."""
    if placement.global_to_physical is not None:
        expert = int(placement.global_to_physical[expert])
    if placement.expert_map is not None:
        local = int(placement.expert_map[expert])
        return local if local >= 0 else None
    local = expert - placement.first_expert
    return local if 0 <= local < placement.num_local_experts else None


def rows_of(case: Case) -> list[list[int]]:
    """Tokens of each local expert, by brute force."""
    return expert_rows(
        case.ids, lambda expert: local_of(case.placement, expert), case.placement.num_local_experts
    )


CASES = [
    make_case(7, 3, 8, 4, 200),
    make_case(1, 1, 1, 1, 8),
    make_case(0, 2, 4, 4, 130),
    make_case(33, 8, 16, 16, 264, ids_dtype=torch.int32),
    make_case(19, 2, 6, 3, 129, tables="map"),
    make_case(19, 5, 6, 3, 64, tables="physical"),
    make_case(19, 6, 8, 2, 64, tables="physical map", ids_dtype=torch.int16),
    make_case(12, 4, 300, 100, 32, dtype=torch.float32),
    make_case(9, 2, 4, 4, 128, dtype=torch.float16),
]
CASE_NAMES = [f"{'x'.join(map(str, case.ids.shape))}of{case.placement.num_local_experts}" for case in CASES]
all_cases = pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
all_schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())


@all_cases
def test_route_gives_rows_in_token_order(case: Case) -> None:
    """Row p of an expert belongs to the p-th token that names it, for all its slots there."""
    rows = 50
    slots, counts = route_torch(case.ids, case.placement, rows)
    expected = rows_of(case)
    assert counts.dtype == torch.int32
    assert counts.tolist() == [len(tokens) for tokens in expected]
    assert slots.dtype == torch.int32
    for token, named in enumerate(case.ids.tolist()):
        for k, expert in enumerate(named):
            local = local_of(case.placement, expert) if expert >= 0 else None
            wanted = -1 if local is None else local * rows + expected[local].index(token)
            assert slots[token, k] == wanted


@all_cases
@pytest.mark.parametrize("rows_to_spare", [0, 3])
def test_unquantized_prepare_copies_rows_and_nothing_else(case: Case, rows_to_spare: int) -> None:
    """Every routed row is there bit for bit, counts say how many, and the inputs are as they were."""
    rows = len(case.a1) + rows_to_spare
    before = [tensor.clone() for tensor in (case.a1, case.weights, case.ids)]
    versions = [tensor._version for tensor in (case.a1, case.weights, case.ids)]
    batch, scale, counts = batched_prepare_torch(
        case.a1, None, case.ids, case.placement, rows, SCHEMES["none"]
    )
    assert scale is None
    assert batch.shape == (case.placement.num_local_experts, rows, case.a1.size(1))
    assert batch.dtype == case.a1.dtype
    for expert, tokens in enumerate(rows_of(case)):
        assert counts[expert] == len(tokens)
        assert torch.equal(batch[expert, : len(tokens)], case.a1[tokens])
    for tensor, old, version in zip((case.a1, case.weights, case.ids), before, versions, strict=True):
        assert torch.equal(tensor, old)
        assert tensor._version == version


@all_schemes
@all_cases
def test_quantized_prepare_is_within_half_a_step(case: Case, scheme: QuantScheme) -> None:
    """Dequantized rows differ from the input by at most half a step, and scales are the scheme's."""
    rows = len(case.a1) + 1
    batch, scale, _ = batched_prepare_torch(case.a1, None, case.ids, case.placement, rows, scheme)
    local, hidden = case.placement.num_local_experts, case.a1.size(1)
    if scheme.dtype is None:
        assert scale is None
        return
    assert batch.dtype == scheme.dtype
    assert scale is not None
    assert scale.dtype == torch.float32
    per_row = {QuantKind.TOKEN: 1, QuantKind.BLOCK: -(-hidden // 128)}.get(scheme.kind)
    assert scale.shape == ((local, 1, 1) if per_row is None else (local, rows, per_row))
    for expert, tokens in enumerate(rows_of(case)):
        if not tokens:
            continue
        here = slice(len(tokens)) if per_row else slice(None)
        row_scale = scale[expert, here]
        expected = case.a1[tokens].double()
        group = hidden if per_row in {None, 1} else 128
        wide = row_scale.repeat_interleave(group, 1)[:, :hidden].expand(expected.shape)
        blocks = expected.abs().split(group, 1)
        amax = torch.stack([block.amax(1) for block in blocks], 1)
        if scheme.kind is QuantKind.DYNAMIC_TENSOR:
            amax = amax.amax().view(1, 1)
        limit = 127.0 if scheme.dtype is torch.int8 else fp8_values().max()
        wanted = torch.tensor([[0.013]]) if scheme.static_scale is not None else amax / limit
        assert relative_error(row_scale, wanted.expand(row_scale.shape)) < 1e-6
        clipped = expected.clamp(-limit * wide, limit * wide)
        found = dequantize(batch[expert, : len(tokens)], row_scale, 0 if per_row in {None, 1} else 128)
        assert (
            (found.double() - clipped).abs() <= quantization_error_bound(clipped, wide, scheme.dtype)
        ).all()


@pytest.mark.parametrize("dtype", [FP8_DTYPE, torch.int8])
def test_the_bound_on_quantization_rejects_truncation(dtype: torch.dtype) -> None:
    """Rounding towards zero, or a scale one step off, breaks the bound that the real one keeps."""
    values = torch.linspace(-3.0, 3.0, 4001, dtype=torch.float64)[None]
    scheme = QuantScheme(QuantKind.TOKEN, dtype, 0, None)
    quantized, scale = quantize_rows_torch(values.float(), scheme)
    assert scale is not None
    bound = quantization_error_bound(values, scale, dtype)
    assert ((dequantize(quantized, scale).double() - values).abs() <= bound).all()
    if dtype is torch.int8:
        truncated = (values / scale).trunc() * scale
    else:
        representable = fp8_values()
        scaled = (values / scale).clamp(-448, 448)
        below = representable[torch.searchsorted(representable, scaled.abs() + 1e-9) - 1]
        truncated = below * scaled.sign() * scale
    assert ((truncated - values).abs() > bound).any()
    assert ((dequantize(quantized, scale * 1.125).double() - values).abs() > bound).any()


def test_computed_scales_of_nothing_are_usable() -> None:
    """Rows of zeros, and experts without rows, get a small finite scale rather than zero."""
    ids = torch.tensor([[0], [0]])
    for name in ("fp8 dynamic", "fp8 token", "fp8 block", "int8 token"):
        _, scale, counts = batched_prepare_torch(
            torch.zeros(2, 8), None, ids, ExpertPlacement(2, 0, None, None, 2), 2, SCHEMES[name]
        )
        assert counts.tolist() == [2, 0]
        assert scale is not None
        real = scale if scale.size(1) == 1 else scale[0]
        assert (real > 0).all()
        assert real.isfinite().all()


@all_schemes
@pytest.mark.parametrize("poison", POISONS)
def test_rows_that_go_nowhere_change_nothing(poison: float, scheme: QuantScheme) -> None:
    """Activations of tokens without a local expert may be anything; all other rows keep their bits."""
    case = make_case(20, 2, 6, 3, 140, seed=3)
    case.ids[4] = -1
    case.ids[9] = torch.tensor([0, -1])  # an expert of another rank
    nowhere = [token for token in range(20) if not any(token in tokens for tokens in rows_of(case))]
    assert {4, 9} <= set(nowhere)
    poisoned = case.a1.clone()
    poisoned[nowhere] = poison
    first = batched_prepare_torch(case.a1, None, case.ids, case.placement, 20, scheme)
    second = batched_prepare_torch(poisoned, None, case.ids, case.placement, 20, scheme)
    for expert, count in enumerate(first[2].tolist()):
        assert torch.equal(first[0][expert, :count].float(), second[0][expert, :count].float())
        if first[1] is not None and second[1] is not None:
            here = count if first[1].size(1) > 1 else 1
            assert torch.equal(first[1][expert, :here], second[1][expert, :here])
    assert torch.equal(first[2], second[2])


@all_schemes
def test_router_weights_on_the_input_are_applied_once_and_to_a_copy(scheme: QuantScheme) -> None:
    """With weights the rows are the products, rounded to the input's dtype first; a1 keeps its bits."""
    case = make_case(11, 1, 4, 4, 130)
    before, version = case.a1.clone(), case.a1._version
    weighted = batched_prepare_torch(case.a1, case.weights, case.ids, case.placement, 11, scheme)
    product = (case.a1.float() * case.weights).bfloat16()
    expected = batched_prepare_torch(product, None, case.ids, case.placement, 11, scheme)
    for expert, count in enumerate(expected[2].tolist()):
        assert torch.equal(weighted[0][expert, :count].float(), expected[0][expert, :count].float())
    assert torch.equal(case.a1, before)
    assert case.a1._version == version


@all_cases
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("poison", POISONS)
def test_finalize_adds_up_each_tokens_rows(case: Case, weighted: bool, poison: float) -> None:
    """The output is the float64 sum to rounding; padding and weights of slots elsewhere hold anything."""
    tokens, hidden = case.a1.shape
    local, rows = case.placement.num_local_experts, tokens + 2
    generator = torch.Generator().manual_seed(1)
    expert_output = torch.randn(local, rows, hidden, generator=generator).to(case.a1.dtype)
    placed = rows_of(case)
    for expert, its_tokens in enumerate(placed):
        expert_output[expert, len(its_tokens) :] = poison
    weights = case.weights.clone()

    def row(token: int, k: int) -> torch.Tensor | None:
        expert = int(case.ids[token, k])
        home = local_of(case.placement, expert) if expert >= 0 else None
        if home is None:
            weights[token, k] = poison
            return None
        return expert_output[home, placed[home].index(token)]

    expected = combine(row, case.ids, case.weights if weighted else None, hidden)
    output = torch.full((tokens, hidden), float("nan"), dtype=case.a1.dtype)
    before = expert_output.clone()
    batched_finalize_torch(output, expert_output, weights if weighted else None, case.ids, case.placement)
    assert relative_error(output, expected) <= {torch.float32: 1e-6, torch.float16: 3e-4}.get(
        case.a1.dtype, 2e-3
    )
    assert torch.equal(expert_output.isnan(), before.isnan())
    assert torch.equal(expert_output.nan_to_num(), before.nan_to_num())


def test_the_tolerance_of_finalize_rejects_bf16_accumulation_and_lost_slots() -> None:
    """Leaving out one slot, weighting twice and summing in bf16 miss the reference by too much."""
    case = make_case(64, 8, 8, 8, 256, dtype=torch.float32)
    case.ids[:] = torch.arange(8)
    rows = torch.randn(64, 8, 256)
    expected = combine(lambda token, k: rows[token, k], case.ids, case.weights, 256)
    output = torch.empty(64, 256)
    weight_and_reduce_torch(output, rows, case.weights, case.ids)
    assert relative_error(output, expected) < 1e-6
    total = torch.zeros(64, 256, dtype=torch.bfloat16)
    for k in range(8):
        total += (rows[:, k] * case.weights[:, k, None]).bfloat16()
    without_one = case.ids.clone()
    without_one[5, 3] = -1
    lost = torch.empty(64, 256)
    weight_and_reduce_torch(lost, rows, case.weights, without_one)
    twice = torch.empty(64, 256)
    weight_and_reduce_torch(twice, rows, case.weights**2, case.ids)
    for wrong in (total, lost, twice):
        assert relative_error(wrong, expected) > 2e-3


@pytest.mark.parametrize("flat", [True, False])
def test_weight_and_reduce_leaves_negative_ids_out(flat: bool) -> None:
    """Rows of slots with a negative id are not read, whatever they and their weights hold."""
    case = make_case(9, 3, 5, 5, 70, dtype=torch.float32)
    rows = torch.randn(9, 3, 70)
    rows[case.ids < 0] = float("nan")
    weights = case.weights.masked_fill(case.ids < 0, float("inf"))
    expected = combine(lambda t, k: None if case.ids[t, k] < 0 else rows[t, k], case.ids, weights, 70)
    output = torch.full((9, 70), float("nan"))
    weight_and_reduce_torch(output, rows.flatten(0, 1) if flat else rows, weights, case.ids)
    assert relative_error(output, expected) < 1e-6


def test_uint32_ids_are_not_reinterpreted() -> None:
    """The largest uint32 is an id out of range, not -1."""
    ids = torch.tensor([[2**32 - 1]], dtype=torch.uint32)
    with pytest.raises(ValueError) as caught:
        route_torch(ids, ExpertPlacement(2, 0, None, None, 2), 4)
    assert str(caught.value) == (
        "topk_ids holds 4294967295, expected -1 (no expert) or an id from 0 to 1. Check the router and "
        "the table that maps its ids."
    )


@pytest.mark.parametrize(("bad", "tables"), [(6, ""), (-2, ""), (6, "map"), (6, "physical")])
def test_ids_out_of_range_are_refused(bad: int, tables: str) -> None:
    """An id that is no expert's is an error that names it, also where a table would be indexed with it."""
    case = make_case(4, 2, 6, 3, 16, tables=tables)
    case.ids[2, 1] = bad
    with pytest.raises(ValueError) as caught:
        batched_prepare_torch(case.a1, None, case.ids, case.placement, 4, SCHEMES["none"])
    assert str(caught.value) == (
        f"topk_ids holds {bad}, expected -1 (no expert) or an id from 0 to 5. Check the router and the "
        "table that maps its ids."
    )


def test_more_tokens_than_rows_are_refused() -> None:
    """A batch that could overflow is refused before anything is routed, with both numbers."""
    case = make_case(5, 1, 2, 2, 8)
    with pytest.raises(ValueError) as caught:
        batched_prepare(case.a1, None, case.ids, case.placement, 4, SCHEMES["none"])
    assert str(caught.value) == (
        "batched_prepare: 5 tokens, but the layout has 4 rows for each expert, and one expert may get a "
        "row of every token. Pass fewer tokens, or build the layout for more."
    )


def test_finalize_refuses_what_does_not_come_from_prepare() -> None:
    """Outputs, batches and weights of the wrong shape are named with what was expected."""
    placement = ExpertPlacement(2)
    ids, weights = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2)
    output, batch = torch.empty(3, 8), torch.empty(2, 4, 8)
    wrong = {
        "batched_finalize: fused_expert_output is (3, 4, 8), expected [2, rows, hidden]: one slice for "
        "each local "
        "expert.": (output, torch.empty(3, 4, 8), weights),
        "batched_finalize: 3 tokens, but fused_expert_output has 2 rows for each expert, so it does not "
        "come from a "
        "prepare of these tokens. Pass the topk_ids that prepare had.": (
            output,
            torch.empty(2, 2, 8),
            weights,
        ),
        "batched_finalize: output is (3, 9), expected (3, 8): a row for each row of topk_ids, as wide as "
        "the experts' "
        "output.": (torch.empty(3, 9), batch, weights),
        "batched_finalize: topk_weights is (3, 1) and topk_ids (3, 2), expected equal shapes "
        "[tokens, topk].": (
            output,
            batch,
            torch.ones(3, 1),
        ),
    }
    for message, (out, rows, topk_weights) in wrong.items():
        with pytest.raises(ValueError) as caught:
            batched_finalize(out, rows, topk_weights, ids, placement)
        assert str(caught.value) == message
    with pytest.raises(ValueError) as caught:
        weight_and_reduce(output, torch.empty(3, 3, 8), weights, ids)
    assert str(caught.value) == (
        "weight_and_reduce: fused_expert_output is (3, 3, 8), expected (3, 2) or [6] rows of the hidden "
        "size: one for each slot of topk_ids."
    )


@all_cases
def test_permute_sorts_by_expert_and_comes_back(case: Case) -> None:
    """Rows lie expert after expert, in token order, without padding; combining brings them back."""
    quantized, scale = quantize_rows_torch(case.a1, SCHEMES["fp8 block"])
    permuted, permuted_scale, slots, counts = permute_tokens_torch(quantized, scale, case.ids, case.placement)
    order = [token for tokens in rows_of(case) for token in tokens]
    total = len(order)
    assert counts.sum() == total
    assert torch.equal(permuted[:total].float(), quantized[order].float())
    assert scale is not None
    assert permuted_scale is not None
    if scale.numel() != 1:
        assert torch.equal(permuted_scale[:total], scale[order])
    output = torch.empty(case.a1.shape)
    combine_rows_torch(output, permuted.float(), slots, None)
    copies = (slots >= 0).sum(1, keepdim=True)
    assert relative_error(output, quantized.double() * copies) < 1e-6


def test_counting_counts_slots() -> None:
    """An expert that a token names twice counts twice, -1 counts nowhere."""
    ids = torch.tensor([[1, 1, -1], [0, 3, 1]])
    expert_map = torch.tensor([-1, 1, 0, 0])
    assert count_expert_num_tokens_torch(ids, 4, None).tolist() == [1, 3, 0, 1]
    assert count_expert_num_tokens_torch(ids, 2, expert_map).tolist() == [1, 3]
    assert count_expert_num_tokens_torch(ids[:0], 2, None).tolist() == [0, 0]


@pytest.mark.parametrize("layout", ["alias", "overlap", "strided", "transposed"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_outputs_may_alias_or_be_strided(layout: str, device: str) -> None:
    """Every element of the output is written, and only those, also where it shares memory with the rows."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    case = make_case(10, 2, 4, 4, 48, dtype=torch.float32)
    store = torch.randn(4 * 12 * 48 + 7, device=device)
    batch = store[:-7].view(4, 12, 48)
    expected = torch.empty(10, 48)
    batched_finalize_torch(expected, batch.cpu().clone(), case.weights, case.ids, case.placement)
    beside = torch.full((10, 96), -7.0, device=device)
    output = {
        "alias": store[:480].view(10, 48),
        "overlap": store[7 : 7 + 480].view(10, 48),
        "strided": beside[:, ::2],
        "transposed": torch.empty(48, 10, device=device).t(),
    }[layout]
    batched_finalize(output, batch, case.weights.to(device), case.ids.to(device), case.placement)
    assert relative_error(output, expected) < 1e-6
    assert (beside[:, 1::2] == -7.0).all()


def test_strided_inputs_are_read_right() -> None:
    """Transposed, sliced and broadcast activations give what their contiguous copies give."""
    case = make_case(6, 2, 4, 4, 40, dtype=torch.float32)
    wide = torch.randn(6, 120)
    for a1 in (wide[:, ::3], wide.t()[:40, :6].t(), wide[:1, :40].expand(6, 40)):
        for scheme in SCHEMES.values():
            found = batched_prepare_torch(a1, None, case.ids, case.placement, 6, scheme)
            expected = batched_prepare_torch(a1.contiguous(), None, case.ids, case.placement, 6, scheme)
            for expert, count in enumerate(expected[2].tolist()):
                assert torch.equal(found[0][expert, :count].float(), expected[0][expert, :count].float())


def to_device(case: Case) -> Case:
    """Move a case to where the Triton kernels run."""
    tables = [
        None if table is None else table.to(DEVICE)
        for table in (case.placement.global_to_physical, case.placement.expert_map)
    ]
    placement = case.placement._replace(global_to_physical=tables[0], expert_map=tables[1])
    return Case(case.a1.to(DEVICE), case.weights.to(DEVICE), case.ids.to(DEVICE), placement)


def assert_same_quantized(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal bits; within a step of fp8 (two at a power of two) in the interpreter."""
    found, expected = found.float().cpu(), expected.float().cpu()
    if INTERPRETED and not torch.equal(found, expected):
        assert ((found - expected).abs() <= expected.abs() / 2 + 1e-2).all()
        assert ((found - expected).abs() > 1e-6).float().mean() < 0.6
    else:
        assert torch.equal(found, expected)


@pytest.fixture(params=["one launch", "tallied"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of counting, on the same small cases: chunks of 4 tokens in the second."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    if request.param == "tallied":
        monkeypatch.setattr(_triton_rows, "MOST_COUNTED_IDS", 0)
        monkeypatch.setattr(_triton_rows, "_CHUNK", 4)


@needs_triton
@pytest.mark.gpu
@pytest.mark.usefixtures("counted")
@all_cases
def test_triton_routes_as_torch_does(case: Case) -> None:
    """Slots and counts are equal, and so is the count of slots."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    for found, expected in zip(
        _triton_rows.route(there.ids, there.placement, 40),
        route_torch(case.ids, case.placement, 40),
        strict=True,
    ):
        assert torch.equal(found.cpu(), expected)
    experts = case.placement.num_experts
    assert experts is not None
    found = _triton_rows.count_expert_num_tokens(there.ids, experts, None)
    assert torch.equal(found.cpu(), count_expert_num_tokens_torch(case.ids, experts, None))


@needs_triton
@pytest.mark.gpu
@pytest.mark.usefixtures("counted")
@all_schemes
@all_cases
def test_triton_prepares_as_torch_does(case: Case, scheme: QuantScheme) -> None:
    """Every row and scale has the bits of the torch twin, with router weights too where topk is 1."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    rows = len(case.a1) + 3
    scheme_there = scheme
    if scheme.static_scale is not None:
        scheme_there = scheme._replace(static_scale=scheme.static_scale.to(DEVICE))
    weights = case.weights if case.ids.size(1) == 1 else None
    expected = batched_prepare_torch(case.a1, weights, case.ids, case.placement, rows, scheme)
    found = _triton_rows.batched_prepare(
        there.a1, None if weights is None else there.weights, there.ids, there.placement, rows, scheme_there
    )
    assert torch.equal(found[2].cpu(), expected[2])
    assert found[0].shape == expected[0].shape
    for expert, count in enumerate(expected[2].tolist()):
        assert_same_quantized(found[0][expert, :count], expected[0][expert, :count])
        if expected[1] is not None:
            assert found[1].shape == expected[1].shape
            here = count if expected[1].size(1) > 1 else 1
            torch.testing.assert_close(
                found[1][expert, :here].cpu(), expected[1][expert, :here], rtol=0, atol=0
            )
    for ours, theirs in zip(there[:3], case[:3], strict=True):
        assert torch.equal(ours.cpu(), theirs)


@needs_triton
@pytest.mark.gpu
@all_schemes
@all_cases
@pytest.mark.parametrize("masked", [False, True])
def test_triton_quantizes_as_torch_does(case: Case, scheme: QuantScheme, masked: bool) -> None:
    """Plain quantization of rows has the bits of the torch twin, with rows masked out too."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    mask = torch.arange(len(case.a1)) % 3 != 1 if masked else None
    scheme_there = scheme
    if scheme.static_scale is not None:
        scheme_there = scheme._replace(static_scale=scheme.static_scale.to(DEVICE))
    expected = quantize_rows_torch(case.a1, scheme, mask)
    found = _triton_rows.quantize_rows(
        case.a1.to(DEVICE), scheme_there, None if mask is None else mask.to(DEVICE)
    )
    assert_same_quantized(found[0], expected[0])
    if expected[1] is not None:
        torch.testing.assert_close(found[1].cpu(), expected[1], rtol=0, atol=0)


@needs_triton
@pytest.mark.gpu
@pytest.mark.usefixtures("counted")
@all_cases
@pytest.mark.parametrize("weighted", [True, False])
def test_triton_finalizes_as_torch_does(case: Case, weighted: bool) -> None:
    """Sums agree to the rounding of the output's dtype, with poison in the padding."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    tokens, hidden = case.a1.shape
    batch = torch.full(
        (case.placement.num_local_experts, tokens + 2, hidden), float("nan"), dtype=case.a1.dtype
    )
    for expert, its_tokens in enumerate(rows_of(case)):
        batch[expert, : len(its_tokens)] = torch.randn(len(its_tokens), hidden).to(case.a1.dtype)
    expected = torch.empty(tokens, hidden, dtype=case.a1.dtype)
    batched_finalize_torch(expected, batch, case.weights if weighted else None, case.ids, case.placement)
    output = torch.full_like(expected, float("nan")).to(DEVICE)
    _triton_rows.batched_finalize(
        output, batch.to(DEVICE), there.weights if weighted else None, there.ids, there.placement
    )
    # bf16: a last bit here and there; the interpreter cuts bf16 off instead of rounding it.
    tolerance = {torch.float32: 1e-6, torch.float16: 5e-4}.get(case.a1.dtype, 5e-3 if INTERPRETED else 5e-4)
    assert relative_error(output, expected) <= tolerance


@needs_triton
@pytest.mark.gpu
@pytest.mark.usefixtures("counted")
@all_cases
def test_triton_permutes_and_combines_as_torch_does(case: Case) -> None:
    """Permuted rows, their scales, slots and counts are equal; so is the sum that brings them back."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    quantized, scale = quantize_rows_torch(case.a1, SCHEMES["fp8 block"])
    assert scale is not None
    expected = permute_tokens_torch(quantized, scale, case.ids, case.placement)
    found = _triton_rows.permute_tokens(quantized.to(DEVICE), scale.to(DEVICE), there.ids, there.placement)
    total = int(expected[3].sum())
    assert torch.equal(found[2].cpu(), expected[2])
    assert torch.equal(found[3].cpu(), expected[3])
    assert torch.equal(found[0][:total].float().cpu(), expected[0][:total].float())
    assert found[1] is not None
    assert expected[1] is not None
    assert torch.equal(found[1][:total].cpu(), expected[1][:total])
    rows = torch.randn(max(total, 1), case.a1.size(1))
    outputs = [torch.empty(case.a1.shape) for _ in range(2)]
    combine_rows_torch(outputs[0], rows, expected[2], case.weights)
    moved = outputs[1].to(DEVICE)
    _triton_rows.combine_rows(moved, rows.to(DEVICE), found[2], there.weights)
    assert relative_error(moved, outputs[0]) < 1e-6


@needs_triton
@pytest.mark.gpu
@all_cases
def test_triton_weights_and_reduces_as_torch_does(case: Case) -> None:
    """Rows of negative ids are left out, and the rest agrees to float32 rounding."""
    from vllm_moe.fused_moe.kernels import _triton_rows

    there = to_device(case)
    rows = torch.randn(*case.ids.shape, case.a1.size(1))
    rows[case.ids < 0] = float("nan")
    expected = torch.empty(case.a1.shape)
    weight_and_reduce_torch(expected, rows, case.weights, case.ids)
    output = torch.empty(case.a1.shape, device=DEVICE)
    _triton_rows.weight_and_reduce(output, rows.to(DEVICE), there.weights, there.ids)
    assert relative_error(output, expected) < 1e-6


cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@cuda_only
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [33, 1500])
@pytest.mark.parametrize("scheme", ["none", "fp8 dynamic", "fp8 block"])
def test_kernels_replay_from_a_graph_with_other_inputs(tokens: int, scheme: str) -> None:
    """Captured once without waiting for the host, a replay with new tokens and ids equals an eager call."""
    placement = ExpertPlacement(4, 2, None, None, 8)
    quantization = SCHEMES[scheme]
    inputs = [make_case(tokens, 4, 8, 4, 256, seed=seed, ids_dtype=torch.int32) for seed in (1, 2)]
    a1, weights, ids = (inputs[0][place].cuda() for place in range(3))
    output = torch.empty_like(a1)

    def both() -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        batch, scale, counts = batched_prepare(a1, None, ids, placement, tokens, quantization)
        rows = batch if scheme == "none" else torch.ones_like(batch, dtype=torch.bfloat16)
        batched_finalize(output, rows, weights, ids, placement)
        return batch, scale, counts

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch, scale, counts = both()
    for place, tensor in enumerate((a1, weights, ids)):
        tensor.copy_(inputs[1][place])
    graph.replay()
    replayed, replayed_counts = output.clone(), counts.clone()
    rows = [(batch[e, :n].clone(), n) for e, n in enumerate(counts.tolist())]
    eager_batch, eager_scale, eager_counts = both()
    assert torch.equal(replayed_counts, eager_counts)
    assert torch.equal(replayed, output)
    for expert, (row, count) in enumerate(rows):
        assert torch.equal(row.float(), eager_batch[expert, :count].float())
        if scale is not None and eager_scale is not None:
            here = count if scale.size(1) > 1 else 1
            assert torch.equal(scale[expert, :here], eager_scale[expert, :here])


@cuda_only
@pytest.mark.gpu
def test_kernels_never_wait_for_the_host() -> None:
    """PyTorch's own check of synchronizing calls stays silent through every kernel."""
    case = to_device(make_case(1500, 4, 8, 4, 256, tables="physical map"))
    with warnings.catch_warnings():
        # That the mode is a prototype is a warning of its own, each time.
        warnings.simplefilter("ignore")
        try:
            torch.cuda.set_sync_debug_mode("error")
            for scheme in SCHEMES.values():
                if scheme.static_scale is None:
                    batched_prepare(case.a1, None, case.ids, case.placement, 1500, scheme)
                    quantize_rows(case.a1, scheme)
            slots, _ = route(case.ids, case.placement, 1500)
            permuted, _, slots, _ = permute_tokens(case.a1, None, case.ids, case.placement)
            combine_rows(torch.empty_like(case.a1), permuted, slots, case.weights)
            count_expert_num_tokens(case.ids, 8, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@cuda_only
@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [3, 3000])
def test_ids_out_of_range_stop_the_kernel(tokens: int) -> None:
    """An id that is no expert's traps on the device, with a message, rather than being dropped."""
    program = f"""
import torch
from vllm_moe.fused_moe.kernels import ExpertPlacement, QuantKind, QuantScheme, batched_prepare
ids = torch.zeros({tokens}, 2, dtype=torch.int32, device="cuda")
ids[-1, 1] = 8
a1 = torch.randn({tokens}, 64, device="cuda")
unquantized = QuantScheme(QuantKind.NONE, None, 0, None)
batched_prepare(a1, None, ids, ExpertPlacement(4, 0, None, None, 8), {tokens}, unquantized)
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "topk_ids holds an id outside -1 (no expert) to num_experts - 1" in done.stderr


@cuda_only
@pytest.mark.gpu
def test_rows_beyond_two_to_the_31_elements() -> None:
    """The last rows of a batch of more than 2^31 elements are written and read where they belong."""
    tokens, hidden, experts = 70_000, 1024, 40
    a1 = torch.randn(tokens, hidden, device="cuda").bfloat16()
    ids = (torch.arange(tokens, device="cuda") % 2 * (experts - 1))[:, None].contiguous()
    placement = ExpertPlacement(experts, 0, None, None, experts)
    batch, _, counts = batched_prepare(a1, None, ids, placement, tokens, SCHEMES["none"])
    assert batch.numel() > 2**31
    assert counts.tolist() == [tokens // 2, *[0] * (experts - 2), tokens // 2]
    assert torch.equal(batch[-1, : tokens // 2], a1[1::2])
    assert torch.equal(batch[0, : tokens // 2], a1[::2])
    output = torch.full_like(a1, float("nan"))
    batched_finalize(output, batch, None, ids, placement)
    assert torch.equal(output, a1)


@cuda_only
@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["none", "fp8 dynamic", "fp8 block", "int8 token"])
def test_five_calls_give_the_same_bits(scheme: str) -> None:
    """Nothing depends on which program ran first."""
    case = to_device(make_case(3000, 8, 32, 32, 512))
    results = []
    for _ in range(5):
        batch, scale, counts = batched_prepare(case.a1, None, case.ids, case.placement, 3000, SCHEMES[scheme])
        rows = torch.cat([batch[e, :n].flatten() for e, n in enumerate(counts.tolist())]).float()
        real = (
            []
            if scale is None
            else [scale[e, : n if scale.size(1) > 1 else 1].flatten() for e, n in enumerate(counts)]
        )
        output = torch.empty_like(case.a1)
        batched_finalize(output, batch.bfloat16(), case.weights, case.ids, case.placement)
        results.append((rows, torch.cat(real) if real else rows, output))
    for again in results[1:]:
        for first, other in zip(results[0], again, strict=True):
            assert torch.equal(first, other)
