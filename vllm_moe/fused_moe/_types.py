"""Small types that both halves of a kernel share, under their names in :mod:`modular_kernel`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

import torch

__all__ = ["ExpertTokensMetadata", "FusedMoEActivationFormat", "TopKWeightAndReduce"]


class FusedMoEActivationFormat(Enum):
    """How tokens lie in memory between ``prepare`` and ``finalize``."""

    Standard = ("standard",)
    """``[tokens, hidden]``, each row with its own topk ids and weights."""
    BatchedExperts = ("batched_experts",)
    """``[num_local_experts, max_num_tokens * num_dispatchers, hidden]``: an expert's rows, then padding."""


@dataclass
class ExpertTokensMetadata:
    """How many tokens each local expert received."""

    expert_num_tokens: torch.Tensor
    """int32 ``[num_local_experts]`` on the activations' device."""
    expert_num_tokens_cpu: torch.Tensor | None
    """The same numbers on the CPU, where a backend has them there anyway; never fetched for this."""

    @staticmethod
    def make_from_list(
        expert_num_tokens_list: list[int], device: torch.device | str
    ) -> "ExpertTokensMetadata":
        """Build both tensors from a list with one count for each local expert."""
        on_cpu = torch.tensor(expert_num_tokens_list, dtype=torch.int32)
        return ExpertTokensMetadata(on_cpu.to(device, non_blocking=True), on_cpu)


class TopKWeightAndReduce(ABC):
    """Weights the experts' outputs by the router and adds up those of one token."""

    @abstractmethod
    def apply(
        self,
        output: torch.Tensor | None,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Return ``output``, written; a new tensor when ``output`` is None. No other argument is written.

        With ``apply_router_weight_on_input`` the weights were applied before the experts and are left out
        here.
        """
        raise NotImplementedError
