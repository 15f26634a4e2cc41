"""Tokens, placements and quantizations for the tests of the kernels."""

from typing import NamedTuple

import pytest
import torch

from tests.vllm_moe.reference import (
    expert_rows,
)
from vllm_moe.fused_moe.config import FP8_DTYPE
from vllm_moe.fused_moe.kernels import (
    ExpertPlacement,
    QuantKind,
    QuantScheme,
)

SCHEMES = {
    "none": QuantScheme(QuantKind.NONE, None, 0, None),
    "fp8 static": QuantScheme(QuantKind.STATIC_TENSOR, FP8_DTYPE, 0, torch.tensor([0.013])),
    "fp8 dynamic": QuantScheme(QuantKind.DYNAMIC_TENSOR, FP8_DTYPE, 0, None),
    "fp8 token": QuantScheme(QuantKind.TOKEN, FP8_DTYPE, 0, None),
    "fp8 block": QuantScheme(QuantKind.BLOCK, FP8_DTYPE, 128, None),
    "int8 token": QuantScheme(QuantKind.TOKEN, torch.int8, 0, None),
}


class Case(NamedTuple):
    """Tokens and where they go."""

    a1: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor
    placement: ExpertPlacement


def make_case(
    tokens: int,
    topk: int,
    experts: int,
    local: int,
    hidden: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    ids_dtype: torch.dtype = torch.int64,
    tables: str = "",
) -> Case:
    """Random tokens whose ids hold -1 and repeats; local experts are the last ones, or as tables say."""
    generator = torch.Generator().manual_seed(seed)
    a1 = (
        torch.randn(tokens, hidden, generator=generator)
        * torch.rand(tokens, 1, generator=generator).exp()
        * 2
    )
    ids = torch.randint(-1, experts, (tokens, topk), generator=generator).to(ids_dtype)
    to_physical = expert_map = None
    if "physical" in tables:
        to_physical = torch.randperm(experts, generator=generator).to(torch.int32)
    if "map" in tables:
        expert_map = torch.full((experts,), -1, dtype=torch.int32)
        expert_map[torch.randperm(experts, generator=generator)[:local]] = torch.arange(
            local, dtype=torch.int32
        )
    placement = ExpertPlacement(local, experts - local, to_physical, expert_map, experts)
    weights = torch.rand(tokens, topk, generator=generator)
    return Case(a1.to(dtype), weights, ids, placement)


def local_of(placement: ExpertPlacement, expert: int) -> int | None:
    """Where one global expert is, by the definition of a placement."""
    if placement.global_to_physical is not None:
        expert = int(placement.global_to_physical[expert])
    if placement.expert_map is not None:
        local = int(placement.expert_map[expert])
        return local if local >= 0 else None
    local = expert - placement.first_expert
    return local if 0 <= local < placement.num_local_experts else None


def rows_of(case: Case) -> list[list[int]]:
    """Tokens of each local expert, by brute force."""
    return expert_rows(
        case.ids, lambda expert: local_of(case.placement, expert), case.placement.num_local_experts
    )


CASES = [
    make_case(7, 3, 8, 4, 200),
    make_case(1, 1, 1, 1, 8),
    make_case(0, 2, 4, 4, 130),
    make_case(33, 8, 16, 16, 264, ids_dtype=torch.int32),
    make_case(19, 2, 6, 3, 129, tables="map"),
    make_case(19, 5, 6, 3, 64, tables="physical"),
    make_case(19, 6, 8, 2, 64, tables="physical map", ids_dtype=torch.int16),
    make_case(12, 4, 300, 100, 32, dtype=torch.float32),
    make_case(9, 2, 4, 4, 128, dtype=torch.float16),
]
CASE_NAMES = [f"{'x'.join(map(str, case.ids.shape))}of{case.placement.num_local_experts}" for case in CASES]
all_cases = pytest.mark.parametrize("case", CASES, ids=CASE_NAMES)
all_schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
