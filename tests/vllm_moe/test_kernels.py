"""Each torch kernel against plain loops."""

import pytest
import torch

from tests.vllm_moe.kernel_cases import (
    SCHEMES,
    Case,
    all_cases,
    all_schemes,
    local_of,
    make_case,
    rows_of,
)
from tests.vllm_moe.reference import (
    combine,
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
    combine_rows_torch,
    count_expert_num_tokens_torch,
    dequantize,
    permute_tokens_torch,
    quantize_rows_torch,
    route_torch,
    weight_and_reduce,
    weight_and_reduce_torch,
)

POISONS = (float("nan"), float("inf"), 1e30)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(7)


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


@pytest.mark.parametrize("offset", [0, 1, 4, 8])
@pytest.mark.parametrize("hidden", [1, 4, 8, 36])
def test_rows_are_copied_bit_for_bit_at_any_address(hidden: int, offset: int) -> None:
    """Every pattern of bits arrives, payloads of NaN included, wherever the tokens start in memory."""
    case = make_case(11, 3, 4, 4, hidden)
    bits = torch.randint(-(2**15), 2**15, (offset + 11 * hidden,), dtype=torch.int16)
    a1 = bits.view(torch.bfloat16)[offset:].view(11, hidden)
    batch, _, _ = batched_prepare_torch(a1, None, case.ids, case.placement, 11, SCHEMES["none"])
    for expert, tokens in enumerate(rows_of(case)):
        found = batch.view(torch.int16)[expert, : len(tokens)]
        assert torch.equal(found, bits[offset:].view(11, hidden)[tokens])


def test_bfloat16_rows_are_added_up_in_float32() -> None:
    """Sums that cancel keep what bfloat16 weights or sums would lose; an infinite weight gives infinity."""
    rows = torch.tensor([256.0, -256.0, 1.0]).bfloat16()[:, None].expand(3, 8).contiguous()
    ids = torch.tensor([[0, 1, 2]])
    output = torch.empty(1, 8, dtype=torch.bfloat16)
    weights = torch.tensor([[0.3001, 0.3, 0.001]])
    weight_and_reduce_torch(output, rows, weights, ids)
    assert (output.float() - (256 * 0.0001 + 0.001)).abs().max() < 1e-3
    assert (256 * (weights[0, 0].bfloat16() - weights[0, 1].bfloat16())).abs() < 1e-3, "a sum that tells"
    weight_and_reduce_torch(output, rows, torch.tensor([[float("inf"), 0.3, 0.001]]), ids)
    assert (output == float("inf")).all()


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
