"""Choosing experts from router logits (vLLM: ``fused_moe/router/fused_topk_router.py``)."""

import torch

__all__ = ["fused_topk"]


def fused_topk(
    hidden_states: torch.Tensor,
    gating_output: torch.Tensor,
    topk: int,
    renormalize: bool,
    indices_type: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (float32) and ids of each token's ``topk`` most likely experts, ``[tokens, topk]`` both.

    - ``gating_output``: router logits ``[tokens, num_experts]``.
    - ``renormalize``: make the weights of a token add up to one; otherwise they are softmax probabilities
      over all experts.
    - ``indices_type``: dtype of the ids; int32 if None.

    Raises ValueError when the token numbers differ or there are fewer experts than ``topk``.
    """
    if hidden_states.size(0) != gating_output.size(0) or topk > gating_output.size(1):
        raise ValueError(
            f"fused_topk: hidden_states {tuple(hidden_states.shape)} and gating_output "
            f"{tuple(gating_output.shape)}, expected [tokens, hidden] and [tokens, num_experts] with at "
            f"least {topk} experts."
        )
    weights, ids = gating_output.float().softmax(1).topk(topk, 1)
    if renormalize:
        weights = weights / weights.sum(1, keepdim=True)
    return weights, ids.to(indices_type or torch.int32)
