"""Ranks of ``python -m vllm_moe``: started here, or by torchrun; one of them prints."""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vllm_moe._run import Options, Report, run_rank
from vllm_moe.transports import EpGroup, MissingTransportError, TransportChoice, TransportError

__all__ = ["Settings", "launch", "run_under_torchrun"]

RIGHT, WRONG, COULD_NOT_RUN = 0, 1, 2

# Which torch does not list among the names of torch.distributed.
_tcp_store: Any = dist.TCPStore  # type: ignore[attr-defined]
_hash_store: Any = dist.HashStore  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Settings:
    """How to run, apart from what."""

    device: str
    seconds: float
    """Timeout of one exchange."""
    transport: TransportChoice
    verbose: bool


class _Display:
    """Progress bars on a terminal, nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done)


def _print(console: Console, options: Options, report: Report) -> None:
    rows = {
        "backend": f"{options.backend}: {report.backend} ({report.activation_format})",
        "carried by": report.transport,
        "experts": report.experts,
        "ranks": f"{report.ranks} on {report.device}",
        "quantization": f"{options.quantization}, {options.dtype}",
        "sizes": (
            f"{options.tokens} tokens a rank, hidden {options.hidden}"
            + (f" (padded to {report.hidden})" if report.hidden != options.hidden else "")
            + f", intermediate {options.intermediate}, {options.experts} experts, topk {options.topk}"
        ),
        "time": f"{report.milliseconds:.2f} ms a call (median of {options.repeat}, the slowest rank's)",
        "error": f"{report.error:.2e} of the float64 reference's norm, {report.allowed:g} allowed",
        "result": "right" if report.right else "WRONG",
    }
    for name, value in rows.items():
        console.print(f"{name:<13} {value}", markup=False, highlight=False, soft_wrap=True)


def _device(device: str, local_rank: int) -> torch.device:
    if device != "cuda":
        return torch.device(device)
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def _run_in_group(
    options: Options, settings: Settings, local_rank: int, local_size: int, init: dict[str, Any]
) -> int:
    """Be one rank: join the others, run, and let rank 0 print. Gives the exit code."""
    console = Console(soft_wrap=True)
    where = _device(settings.device, local_rank)
    one_gpu_each = where.type == "cuda" and local_size <= torch.cuda.device_count()
    if where.type == "cuda":
        torch.cuda.set_device(where)
    timeout = timedelta(seconds=settings.seconds)
    dist.init_process_group("nccl" if one_gpu_each and local_size > 1 else "gloo", timeout=timeout, **init)
    try:
        with EpGroup(device=where, timeout=timeout, transport=settings.transport) as group:
            if group.rank:
                report = run_rank(options, group, lambda *_: None)
            else:
                with _Display(console) as display:
                    report = run_rank(options, group, display)
                _print(console, options, report)
    except (ValueError, NotImplementedError, MissingTransportError, TransportError) as error:
        # A mistake in the options is every rank's; a missing rank is known to those that are not.
        if isinstance(error, TransportError) or dist.get_rank() == 0:
            console.print(
                f"Error (rank {dist.get_rank()}): {error}", markup=False, highlight=False, soft_wrap=True
            )
        return COULD_NOT_RUN
    finally:
        dist.destroy_process_group()
    return RIGHT if report.right else WRONG


def _be_rank(rank: int, ranks: int, store: Any, options: Options, settings: Settings) -> int:
    if settings.verbose:
        logging.basicConfig(level=logging.INFO, format=f"rank {rank}: %(message)s")
    init = {"store": store, "rank": rank, "world_size": ranks}
    return _run_in_group(options, settings, rank, ranks, init)


def _child(rank: int, ranks: int, port: int, options: Options, settings: Settings) -> None:
    """Be a rank that this program started."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks))
    store = _tcp_store("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=settings.seconds))
    code = _be_rank(rank, ranks, store, options, settings)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: a thread of gloo's that is still there then aborts the process now and again


def launch(options: Options, settings: Settings, ranks: int) -> int:
    """Start the ranks on this machine and wait for them; one alone is this process."""
    if ranks == 1:
        return _be_rank(0, 1, _hash_store(), options, settings)
    store = _tcp_store("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    children = [
        context.Process(target=_child, args=(rank, ranks, store.port, options, settings), daemon=True)
        for rank in range(ranks)
    ]
    for child in children:
        child.start()
    try:
        _wait_for(children, settings.seconds)
        stuck = [child.exitcode is None for child in children]
    finally:
        for child in children:
            child.kill()
    lost = [
        f"rank {rank} did not end" if stuck[rank] else f"rank {rank} ended with {child.exitcode}"
        for rank, child in enumerate(children)
        if stuck[rank] or child.exitcode not in {RIGHT, WRONG, COULD_NOT_RUN}
    ]
    if lost:
        sys.stderr.write(f"Error: {', '.join(lost)}.\n")
        return COULD_NOT_RUN
    return max(child.exitcode or 0 for child in children)


def _wait_for(children: Sequence[BaseProcess], seconds: float) -> None:
    """Wait until all have ended; once one has failed, only for as long as its absence takes to be noticed."""
    deadline: float | None = None
    while waiting := [child.sentinel for child in children if child.exitcode is None]:
        if deadline is None and any(child.exitcode not in {None, RIGHT, WRONG} for child in children):
            deadline = time.monotonic() + 2 * seconds
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not wait(waiting, left):
            return


def run_under_torchrun(options: Options, settings: Settings) -> int:
    """Be the rank that torchrun's environment variables describe; gives the exit code."""
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    return _run_in_group(options, settings, local_rank, local_size, {})
