"""The experts' Triton kernels, on a CUDA device or in Triton's interpreter (``TRITON_INTERPRET=1``)."""


import pytest
import torch

from tests.vllm_moe.expert_cases import (
    DEVICE,
    DEVICE_TOLERANCES,
    EXPERTS,
    HIDDEN,
    INTERPRETED,
    TOLERANCES,
    Layer,
    all_layers,
    expected_layer,
    kernel_for,
    make_layer,
    tokens_of,
)
from tests.vllm_moe.reference import dense_moe, relative_error
from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import (
    FusedMoEQuantConfig,
)

needs_triton = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED),
    reason="needs a CUDA device, or triton installed and TRITON_INTERPRET=1",
)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(7)


@needs_triton
@pytest.mark.gpu
@all_layers
@pytest.mark.parametrize("format_name", ["standard", "batched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_layer_equals_the_dense_reference(name: str, format_name: str, dtype: torch.dtype) -> None:
    """The layer in Triton, with every quantization, against the dense reference."""
    layer = make_layer(name, dtype=dtype)
    if INTERPRETED and ("fp8" in name or dtype is torch.bfloat16):
        pytest.skip("the interpreter rounds to fp8 and bf16 inexactly")
    hidden_states, weights, ids = tokens_of(40, 3, dtype)
    there = Layer(*(tensor.to(DEVICE) for tensor in layer[:4]), _config_to(layer.quant_config, DEVICE))
    kernel = kernel_for(format_name, there, 48, DEVICE)
    arguments = (hidden_states.to(DEVICE), there.w1, there.w2, weights.to(DEVICE), ids.to(DEVICE))
    output = kernel.apply(*arguments, MoEActivation.SILU, -1, None, False)
    expected = expected_layer(name, format_name, layer, hidden_states, weights, ids)
    assert relative_error(output, expected) < DEVICE_TOLERANCES[dtype].get(name, TOLERANCES[name])


def _config_to(quant_config: FusedMoEQuantConfig, device: str) -> FusedMoEQuantConfig:
    scales = {
        name: None if getattr(quant_config, name) is None else getattr(quant_config, name).to(device)
        for name in ("w1_scale", "w2_scale", "a1_scale", "a2_scale")
    }
    return FusedMoEQuantConfig.make(
        quant_config.quant_dtype,
        per_act_token_quant=quant_config.per_act_token_quant,
        per_out_ch_quant=quant_config.per_out_ch_quant,
        block_shape=quant_config.block_shape,
        weight_dtype=quant_config.weight_quant_dtype,
        **scales,
    )


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("activation", MoEActivation)
@pytest.mark.parametrize("format_name", ["standard", "batched"])
def test_triton_activations(activation: MoEActivation, format_name: str) -> None:
    """Every activation in Triton is the reference's."""
    layer = make_layer("none", activation)
    hidden_states, weights, ids = tokens_of(9, 2)
    there = Layer(*(tensor.to(DEVICE) for tensor in layer[:4]), layer.quant_config)
    kernel = kernel_for(format_name, there, 9, DEVICE)
    arguments = (hidden_states.to(DEVICE), there.w1, there.w2, weights.to(DEVICE), ids.to(DEVICE))
    output = kernel.apply(*arguments, activation, -1, None, False)
    assert (
        relative_error(output, dense_moe(hidden_states, layer.w1, layer.w2, weights, ids, activation.value))
        < 2e-6
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("format_name", ["standard", "batched"])
@pytest.mark.parametrize("name", ["none", "fp8 dynamic", "fp8 block"])
def test_layer_replays_from_a_graph(format_name: str, name: str) -> None:
    """The layer is captured without waiting for the host; a replay with other tokens equals an eager call."""
    layer = make_layer(name)
    there = Layer(*(tensor.cuda() for tensor in layer[:4]), _config_to(layer.quant_config, "cuda"))
    hidden_states, weights, ids = (tensor.cuda() for tensor in tokens_of(40, 3))
    kernel = kernel_for(format_name, there, 40, "cuda")

    def run() -> torch.Tensor:
        return kernel.apply(
            hidden_states, there.w1, there.w2, weights, ids, MoEActivation.SILU, -1, None, False
        )

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    hidden_states.copy_(torch.randn(40, HIDDEN))
    ids.copy_(torch.randint(-1, EXPERTS, (40, 3)))
    graph.replay()
    assert torch.equal(output, run())
