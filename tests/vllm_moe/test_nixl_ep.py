"""The two low-latency backends, NIXL EP and DeepEP: tables, limits, and what they refuse."""

from dataclasses import replace

import pytest
import torch

from tests.vllm_moe import dispatch_cases as cases
from tests.vllm_moe.dispatch_cases import LOW_LATENCY, Case, RoundTrip, factors, inputs
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize.deepep_ll import DEEPEP_QUANT_BLOCK_SHAPE, DeepEPLLPrepareAndFinalize
from vllm_moe.fused_moe.prepare_finalize.nixl_ep import NIXL_EP_QUANT_BLOCK_SHAPE, NixlEPPrepareAndFinalize
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate, TopKWeightAndReduceNoOP
from vllm_moe.transports import EpGroup, TorchDeepEpBuffer, TorchNixlEpBuffer

CPU = torch.device("cpu")
NAMES = {"deepep_low_latency": "DeepEPLLPrepareAndFinalize", "nixl_ep": "NixlEPPrepareAndFinalize"}

both = pytest.mark.parametrize("backend", LOW_LATENCY)


def with_tables(group: EpGroup, backend: str, placement: str) -> float:
    """Experts placed by a table: the router's ids are logical, the buffer's physical."""
    logical, world = 8, group.world_size
    if placement == "redundant":
        # Twelve physical experts: the last four are copies, and the router's ids go to the copies of 0 to 3.
        physical = 12
        physical_to_logical = [*range(8), *range(4)]
        table = torch.tensor([8, 9, 10, 11, 4, 5, 6, 7])
    else:
        physical = 8
        local = physical // world
        physical_to_logical = [slot * world + rank for rank in range(world) for slot in range(local)]
        table = torch.empty(8, dtype=torch.int64)
        table[torch.tensor(physical_to_logical)] = torch.arange(8)
    case = Case(backend, "fp8_token", "holes")
    buffer = TorchNixlEpBuffer(group, physical // world) if backend == "nixl_ep" else TorchDeepEpBuffer(group)
    cls = NixlEPPrepareAndFinalize if backend == "nixl_ep" else DeepEPLLPrepareAndFinalize
    pf = cls(buffer, case.max_num_tokens, world, global_to_physical=table)
    trip = RoundTrip(group, pf, case)
    arguments = list(trip.prepare_arguments())
    arguments[3] = physical
    a1q, scale, meta, ids, weights = pf.prepare(*arguments)
    assert (ids, weights) == (None, None)
    local = physical // world
    mine = torch.tensor(physical_to_logical)[group.rank * local : (group.rank + 1) * local]
    out = cases.dequantized(a1q, scale) * factors(logical)[mine].view(-1, 1, 1)
    empty = torch.arange(a1q.size(1)) >= meta.expert_num_tokens.unsqueeze(1)
    trip.fused = out.masked_fill(empty.unsqueeze(2), torch.nan).to(case.dtype)
    trip.dispatched = (trip.ids, trip.weights)
    pf.finalize(*trip.finalize_arguments())
    return trip.error()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("placement", ["round_robin", "redundant"])
@both
def test_placements_by_table_give_the_same_answer(world, backend, placement, size):
    """Round-robin placement and redundant copies agree with the reference on logical experts."""
    assert max(world(size).run(with_tables, backend, placement)) <= 1.0


@both
def test_an_expert_named_twice_at_full_capacity_does_not_overrun(world, backend):
    """As many tokens as fit, all naming one expert in every slot: one row each, with all weights."""
    case = Case(backend, routing="duplicates", tokens=(8, 8, 8, 8), topk=4)
    for error in world(2).run(everything_to_one_expert, case):
        assert error <= 1.0


def everything_to_one_expert(group: EpGroup, case: Case) -> float:
    pf = cases.build(group, case)
    trip = RoundTrip(group, pf, case)
    trip.ids.fill_(case.num_experts - 1)
    prepared = pf.prepare(*trip.prepare_arguments())
    last = group.rank == group.world_size - 1
    assert prepared[2].expert_num_tokens.tolist()[-1] == (16 if last else 0)
    trip.dispatched = (trip.ids, trip.weights)
    trip.fused = cases.run_experts(case, pf, group, prepared, trip.ids)
    pf.finalize(*trip.finalize_arguments())
    exact = trip.a1.double() * trip.weights.double().sum(1, keepdim=True) * factors(case.num_experts)[-1]
    return float(((trip.output.double() - exact).abs() / (exact.abs() * 0.02 + 1e-9)).max())


@both
def test_fp8_dispatch_for_experts_that_want_something_else(world, backend):
    """Sent as fp8 blocks and requantized as the experts ask: right to the precision of both."""
    for error in world(2).run(sent_as_fp8, Case(backend, "fp8_token")):
        assert error <= 2.0


def sent_as_fp8(group: EpGroup, case: Case) -> float:
    built = cases.build(group, case)
    pf = type(built)(built.buffer, case.max_num_tokens, group.world_size, use_fp8_dispatch=True)
    return RoundTrip(group, pf, case).run()


@both
def test_blocks_are_quantized_on_their_way(backend):
    """The factory lets the kernels quantize when the experts want fp8 in blocks of 128, and only then."""
    assert NIXL_EP_QUANT_BLOCK_SHAPE == DEEPEP_QUANT_BLOCK_SHAPE == [128, 128]
    for quantization in cases.QUANTIZATIONS:
        pf = cases.build(EpGroup(transport="torch"), Case(backend, quantization))
        assert pf.use_fp8_dispatch == (quantization == "fp8_block")


@both
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint32, torch.int64])
def test_ids_of_any_integer_dtype_are_converted(backend, dtype):
    """Never reinterpreted."""
    case = Case(backend)
    pf = cases.build(EpGroup(transport="torch"), case)
    trip = RoundTrip(EpGroup(), pf, case)
    trip.ids = trip.ids.to(dtype)
    prepared = pf.prepare(*trip.prepare_arguments())
    assert prepared[2].expert_num_tokens.tolist() == cases.expected_counts(case, EpGroup(), merged=True)


class Int32Buffer(TorchNixlEpBuffer):
    """A library that was compiled for 32-bit ids."""

    topk_idx_t = torch.int32


def test_the_id_dtype_is_the_librarys():
    """Releases differ in it, so it is asked for rather than assumed."""
    case = Case("nixl_ep", "fp8_block")
    pf = NixlEPPrepareAndFinalize(Int32Buffer(EpGroup(), 8), 8, 1, use_fp8_dispatch=True)
    assert pf.topk_indices_dtype() is torch.int32
    assert RoundTrip(EpGroup(), pf, case).run() <= 1.0


REFUSED = [
    (
        {"a1": torch.zeros(2, 2048)},
        "a1 is torch.float32, but its transport carries torch.bfloat16. Convert the layer, or use another "
        "backend.",
    ),
    (
        {"a1": torch.zeros(9, 2048, dtype=torch.bfloat16)},
        "9 tokens, but the transport was made for 8 a rank. Pass fewer tokens, or make it for more.",
    ),
    (
        {"a1": torch.zeros(2, 2000, dtype=torch.bfloat16)},
        "hidden size 2000 is not one that the kernels are compiled for (2048, 2560, 3072, 4096, 5120, 6144, "
        "7168, 8192). "
        "Round it up with maybe_roundup_layer_hidden_size.",
    ),
    (
        {"ids": torch.tensor([[0, -2], [0, 1]])},
        "topk_ids holds -2, expected -1 (no expert) or an id from 0 to 7. Check the router and the table "
        "that maps its "
        "ids.",
    ),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED)
@both
def test_what_they_refuse(backend, changes, text):
    """Errors name what was found and what was expected, before anything is sent."""
    pf = cases.build(EpGroup(transport="torch"), Case(backend))
    a1 = changes.get("a1", torch.zeros(2, 2048, dtype=torch.bfloat16))
    ids = changes.get("ids", torch.zeros(a1.size(0), 2, dtype=torch.int64))
    with pytest.raises(ValueError) as error:
        pf.prepare(a1, torch.ones(ids.shape), ids, 8, None, False, FusedMoEQuantConfig.make())
    assert str(error.value) == f"{NAMES[backend]}.prepare: {text}"


@both
def test_deferred_quantization_is_refused_by_declaration(backend):
    """The batched layout is quantized on the way or on arrival."""
    case = replace(Case(backend, "fp8_token"), defer_input_quant=True)
    pf = cases.build(EpGroup(transport="torch"), case)
    with pytest.raises(NotImplementedError) as error:
        pf.prepare(*RoundTrip(EpGroup(), pf, case).prepare_arguments())
    assert str(error.value) == (
        f"{NAMES[backend]}.prepare: defer_input_quant is not supported. Choose experts that take quantized "
        "input."
    )


@both
def test_another_reduction_than_the_kernels_is_refused(backend):
    """Weights would be applied twice, or not at all."""
    case = Case(backend)
    pf = cases.build(EpGroup(transport="torch"), case)
    trip = RoundTrip(EpGroup(), pf, case)
    trip.prepared(pf.prepare(*trip.prepare_arguments()))
    with pytest.raises(ValueError) as error:
        pf.finalize(*trip.finalize_arguments()[:-1], TopKWeightAndReduceNoOP())
    assert str(error.value) == (
        f"{NAMES[backend]}.finalize: the kernels weight and reduce, but the experts ask for "
        "TopKWeightAndReduceNoOP. "
        "Choose experts that leave it to the backend."
    )


@both
def test_finalize_before_prepare_is_refused(backend):
    """There is no handle to combine by."""
    pf = cases.build(EpGroup(transport="torch"), Case(backend))
    with pytest.raises(RuntimeError) as error:
        pf.finalize(*[torch.zeros(1, 1)] * 4, False, TopKWeightAndReduceDelegate())
    assert str(error.value) == f"{NAMES[backend]}.finalize: called before prepare for micro-batch 0."


@both
def test_two_layers_may_share_a_buffer_with_a_send_outstanding(backend):
    """The next layer's send receives the one before, as the kernels need, and both results are right."""
    group = EpGroup(transport="torch")
    first, second = Case(backend), Case(backend, seed=1)
    layers = [cases.build(group, first), cases.build(group, second)]
    assert layers[0].buffer is layers[1].buffer
    trips = [RoundTrip(group, pf, case) for pf, case in zip(layers, (first, second), strict=True)]
    started = [trip.pf.prepare_async(*trip.prepare_arguments()) for trip in trips]
    for trip, (hook, receiver) in zip(trips, started, strict=True):
        hook()
        trip.prepared(receiver())
    ending = [trip.pf.finalize_async(*trip.finalize_arguments()) for trip in trips]
    for hook, receiver in ending:
        hook()
        receiver()
    assert max(trip.error() for trip in trips) <= 1.0


@both
def test_what_they_say_about_themselves(backend):
    """Reduced output, the library's id dtype, the token limit, an asynchronous half."""
    pf = cases.build(EpGroup(transport="torch"), Case(backend))
    assert pf.output_is_reduced()
    assert pf.topk_indices_dtype() is torch.int64
    assert pf.max_num_tokens_per_rank() == 8
    assert pf.num_dispatchers() == 1
    assert pf.supports_async()


def test_padding_does_not_enter_a_computed_scale(world):
    """With fp8 per tensor each expert's scale is that of its own rows, whatever lies in the others."""
    for found, expected in world(2).run(scale_of_experts):
        assert found == pytest.approx(expected)


def scale_of_experts(group: EpGroup) -> tuple[list[float], list[float]]:
    case = Case("nixl_ep", "fp8_tensor")
    pf = cases.build(group, case)
    _, scale, meta, _, _ = pf.prepare(*RoundTrip(group, pf, case).prepare_arguments())
    expected = []
    for expert in range(group.rank * 4, group.rank * 4 + 4):
        amax = 0.0
        for rank in range(group.world_size):
            a1, _, ids = inputs(case, rank, CPU)
            rows = a1[(ids == expert).any(dim=1)]
            amax = max(amax, float(rows.abs().max()) if rows.numel() else 0.0)
        expected.append(max(amax, 1e-10) / 448)
    assert scale.dtype is torch.float32
    assert meta is not None
    assert FP8_DTYPE is torch.float8_e4m3fn
    return scale.flatten().tolist(), expected
