"""DeepEP's buffer, high throughput and low latency: the vendor's interface, and one on ``torch.distributed``.

Source of names, shapes and behaviour: ``deep_ep/buffer.py`` and ``csrc/`` of
https://github.com/deepseek-ai/DeepEP.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from vllm_moe.transports._group import EpGroup, TransportError
from vllm_moe.transports._low_latency import LOW_LATENCY_HIDDEN_SIZES, EventOverlap, LowLatencyExchange
from vllm_moe.transports._vendor import load_vendor
from vllm_moe.transports._wire import RoutingPlan, check_ids, check_tensor, pack_rows, poison_, unpack_rows

__all__ = ["LOW_LATENCY_HIDDEN_SIZES", "DeepEpBuffer", "TorchDeepEpBuffer", "vendor_deep_ep_buffer"]

_ROW_BYTES = 512
"""The kernels copy rows in units of 32 lanes x 16 bytes."""

_NVL_BYTES = 1 << 30
"""Memory for exchanges within a node, as vLLM sets it by default."""


@runtime_checkable
class DeepEpBuffer(Protocol):
    """``deep_ep.Buffer``.

    Preconditions of the high-throughput calls: rows are contiguous bf16, or fp8 e4m3 with one float32 scale
    for 128 elements, and a multiple of 512 bytes long; ids have the dtype that the library was compiled for
    (int64 unless built otherwise), -1 for no expert; weights are float32; combine takes bf16 alone and does
    not weight. Those of the low-latency calls are as :class:`~vllm_moe.transports.nixl_ep.NixlEpBuffer` has
    them.
    """

    def get_dispatch_layout(
        self,
        topk_idx: torch.Tensor,
        num_experts: int,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, Any]:
        """Count what this rank will send.

        Gives ``(tokens per rank int32 [ranks], tokens per RDMA rank or None, tokens per expert int32
        [num_experts], bool [tokens, ranks] whether a token goes to a rank, event)``.
        """

    def dispatch(
        self,
        x: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        handle: Any = None,
        num_tokens_per_rank: torch.Tensor | None = None,
        num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None,
        num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        expert_alignment: int = 1,
        *,
        config: Any = None,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Any, torch.Tensor | None, torch.Tensor | None, list[int], Any, Any]:
        """Send each row once to every rank that owns one of its experts.

        Gives ``(recv_x, recv_topk_idx [received, topk] of LOCAL ids with -1 for other ranks',
        recv_topk_weights, rows for each local expert, handle, event)``.
        """

    def combine(
        self,
        x: torch.Tensor,
        handle: Any,
        topk_weights: torch.Tensor | None = None,
        *,
        config: Any = None,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
        """Sum what the ranks made of this rank's rows: ``([tokens, hidden] bf16, weights, event)``."""

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Any, torch.Tensor, Any, Any, Callable[[], None] | None]:
        """Send tokens to their experts in the batched format; the handle has five items."""

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Any,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Any, Callable[[], None] | None]:
        """Send bf16 rows back and add them up, weighted."""


@dataclass(frozen=True)
class HighThroughputHandle:
    """What combine needs to know of the dispatch; callers only pass it on."""

    plan: RoutingPlan
    recv_counts: list[int]
    tokens: int


class TorchDeepEpBuffer:
    """:class:`DeepEpBuffer` over an :class:`EpGroup`, with the vendor's preconditions checked.

    As in the vendor's high-throughput mode dispatch waits for the other ranks' counts, and with
    ``async_finish`` the rows themselves are garbage until the event has been waited for. Unlike the vendor it
    needs no tuned configuration (``config`` is taken and left alone), so it works for any number of ranks,
    one included; and it has no cached dispatch (``handle``).

    Raises TransportError for a broken precondition or an option that is not available.
    """

    topk_idx_t = torch.int64

    def __init__(self, group: EpGroup) -> None:
        self.group = group
        self._exchange = LowLatencyExchange("deep_ep low-latency", group, self.topk_idx_t)

    def get_dispatch_layout(
        self,
        topk_idx: torch.Tensor,
        num_experts: int,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, EventOverlap]:
        """Count what this rank will send; see the protocol."""
        where = "deep_ep get_dispatch_layout"
        world = self.group.world_size
        check_tensor(where, "topk_idx", topk_idx, [None, None], [self.topk_idx_t])
        if num_experts % world:
            raise TransportError(f"{where}: {num_experts} experts do not divide evenly among {world} ranks.")
        check_ids(where, topk_idx, -1, num_experts)
        owner = torch.where(topk_idx < 0, -1, topk_idx.div(num_experts // world, rounding_mode="floor"))
        in_rank = (owner.unsqueeze(-1) == torch.arange(world, device=owner.device)).any(dim=1)
        per_expert = torch.bincount(topk_idx[topk_idx >= 0].long(), minlength=num_experts)
        per_rank = in_rank.sum(dim=0)
        return per_rank.to(torch.int32), None, per_expert.to(torch.int32), in_rank, EventOverlap()

    def dispatch(
        self,
        x: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        handle: Any = None,
        num_tokens_per_rank: torch.Tensor | None = None,
        num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None,
        num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        expert_alignment: int = 1,
        *,
        config: Any = None,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Any, torch.Tensor, torch.Tensor, list[int], HighThroughputHandle, EventOverlap]:
        """Send each row once to every rank that owns one of its experts; see the protocol."""
        where = "deep_ep dispatch"
        group, world = self.group, self.group.world_size
        if handle is not None or num_tokens_per_rdma_rank is not None:
            raise TransportError(
                f"{where}: handle and num_tokens_per_rdma_rank have to be None over torch.distributed."
            )
        if num_tokens_per_rank is None or is_token_in_rank is None or num_tokens_per_expert is None:
            raise TransportError(f"{where}: pass all that get_dispatch_layout returned.")
        if topk_idx is None or topk_weights is None:
            raise TransportError(
                f"{where}: topk_idx and topk_weights are needed, found {topk_idx}, {topk_weights}."
            )
        payload = x if isinstance(x, tuple) else (x,)
        tokens = payload[0].size(0)
        self._check_rows(where, payload)
        check_tensor(where, "topk_idx", topk_idx, [tokens, None], [self.topk_idx_t])
        topk = topk_idx.size(1)
        check_tensor(where, "topk_weights", topk_weights, [tokens, topk], [torch.float32])
        check_tensor(where, "is_token_in_rank", is_token_in_rank, [tokens, world], [torch.bool])
        num_experts = num_tokens_per_expert.size(0)
        experts_per_rank = num_experts // world

        plan = RoutingPlan(is_token_in_rank.t().nonzero()[:, 1], num_tokens_per_rank.tolist())
        if sum(plan.counts) != plan.rows.numel():
            raise TransportError(
                f"{where}: num_tokens_per_rank sums to {sum(plan.counts)}, is_token_in_rank to "
                f"{plan.rows.numel()}. "
                "Pass both from one get_dispatch_layout."
            )
        sent_counts = group.gather_ints(f"{where} (counts)", [*plan.counts, *num_tokens_per_expert.tolist()])
        recv_counts = [row[group.rank] for row in sent_counts]
        first = world + group.rank * experts_per_rank
        per_local_expert = [
            -(-sum(row[first + expert] for row in sent_counts) // expert_alignment) * expert_alignment
            for expert in range(experts_per_rank)
        ]
        parts = [*payload, topk_idx, topk_weights]
        received, pending = group.start_exchange(
            where, pack_rows(parts).index_select(0, plan.rows), plan.counts, recv_counts
        )
        results = [
            poison_(torch.empty((sum(recv_counts), part.size(1)), dtype=part.dtype, device=part.device))
            for part in parts
        ]

        def receive() -> None:
            pending.wait()
            values = unpack_rows(received, [(part.dtype, part.size(1)) for part in parts])
            local = values[-2] - group.rank * experts_per_rank
            here = (values[-2] >= 0) & (local >= 0) & (local < experts_per_rank)
            values[-2] = torch.where(here, local, -1)
            values[-1] = torch.where(here, values[-1], 0.0)
            for result, value in zip(results, values, strict=True):
                result.copy_(value)

        event = EventOverlap(receive) if async_finish else EventOverlap()
        if not async_finish:
            receive()
        *rows, recv_idx, recv_weights = results
        recv_x: Any = tuple(rows) if isinstance(x, tuple) else rows[0]
        return (
            recv_x,
            recv_idx,
            recv_weights,
            per_local_expert,
            HighThroughputHandle(plan, recv_counts, tokens),
            event,
        )

    def combine(
        self,
        x: torch.Tensor,
        handle: HighThroughputHandle,
        topk_weights: torch.Tensor | None = None,
        *,
        config: Any = None,
        previous_event: Any = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """Sum what the ranks made of this rank's rows; see the protocol. ``topk_weights`` have to be None."""
        where = "deep_ep combine"
        if topk_weights is not None:
            raise TransportError(f"{where}: topk_weights have to be None over torch.distributed.")
        check_tensor(where, "x", x, [sum(handle.recv_counts), None], [torch.bfloat16])
        received, pending = self.group.start_exchange(
            where, pack_rows([x]), handle.recv_counts, handle.plan.counts
        )
        hidden = x.size(1)
        combined = poison_(torch.empty((handle.tokens, hidden), dtype=torch.bfloat16, device=x.device))

        def receive() -> None:
            pending.wait()
            (values,) = unpack_rows(received, [(torch.bfloat16, hidden)])
            combined.copy_(handle.plan.sum(values, handle.tokens))

        event = EventOverlap(receive) if async_finish else EventOverlap()
        if not async_finish:
            receive()
        return combined, None, event

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[
        Any,
        torch.Tensor,
        tuple[torch.Tensor, torch.Tensor, int, int, int],
        EventOverlap,
        Callable[[], None] | None,
    ]:
        """Send tokens to their experts in the batched format; see the protocol."""
        where = "deep_ep low-latency dispatch"
        world = self.group.world_size
        if cumulative_local_expert_recv_stats is not None or dispatch_wait_recv_cost_stats is not None:
            raise TransportError(
                f"{where}: statistics are not available over torch.distributed. Leave them out."
            )
        if num_experts % world:
            raise TransportError(f"{where}: {num_experts} experts do not divide evenly among {world} ranks.")
        recv_x, counts, (src_info, layout_range), event, hook = self._exchange.dispatch(
            x,
            topk_idx,
            num_max_dispatch_tokens_per_rank,
            num_experts // world,
            use_fp8=use_fp8,
            round_scale=round_scale,
            use_ue8m0=use_ue8m0,
            async_finish=async_finish,
            return_recv_hook=return_recv_hook,
        )
        handle = (src_info, layout_range, num_max_dispatch_tokens_per_rank, x.size(1), num_experts)
        return recv_x, counts, handle, event, hook

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: tuple[torch.Tensor, torch.Tensor, int, int, int],
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Callable[[], None] | None]:
        """Send bf16 rows back and add them up, weighted; see the protocol."""
        if use_logfmt or zero_copy or combine_wait_recv_cost_stats is not None:
            raise TransportError(
                "deep_ep low-latency combine: use_logfmt, zero_copy and statistics are not available over "
                "torch.distributed. Leave them out."
            )
        src_info, layout_range, max_tokens, _, _ = handle
        return self._exchange.combine(
            x,
            topk_idx,
            topk_weights,
            (src_info, layout_range),
            max_tokens,
            async_finish=async_finish,
            return_recv_hook=return_recv_hook,
            out=out,
        )

    @staticmethod
    def _check_rows(where: str, payload: tuple[torch.Tensor, ...]) -> None:
        rows = payload[0]
        if len(payload) == 1:
            check_tensor(where, "x", rows, [None, None], [torch.bfloat16])
        else:
            check_tensor(where, "x[0]", rows, [None, None], [torch.float8_e4m3fn])
            check_tensor(where, "x[1]", payload[1], [rows.size(0), rows.size(1) // 128], [torch.float32])
        row_bytes = rows.size(1) * rows.element_size()
        # fp8 rows are half as long as the bf16 ones that the layer's hidden size was rounded for.
        unit = _ROW_BYTES if len(payload) == 1 else _ROW_BYTES // 2
        if row_bytes % unit:
            raise TransportError(
                f"{where}: rows of {row_bytes} bytes, expected a multiple of {unit}. Round the hidden size "
                "up with "
                "maybe_roundup_layer_hidden_size."
            )


def vendor_deep_ep_buffer(
    group: EpGroup, *, max_tokens_per_rank: int | None, hidden: int, num_experts: int
) -> Any:
    """Build the genuine ``deep_ep.Buffer``: in low-latency mode if ``max_tokens_per_rank`` is given.

    Raises TransportError when the library cannot be imported.
    """
    module, why = load_vendor("deep_ep")
    if module is None:
        raise TransportError(f"deep_ep: the library cannot be imported: {why}.")
    low_latency = max_tokens_per_rank is not None
    rdma_bytes = 0
    if max_tokens_per_rank is not None:
        rdma_bytes = module.Buffer.get_low_latency_rdma_size_hint(
            max_tokens_per_rank, hidden, group.world_size, num_experts
        )
    return module.Buffer(
        group.process_group,
        num_nvl_bytes=_NVL_BYTES,
        num_rdma_bytes=rdma_bytes,
        low_latency_mode=low_latency,
        num_qps_per_rank=num_experts // group.world_size if low_latency else 1,
        explicitly_destroy=True,
    )
