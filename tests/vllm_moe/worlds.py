"""Worlds of several processes that tests send functions to: gloo, one thread a rank, reused."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any

import torch
import torch.distributed as dist

from vllm_moe.transports import EpGroup, TransportChoice

__all__ = ["World", "WorldError"]

_JOB_SECONDS = 120.0


class WorldError(AssertionError):
    """A rank raised; the message is every rank's traceback that there is."""


def _rank_main(
    rank: int, size: int, port: int, seconds: float, device: str, transport: TransportChoice, pipe: Connection
) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=seconds)
    if device == "cuda":
        torch.cuda.set_device(0)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=_JOB_SECONDS))
    # Ranks need not start at the same moment; only then does the short timeout hold.
    patience = timedelta(seconds=_JOB_SECONDS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
    dist.distributed_c10d._set_pg_timeout(timeout)
    while True:
        job = pipe.recv()
        if job is None:
            break
        function, arguments = job
        try:
            with EpGroup(device=device, timeout=timeout, transport=transport) as group:
                pipe.send((True, function(group, *arguments)))
        except Exception:  # noqa: BLE001 -- whatever it is goes to the test
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
    dist.destroy_process_group()


class World:
    """``size`` processes, each with a rank; ``run`` calls a module-level function in all of them.

    ``seconds`` is the timeout of one exchange between ranks; ``transport`` is what backends may be built
    over.
    """

    def __init__(
        self, size: int, *, seconds: float = 45.0, device: str = "cpu", transport: TransportChoice = "torch"
    ) -> None:
        self.size = size
        self.device = device
        self.broken = False
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        # A fork of a process that has imported torch already, and has done nothing else.
        context = multiprocessing.get_context("forkserver" if device == "cpu" else "spawn")
        if device == "cpu":
            context.set_forkserver_preload(["torch.distributed", "vllm_moe.transports"])
        self._processes = []
        self._pipes: list[Connection] = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_rank_main,
                args=(rank, size, self._store.port, seconds, device, transport, theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def run(
        self, function: Callable[..., Any], *arguments: Any, per_rank: Sequence[Any] | None = None
    ) -> list[Any]:
        """Call ``function(group, *arguments)`` on every rank, and give what they return, by rank.

        With ``per_rank`` a rank gets its entry of it as a last argument. Raises WorldError when a rank
        raised.
        """
        for rank, pipe in enumerate(self._pipes):
            pipe.send((function, arguments if per_rank is None else (*arguments, per_rank[rank])))
        results = self.collect(range(self.size))
        failures = [str(value) for good, value in results.values() if not good]
        if failures:
            self.broken = True
            raise WorldError("\n".join(failures))
        return [results[rank][1] for rank in range(self.size)]

    def collect(self, ranks: Sequence[int]) -> dict[int, tuple[bool, Any]]:
        """Wait for what the given ranks answer: ``(True, result)`` or ``(False, traceback)``."""
        waiting = {self._pipes[rank]: rank for rank in ranks}
        results: dict[int, tuple[bool, Any]] = {}
        while waiting:
            ready = wait_for_any(list(waiting), timeout=_JOB_SECONDS)
            if not ready:
                raise WorldError(f"ranks {sorted(waiting.values())} did not answer within {_JOB_SECONDS:g} s")
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[call-overload]
                try:
                    results[rank] = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    results[rank] = (
                        False,
                        f"rank {rank}: the process ended with {self._processes[rank].exitcode}",
                    )
        return results

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Send a job and do not wait; see :meth:`collect`."""
        for pipe in self._pipes:
            pipe.send((function, arguments))

    def close(self) -> None:
        """End the processes."""
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            if process.is_alive():
                try:
                    pipe.send(None)
                except OSError:
                    process.terminate()
            process.join(timeout=20)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()


def die(_group: EpGroup) -> None:
    """End this process at once, as a crash would."""
    os._exit(3)
