"""Small layers of every quantization, their inputs and what they should give, for the tests of the experts."""

import importlib.util
import os
from typing import NamedTuple

import pytest
import torch

import vllm_moe.fused_moe.modular_kernel as mk
from tests.vllm_moe.reference import FakeQuantization, dense_moe
from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import (
    FP8_DTYPE,
    FusedMoEConfig,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
    RoutingMethodType,
)
from vllm_moe.fused_moe.experts import (
    TorchExperts,
    TritonExperts,
)
from vllm_moe.fused_moe.fused_batched_moe import BatchedTritonExperts, NaiveBatchedExperts
from vllm_moe.fused_moe.kernels.grouped import dequantize_weights
from vllm_moe.fused_moe.prepare_finalize import (
    BatchedPrepareAndFinalize,
    MoEPrepareAndFinalizeNoDPEPModular,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXPERTS, HIDDEN, WIDTH = 6, 256, 128
UNQUANTIZED = FusedMoEQuantConfig.make()


class Layer(NamedTuple):
    """Weights of a layer as they are stored, and as they are meant."""

    w1: torch.Tensor
    w2: torch.Tensor
    real_w1: torch.Tensor
    real_w2: torch.Tensor
    quant_config: FusedMoEQuantConfig


def _quantize_weights(
    weights: torch.Tensor, dtype: torch.dtype, how: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``[experts, out, in]`` in ``dtype`` and their scales."""
    limit = 448.0 if dtype is FP8_DTYPE else 127.0
    experts, out, width = weights.shape
    if how == "block":
        blocks = weights.view(experts, out // 128, 128, width // 128, 128)
        scale = blocks.abs().amax((2, 4)) / limit
        wide = scale.repeat_interleave(128, 1).repeat_interleave(128, 2)
    elif how == "channel":
        scale = weights.abs().amax(2, keepdim=True) / limit
        wide = scale
    else:
        scale = weights.abs().amax((1, 2)) / limit
        wide = scale.view(experts, 1, 1)
    scaled = weights / wide
    return (scaled.round() if dtype is torch.int8 else scaled).to(dtype), scale


def make_layer(
    name: str, activation: MoEActivation = MoEActivation.SILU, dtype: torch.dtype = torch.float32
) -> Layer:
    """Random weights under the named quantization."""
    generator = torch.Generator().manual_seed(11)
    rows = WIDTH * 2 if activation.is_gated else WIDTH
    w1 = torch.randn(EXPERTS, rows, HIDDEN, generator=generator) / 16
    w2 = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator) / 11
    # No two experts alike, so that taking the wrong one shows.
    w1 *= torch.linspace(0.5, 2.0, EXPERTS).view(-1, 1, 1)
    if name == "none":
        w1, w2 = w1.to(dtype), w2.to(dtype)
        return Layer(w1, w2, w1, w2, UNQUANTIZED)
    kind = torch.int8 if "int8" in name else FP8_DTYPE
    how = "block" if "block" in name else "channel" if "token" in name else "tensor"
    (q1, s1), (q2, s2) = (_quantize_weights(weights, kind, how) for weights in (w1, w2))
    block_shape = [128, 128] if how == "block" else None
    quant_config = FusedMoEQuantConfig.make(
        None if "weights" in name else kind,
        per_act_token_quant="token" in name,
        per_out_ch_quant=how == "channel",
        block_shape=block_shape,
        w1_scale=s1,
        w2_scale=s2,
        a1_scale=torch.tensor([STATIC_SCALES[0]]) if "static" in name else None,
        a2_scale=torch.tensor([STATIC_SCALES[1]]) if "static" in name else None,
        weight_dtype=kind,
    )
    real = [dequantize_weights(q, s, block_shape) for q, s in ((q1, s1), (q2, s2))]
    return Layer(q1, q2, real[0], real[1], quant_config)


def config(device: str = "cpu", **changes: object) -> FusedMoEConfig:
    """Make the configuration of the tests' layer."""
    fields = {
        "num_experts": EXPERTS,
        "experts_per_token": 2,
        "hidden_dim": HIDDEN,
        "intermediate_size_per_partition": WIDTH,
        "num_local_experts": EXPERTS,
        "num_logical_experts": EXPERTS,
        "activation": MoEActivation.SILU,
        "device": device,
        "routing_method": RoutingMethodType.Renormalize,
        "moe_parallel_config": FusedMoEParallelConfig.make_no_parallel(),
        "in_dtype": torch.float32,
    }
    return FusedMoEConfig(**{**fields, **changes})  # type: ignore[arg-type]


def tokens_of(count: int, topk: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Hidden states, weights and ids that hold -1 and repeats."""
    generator = torch.Generator().manual_seed(5)
    hidden_states = torch.randn(count, HIDDEN, generator=generator).to(dtype)
    weights = torch.rand(count, topk, generator=generator)
    ids = torch.randint(-1, EXPERTS, (count, topk), generator=generator)
    return hidden_states, weights, ids


# Relative errors that float32 arithmetic may leave beside a float64 layer that rounds where the quantization
# does. A value within a float32 rounding of the middle between two fp8 values may go either way: that is
# nearly all of it. test_tolerances_reject_wrong_layers shows what they do not let through.
TOLERANCES = {
    "none": 2e-6,
    "fp8 static": 2e-3,
    "fp8 dynamic": 2e-3,
    "fp8 token": 2e-3,
    "fp8 block": 2e-3,
    "int8 token": 1e-3,
    "fp8 weights": 2e-6,
    "int8 weights token": 2e-6,
}
STATIC_SCALES = (0.011, 0.02)
# On the device more is rounded before the second quantization, which makes more of its values go the other
# way: bf16 results of the first product, and the fp8 tensor cores of Hopper, which keep 14 bits or so of a
# sum.
DEVICE_TOLERANCES = {
    torch.float32: dict.fromkeys(("fp8 static", "fp8 dynamic", "fp8 token", "fp8 block"), 1e-2),
    torch.bfloat16: {name: 3e-2 if name.startswith("fp8") else 1.2e-2 for name in TOLERANCES},
}
all_layers = pytest.mark.parametrize("name", TOLERANCES)


def expected_layer(
    name: str, format_name: str, layer: Layer, *arguments: torch.Tensor, **options: object
) -> torch.Tensor:
    """Compute the dense layer with rows rounded as the named quantization rounds them in the format."""
    if name == "none" or "weights" in name:
        return dense_moe(arguments[0], layer.real_w1, layer.real_w2, *arguments[1:], **options)
    fake = FakeQuantization(
        torch.int8 if "int8" in name else FP8_DTYPE,
        "block" if "block" in name else "token" if "token" in name else "tensor",
        (lambda expert: expert) if format_name == "batched" else (lambda expert: 0),
        STATIC_SCALES if "static" in name else None,
    )
    return fake.moe(arguments[0], layer.real_w1, layer.real_w2, *arguments[1:], **options)


def kernel_for(format_name: str, layer: Layer, max_tokens: int, device: str = "cpu") -> mk.FusedMoEKernel:
    """Make a prepare/finalize and the experts that fit it."""
    moe_config = config(device)
    on_cuda = device == "cuda" or INTERPRETED
    if format_name == "batched":
        batched_class = BatchedTritonExperts if on_cuda else NaiveBatchedExperts
        experts: mk.FusedMoEExperts = batched_class(
            moe_config, layer.quant_config, max_num_tokens=max_tokens, num_dispatchers=1
        )
        return mk.FusedMoEKernel(BatchedPrepareAndFinalize(max_tokens, EXPERTS, 1, 0), experts)
    standard_class = TritonExperts if on_cuda else TorchExperts
    return mk.FusedMoEKernel(
        MoEPrepareAndFinalizeNoDPEPModular(), standard_class(moe_config, layer.quant_config)
    )
