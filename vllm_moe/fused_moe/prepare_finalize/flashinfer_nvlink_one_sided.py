"""Prepare/finalize by FlashInfer's one-sided NVLink kernels (vLLM: the module of this name)."""

from dataclasses import dataclass

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
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
from vllm_moe.transports import MoeAlltoAllTransport, missing_transport, pad_row_bytes

__all__ = ["FlashInferNVLinkOneSidedPrepareAndFinalize"]

_SCALE_BYTES = 16
"""Rows of scales are filled up to this: every payload then starts where the widest copies may start."""


@dataclass(frozen=True)
class _InFlight:
    capacity: int
    routed: torch.Tensor


class FlashInferNVLinkOneSidedPrepareAndFinalize(mk.FusedMoEPrepareAndFinalizeModular):
    """Writes each token once into the memory of every rank that has one of its experts; the standard format.

    - ``max_num_tokens``: the most tokens that any rank ever passes.
    - ``top_k``, ``num_experts``, ``hidden_size``: the layer's; experts over all ranks.
    - ``num_dispatchers``: the size of the expert-parallel group.
    - ``transport``: FlashInfer's ``MoeAlltoAll`` and the ranks, or one over ``torch.distributed``.

    A dispatch has to be combined before the next one, so there is one micro-batch at a time.

    Raises MissingTransportError when ``transport`` is None, ValueError when it was made for other sizes.
    """

    def __init__(
        self,
        max_num_tokens: int,
        top_k: int,
        num_experts: int,
        hidden_size: int,
        num_dispatchers: int = 1,
        transport: MoeAlltoAllTransport | None = None,
    ) -> None:
        super().__init__()
        if transport is None:
            raise missing_transport(type(self).__name__, "flashinfer", "transport", "MoeAlltoAllTransport")
        op = transport.op
        found = (op.max_num_tokens, op.num_experts, op.ep_size)
        if found != (max_num_tokens, num_experts, num_dispatchers) or op.top_k < top_k:
            raise ValueError(
                f"{type(self).__name__}: max_num_tokens {max_num_tokens}, num_experts {num_experts}, "
                "num_dispatchers "
                f"{num_dispatchers} and top_k {top_k}, but the transport was made for {found[0]}, "
                f"{found[1]}, "
                f"{found[2]} and {op.top_k}. Make it for these (top_k by padded_top_k)."
            )
        self.max_num_tokens = max_num_tokens
        self.top_k = top_k
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.num_dispatchers_ = num_dispatchers
        self.transport = transport
        self._flight: _InFlight | None = None

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The standard format."""
        return mk.FusedMoEActivationFormat.Standard

    def max_num_tokens_per_rank(self) -> int | None:
        """Give the number of tokens that the transport was made for."""
        return self.max_num_tokens

    def num_dispatchers(self) -> int:
        """Give the size of the expert-parallel group."""
        return self.num_dispatchers_

    def output_is_reduced(self) -> bool:
        """Give True: combine adds up over the ranks."""
        return True

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give int32, which the kernels take; other integers are converted."""
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
        """Quantize and dispatch; activations are ``[num_dispatchers * most tokens of a rank, hidden]``.

        Rank r's rows start at ``r * most tokens of a rank``, with padding after them. Slots of other ranks'
        experts and of padding rows have id -1 and weight 0. The result is valid until the next ``prepare``.

        Raises ValueError for activations that are neither bf16 nor fp16, another hidden size, topk or number
        of experts than at construction, too many tokens, ids out of range (on the CPU), and weights on the
        input with topk over 1.
        """
        where = f"{type(self).__name__}.prepare"
        rows = routed_input(where, a1, topk_weights, topk_ids, apply_router_weight_on_input)
        check_activations(where, a1, (torch.bfloat16, torch.float16))
        check_capacity(where, a1, self.max_num_tokens)
        found = (a1.size(1), topk_ids.size(1), num_experts)
        if found != (self.hidden_size, self.top_k, self.num_experts):
            raise ValueError(
                f"{where}: hidden size {found[0]}, topk {found[1]} and {found[2]} experts, but the backend "
                "was made for "
                f"{self.hidden_size}, {self.top_k} and {self.num_experts}."
            )
        refuse_ids_out_of_range(where, topk_ids, num_experts)
        quantization = DispatchQuantization.make(
            quant_config, defer_input_quant=defer_input_quant, carries_rows=True, carries_scales=True
        )
        rows, scale = quantization.send(rows)

        op, group = self.transport.op, self.transport.group
        local = num_experts // op.ep_size
        first_expert = op.ep_rank * local
        most = max(row[0] for row in group.gather_ints(f"{where} (token counts)", [a1.size(0)]))
        capacity = max(most, 1)
        ids = topk_ids.to(torch.int32).contiguous()
        weights = topk_weights.to(torch.float32).contiguous()
        # The kernels know no slot without an expert, and not every topk. What goes where is decided by one
        # list of ids, in which such slots repeat another; what a row's slots are is told by the ids that
        # travel with it.
        selected = somewhere_valid(ids, first_expert)
        missing = op.top_k - self.top_k
        selected = torch.cat([selected, selected[:, :1].expand(-1, missing)], dim=1).contiguous()
        payloads = [rows.contiguous(), ids, weights]
        if scale is not None:
            payloads.insert(1, pad_row_bytes(scale, _SCALE_BYTES))
        received = op.dispatch(
            selected,
            payloads,
            capacity,
            invalid_token_expert_id=-1,
            expert_id_payload_index=len(payloads) - 2,
        )
        flat = [payload.reshape(-1, payload.size(-1)) for payload in received]
        got_scale = None if scale is None else flat[1][:, : scale.size(1)].contiguous()
        got_ids, got_weights = keep_own_slots(flat[-2], flat[-1], first_expert, local)
        a1q, a1q_scale = quantization.receive(flat[0], got_scale, (got_ids >= 0).any(dim=1))
        self._flight = _InFlight(capacity, (ids >= 0).any(dim=1))
        return a1q, a1q_scale, None, got_ids, got_weights.to(topk_weights.dtype)

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
        flight = self._flight
        if flight is None:
            raise RuntimeError(f"{type(self).__name__}.finalize: called before prepare.")
        reduced = reduce_rows(
            weight_and_reduce_impl, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input
        )
        payload = reduced.contiguous().view(self.num_dispatchers_, flight.capacity, reduced.size(1))
        combined = self.transport.op.combine(payload, flight.capacity)
        output.copy_(combined)
        # A row without experts was written to this rank itself, and what came of it there is anybody's guess.
        output.masked_fill_(~flight.routed.unsqueeze(1), 0)
        self._flight = None
