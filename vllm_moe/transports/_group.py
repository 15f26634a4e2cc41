"""The ranks that experts are dealt out to, and exchanges that end in time and name who is missing."""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
import torch.distributed as dist

__all__ = ["EpGroup", "Pending", "TransportChoice", "TransportError"]

_T = TypeVar("_T")
_POLL_SECONDS = 0.02
_LOG = logging.getLogger(__name__)
_SERIALS = itertools.count()

TransportChoice = Literal["auto", "torch", "vendor"]
"""The vendor's library or an error, torch.distributed, or the first of these that can work."""


class TransportError(RuntimeError):
    """An exchange between ranks failed, or was asked for what it cannot do."""


class Pending:
    """An exchange that has been started; :meth:`wait` ends it, within the group's timeout."""

    def __init__(self, group: "EpGroup", what: str, number: int, works: Sequence[dist.Work]) -> None:
        self._group = group
        self._what = what
        self._number = number
        self._works = list(works)

    def wait(self) -> None:
        """Return once the data is here; raises :class:`TransportError` that names who stayed away."""
        works, self._works = self._works, []
        for work in works:
            try:
                work.wait(self._group.timeout)
            except RuntimeError as error:
                raise self._group.failure(self._what, self._number, error) from error


class EpGroup:
    """A rank's view of its expert-parallel group; what ``get_ep_group()`` is to vLLM.

    - ``process_group``: a gloo or NCCL group; None means the default group if ``torch.distributed`` is
      initialized, and otherwise a world of this one rank.
    - ``device``: where tensors live. gloo takes CPU and CUDA tensors, NCCL needs one GPU for each rank.
    - ``timeout``: how long any one exchange may take, the same on every rank.
    - ``transport``: what the factory may choose, see :data:`TransportChoice`.
    - ``dp_group``: the ranks whose tokens differ from this rank's, if that is not the whole group
      (tensor-parallel ranks that hold the same tokens). Only the allgather backend makes use of it.

    Nothing is done to find out about missing ranks while all goes well. When an exchange fails, every rank
    that waited in vain signs a list in the group's key-value store, and whoever has not signed within another
    timeout is named. A group that has failed stays failed: its messages may be half sent.

    Groups must be made, and their methods called, in the same order on every rank, as with any collective.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        device: torch.device | str = "cpu",
        timeout: timedelta = timedelta(seconds=60),
        transport: TransportChoice = "auto",
        dp_group: "EpGroup | None" = None,
    ) -> None:
        if process_group is None and dist.is_initialized():
            process_group = dist.group.WORLD
        self.process_group = process_group
        self.device = torch.device(device)
        self.timeout = timeout
        self.transport: TransportChoice = transport
        self.rank = 0 if process_group is None else dist.get_rank(process_group)
        self.world_size = 1 if process_group is None else dist.get_world_size(process_group)
        self.dp_group = self if dp_group is None else dp_group
        self.owned: dict[str, object] = {}
        self._serial = next(_SERIALS)
        self._number = 0
        self._failure: str | None = None

    def __repr__(self) -> str:
        return (
            f"EpGroup(rank={self.rank}, world_size={self.world_size}, {self.carrier}, device={self.device})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def carrier(self) -> str:
        """What the torch transports send with: ``gloo``, ``nccl``, or ``local`` for a world of one."""
        return "local" if self.process_group is None else dist.get_backend(self.process_group)

    def get_or_create(self, key: str, make: Callable[[], _T]) -> _T:
        """Give the object kept under ``key``, made on the first call; so layers share buffers."""
        if key not in self.owned:
            self.owned[key] = make()
        return self.owned[key]  # type: ignore[return-value]  # what was made under this key

    def close(self) -> None:
        """Destroy the transports that were made for this group, newest first."""
        while self.owned:
            _, owned = self.owned.popitem()
            destroy = getattr(owned, "destroy", None)
            if destroy is not None:
                destroy()

    def gather_ints(self, what: str, values: Sequence[int]) -> list[list[int]]:
        """Give every rank's ``values``, by rank; all ranks give the same number of them."""
        if self.world_size == 1:
            return [list(values)]
        mine = torch.tensor([list(values)], dtype=torch.int64, device=self._message_device())
        everyone = self.gather_rows(what, mine.view(torch.uint8), [1] * self.world_size)
        table: list[list[int]] = everyone.view(torch.int64).tolist()
        return table

    def gather_rows(self, what: str, rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Give all ranks' rows by rank, ``[sum(sizes), width]`` bytes; this rank's are ``[n, width]``."""
        if self.world_size == 1:
            return rows.clone()
        return self.exchange(what, rows.repeat(self.world_size, 1), [rows.size(0)] * self.world_size, sizes)

    def exchange(
        self, what: str, rows: torch.Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> torch.Tensor:
        """Send bytes ``[sum(send_counts), width]``, the first ``send_counts[0]`` rows to rank 0 and so on.

        Gives ``[sum(recv_counts), width]``, ordered by the rank that they come from.
        """
        received, pending = self.start_exchange(what, rows, send_counts, recv_counts)
        pending.wait()
        return received

    def start_exchange(
        self, what: str, rows: torch.Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> tuple[torch.Tensor, Pending]:
        """Start :meth:`exchange`; the tensor is filled when the other result's ``wait`` returns."""
        width = rows.size(1)
        received = torch.empty((sum(recv_counts), width), dtype=torch.uint8, device=rows.device)
        if self.world_size == 1:
            received.copy_(rows)
            return received, Pending(self, what, self._number, [])

        def start() -> list[dist.Work]:
            # One dimension, so that a width of 0 or a rank without rows is nothing special.
            return [
                dist.all_to_all_single(
                    received.view(-1),
                    rows.contiguous().view(-1),
                    [count * width for count in recv_counts],
                    [count * width for count in send_counts],
                    group=self.process_group,
                    async_op=True,
                )
            ]

        return received, self._start(what, start)

    def barrier(self, what: str) -> None:
        """Wait for every rank to come here."""
        self.gather_ints(what, [0])

    def store(self) -> Any:
        """Give the key-value store that the ranks found each other with."""
        if self.process_group is None:
            raise TransportError(f"{self!r} has no store: torch.distributed is not initialized.")
        # The group's own store is public since torch 2.8; before, only the default group's can be had.
        if hasattr(self.process_group, "get_group_store"):
            return self.process_group.get_group_store()
        return dist.distributed_c10d._get_default_store()  # noqa: SLF001 -- there is no other way

    def failure(self, what: str, number: int, error: BaseException) -> TransportError:
        """Find out who is missing from exchange ``number``; waits for one more timeout at most."""
        found = self._signed(number)
        seconds = self.timeout.total_seconds()
        absent = [rank for rank in range(self.world_size) if found is not None and rank not in found]
        elsewhere = [f"rank {rank} in exchange {at}" for rank, at in (found or {}).items() if at != number]
        if found is None:
            who = (
                "the ranks' store does not answer either, so the rank that hosts it (usually rank 0) is gone"
            )
        elif absent:
            names = ", ".join(str(rank) for rank in absent)
            who = f"rank{'s' if len(absent) > 1 else ''} {names} of {self.world_size} died or never called it"
        elif elsewhere:
            who = f"{', '.join(elsewhere)} waited in vain too"
        else:
            who = "every rank called it"
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._failure = (
            f"{what}: exchange {number} of rank {self.rank} did not finish within {seconds:g} s: {who}. The "
            "group "
            f"cannot be used any more; start all ranks again. ({self.carrier}: {first_line})"
        )
        return TransportError(self._failure)

    def _signed(self, number: int) -> dict[int, int] | None:
        """Give the exchange that each rank failed in, of those that tell; None without a store to ask."""
        prefix = f"vllm_moe/{self._name()}/{self._serial}"
        found = {self.rank: number}
        # A rank that is still waiting gives up one timeout after it started, which may be later than here.
        deadline = time.monotonic() + self.timeout.total_seconds() + 1.0
        try:
            store = self.store()
            store.set(f"{prefix}/{self.rank}", str(number))
            while len(found) < self.world_size and time.monotonic() < deadline:
                for rank in range(self.world_size):
                    if rank not in found and store.check([f"{prefix}/{rank}"]):
                        found[rank] = int(store.get(f"{prefix}/{rank}"))
                time.sleep(_POLL_SECONDS)
        except dist.DistError:
            _LOG.exception("%r: the store failed", self)
            return None
        return found

    def _start(self, what: str, start: Callable[[], list[dist.Work]]) -> Pending:
        if self._failure is not None:
            raise TransportError(f"{what}: an earlier exchange of this group failed. {self._failure}")
        self._number += 1
        number = self._number
        try:
            return Pending(self, what, number, start())
        except RuntimeError as error:
            raise self.failure(what, number, error) from error

    def _name(self) -> str:
        return "" if self.process_group is None else str(self.process_group.group_name)

    def _message_device(self) -> torch.device:
        return self.device if self.carrier == "nccl" else torch.device("cpu")
