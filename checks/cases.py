"""One call of a backend as data: routing, sizes, dtypes, quantization; and each rank's inputs for it."""

from dataclasses import dataclass, field, fields
from functools import lru_cache

import torch

__all__ = ["ROUTINGS", "Case", "Inputs", "hosted_experts", "inputs", "physical_experts", "placement_tables"]

ROUTINGS = ("uniform", "skewed", "one_expert", "few_experts", "duplicates", "holes", "all_missing")
"""Even; mostly the first experts; all slots the last one; two experts of all; repeated ids in a row; -1 in single slots
and in whole rows, whose activations are NaN; nothing but -1."""

Ids = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Case:
    """What a backend is called with; a check lists those that would expose what it is about."""

    routing: str = "uniform"
    """One of :data:`ROUTINGS`; not used when ``ids`` is given."""
    ids: Ids = field(default=())
    """Expert ids themselves, ``[rank][token][slot]``."""
    tokens: tuple[int, ...] = (5, 0, 8, 3)
    """Tokens of each rank; as many as there are ranks are used."""
    topk: int = 2
    num_experts: int = 8
    dtype: str = ""
    """Activation dtype; empty is the backend's first."""
    quantization: str = "none"
    weight_on_input: bool = False
    defer: bool = False
    ids_dtype: str = "int64"
    placement: str = "linear"
    reduction: str = "delegate"
    hidden: int = 0
    """0 is the least that the backend takes."""
    capacity: int = 8
    strided: bool = False
    """Activations, ids, weights and output that are every other column or row of something larger."""
    grid: tuple[int, int] = (0, 1)
    """Data-parallel and tensor-parallel size; a data-parallel size of 0 is the world's."""
    variant: str = ""
    """Anything else that the check distinguishes."""
    seed: int = 0

    def __str__(self) -> str:
        changed = [
            f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if getattr(self, one.name) != one.default
        ]
        return f"Case({', '.join(changed)})"


@dataclass(frozen=True)
class Inputs:
    """A rank's activations ``[tokens, hidden]``, float32 router weights and ids ``[tokens, topk]``."""

    a1: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor


def _routed(case: Case, rank: int, tokens: int, generator: torch.Generator) -> torch.Tensor:
    experts, topk = case.num_experts, case.topk
    if case.ids:
        return torch.tensor(case.ids[rank], dtype=torch.int64).view(tokens, topk)
    preference = torch.rand(tokens, experts, generator=generator)
    if case.routing == "skewed":
        preference = preference + torch.arange(experts) * (1.5 / experts)
    if case.routing == "few_experts":
        preference[:, topk:] += 2.0
    ids = preference.argsort(dim=1)[:, :topk]
    if case.routing == "one_expert":
        ids = torch.full_like(ids, experts - 1)
        ids[:, 1:] = torch.arange(topk - 1)
    if case.routing == "duplicates":
        ids[::2] = ids[::2, :1]
    if case.routing == "holes":
        ids[1::3] = -1
        ids[::3, -1] = -1
    if case.routing == "all_missing":
        ids.fill_(-1)
    return ids


@lru_cache(maxsize=64)
def inputs(case: Case, rank: int, hidden: int, dtype: torch.dtype, seed: int) -> Inputs:
    """A rank's inputs on the CPU, the same on whichever rank this is called; neighbours' magnitudes differ by 10.

    The tensors are shared by all who ask, and are not to be written. Rows without any expert hold NaN.
    """
    tokens = case.tokens[rank]
    generator = torch.Generator().manual_seed(100_003 * (seed + case.seed) + 17 * rank + 1)
    a1 = torch.randn(tokens, hidden, generator=generator) * (10.0 if rank % 2 else 1.0)
    weights = torch.rand(tokens, case.topk, generator=generator) + 0.25
    ids = _routed(case, rank, tokens, generator)
    a1[(ids < 0).all(dim=1)] = torch.nan
    return Inputs(a1.to(dtype), weights, ids.to(getattr(torch, case.ids_dtype)))


def physical_experts(case: Case, world_size: int) -> int:
    """How many experts there are over all ranks, copies included."""
    if case.placement != "redundant":
        return case.num_experts
    return case.num_experts + 4 * -(-world_size // 4)


def hosted_experts(case: Case, rank: int, world_size: int) -> list[int]:
    """The logical experts of a rank, by local id."""
    local = physical_experts(case, world_size) // world_size
    if case.placement == "round_robin":
        return [index * world_size + rank for index in range(local)]
    return [(rank * local + index) % case.num_experts for index in range(local)]


def placement_tables(
    case: Case, rank: int, world_size: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """``expert_map`` int32 and ``(global_to_physical, physical_to_global, local_expert_global_ids)`` int64."""
    hosted = [hosted_experts(case, one, world_size) for one in range(world_size)]
    physical_to_global = torch.tensor([expert for row in hosted for expert in row])
    global_to_physical = torch.zeros(case.num_experts, dtype=torch.int64)
    # Of an expert's copies the last is used, so that a table that is not heeded shows.
    for physical, expert in enumerate(physical_to_global.tolist()):
        global_to_physical[expert] = physical
    expert_map = torch.full((case.num_experts,), -1, dtype=torch.int32)
    local = len(hosted[rank])
    for expert, physical in enumerate(global_to_physical.tolist()):
        if physical // local == rank:
            expert_map[expert] = physical % local
    return expert_map, (global_to_physical, physical_to_global, torch.tensor(hosted[rank]))
