"""The allgather backend: its monolithic class, its groups, and what it says about itself."""

import pytest
import torch
import torch.distributed as dist

from tests.vllm_moe import dispatch_cases as cases
from tests.vllm_moe.dispatch_cases import Case, RoundTrip, factors, inputs
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize.naive_dp_ep import (
    MoEPrepareAndFinalizeNaiveDPEPModular,
    MoEPrepareAndFinalizeNaiveDPEPMonolithic,
)
from vllm_moe.transports import EpGroup, MissingTransportError, TorchAllGatherReduceScatter

BACKEND = "allgather_reducescatter"


def monolithic(group: EpGroup, quantization: str) -> float:
    case = Case(BACKEND, quantization)
    pf = cases.build(group, case, use_monolithic=True)
    assert isinstance(pf, MoEPrepareAndFinalizeNaiveDPEPMonolithic)
    a1, _, ids = inputs(case, group.rank, group.device)
    logits = torch.nn.functional.one_hot(ids[:, 0], case.num_experts).to(torch.float32)
    a1q, scale, all_logits = pf.prepare(a1, logits, case.quant_config(group.device))
    local = case.num_experts // group.world_size
    chosen = all_logits.argmax(dim=1)
    gain = torch.where(chosen // local == group.rank, factors(case.num_experts)[chosen], 0.0)
    out = pf.finalize((cases.dequantized(a1q, scale) * gain.unsqueeze(1)).to(case.dtype))
    exact = a1.double() * factors(case.num_experts)[ids[:, 0]].unsqueeze(1)
    return float((out.double() - exact).norm() / max(float(exact.norm()), 1e-9))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("quantization", cases.QUANTIZATIONS)
def test_router_logits_round_trip(world, quantization, size):
    """Experts that route for themselves get every rank's rows, scales and logits, and the sums come back."""
    allowed = {"none": 0.01, "int8_token": 0.02}.get(quantization, 0.05)
    assert max(world(size).run(monolithic, quantization)) < allowed


def grid_2x2(group: EpGroup, sequence_parallel: bool) -> tuple[float, bool, int]:
    """Run data parallel 2 x tensor parallel 2 over four ranks that share out eight experts."""
    rank = group.rank
    pairs = [dist.new_group(ranks, timeout=group.timeout) for ranks in ([0, 2], [1, 3])]
    dp_group = EpGroup(pairs[rank % 2], timeout=group.timeout)
    ep_group = EpGroup(group.process_group, timeout=group.timeout, dp_group=dp_group)
    transport = TorchAllGatherReduceScatter(ep_group)
    pf = MoEPrepareAndFinalizeNaiveDPEPModular(sequence_parallel, 4, transport)
    case = Case(BACKEND, tokens=(4, 6, 3, 2))
    trip = RoundTrip(group, pf, case)
    if not sequence_parallel:
        # Tensor-parallel ranks hold the same tokens: those of the even rank of the pair.
        trip.a1, trip.weights, trip.ids = inputs(case, rank // 2 * 2, group.device)
        trip.output = torch.full_like(trip.a1, torch.nan)
    prepared = pf.prepare(*trip.prepare_arguments())
    trip.dispatched = (prepared[3], prepared[4])
    trip.fused = cases.run_experts(case, pf, group, prepared, prepared[3])
    pf.finalize(*trip.finalize_arguments())
    out = trip.output
    if not pf.output_is_reduced():
        # What is left to do is the tensor-parallel sum.
        other = [dist.new_group(ranks, timeout=group.timeout) for ranks in ([0, 1], [2, 3])][rank // 2]
        total = out.float()
        dist.all_reduce(total, group=other)
        out = total
    home = rank if sequence_parallel else rank // 2 * 2
    exact, allowed = cases.reference(case, home, 4)
    off = (out.double() - exact).abs() / allowed
    return float(off.max()), pf.output_is_reduced(), pf.num_dispatchers()


def test_tensor_parallel_ranks_that_hold_the_same_tokens(world):
    """Rows go over the data-parallel group, and output_is_reduced says what is still to be added up.

    The number of dispatchers is that of the expert-parallel group.
    """
    for error, reduced, dispatchers in world(4).run(grid_2x2, False):
        assert error <= 1.0
        assert not reduced
        assert dispatchers == 4


def test_sequence_parallel_ranks(world):
    """With tokens split over all four ranks, rows go over all of them and the output is complete."""
    for error, reduced, dispatchers in world(4).run(grid_2x2, True):
        assert error <= 1.0
        assert reduced
        assert dispatchers == 4


def scales_of_ranks(group: EpGroup) -> tuple[list[float], bool]:
    """Dynamic per-tensor fp8 where rank 1's activations are ten times rank 0's."""
    case = Case(BACKEND, "fp8_tensor")
    pf = cases.build(group, case)
    a1, weights, ids = inputs(case, group.rank, group.device)
    a1q, scale, *_ = pf.prepare(a1, weights, ids, 8, None, False, FusedMoEQuantConfig.make(FP8_DTYPE))
    largest = max(
        float(inputs(case, rank, group.device)[0].abs().max())
        for rank in range(group.world_size)
        if case.tokens[rank]
    )
    return [float(scale), largest / 448], a1q.dtype is FP8_DTYPE


def test_a_computed_scale_covers_all_ranks(world):
    """Every rank quantizes what it gathered by one scale, not each its own rows by its own."""
    for (found, expected), is_fp8 in world(4).run(scales_of_ranks):
        assert found == pytest.approx(expected)
        assert is_fp8


def test_more_dispatchers_need_a_transport():
    """With None and more than one rank there is nothing to reach the others with."""
    with pytest.raises(MissingTransportError) as error:
        MoEPrepareAndFinalizeNaiveDPEPModular(num_dispatchers=2)
    assert str(error.value) == (
        "MoEPrepareAndFinalizeNaiveDPEPModular: transport is None, and 2 dispatchers have to be reached. "
        "Pass "
        "vllm_moe.transports.TorchAllGatherReduceScatter of their group (it needs package 'torch' alone), or "
        "let "
        "all2all_utils.maybe_make_prepare_finalize do it."
    )


def test_one_dispatcher_needs_none():
    """Made without arguments, as vLLM makes it, it works."""
    pf = MoEPrepareAndFinalizeNaiveDPEPModular()
    a1, weights, ids = inputs(Case(BACKEND), 0, torch.device("cpu"))
    a1q, scale, meta, got_ids, got_weights = pf.prepare(
        a1, weights, ids, 8, None, False, FusedMoEQuantConfig.make()
    )
    assert torch.equal(a1q, a1)
    assert (scale, meta) == (None, None)
    assert torch.equal(got_ids, ids)
    assert torch.equal(got_weights, weights)
    assert pf.output_is_reduced()


def test_weights_on_the_input_need_topk_1():
    """One row cannot carry two weights."""
    pf = MoEPrepareAndFinalizeNaiveDPEPModular()
    a1, weights, ids = inputs(Case(BACKEND), 0, torch.device("cpu"))
    with pytest.raises(ValueError, match="apply_router_weight_on_input needs topk 1, found topk 2"):
        pf.prepare(a1, weights, ids, 8, None, True, FusedMoEQuantConfig.make())
