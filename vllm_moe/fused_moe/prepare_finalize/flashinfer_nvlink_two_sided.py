"""Prepare/finalize by FlashInfer's two-sided NVLink kernels (vLLM: the module of this name)."""

from dataclasses import dataclass

import torch

import vllm_moe.fused_moe.modular_kernel as mk
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize._common import (
    DispatchQuantization,
    keep_own_slots,
    reduce_rows,
    refuse_ids_out_of_range,
    routed_input,
)
from vllm_moe.fused_moe.ubatching import dbo_current_ubatch_id
from vllm_moe.transports import (
    MNNVL_ALIGNMENT_BYTES,
    MnnvlTransport,
    MoEAlltoallInfo,
    missing_transport,
    pad_row_bytes,
)

__all__ = ["FlashInferNVLinkTwoSidedPrepareAndFinalize"]


@dataclass(frozen=True)
class _InFlight:
    info: MoEAlltoallInfo
    topk: int
    tokens: int


class FlashInferNVLinkTwoSidedPrepareAndFinalize(mk.FusedMoEPrepareAndFinalizeModular):
    """Exchanges the routing first, then rows into places that both sides know; the standard format.

    - ``num_dispatchers``: the size of the expert-parallel group.
    - ``transport``: FlashInfer's functions and workspaces, or those over ``torch.distributed``.

    Raises MissingTransportError when ``transport`` is None, ValueError when it spans another number of ranks.
    """

    def __init__(self, num_dispatchers: int = 1, transport: MnnvlTransport | None = None) -> None:
        super().__init__()
        if transport is None:
            raise missing_transport(
                type(self).__name__, "flashinfer", "transport", "TorchMnnvlMoe(group).transport()"
            )
        if transport.group.world_size != num_dispatchers:
            raise ValueError(
                f"{type(self).__name__}: num_dispatchers is {num_dispatchers}, but the transport spans "
                f"{transport.group.world_size} ranks. Pass the size of the expert-parallel group."
            )
        self.transport = transport
        self.num_dispatchers_ = num_dispatchers
        self._flights: dict[int, _InFlight] = {}

    @staticmethod
    def maybe_roundup_layer_hidden_size(hidden_size: int) -> int:
        """Give the smallest hidden size, at least ``hidden_size``, with rows of an allowed length."""
        return -(-hidden_size // MNNVL_ALIGNMENT_BYTES) * MNNVL_ALIGNMENT_BYTES

    @property
    def activation_format(self) -> mk.FusedMoEActivationFormat:
        """The standard format."""
        return mk.FusedMoEActivationFormat.Standard

    def max_num_tokens_per_rank(self) -> int | None:
        """Give None: there is no limit."""
        return None

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Give int32, which the kernels take; other integers are converted."""
        return torch.int32

    def num_dispatchers(self) -> int:
        """Give the size of the expert-parallel group."""
        return self.num_dispatchers_

    def output_is_reduced(self) -> bool:
        """Give True: combine adds up over the ranks."""
        return True

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

        Activations are ``[num_dispatchers * most tokens of a rank, hidden]``, padding last.

        Slots of other ranks' experts and of padding rows have id -1 and weight 0.

        Raises ValueError for a hidden size whose rows have no allowed length, ids out of range (on the CPU),
        and weights on the input with topk over 1.
        """
        where = f"{type(self).__name__}.prepare"
        rows = routed_input(where, a1, topk_weights, topk_ids, apply_router_weight_on_input)
        refuse_ids_out_of_range(where, topk_ids, num_experts)
        quantization = DispatchQuantization.make(
            quant_config, defer_input_quant=defer_input_quant, carries_rows=True, carries_scales=True
        )
        rows, scale = quantization.send(rows)
        if rows.size(1) * rows.element_size() % MNNVL_ALIGNMENT_BYTES:
            raise ValueError(
                f"{where}: rows of {rows.size(1)} x {rows.dtype} are no multiple of {MNNVL_ALIGNMENT_BYTES} "
                "bytes. Round "
                "the hidden size up with maybe_roundup_layer_hidden_size."
            )
        moe, group = self.transport.moe, self.transport.group
        rank, world, topk = group.rank, group.world_size, topk_ids.size(1)
        most = max(row[0] for row in group.gather_ints(f"{where} (token counts)", [a1.size(0)]))
        # The kernels take -1 for an expert of rank 0; the number of experts is what goes nowhere with them.
        ids = topk_ids.to(torch.int32)
        ids = torch.where(ids < 0, num_experts, ids).contiguous()
        info, got_ids, got_weights, _ = moe.mnnvl_moe_alltoallv_prepare_without_allgather(
            ids,
            topk_weights.to(torch.float32).contiguous(),
            None,
            self.transport.prepare_workspace_tensor,
            max(most, 1),
            rank,
            world,
            num_experts,
            num_experts,
            topk,
        )
        workspace = self.transport.workspace_tensor
        received = moe.mnnvl_moe_alltoallv(rows.contiguous(), info, workspace, rank, world)
        got_scale = None
        if scale is not None:
            padded = pad_row_bytes(scale, MNNVL_ALIGNMENT_BYTES)
            got_scale = moe.mnnvl_moe_alltoallv(padded, info, workspace, rank, world)
            got_scale = got_scale[:, : scale.size(1)].contiguous()
        self._flights[dbo_current_ubatch_id()] = _InFlight(info, topk, a1.size(0))

        valid = torch.arange(received.size(0), device=received.device) < info.recv_rank_count_cumsum[-1]
        local = num_experts // world
        got_ids, got_weights = keep_own_slots(
            got_ids, got_weights.view(torch.float32), rank * local, local, valid
        )
        a1q, a1q_scale = quantization.receive(received, got_scale, valid)
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
        ubatch = dbo_current_ubatch_id()
        flight = self._flights.get(ubatch)
        if flight is None:
            raise RuntimeError(
                f"{type(self).__name__}.finalize: called before prepare for micro-batch {ubatch}."
            )
        reduced = reduce_rows(
            weight_and_reduce_impl, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input
        )
        group = self.transport.group
        combined = self.transport.moe.mnnvl_moe_alltoallv_combine(
            reduced.contiguous(),
            flight.info,
            self.transport.workspace_tensor,
            ep_rank=group.rank,
            ep_size=group.world_size,
            top_k=flight.topk,
            token_count=flight.tokens,
        )
        output.copy_(combined)
