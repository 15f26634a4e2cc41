"""The transports on torch.distributed behave as the vendors' do: memory, garbage, numbers, parameters."""

import inspect

import pytest
import torch

from tests.vllm_moe.transport_cases import BF16, I32, I64, mori_op
from vllm_moe import transports
from vllm_moe.transports import (
    EpGroup,
    TorchAllGatherReduceScatter,
    TorchDeepEpBuffer,
    TorchEpDispatchCombineOp,
    TorchMnnvlMoe,
    TorchMoeAlltoAll,
    TorchNixlEpBuffer,
)


def mori_garbage(group: EpGroup) -> dict[str, object]:
    op = mori_op(group, num_experts_per_rank=2, scale_dim=1, scale_type_size=4)
    rows = torch.full((1, 64), float(group.rank + 1), dtype=BF16)
    ids = torch.tensor([[0, 1]], dtype=I32)  # both on rank 0
    first = op.dispatch(rows, torch.ones(1, 2), torch.ones(1, 1), ids)
    pointers = [tensor.data_ptr() for tensor in first if tensor is not None]
    total = int(first[4])
    tails = [bool(first[0][total:].isnan().all()), bool(first[1][total:].isnan().all())]
    scales_tail = bool(first[2][total:].isnan().all())
    ids_tail = first[3][total:]
    looks_valid = bool(((ids_tail >= 0) & (ids_tail < 4)).all())
    op.combine(first[0], None, ids)
    second = op.dispatch(rows, torch.ones(1, 2), torch.ones(1, 1), ids)
    return {
        "total": total,
        "rows": first[0][:total, 0].tolist(),
        "tails": [*tails, scales_tail, looks_valid],
        "reused": pointers == [tensor.data_ptr() for tensor in second if tensor is not None],
    }


def test_mori_returns_its_own_memory_with_garbage_tails(world):
    """Rows past the received ones are NaN or ids that exist; the next dispatch uses the same memory."""
    rank0, rank1 = world(2).run(mori_garbage)
    assert rank0 == {"total": 2, "rows": [1.0, 2.0], "tails": [True] * 4, "reused": True}
    assert rank1 == {"total": 0, "rows": [], "tails": [True] * 4, "reused": True}


def low_latency_garbage(group: EpGroup) -> dict[str, object]:
    buffer = TorchNixlEpBuffer(group, 2)
    x = torch.full((2, 2048), float(group.rank + 1), dtype=BF16)
    ids = torch.tensor([[0, 3], [0, -1]])
    (rows, scales), counts, _, _, hook = buffer.dispatch(x, ids, 4, use_fp8=True, return_recv_hook=True)
    before = bool(rows.float().isnan().all() and scales.isnan().all()) and counts.tolist() == [-1, -1]
    hook()
    tails = all(bool(rows[e, n:].float().isnan().all()) for e, n in enumerate(counts.tolist()))
    real = all(
        bool((rows[e, :n].float().unflatten(1, (-1, 128)) * scales[e, :n].unsqueeze(2)).isfinite().all())
        for e, n in enumerate(counts.tolist())
    )
    return {
        "before": before,
        "counts": counts.tolist(),
        "shape": list(rows.shape),
        "scales": [list(scales.shape), list(scales.stride())],
        "tails": tails,
        "real": real,
    }


def test_low_latency_receives_apart_from_sending(world):
    """Nothing is there before the hook has run; after it an expert's rows come first, then garbage.

    Scales are column-major, as the vendors' are.
    """
    rank0, rank1 = world(2).run(low_latency_garbage)
    common = {
        "before": True,
        "shape": [2, 8, 2048],
        "scales": [[2, 8, 16], [128, 1, 8]],
        "tails": True,
        "real": True,
    }
    assert rank0 == {**common, "counts": [4, 0]}
    assert rank1 == {**common, "counts": [0, 2]}


def one_sided_garbage(group: EpGroup) -> dict[str, object]:
    op = TorchMoeAlltoAll(group, 4, 2, 4)
    rows = torch.full((1, 64), float(group.rank + 1), dtype=BF16)
    ids = torch.tensor([[0, 1]], dtype=I32)
    got, got_ids = op.dispatch(ids, [rows, ids], 3)
    first = (got.data_ptr(), got_ids.data_ptr(), got[:, :, 0].tolist(), got_ids[:, 1:].eq(-1).all().item())
    op.combine(got.clone(), 3)
    again, again_ids = op.dispatch(ids, [rows, ids], 3, invalid_token_expert_id=7, expert_id_payload_index=1)
    sevens = bool(again_ids[:, 1:].eq(7).all())
    return {
        "first": first[2],
        "untouched": first[3],
        "sevens": sevens,
        "reused": first[:2] == (again.data_ptr(), again_ids.data_ptr()),
    }


def test_one_sided_returns_its_workspace(world):
    """Rank r's rows come first in entry r, then garbage; ids there are set on request; memory is reused."""
    rank0, rank1 = world(2).run(one_sided_garbage)
    values = [[str(value) for value in row] for row in rank0["first"]]
    assert values == [["1.0", "nan", "nan"], ["2.0", "nan", "nan"]]
    assert [str(value) for row in rank1["first"] for value in row] == ["nan"] * 6
    for rank in (rank0, rank1):
        assert (rank["untouched"], rank["sevens"], rank["reused"]) == (True, True, True)


def two_sided_garbage(group: EpGroup) -> list[object]:
    moe = TorchMnnvlMoe(group)
    bundle = moe.transport()
    ids = torch.tensor([[0, 1], [4, 4]], dtype=I32)  # both on rank 0; the second row goes nowhere
    info, got_ids, got_scales, _ = moe.mnnvl_moe_alltoallv_prepare_without_allgather(
        ids, torch.ones(2, 2), None, bundle.prepare_workspace_tensor, 2, group.rank, group.world_size, 4, 4, 2
    )
    rows = torch.full((2, 8), float(group.rank + 1), dtype=BF16)
    got = moe.mnnvl_moe_alltoallv(rows, info, bundle.workspace_tensor, group.rank, group.world_size)
    back = moe.mnnvl_moe_alltoallv_combine(
        got * 3, info, bundle.workspace_tensor, group.rank, group.world_size, 2, 2
    )
    return [
        [str(value) for value in got[:, 0].tolist()],
        got_ids.tolist(),
        [str(value) for value in got_scales[:, 0].tolist()],
        info.recv_rank_count_cumsum.tolist(),
        back[:, 0].tolist(),
    ]


def test_two_sided_leaves_rows_unwritten(world):
    """Rows past the received ones are garbage with an id of nobody; a row sent nowhere gets zero."""
    rank0, rank1 = world(2).run(two_sided_garbage)
    ids = [[0, 1], [0, 1], [4, 4], [4, 4]]
    assert rank0 == [["1.0", "2.0", "nan", "nan"], ids, ["1.0", "1.0", "nan", "nan"], [1, 2], [3.0, 0.0]]
    assert rank1 == [["nan"] * 4, [[4, 4]] * 4, ["nan"] * 4, [0, 0], [6.0, 0.0]]


def high_throughput(group: EpGroup) -> list[object]:
    buffer = TorchDeepEpBuffer(group)
    x = torch.full((2, 256), float(group.rank + 1), dtype=BF16)
    ids = torch.tensor([[0, 3], [1, -1]])
    weights = torch.tensor([[0.25, 0.5], [0.75, 9.0]])
    per_rank, rdma, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, 4)
    got, got_ids, got_weights, counts, handle, event = buffer.dispatch(
        x,
        num_tokens_per_rank=per_rank,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
        topk_idx=ids,
        topk_weights=weights,
        async_finish=True,
    )
    before = bool(got.isnan().all())
    event.current_stream_wait()
    combined, _, done = buffer.combine(got, handle, async_finish=True)
    combined_before = bool(combined.isnan().all())
    done.current_stream_wait()
    return [
        [per_rank.tolist(), rdma, per_expert.tolist(), in_rank.tolist()],
        before,
        got[:, 0].tolist(),
        got_ids.tolist(),
        got_weights.tolist(),
        counts,
        combined_before,
        combined[:, 0].tolist(),
    ]


def test_high_throughput_gives_local_ids_and_exact_rows(world):
    """Exactly the received rows, with local ids, and sums over the ranks that a row went to."""
    rank0, rank1 = world(2).run(high_throughput)
    layout = [[2, 1], None, [1, 1, 0, 1], [[True, True], [True, False]]]
    assert rank0 == [
        layout,
        True,
        [1.0, 1.0, 2.0, 2.0],
        [[0, -1], [1, -1], [0, -1], [1, -1]],
        [[0.25, 0.0], [0.75, 0.0]] * 2,
        [2, 2],
        True,
        [2.0, 1.0],
    ]
    assert rank1 == [layout, True, [1.0, 2.0], [[-1, 1], [-1, 1]], [[0.0, 0.5]] * 2, [0, 2], True, [4.0, 2.0]]


def reduce_scatter(group: EpGroup) -> list[object]:
    transport = TorchAllGatherReduceScatter(group)
    rows = torch.full((group.rank + 1, 4), float(group.rank + 1))
    got, weights, ids, (extra,) = transport.dispatch(
        rows, rows[:, :2], rows[:, :2].long(), extra_tensors=[rows]
    )
    out = transport.combine(got * (group.rank + 1))
    return [
        got[:, 0].tolist(),
        weights.shape == ids.shape,
        torch.equal(extra, got),
        transport.last_sizes,
        out[:, 0].tolist(),
    ]


def test_allgather_and_reduce_scatter_of_uneven_rows(world):
    """Rows of all ranks come in rank order, and each rank gets the sum over ranks of its own rows."""
    rank0, rank1 = world(2).run(reduce_scatter)
    assert rank0 == [[1.0, 2.0, 2.0], True, True, [1, 2], [3.0]]
    assert rank1 == [[1.0, 2.0, 2.0], True, True, [1, 2], [6.0, 6.0]]


@pytest.mark.parametrize(("round_scale", "use_ue8m0"), [(False, False), (True, False), (True, True)])
def test_low_latency_quantizes_blocks_of_128(round_scale, use_ue8m0):
    """fp8 with a scale for 128 elements, if asked for a power of two, and packed four to an int32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2048, generator=generator).to(BF16)
    x[1] = 0
    buffer = TorchDeepEpBuffer(EpGroup())
    ids = torch.zeros(3, 1, dtype=I64)
    (rows, scales), counts, handle, _, _ = buffer.low_latency_dispatch(
        x, ids, 4, 1, use_fp8=True, round_scale=round_scale, use_ue8m0=use_ue8m0
    )
    assert counts.tolist() == [3]
    assert len(handle) == 5
    if use_ue8m0:
        assert (scales.dtype, tuple(scales.shape)) == (I32, (1, 4, 4))
        exponents = scales[0, :3].contiguous().view(torch.uint8).view(3, 16).to(torch.int32)
        scales = torch.exp2((exponents - 127).float()).unsqueeze(0)
    scale = scales[0, :3]
    if round_scale:
        assert torch.equal(torch.log2(scale), torch.log2(scale).round())
    exact = x.double().view(3, 16, 128)
    back = rows[0, :3].double().view(3, 16, 128) * scale.double().unsqueeze(2)
    assert ((back - exact).abs() <= exact.abs() * 2.0**-4 + scale.double().unsqueeze(2) * 2.0**-10).all()
    assert (scale >= exact.abs().amax(2).clamp(min=1e-4).float() / 448 * 0.999).all()


def test_protocols_are_met():
    """Every transport has its Protocol's methods, with the same parameters in the same order."""
    pairs = [
        (transports.NixlEpBuffer, TorchNixlEpBuffer),
        (transports.DeepEpBuffer, TorchDeepEpBuffer),
        (transports.EpDispatchCombineOp, TorchEpDispatchCombineOp),
        (transports.MnnvlMoe, TorchMnnvlMoe),
        (transports.MoeAlltoAll, TorchMoeAlltoAll),
        (transports.AllGatherReduceScatter, TorchAllGatherReduceScatter),
    ]
    for protocol, implementation in pairs:
        methods = [
            name for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"
        ]
        assert methods
        for name in methods:
            wanted = list(inspect.signature(getattr(protocol, name)).parameters.values())
            found = list(inspect.signature(getattr(implementation, name)).parameters.values())
            assert [(p.name, p.kind, p.default) for p in found] == [
                (p.name, p.kind, p.default) for p in wanted
            ]


# What the vendors' own functions take, as their sources have it (see the module docstrings of the
# transports).
VENDOR_PARAMETERS = {
    (transports.NixlEpBuffer, "dispatch"): "x topk_idx num_max_dispatch_tokens_per_rank num_experts "
    "cumulative_local_expert_recv_stats dispatch_wait_recv_cost_stats use_fp8 round_scale use_ue8m0 "
    "async_finish "
    "return_recv_hook",
    (transports.NixlEpBuffer, "combine"): "x topk_idx topk_weights handle use_logfmt zero_copy async_finish "
    "return_recv_hook out combine_wait_recv_cost_stats",
    (transports.DeepEpBuffer, "get_dispatch_layout"): "topk_idx num_experts previous_event async_finish "
    "allocate_on_comm_stream",
    (
        transports.DeepEpBuffer,
        "dispatch",
    ): "x handle num_tokens_per_rank num_tokens_per_rdma_rank is_token_in_rank "
    "num_tokens_per_expert topk_idx topk_weights expert_alignment config previous_event async_finish "
    "allocate_on_comm_stream",
    (
        transports.EpDispatchCombineOp,
        "dispatch",
    ): "input weights scales indices block_num rdma_block_num warp_per_block",
    (
        transports.EpDispatchCombineOp,
        "combine",
    ): "input weights indices block_num rdma_block_num warp_per_block",
    (
        transports.MnnvlMoe,
        "mnnvl_moe_alltoallv_prepare_without_allgather",
    ): "expert_ids scales expert_statics workspace "
    "max_token_count_per_rank ep_rank ep_size expert_count slot_count top_k",
    (transports.MnnvlMoe, "mnnvl_moe_alltoallv"): "x alltoall_info workspace ep_rank ep_size",
    (
        transports.MnnvlMoe,
        "mnnvl_moe_alltoallv_combine",
    ): "x alltoall_info workspace ep_rank ep_size top_k token_count",
    (transports.MoeAlltoAll, "dispatch"): "token_selected_experts input_payloads runtime_max_tokens_per_rank "
    "invalid_token_expert_id expert_id_payload_index",
    (transports.MoeAlltoAll, "combine"): "payload runtime_max_tokens_per_rank",
}


@pytest.mark.parametrize(
    ("protocol", "name"), VENDOR_PARAMETERS, ids=lambda value: getattr(value, "__name__", value)
)
def test_protocols_spell_the_vendors_parameters(protocol, name):
    """A backend that calls through the Protocol calls the vendor's function with names that it has."""
    found = [
        parameter
        for parameter in inspect.signature(getattr(protocol, name)).parameters
        if parameter != "self"
    ]
    assert found == VENDOR_PARAMETERS[protocol, name].split()
