"""What ranks run in: threads with a ``torch.distributed`` each, or processes."""

import atexit
import ctypes
import faulthandler
import importlib
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store, TCPStore

from checks._rows import Place

__all__ = ["START_SECONDS", "Broken", "Message", "NotShown", "ProcessRanks", "Ranks", "Setting", "ThreadRanks"]

START_SECONDS = 180.0
"""How long ranks may take until they are ready."""
_LAST_WAIT = 10.0


class Broken(AssertionError):  # noqa: N818 -- what it is called in the report
    """A property does not hold; the message says what was found and what was expected."""


class NotShown(Exception):  # noqa: N818 -- it is no error
    """A property cannot be shown here; the message is the reason."""


class Abandoned(RuntimeError):  # noqa: N818 -- the error is another rank's
    """Another rank has failed, so nobody will answer this one."""


class _Reaped(BaseException):
    """Ends a thread that nobody waits for any more."""


class Message(NamedTuple):
    """What a rank says."""

    rank: int
    what: str
    """``ready``, ``done``, ``gather``, ``broken``, ``not shown``, ``raised`` or ``died``."""
    value: Any
    when: float = 0.0


Say = Callable[[str, Any], None]
Hear = Callable[[], Any]


def _answer(place: Place, say: Say, hear: Hear, job: tuple[Callable[..., Any], tuple[Any, ...]]) -> bool:
    """Run one job; False when this rank's process group may be out of step with the others'."""
    function, arguments = job

    def gather(value: Any) -> list[Any]:
        say("gather", value)
        what, values = hear()
        if what != "gathered":
            raise Abandoned("another rank failed")
        return list(values)

    try:
        say("done", function(place, gather, *arguments))
    except Broken as error:
        say("broken", str(error))
    except NotShown as reason:
        say("not shown", str(reason))
    except Abandoned:
        say("done", None)
    except Exception as error:  # noqa: BLE001 -- whatever the backend raises is the result
        say("raised", _described(error))
        return False
    return True


def _described(error: BaseException) -> str:
    """The error, where it was raised, and the trace for whoever wants it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    trace = "".join(traceback.format_exception(error))
    return f"raised {type(error).__name__}{where}: {error}\n{trace}"


@dataclass(frozen=True)
class Setting:
    """What a world's ranks are made with."""

    size: int
    device: str
    transport: str
    seconds: float
    """How long one exchange between ranks may take."""
    instrumented: tuple[str, ...]
    """Packages that are imported under typeguard's hook (processes only)."""
    imports: tuple[str, ...]
    """Modules that are imported before the first job, so that its deadline is not spent on them (processes only)."""

    def place(self, rank: int) -> Place:
        """Where a rank is."""
        return Place(rank, self.size, torch.device(self.device), self.transport, self.seconds)


class Ranks(ABC):
    """The ranks of a world, whatever they run in. Each says ``ready`` before it takes its first job."""

    @abstractmethod
    def __init__(self, setting: Setting) -> None: ...

    @abstractmethod
    def send(self, rank: int, message: Any) -> None:
        """Give a rank its next job, or the answer that it waits for."""

    @abstractmethod
    def receive(self, timeout: float) -> Message | None:
        """The next thing that any rank says; None when none does in time."""

    @abstractmethod
    def stack(self, rank: int) -> str:
        """Where a rank is."""

    @abstractmethod
    def stop(self) -> None:
        """End ranks that are idle."""

    @abstractmethod
    def kill(self) -> None:
        """Be done with ranks that are not."""


class _ThreadLocalWorld(threading.local):
    """What ``torch.distributed`` keeps for a process, kept for a thread."""

    def __init__(self) -> None:
        self.default_pg: Any = None
        self.pg_map: dict[Any, Any] = {}
        self.pg_names: dict[Any, Any] = {}
        self.pg_group_ranks: dict[Any, Any] = {}
        self.pg_backend_config: dict[Any, Any] = {}
        self.group_count = 0
        self.tags_to_pg: dict[Any, Any] = {}
        self.pg_to_tag: dict[Any, Any] = {}
        self.pg_coalesce_state: dict[Any, Any] = {}
        self.comms: list[Any] = []


class _ThreadedDistributed:
    """Switches ``torch.distributed`` to thread-local state while there are worlds of threads."""

    _lock = threading.Lock()
    _users = 0
    _before: Any = None

    @classmethod
    def enter(cls) -> None:
        with cls._lock:
            cls._users += 1
            if cls._users == 1:
                c10d = cls._c10d()
                cls._before, c10d._world = c10d._world, _ThreadLocalWorld()  # noqa: SLF001 -- as torch's own tests do
                cls._isolate(on=True)

    @staticmethod
    def _c10d() -> Any:
        return dist.distributed_c10d

    @staticmethod
    def _isolate(*, on: bool) -> None:
        native: Any = torch._C  # noqa: SLF001 -- torch's own tests of threaded ranks do the same
        native._distributed_c10d._set_thread_isolation_mode(on)  # noqa: SLF001

    @classmethod
    def leave(cls) -> None:
        with cls._lock:
            cls._users -= 1
            if cls._users == 0:
                cls._c10d()._world = cls._before  # noqa: SLF001
                cls._isolate(on=False)


class ThreadRanks(Ranks):
    """Ranks in threads of this process."""

    def __init__(self, setting: Setting) -> None:
        assert not setting.instrumented
        torch.set_num_threads(1)
        size, self._seconds = setting.size, setting.seconds
        _ThreadedDistributed.enter()
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._boxes: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(size)]
        store = HashStore()
        self._threads = []
        for rank in range(size):
            place = setting.place(rank)
            thread = threading.Thread(
                target=self._main, args=(place, store, self._boxes[rank]), name=f"rank {rank}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _main(self, place: Place, store: Store, box: "queue.SimpleQueue[Any]") -> None:
        def say(what: str, value: Any) -> None:
            self._inbox.put(Message(place.rank, what, value, time.monotonic()))

        dist.init_process_group(
            "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=place.seconds),
        )
        say("ready", None)
        try:
            while (job := box.get()) is not None:
                if isinstance(job[0], str):
                    continue  # an answer that came after this rank had stopped waiting for it
                if not _answer(place, say, box.get, job):
                    break
        except _Reaped:
            return
        finally:
            # Peers that wait for this rank are told at once.
            dist.destroy_process_group()

    def send(self, rank: int, message: Any) -> None:
        self._boxes[rank].put(message)

    def receive(self, timeout: float) -> Message | None:
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def stack(self, rank: int) -> str:
        thread = self._threads[rank]
        frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 -- the documented way to another thread
        trace = "".join(traceback.format_stack(frame)) if frame else "(ended)\n"
        return f"rank {rank}:\n{trace}"

    def stop(self) -> None:
        for box in self._boxes:
            box.put(None)
        for thread in self._threads:
            thread.join(timeout=5.0)
        _ThreadedDistributed.leave()

    def kill(self) -> None:
        for box in self._boxes:
            box.put(None)
        reaper = threading.Thread(target=self._reap, daemon=True)
        reaper.start()
        # Python must not end while gloo has threads of a rank's; one that never comes back is not waited for longer.
        atexit.register(reaper.join, _LAST_WAIT)

    def _reap(self) -> None:
        # A thread cannot be killed: it ends when what it waits for times out, or else at its next step in Python.
        end = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))
        for thread in self._threads:
            if thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Reaped))
        for thread in self._threads:
            thread.join()
        _ThreadedDistributed.leave()


def _process_main(setting: Setting, rank: int, port: int, stack_file: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    place = setting.place(rank)
    with Path(stack_file).open("w", encoding="utf-8") as stacks:
        faulthandler.register(signal.SIGUSR1, file=stacks)
        if setting.instrumented:
            from checks._instrument import install  # noqa: PLC0415 -- typeguard is imported only where it is used

            install(setting.instrumented)
        if place.device.type == "cuda":
            torch.cuda.set_device(place.device.index or 0)

        def say(what: str, value: Any) -> None:
            pipe.send(Message(place.rank, what, value, time.monotonic()))

        patience = timedelta(seconds=START_SECONDS)
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=patience)
        # Ranks need not start at the same moment; only then does the short timeout hold.
        dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.world_size, timeout=patience)
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=place.seconds))  # noqa: SLF001 -- no public way
        try:
            for name in setting.imports:
                importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is why there can be no world
            say("raised", _described(error))
        else:
            say("ready", None)
        while True:
            try:
                job = pipe.recv()
            except (ImportError, AttributeError) as error:
                # The job names what this process cannot import, such as a row whose factory is a lambda.
                say("raised", _described(error))
                break
            if job is None:
                break
            if isinstance(job[0], str):
                continue
            if not _answer(place, say, pipe.recv, job):
                break
        dist.destroy_process_group()


class ProcessRanks(Ranks):
    """Ranks in processes of their own."""

    def __init__(self, setting: Setting) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._folder = tempfile.TemporaryDirectory(prefix="moe-checks-")
        # A process that imports torch once and is forked for each rank; CUDA cannot be used after a fork.
        context: Any = multiprocessing.get_context("spawn" if setting.device == "cuda" else "forkserver")
        if setting.device != "cuda":
            context.set_forkserver_preload(["torch.distributed", "hypothesis", "checks._ranks"])
        self._processes, self._pipes = [], []
        for rank in range(setting.size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_process_main,
                args=(setting, rank, self._store.port, self._stack_file(rank), theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        self._dead: set[int] = set()

    def _stack_file(self, rank: int) -> str:
        return str(Path(self._folder.name) / f"rank{rank}.txt")

    def send(self, rank: int, message: Any) -> None:
        # A rank that has ended is reported by receive.
        try:
            self._pipes[rank].send(message)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self, timeout: float) -> Message | None:
        alive: dict[Any, int] = {self._pipes[rank]: rank for rank in range(len(self._pipes)) if rank not in self._dead}
        for pipe in wait_for_any(list(alive), timeout=timeout):
            rank = alive[pipe]
            try:
                message: Message = self._pipes[rank].recv()
            except (EOFError, ConnectionResetError):
                self._dead.add(rank)
                self._processes[rank].join(timeout=5.0)
                code = self._processes[rank].exitcode
                how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
                return Message(rank, "died", f"the process of rank {rank} ended with {how}", time.monotonic())
            return message
        return None

    def stack(self, rank: int) -> str:
        process = self._processes[rank]
        if process.pid is None or not process.is_alive():
            return f"rank {rank}: its process has ended\n"
        os.kill(process.pid, signal.SIGUSR1)
        end = time.monotonic() + 2.0
        path = Path(self._stack_file(rank))
        while time.monotonic() < end and not path.stat().st_size:
            time.sleep(0.02)
        time.sleep(0.05)
        return f"rank {rank}:\n{path.read_text(encoding='utf-8') or '(gave no stack)'}"

    def stop(self) -> None:
        for rank in range(len(self._pipes)):
            self.send(rank, None)
        for process in self._processes:
            process.join(timeout=10.0)
        self.kill()

    def kill(self) -> None:
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            if process.is_alive():
                process.kill()
            process.join()
            pipe.close()
        self._folder.cleanup()
