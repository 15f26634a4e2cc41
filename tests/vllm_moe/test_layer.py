"""The layer: every backend and quantization against a dense reference, and what else a layer has."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from tests.vllm_moe.dispatch_cases import BACKENDS
from vllm_moe._run import Options, run_rank
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.layer import (
    LOCAL_BACKENDS,
    QUANTIZATIONS,
    FusedMoE,
    fused_moe_make_expert_params_mapping,
    make_experts,
)
from vllm_moe.transports import EpGroup

OPTIONS = Options(
    backend="no_dp_ep",
    tokens=12,
    hidden=256,
    intermediate=128,
    experts=8,
    topk=2,
    quantization="none",
    dtype="bfloat16",
    shared=0,
    redundant=0,
    micro_batches=1,
    repeat=1,
    seed=0,
    weight_on_input=False,
)


def run_layer(group: EpGroup, options: Options) -> dict:
    return asdict(run_rank(options, group, lambda *_: None))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(
    ("backend", "size"),
    [*((backend, size) for backend in BACKENDS for size in (1, 2, 4)), ("no_dp_ep", 1), ("batched", 1)],
)
def test_the_layer_equals_the_dense_reference(world, backend, size, quantization):
    """Router, dispatch, experts, combine: within what the formats' bits cost, on every rank together."""
    reports = world(size).run(run_layer, replace(OPTIONS, backend=backend, quantization=quantization))
    for report in reports:
        assert report["error"] <= report["allowed"]
        assert {**report, "device": ""} == {**reports[0], "device": ""}
    assert reports[0]["ranks"] == size


@pytest.mark.parametrize(
    "changes",
    [
        {"shared": 64},
        {"redundant": 4},
        {"micro_batches": 2},
        {"shared": 64, "redundant": 8, "micro_batches": 3, "quantization": "fp8_token"},
        {"topk": 1, "weight_on_input": True},
        {"hidden": 200, "intermediate": 96, "quantization": "fp8_token"},
        {"tokens": 1, "micro_batches": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layer_with_extras(world, backend, changes):
    """Shared expert, copies of experts, micro-batches, weights on the input, odd sizes.

    Backends without an asynchronous half run one micro-batch after another; a micro-batch may be empty.
    """
    for report in world(4).run(run_layer, replace(OPTIONS, backend=backend, **changes)):
        assert report["error"] <= report["allowed"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes(world, dtype):
    """The allgather backend carries any dtype, and the layer keeps its precision."""
    options = replace(OPTIONS, backend="allgather_reducescatter", dtype=dtype)
    for report in world(2).run(run_layer, options):
        assert report["error"] <= report["allowed"]


def broken_layer(group: EpGroup, options: Options, how: str) -> dict:
    original = FusedMoE.route

    def route(self: FusedMoE, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = original(self, hidden_states)
        if self.spoil:
            return (weights.flip(1), ids) if how == "weights" else (weights, (ids + 1) % 8)
        return weights, ids

    forward = FusedMoE.forward

    def spoiled_forward(self: FusedMoE, *arguments: object) -> torch.Tensor:
        self.spoil = True
        try:
            return forward(self, *arguments)
        finally:
            self.spoil = False

    FusedMoE.route, FusedMoE.forward, FusedMoE.spoil = route, spoiled_forward, False
    try:
        return run_layer(group, options)
    finally:
        FusedMoE.route, FusedMoE.forward = original, forward
        del FusedMoE.spoil


@pytest.mark.parametrize("how", ["weights", "ids"])
@pytest.mark.parametrize("quantization", ["none", "fp8_token"])
def test_the_tolerance_rejects_a_wrong_layer(world, quantization, how):
    """Swapped weights or wrong experts are further off than any format."""
    options = replace(OPTIONS, backend="allgather_reducescatter", quantization=quantization)
    for report in world(2).run(broken_layer, options, how):
        assert report["error"] > report["allowed"]


def test_inputs_stay_as_they_were():
    """Neither the routed path nor the shared expert changes the hidden states."""
    layer = FusedMoE(8, 1, 64, 32, apply_router_weight_on_input=True, shared_intermediate_size=16)
    layer.process_weights_after_loading()
    hidden_states = torch.randn(3, 64).to(torch.bfloat16)
    before, version = hidden_states.clone(), hidden_states._version
    layer(hidden_states)
    assert torch.equal(hidden_states, before)
    assert hidden_states._version == version


def test_the_expert_params_mapping():
    """Every shard of every physical expert, copies reading the weights of their originals."""
    layer = nn.Module()
    assert fused_moe_make_expert_params_mapping(layer, "gate_proj", "down_proj", "up_proj", 2, 1) == [
        ("experts.w13_", "experts.0.gate_proj.", 0, "w1"),
        ("experts.w2_", "experts.0.down_proj.", 0, "w2"),
        ("experts.w13_", "experts.0.up_proj.", 0, "w3"),
        ("experts.w13_", "experts.1.gate_proj.", 1, "w1"),
        ("experts.w2_", "experts.1.down_proj.", 1, "w2"),
        ("experts.w13_", "experts.1.up_proj.", 1, "w3"),
        ("experts.w13_", "experts.0.gate_proj.", 2, "w1"),
        ("experts.w2_", "experts.0.down_proj.", 2, "w2"),
        ("experts.w13_", "experts.0.up_proj.", 2, "w3"),
    ]


def test_the_expert_params_mapping_of_a_model_with_adapters():
    """Where parameters sit below a base_layer, both names say so."""
    model = nn.Module()
    model.experts = nn.Module()
    model.experts.base_layer = nn.Linear(1, 1)
    rows = fused_moe_make_expert_params_mapping(model, "w1", "w2", "w3", 1)
    assert rows[0] == ("experts.base_layer.w13_", "experts.0.w1.base_layer.", 0, "w1")


def test_weights_go_where_they_belong():
    """Gate first, then up; what lies beyond the model's hidden size stays zero."""
    layer = FusedMoE(
        2, 1, 100, 8, all2all_backend="deepep_high_throughput", ep_group=EpGroup(transport="torch")
    )
    assert layer.moe_config.hidden_dim == 256
    gate, up, down = torch.randn(8, 100), torch.randn(8, 100), torch.randn(100, 8)
    names = {f"experts.1.{name}_proj.weight": w for name, w in (("gate", gate), ("up", up), ("down", down))}
    assert layer.load_weights(names.items()) == set(names)
    assert torch.equal(layer.w13_weight[1, :8, :100], gate.to(torch.bfloat16))
    assert torch.equal(layer.w13_weight[1, 8:, :100], up.to(torch.bfloat16))
    assert torch.equal(layer.w2_weight[1, :100], down.to(torch.bfloat16))
    assert not layer.w13_weight[0].any()
    assert not layer.w13_weight[:, :, 100:].any()
    assert not layer.w2_weight[:, 100:].any()


REFUSED = [
    (
        lambda: FusedMoE(8, 2, 64, 32, quantization="fp4"),
        "FusedMoE: quantization is 'fp4', expected one of none, fp8_tensor, "
        "fp8_token, fp8_block, int8_token.",
    ),
    (lambda: FusedMoE(8, 9, 64, 32), "FusedMoE: top_k is 9, expected 1 to num_experts, which is 8."),
    (
        lambda: FusedMoE(8, 2, 64, 32, apply_router_weight_on_input=True),
        "FusedMoE: weights on the input need top_k 1, found 2.",
    ),
    (
        lambda: FusedMoE(8, 2, 64, 32, num_redundant_experts=9),
        "FusedMoE: num_redundant_experts is 9, expected 0 to num_experts, 8.",
    ),
    (
        lambda: FusedMoE(8, 2, 64, 32).load_weights([("experts.0.weight", torch.zeros(1))]),
        "FusedMoE: there is no place for 'experts.0.weight', expected gate.weight, "
        "experts.<i>.{gate,up,down}_proj.weight or shared_expert.{gate,up,down}_proj.weight.",
    ),
    (
        lambda: FusedMoE(8, 2, 64, 32).load_weights([("experts.0.up_proj.weight", torch.zeros(1, 2))]),
        "FusedMoE: w13_weight of expert 0 is (1, 2), expected (32, 64) for shard w3.",
    ),
]


@pytest.mark.parametrize(("build", "text"), REFUSED)
def test_what_the_layer_refuses(build, text):
    """Errors name what was found and what was expected."""
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == text


def odd_number_of_experts(group: EpGroup, backend: str) -> str:
    with pytest.raises(ValueError) as error:
        FusedMoE(
            7 if backend not in LOCAL_BACKENDS else 8, 2, 64, 32, all2all_backend=backend, ep_group=group
        ).process_weights_after_loading()
    return str(error.value)


def test_experts_have_to_divide_among_the_ranks(world):
    """The message has both numbers."""
    assert world(2).run(odd_number_of_experts, "mori")[0] == (
        "FusedMoE: 7 experts do not divide evenly among 2 ranks. Change num_experts or num_redundant_experts."
    )


def test_a_backend_that_moves_nothing_needs_one_rank(world):
    """Experts on other ranks would be left out in silence."""
    assert world(2).run(odd_number_of_experts, "no_dp_ep")[0] == (
        "FusedMoE: backend no_dp_ep moves no tokens, but there are 2 ranks. Choose another, or one rank."
    )


def test_use_before_processing_and_processing_twice_are_refused():
    """The kernel is built once, after the weights are there."""
    layer = FusedMoE(8, 2, 64, 32)
    with pytest.raises(
        RuntimeError, match=r"^FusedMoE: call process_weights_after_loading before the layer is used\.$"
    ):
        layer(torch.zeros(1, 64, dtype=torch.bfloat16))
    layer.process_weights_after_loading()
    with pytest.raises(RuntimeError, match=r"^FusedMoE: process_weights_after_loading was called before\.$"):
        layer.process_weights_after_loading()


def test_experts_that_do_not_fit_are_listed_with_their_reasons():
    """One line a candidate."""
    layer = FusedMoE(8, 2, 64, 32)
    layer.process_weights_after_loading()
    moe = layer.moe_config
    odd = FusedMoEQuantConfig.make(FP8_DTYPE, block_shape=[128, 128], weight_dtype=torch.int8)
    with pytest.raises(ValueError) as error:
        make_experts(moe, odd, layer.kernel.prepare_finalize)
    lines = str(error.value).splitlines()
    assert lines[0] == "No experts fit MoEPrepareAndFinalizeNoDPEPModular:"
    assert [line.split()[0] for line in lines[1:]] == [
        "TritonExperts",
        "TorchExperts",
        "BatchedTritonExperts",
        "NaiveBatchedExperts",
    ]
