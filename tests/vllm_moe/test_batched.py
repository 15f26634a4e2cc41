"""BatchedPrepareAndFinalize, seen through its interface."""

from collections.abc import Callable

import pytest
import torch

import vllm_moe.fused_moe.modular_kernel as mk
from tests.vllm_moe.reference import combine, relative_error
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize import BatchedPrepareAndFinalize
from vllm_moe.fused_moe.topk_weight_and_reduce import (
    TopKWeightAndReduceDelegate,
    TopKWeightAndReduceNaiveBatched,
)

UNQUANTIZED = FusedMoEQuantConfig.make()
QUANTIZATIONS = {
    "none": UNQUANTIZED,
    "fp8 static": FusedMoEQuantConfig.make(FP8_DTYPE, a1_scale=torch.tensor([0.01])),
    "fp8 dynamic": FusedMoEQuantConfig.make(FP8_DTYPE),
    "fp8 token": FusedMoEQuantConfig.make(FP8_DTYPE, per_act_token_quant=True),
    "fp8 block": FusedMoEQuantConfig.make(FP8_DTYPE, block_shape=[128, 128]),
    "int8 token": FusedMoEQuantConfig.make(torch.int8, per_act_token_quant=True),
}
HIDDEN = 160


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(3)


def factors(experts: list[int]) -> torch.Tensor:
    """Give experts that multiply by a distinct factor each."""
    return torch.tensor([1.0 + 0.37 * expert for expert in experts]).view(-1, 1, 1)


def round_trip(
    pf: BatchedPrepareAndFinalize,
    experts: list[int],
    a1: torch.Tensor,
    weights: torch.Tensor,
    ids: torch.Tensor,
    num_experts: int,
    expert_map: torch.Tensor | None = None,
) -> torch.Tensor:
    """Prepare, multiply by each expert's factor, finalize; padding is poisoned on the way."""
    batch, scale, meta, none_ids, none_weights = pf.prepare(
        a1, weights, ids, num_experts, expert_map, False, UNQUANTIZED
    )
    assert scale is None
    assert none_ids is None
    assert none_weights is None
    assert meta is not None
    result = batch * factors(experts)
    result[torch.arange(batch.size(1)) >= meta.expert_num_tokens[:, None]] = float("nan")
    output = torch.full_like(a1, float("nan"))
    pf.finalize(output, result, weights, ids, False, TopKWeightAndReduceDelegate())
    return output


def expected_output(
    a1: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, physical: Callable[[int], int] = int
) -> torch.Tensor:
    """Compute the same for all experts, slot by slot in float64."""
    return combine(
        lambda token, k: (
            None if ids[token, k] < 0 else a1[token].double() * (1.0 + 0.37 * physical(int(ids[token, k])))
        ),
        ids,
        weights,
        a1.size(1),
    )


def tokens(count: int, topk: int, experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, weights, and ids with -1 and repeats."""
    return torch.randn(count, HIDDEN), torch.rand(count, topk), torch.randint(-1, experts, (count, topk))


def test_it_says_what_it_is() -> None:
    """Format, limits and dispatchers are those it was built with; it neither reduces nor is asynchronous."""
    pf = BatchedPrepareAndFinalize(max_num_tokens=7, num_local_experts=3, num_dispatchers=2, rank=1)
    assert pf.activation_format is mk.FusedMoEActivationFormat.BatchedExperts
    assert pf.max_num_tokens_per_rank() == 7
    assert pf.num_dispatchers() == 2
    assert pf.topk_indices_dtype() is None
    assert not pf.output_is_reduced()
    assert not pf.supports_async()


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("topk", [1, 2, 5, 8])
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64, torch.int16])
def test_ranks_add_up(world: int, topk: int, ids_dtype: torch.dtype) -> None:
    """The sum over ranks is what all experts together give; each rank's counts are its own experts'."""
    experts = 8
    a1, weights, ids = tokens(21, topk, experts)
    ids = ids.to(ids_dtype)
    local = experts // world
    total = torch.zeros_like(a1)
    for rank in range(world):
        mine = list(range(rank * local, (rank + 1) * local))
        pf = BatchedPrepareAndFinalize(21, local, world, rank)
        batch, _, meta, _, _ = pf.prepare(a1, weights, ids, experts, None, False, UNQUANTIZED)
        assert batch.shape == (local, 21 * world, HIDDEN)
        assert meta is not None
        counts = meta.expert_num_tokens
        assert counts.dtype == torch.int32
        assert counts.tolist() == [int((ids == expert).any(1).sum()) for expert in mine]
        total += round_trip(pf, mine, a1, weights, ids, experts)
    assert relative_error(total, expected_output(a1, weights, ids)) < 1e-6


def test_linear_round_robin_and_redundant_placements_agree() -> None:
    """The same tokens give the same sum, wherever experts live and whichever copy of one is used."""
    a1, weights, ids = tokens(18, 3, 6)
    expected = expected_output(a1, weights, ids)
    linear, round_robin, redundant = (torch.zeros_like(a1) for _ in range(3))
    # Eight physical experts for six logical ones: 6 and 7 are copies of 0 and 3, of which the copy is used.
    to_physical = torch.tensor([6, 1, 2, 7, 4, 5], dtype=torch.int32)
    logical = [0, 1, 2, 3, 4, 5, 0, 3]
    for rank in range(2):
        mine = [rank * 3 + i for i in range(3)]
        linear += round_trip(BatchedPrepareAndFinalize(18, 3, 1, rank), mine, a1, weights, ids, 6)
        dealt = [rank, rank + 2, rank + 4]
        expert_map = torch.full((6,), -1)
        expert_map[dealt] = torch.arange(3)
        pf = BatchedPrepareAndFinalize(18, 3, 1, rank)
        round_robin += round_trip(pf, dealt, a1, weights, ids, 6, expert_map)
        physical = [rank * 4 + i for i in range(4)]
        pf = BatchedPrepareAndFinalize(18, 4, 1, rank, global_to_physical=to_physical)
        redundant += round_trip(pf, [logical[one] for one in physical], a1, weights, ids, 6)
    for found in (linear, round_robin, redundant):
        assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize("name", QUANTIZATIONS)
@pytest.mark.parametrize("flag", [False, True])
def test_nothing_that_is_passed_in_is_written(name: str, flag: bool) -> None:
    """Neither values nor versions of any argument change, and a second call gives the same."""
    quant_config = QUANTIZATIONS[name]
    a1, weights, ids = tokens(9, 1, 4)
    expert_map = torch.arange(4)
    watched = [a1, weights, ids, expert_map]
    if quant_config.a1_scale is not None:
        watched.append(quant_config.a1_scale)
    pf = BatchedPrepareAndFinalize(9, 4, 1, 0)
    expert_output = torch.randn(4, 9, HIDDEN)
    outputs, batches = [], []
    watched.append(expert_output)
    before = [(tensor.clone(), tensor._version) for tensor in watched]
    for _ in range(2):
        batch, _, meta, _, _ = pf.prepare(a1, weights, ids, 4, expert_map, flag, quant_config)
        assert meta is not None
        real = [batch[e, :n].float() for e, n in enumerate(meta.expert_num_tokens.tolist())]
        batches.append(torch.cat(real))
        output = torch.empty_like(a1)
        pf.finalize(output, expert_output, weights, ids, flag, TopKWeightAndReduceDelegate())
        outputs.append(output)
    for tensor, (old, version) in zip(watched, before, strict=True):
        assert torch.equal(tensor, old)
        assert tensor._version == version
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(batches[0], batches[1])


def test_router_weights_are_applied_exactly_once() -> None:
    """With the flag prepare applies them and finalize does not; without it, the other way round."""
    a1, weights, ids = tokens(9, 1, 4)
    ids = ids.clamp(min=0)
    pf = BatchedPrepareAndFinalize(9, 4, 1, 0)
    expected = a1.double() * weights.double()
    for flag in (False, True):
        batch, _, _, _, _ = pf.prepare(a1, weights, ids, 4, None, flag, UNQUANTIZED)
        output = torch.empty_like(a1)
        pf.finalize(output, batch, weights, ids, flag, TopKWeightAndReduceDelegate())
        assert relative_error(output, expected) < 1e-6


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_quantization_may_be_deferred(name: str) -> None:
    """Deferred, the rows come as they are and without scales, whatever the quantization."""
    a1, weights, ids = tokens(6, 2, 4)
    pf = BatchedPrepareAndFinalize(6, 4, 1, 0)
    found = pf.prepare(a1, weights, ids, 4, None, False, QUANTIZATIONS[name], defer_input_quant=True)
    assert found[0].dtype == a1.dtype
    assert found[1] is None
    assert found[2] is not None
    for expert, count in enumerate(found[2].expert_num_tokens.tolist()):
        assert torch.equal(found[0][expert, :count], a1[(ids == expert).any(1)])


def test_results_stay_what_they_were_when_the_next_call_comes() -> None:
    """Calls with 4, 1, 7, 0 and 4 tokens: each result is untouched by the calls after it."""
    pf = BatchedPrepareAndFinalize(7, 4, 1, 0)
    kept = []
    for count in (4, 1, 7, 0, 4):
        a1, weights, ids = tokens(count, 2, 4)
        batch, _, meta, _, _ = pf.prepare(a1, weights, ids, 4, None, False, UNQUANTIZED)
        assert meta is not None
        output = torch.empty_like(a1)
        pf.finalize(output, batch, weights, ids, False, TopKWeightAndReduceDelegate())
        real = torch.cat([batch[e, :n] for e, n in enumerate(meta.expert_num_tokens.tolist())])
        kept.append((batch, meta.expert_num_tokens, output, real.clone(), output.clone()))
    for batch, counts, output, old_real, old_output in kept:
        assert torch.equal(torch.cat([batch[e, :n] for e, n in enumerate(counts.tolist())]), old_real)
        assert torch.equal(output, old_output)


def test_every_token_on_one_expert_fills_it_to_the_capacity() -> None:
    """At the capacity, odd as it is, everything arrives, though every token names one expert twice."""
    a1, weights, _ = tokens(13, 2, 4)
    ids = torch.full((13, 2), 2)
    pf = BatchedPrepareAndFinalize(13, 4, 1, 0)
    output = round_trip(pf, [0, 1, 2, 3], a1, weights, ids, 4)
    assert relative_error(output, expected_output(a1, weights, ids)) < 1e-6


def test_calls_that_cannot_be_right_are_refused() -> None:
    """Each refusal says what was found, expected and is to be done, also after calls that were right."""
    a1, weights, ids = tokens(5, 2, 4)
    many = tokens(6, 2, 4)
    pf = BatchedPrepareAndFinalize(5, 4, 1, 0)
    second = BatchedPrepareAndFinalize(5, 4, 1, 1)
    mapped = BatchedPrepareAndFinalize(5, 4, 1, 0, global_to_physical=torch.arange(5))
    pf.prepare(a1, weights, ids, 4, None, False, UNQUANTIZED)
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: pf.prepare(*many, 4, None, False, UNQUANTIZED),
            (
                "BatchedPrepareAndFinalize: 6 tokens, expected at most max_num_tokens, 5. Pass fewer, or "
                "build it with a larger max_num_tokens."
            ),
        ),
        (
            lambda: pf.prepare(a1, weights, ids, 4, torch.arange(3), False, UNQUANTIZED),
            "BatchedPrepareAndFinalize: expert_map has 3 entries, expected num_experts, 4.",
        ),
        (
            lambda: mapped.prepare(a1, weights, ids, 4, None, False, UNQUANTIZED),
            "BatchedPrepareAndFinalize: global_to_physical has 5 entries, expected num_experts, 4.",
        ),
        (
            lambda: second.prepare(a1, weights, ids, 4, None, False, UNQUANTIZED),
            (
                "BatchedPrepareAndFinalize: rank 1 with 4 local experts ends at expert 7, but num_experts "
                "is 4. Correct one of them, or pass an expert_map."
            ),
        ),
        (
            lambda: pf.prepare(a1, weights, ids, 4, None, True, UNQUANTIZED),
            (
                "batched_prepare: router weights (5, 2) for topk_ids (5, 2): weights can be applied to "
                "the input only with topk 1, expected [tokens, 1] for both."
            ),
        ),
        (
            lambda: pf.prepare(a1, weights[:, :1], ids, 4, None, False, UNQUANTIZED),
            (
                "BatchedPrepareAndFinalize.prepare: a1 is (5, 160), topk_weights (5, 1) and topk_ids (5, "
                "2), expected [tokens, hidden] and twice [tokens, topk]."
            ),
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message
    with pytest.raises(TypeError) as caught_type:
        pf.prepare(a1, weights, ids.float(), 4, None, False, UNQUANTIZED)
    assert str(caught_type.value) == (
        "BatchedPrepareAndFinalize.prepare: topk_ids is torch.float32, expected an integer dtype."
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1, 1, 0), "BatchedPrepareAndFinalize: max_num_tokens is 0, expected at least 1."),
        ((1, 0, 1, 0), "BatchedPrepareAndFinalize: num_local_experts is 0, expected at least 1."),
        ((1, 1, 0, 0), "BatchedPrepareAndFinalize: num_dispatchers is 0, expected at least 1."),
        ((1, 1, 1, -1), "BatchedPrepareAndFinalize: rank is -1, expected at least 0."),
    ],
)
def test_sizes_have_to_be_positive(sizes: tuple[int, int, int, int], message: str) -> None:
    """A backend of no size is refused when it is built."""
    with pytest.raises(ValueError) as caught:
        BatchedPrepareAndFinalize(*sizes)
    assert str(caught.value) == message


def test_explicit_reduction_gives_what_delegation_gives() -> None:
    """NaiveBatched with the backend's rank, and leaving the choice to the backend, are the same sum."""
    a1, weights, ids = tokens(8, 2, 8)
    pf = BatchedPrepareAndFinalize(8, 4, 1, 1)
    batch, _, _, _, _ = pf.prepare(a1, weights, ids, 8, None, False, UNQUANTIZED)
    outputs = [torch.empty_like(a1) for _ in range(2)]
    pf.finalize(outputs[0], batch, weights, ids, False, TopKWeightAndReduceDelegate())
    pf.finalize(outputs[1], batch, weights, ids, False, TopKWeightAndReduceNaiveBatched(1))
    assert torch.equal(outputs[0], outputs[1])


def test_more_than_65535_tokens() -> None:
    """Grids and positions do not end at 16 bits."""
    count = 70_001
    a1 = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 8)
    ids = torch.ones(count, 1, dtype=torch.int64)
    weights = torch.ones(count, 1)
    pf = BatchedPrepareAndFinalize(count, 2, 1, 0)
    batch, _, meta, _, _ = pf.prepare(a1, weights, ids, 2, None, False, UNQUANTIZED)
    assert meta is not None
    assert meta.expert_num_tokens.tolist() == [0, count]
    assert torch.equal(batch[1], a1)
    output = torch.empty_like(a1)
    pf.finalize(output, batch, weights, ids, False, TopKWeightAndReduceDelegate())
    assert torch.equal(output, a1)
