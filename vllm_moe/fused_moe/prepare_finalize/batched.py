"""Prepare/finalize of one rank's own tokens in the batched format (vLLM: ``prepare_finalize/batched.py``)."""

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.kernels.batched import batched_prepare
from vllm_moe.fused_moe.kernels.quantize import UNQUANTIZED, quantize_scheme
from vllm_moe.fused_moe.kernels.routing import ExpertPlacement
from vllm_moe.fused_moe.topk_weight_and_reduce import (
    TopKWeightAndReduceDelegate,
    TopKWeightAndReduceNaiveBatched,
)
from vllm_moe.fused_moe.utils import validate_topk

__all__ = ["BatchedPrepareAndFinalize"]


class BatchedPrepareAndFinalize(mk.FusedMoEPrepareAndFinalizeModular):
    """Sorts tokens into ``[num_local_experts, max_num_tokens * num_dispatchers, hidden]`` on each rank.

    Every rank passes the same tokens and works on its own experts; the sum of the outputs over ranks is the
    layer's. A token that names an expert twice has one row there, so an expert never gets more rows than
    there are tokens, and the capacity is kept by refusing more than ``max_num_tokens`` tokens, without
    looking at the routing. Nothing here waits for the device.

    - ``rank``, ``num_local_experts``: local expert ``i`` is expert ``rank * num_local_experts + i``, unless
      a table says otherwise.
    - ``global_to_physical``: integer ``[num_experts]``, the physical expert that each id of ``topk_ids``
      stands for.
    - ``prepare``'s ``expert_map`` is kept for the ``finalize`` that follows; it belongs to the layer, and so
      has to be the same in every micro-batch.

    Raises ValueError when a size is not positive or ``rank`` is negative.
    """

    def __init__(
        self,
        max_num_tokens: int,
        num_local_experts: int,
        num_dispatchers: int,
        rank: int,
        global_to_physical: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "max_num_tokens": max_num_tokens,
            "num_local_experts": num_local_experts,
            "num_dispatchers": num_dispatchers,
            "rank": rank,
        }
        for name, value in sizes.items():
            if value < (name != "rank"):
                raise ValueError(
                    f"BatchedPrepareAndFinalize: {name} is {value}, expected at least "
                    f"{0 if name == 'rank' else 1}."
                )
        self.max_num_tokens = max_num_tokens
        self.num_local_experts = num_local_experts
        self.rank = rank
        self.global_to_physical = global_to_physical
        self._num_dispatchers = num_dispatchers
        self._expert_map: torch.Tensor | None = None
        self._accepted: set[tuple[object, ...]] = set()

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The batched format."""
        return mk.FusedMoEActivationFormat.BatchedExperts

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give None: any integer dtype will do."""
        return None

    def max_num_tokens_per_rank(self) -> int | None:
        """Give the most tokens that ``prepare`` takes."""
        return self.max_num_tokens

    def num_dispatchers(self) -> int:
        """Give the number of ranks whose tokens the layout has room for."""
        return self._num_dispatchers

    def output_is_reduced(self) -> bool:
        """Give False: each rank adds up its own experts only."""
        return False

    def _validate(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
    ) -> None:
        map_shape = None if expert_map is None else expert_map.shape
        call = (a1.shape, topk_weights.shape, topk_ids.shape, topk_ids.dtype, num_experts, map_shape)
        # A decode step takes microseconds; shapes that were right once are not looked at again.
        if call in self._accepted:
            return
        validate_topk("BatchedPrepareAndFinalize.prepare", a1, topk_weights, topk_ids)
        if a1.size(0) > self.max_num_tokens:
            raise ValueError(
                f"BatchedPrepareAndFinalize: {a1.size(0)} tokens, expected at most max_num_tokens, "
                f"{self.max_num_tokens}. Pass fewer, or build it with a larger max_num_tokens."
            )
        if self.global_to_physical is not None:
            if self.global_to_physical.numel() != num_experts:
                raise ValueError(
                    f"BatchedPrepareAndFinalize: global_to_physical has {self.global_to_physical.numel()} "
                    f"entries, expected num_experts, {num_experts}."
                )
        elif expert_map is not None:
            if expert_map.numel() != num_experts:
                raise ValueError(
                    f"BatchedPrepareAndFinalize: expert_map has {expert_map.numel()} entries, expected "
                    f"num_experts, {num_experts}."
                )
        elif (self.rank + 1) * self.num_local_experts > num_experts:
            raise ValueError(
                f"BatchedPrepareAndFinalize: rank {self.rank} with {self.num_local_experts} local experts "
                f"ends at expert {(self.rank + 1) * self.num_local_experts - 1}, but num_experts is "
                f"{num_experts}. Correct one "
                "of them, or pass an expert_map."
            )
        self._accepted.add(call)

    def prepare(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        quant_config: FusedMoEQuantConfig,
        defer_input_quant: bool = False,
    ) -> mk.PrepareResultType:
        """Quantize tokens and copy each to its local experts' rows, in token order.

        Returns activations ``[num_local_experts, max_num_tokens * num_dispatchers, hidden]``, scales of
        :meth:`FusedMoEQuantConfig.batched_scale_shape` (None when unquantized or deferred), and counts; rows
        beyond the counts are uninitialized. Raises ValueError for more tokens than ``max_num_tokens``, for
        ids out of range (on CUDA the kernel asserts), for tables of the wrong length, and for weights on the
        input with topk over 1.
        """
        self._validate(a1, topk_weights, topk_ids, num_experts, expert_map)
        self._expert_map = expert_map
        batched, scale, counts = batched_prepare(
            a1,
            topk_weights if apply_router_weight_on_input else None,
            topk_ids,
            ExpertPlacement(
                self.num_local_experts,
                self.rank * self.num_local_experts,
                self.global_to_physical,
                expert_map,
                num_experts,
            ),
            self.max_num_tokens * self._num_dispatchers,
            UNQUANTIZED if defer_input_quant else quantize_scheme(quant_config),
        )
        return batched, scale, mk.ExpertTokensMetadata(counts, None), None, None

    def finalize(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: mk.TopKWeightAndReduce,
    ) -> None:
        """Weight and add up each token's rows in ``output`` ``[tokens, hidden]``; zero without any."""
        if isinstance(weight_and_reduce_impl, TopKWeightAndReduceDelegate):
            weight_and_reduce_impl = TopKWeightAndReduceNaiveBatched(
                self.rank, self.global_to_physical, self._expert_map
            )
        weight_and_reduce_impl.apply(
            output, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input
        )
