"""Which row of the batched layout each routed token gets.

Row ``p`` of local expert ``e`` belongs to the ``p``-th token, in token order, that named ``e``. A token that
names one expert twice has one row there, so no expert ever needs more rows than there are tokens: a buffer
with as many rows as tokens cannot overflow, whatever the router does.
"""

from typing import NamedTuple

import torch

from vllm_moe.fused_moe.kernels._device import triton_rows

__all__ = [
    "ExpertPlacement",
    "count_expert_num_tokens",
    "count_expert_num_tokens_torch",
    "route",
    "route_torch",
]


class ExpertPlacement(NamedTuple):
    """Which global experts live on this rank, and as which local ones.

    A global id goes through ``global_to_physical`` first, if given; then through ``expert_map``, if given,
    or else local expert ``i`` is physical expert ``first_expert + i``.
    """

    num_local_experts: int
    first_expert: int = 0
    global_to_physical: torch.Tensor | None = None
    """Integer ``[num_experts]``: physical expert of each global id; several ids may name one."""
    expert_map: torch.Tensor | None = None
    """Integer: local expert of each physical one, -1 where another rank has it."""
    num_experts: int | None = None
    """How many global ids there are; with it, ids beyond are refused."""


def _refuse_ids_out_of_range(topk_ids: torch.Tensor, num_experts: int) -> None:
    # On a device this would have to wait for it: there the kernel asserts instead.
    if topk_ids.device.type != "cpu" or not topk_ids.numel():
        return
    low, high = (int(bound) for bound in topk_ids.aminmax())
    if low < -1 or high >= num_experts:
        found = high if high >= num_experts else low
        raise ValueError(
            f"topk_ids holds {found}, expected -1 (no expert) or an id from 0 to {num_experts - 1}. Check "
            "the router and the table that maps its ids."
        )


def _bound(placement: ExpertPlacement) -> int | None:
    tables = (placement.global_to_physical, placement.expert_map)
    lengths = [table.numel() for table in tables if table is not None]
    return lengths[0] if lengths else placement.num_experts


def local_expert_ids_torch(topk_ids: torch.Tensor, placement: ExpertPlacement) -> torch.Tensor:
    """int64 like ``topk_ids``: the local expert of each slot, -1 where there is none or another rank has it.

    Raises ValueError on the CPU when an id is outside -1 to ``num_experts - 1``.
    """
    ids = topk_ids.to(torch.int64)
    bound = _bound(placement)
    if bound is not None:
        _refuse_ids_out_of_range(ids, bound)
    first = placement.first_expert
    for table in (placement.global_to_physical, placement.expert_map):
        if table is not None:
            mapped = table.to(torch.int64)[ids.clamp(min=0)]
            ids = torch.where(ids < 0, ids, mapped)
    if placement.expert_map is not None:
        first = 0
    local = ids - first
    here = (ids >= 0) & (local >= 0) & (local < placement.num_local_experts)
    return torch.where(here, local, -1)


def route_torch(
    topk_ids: torch.Tensor, placement: ExpertPlacement, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give each slot its row among ``num_local_experts * rows``, and each local expert its count.

    - ``topk_ids``: integer ``[tokens, topk]``, -1 for a slot without an expert.
    - ``rows``: rows of each expert in the layout that the slots index; at least ``tokens``.

    Returns ``slots``, int32 ``[tokens, topk]``, ``expert * rows + position`` or -1 where there is nothing to
    do here (slots of one token that name the same expert share a row), and ``counts``, int32
    ``[num_local_experts]``.
    """
    tokens, topk = topk_ids.shape
    experts = placement.num_local_experts
    local = local_expert_ids_torch(topk_ids, placement)
    # One extra expert collects what goes nowhere. Experts outermost, so that the running sum is over memory
    # order.
    named = torch.zeros(experts + 1, tokens, dtype=torch.int32, device=topk_ids.device)
    target = torch.where(local < 0, experts, local)
    token = torch.arange(tokens, device=topk_ids.device)[:, None].expand(tokens, topk)
    named[target, token] = 1
    running = named.cumsum(1, dtype=torch.int32)
    slots = running[target, token] - 1 + (target * rows).to(torch.int32)
    slots = torch.where(local < 0, -1, slots)
    counts = running[:experts, -1].contiguous() if tokens else named.new_zeros(experts)
    return slots, counts


def route(topk_ids: torch.Tensor, placement: ExpertPlacement, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`route_torch` in one launch on CUDA, torch elsewhere."""
    if topk_ids.is_cuda:
        result: tuple[torch.Tensor, torch.Tensor] = triton_rows().route(topk_ids, placement, rows)
        return result
    return route_torch(topk_ids, placement, rows)


def count_expert_num_tokens_torch(
    topk_ids: torch.Tensor, num_local_experts: int, expert_map: torch.Tensor | None
) -> torch.Tensor:
    """Slots that name each local expert, int32 ``[num_local_experts]``; -1 counts nowhere.

    A token that names an expert twice counts twice: it is a count of rows in a transport that sends a row
    for each slot, and of ``topk_ids`` that such a transport has delivered.
    """
    local = local_expert_ids_torch(
        topk_ids, ExpertPlacement(num_local_experts, expert_map=expert_map)
    ).flatten()
    target = torch.where(local < 0, num_local_experts, local)
    counts = torch.zeros(num_local_experts + 1, dtype=torch.int32, device=topk_ids.device)
    counts.index_add_(0, target, torch.ones_like(target, dtype=torch.int32))
    return counts[:num_local_experts].clone()


def count_expert_num_tokens(
    topk_ids: torch.Tensor, num_local_experts: int, expert_map: torch.Tensor | None
) -> torch.Tensor:
    """:func:`count_expert_num_tokens_torch` in Triton on CUDA (vLLM: ``fused_moe/utils.py``)."""
    if topk_ids.is_cuda:
        counts: torch.Tensor = triton_rows().count_expert_num_tokens(topk_ids, num_local_experts, expert_map)
        return counts
    return count_expert_num_tokens_torch(topk_ids, num_local_experts, expert_map)
