"""The low-latency exchange that NIXL EP and DeepEP have in common, on ``torch.distributed``.

Source of shapes and behaviour: ``examples/device/ep`` of https://github.com/ai-dynamo/nixl and
``csrc/kernels/internode_ll.cu`` of https://github.com/deepseek-ai/DeepEP, which it was derived from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_moe.transports._group import EpGroup, TransportError
from vllm_moe.transports._wire import RoutingPlan, check_ids, check_tensor, pack_rows, poison_, unpack_rows

__all__ = ["LOW_LATENCY_HIDDEN_SIZES", "EventOverlap", "LowLatencyExchange"]

LOW_LATENCY_HIDDEN_SIZES = [2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192]
"""The hidden sizes that the kernels are compiled for."""

_BLOCK = 128
_FP8_MAX = 448.0
_SMALLEST_AMAX = 1e-4


class EventOverlap:
    """What the vendors' calls return to wait for: ``event`` is None when there is nothing to wait for."""

    def __init__(self, receive: Callable[[], None] | None = None) -> None:
        self.event: Callable[[], None] | None = receive

    def current_stream_wait(self) -> None:
        """Wait for the data; the vendor makes the current CUDA stream wait instead of the host."""
        if self.event is None:
            raise TransportError(
                "EventOverlap: there is no event, since the call was not made with async_finish."
            )
        self.event()


@dataclass(frozen=True)
class _Sent:
    """What dispatch knows and combine needs; it travels with the handle, on its first tensor."""

    topk_idx: torch.Tensor
    """This rank's own routing, a copy."""
    num_experts_per_rank: int


class LowLatencyExchange:
    """Dispatch into the batched format, combine out of it, each in a send and a receive half.

    As with the vendors' kernels the tensors that dispatch returns hold garbage until the receive half has
    run, and in the rows past an expert's count for ever; a send clears the counters of the one before, which
    has to have been received; and nothing of one rank's send waits for another rank. Rows of an expert are in
    the order of (source rank, token), where the vendors' order of ranks is by chance.

    Raises TransportError for a broken precondition; see :meth:`dispatch` and :meth:`combine`.
    """

    def __init__(self, name: str, group: EpGroup, topk_idx_t: torch.dtype) -> None:
        self.name = name
        self.group = group
        self.topk_idx_t = topk_idx_t
        self._unreceived = 0

    def dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        max_tokens: int,
        num_experts_per_rank: int,
        *,
        use_fp8: bool,
        round_scale: bool,
        use_ue8m0: bool,
        async_finish: bool,
        return_recv_hook: bool,
    ) -> tuple[Any, torch.Tensor, tuple[torch.Tensor, torch.Tensor], EventOverlap, Callable[[], None] | None]:
        """Send ``x`` bf16 ``[tokens, hidden]`` to its experts.

        Gives ``(recv_x, counts int32 [local experts], (src_info, layout_range), event, hook)``; ``recv_x`` is
        ``[local experts, ranks * max_tokens, hidden]`` bf16, or with ``use_fp8`` a pair of fp8 and scales
        ``[local experts, ranks * max_tokens, hidden // 128]`` float32 (``hidden // 512`` int32 with
        ``use_ue8m0``), column-major in the last two dimensions.
        """
        where = f"{self.name} dispatch"
        group, world = self.group, self.group.world_size
        self._check_dispatch(where, x, topk_idx, max_tokens, use_fp8, round_scale, use_ue8m0)
        check_ids(where, topk_idx, -1, num_experts_per_rank * world)
        self._check_capacity(where, topk_idx, max_tokens, num_experts_per_rank * world)
        self._claim_buffer(where, async_finish, return_recv_hook)

        tokens, hidden = x.shape
        topk = topk_idx.size(1)
        device = x.device
        plan = RoutingPlan.make(
            torch.where(topk_idx < 0, -1, topk_idx.div(num_experts_per_rank, rounding_mode="floor")), world
        )
        source = torch.arange(tokens, dtype=torch.int32, device=device).unsqueeze(1)
        payload = _quantize(x, round_scale=round_scale) if use_fp8 else (x,)
        packed = pack_rows([*payload, topk_idx, source])
        # Fixed places in a buffer of the largest size, so that the send needs to know nothing of the other
        # ranks.
        width = packed.size(1)
        sending = torch.zeros((world, max_tokens, width), dtype=torch.uint8, device=device)
        start = 0
        for rank, count in enumerate(plan.counts):
            sending[rank, :count] = packed[plan.rows[start : start + count]]
            start += count
        counts = torch.tensor(plan.counts, dtype=torch.int64, device=device).view(world, 1).view(torch.uint8)
        equal = [max_tokens] * world
        received_counts, counts_pending = group.start_exchange(
            f"{where} (counts)", counts, [1] * world, [1] * world
        )
        received, rows_pending = group.start_exchange(where, sending.view(-1, width), equal, equal)

        slots = world * max_tokens
        recv_x = poison_(
            torch.empty(
                (num_experts_per_rank, slots, hidden),
                dtype=torch.float8_e4m3fn if use_fp8 else torch.bfloat16,
                device=device,
            )
        )
        scales = None
        if use_fp8:
            scale_width, scale_dtype = (
                (hidden // 512, torch.int32) if use_ue8m0 else (hidden // _BLOCK, torch.float32)
            )
            scales = poison_(
                torch.empty((num_experts_per_rank, scale_width, slots), dtype=scale_dtype, device=device)
            ).transpose(1, 2)
        recv_count = poison_(torch.empty(num_experts_per_rank, dtype=torch.int32, device=device))
        src_info = poison_(torch.empty((num_experts_per_rank, slots), dtype=torch.int32, device=device))
        layout_range = poison_(torch.empty((num_experts_per_rank, world), dtype=torch.int64, device=device))
        src_info.vllm_moe_sent = _Sent(topk_idx.clone(), num_experts_per_rank)  # type: ignore[attr-defined]

        def receive() -> None:
            counts_pending.wait()
            rows_pending.wait()
            by_rank = received_counts.view(torch.int64).view(-1).tolist()
            regions = received.view(world, max_tokens, width)
            rows = torch.cat([regions[rank, :count] for rank, count in enumerate(by_rank)])
            parts = [(part.dtype, part.size(1)) for part in payload]
            *values, ids, source_token = unpack_rows(rows, [*parts, (topk_idx.dtype, topk), (torch.int32, 1)])
            local = ids.long() - group.rank * num_experts_per_rank
            row, slot = ((local >= 0) & (local < num_experts_per_rank)).nonzero(as_tuple=True)
            expert = local[row, slot]
            order = expert.argsort(stable=True)
            row, expert = row[order], expert[order]
            counted = torch.bincount(expert, minlength=num_experts_per_rank)
            first = counted.cumsum(0) - counted
            place = torch.arange(expert.numel(), device=device) - first[expert]
            _write(recv_x, expert, place, values[0][row] if not use_fp8 else _rows_of_fp8(values[0], row))
            if scales is not None:
                scale = values[1][row]
                scales[expert, place] = _pack_ue8m0(scale) if use_ue8m0 else scale
            recv_count.copy_(counted)
            src_info[expert, place] = source_token[row, 0]
            rank_of_row = torch.repeat_interleave(
                torch.arange(world, device=device), torch.tensor(by_rank, device=device)
            )
            pairs = torch.bincount(expert * world + rank_of_row[row], minlength=num_experts_per_rank * world)
            pairs = pairs.view(num_experts_per_rank, world)
            begin = pairs.cumsum(1) - pairs
            layout_range.copy_((begin << 32) | pairs)

        event, hook = self._finish(receive, async_finish, return_recv_hook)
        return (recv_x, scales) if use_fp8 else recv_x, recv_count, (src_info, layout_range), event, hook

    def combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: tuple[torch.Tensor, torch.Tensor],
        max_tokens: int,
        *,
        async_finish: bool,
        return_recv_hook: bool,
        out: torch.Tensor | None,
    ) -> tuple[torch.Tensor, EventOverlap, Callable[[], None] | None]:
        """Send ``x`` bf16 ``[local experts, ranks * max_tokens, hidden]`` back and add up, weighted.

        ``topk_idx`` and ``topk_weights`` (float32) are ``[tokens, topk]``, this rank's own; ``out`` bf16
        ``[tokens, hidden]`` is made if None. Slots of -1 add nothing.
        """
        where = f"{self.name} combine"
        group, world = self.group, self.group.world_size
        src_info, layout_range = handle
        sent: _Sent | None = getattr(src_info, "vllm_moe_sent", None)
        if sent is None:
            raise TransportError(f"{where}: the handle is not one that this transport's dispatch returned.")
        num_experts_per_rank = sent.num_experts_per_rank
        tokens, topk = sent.topk_idx.shape
        check_tensor(where, "x", x, [num_experts_per_rank, world * max_tokens, None], [torch.bfloat16])
        hidden = x.size(2)
        self._check_hidden(where, hidden)
        check_tensor(where, "topk_idx", topk_idx, [tokens, topk], [self.topk_idx_t])
        check_tensor(where, "topk_weights", topk_weights, [tokens, topk], [torch.float32])
        if not torch.equal(topk_idx, sent.topk_idx):
            at, number = (int(index) for index in (topk_idx != sent.topk_idx).nonzero()[0])
            raise TransportError(
                f"{where}: topk_idx of token {at}, slot {number}, is {int(topk_idx[at, number])}, but "
                "dispatch was "
                f"given {int(sent.topk_idx[at, number])}. Pass the ids that this rank dispatched."
            )
        if out is None:
            out = poison_(torch.empty((tokens, hidden), dtype=torch.bfloat16, device=x.device))
        check_tensor(where, "out", out, [tokens, hidden], [torch.bfloat16])
        self._claim_buffer(where, async_finish, return_recv_hook)

        # Both ends list the (expert, row) pairs of one source rank in the same order: by expert, then by
        # token.
        pairs = layout_range & 0xFFFFFFFF
        begin = layout_range >> 32
        send_counts = pairs.sum(dim=0).tolist()
        flat_pairs = pairs.t().reshape(-1)
        first = (
            (begin + torch.arange(num_experts_per_rank, device=x.device).unsqueeze(1) * x.size(1))
            .t()
            .reshape(-1)
        )
        within = torch.arange(int(flat_pairs.sum()), device=x.device) - torch.repeat_interleave(
            flat_pairs.cumsum(0) - flat_pairs, flat_pairs
        )
        rows = x.view(-1, hidden).index_select(0, torch.repeat_interleave(first, flat_pairs) + within)

        token, slot = (topk_idx >= 0).nonzero(as_tuple=True)
        expert = topk_idx[token, slot].long()
        order = expert.argsort(stable=True)
        token, slot, expert = token[order], slot[order], expert[order]
        recv_counts = torch.bincount(expert // num_experts_per_rank, minlength=world).tolist()
        received, pending = group.start_exchange(where, pack_rows([rows]), send_counts, recv_counts)
        weights = topk_weights.clone()
        result = out

        def receive() -> None:
            pending.wait()
            (values,) = unpack_rows(received, [(torch.bfloat16, hidden)])
            summed = torch.zeros((tokens, hidden), dtype=torch.float32, device=x.device)
            for number in range(topk):  # slot by slot, so that equal calls give equal bits on a GPU too
                chosen = slot == number
                summed.index_add_(
                    0, token[chosen], values[chosen].float() * weights[token[chosen], number].unsqueeze(1)
                )
            result.copy_(summed)

        event, hook = self._finish(receive, async_finish, return_recv_hook)
        return result, event, hook

    def _finish(
        self, receive: Callable[[], None], async_finish: bool, return_recv_hook: bool
    ) -> tuple[EventOverlap, Callable[[], None] | None]:
        done = False

        def once() -> None:
            nonlocal done
            if not done:
                done = True
                self._unreceived -= 1
                receive()

        if return_recv_hook:
            return EventOverlap(), once
        if async_finish:
            return EventOverlap(once), None
        once()
        return EventOverlap(), None

    def _claim_buffer(self, where: str, async_finish: bool, return_recv_hook: bool) -> None:
        if async_finish and return_recv_hook:
            raise TransportError(
                f"{where}: async_finish and return_recv_hook exclude each other. Ask for one."
            )
        if self._unreceived:
            raise TransportError(
                f"{where}: the send before this one has not been received, and this one would clear its "
                "counters. "
                "Run its hook first."
            )
        self._unreceived += 1

    def _check_hidden(self, where: str, hidden: int) -> None:
        if hidden not in LOW_LATENCY_HIDDEN_SIZES:
            sizes = ", ".join(str(size) for size in LOW_LATENCY_HIDDEN_SIZES)
            raise TransportError(
                f"{where}: hidden size {hidden} is not one that the kernels are compiled for ({sizes}). "
                "Round it up "
                "with maybe_roundup_layer_hidden_size."
            )

    def _check_dispatch(
        self,
        where: str,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        max_tokens: int,
        use_fp8: bool,
        round_scale: bool,
        use_ue8m0: bool,
    ) -> None:
        check_tensor(where, "x", x, [None, None], [torch.bfloat16])
        check_tensor(where, "topk_idx", topk_idx, [x.size(0), None], [self.topk_idx_t])
        self._check_hidden(where, x.size(1))
        if x.size(0) > max_tokens:
            raise TransportError(
                f"{where}: {x.size(0)} tokens, but num_max_dispatch_tokens_per_rank is {max_tokens}. Pass "
                "fewer "
                "tokens or make larger buffers."
            )
        slots = self.group.world_size * max_tokens
        if slots % 4:
            raise TransportError(
                f"{where}: ranks x num_max_dispatch_tokens_per_rank is {self.group.world_size} x "
                f"{max_tokens} = "
                f"{slots}, expected a multiple of 4. Round the number of tokens up."
            )
        if use_fp8 and x.size(1) % 512:
            raise TransportError(
                f"{where}: hidden size {x.size(1)} is no multiple of 512, which use_fp8 needs."
            )
        if use_ue8m0 and not (use_fp8 and round_scale):
            raise TransportError(
                f"{where}: use_ue8m0 needs use_fp8 and round_scale, found {use_fp8} and {round_scale}. Set "
                "both."
            )

    def _check_capacity(self, where: str, topk_idx: torch.Tensor, max_tokens: int, num_experts: int) -> None:
        """Refuse more than ``max_tokens`` rows for one expert, which only repeated ids in a row can cause."""
        counts = torch.bincount(topk_idx[topk_idx >= 0].long(), minlength=num_experts)
        if counts.numel() and int(counts.max()) > max_tokens:
            raise TransportError(
                f"{where}: {int(counts.max())} rows for expert {int(counts.argmax())}, but a rank may send "
                f"{max_tokens} to an expert (num_max_dispatch_tokens_per_rank). Rows name it more than once."
            )


def _quantize(x: torch.Tensor, *, round_scale: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize as the kernels do: fp8 ``[tokens, hidden]``, float32 scales ``[tokens, hidden // 128]``."""
    blocks = x.float().view(x.size(0), x.size(1) // _BLOCK, _BLOCK)
    scale = blocks.abs().amax(dim=2).clamp(min=_SMALLEST_AMAX) / _FP8_MAX
    if round_scale:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    quantized = (blocks / scale.unsqueeze(2)).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
    return quantized.view(x.shape), scale


def _pack_ue8m0(scale: torch.Tensor) -> torch.Tensor:
    """Keep the 8 exponent bits of powers of two, four to an int32: ``[rows, blocks // 4]``."""
    return (scale.contiguous().view(torch.int32) >> 23).to(torch.uint8).view(torch.int32)


def _rows_of_fp8(values: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return values.view(torch.uint8)[row].view(values.dtype)


def _write(target: torch.Tensor, expert: torch.Tensor, place: torch.Tensor, rows: torch.Tensor) -> None:
    """Scatter rows through a view of bytes, which indexing takes for every dtype."""
    target.view(torch.uint8)[expert, place] = rows.contiguous().view(torch.uint8)
