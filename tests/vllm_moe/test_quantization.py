"""Quantization through vLLM's function names, and the small helpers around it."""

import pytest
import torch

from tests.vllm_moe.reference import fp8_values, quantization_error_bound, relative_error
from vllm_moe.fused_moe.config import FP8_DTYPE
from vllm_moe.fused_moe.kernels.grouped import dequantize_weights
from vllm_moe.fused_moe.utils import (
    moe_kernel_quantize_input,
    normalize_batched_scales_shape,
    normalize_scales_shape,
    resize_cache,
)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(13)


@pytest.mark.parametrize("hidden", [1, 100, 128, 129, 512, 2880])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", ["tensor", "static", "token", "block", "int8 token", "int8 tensor"])
def test_every_value_is_rounded_to_nearest(hidden: int, dtype: torch.dtype, scheme: str) -> None:
    """Scales follow from the values they cover, and no value moves by more than half a step."""
    a = (torch.randn(5, hidden) * torch.tensor([1e-3, 0.1, 1.0, 10.0, 0.0])[:, None]).to(dtype)
    quant_dtype = torch.int8 if "int8" in scheme else FP8_DTYPE
    static = torch.tensor([0.02]) if scheme == "static" else None
    block_shape = [128, 128] if scheme == "block" else None
    before = a.clone()
    quantized, scale = moe_kernel_quantize_input(a, static, quant_dtype, "token" in scheme, block_shape)
    assert quantized.dtype == quant_dtype
    assert quantized.shape == a.shape
    assert torch.equal(a, before)
    assert scale is not None
    limit = 127.0 if quant_dtype is torch.int8 else float(fp8_values().max())
    values = a.double()
    if scheme == "static":
        wanted = torch.tensor([[0.02]])
    elif scheme == "block":
        wanted = torch.stack([part.abs().amax(1) for part in values.split(128, 1)], 1) / limit
    elif "token" in scheme:
        wanted = values.abs().amax(1, keepdim=True) / limit
    else:
        wanted = values.abs().amax().view(1, 1) / limit
    wanted = wanted.clamp(min=1e-10 / limit)
    assert scale.shape == wanted.shape
    assert ((scale.double() / wanted - 1).abs() < 1e-6).all()
    wide = scale.repeat_interleave(128, 1)[:, :hidden] if scheme == "block" else scale.expand(a.shape)
    clipped = values.clamp(-limit * wide, limit * wide)
    bound = quantization_error_bound(clipped, wide, quant_dtype)
    assert ((quantized.double() * wide - clipped).abs() <= bound).all()


def test_magnitudes_beyond_a_static_scale_saturate() -> None:
    """Values too large for the given scale become the largest one, never infinite or of the other sign."""
    a = torch.tensor([[1e6, -1e6, 448.0, 3.0]])
    quantized, _ = moe_kernel_quantize_input(a, torch.tensor([1.0]), FP8_DTYPE, False)
    assert quantized.float().tolist() == [[448.0, -448.0, 448.0, 3.0]]
    quantized, _ = moe_kernel_quantize_input(a, torch.tensor([1.0]), torch.int8, False)
    assert quantized.tolist() == [[127, -127, 127, 3]]


def test_masked_rows_stay_out_of_the_scale() -> None:
    """A computed per-tensor scale is that of the rows that the mask lets through."""
    a = torch.tensor([[1.0, -2.0], [float("nan"), 1e30], [0.5, 4.0]])
    mask = torch.tensor([True, False, True])
    quantized, scale = moe_kernel_quantize_input(a, None, FP8_DTYPE, False, row_mask=mask)
    assert scale is not None
    assert scale.item() == pytest.approx(4.0 / 448.0)
    assert relative_error(quantized[[0, 2]].float() * scale, a[[0, 2]]) < 1e-6


def test_unquantized_rows_and_their_scale_come_back() -> None:
    """Without a dtype nothing is done."""
    a, scale = torch.randn(2, 4), torch.ones(1)
    assert moe_kernel_quantize_input(a, scale, None, False) == (a, scale)


def test_a_static_scale_for_tokens_is_refused() -> None:
    """Per token scales are computed; a given one is an error, not ignored."""
    with pytest.raises(ValueError) as caught:
        moe_kernel_quantize_input(torch.randn(2, 4), torch.ones(1), FP8_DTYPE, True)
    assert str(caught.value) == (
        "FusedMoEQuantConfig: a1_scale is given, but per token and per block scales are computed from the "
        "values. Leave a1_scale out."
    )


def test_scales_take_their_normal_shapes() -> None:
    """One scale is [1, 1] (or one an expert), others keep a row each."""
    assert normalize_scales_shape(None) is None
    one, rows = torch.ones(1), torch.randn(6, 2)
    for scales, shape in ((one, (1, 1)), (rows, (6, 2)), (rows.view(2, 3, 2), (6, 2))):
        normal = normalize_scales_shape(scales)
        assert normal is not None
        assert normal.shape == shape
    assert normalize_batched_scales_shape(None, 3) is None
    for scales, shape in ((one, (3, 1, 1)), (rows, (3, 2, 2)), (rows.view(3, 2, 2), (3, 2, 2))):
        normal = normalize_batched_scales_shape(scales, 3)
        assert normal is not None
        assert normal.shape == shape


def test_workspaces_are_views_of_the_right_shape() -> None:
    """The front of a workspace is lent out; one too small is named with both numbers."""
    workspace = torch.arange(12.0)
    view = resize_cache(workspace, (2, 3))
    assert view.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert view.data_ptr() == workspace.data_ptr()
    with pytest.raises(ValueError) as caught:
        resize_cache(workspace, (4, 4))
    assert str(caught.value) == "resize_cache: shape (4, 4) needs 16 elements, but the workspace has 12."


def test_weights_are_dequantized_by_the_scale_they_have() -> None:
    """Per tensor, per channel and per block, also where the last block is cut; other shapes are refused."""
    weights = torch.randint(-8, 8, (2, 6, 10)).to(torch.int8)
    values = weights.double()
    tensor, channel, block = torch.rand(2), torch.rand(2, 6, 1), torch.rand(2, 2, 3)
    assert relative_error(dequantize_weights(weights, tensor, None), values * tensor.view(2, 1, 1)) < 1e-6
    assert relative_error(dequantize_weights(weights, channel, None), values * channel) < 1e-6
    wide = torch.stack([block[:, row // 4, column // 4] for row in range(6) for column in range(10)], 1)
    assert relative_error(dequantize_weights(weights, block, [4, 4]), values * wide.view(2, 6, 10)) < 1e-6
    with pytest.raises(ValueError) as caught:
        dequantize_weights(weights, torch.rand(2, 3), None)
    assert str(caught.value) == (
        "Scales of shape (2, 3) do not fit weights (2, 6, 10) per tensor or per channel. Give one scale "
        "for each expert, output channel or block."
    )
