"""An exchange library in small, for the honest backend: what vendors' libraries are like, without their kernels.

Fixed capacity, memory that it owns and uses again, garbage where nobody wrote (NaN, and ids that exist), a send and a
receive half, and preconditions that it insists on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from checks._rows import Place

__all__ = ["Received", "Wire", "WireError", "as_bytes"]


class WireError(RuntimeError):
    """A precondition of the library is not met."""


@dataclass
class Received:
    """What a dispatch gives, and what its combine needs; rows past ``total`` hold anything."""

    rows: torch.Tensor
    scales: torch.Tensor | None
    weights: torch.Tensor
    ids: torch.Tensor
    total: torch.Tensor
    """int32 ``[1]``."""
    source: torch.Tensor
    """Where each row came from: rank * capacity + token."""


class Wire:
    """Sends rows to the ranks that own their experts, and sums what comes back; ids are int32."""

    def __init__(self, place: Place, capacity: int, experts_per_rank: int) -> None:
        self.place, self.capacity, self.experts_per_rank = place, capacity, experts_per_rank
        self._memory: dict[tuple[Any, ...], torch.Tensor] = {}

    def owned(self, name: str, slot: int, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Memory of the library's own, used again by the next call in the same slot, full of garbage."""
        key = (name, slot, shape, like.dtype)
        if key not in self._memory:
            self._memory[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        memory = self._memory[key]
        if like.dtype is torch.int32:
            garbage = torch.arange(memory.numel(), dtype=torch.int32, device=like.device)
            return memory.copy_((garbage % (self.experts_per_rank * self.place.world_size)).view(shape))
        memory.view(torch.uint8).fill_(0xFF)
        return memory

    def gather(self, rows: torch.Tensor) -> Callable[[], tuple[torch.Tensor, list[int]]]:
        """Send byte rows ``[n, width]`` to every rank; the result waits: ``[ranks, capacity, width]``, counts."""
        world, n = self.place.world_size, rows.size(0)
        if n > self.capacity:
            raise WireError(f"wire: {n} rows, but the capacity is {self.capacity}. Pass fewer, or make it larger.")
        mine = torch.zeros((self.capacity + 1, max(rows.size(1), 8)), dtype=torch.uint8, device=rows.device)
        mine[0, :8] = torch.tensor([n], device=rows.device).view(torch.uint8)
        mine[1 : n + 1, : rows.size(1)] = rows
        sending = mine.repeat(world, 1, 1)
        everyone = torch.empty_like(sending)
        work = dist.all_to_all_single(everyone.view(-1), sending.view(-1), async_op=True) if world > 1 else None
        if work is None:
            everyone.copy_(sending)

        def wait() -> tuple[torch.Tensor, list[int]]:
            if work is not None:
                work.wait()
            counts = everyone[:, 0, :8].flatten().clone().view(torch.int64).tolist()
            return everyone[:, 1:, : rows.size(1)], counts

        return wait

    def send_back(self, rows: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Send row block r to rank r; the result waits: float32 ``[ranks, capacity, hidden]``, mine from each."""
        sending = rows.float().contiguous()
        received = torch.empty_like(sending)
        work = (
            dist.all_to_all_single(received.view(-1), sending.view(-1), async_op=True)
            if self.place.world_size > 1
            else None
        )

        def wait() -> torch.Tensor:
            if work is None:
                return sending
            work.wait()
            return received

        return wait

    def dispatch(
        self,
        rows: torch.Tensor,
        weights: torch.Tensor,
        indices: torch.Tensor,
        scales: torch.Tensor | None = None,
        slot: int = 0,
        return_recv_hook: bool = False,
    ) -> tuple[Received, Callable[[], None] | None]:
        """Send each row to every rank that owns one of its experts; nothing is there before the hook was called."""
        for name, tensor in (("rows", rows), ("weights", weights), ("indices", indices)):
            if not tensor.is_contiguous():
                raise WireError(f"wire dispatch: {name} is not contiguous.")
        if indices.dtype is not torch.int32:
            raise WireError(f"wire dispatch: indices are {indices.dtype}, expected torch.int32.")
        if weights.dtype is not torch.float32:
            raise WireError(f"wire dispatch: weights are {weights.dtype}, expected torch.float32.")
        parts = [rows, weights, indices] + ([] if scales is None else [scales.contiguous()])
        waiting = self.gather(torch.cat([as_bytes(part) for part in parts], dim=1))
        world, hidden, topk = self.place.world_size, rows.size(1), indices.size(1)
        slots = world * self.capacity
        result = Received(
            self.owned("rows", slot, (slots, hidden), rows),
            None if scales is None else self.owned("scales", slot, (slots, scales.size(1)), scales),
            self.owned("weights", slot, (slots, topk), weights),
            self.owned("ids", slot, (slots, topk), indices),
            self.owned("total", slot, (1,), indices),
            self.owned("source", slot, (slots,), indices),
        )

        def receive() -> None:
            everyone, counts = waiting()
            places = [rank * self.capacity + token for rank in range(world) for token in range(counts[rank])]
            source = torch.tensor(places, dtype=torch.int64, device=rows.device)
            flat = everyone.reshape(slots, -1)[source]
            columns = torch.split(flat, [part.size(1) * part.element_size() for part in parts], dim=1)
            values = [
                column.contiguous().view(-1).view(part.dtype).view(-1, part.size(1))
                for column, part in zip(columns, parts, strict=True)
            ]
            owner = torch.where(values[2] < 0, -1, values[2] // self.experts_per_rank)
            (here,) = torch.where((owner == self.place.rank).any(dim=1))
            n = here.numel()
            _put(result.rows, values[0][here])
            _put(result.weights, values[1][here])
            _put(result.ids, values[2][here])
            if result.scales is not None:
                _put(result.scales, values[3][here])
            result.source[:n] = source[here].to(torch.int32)
            result.total.fill_(n)

        if return_recv_hook:
            return result, receive
        receive()
        return result, None

    def combine(
        self,
        rows: torch.Tensor,
        indices: torch.Tensor,
        received: Received,
        return_recv_hook: bool = False,
    ) -> tuple[torch.Tensor, Callable[[], None] | None]:
        """Sum what the owners of ``indices`` (as this rank gave them to dispatch) made of each of its rows.

        ``rows`` are bf16, fp16 or float32 ``[ranks * capacity, hidden]``, as they were received; the result has a row
        for each of ``indices``.
        """
        if rows.dtype not in {torch.bfloat16, torch.float16, torch.float32}:
            raise WireError(f"wire combine: rows are {rows.dtype}, expected bf16, fp16 or float32.")
        world, hidden = self.place.world_size, rows.size(1)
        sending = torch.zeros((world * self.capacity, hidden), dtype=torch.float32, device=rows.device)
        n = int(received.total)
        sending[received.source[:n].long()] = rows[:n].float()
        waiting = self.send_back(sending.view(world, self.capacity, hidden))
        tokens = indices.size(0)
        combined = torch.full((tokens, hidden), torch.nan, dtype=rows.dtype, device=rows.device)
        owner = torch.where(indices < 0, -1, indices.long() // self.experts_per_rank)

        def receive() -> None:
            parts = waiting()[:, :tokens]
            total = torch.zeros((min(tokens, parts.size(1)), hidden), dtype=torch.float32, device=rows.device)
            for rank in range(world):
                total += torch.where((owner == rank).any(dim=1)[: total.size(0), None], parts[rank], 0.0)
            combined[: total.size(0)] = total.to(rows.dtype)

        if return_recv_hook:
            return combined, receive
        receive()
        return combined, None


def as_bytes(rows: torch.Tensor) -> torch.Tensor:
    """Contiguous ``[n, width]`` as bytes, through one dimension: empty tensors may have strides that no view likes."""
    return rows.contiguous().view(-1).view(torch.uint8).view(rows.size(0), rows.size(1) * rows.element_size())


def _put(memory: torch.Tensor, rows: torch.Tensor) -> None:
    as_bytes(memory)[: rows.size(0)] = as_bytes(rows)
