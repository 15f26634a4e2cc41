"""Experts of both formats, and the layer they are part of, against the dense float64 layer."""


import pytest
import torch

import vllm_moe.fused_moe.modular_kernel as mk
from tests.vllm_moe.expert_cases import (
    DEVICE_TOLERANCES,
    EXPERTS,
    HIDDEN,
    TOLERANCES,
    WIDTH,
    all_layers,
    config,
    expected_layer,
    kernel_for,
    make_layer,
    tokens_of,
)
from tests.vllm_moe.reference import dense_moe, relative_error
from vllm_moe.fused_moe.activation import MoEActivation, apply_moe_activation
from vllm_moe.fused_moe.config import (
    FP8_DTYPE,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
    GroupShape,
    QuantKey,
    RoutingMethodType,
)
from vllm_moe.fused_moe.experts import (
    RoutingExperts,
    TorchExperts,
    TritonExperts,
    XPUExperts,
    XPUExpertsFp8,
)
from vllm_moe.fused_moe.fused_batched_moe import NaiveBatchedExperts
from vllm_moe.fused_moe.kernels import dequantize, grouped_mlp_torch, quantize_rows_torch
from vllm_moe.fused_moe.kernels.quantize import QuantKind, QuantScheme
from vllm_moe.fused_moe.prepare_finalize import (
    BatchedPrepareAndFinalize,
    MoEPrepareAndFinalizeNoDPEPModular,
    MoEPrepareAndFinalizeNoDPEPMonolithic,
)
from vllm_moe.fused_moe.router import fused_topk


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(7)


@all_layers
@pytest.mark.parametrize("format_name", ["standard", "batched"])
@pytest.mark.parametrize("topk", [1, 3])
def test_layer_equals_the_dense_reference(name: str, format_name: str, topk: int) -> None:
    """Prepare, experts and finalize together compute the layer, and leave every input as it was."""
    layer = make_layer(name)
    hidden_states, weights, ids = tokens_of(24, topk)
    inputs = (hidden_states, weights, ids, layer.w1, layer.w2)
    before = [(tensor.clone(), tensor._version) for tensor in inputs]
    kernel = kernel_for(format_name, layer, 30)
    output = kernel.apply(
        hidden_states, layer.w1, layer.w2, weights, ids, MoEActivation.SILU, -1, None, False
    )
    expected = expected_layer(name, format_name, layer, hidden_states, weights, ids)
    assert relative_error(output, expected) < TOLERANCES[name]
    assert output.dtype == hidden_states.dtype
    for tensor, (old, version) in zip(inputs, before, strict=True):
        assert torch.equal(tensor.float(), old.float())
        assert tensor._version == version


@all_layers
@pytest.mark.parametrize("format_name", ["standard", "batched"])
def test_weights_on_the_input(name: str, format_name: str) -> None:
    """With topk 1 and the flag, the router's weight multiplies the token's row, once, and not its output."""
    layer = make_layer(name)
    hidden_states, weights, ids = tokens_of(16, 1)
    kernel = kernel_for(format_name, layer, 16)
    output = kernel.apply(hidden_states, layer.w1, layer.w2, weights, ids, MoEActivation.SILU, -1, None, True)
    expected = expected_layer(name, format_name, layer, hidden_states, weights, ids, weights_on_input=True)
    assert relative_error(output, expected) < TOLERANCES[name]


@all_layers
def test_tolerances_reject_wrong_layers(name: str) -> None:
    """A neighbour's weights, weights used twice, no activation, a lost slot: each misses the tolerance."""
    layer = make_layer(name)
    hidden_states, weights, ids = tokens_of(24, 3)
    expected = expected_layer(name, "standard", layer, hidden_states, weights, ids)
    neighbour = torch.where(ids < 0, ids, (ids + 1) % EXPERTS)
    one_lost = ids.clone()
    one_lost[int((ids[:, 0] >= 0).nonzero()[0]), 0] = -1
    wrong = {
        "neighbour": dense_moe(hidden_states, layer.real_w1, layer.real_w2, weights, neighbour),
        "weights twice": dense_moe(hidden_states, layer.real_w1, layer.real_w2, weights**2, ids),
        "no weights": dense_moe(hidden_states, layer.real_w1, layer.real_w2, torch.ones_like(weights), ids),
        "gelu for silu": dense_moe(hidden_states, layer.real_w1, layer.real_w2, weights, ids, "gelu"),
        "one slot lost": dense_moe(hidden_states, layer.real_w1, layer.real_w2, weights, one_lost),
        "halves swapped": dense_moe(hidden_states, layer.real_w1.roll(WIDTH, 1), layer.real_w2, weights, ids),
        "zeros": torch.zeros_like(expected),
    }
    if name != "none" and "weights" not in name:
        wrong["not quantized"] = dense_moe(hidden_states, layer.real_w1, layer.real_w2, weights, ids)
        other = "fp8 dynamic" if name == "fp8 token" else "fp8 token"
        wrong["another scheme"] = expected_layer(other, "standard", layer, hidden_states, weights, ids)
        if name == "fp8 dynamic":
            wrong["the other format's scales"] = expected_layer(
                name, "batched", layer, hidden_states, weights, ids
            )
    allowed = max(TOLERANCES[name], *(tolerances.get(name, 0.0) for tolerances in DEVICE_TOLERANCES.values()))
    for what, output in wrong.items():
        assert relative_error(output, expected) > allowed, what


@pytest.mark.parametrize("activation", MoEActivation)
@pytest.mark.parametrize("format_name", ["standard", "batched"])
def test_activations(activation: MoEActivation, format_name: str) -> None:
    """Every activation, gated or not, is the reference's."""
    layer = make_layer("none", activation)
    hidden_states, weights, ids = tokens_of(9, 2)
    kernel = kernel_for(format_name, layer, 9)
    output = kernel.apply(hidden_states, layer.w1, layer.w2, weights, ids, activation, -1, None, False)
    expected = dense_moe(hidden_states, layer.w1, layer.w2, weights, ids, activation.value)
    assert relative_error(output, expected) < 2e-6


def test_activation_refuses_shapes_that_do_not_fit() -> None:
    """An output of the wrong width, or an odd gated input, is named with what was expected."""
    with pytest.raises(ValueError) as caught:
        apply_moe_activation(MoEActivation.SILU, torch.empty(2, 8), torch.empty(2, 8))
    assert str(caught.value) == (
        "silu of (2, 8) gives (2, 4), but output is (2, 8). Allocate output with that shape."
    )
    with pytest.raises(ValueError) as caught:
        apply_moe_activation(MoEActivation.GELU, torch.empty(2, 3), torch.empty(2, 7))
    assert str(caught.value) == (
        "gelu halves its input into gate and up, which needs an even width, found 7. Use an even "
        "intermediate size or gelu_no_mul."
    )


@all_layers
@pytest.mark.parametrize("format_name", ["standard", "batched"])
@pytest.mark.parametrize("count", [0, 1])
def test_no_tokens_and_one(name: str, format_name: str, count: int) -> None:
    """Nothing and next to nothing work, also when the only token names no expert."""
    layer = make_layer(name)
    hidden_states, weights, ids = tokens_of(count, 2)
    kernel = kernel_for(format_name, layer, 4)
    for chosen in (ids.clamp(min=0), torch.full_like(ids, -1)):
        output = kernel.apply(
            hidden_states, layer.w1, layer.w2, weights, chosen, MoEActivation.SILU, -1, None, False
        )
        expected = expected_layer(name, format_name, layer, hidden_states, weights, chosen)
        assert output.shape == (count, HIDDEN)
        assert relative_error(output, expected) < TOLERANCES[name]


@pytest.mark.parametrize("name", ["none", "fp8 dynamic", "fp8 block"])
@pytest.mark.parametrize("format_name", ["standard", "batched"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_padding_rows_never_matter(name: str, format_name: str, poison: float) -> None:
    """Tokens whose ids are all -1 may hold anything: their outputs are zero, the others keep their bits."""
    layer = make_layer(name)
    hidden_states, weights, ids = tokens_of(12, 2)
    ids[[2, 7]] = -1
    kernel = kernel_for(format_name, layer, 12)
    arguments = (layer.w1, layer.w2, weights, ids, MoEActivation.SILU, -1, None, False)
    clean = kernel.apply(hidden_states, *arguments)
    hidden_states[[2, 7]] = poison
    poisoned = kernel.apply(hidden_states, *arguments)
    assert (poisoned[[2, 7]] == 0).all()
    assert torch.equal(poisoned, clean)


@pytest.mark.parametrize("name", ["none", "int8 token"])
@pytest.mark.parametrize("placement", ["linear", "round robin"])
@pytest.mark.parametrize("format_name", ["standard", "batched"])
def test_ranks_add_up_to_the_layer(name: str, placement: str, format_name: str) -> None:
    """Three ranks with two experts each, dealt out in either way: the sum of their outputs is the layer's."""
    layer = make_layer(name)
    hidden_states, weights, ids = tokens_of(20, 3)
    total = torch.zeros(20, HIDDEN)
    for rank in range(3):
        mine = [rank * 2, rank * 2 + 1] if placement == "linear" else [rank, rank + 3]
        expert_map = None
        if placement == "round robin":
            expert_map = torch.full((EXPERTS,), -1)
            expert_map[mine] = torch.arange(2)
        parallel = FusedMoEParallelConfig.make(1, 1, 3, 1, rank=rank, enable_expert_parallel=True)
        moe_config = config(num_local_experts=2, moe_parallel_config=parallel)
        scales = {
            name: None if scale is None else scale[mine]
            for name, scale in (
                ("w1_scale", layer.quant_config.w1_scale),
                ("w2_scale", layer.quant_config.w2_scale),
            )
        }
        quant_config = FusedMoEQuantConfig.make(
            layer.quant_config.quant_dtype,
            per_act_token_quant=layer.quant_config.per_act_token_quant,
            per_out_ch_quant=layer.quant_config.per_out_ch_quant,
            **scales,
        )
        if format_name == "batched":
            pf: mk.FusedMoEPrepareAndFinalize = BatchedPrepareAndFinalize(20, 2, 1, rank)
            experts: mk.FusedMoEExperts = NaiveBatchedExperts(
                moe_config, quant_config, max_num_tokens=20, num_dispatchers=1
            )
        else:
            pf = MoEPrepareAndFinalizeNoDPEPModular()
            experts = TorchExperts(moe_config, quant_config)
        kernel = mk.FusedMoEKernel(pf, experts)
        assert not kernel.output_is_reduced()
        total += kernel.apply(
            hidden_states,
            layer.w1[mine],
            layer.w2[mine],
            weights,
            ids,
            MoEActivation.SILU,
            EXPERTS,
            expert_map,
            False,
        )
    expected = expected_layer(name, format_name, layer, hidden_states, weights, ids)
    assert relative_error(total, expected) < TOLERANCES[name]


@pytest.mark.parametrize(
    ("experts_class", "name"),
    [(XPUExperts, "none"), (XPUExpertsFp8, "fp8 weights"), (XPUExpertsFp8, "fp8 dynamic")],
)
def test_xpu_experts_quantize_for_themselves(experts_class: type[XPUExperts], name: str) -> None:
    """The XPU experts are given unquantized rows, whatever the quantization, and compute the layer."""
    layer = make_layer(name)
    hidden_states, weights, ids = tokens_of(17, 2)
    key = layer.quant_config.activation_key
    assert experts_class.is_supported_config(
        experts_class, config(), layer.quant_config.weight_key, key, mk.FusedMoEActivationFormat.Standard
    ) == (True, None)
    kernel = mk.FusedMoEKernel(
        MoEPrepareAndFinalizeNoDPEPModular(), experts_class(config(), layer.quant_config)
    )
    assert kernel.fused_experts.expects_unquantized_inputs
    output = kernel.apply(
        hidden_states, layer.w1, layer.w2, weights, ids, MoEActivation.SILU, -1, None, False
    )
    expected = expected_layer(name, "standard", layer, hidden_states, weights, ids)
    assert relative_error(output, expected) < TOLERANCES[name]


@pytest.mark.parametrize("method", RoutingMethodType)
@pytest.mark.parametrize("name", ["none", "fp8 block"])
def test_monolithic_experts_route_for_themselves(name: str, method: RoutingMethodType) -> None:
    """From logits, the monolithic layer equals the dense one with the weights of softmax routing."""
    layer = make_layer(name)
    hidden_states, _, _ = tokens_of(15, 1)
    logits = torch.randn(15, EXPERTS)
    kernel = mk.FusedMoEKernel(
        MoEPrepareAndFinalizeNoDPEPMonolithic(),
        RoutingExperts(config(routing_method=method), layer.quant_config),
    )
    assert kernel.is_monolithic
    output = kernel.apply_monolithic(
        hidden_states, layer.w1, layer.w2, logits, MoEActivation.SILU, -1, None, False
    )
    probabilities = logits.double().softmax(1)
    order = probabilities.argsort(1, descending=True)[:, :2]
    weights = probabilities.gather(1, order)
    if method is RoutingMethodType.Renormalize:
        weights = weights / weights.sum(1, keepdim=True)
    expected = expected_layer(name, "standard", layer, hidden_states, weights, order)
    assert relative_error(output, expected) < TOLERANCES[name]
    with pytest.raises(ValueError, match=r"^RoutingExperts\.apply: apply_router_weight_on_input is True"):
        kernel.apply_monolithic(hidden_states, layer.w1, layer.w2, logits, MoEActivation.SILU, -1, None, True)


def test_router_keeps_to_its_dtype_and_refuses_what_does_not_fit() -> None:
    """Ids are int32 unless asked otherwise, weights float32; more experts than there are is an error."""
    hidden_states, logits = torch.randn(3, 4), torch.randn(3, 5).bfloat16()
    weights, ids = fused_topk(hidden_states, logits, 2, True)
    assert (weights.dtype, ids.dtype) == (torch.float32, torch.int32)
    assert fused_topk(hidden_states, logits, 2, True, torch.int64)[1].dtype == torch.int64
    assert torch.allclose(weights.sum(1), torch.ones(3))
    with pytest.raises(ValueError) as caught:
        fused_topk(hidden_states, logits, 6, True)
    assert str(caught.value) == (
        "fused_topk: hidden_states (3, 4) and gating_output (3, 5), expected [tokens, hidden] and "
        "[tokens, num_experts] with at least 6 experts."
    )


def test_experts_say_what_they_do_not_support() -> None:
    """Each reason that experts give for a configuration they cannot run, whole."""
    fp8_tensor = QuantKey(FP8_DTYPE, True, GroupShape.PER_TENSOR)
    fp8_block = QuantKey(FP8_DTYPE, False, GroupShape(1, 128))
    standard, batched = mk.FusedMoEActivationFormat.Standard, mk.FusedMoEActivationFormat.BatchedExperts
    cases = [
        (TritonExperts, "cpu", None, None, standard, "TritonExperts does not support device cpu"),
        (TorchExperts, "cpu", None, None, batched, "TorchExperts does not support the BatchedExperts format"),
        (
            TorchExperts,
            "cpu",
            fp8_tensor,
            fp8_block,
            standard,
            (
                "TorchExperts does not support weights float8_e4m3fn static per tensor with activations "
                "float8_e4m3fn dynamic per 1x128 block"
            ),
        ),
        (
            XPUExperts,
            "cpu",
            fp8_tensor,
            None,
            standard,
            (
                "XPUExperts does not support weights float8_e4m3fn static per tensor with activations "
                "unquantized"
            ),
        ),
    ]
    for experts_class, device, weight_key, activation_key, form, reason in cases:
        found = experts_class.is_supported_config(
            experts_class, config(device), weight_key, activation_key, form
        )
        assert found == (False, reason)


def test_quantized_experts_refuse_rows_without_scales() -> None:
    """Deferring the quantization to experts that do not quantize is an error, not a wrong answer."""
    layer = make_layer("fp8 token")
    experts = NaiveBatchedExperts(config(), layer.quant_config, max_num_tokens=4, num_dispatchers=1)
    hidden_states, weights, ids = tokens_of(4, 1)
    pf = BatchedPrepareAndFinalize(4, EXPERTS, 1, 0)
    batch, scale, meta, _, _ = pf.prepare(
        hidden_states,
        weights,
        ids.clamp(min=0),
        EXPERTS,
        None,
        False,
        layer.quant_config,
        defer_input_quant=True,
    )
    assert scale is None
    assert batch.dtype == torch.float32
    empty = torch.empty(0)
    with pytest.raises(ValueError) as caught:
        experts.apply(
            torch.empty(EXPERTS, 4, HIDDEN), batch, layer.w1,
            layer.w2, weights, ids, MoEActivation.SILU, EXPERTS,
            None, scale, None, empty, empty, meta, False,
        )  # fmt: skip
    assert str(caught.value) == (
        "Quantized experts got rows without scales: either prepare left the quantization to experts that "
        "do not do it, or it lost them."
    )


@pytest.mark.parametrize("group", [0, 128])
def test_middle_scale_ignores_padding(group: int) -> None:
    """Rows beyond an expert's count, whatever they hold, do not change the second product's scales."""
    name = "fp8 block" if group else "fp8 dynamic"
    layer = make_layer(name)
    rows = torch.randn(EXPERTS, 5, HIDDEN)
    scheme = QuantScheme(QuantKind.BLOCK if group else QuantKind.TOKEN, FP8_DTYPE, group, None)
    quantized, scale = quantize_rows_torch(rows.flatten(0, 1), scheme)
    assert scale is not None
    if not group:
        quantized = dequantize(quantized, scale).to(FP8_DTYPE)
    batch = quantized.view(EXPERTS, 5, HIDDEN)
    scales = scale.view(EXPERTS, 5, -1) if group else torch.ones(EXPERTS, 1, 1)
    counts = torch.tensor([5, 3, 0, 1, 2, 4], dtype=torch.int32)
    outputs = []
    for filler in (0.0, float("nan")):
        padded = batch.float()
        padded[torch.arange(5) >= counts[:, None]] = filler
        output = torch.zeros(EXPERTS, 5, HIDDEN)
        grouped_mlp_torch(
            output, padded.to(FP8_DTYPE), scales, counts, layer.w1, layer.w2, MoEActivation.SILU,
            layer.quant_config, torch.empty(0), torch.empty(0),
        )  # fmt: skip
        outputs.append(output)
    assert torch.equal(outputs[0], outputs[1])
