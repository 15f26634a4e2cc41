"""Prepare/finalize by allgather and reduce-scatter (vLLM: ``prepare_finalize/naive_dp_ep.py``)."""

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize._common import (
    DispatchQuantization,
    reduce_rows,
    refuse_ids_out_of_range,
    routed_input,
)
from vllm_moe.fused_moe.ubatching import dbo_current_ubatch_id
from vllm_moe.transports import (
    AllGatherReduceScatter,
    EpGroup,
    MissingTransportError,
    TorchAllGatherReduceScatter,
)

__all__ = [
    "MoEPrepareAndFinalizeNaiveDPEPModular",
    "MoEPrepareAndFinalizeNaiveDPEPMonolithic",
    "make_moe_prepare_and_finalize_naive_dp_ep",
]


def _transport(
    where: str, transport: AllGatherReduceScatter | None, num_dispatchers: int
) -> AllGatherReduceScatter:
    if transport is not None:
        return transport
    if num_dispatchers > 1:
        raise MissingTransportError(
            f"{where}: transport is None, and {num_dispatchers} dispatchers have to be reached. Pass "
            "vllm_moe.transports.TorchAllGatherReduceScatter of their group (it needs package 'torch' "
            "alone), or let "
            "all2all_utils.maybe_make_prepare_finalize do it.",
            name="torch",
        )
    return TorchAllGatherReduceScatter(EpGroup())


class _NaiveDPEP:
    """What both classes say about themselves."""

    def __init__(
        self,
        is_sequence_parallel: bool = False,
        num_dispatchers: int = 1,
        transport: AllGatherReduceScatter | None = None,
    ) -> None:
        super().__init__()
        self.is_sequence_parallel = is_sequence_parallel
        self.transport = _transport(type(self).__name__, transport, num_dispatchers)
        self._num_dispatchers = num_dispatchers
        self._sizes: dict[int, list[int]] = {}

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The standard format."""
        return mk.FusedMoEActivationFormat.Standard

    def max_num_tokens_per_rank(self) -> int | None:
        """Give None: there is no limit."""
        return None

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give None: any integer dtype will do."""
        return None

    def num_dispatchers(self) -> int:
        """Give the size of the expert-parallel group."""
        return self._num_dispatchers

    def output_is_reduced(self) -> bool:
        """Tell whether the reduce-scatter went over all ranks that have experts.

        It does not where tensor-parallel ranks hold the same tokens: those go through the data-parallel group
        alone, and the tensor-parallel ranks' outputs are still to be added up.
        """
        return self.transport.world_size(self.is_sequence_parallel) == self._num_dispatchers

    def _combine(self, rows: torch.Tensor) -> torch.Tensor:
        return self.transport.combine(rows, self.is_sequence_parallel, self._sizes[dbo_current_ubatch_id()])


class MoEPrepareAndFinalizeNaiveDPEPModular(_NaiveDPEP, mk.FusedMoEPrepareAndFinalizeModular):
    """Every rank gets every token, works on its own experts, and the results are summed back.

    - ``is_sequence_parallel``: tokens are split over all ranks, not only over the data-parallel ones.
    - ``num_dispatchers``: the size of the expert-parallel group.
    - ``transport``: what carries the rows; may be None when there is one dispatcher.

    Raises MissingTransportError when it is None and there are more.
    """

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
        """Gather activations ``[tokens of all ranks, hidden]``, ids and weights.

        Ids of experts that ``expert_map`` does not place here become -1.

        Raises ValueError for weights on the input with topk over 1.
        """
        where = f"{type(self).__name__}.prepare"
        a1 = routed_input(where, a1, topk_weights, topk_ids, apply_router_weight_on_input)
        quantization = DispatchQuantization.make(
            quant_config, defer_input_quant=defer_input_quant, carries_rows=True, carries_scales=True
        )
        rows, scale = quantization.send(a1)
        scales = None if scale is None else [scale]
        gathered = self.transport.dispatch(rows, topk_weights, topk_ids, self.is_sequence_parallel, scales)
        self._sizes[dbo_current_ubatch_id()] = self.transport.last_sizes
        rows, weights, ids = gathered[:3]
        scale = gathered[3][0] if len(gathered) == 4 else None
        wide_ids = ids.to(torch.int64)
        a1q, a1q_scale = quantization.receive(rows, scale, (wide_ids >= 0).any(dim=1))
        if expert_map is not None:
            refuse_ids_out_of_range(where, wide_ids, expert_map.numel())
            local = expert_map[wide_ids.clamp(min=0)]
            ids = torch.where((wide_ids < 0) | (local < 0), -1, wide_ids)
        return a1q, a1q_scale, None, ids, weights

    def finalize(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: mk.TopKWeightAndReduce,
    ) -> None:
        """Weight and reduce the gathered rows, sum them over the ranks, and write this rank's own."""
        reduced = reduce_rows(
            weight_and_reduce_impl, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input
        )
        output.copy_(self._combine(reduced))


class MoEPrepareAndFinalizeNaiveDPEPMonolithic(_NaiveDPEP, mk.FusedMoEPrepareAndFinalizeMonolithic):
    """The same for experts that route for themselves: router logits are gathered, not ids and weights."""

    def prepare(
        self,
        a1: torch.Tensor,
        router_logits: torch.Tensor,
        quant_config: FusedMoEQuantConfig,
        defer_input_quant: bool = False,
    ) -> mk.PrepareMonolithicResultType:
        """Gather activations ``[tokens of all ranks, hidden]`` and router logits."""
        quantization = DispatchQuantization.make(
            quant_config, defer_input_quant=defer_input_quant, carries_rows=True, carries_scales=True
        )
        rows, scale = quantization.send(a1)
        scales = None if scale is None else [scale]
        gathered = self.transport.dispatch_router_logits(
            rows, router_logits, self.is_sequence_parallel, scales
        )
        self._sizes[dbo_current_ubatch_id()] = self.transport.last_sizes
        rows, logits = gathered[:2]
        scale = gathered[2][0] if len(gathered) == 3 else None
        a1q, a1q_scale = quantization.receive(rows, scale, None)
        return a1q, a1q_scale, logits

    def finalize(self, fused_expert_output: torch.Tensor) -> torch.Tensor:
        """Sum the experts' weighted and reduced output over the ranks and give this rank's rows."""
        return self._combine(fused_expert_output)


def make_moe_prepare_and_finalize_naive_dp_ep(
    use_monolithic: bool,
    is_sequence_parallel: bool = False,
    num_dispatchers: int = 1,
    transport: AllGatherReduceScatter | None = None,
) -> MoEPrepareAndFinalizeNaiveDPEPModular | MoEPrepareAndFinalizeNaiveDPEPMonolithic:
    """Make the monolithic or the modular one."""
    if use_monolithic:
        return MoEPrepareAndFinalizeNaiveDPEPMonolithic(is_sequence_parallel, num_dispatchers, transport)
    return MoEPrepareAndFinalizeNaiveDPEPModular(is_sequence_parallel, num_dispatchers, transport)
