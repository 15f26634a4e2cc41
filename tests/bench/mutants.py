"""How many wrong versions of our own backends the conformance suite finds: ``python -m tests.bench.mutants --help``.

One semantic mutation at a time (see :mod:`tests.bench.mutations`) is made in memory to a module of ``prepare_finalize``
or to ``topk_weight_and_reduce``, in a process forked for it; nothing is written to the tree. Then the checks run, in
worlds of threads, until the first that fails. A first run without mutations notes which check, on which backend and in
which world, runs which lines: what does not run a mutated line cannot tell, and is not asked again.
"""

import argparse
import importlib
import importlib.machinery
import json
import os
import random
import selectors
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from checks import _instrument
from checks._package import DEFAULT_PACKAGE
from checks.backends import rows
from checks.engine import all_checks, judge
from checks.harness import World
from tests.bench.mutations import Mutation, mutated, mutations

ROOT = Path(__file__).parents[2]
FOLDER = f"{DEFAULT_PACKAGE}.prepare_finalize"
MODULES = (
    *(f"{FOLDER}.{path.stem}" for path in sorted((ROOT / FOLDER.replace(".", "/")).glob("*.py"))),
    f"{DEFAULT_PACKAGE}.topk_weight_and_reduce",
)
SIZES = (2, 1)
EXCHANGE_SECONDS = 10.0
CASE_SECONDS = 30.0
MUTANT_SECONDS = 240.0
"""What hangs is ended after these; being ended counts as being found, and is reported as such."""


@dataclass(frozen=True)
class Cell:
    """A check on a backend in a world."""

    backend: str
    check: str
    size: int

    def __str__(self) -> str:
        return f"{self.check} on {self.backend}, {self.size} ranks"


@dataclass
class Result:
    """What came of a mutation; ``killer`` is empty when it was not found."""

    mutation: Mutation
    killer: str = ""
    message: str = ""
    asked: int = 0
    """How many cells ran its lines."""
    seconds: float = 0.0


def path_of(module: str) -> Path:
    """A module's source."""
    name = module.removesuffix(".__init__")
    path = ROOT / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with a mutation in it."""

    def __init__(self, name: str, path: str, mutation: Mutation, *, typed: bool) -> None:
        super().__init__(name, path)
        self.mutation, self.typed = mutation, typed

    def get_code(self, fullname: str) -> Any:
        tree = mutated(Path(self.path).read_text(encoding="utf-8"), self.mutation)
        if self.typed:
            from typeguard._transformer import TypeguardTransformer

            tree = TypeguardTransformer().visit(tree)
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder:
    def __init__(self, mutation: Mutation, *, typed: bool) -> None:
        self.mutation, self.typed = mutation, typed

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        if name != self.mutation.module.removesuffix(".__init__"):
            return None
        path = path_of(name)
        loader = _Loader(name, str(path), self.mutation, typed=self.typed)
        folder = [str(path.parent)] if path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=folder)


def mutate(mutation: Mutation, *, typed: bool = False) -> None:
    """Have this process import the module with the mutation; ``typed`` instruments the package as well."""
    assert FOLDER not in sys.modules
    if typed:
        _instrument.install((FOLDER,))
    sys.meta_path.insert(0, _Finder(mutation, typed=typed))  # type: ignore[arg-type]  # what a finder needs


class Lines:
    """Notes which lines of the mutated modules run."""

    def __init__(self) -> None:
        self.files = {str(path_of(module)): module for module in MODULES}
        self.seen: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        threading.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        threading.settrace(None)  # type: ignore[arg-type]  # which ends it

    def _call(self, frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        return self._line(frame, event, argument)

    def _line(self, frame: Any, _event: str, _argument: Any) -> Any:
        self.seen.add((self.files[frame.f_code.co_filename], frame.f_lineno))
        return self._line


def ask(world: World, cell: Cell) -> str | None:
    """What a check says of a backend, when it is broken."""
    outcome = judge(world, rows()[cell.backend], all_checks()[cell.check])
    return outcome.message if outcome.status == "broken" else None


def baseline(backend: str, sizes: Sequence[int]) -> list[Any]:
    """For each cell of a backend: ``[check, size, seconds, lines]``."""
    found: list[Any] = []
    lines = Lines()
    for size in sizes:
        with lines, World(size, seconds=EXCHANGE_SECONDS, deadline=CASE_SECONDS) as world:
            for name, check in all_checks().items():
                if check.packages(rows()[backend]):
                    continue
                lines.seen.clear()
                start = time.process_time()
                message = ask(world, Cell(backend, name, size))
                assert message is None, f"without a mutation: {message}"
                found.append([name, size, time.process_time() - start, sorted(lines.seen)])
    return found


def hunt(mutation: Mutation, cells: Sequence[Cell], *, typed: bool = False) -> dict[str, str]:
    """Run the checks on a mutation until the first that fails."""
    mutate(mutation, typed=typed)
    worlds = {size: World(size, seconds=EXCHANGE_SECONDS, deadline=CASE_SECONDS) for size in {c.size for c in cells}}
    for cell in cells:
        message = ask(worlds[cell.size], cell)
        if message is not None:
            return {"killer": str(cell), "message": message}
    return {}


def hunt_typed(mutation: Mutation, cells: Sequence[Cell]) -> dict[str, str]:
    """The same for instrumented checks, which cannot share a process with the others."""
    return hunt(mutation, cells, typed=True)


@dataclass
class _Child:
    pid: int
    pipe: int
    end: float
    done: Callable[[Any], None]
    data: bytes = b""


@dataclass
class Forks:
    """Runs functions in forked processes, a few at a time; a result is given to ``done``, None when there was none."""

    jobs: int
    children: list[_Child] = field(default_factory=list)

    def start(self, done: Callable[[Any], None], function: Callable[..., Any], *arguments: Any) -> None:
        """Fork when there is room."""
        while len(self.children) >= self.jobs:
            self.step()
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.close(ours)
                result = json.dumps(function(*arguments)).encode()
                with os.fdopen(theirs, "wb") as pipe:
                    pipe.write(result)
            except BaseException as error:  # noqa: BLE001 -- a mutation may do anything to its process
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(0)
        os.close(theirs)
        self.children.append(_Child(pid, ours, time.monotonic() + MUTANT_SECONDS, done))

    def step(self) -> None:
        """Wait for something to happen."""
        with selectors.DefaultSelector() as selector:
            for child in self.children:
                selector.register(child.pipe, selectors.EVENT_READ, child)
            ready = [key.data for key, _ in selector.select(timeout=5.0)]
        for child in [*self.children]:
            more = os.read(child.pipe, 1 << 16) if child in ready else None
            child.data += more or b""
            late = time.monotonic() > child.end
            if more == b"" or late:
                if late:
                    os.kill(child.pid, signal.SIGKILL)
                self.children.remove(child)
                os.close(child.pipe)
                os.waitpid(child.pid, 0)
                child.done(json.loads(child.data) if child.data and not late else None)

    def wait(self) -> None:
        """Wait for all."""
        while self.children:
            self.step()


class Run:
    """A run over some mutations."""

    def __init__(self, jobs: int, sizes: Sequence[int], until: float) -> None:
        self.forks, self.sizes, self.until = Forks(jobs), sizes, until
        self.seconds: dict[Cell, float] = {}
        self.lines: dict[Cell, set[tuple[str, int]]] = {}
        self.kills: Counter[tuple[str, str]] = Counter()
        self.results: list[Result] = []

    def look(self) -> None:
        """Note what runs what, without any mutation."""
        for backend in rows():
            self.forks.start(lambda found, backend=backend: self._note(backend, found), baseline, backend, self.sizes)
        self.forks.wait()

    def _note(self, backend: str, found: list[Any] | None) -> None:
        if found is None:
            raise SystemExit(f"{backend} does not hold without a mutation: see above.")
        for name, size, seconds, lines in found:
            cell = Cell(backend, name, size)
            self.seconds[cell], self.lines[cell] = seconds, {(module, line) for module, line in lines}

    def cells(self, mutation: Mutation) -> list[Cell]:
        """What runs a mutated line, likely and cheap ones first."""

        def runs(seen: set[tuple[str, int]]) -> bool:
            if mutation.local:
                return any((mutation.module, line) in seen for line in mutation.lines)
            # The package's own code runs on import, for all that is in it.
            package = mutation.module.removesuffix("__init__")
            return any(module.startswith(package) for module, _ in seen)

        module = mutation.module
        found = [cell for cell, seen in self.lines.items() if runs(seen)]
        return sorted(found, key=lambda cell: (-self.kills[module, cell.check], self.seconds[cell]))

    def hunt(self, chosen: Sequence[Mutation]) -> None:
        """Run them all, or as many as there is time for."""
        for mutation in chosen:
            if time.monotonic() > self.until:
                break
            cells = self.cells(mutation)
            result = Result(mutation, asked=len(cells))
            self._start(result, hunt, cells)
        self.forks.wait()
        instrumented = [name for name, check in all_checks().items() if check.instrumented]
        for result in [one for one in self.results if not one.killer and one.asked]:
            backends = dict.fromkeys(cell.backend for cell in self.cells(result.mutation))
            cells = [Cell(backend, name, 2) for backend in backends for name in instrumented]
            self.results.remove(result)
            self._start(result, hunt_typed, cells)
        self.forks.wait()

    def _start(self, result: Result, function: Callable[..., Any], cells: list[Cell]) -> None:
        start = time.monotonic()

        def done(found: Any) -> None:
            result.seconds += time.monotonic() - start
            found = {"killer": "ended", "message": "hung, or ended its process"} if found is None else found
            result.killer, result.message = found.get("killer", ""), found.get("message", "")
            self.kills[result.mutation.module, result.killer.partition(" ")[0]] += 1
            self.results.append(result)
            mutation = result.mutation
            verdict = result.killer or "NOT FOUND"
            print(f"{mutation.label}\n    {verdict}", flush=True)

        self.forks.start(done, function, result.mutation, cells)


def sample(modules: Sequence[str], each: int, seed: int) -> tuple[list[Mutation], dict[str, int]]:
    """So many mutations of each module, taking turns, and how many there are."""
    chosen, totals = [], {}
    for module in modules:
        every = mutations(module, path_of(module).read_text(encoding="utf-8"))
        totals[module] = len(every)
        chosen += enumerate(random.Random(f"{seed} {module}").sample(every, min(each, len(every))))
    return [one for _, one in sorted(chosen, key=lambda turn: turn[0])], totals


def main() -> None:
    """Print each mutation and who found it, and write the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--module", action="append", help="the last part of a module's name (repeatable; default all)")
    parser.add_argument("--each", type=int, default=18, help="mutations of each module (default 18)")
    parser.add_argument("--index", type=int, action="append", help="of these only (with one --module)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--budget", type=float, default=3600.0, help="seconds after which no other is started")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at a time (default 2)")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    given = parser.parse_args()
    modules = [name for name in MODULES if not given.module or name.rpartition(".")[2] in given.module]
    chosen, totals = sample(modules, 1 << 30 if given.index else given.each, given.seed)
    chosen = [one for one in chosen if not given.index or one.index in given.index]
    torch.set_num_threads(1)
    all_checks()
    importlib.import_module("hypothesis")
    run = Run(given.jobs, SIZES, time.monotonic() + given.budget)
    run.look()
    run.hunt(chosen)
    write(run, totals, len(chosen), given.output)


def write(run: Run, totals: dict[str, int], chosen: int, output: Path | None) -> None:
    """Print a table of modules, one of the checks that found the most, and what was not found."""
    print("\n| module | mutations | run | found | not found |\n|---|---|---|---|---|")
    for module, total in totals.items():
        mine = [one for one in run.results if one.mutation.module == module]
        found = sum(bool(one.killer) for one in mine)
        print(f"| {module.rpartition('.')[2]} | {total} | {len(mine)} | {found} | {len(mine) - found} |")
    found = sum(bool(one.killer) for one in run.results)
    print(f"| all | {sum(totals.values())} | {len(run.results)} | {found} | {len(run.results) - found} |")
    if len(run.results) < chosen:
        print(f"\n{chosen - len(run.results)} of the {chosen} chosen were not run: the time was over.")
    print("\n| check | found |\n|---|---|")
    for check, count in Counter(one.killer.partition(" ")[0] for one in run.results if one.killer).most_common():
        print(f"| {check} | {count} |")
    for one in sorted(run.results, key=lambda one: (one.mutation.module, one.mutation.index)):
        if not one.killer:
            print(f"- {one.mutation.label}")
    if output is not None:
        rows_of = [
            {
                "module": one.mutation.module, "index": one.mutation.index, "line": one.mutation.lines.start,
                "operator": one.mutation.operator, "change": one.mutation.text, "killer": one.killer,
                "message": one.message.partition("\n")[0][:300], "asked": one.asked,
                "seconds": round(one.seconds, 1),
            }
            for one in run.results
        ]  # fmt: skip
        output.write_text(json.dumps(rows_of, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
