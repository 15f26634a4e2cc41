"""FlashInfer's two backends: what only they do."""

import pytest
import torch

from tests.vllm_moe import dispatch_cases as cases
from tests.vllm_moe.dispatch_cases import Case, inputs
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize.flashinfer_nvlink_one_sided import (
    FlashInferNVLinkOneSidedPrepareAndFinalize,
)
from vllm_moe.fused_moe.prepare_finalize.flashinfer_nvlink_two_sided import (
    FlashInferNVLinkTwoSidedPrepareAndFinalize,
)
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate, TopKWeightAndReduceNoOP
from vllm_moe.transports import EpGroup, MoeAlltoAllTransport, TorchMnnvlMoe, TorchMoeAlltoAll, padded_top_k

CPU = torch.device("cpu")


class RecordedOp(TorchMoeAlltoAll):
    """An op that keeps what dispatch was given."""

    def dispatch(self, token_selected_experts, input_payloads, runtime_max_tokens_per_rank, **options):
        self.given = (token_selected_experts, input_payloads, runtime_max_tokens_per_rank, options)
        return super().dispatch(
            token_selected_experts, input_payloads, runtime_max_tokens_per_rank, **options
        )


def one_sided(topk: int = 2, hidden: int = 512) -> FlashInferNVLinkOneSidedPrepareAndFinalize:
    group = EpGroup()
    op = RecordedOp(group, 8, padded_top_k(topk), 8)
    return FlashInferNVLinkOneSidedPrepareAndFinalize(8, topk, 8, hidden, 1, MoeAlltoAllTransport(op, group))


def two_sided() -> FlashInferNVLinkTwoSidedPrepareAndFinalize:
    return FlashInferNVLinkTwoSidedPrepareAndFinalize(1, TorchMnnvlMoe(EpGroup()).transport())


def test_a_topk_without_a_kernel_is_filled_up():
    """Five slots travel by a list of six; the ids that travel with the row stay five."""
    case = Case("flashinfer_nvlink_one_sided", topk=5)
    pf = one_sided(5)
    a1, weights, ids = inputs(case, 0, CPU)
    ids[0, 2] = -1
    _, _, _, got_ids, _ = pf.prepare(a1, weights, ids, 8, None, False, FusedMoEQuantConfig.make())
    selected, payloads, capacity, options = pf.transport.op.given
    assert selected.shape == (5, 6)
    assert torch.equal(selected[:, 5], selected[:, 0])
    assert (selected >= 0).all()
    assert torch.equal(payloads[-2], ids.to(torch.int32))
    assert options == {"invalid_token_expert_id": -1, "expert_id_payload_index": 1}
    assert capacity == 5
    assert torch.equal(got_ids.long(), ids)


def test_payloads_start_where_the_widest_copies_may():
    """Scales are filled up to 16 bytes a row, so that what follows them is aligned."""
    case = Case("flashinfer_nvlink_one_sided", "fp8_token")
    pf = one_sided()
    _, scale, *_ = pf.prepare(*inputs(case, 0, CPU), 8, None, False, case.quant_config(CPU))
    payloads = pf.transport.op.given[1]
    assert [payload.size(1) * payload.element_size() for payload in payloads] == [512, 16, 8, 8]
    assert scale.shape == (5, 1)


def test_one_sided_rows_without_experts_are_zero_whatever_the_experts_wrote():
    """Experts that reduce for themselves may leave garbage in such a row; it does not reach the output."""
    pf = one_sided()
    a1, weights, _ = inputs(Case("flashinfer_nvlink_one_sided", tokens=(2, 0, 0, 0)), 0, CPU)
    ids = torch.tensor([[-1, -1], [0, 1]])
    prepared = pf.prepare(a1, weights, ids, 8, None, False, FusedMoEQuantConfig.make())
    reduced = torch.full((2, 512), torch.nan, dtype=torch.bfloat16)
    reduced[1] = 3.0
    output = torch.empty_like(a1)
    pf.finalize(output, reduced, prepared[4], prepared[3], False, TopKWeightAndReduceNoOP())
    assert output[0].eq(0).all()
    assert output[1].eq(3).all()


REFUSED = [
    (
        one_sided,
        {"a1": torch.zeros(9, 512, dtype=torch.bfloat16)},
        "FlashInferNVLinkOneSidedPrepareAndFinalize.prepare: 9 tokens, but the transport was made for 8 a "
        "rank. Pass fewer "
        "tokens, or make it for more.",
    ),
    (
        one_sided,
        {"a1": torch.zeros(2, 256, dtype=torch.bfloat16)},
        "FlashInferNVLinkOneSidedPrepareAndFinalize.prepare: hidden size 256, topk 2 and 8 experts, but the "
        "backend was "
        "made for 512, 2 and 8.",
    ),
    (
        one_sided,
        {"a1": torch.zeros(2, 512)},
        "FlashInferNVLinkOneSidedPrepareAndFinalize.prepare: a1 is torch.float32, but its transport carries "
        "torch.bfloat16 "
        "or torch.float16. Convert the layer, or use another backend.",
    ),
    (
        two_sided,
        {"a1": torch.zeros(2, 100, dtype=torch.bfloat16)},
        "FlashInferNVLinkTwoSidedPrepareAndFinalize.prepare: rows of 100 x torch.bfloat16 are no multiple of "
        "16 bytes. "
        "Round the hidden size up with maybe_roundup_layer_hidden_size.",
    ),
    (
        two_sided,
        {"ids": torch.tensor([[0, 8], [0, 1]])},
        "FlashInferNVLinkTwoSidedPrepareAndFinalize.prepare: topk_ids holds 8, expected -1 (no expert) or an "
        "id from 0 to "
        "7. Check the router and the table that maps its ids.",
    ),
]


@pytest.mark.parametrize(("build", "changes", "text"), REFUSED)
def test_what_they_refuse(build, changes, text):
    """Errors name what was found and what was expected."""
    a1 = changes.get("a1", torch.zeros(2, 512, dtype=torch.bfloat16))
    ids = changes.get("ids", torch.zeros(a1.size(0), 2, dtype=torch.int64))
    with pytest.raises(ValueError) as error:
        build().prepare(a1, torch.ones(ids.shape), ids, 8, None, False, FusedMoEQuantConfig.make())
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (one_sided, "FlashInferNVLinkOneSidedPrepareAndFinalize.finalize: called before prepare."),
        (
            two_sided,
            "FlashInferNVLinkTwoSidedPrepareAndFinalize.finalize: called before prepare for micro-batch 0.",
        ),
    ],
)
def test_finalize_before_prepare_is_refused(build, text):
    """There is nothing to combine by."""
    with pytest.raises(RuntimeError) as error:
        build().finalize(*[torch.zeros(1, 1)] * 4, False, TopKWeightAndReduceDelegate())
    assert str(error.value) == text


def test_a_transport_for_other_sizes_is_refused():
    """Sizes come from the transport, and have to agree with what the backend is told."""
    transport = one_sided().transport
    with pytest.raises(ValueError) as error:
        FlashInferNVLinkOneSidedPrepareAndFinalize(8, 4, 16, 512, 1, transport)
    assert str(error.value) == (
        "FlashInferNVLinkOneSidedPrepareAndFinalize: max_num_tokens 8, num_experts 16, num_dispatchers 1 and "
        "top_k 4, but "
        "the transport was made for 8, 8, 1 and 2. Make it for these (top_k by padded_top_k)."
    )
    with pytest.raises(ValueError) as error:
        FlashInferNVLinkTwoSidedPrepareAndFinalize(2, TorchMnnvlMoe(EpGroup()).transport())
    assert str(error.value) == (
        "FlashInferNVLinkTwoSidedPrepareAndFinalize: num_dispatchers is 2, but the transport spans 1 ranks. "
        "Pass the size "
        "of the expert-parallel group."
    )


def test_what_they_say_about_themselves():
    """Reduced output, int32 ids, no asynchronous half; the one-sided op has a token limit."""
    for pf, limit in ((one_sided(), 8), (two_sided(), None)):
        assert pf.output_is_reduced()
        assert pf.topk_indices_dtype() is torch.int32
        assert pf.max_num_tokens_per_rank() == limit
        assert pf.num_dispatchers() == 1
        assert not pf.supports_async()


def test_padded_top_k():
    """The next number that there is a kernel for."""
    assert [padded_top_k(topk) for topk in (1, 2, 3, 5, 7, 9, 19, 22)] == [1, 2, 4, 6, 8, 10, 22, 22]
    with pytest.raises(ValueError, match=r"^flashinfer one-sided: topk is 23, but the kernels end at 22\.$"):
        padded_top_k(23)


def test_cases_cover_these_backends():
    """The matrix of round trips has both."""
    assert {"flashinfer_nvlink_one_sided", "flashinfer_nvlink_two_sided"} <= set(cases.BACKENDS)
