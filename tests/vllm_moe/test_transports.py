"""The transports on torch.distributed: garbage, preconditions, and ranks that stay away."""

import inspect
import time

import pytest
import torch

from tests.vllm_moe.worlds import World, WorldError, die
from vllm_moe import transports
from vllm_moe.transports import (
    EpGroup,
    TorchAllGatherReduceScatter,
    TorchDeepEpBuffer,
    TorchEpDispatchCombineConfig,
    TorchEpDispatchCombineOp,
    TorchMnnvlMoe,
    TorchMoeAlltoAll,
    TorchNixlEpBuffer,
    TransportError,
)

BF16, F32, I32, I64, FP8 = torch.bfloat16, torch.float32, torch.int32, torch.int64, torch.float8_e4m3fn


def message(error: pytest.ExceptionInfo) -> str:
    return str(error.value)


def mori_op(group: EpGroup | None = None, **changes: object) -> TorchEpDispatchCombineOp:
    group = EpGroup() if group is None else group
    fields = {
        "data_type": BF16,
        "rank": group.rank,
        "world_size": group.world_size,
        "hidden_dim": 64,
        "scale_dim": 0,
        "scale_type_size": 0,
        "max_token_type_size": 2,
        "max_num_inp_token_per_rank": 4,
        "num_experts_per_rank": 4,
        "num_experts_per_token": 2,
    }
    return TorchEpDispatchCombineOp(TorchEpDispatchCombineConfig(**{**fields, **changes}), group)


def routing(tokens: int, topk: int = 2, dtype: torch.dtype = I32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(tokens, topk), torch.arange(tokens * topk, dtype=dtype).view(tokens, topk) % 4


# ---- ranks that stay away


def exchange(group: EpGroup) -> list[list[int]]:
    return group.gather_ints("test", [group.rank])


def exchange_without_rank_1(group: EpGroup, seconds: float) -> object:
    if group.rank == 1:
        time.sleep(seconds)
        return None
    return exchange(group)


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_dies_is_named(size):
    """The others get an error that names the dead rank, long before their processes would be given up."""
    world = World(size, seconds=2.0)
    try:
        assert world.run(exchange) == [[[rank] for rank in range(size)]] * size
        world._pipes[1].send((die, ()))
        world.collect([1])
        survivors = [rank for rank in range(size) if rank != 1]
        for rank in survivors:
            world._pipes[rank].send((exchange, ()))
        for rank, (good, text) in world.collect(survivors).items():
            assert not good
            assert (
                f"TransportError: test: exchange 1 of rank {rank} did not finish within 2 s: rank 1 of "
                f"{size} died or "
                "never called it. The group cannot be used any more; start all ranks again."
            ) in text
    finally:
        world.close()


def test_a_rank_that_never_calls_is_named():
    """So do they when the rank lives and does something else."""
    world = World(3, seconds=1.0)
    try:
        with pytest.raises(WorldError) as error:
            world.run(exchange_without_rank_1, 4.0)
        for rank in (0, 2):
            assert (
                f"exchange 1 of rank {rank} did not finish within 1 s: rank 1 of 3 died or never called it"
                in message(error)
            )
    finally:
        world.close()


def fail_and_try_again(group: EpGroup) -> str:
    if group.rank == 1:
        time.sleep(3.0)
        return ""
    with pytest.raises(TransportError):
        exchange(group)
    with pytest.raises(TransportError) as error:
        exchange(group)
    return str(error.value)


def test_a_failed_group_stays_failed():
    """A later call on the same group says at once what happened before."""
    world = World(2, seconds=1.0)
    try:
        text = world.run(fail_and_try_again)[0]
        assert text.startswith(
            "test: an earlier exchange of this group failed. test: exchange 1 of rank 0 did not finish "
            "within 1 s: rank "
            "1 of 2 died or never called it."
        )
    finally:
        world.close()


# ---- garbage and reuse


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


# ---- preconditions


def low_latency_dispatch(x=None, ids=None, limit=4, **options):
    x = torch.zeros(2, 2048, dtype=BF16) if x is None else x
    ids = torch.zeros(x.size(0), 2, dtype=I64) + torch.arange(2) if ids is None else ids
    return TorchNixlEpBuffer(EpGroup(), 4).dispatch(x, ids, limit, **{"use_fp8": False, **options})


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: low_latency_dispatch(torch.zeros(2, 2048)),
            "nixl_ep dispatch: x is torch.float32, expected torch.bfloat16. Convert it before the call.",
        ),
        (
            lambda: low_latency_dispatch(torch.zeros(2, 4096, dtype=BF16)[:, ::2]),
            "nixl_ep dispatch: x has strides [4096, 2] for shape [2, 2048], expected contiguous memory. Call "
            "contiguous() "
            "on it.",
        ),
        (
            lambda: low_latency_dispatch(torch.zeros(2, 1024, dtype=BF16)),
            "nixl_ep dispatch: hidden size 1024 is not one that the kernels are compiled for (2048, 2560, "
            "3072, 4096, "
            "5120, 6144, 7168, 8192). Round it up with maybe_roundup_layer_hidden_size.",
        ),
        (
            lambda: low_latency_dispatch(ids=torch.zeros(2, 2, dtype=I32)),
            "nixl_ep dispatch: topk_idx is torch.int32, expected torch.int64. Convert it before the call.",
        ),
        (
            lambda: low_latency_dispatch(ids=torch.zeros(3, 2, dtype=I64)),
            "nixl_ep dispatch: topk_idx has shape [3, 2], expected [2, any].",
        ),
        (
            lambda: low_latency_dispatch(torch.zeros(5, 2048, dtype=BF16)),
            "nixl_ep dispatch: 5 tokens, but num_max_dispatch_tokens_per_rank is 4. Pass fewer tokens or "
            "make larger "
            "buffers.",
        ),
        (
            lambda: low_latency_dispatch(limit=3),
            "nixl_ep dispatch: ranks x num_max_dispatch_tokens_per_rank is 1 x 3 = 3, expected a multiple of "
            "4. Round the "
            "number of tokens up.",
        ),
        (
            lambda: low_latency_dispatch(ids=torch.tensor([[0, 1], [2, 4]])),
            "nixl_ep dispatch: expert id 4 of token 1, slot 1, is outside -1 to 3.",
        ),
        (
            lambda: low_latency_dispatch(torch.zeros(3, 2048, dtype=BF16), torch.zeros(3, 2, dtype=I64)),
            "nixl_ep dispatch: 6 rows for expert 0, but a rank may send 4 to an expert "
            "(num_max_dispatch_tokens_per_rank). Rows name it more than once.",
        ),
        (
            lambda: low_latency_dispatch(num_experts=8),
            "nixl_ep dispatch: num_experts is 8, but the buffer was made for 1 ranks of 4 experts. Pass 4.",
        ),
        (
            lambda: low_latency_dispatch(use_ue8m0=True),
            "nixl_ep dispatch: use_ue8m0 needs use_fp8 and round_scale, found False and False. Set both.",
        ),
        (
            lambda: low_latency_dispatch(async_finish=True, return_recv_hook=True),
            "nixl_ep dispatch: async_finish and return_recv_hook exclude each other. Ask for one.",
        ),
        (
            lambda: TorchNixlEpBuffer(EpGroup(), 4).combine(
                torch.zeros(4, 4, 2048, dtype=BF16),
                torch.zeros(2, 2, dtype=I64),
                torch.ones(2, 2),
                (torch.zeros(1), torch.zeros(1), 4, 2048),
            ),
            "nixl_ep combine: the handle is not one that this transport's dispatch returned.",
        ),
        (
            lambda: TorchNixlEpBuffer(EpGroup(), 4).combine(None, None, None, None, zero_copy=True),
            "nixl_ep combine: zero_copy is not available over torch.distributed. Leave it out.",
        ),
        (
            lambda: mori_op().dispatch(
                torch.zeros(2, 64, dtype=torch.float16), *routing(2)[:1], None, routing(2)[1]
            ),
            "mori dispatch: input is torch.float16, expected torch.bfloat16 or torch.float32 or "
            "torch.float8_e4m3fn. "
            "Convert it before the call.",
        ),
        (
            lambda: mori_op().dispatch(torch.zeros(5, 64, dtype=BF16), routing(5)[0], None, routing(5)[1]),
            "mori dispatch: 5 tokens, but the op was made for max_num_inp_token_per_rank = 4. Pass fewer "
            "tokens or make a "
            "larger op.",
        ),
        (
            lambda: mori_op().dispatch(
                torch.zeros(2, 64, dtype=BF16), routing(2)[0], None, routing(2)[1] - 1
            ),
            "mori dispatch: expert id -1 of token 0, slot 0, is outside 0 to 3.",
        ),
        (
            lambda: mori_op().dispatch(torch.zeros(2, 64), routing(2)[0], None, routing(2)[1]),
            "mori dispatch: a row of 64 x torch.float32 does not fit the op, which was made for 64 elements "
            "of 2 bytes.",
        ),
        (
            lambda: mori_op(scale_dim=2, scale_type_size=4).dispatch(
                torch.zeros(2, 64, dtype=BF16), routing(2)[0], torch.ones(2, 2, dtype=BF16), routing(2)[1]
            ),
            "mori dispatch: scales are torch.bfloat16, but the op was made for scale_type_size = 4 bytes.",
        ),
        (
            lambda: mori_op().combine(torch.zeros(4, 64, dtype=BF16), None, routing(2)[1]),
            "mori combine: called before dispatch.",
        ),
        (
            lambda: TorchMoeAlltoAll(EpGroup(), 4, 3, 4),
            "flashinfer one-sided: no kernel for top_k 3, expected one of 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, "
            "22. Use "
            "padded_top_k.",
        ),
        (
            lambda: TorchMoeAlltoAll(EpGroup(), 4, 2, 4).dispatch(routing(2)[1], [torch.zeros(2, 8)], 5),
            "flashinfer one-sided dispatch: runtime_max_tokens_per_rank is 5, expected 1 to max_num_tokens, "
            "which is 4.",
        ),
        (
            lambda: TorchMoeAlltoAll(EpGroup(), 4, 2, 4).dispatch(routing(2)[1], [torch.zeros(2, 8)], 1),
            "flashinfer one-sided dispatch: 2 tokens, but runtime_max_tokens_per_rank is 1. Pass the largest "
            "number that "
            "any rank has, the same on all.",
        ),
        (
            lambda: TorchMoeAlltoAll(EpGroup(), 4, 2, 4).dispatch(routing(2)[1] - 1, [torch.zeros(2, 8)], 2),
            "flashinfer one-sided dispatch: expert id -1 of token 0, slot 0, is outside 0 to 3.",
        ),
        (
            lambda: TorchMoeAlltoAll(EpGroup(), 4, 2, 4).dispatch(
                routing(1)[1], [torch.zeros(1, 1, dtype=torch.int8), torch.zeros(1, 1)], 1
            ),
            "flashinfer one-sided dispatch: payload 1 would lie at no multiple of its 4 bytes. Put payloads "
            "of wider "
            "elements first.",
        ),
        (
            lambda: TorchMoeAlltoAll(EpGroup(), 4, 2, 4).combine(torch.zeros(1, 4, 8, dtype=BF16), 4),
            "flashinfer one-sided combine: called before a dispatch.",
        ),
        (
            lambda: two_sided_prepare(expert_count=6),
            "flashinfer two-sided prepare: expert_count is 6, expected a multiple of 4 and of the 1 ranks, "
            "at most 511.",
        ),
        (
            lambda: two_sided_prepare(ids=torch.tensor([[0, -1]], dtype=I32)),
            "flashinfer two-sided prepare: expert id -1 of token 0, slot 1, is outside 0 to 4.",
        ),
        (
            lambda: two_sided_prepare(rank=1),
            "flashinfer two-sided prepare: rank 1 of 1 was given, but the group has rank 0 of 1. Pass the "
            "expert-parallel rank and size.",
        ),
        (
            lambda: TorchMnnvlMoe(EpGroup()).mnnvl_moe_alltoallv(
                torch.zeros(1, 3), two_sided_prepare()[0], torch.zeros(0), 0, 1
            ),
            "flashinfer two-sided dispatch: rows of 3 x torch.float32 are 12 bytes, expected a multiple of "
            "16. Pad them.",
        ),
        (
            lambda: deep_ep_dispatch(torch.zeros(1, 100, dtype=BF16)),
            "deep_ep dispatch: rows of 200 bytes, expected a multiple of 512. Round the hidden size up with "
            "maybe_roundup_layer_hidden_size.",
        ),
        (
            lambda: deep_ep_dispatch(torch.zeros(1, 256, dtype=torch.float16)),
            "deep_ep dispatch: x is torch.float16, expected torch.bfloat16. Convert it before the call.",
        ),
        (
            lambda: deep_ep_dispatch((torch.zeros(1, 256).to(FP8), torch.zeros(1, 1))),
            "deep_ep dispatch: x[1] has shape [1, 1], expected [1, 2].",
        ),
        (
            lambda: TorchDeepEpBuffer(EpGroup()).get_dispatch_layout(torch.zeros(1, 2, dtype=I32), 4),
            "deep_ep get_dispatch_layout: topk_idx is torch.int32, expected torch.int64. Convert it before "
            "the call.",
        ),
        (
            lambda: TorchAllGatherReduceScatter(EpGroup()).dispatch(torch.zeros(2, 4), *routing(3)),
            "allgather dispatch: tensors have [2, 3, 3] rows, expected one row a token in each.",
        ),
    ],
    ids=lambda value: None,
)
def test_a_broken_precondition_is_refused(call, text):
    """Where the vendor would misread memory or assert, an error says what was found and expected."""
    with pytest.raises(TransportError) as error:
        call()
    assert message(error) == text


def two_sided_prepare(ids=None, expert_count=4, rank=0):
    ids = torch.zeros(1, 2, dtype=I32) if ids is None else ids
    return TorchMnnvlMoe(EpGroup()).mnnvl_moe_alltoallv_prepare_without_allgather(
        ids, torch.ones(1, 2), None, torch.zeros(0), 1, rank, 1, expert_count, 4, 2
    )


def deep_ep_dispatch(x):
    buffer = TorchDeepEpBuffer(EpGroup())
    ids = torch.zeros(1, 2, dtype=I64)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, 4)
    return buffer.dispatch(
        x,
        num_tokens_per_rank=per_rank,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
        topk_idx=ids,
        topk_weights=torch.ones(1, 2),
    )


def test_one_sided_dispatch_twice_without_combine_is_refused():
    """As the vendor's op asserts."""
    op = TorchMoeAlltoAll(EpGroup(), 4, 2, 4)
    arguments = (routing(2)[1], [torch.zeros(2, 8, dtype=BF16)], 2)
    (got,) = op.dispatch(*arguments)
    with pytest.raises(TransportError) as error:
        op.dispatch(*arguments)
    assert message(error) == "flashinfer one-sided dispatch: called twice without a combine."
    op.combine(got.clone(), 2)
    op.dispatch(*arguments)


def test_a_send_before_the_last_was_received_is_refused():
    """It would clear the counters that the other's receive half still has to read."""
    buffer = TorchNixlEpBuffer(EpGroup(), 4)
    x, ids = torch.zeros(1, 2048, dtype=BF16), torch.zeros(1, 1, dtype=I64)
    hook = buffer.dispatch(x, ids, 4, use_fp8=False, return_recv_hook=True)[4]
    with pytest.raises(TransportError) as error:
        buffer.dispatch(x, ids, 4, use_fp8=False, return_recv_hook=True)
    assert message(error) == (
        "nixl_ep dispatch: the send before this one has not been received, and this one would clear its "
        "counters. Run "
        "its hook first."
    )
    hook()
    buffer.dispatch(x, ids, 4, use_fp8=False, return_recv_hook=True)


@pytest.mark.parametrize("which", ["nixl_ep", "mori"])
def test_combine_refuses_other_ids_than_dispatch_had(which):
    """Garbage on the vendor's hardware, an error here."""
    if which == "nixl_ep":
        buffer = TorchNixlEpBuffer(EpGroup(), 4)
        ids = torch.tensor([[0, 1]])
        rows, _, handle, _, _ = buffer.dispatch(torch.zeros(1, 2048, dtype=BF16), ids, 4, use_fp8=False)
        text = (
            "nixl_ep combine: topk_idx of token 0, slot 1, is 2, but dispatch was given 1. Pass the ids that "
            "this rank "
            "dispatched."
        )
        with pytest.raises(TransportError) as error:
            buffer.combine(rows, torch.tensor([[0, 2]]), torch.ones(1, 2), handle)
    else:
        op = mori_op()
        weights, ids = routing(2)
        rows, _, _, dispatched, _ = op.dispatch(torch.zeros(2, 64, dtype=BF16), weights, None, ids)
        text = (
            "mori combine: indices [4, 2] are not those that dispatch was given ([2, 2]). Pass this rank's "
            "own ids, not "
            "the dispatched ones."
        )
        with pytest.raises(TransportError) as error:
            op.combine(rows, None, dispatched)
    assert message(error) == text


# ---- numbers


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
