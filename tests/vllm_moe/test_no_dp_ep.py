"""Prepare/finalize without dispatch, modular and monolithic."""

import pytest
import torch

import vllm_moe.fused_moe.modular_kernel as mk
from tests.vllm_moe.reference import combine, quantization_error_bound, relative_error
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize import (
    MoEPrepareAndFinalizeNoDPEPModular,
    MoEPrepareAndFinalizeNoDPEPMonolithic,
    make_moe_prepare_and_finalize_no_dp_ep,
)
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate, TopKWeightAndReduceNoOP

QUANTIZATIONS = {
    "fp8 static": FusedMoEQuantConfig.make(FP8_DTYPE, a1_scale=torch.tensor([0.02])),
    "fp8 dynamic": FusedMoEQuantConfig.make(FP8_DTYPE),
    "fp8 token": FusedMoEQuantConfig.make(FP8_DTYPE, per_act_token_quant=True),
    "fp8 block": FusedMoEQuantConfig.make(FP8_DTYPE, block_shape=[128, 128]),
    "int8 token": FusedMoEQuantConfig.make(torch.int8, per_act_token_quant=True),
}
UNQUANTIZED = FusedMoEQuantConfig.make()


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Give every test the same random numbers each time."""
    torch.manual_seed(5)


@pytest.mark.parametrize("monolithic", [False, True])
def test_the_factory_makes_either_and_each_says_what_it_is(monolithic: bool) -> None:
    """One dispatcher, the standard format, no limits, not reduced, not asynchronous."""
    pf = make_moe_prepare_and_finalize_no_dp_ep(monolithic)
    kind = MoEPrepareAndFinalizeNoDPEPMonolithic if monolithic else MoEPrepareAndFinalizeNoDPEPModular
    assert type(pf) is kind
    assert pf.activation_format is mk.FusedMoEActivationFormat.Standard
    assert pf.num_dispatchers() == 1
    assert pf.max_num_tokens_per_rank() is None
    assert pf.topk_indices_dtype() is None
    assert not pf.output_is_reduced()
    assert not pf.supports_async()


@pytest.mark.parametrize("name", QUANTIZATIONS)
@pytest.mark.parametrize("flag", [False, True])
def test_rows_are_quantized_within_half_a_step_and_inputs_kept(name: str, flag: bool) -> None:
    """Dequantized rows are the (weighted) input to half a step; no argument changes."""
    quant_config = QUANTIZATIONS[name]
    a1, weights = torch.randn(11, 200).bfloat16(), torch.rand(11, 1) + 0.5
    ids = torch.randint(0, 4, (11, 1))
    before = [(tensor.clone(), tensor._version) for tensor in (a1, weights, ids)]
    a1q, scale, meta, new_ids, new_weights = MoEPrepareAndFinalizeNoDPEPModular().prepare(
        a1, weights, ids, 4, None, flag, quant_config
    )
    assert meta is None
    assert new_ids is None
    assert new_weights is None
    assert a1q.dtype == quant_config.quant_dtype
    assert scale is not None
    assert scale.shape == quant_config.scale_shape(11, 200)
    expected = ((a1.float() * weights).bfloat16() if flag else a1).double()
    wide = scale.repeat_interleave(128, 1)[:, :200] if "block" in name else scale.expand(11, 200)
    limit = 127.0 if quant_config.quant_dtype is torch.int8 else 448.0
    clipped = expected.clamp(-limit * wide, limit * wide)
    bound = quantization_error_bound(clipped, wide, a1q.dtype)
    assert ((a1q.double() * wide - clipped).abs() <= bound).all()
    for tensor, (old, version) in zip((a1, weights, ids), before, strict=True):
        assert torch.equal(tensor, old)
        assert tensor._version == version


@pytest.mark.parametrize("monolithic", [False, True])
@pytest.mark.parametrize("name", ["none", *QUANTIZATIONS])
def test_unquantized_and_deferred_rows_come_back_as_they_are(monolithic: bool, name: str) -> None:
    """Without quantization, or with it deferred, the very tensor is given back, without a scale."""
    a1, weights, ids = torch.randn(3, 8), torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.int32)
    quant_config = QUANTIZATIONS.get(name, UNQUANTIZED)
    defer = name != "none"
    if monolithic:
        logits = torch.randn(3, 4)
        found, scale, new_logits = MoEPrepareAndFinalizeNoDPEPMonolithic().prepare(
            a1, logits, quant_config, defer_input_quant=defer
        )
        assert new_logits is logits
    else:
        found, scale, *_ = MoEPrepareAndFinalizeNoDPEPModular().prepare(
            a1, weights, ids, 4, None, False, quant_config, defer_input_quant=defer
        )
    assert found is a1
    assert scale is None


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_rows_without_experts_do_not_change_the_others(name: str, poison: float) -> None:
    """A row whose ids are all -1 may hold anything: every other row and its scale keep their bits."""
    a1, weights = torch.randn(6, 140), torch.rand(6, 2)
    ids = torch.randint(0, 4, (6, 2))
    ids[2] = -1
    pf = MoEPrepareAndFinalizeNoDPEPModular()
    clean = pf.prepare(a1, weights, ids, 4, None, False, QUANTIZATIONS[name])
    poisoned = a1.clone()
    poisoned[2] = poison
    found = pf.prepare(poisoned, weights, ids, 4, None, False, QUANTIZATIONS[name])
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found[0][others].float(), clean[0][others].float())
    assert found[1] is not None
    assert clean[1] is not None
    rows = others if found[1].size(0) > 1 else [0]
    assert torch.equal(found[1][rows], clean[1][rows])


def test_monolithic_prepare_quantizes_like_the_modular_one() -> None:
    """The same rows give the same bits; finalize gives its argument back."""
    a1, logits = torch.randn(5, 130), torch.randn(5, 4)
    ids, weights = torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1)
    for quant_config in QUANTIZATIONS.values():
        modular = MoEPrepareAndFinalizeNoDPEPModular().prepare(a1, weights, ids, 4, None, False, quant_config)
        monolithic = MoEPrepareAndFinalizeNoDPEPMonolithic().prepare(a1, logits, quant_config)
        assert torch.equal(modular[0].float(), monolithic[0].float())
        assert modular[1] is not None
        assert monolithic[1] is not None
        assert torch.equal(modular[1], monolithic[1])
    assert MoEPrepareAndFinalizeNoDPEPMonolithic().finalize(a1) is a1


@pytest.mark.parametrize("flag", [False, True])
def test_finalize_weights_and_reduces_as_the_experts_ask(flag: bool) -> None:
    """Delegated, slots are weighted (unless the input was) and added up; reduced outputs are copied."""
    rows, weights = torch.randn(7, 3, 40), torch.rand(7, 3)
    ids = torch.randint(-1, 4, (7, 3))
    pf = MoEPrepareAndFinalizeNoDPEPModular()
    output = torch.full((7, 40), float("nan"))
    pf.finalize(output, rows, weights, ids, flag, TopKWeightAndReduceDelegate())
    expected = combine(
        lambda token, k: None if ids[token, k] < 0 else rows[token, k], ids, None if flag else weights, 40
    )
    assert relative_error(output, expected) < 1e-6
    pf.finalize(output, rows[:, 0], weights, ids, flag, TopKWeightAndReduceNoOP())
    assert torch.equal(output, rows[:, 0])


def test_weights_on_the_input_need_topk_1() -> None:
    """With topk over 1 the flag is refused, with the reason."""
    with pytest.raises(ValueError) as caught:
        MoEPrepareAndFinalizeNoDPEPModular().prepare(
            torch.randn(2, 4),
            torch.rand(2, 2),
            torch.zeros(2, 2, dtype=torch.int64),
            4,
            None,
            True,
            UNQUANTIZED,
        )
    assert str(caught.value) == (
        "MoEPrepareAndFinalizeNoDPEPModular.prepare: apply_router_weight_on_input needs topk 1, found "
        "topk 2: one row cannot carry several experts' weights. Apply the weights in finalize."
    )
