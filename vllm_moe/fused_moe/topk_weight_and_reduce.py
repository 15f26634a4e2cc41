"""Ways to weight and reduce what experts wrote (vLLM: ``fused_moe/topk_weight_and_reduce.py``).

None of them writes into the experts' output, the weights or the ids, so applying one twice gives the same
result.
"""

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.kernels.reduce import batched_finalize, share_memory, weight_and_reduce
from vllm_moe.fused_moe.kernels.routing import ExpertPlacement

__all__ = [
    "TopKWeightAndReduceContiguous",
    "TopKWeightAndReduceDelegate",
    "TopKWeightAndReduceNaiveBatched",
    "TopKWeightAndReduceNoOP",
]


class TopKWeightAndReduceDelegate(mk.TopKWeightAndReduce):
    """The experts leave weighting and reducing to the prepare/finalize, which knows its own layout best."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopKWeightAndReduceDelegate)

    def __hash__(self) -> int:
        return hash(TopKWeightAndReduceDelegate)

    def apply(
        self,
        output: torch.Tensor | None,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Raise RuntimeError: the prepare/finalize has to put an implementation in this one's place."""
        raise RuntimeError(
            "TopKWeightAndReduceDelegate leaves the choice to the prepare/finalize: replace it by the "
            "implementation that fits the activation format before calling apply."
        )


class TopKWeightAndReduceNoOP(mk.TopKWeightAndReduce):
    """The experts have weighted and reduced already: ``[tokens, hidden]`` is copied as it is."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopKWeightAndReduceNoOP)

    def __hash__(self) -> int:
        return hash(TopKWeightAndReduceNoOP)

    def apply(
        self,
        output: torch.Tensor | None,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Give ``fused_expert_output`` itself without ``output``, else copy it there; they may overlap.

        Raises ValueError when the shapes differ.
        """
        if output is None:
            return fused_expert_output
        if output.shape != fused_expert_output.shape:
            raise ValueError(
                f"TopKWeightAndReduceNoOP: output is {tuple(output.shape)}, expected the experts' "
                f"{tuple(fused_expert_output.shape)}, which should be weighted and reduced already."
            )
        same = (
            output.data_ptr() == fused_expert_output.data_ptr()
            and output.stride() == fused_expert_output.stride()
        )
        if same and output.dtype is fused_expert_output.dtype:
            return output
        overlapping = share_memory(output, fused_expert_output)
        return output.copy_(fused_expert_output.clone() if overlapping else fused_expert_output)


class TopKWeightAndReduceContiguous(mk.TopKWeightAndReduce):
    """For experts that wrote ``[tokens, topk, hidden]`` (or the same as ``[tokens * topk, hidden]``)."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TopKWeightAndReduceContiguous)

    def __hash__(self) -> int:
        return hash(TopKWeightAndReduceContiguous)

    def apply(
        self,
        output: torch.Tensor | None,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Weight and sum over ``topk`` into ``[tokens, hidden]``; slots with a negative id are left out.

        Raises ValueError when the shapes do not fit together.
        """
        if output is None:
            output = fused_expert_output.new_empty(topk_ids.size(0), fused_expert_output.size(-1))
        weights = None if apply_router_weight_on_input else topk_weights
        weight_and_reduce(output, fused_expert_output, weights, topk_ids)
        return output


class TopKWeightAndReduceNaiveBatched(mk.TopKWeightAndReduce):
    """For experts that wrote the batched layout, ``[num_local_experts, rows, hidden]``.

    ``rank`` says which experts those are: ``rank * num_local_experts`` onwards, unless a table says
    otherwise (``global_to_physical`` and ``expert_map``, as
    :class:`~vllm_moe.fused_moe.kernels.ExpertPlacement` has them).
    """

    def __init__(
        self,
        rank: int,
        global_to_physical: torch.Tensor | None = None,
        expert_map: torch.Tensor | None = None,
    ) -> None:
        self.rank = rank
        self.global_to_physical = global_to_physical
        self.expert_map = expert_map

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TopKWeightAndReduceNaiveBatched)
            and other.rank == self.rank
            and other.global_to_physical is self.global_to_physical
            and other.expert_map is self.expert_map
        )

    def __hash__(self) -> int:
        return hash((TopKWeightAndReduceNaiveBatched, self.rank))

    def apply(
        self,
        output: torch.Tensor | None,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        """Gather, weight and sum each token's rows into ``[tokens, hidden]``; zero where no slot is local.

        ``topk_ids`` have to be those that the batched ``prepare`` was given. A token that names an expert
        twice has one row there, which is added with both weights.

        Raises ValueError when the shapes do not fit together.
        """
        if output is None:
            output = fused_expert_output.new_empty(topk_ids.size(0), fused_expert_output.size(-1))
        experts = fused_expert_output.size(0)
        placement = ExpertPlacement(experts, experts * self.rank, self.global_to_physical, self.expert_map)
        weights = None if apply_router_weight_on_input else topk_weights
        batched_finalize(output, fused_expert_output, weights, topk_ids, placement)
        return output
