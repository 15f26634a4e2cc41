"""The configuration of a layer, of its ranks and of its quantization."""

from collections.abc import Callable

import pytest
import torch

from tests.vllm_moe.configs import config
from vllm_moe.fused_moe.config import (
    FP8_DTYPE,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
    GroupShape,
    QuantKey,
    fp8_w8a8_moe_quant_config,
    int8_w8a8_moe_quant_config,
)


@pytest.mark.parametrize(
    ("sizes", "rank", "expert_parallel", "expected"),
    [
        # tp, pcp, dp -> (tp size, tp rank), (dp size, dp rank), (ep size, ep rank)
        ((1, 1, 1), 0, True, ((1, 0), (1, 0), (1, 0))),
        ((2, 1, 1), 1, False, ((2, 1), (1, 0), (1, 0))),
        ((2, 1, 2), 2, False, ((4, 2), (2, 1), (1, 0))),
        ((2, 1, 1), 1, True, ((1, 0), (1, 0), (2, 1))),
        ((1, 1, 2), 1, True, ((1, 0), (2, 1), (2, 1))),
        ((2, 1, 2), 3, True, ((1, 0), (2, 1), (4, 3))),
        ((2, 2, 2), 6, True, ((1, 0), (2, 1), (8, 6))),
    ],
)
def test_ranks_are_placed_in_the_grid(
    sizes: tuple[int, int, int],
    rank: int,
    expert_parallel: bool,
    expected: tuple[tuple[int, int], ...],
) -> None:
    """Tensor-parallel ranks vary fastest; with expert parallelism every device is an expert-parallel rank."""
    found = FusedMoEParallelConfig.make(*sizes, 1, rank=rank, enable_expert_parallel=expert_parallel)
    assert (
        (found.tp_size, found.tp_rank), (found.dp_size, found.dp_rank), (found.ep_size, found.ep_rank)
    ) == expected  # fmt: skip
    assert found.pcp_rank == rank // sizes[0] % sizes[1]


def test_a_backend_name_selects_one_kind_of_kernel() -> None:
    """Each name turns on its own property, and only with data and expert parallelism."""
    names = {
        "deepep_high_throughput": "use_deepep_ht_kernels",
        "deepep_low_latency": "use_deepep_ll_kernels",
        "flashinfer_nvlink_two_sided": "use_fi_nvl_two_sided_kernels",
        "flashinfer_all2allv": "use_fi_nvl_two_sided_kernels",
        "flashinfer_nvlink_one_sided": "use_fi_nvl_one_sided_kernels",
        "allgather_reducescatter": "use_ag_rs_all2all_kernels",
        "mori": "use_mori_kernels",
        "nixl_ep": "use_nixl_ep_kernels",
    }
    for name, wanted in names.items():
        parallel = FusedMoEParallelConfig.make(
            1, 1, 2, 1, rank=0, enable_expert_parallel=True, all2all_backend=name
        )
        assert [one for one in dict.fromkeys(names.values()) if getattr(parallel, one)] == [wanted]
        batched = name in {"deepep_low_latency", "nixl_ep"}
        assert parallel.use_batched_activation_format == batched
        assert parallel.needs_round_robin_routing_tables == batched
        alone = FusedMoEParallelConfig.make(
            2, 1, 1, 1, rank=0, enable_expert_parallel=True, all2all_backend=name
        )
        assert not any(getattr(alone, one) for one in names.values())


def test_configurations_that_mean_nothing_are_refused() -> None:
    """Each refusal, whole."""
    scale = torch.ones(1)
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: FusedMoEParallelConfig.make(2, 1, 2, 1, rank=4, enable_expert_parallel=True),
            (
                "FusedMoEParallelConfig: rank 4 is outside the grid of dp 2 x pcp 1 x tp 2, which has "
                "ranks 0 to 3."
            ),
        ),
        (lambda: config(hidden_dim=0), "FusedMoEConfig: hidden_dim is 0, expected at least 1."),
        (
            lambda: config(num_local_experts=5),
            "FusedMoEConfig: num_local_experts is 5, expected at most num_experts, 4.",
        ),
        (
            lambda: FusedMoEQuantConfig.make(torch.float16),
            (
                "FusedMoEQuantConfig: activations cannot be quantized to torch.float16, expected one of "
                "torch.float8_e4m3fn, torch.int8 or None."
            ),
        ),
        (
            lambda: FusedMoEQuantConfig.make(FP8_DTYPE, per_act_token_quant=True, block_shape=[128, 128]),
            (
                "FusedMoEQuantConfig: block_shape=[128, 128] already says which elements share a scale. "
                "Leave per_act_token_quant and per_out_ch_quant False, or block_shape None."
            ),
        ),
        (
            lambda: FusedMoEQuantConfig.make(FP8_DTYPE, block_shape=[128]),
            "FusedMoEQuantConfig: block_shape is [128], expected [rows, columns], both >= 1.",
        ),
        (
            lambda: FusedMoEQuantConfig.make(a1_scale=scale),
            "FusedMoEQuantConfig: a1_scale is given, but quant_dtype is None. Leave one out.",
        ),
        (
            lambda: FusedMoEQuantConfig.make(FP8_DTYPE, per_act_token_quant=True, a2_scale=scale),
            (
                "FusedMoEQuantConfig: a2_scale is given, but per token and per block scales are computed "
                "from the values. Leave a2_scale out."
            ),
        ),
        (
            lambda: FusedMoEQuantConfig.make(FP8_DTYPE, a1_scale=torch.ones(2, dtype=torch.float16)),
            (
                "FusedMoEQuantConfig: a1_scale is torch.float16 of shape (2,), expected torch.float32 of one "
                "element (one static scale for the whole tensor)."
            ),
        ),
    ]
    for build, message in cases:
        with pytest.raises(ValueError) as caught:
            build()
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("quant_config", "key", "shape", "flags"),
    [
        (FusedMoEQuantConfig.make(), None, None, ""),
        (
            FusedMoEQuantConfig.make(FP8_DTYPE),
            QuantKey(FP8_DTYPE, False, GroupShape.PER_TENSOR),
            (4, 1, 1),
            "tensor",
        ),
        (
            FusedMoEQuantConfig.make(FP8_DTYPE, a1_scale=torch.ones(1)),
            QuantKey(FP8_DTYPE, True, GroupShape.PER_TENSOR),
            (4, 1, 1),
            "tensor",
        ),
        (
            int8_w8a8_moe_quant_config(torch.ones(4), torch.ones(4)),
            QuantKey(torch.int8, False, GroupShape.PER_TOKEN),
            (4, 10, 1),
            "token",
        ),
        (
            fp8_w8a8_moe_quant_config(torch.ones(4, 1, 1), torch.ones(4, 1, 1), block_shape=[64, 128]),
            QuantKey(FP8_DTYPE, False, GroupShape(1, 128)),
            (4, 10, 3),
            "block",
        ),
    ],
)
def test_quantization_says_what_it_is(
    quant_config: FusedMoEQuantConfig,
    key: QuantKey | None,
    shape: tuple[int, int, int] | None,
    flags: str,
) -> None:
    """Keys, scale shapes and flags of each scheme."""
    assert quant_config.activation_key == key
    assert quant_config.batched_scale_shape(4, 10, 300) == shape
    assert quant_config.scale_shape(10, 300) == (None if shape is None else shape[1:])
    assert quant_config.is_quantized == bool(flags)
    assert quant_config.is_per_tensor == (flags == "tensor")
    assert quant_config.per_act_token_quant == (flags == "token")
    assert quant_config.is_block_quantized == (flags == "block")
    assert quant_config.block_shape == ([64, 128] if flags == "block" else None)
