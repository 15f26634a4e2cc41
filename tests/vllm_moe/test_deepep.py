"""DeepEP's high-throughput backend: what only it does. Its low-latency one is tested beside NIXL EP's."""

import pytest
import torch

from tests.vllm_moe import dispatch_cases as cases
from tests.vllm_moe.dispatch_cases import Case, RoundTrip, inputs
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize.deepep_ht import DeepEPHTPrepareAndFinalize
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate, TopKWeightAndReduceNoOP
from vllm_moe.transports import EpGroup, TorchDeepEpBuffer

CPU = torch.device("cpu")
BACKEND = "deepep_high_throughput"


class Recorded(TorchDeepEpBuffer):
    """A buffer that keeps what its calls were given, and has configurations as the vendor's has."""

    def __init__(self, group: EpGroup) -> None:
        super().__init__(group)
        self.dispatched: list[dict] = []
        self.combined: list[dict] = []
        self.asked: list[int] = []

    def get_dispatch_config(self, num_ranks: int) -> str:
        self.asked.append(num_ranks)
        return f"dispatch {num_ranks}"

    def get_combine_config(self, num_ranks: int) -> str:
        return f"combine {num_ranks}"

    def dispatch(self, x, **options):
        self.dispatched.append({"x": x, **options})
        return super().dispatch(x, **options)

    def combine(self, x, handle, **options):
        self.combined.append({"x": x, **options})
        return super().combine(x, handle, **options)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ("none", torch.bfloat16),
        ("fp8_block", FP8_DTYPE),
        ("fp8_token", torch.bfloat16),
        ("fp8_tensor", torch.bfloat16),
        ("int8_token", torch.bfloat16),
    ],
)
def test_what_is_quantized_before_the_dispatch(quantization, dtype):
    """The kernels carry bf16, or fp8 with a scale for 128 elements; all else is quantized after."""
    case = Case(BACKEND, quantization)
    buffer = Recorded(EpGroup())
    pf = DeepEPHTPrepareAndFinalize(buffer, 1, 1, 0)
    _, scale, *_ = pf.prepare(*inputs(case, 0, CPU), 8, None, False, case.quant_config(CPU))
    x = buffer.dispatched[0]["x"]
    rows = x[0] if isinstance(x, tuple) else x
    assert rows.dtype is dtype
    assert isinstance(x, tuple) == (dtype is FP8_DTYPE)
    if quantization.endswith("token"):
        assert scale.shape == (5, 1)


@pytest.mark.parametrize(
    ("dispatchers", "config"), [(1, None), (2, "dispatch 2"), (3, None), (16, "dispatch 16")]
)
def test_the_configuration_goes_by_the_number_of_dispatchers(dispatchers, config):
    """Not by the data-parallel size; where the vendor has tuned none, its default holds."""
    buffer = Recorded(EpGroup())
    pf = DeepEPHTPrepareAndFinalize(buffer, dispatchers, 7, 0)
    case = Case(BACKEND)
    a1, weights, ids = inputs(case, 0, CPU)
    _, _, _, got_ids, got_weights = pf.prepare(a1, weights, ids, 8, None, False, case.quant_config(CPU))
    fused = torch.zeros(5, 2, case.hidden, dtype=case.dtype)
    pf.finalize(torch.empty_like(a1), fused, got_weights, got_ids, False, TopKWeightAndReduceDelegate())
    assert buffer.dispatched[0]["config"] == config
    assert buffer.combined[0]["config"] == (config and config.replace("dispatch", "combine"))


def test_combine_gets_bf16_whatever_the_experts_wrote():
    """It takes nothing else."""
    buffer = Recorded(EpGroup())
    pf = DeepEPHTPrepareAndFinalize(buffer, 1, 1, 0)
    case = Case(BACKEND)
    a1, weights, ids = inputs(case, 0, CPU)
    prepared = pf.prepare(a1, weights, ids, 8, None, False, case.quant_config(CPU))
    reduced = torch.full((5, case.hidden), 2.0)
    output = torch.empty_like(a1)
    pf.finalize(output, reduced, prepared[4], prepared[3], False, TopKWeightAndReduceNoOP())
    assert buffer.combined[0]["x"].dtype is torch.bfloat16
    assert output.eq(2).all()


def test_counts_are_also_on_the_cpu():
    """The vendor counts there, so the experts may have them for nothing."""
    case = Case(BACKEND, routing="holes")
    pf = DeepEPHTPrepareAndFinalize(TorchDeepEpBuffer(EpGroup()), 1, 1, 0)
    meta = pf.prepare(*inputs(case, 0, CPU), 8, None, False, case.quant_config(CPU))[2]
    assert meta.expert_num_tokens_cpu.tolist() == cases.expected_counts(case, EpGroup(), merged=False)


REFUSED = [
    (
        torch.zeros(2, 100, dtype=torch.bfloat16),
        "hidden size 100 is not one that the kernels can copy, the next is 256. Round it up with "
        "maybe_roundup_layer_hidden_size.",
    ),
    (
        torch.zeros(2, 512),
        "a1 is torch.float32, but its transport carries torch.bfloat16. Convert the layer, or use another "
        "backend.",
    ),
]


@pytest.mark.parametrize(("a1", "text"), REFUSED)
def test_what_it_refuses(a1, text):
    """Errors name what was found and what was expected."""
    pf = DeepEPHTPrepareAndFinalize(TorchDeepEpBuffer(EpGroup()), 1, 1, 0)
    with pytest.raises(ValueError) as error:
        pf.prepare(
            a1,
            torch.ones(2, 2),
            torch.zeros(2, 2, dtype=torch.int64),
            8,
            None,
            False,
            FusedMoEQuantConfig.make(),
        )
    assert str(error.value) == f"DeepEPHTPrepareAndFinalize.prepare: {text}"


def test_finalize_before_prepare_is_refused():
    """There is no handle to combine by."""
    pf = DeepEPHTPrepareAndFinalize(TorchDeepEpBuffer(EpGroup()), 1, 1, 0)
    with pytest.raises(RuntimeError) as error:
        pf.finalize(*[torch.zeros(1, 1)] * 4, False, TopKWeightAndReduceDelegate())
    assert str(error.value) == "DeepEPHTPrepareAndFinalize.finalize: called before prepare for micro-batch 0."


def test_nothing_is_final_before_the_receiver():
    """The asynchronous halves return at once; the receiver waits."""
    case = Case(BACKEND)
    pf = DeepEPHTPrepareAndFinalize(TorchDeepEpBuffer(EpGroup()), 1, 1, 0)
    trip = RoundTrip(EpGroup(), pf, case)
    trip.prepared(pf.prepare_async(*trip.prepare_arguments())())
    receiver = pf.finalize_async(*trip.finalize_arguments())
    assert trip.output.isnan().all()
    receiver()
    assert trip.error() <= 1.0


def test_what_it_says_about_itself():
    """Reduced output, the library's id dtype, no token limit, an asynchronous half."""
    pf = cases.build(EpGroup(transport="torch"), Case(BACKEND))
    assert pf.output_is_reduced()
    assert pf.topk_indices_dtype() is torch.int64
    assert pf.max_num_tokens_per_rank() is None
    assert pf.num_dispatchers() == 1
    assert pf.supports_async()
