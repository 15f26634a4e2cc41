"""The weight-and-reduce implementations."""

import pytest
import torch

import vllm_moe.fused_moe.modular_kernel as mk
from tests.vllm_moe.reference import combine, relative_error
from vllm_moe.fused_moe.kernels import ExpertPlacement, route_torch
from vllm_moe.fused_moe.topk_weight_and_reduce import (
    TopKWeightAndReduceContiguous,
    TopKWeightAndReduceDelegate,
    TopKWeightAndReduceNaiveBatched,
    TopKWeightAndReduceNoOP,
)

TOKENS, TOPK, HIDDEN, EXPERTS = 9, 3, 24, 4


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(9)


def case(name: str) -> tuple[mk.TopKWeightAndReduce, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give an implementation, what experts wrote for it, weights, ids, and the row of each slot."""
    ids = torch.randint(-1, EXPERTS, (TOKENS, TOPK))
    weights = torch.rand(TOKENS, TOPK)
    rows = torch.randn(TOKENS, TOPK, HIDDEN)
    if name == "contiguous":
        return TopKWeightAndReduceContiguous(), rows, weights, ids, rows
    if name == "flat":
        return TopKWeightAndReduceContiguous(), rows.flatten(0, 1), weights, ids, rows
    # Slots of one token at one expert share a row.
    slots, _ = route_torch(ids, ExpertPlacement(EXPERTS, 0, None, None, EXPERTS), TOKENS + 1)
    batch = torch.full((EXPERTS * (TOKENS + 1), HIDDEN), float("nan"))
    for token in range(TOKENS):
        for k in range(TOPK):
            if slots[token, k] >= 0:
                batch[slots[token, k]] = rows[token, k]
    rows = batch[slots.clamp(min=0).long()]
    return TopKWeightAndReduceNaiveBatched(0), batch.view(EXPERTS, TOKENS + 1, HIDDEN), weights, ids, rows


@pytest.mark.parametrize("name", ["contiguous", "flat", "batched"])
@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_rows_are_weighted_once_and_nothing_else_is_written(name: str, flag: bool, given: bool) -> None:
    """With or without an output, twice: the sum is right, and arguments keep values and versions."""
    reduce, fused, weights, ids, rows = case(name)
    expected = combine(
        lambda token, k: None if ids[token, k] < 0 else rows[token, k], ids, None if flag else weights, HIDDEN
    )
    before = [(tensor.clone(), tensor._version) for tensor in (fused, weights, ids)]
    for _ in range(2):
        output = torch.full((TOKENS, HIDDEN), float("nan")) if given else None
        found = reduce.apply(output, fused, weights, ids, flag)
        assert not given or found is output
        assert relative_error(found, expected) < 1e-6
    for tensor, (old, version) in zip((fused, weights, ids), before, strict=True):
        assert torch.equal(tensor.nan_to_num(7.0), old.nan_to_num(7.0))
        assert tensor._version == version


@pytest.mark.parametrize("name", ["contiguous", "batched"])
@pytest.mark.parametrize("offset", [0, 5])
def test_the_output_may_lie_in_the_experts_output(name: str, offset: int) -> None:
    """An output that shares memory with what the experts wrote is the same sum."""
    reduce, fused, weights, ids, _ = case(name)
    expected = reduce.apply(None, fused, weights, ids, False)
    store = torch.cat([fused.flatten(), torch.zeros(offset)])
    shared = store[: fused.numel()].view(fused.shape)
    output = store[offset : offset + TOKENS * HIDDEN].view(TOKENS, HIDDEN)
    assert torch.equal(reduce.apply(output, shared, weights, ids, False), expected)


def test_reduced_outputs_are_copied_or_given_back() -> None:
    """NoOP gives its argument back, copies it to an output, and copes with outputs that are or overlap it."""
    reduce = TopKWeightAndReduceNoOP()
    weights, ids = torch.rand(4, 1), torch.zeros(4, 1, dtype=torch.int64)
    store = torch.randn(60)
    fused = store[:40].view(4, 10)
    expected = fused.clone()
    assert reduce.apply(None, fused, weights, ids, False) is fused
    assert torch.equal(reduce.apply(torch.empty(4, 10), fused, weights, ids, False), expected)
    assert reduce.apply(fused, fused, weights, ids, False) is fused
    assert torch.equal(fused, expected)
    overlapping = store[7:47].view(4, 10)
    assert torch.equal(reduce.apply(overlapping, fused, weights, ids, False), expected)
    with pytest.raises(ValueError) as caught:
        reduce.apply(torch.empty(3, 10), fused, weights, ids, False)
    assert str(caught.value) == (
        "TopKWeightAndReduceNoOP: output is (3, 10), expected the experts' (4, 10), which should be "
        "weighted and reduced already."
    )


def test_delegation_has_to_be_resolved_first() -> None:
    """The delegate itself reduces nothing, and says who should have chosen."""
    with pytest.raises(RuntimeError) as caught:
        TopKWeightAndReduceDelegate().apply(None, torch.empty(1), torch.empty(1), torch.empty(1), False)
    assert str(caught.value) == (
        "TopKWeightAndReduceDelegate leaves the choice to the prepare/finalize: replace it by the "
        "implementation that fits the activation format before calling apply."
    )


def test_implementations_compare_by_what_they_do() -> None:
    """Two of a kind are equal; batched ones only with the same rank and tables."""
    kinds = (TopKWeightAndReduceDelegate, TopKWeightAndReduceNoOP, TopKWeightAndReduceContiguous)
    for kind in kinds:
        assert kind() == kind()
        assert hash(kind()) == hash(kind())
        assert all(kind() != other() for other in kinds if other is not kind)
    table = torch.arange(4)
    assert TopKWeightAndReduceNaiveBatched(1) == TopKWeightAndReduceNaiveBatched(1)
    assert TopKWeightAndReduceNaiveBatched(1) != TopKWeightAndReduceNaiveBatched(2)
    assert TopKWeightAndReduceNaiveBatched(1, table) == TopKWeightAndReduceNaiveBatched(1, table)
    assert TopKWeightAndReduceNaiveBatched(1, table) != TopKWeightAndReduceNaiveBatched(1)
