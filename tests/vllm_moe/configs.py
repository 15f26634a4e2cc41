"""The configuration of a small layer, for tests."""

import torch

from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType


def config(**changes: object) -> FusedMoEConfig:
    """Make the configuration of a small layer."""
    fields = {
        "num_experts": 4,
        "experts_per_token": 2,
        "hidden_dim": 8,
        "intermediate_size_per_partition": 4,
        "num_local_experts": 4,
        "num_logical_experts": 4,
        "activation": MoEActivation.SILU,
        "device": "cpu",
        "routing_method": RoutingMethodType.Default,
        "moe_parallel_config": FusedMoEParallelConfig.make_no_parallel(),
        "in_dtype": torch.float32,
    }
    return FusedMoEConfig(**{**fields, **changes})  # type: ignore[arg-type]
