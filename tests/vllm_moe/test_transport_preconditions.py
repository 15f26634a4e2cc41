"""What the vendors' libraries refuse, the transports on torch.distributed refuse, with the reason."""

import pytest
import torch

from tests.vllm_moe.transport_cases import BF16, FP8, I32, I64, message, mori_op, routing
from vllm_moe.transports import (
    EpGroup,
    TorchAllGatherReduceScatter,
    TorchDeepEpBuffer,
    TorchMnnvlMoe,
    TorchMoeAlltoAll,
    TorchNixlEpBuffer,
    TransportError,
)


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
