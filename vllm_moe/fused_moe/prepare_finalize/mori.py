"""Prepare/finalize by MoRI's kernels for AMD devices (vLLM: ``prepare_finalize/mori.py``)."""

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize._common import (
    DispatchQuantization,
    check_activations,
    check_capacity,
    keep_own_slots,
    reduce_rows,
    refuse_ids_out_of_range,
    routed_input,
    somewhere_valid,
)
from vllm_moe.fused_moe.ubatching import dbo_current_ubatch_id
from vllm_moe.fused_moe.utils import count_expert_num_tokens
from vllm_moe.transports import EpDispatchCombineOp, missing_transport

__all__ = ["MoriPrepareAndFinalize"]


class MoriPrepareAndFinalize(mk.FusedMoEPrepareAndFinalizeModular):
    """Sends each token once to every rank that has one of its experts; the standard format.

    - ``mori_op``: a ``mori.ops.EpDispatchCombineOp``, or one over ``torch.distributed``.
    - ``max_tokens_per_rank``, ``num_dispatchers``: as the op was made.
    - ``use_fp8_dispatch``: the op was made to carry fp8 rows with float32 scales; then fp8 per token and per
      block is quantized before the dispatch. All else is quantized after it.

    What ``prepare`` returns are views of the op's memory, valid until the next ``prepare``.

    Raises MissingTransportError when ``mori_op`` is None, ValueError when it was made for other sizes.
    """

    def __init__(
        self,
        mori_op: EpDispatchCombineOp | None,
        max_tokens_per_rank: int,
        num_dispatchers: int,
        use_fp8_dispatch: bool = False,
    ) -> None:
        super().__init__()
        if mori_op is None:
            raise missing_transport(type(self).__name__, "mori", "mori_op", "TorchEpDispatchCombineOp")
        made_for = (mori_op.config.max_num_inp_token_per_rank, mori_op.config.world_size)
        if made_for != (max_tokens_per_rank, num_dispatchers):
            raise ValueError(
                f"MoriPrepareAndFinalize: max_tokens_per_rank {max_tokens_per_rank} and num_dispatchers "
                f"{num_dispatchers}, but mori_op was made for {made_for[0]} and {made_for[1]}. Pass the op's "
                "own."
            )
        self.mori_op = mori_op
        self.max_tokens_per_rank = max_tokens_per_rank
        self.num_dispatchers_ = num_dispatchers
        self.use_fp8_dispatch = use_fp8_dispatch
        # This rank's routing as it was given to the op: the combine needs it, and finalize is given the
        # dispatched one.
        self._sent_ids: dict[int, torch.Tensor] = {}
        self._routed: dict[int, torch.Tensor] = {}

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The standard format."""
        return mk.FusedMoEActivationFormat.Standard

    def output_is_reduced(self) -> bool:
        """Give True: combine adds up over the ranks."""
        return True

    def num_dispatchers(self) -> int:
        """Give the size of the expert-parallel group."""
        return self.num_dispatchers_

    def max_num_tokens_per_rank(self) -> int | None:
        """Give the number of tokens that the op was made for."""
        return self.max_tokens_per_rank

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give int32, which the op takes; other integers are converted."""
        return torch.int32

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
        """Quantize and dispatch.

        Activations are ``[num_dispatchers * max_tokens_per_rank, hidden]``, padding last.

        Slots of other ranks' experts and of padding rows have id -1 and weight 0.

        Raises ValueError for activations that are neither bf16 nor float32, for too many tokens, for ids out
        of range (on the CPU), and for weights on the input with topk over 1.
        """
        where = f"{type(self).__name__}.prepare"
        config = self.mori_op.config
        rows = routed_input(where, a1, topk_weights, topk_ids, apply_router_weight_on_input)
        check_activations(where, a1, (torch.bfloat16, torch.float32))
        check_capacity(where, a1, self.max_tokens_per_rank)
        refuse_ids_out_of_range(where, topk_ids, num_experts)
        quantization = DispatchQuantization.make(
            quant_config,
            defer_input_quant=defer_input_quant,
            carries_rows=self.use_fp8_dispatch and quant_config.quant_dtype == FP8_DTYPE,
            carries_scales=config.scale_dim > 0,
        )
        rows, scale = quantization.send(rows)

        ids = topk_ids.to(torch.int32)
        first_expert = config.rank * config.num_experts_per_rank
        sent_ids = somewhere_valid(ids, first_expert).contiguous()
        # The op knows no slot without an expert. Such a slot travels as a repetition of another with the
        # weight -0.0, which no router gives, and is taken out again on arrival.
        weights = torch.where(ids < 0, -0.0, topk_weights.to(torch.float32)).contiguous()
        ubatch = dbo_current_ubatch_id()
        self._sent_ids[ubatch] = sent_ids.clone() if sent_ids is topk_ids else sent_ids
        self._routed[ubatch] = (ids >= 0).any(dim=1)

        received, got_weights, got_scale, got_ids, total = self.mori_op.dispatch(
            rows.contiguous(), weights, None if scale is None else scale.contiguous(), sent_ids
        )
        valid = torch.arange(received.size(0), device=received.device) < total
        got_ids = torch.where((got_weights == 0) & got_weights.signbit(), -1, got_ids)
        got_ids, got_weights = keep_own_slots(
            got_ids, got_weights, first_expert, config.num_experts_per_rank, valid
        )
        valid &= (got_ids >= 0).any(dim=1)
        a1q, a1q_scale = quantization.receive(received, got_scale, valid)
        local_ids = torch.where(got_ids < 0, -1, got_ids - first_expert)
        counts = count_expert_num_tokens(local_ids, config.num_experts_per_rank, None)
        meta = mk.ExpertTokensMetadata(counts, None)
        return a1q, a1q_scale, meta, got_ids, got_weights.to(topk_weights.dtype)

    def finalize(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: mk.TopKWeightAndReduce,
    ) -> None:
        """Weight and reduce the received rows, sum them over the ranks, and write this rank's own.

        Raises RuntimeError when no ``prepare`` came before.
        """
        ubatch = dbo_current_ubatch_id()
        if ubatch not in self._sent_ids:
            raise RuntimeError(
                f"{type(self).__name__}.finalize: called before prepare for micro-batch {ubatch}."
            )
        reduced = reduce_rows(
            weight_and_reduce_impl, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input
        )
        combined, _ = self.mori_op.combine(reduced.contiguous(), None, self._sent_ids[ubatch])
        output.copy_(combined[: output.size(0)])
        # A row without experts was carried to this rank itself, and what came of it there is anybody's guess.
        output.masked_fill_(~self._routed[ubatch].unsqueeze(1), 0)
