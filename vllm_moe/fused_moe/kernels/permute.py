"""Sorting tokens by local expert, without padding, for experts that compute on the standard format."""

import torch

from vllm_moe.fused_moe.kernels._device import triton_rows
from vllm_moe.fused_moe.kernels.batched import scatter_rows_torch
from vllm_moe.fused_moe.kernels.routing import ExpertPlacement, route_torch

__all__ = ["permute_tokens", "permute_tokens_torch"]


def permute_tokens_torch(
    hidden_states: torch.Tensor,
    scale: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Copy each token to its local experts' rows: expert by expert, and in token order within one.

    - ``hidden_states``: ``[tokens, hidden]``, any dtype.
    - ``scale``: ``[tokens, blocks]`` travels with the rows; ``[1, 1]`` and None stay as they are.
    - ``topk_ids``: integer ``[tokens, topk]``, -1 for a slot without an expert.

    Returns the permuted rows ``[tokens * topk, hidden]`` and their scales, of which only the first
    ``sum(counts)`` rows are written; ``slots``, int32 ``[tokens, topk]``, each slot's row among them or -1,
    as :func:`~vllm_moe.fused_moe.kernels.reduce.combine_rows` takes it; and ``counts``, int32
    ``[num_local_experts]``.
    """
    tokens, topk = topk_ids.shape
    slots, counts = route_torch(topk_ids, placement, max(tokens, 1))
    start = (counts.cumsum(0) - counts).to(torch.int32)
    expert = slots.clamp(min=0) // max(tokens, 1)
    compact = torch.where(slots < 0, -1, start[expert] + slots % max(tokens, 1)).to(torch.int32)
    permuted = hidden_states.new_empty(tokens * topk, hidden_states.size(1))
    scatter_rows_torch(permuted, hidden_states, compact)
    permuted_scale = scale
    if scale is not None and scale.size(0) == tokens and scale.numel() != 1:
        permuted_scale = scale.new_empty(tokens * topk, scale.size(1))
        scatter_rows_torch(permuted_scale, scale, compact)
    return permuted, permuted_scale, compact, counts


def permute_tokens(
    hidden_states: torch.Tensor,
    scale: torch.Tensor | None,
    topk_ids: torch.Tensor,
    placement: ExpertPlacement,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """:func:`permute_tokens_torch` in two launches on CUDA, torch elsewhere."""
    if hidden_states.is_cuda:
        result: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor] = (
            triton_rows().permute_tokens(hidden_states, scale, topk_ids, placement)
        )
        return result
    return permute_tokens_torch(hidden_states, scale, topk_ids, placement)
