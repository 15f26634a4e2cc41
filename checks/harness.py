"""Worlds of ranks, in threads for speed and in processes for truth, that run functions within a deadline.

Each rank has ``torch.distributed`` to itself, over gloo. Whatever goes wrong in a rank (an exception, a hang, the end
of its process) is the result of that run and of no other: the world is made anew for the next one.
"""

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from checks._ranks import START_SECONDS, Broken, Message, NotShown, ProcessRanks, Ranks, Setting, ThreadRanks

__all__ = ["Broken", "NotShown", "World", "WorldFailure", "Worlds"]

Kind = Literal["threads", "processes"]

_GRACE = 1.5
"""Seconds that the other ranks get once one has failed: they may be waiting for it."""


@dataclass(eq=False)
class WorldFailure(Exception):  # noqa: N818 -- what it is called in the report
    """What a run came to when it did not come to a result on every rank."""

    kind: Literal["broken", "not shown", "raised", "died", "hung"]
    rank: int
    text: str

    def __str__(self) -> str:
        return self.text


class World:
    """``size`` ranks that :meth:`run` functions; made on first use, and again after a failure.

    - ``seconds``: how long one exchange between ranks may take.
    - ``deadline``: how long one function may take on all ranks together.
    - ``instrumented``: packages that are imported under typeguard's hook (processes only).
    - ``imports``: modules that are imported before the deadline counts (processes only).
    """

    def __init__(
        self,
        size: int,
        kind: Kind = "threads",
        *,
        device: str = "cpu",
        transport: str = "torch",
        seconds: float = 10.0,
        deadline: float = 60.0,
        instrumented: tuple[str, ...] = (),
        imports: tuple[str, ...] = (),
    ) -> None:
        if instrumented and kind == "threads":
            raise ValueError("World: instrumented packages need ranks of their own processes, found threads.")
        self.size, self.kind, self.device = size, kind, device
        self.transport, self.deadline = transport, deadline
        self._setting = Setting(size, device, transport, seconds, instrumented, imports)
        self._ranks: Ranks | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the ranks."""
        if self._ranks is not None:
            self._ranks.stop()
            self._ranks = None

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(place, gather, *arguments)`` on every rank and give what they return, by rank.

        ``gather(value)`` gives every rank's value by rank, and ends with an error as soon as any rank has failed.
        Raises WorldFailure.
        """
        ranks = self._started()
        try:
            try:
                for rank in range(self.size):
                    ranks.send(rank, (function, arguments))
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                text = f"it cannot be sent to the process of a rank ({error}): use functions of importable modules"
                raise WorldFailure("raised", 0, text) from error
            results = self._collect(ranks)
        except BaseException:
            self._drop(ranks)
            raise
        failures = [message for message in results.values() if message.what != "done"]
        if not failures:
            return [results[rank].value for rank in range(self.size)]
        if len(results) < self.size or any(message.what in {"raised", "died"} for message in failures):
            self._drop(ranks)
        # What failed first is the cause; what others say of a rank that has gone is not.
        first = min(failures, key=lambda message: (message.what != "died", message.when))
        raise WorldFailure(first.what, first.rank, first.value)  # type: ignore[arg-type]  # not "done"

    def _started(self) -> Ranks:
        """The ranks, each of them ready."""
        if self._ranks is not None:
            return self._ranks
        ranks = (ThreadRanks if self.kind == "threads" else ProcessRanks)(self._setting)
        try:
            self._await(ranks)
        except BaseException:
            self._drop(ranks)
            raise
        self._ranks = ranks
        return ranks

    def _await(self, ranks: Ranks) -> None:
        waiting, end = set(range(self.size)), time.monotonic() + START_SECONDS
        while waiting:
            message = ranks.receive(max(0.0, end - time.monotonic()))
            if message is None:
                raise WorldFailure("hung", min(waiting), f"it was not ready after {START_SECONDS:g} s")
            if message.what != "ready":
                raise WorldFailure(message.what, message.rank, message.value)  # type: ignore[arg-type]  # a failure
            waiting.remove(message.rank)

    def _drop(self, ranks: Ranks) -> None:
        ranks.kill()
        self._ranks = None

    def _collect(self, ranks: Ranks) -> dict[int, Message]:
        """Wait for each rank's answer, or for as long as it makes sense after a failure."""
        results: dict[int, Message] = {}
        gathered: dict[int, Any] = {}
        end = time.monotonic() + self.deadline
        failed = False
        while len(results) < self.size:
            message = ranks.receive(max(0.0, end - time.monotonic()))
            if message is None:
                if failed:
                    return results
                waiting = sorted(set(range(self.size)) - set(results))
                stacks = "\n".join(ranks.stack(rank) for rank in waiting)
                raise WorldFailure(
                    "hung",
                    waiting[0],
                    f"rank{'s' if len(waiting) > 1 else ''} {', '.join(map(str, waiting))} of {self.size} did not "
                    f"finish within {self.deadline:g} s.\n{stacks}",
                )
            if message.rank in results:
                continue  # the end of a process that has answered
            if message.what == "gather":
                gathered[message.rank] = message.value
                if failed:
                    ranks.send(message.rank, ("abandoned", None))
                elif len(gathered) == self.size:
                    everyone = [gathered[rank] for rank in range(self.size)]
                    gathered = {}
                    for rank in range(self.size):
                        ranks.send(rank, ("gathered", everyone))
                continue
            results[message.rank] = message
            if message.what != "done" and not failed:
                failed = True
                end = min(end, time.monotonic() + _GRACE)
                for rank in gathered:
                    ranks.send(rank, ("abandoned", None))
        return results


class Worlds:
    """Worlds of one kind by size and by what is instrumented in them, each made when first asked for."""

    def __init__(self, kind: Kind = "threads", **options: Any) -> None:
        self.kind: Kind = kind
        self.options = options
        self._worlds: dict[tuple[int, tuple[str, ...]], World] = {}

    def get(self, size: int, instrumented: tuple[str, ...] = ()) -> World:
        """The world of this size; in processes where packages are instrumented, whatever the kind."""
        key = (size, instrumented)
        if key not in self._worlds:
            kind: Kind = "processes" if instrumented else self.kind
            self._worlds[key] = World(size, kind, instrumented=instrumented, **self.options)
        return self._worlds[key]

    def close(self) -> None:
        """End them all."""
        while self._worlds:
            self._worlds.popitem()[1].close()
