"""The MoRI backend: what only it does."""

import pytest
import torch

from tests.vllm_moe import dispatch_cases as cases
from tests.vllm_moe.dispatch_cases import Case, inputs
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize.mori import MoriPrepareAndFinalize
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate, TopKWeightAndReduceNoOP
from vllm_moe.transports import EpGroup, TorchEpDispatchCombineOp

CPU = torch.device("cpu")


class Recorded:
    """An op that keeps what its calls were given."""

    def __init__(self, op: TorchEpDispatchCombineOp) -> None:
        self.op, self.config = op, op.config
        self.dispatched: list[tuple] = []
        self.combined: list[tuple] = []

    def dispatch(self, *arguments):
        self.dispatched.append(arguments)
        return self.op.dispatch(*arguments)

    def combine(self, *arguments):
        self.combined.append(arguments)
        return self.op.combine(*arguments)


def backend(case: Case, group: EpGroup | None = None) -> tuple[MoriPrepareAndFinalize, Recorded]:
    pf = cases.build(EpGroup() if group is None else group, case)
    recorded = Recorded(pf.mori_op)
    pf.mori_op = recorded
    return pf, recorded


@pytest.mark.parametrize(
    ("quantization", "dtype", "scale_dim"),
    [
        ("none", torch.bfloat16, None),
        ("fp8_token", FP8_DTYPE, 1),
        ("fp8_block", FP8_DTYPE, 4),
        ("fp8_tensor", torch.bfloat16, None),
        ("fp8_static", torch.bfloat16, None),
        ("int8_token", torch.bfloat16, None),
    ],
)
def test_what_is_quantized_before_the_dispatch(quantization, dtype, scale_dim):
    """fp8 rows with scales of their own travel quantized; all else is quantized on arrival."""
    case = Case("mori", quantization)
    pf, recorded = backend(case)
    pf.prepare(*inputs(case, 0, CPU), 8, None, False, case.quant_config(CPU))
    rows, weights, scales, ids = recorded.dispatched[0]
    assert rows.dtype is dtype
    assert weights.dtype is torch.float32
    assert ids.dtype is torch.int32
    assert (None if scales is None else scales.size(1)) == scale_dim


def test_combine_is_given_the_ids_that_dispatch_was():
    """Not the dispatched ones that the driver hands to finalize."""
    case = Case("mori")
    pf, recorded = backend(case)
    a1, weights, ids = inputs(case, 0, CPU)
    prepared = pf.prepare(a1, weights, ids, 8, None, False, case.quant_config(CPU))
    got_ids, got_weights = prepared[3:]
    fused = torch.zeros(got_ids.size(0), 2, case.hidden, dtype=case.dtype)
    pf.finalize(torch.empty_like(a1), fused, got_weights, got_ids, False, TopKWeightAndReduceDelegate())
    assert torch.equal(recorded.combined[0][2], ids.to(torch.int32))


def test_slots_without_an_expert_repeat_another_and_are_taken_out_again():
    """The op gets valid ids only; the result has -1 in those slots."""
    case = Case("mori", tokens=(3, 0, 0, 0))
    pf, recorded = backend(case)
    a1, weights, _ = inputs(case, 0, CPU)
    ids = torch.tensor([[5, -1], [-1, -1], [2, 3]])
    _, _, meta, got_ids, got_weights = pf.prepare(
        a1, weights, ids, 8, None, False, FusedMoEQuantConfig.make()
    )
    assert recorded.dispatched[0][3].tolist() == [[5, 5], [0, 0], [2, 3]]
    assert got_ids[:3].tolist() == ids.tolist()
    assert (got_ids[3:] == -1).all()
    assert (got_weights[got_ids < 0] == 0).all()
    assert meta.expert_num_tokens.tolist() == [0, 0, 1, 1, 0, 1, 0, 0]


def test_a_row_without_experts_is_zero_whatever_the_experts_wrote():
    """Experts that reduce for themselves may leave garbage in such a row; it does not reach the output."""
    case = Case("mori", tokens=(2, 0, 0, 0))
    pf, _ = backend(case)
    a1, weights, _ = inputs(case, 0, CPU)
    ids = torch.tensor([[-1, -1], [0, 1]])
    prepared = pf.prepare(a1, weights, ids, 8, None, False, FusedMoEQuantConfig.make())
    reduced = torch.full((prepared[0].size(0), case.hidden), torch.nan, dtype=case.dtype)
    reduced[1] = 3.0
    output = torch.empty_like(a1)
    pf.finalize(output, reduced, prepared[4], prepared[3], False, TopKWeightAndReduceNoOP())
    assert output[0].eq(0).all()
    assert output[1].eq(3).all()


REFUSED = [
    (
        {"a1": torch.zeros(9, 512, dtype=torch.bfloat16)},
        "MoriPrepareAndFinalize.prepare: 9 tokens, but the transport was made for 8 a rank. Pass fewer "
        "tokens, or make it "
        "for more.",
    ),
    (
        {"a1": torch.zeros(2, 512, dtype=torch.float16)},
        "MoriPrepareAndFinalize.prepare: a1 is torch.float16, but its transport carries torch.bfloat16 or "
        "torch.float32. "
        "Convert the layer, or use another backend.",
    ),
    (
        {"ids": torch.tensor([[0, 8], [0, 1]])},
        "MoriPrepareAndFinalize.prepare: topk_ids holds 8, expected -1 (no expert) or an id from 0 to 7. "
        "Check the router "
        "and the table that maps its ids.",
    ),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED)
def test_what_it_refuses(changes, text):
    """Errors name what was found and what was expected."""
    pf, _ = backend(Case("mori"))
    a1 = changes.get("a1", torch.zeros(2, 512, dtype=torch.bfloat16))
    ids = changes.get("ids", torch.zeros(a1.size(0), 2, dtype=torch.int64))
    with pytest.raises(ValueError) as error:
        pf.prepare(a1, torch.ones(ids.shape), ids, 8, None, False, FusedMoEQuantConfig.make())
    assert str(error.value) == text


def test_finalize_before_prepare_is_refused():
    """There is no routing to combine by."""
    pf, _ = backend(Case("mori"))
    with pytest.raises(RuntimeError) as error:
        pf.finalize(*[torch.zeros(1, 1)] * 4, False, TopKWeightAndReduceDelegate())
    assert str(error.value) == "MoriPrepareAndFinalize.finalize: called before prepare for micro-batch 0."


def test_an_op_for_other_sizes_is_refused():
    """Sizes come from the op, and have to agree with what the backend is told."""
    op = backend(Case("mori"))[0].mori_op
    with pytest.raises(ValueError) as error:
        MoriPrepareAndFinalize(op, 16, 2)
    assert str(error.value) == (
        "MoriPrepareAndFinalize: max_tokens_per_rank 16 and num_dispatchers 2, but mori_op was made for 8 "
        "and 1. Pass the "
        "op's own."
    )


def test_what_it_says_about_itself():
    """Reduced output, int32 ids, the op's token limit, no asynchronous half."""
    pf, _ = backend(Case("mori"))
    assert pf.output_is_reduced()
    assert pf.topk_indices_dtype() is torch.int32
    assert pf.max_num_tokens_per_rank() == 8
    assert pf.num_dispatchers() == 1
    assert not pf.supports_async()
