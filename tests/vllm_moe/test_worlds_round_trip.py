"""Every dispatching backend, every quantization, worlds of 1, 2 and 4 ranks, against the dense reference."""

from dataclasses import replace

import pytest
import torch

from tests.vllm_moe import dispatch_cases as cases
from tests.vllm_moe.dispatch_cases import BACKENDS, LOW_LATENCY, QUANTIZATIONS, ROUTINGS, Case
from vllm_moe.transports import EpGroup

WORLDS = (1, 2, 4)
ASYNC_BACKENDS = ("deepep_high_throughput", *LOW_LATENCY)

backends = pytest.mark.parametrize("backend", BACKENDS)
sizes = pytest.mark.parametrize("size", WORLDS)


def assert_right(errors) -> None:
    assert max(errors) <= 1.0, f"errors in units of what is allowed: {errors}"


@sizes
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@backends
def test_round_trip_equals_the_dense_reference(world, backend, quantization, size):
    """Prepare, experts and finalize give the dense result.

    With uneven tokens (one rank has none), repeated experts in a row, -1 ids with NaN activations and
    weights, and skew; arguments stay as they were; counts are right.
    """
    for routing in ROUTINGS:
        assert_right(world(size).run(cases.round_trip, Case(backend, quantization, routing)))


@pytest.mark.parametrize("topk", [1, 3, 5, 6, 8])
@backends
def test_any_topk_works(world, backend, topk):
    """A topk for which a vendor has no kernel is carried all the same."""
    assert_right(world(2).run(cases.round_trip, Case(backend, "fp8_token", topk=topk)))


@pytest.mark.parametrize("quantization", ["none", "fp8_token", "fp8_block"])
@sizes
@backends
def test_the_router_weight_can_go_on_the_input(world, backend, size, quantization):
    """With topk 1 the weight is applied to the input, once, and the caller's tensors stay as they were."""
    case = Case(backend, quantization, "holes", topk=1, weight_on_input=True)
    assert_right(world(size).run(cases.round_trip, case))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in LOW_LATENCY])
def test_deferred_quantization_is_left_to_the_experts(world, backend):
    """With defer_input_quant activations arrive unquantized and without a scale."""
    assert_right(world(2).run(cases.round_trip, Case(backend, "fp8_token", defer_input_quant=True)))


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("allgather_reducescatter", torch.float16),
        ("allgather_reducescatter", torch.float32),
        ("flashinfer_nvlink_one_sided", torch.float16),
        ("flashinfer_nvlink_two_sided", torch.float16),
        ("flashinfer_nvlink_two_sided", torch.float32),
        ("mori", torch.float32),
    ],
)
def test_other_dtypes_that_the_transport_carries(world, backend, dtype):
    """fp16 and float32 activations keep their precision where the vendor carries them."""
    assert_right(world(2).run(cases.round_trip, Case(backend, dtype=dtype)))


@sizes
@backends
def test_a_world_without_tokens(world, backend, size):
    """When no rank has a token, or one has a single one, every rank still joins."""
    for tokens in [(0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0)]:
        assert_right(world(size).run(cases.round_trip, Case(backend, "fp8_tensor", tokens=tokens)))


@backends
def test_rows_without_any_expert(world, backend):
    """A rank whose slots are all -1 gets zeros, and the others their results."""
    assert_right(world(2).run(only_first_rank_routes, Case(backend)))


def only_first_rank_routes(group: EpGroup, case: Case) -> float:
    trip = cases.RoundTrip(group, cases.build(group, case), case)
    if group.rank:
        trip.ids.fill_(-1)
        trip.a1.fill_(torch.nan)
    prepared = trip.pf.prepare(*trip.prepare_arguments())
    trip.dispatched = (trip.ids, trip.weights) if prepared[3] is None else (prepared[3], prepared[4])
    trip.fused = cases.run_experts(case, trip.pf, group, prepared, trip.dispatched[0])
    trip.pf.finalize(*trip.finalize_arguments())
    if group.rank:
        assert torch.equal(trip.output, torch.zeros_like(trip.output))
        return 0.0
    return trip.error()


@pytest.mark.parametrize("quantization", ["none", "fp8_block"])
@backends
def test_repeated_calls_do_not_disturb_each_other(world, backend, quantization):
    """4, 1, 7, 0 and 4 tokens through one backend object: each output is still right after the next call."""
    first = Case(backend, quantization)
    many = [replace(first, tokens=(n, 4, 8 - n, 1), seed=n) for n in (4, 1, 7, 0, 4)]
    for errors in world(4).run(cases.round_trips, many):
        assert_right(errors)


@pytest.mark.parametrize(
    "backend", [name for name in BACKENDS if name not in {"flashinfer_nvlink_one_sided", "mori"}]
)
@pytest.mark.parametrize("order", ["p0 p1 f0 f1", "p0 p1 f1 f0"])
def test_two_micro_batches_keep_their_own_handles(world, backend, order):
    """Two micro-batches of different sizes are prepared before either is finalized, in either order."""
    for errors in world(2).run(cases.micro_batches, Case(backend, "fp8_token"), order):
        assert_right(errors)


@pytest.mark.parametrize("quantization", ["none", "fp8_block", "int8_token"])
@sizes
@pytest.mark.parametrize("backend", ASYNC_BACKENDS)
def test_sends_of_two_micro_batches_overlap(world, backend, size, quantization):
    """Both sends go out before either is received; no output is final before its receiver."""
    for errors in world(size).run(cases.interleaved, Case(backend, quantization)):
        assert_right(errors)


@sizes
@backends
def test_combine_uses_the_routing_that_prepare_was_given(world, backend, size):
    """The caller reuses its ids, and the driver passes finalize the dispatched ones."""
    assert_right(world(size).run(cases.caller_overwrites_routing, Case(backend, "fp8_token", "duplicates")))


@pytest.mark.parametrize("quantization", ["none", "fp8_token"])
@backends
def test_strided_activations_and_output(world, backend, quantization):
    """Activations and output may be strided; between the output's elements nothing is written."""
    assert_right(world(2).run(cases.strided_arguments, Case(backend, quantization)))


@pytest.mark.parametrize("quantization", ["none", "fp8_tensor"])
@backends
def test_equal_calls_give_equal_bits(world, backend, quantization):
    """The same call twice gives the same bits."""
    assert world(4).run(cases.twice, Case(backend, quantization, "duplicates", topk=4)) == [True] * 4


def wrong(group: EpGroup, case: Case, how: str) -> float:
    """Run a round trip with one thing wrong."""
    trip = cases.RoundTrip(group, cases.build(group, case), case)
    if how == "weights swapped":
        trip.weights = trip.weights.flip(1).contiguous()
    if how == "ids off by one":
        trip.ids = (trip.ids + 1) % case.num_experts
    if how == "a slot lost":
        trip.ids[-1:, -1] = -1
    if how == "rows shifted":
        trip.a1 = trip.a1.roll(1, dims=1)
    prepared = trip.pf.prepare(*trip.prepare_arguments())
    if how == "scale off by an eighth":
        prepared = (prepared[0], prepared[1] * 1.125, *prepared[2:])
    trip.dispatched = (trip.ids, trip.weights) if prepared[3] is None else (prepared[3], prepared[4])
    trip.fused = cases.run_experts(case, trip.pf, group, prepared, trip.dispatched[0])
    trip.pf.finalize(*trip.finalize_arguments())
    if how == "all zeros":
        trip.output.zero_()
    if how == "added twice":
        trip.output *= 2
    return trip.error()


@pytest.mark.parametrize(
    "how",
    [
        "weights swapped",
        "ids off by one",
        "a slot lost",
        "rows shifted",
        "scale off by an eighth",
        "all zeros",
        "added twice",
    ],
)
@pytest.mark.parametrize("quantization", ["fp8_token", "fp8_block", "int8_token"])
def test_the_tolerance_rejects_a_wrong_result(world, quantization, how):
    """What these tests allow is less than what any of these mistakes does, on every rank that has tokens."""
    case = Case("allgather_reducescatter", quantization, tokens=(5, 3, 8, 3))
    assert min(world(2).run(wrong, case, how)) > 1.0


def test_a_right_result_is_not_rejected(world):
    """The same helper without a mistake passes."""
    assert_right(world(2).run(wrong, Case("allgather_reducescatter", "fp8_token"), "nothing"))
