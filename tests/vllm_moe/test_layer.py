"""The layer: every backend and quantization against the dense float64 reference, weights, shared and copied experts."""

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from tests.vllm_moe.dispatch_cases import BACKENDS
from vllm_moe._run import Options, run_rank
from vllm_moe.fused_moe.config import FusedMoEConfig
from vllm_moe.fused_moe.layer import (
    LOCAL_BACKENDS,
    QUANTIZATIONS,
    FusedMoE,
    fused_moe_make_expert_params_mapping,
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
