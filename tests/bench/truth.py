"""The index of classes against the truth: what it reads beside what Python holds after importing everything.

``python -m tests.bench.truth PACKAGE BASE [BASE ...]`` takes any installed package and the dotted names of any of its
classes. In a process of its own it imports every module of the package and collects the subclasses of each base; the
index reads the same package without importing it. Then, for each base:

- precision: of the classes that the index found and that run time has an object for (same file, line and name), the
  share that really are subclasses;
- recall: of the subclasses at run time that a class statement made, the share that the index found. Classes made by
  code without a class statement are listed with their count, found or not.

Every miss and every excess is listed with its reason. A class that was found and never came to be must be explained:
it stands in a function that importing did not call, on a branch not taken here, or in a module that cannot be
imported here. One without such a reason counts against precision.

Exit code 0 where precision is 1.0 and recall at least 0.999 for every base; 1 otherwise; 2 where the comparison could
not be made.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grimp

from contracts.source import (
    Answer,
    Cache,
    ClassDefinition,
    Index,
    RootNotFoundError,
    SourceError,
    UndecidedClass,
    UnknownNameError,
)

__all__ = ["Comparison", "Place", "Runtime", "RuntimeProcess", "Truth", "compare", "main"]

_PROGRAM = Path(__file__).with_name("runtime_classes.py")
_LEAST_RECALL = 0.999

NOT_CALLED = "in a function that importing does not call"
NOT_TAKEN = "on a branch not taken here"
NOT_IMPORTED = "its module cannot be imported here"
UNEXPLAINED = "NO REASON: it should have come to be"
DYNAMIC = "made without a class statement"
MISSED = "NO REASON: the index should have found it"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a class is made: the real path, the line of its name, and its qualified name."""

    path: str
    line: int
    qualname: str

    def __str__(self) -> str:
        return f"{os.path.relpath(self.path)}:{self.line} {self.qualname}"


@dataclass(slots=True)
class Runtime:
    """What importing gave: classes as the program reports them; what kept modules and bases from being found."""

    classes: list[dict[str, Any]]
    errors: dict[str, str]
    bases: dict[str, str]


class RuntimeProcess:
    """A process that imports modules, started anew when a module ends it.

    Args:
        arguments: options for its interpreter.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self._command = [sys.executable, *arguments, str(_PROGRAM)]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> int:
        if self._process is None:
            return 0
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        code = self._process.wait()
        self._process = None
        return code

    def ask(self, modules: Sequence[str], folders: Sequence[str], bases: Sequence[str], **more: Any) -> Runtime:
        """Import ``modules`` and say which classes of the ``folders`` there are; ``more`` as the program takes it."""
        fatal: dict[str, str] = {}
        while True:
            rest = [module for module in modules if module not in fatal]
            request = {"modules": rest, "folders": list(folders), "bases": list(bases), **more}
            answer, importing = self._send(request)
            if answer is not None:
                return Runtime(answer["classes"], {**answer["errors"], **fatal}, answer["bases"])
            code = self._stop()
            if importing is None:
                raise RuntimeError(f"the importing process ended with code {code} before it imported anything")
            fatal[importing] = f"ended the process with code {code}"

    def _send(self, request: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        importing = None
        for line in self._process.stdout:
            message = json.loads(line)
            if "importing" not in message:
                return message, importing
            importing = message["importing"]
        return None, importing


class Statements:
    """The class statements of one file, by a plain walk of its syntax tree, and what each stands in."""

    def __init__(self, path: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(Path(path).read_bytes(), path)
        self.by_first_line: dict[int, tuple[int, str]] = {}
        self.by_name: dict[str, list[int]] = {}
        self.naming: set[int] = set()  # the lines of calls that compute the name of what they may make
        self._ranges: list[tuple[int, int, str]] = []
        self._visit(tree.body, "")

    def _visit(self, statements: Iterable[ast.AST], prefix: str) -> None:
        for node in statements:
            inner = prefix
            if isinstance(node, ast.ClassDef):
                qualname = f"{prefix}{node.name}"
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                self.by_first_line[first] = (node.lineno, qualname)
                self.by_name.setdefault(qualname, []).append(node.lineno)
                inner = f"{qualname}."
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                self._ranges.append((node.lineno, node.end_lineno or 0, NOT_CALLED))
                inner = f"{prefix}{getattr(node, 'name', '<lambda>')}.<locals>."
            elif isinstance(node, ast.Call) and node.args and not isinstance(node.args[0], ast.Constant):
                self.naming.add(node.lineno)
            elif isinstance(node, ast.If | ast.Try | ast.TryStar | ast.For | ast.While | ast.Match | ast.IfExp):
                self._ranges.append((node.lineno, node.end_lineno or 0, NOT_TAKEN))
            self._visit(ast.iter_child_nodes(node), inner)

    def reason(self, line: int) -> str:
        """Why what stands on a line may never have been executed."""
        around = {reason for first, last, reason in self._ranges if first <= line <= last}
        return NOT_CALLED if NOT_CALLED in around else NOT_TAKEN if around else UNEXPLAINED


_statements: dict[str, Statements] = {}


def statements(path: str) -> Statements:
    """The class statements of a file, read once."""
    if path not in _statements:
        _statements[path] = Statements(path)
    return _statements[path]


class Truth:
    """The classes at run time, by the place of the statement that made them.

    Args:
        runtime: what importing gave.
        files: the path of each module.

    ``placed`` holds, for each place, the positions of the bases of which a class made there is a subclass, and
    whether one is abstract; ``dynamic`` the module, qualified name and positions of the classes that no statement made.
    """

    def __init__(self, runtime: Runtime, files: Mapping[str, str]) -> None:
        self.errors = runtime.errors
        self.placed: dict[Place, tuple[set[int], bool]] = {}
        self.dynamic: list[tuple[str, str, set[int]]] = []
        unplaced = []
        for record in runtime.classes:
            known = statements(record["file"]).by_first_line.get(record["line"]) if record["file"] else None
            if known is None:
                unplaced.append(record)
            else:
                self._put(Place(record["file"], *known), record)
        for record in unplaced:
            # A class of a compiled module, or the copy that a decorator made of one.
            path = os.path.realpath(files[record["module"]]) if record["module"] in files else None
            lines = statements(path).by_name.get(record["qualname"], []) if path else []
            if path and lines:
                places = [Place(path, line, record["qualname"]) for line in lines]
                self._put(next((place for place in places if place in self.placed), places[-1]), record)
            else:
                self.dynamic.append((record["module"], record["qualname"], set(record["of"])))

    def _put(self, place: Place, record: dict[str, Any]) -> None:
        of, is_abstract = self.placed.get(place, (set[int](), False))
        self.placed[place] = (of | set(record["of"]), is_abstract or record["is_abstract"])


@dataclass(slots=True)
class Comparison:
    """One base, compared: ``misses`` and ``excess`` say for each class what and why.

    ``agreed`` counts the classes found that are subclasses, ``false`` are those found that are not; ``at_run_time``
    counts the subclasses that a class statement made, ``dynamic`` and ``dynamic_found`` the others.
    """

    base: str
    agreed: int = 0
    at_run_time: int = 0
    dynamic: int = 0
    dynamic_found: int = 0
    false: list[str] = field(default_factory=list)
    misses: list[tuple[str, str]] = field(default_factory=list)
    excess: list[tuple[str, str]] = field(default_factory=list)

    @property
    def precision(self) -> float:
        """Of what was found and came to be, the share that is a subclass (1.0 of nothing)."""
        wrong = len(self.false) + sum(reason == UNEXPLAINED for _, reason in self.excess)
        return self.agreed / (self.agreed + wrong) if self.agreed + wrong else 1.0

    @property
    def recall(self) -> float:
        """Of the subclasses that a class statement made, the share that was found (1.0 of nothing)."""
        missed = sum(reason != DYNAMIC for _, reason in self.misses)
        return (self.at_run_time - missed) / self.at_run_time if self.at_run_time else 1.0

    @property
    def holds(self) -> bool:
        """Whether the index is right enough."""
        return self.precision == 1.0 and self.recall >= _LEAST_RECALL


def compare(base: str, position: int, answer: Answer, truth: Truth) -> Comparison:
    """What the index answered for a base, beside the truth about the base at this position."""
    result = Comparison(base)
    found = {_place_of(definition): definition for definition in answer.found}
    undecided = {_place_of(item): item.reason for item in answer.undecided}
    for place, (of, _) in sorted(truth.placed.items()):
        if position not in of:
            if place in found:
                result.false.append(str(place))
            continue
        result.at_run_time += 1
        if place in found:
            result.agreed += 1
        elif place in undecided:
            result.misses.append((str(place), f"listed as undecided: {undecided[place]}"))
        else:
            result.misses.append((str(place), MISSED))
    made = Counter((module, name) for module, name, of in truth.dynamic if position in of)
    result.dynamic = made.total()
    matched = set()
    for place, definition in sorted(found.items()):
        if place in truth.placed:
            continue
        names = {(module, name) for module, name in made if _may_be(definition, place, module, name)}
        if names:
            matched |= names
        else:
            result.excess.append((str(place), _why_never(definition, place, truth.errors)))
    for (module, name), count in sorted(made.items()):
        if (module, name) in matched:
            result.dynamic_found += count
        else:
            result.misses.append((f"{module}.{name}" + (f" ({count} times)" if count > 1 else ""), DYNAMIC))
    return result


def _place_of(item: ClassDefinition | UndecidedClass) -> Place:
    return Place(os.path.realpath(item.path), item.line, item.name)


def _may_be(definition: ClassDefinition, place: Place, module: str, name: str) -> bool:
    """Whether a class made by a call is this one: types.new_class and others put their own module into it."""
    there = statements(place.path)
    if place.line in there.naming and place.line not in there.by_name.get(place.qualname, []):
        return module == definition.module
    if definition.name.rpartition(".")[2] != name.rpartition(".")[2]:
        return False
    return module in {definition.module, "types", "dataclasses", "abc"}


def _why_never(definition: ClassDefinition, place: Place, errors: Mapping[str, str]) -> str:
    if definition.module in errors:
        return f"{NOT_IMPORTED}: {errors[definition.module].splitlines()[-1]}"
    return statements(place.path).reason(place.line)


def _run(package: str, bases: Sequence[str]) -> Iterator[str | Comparison]:
    started = time.perf_counter()
    graph = grimp.build_graph(package, cache_dir=None)
    graph_time = time.perf_counter() - started
    index = Index([package], Cache(None, []))
    answers = {}
    for base in bases:
        started = time.perf_counter()
        answers[base] = index.subclasses([base], graph)
        yield f"{base}: index {time.perf_counter() - started:.2f} s (import graph {graph_time:.2f} s)"
    files = {module: file.path for module, file in index.tree.files.items()}
    # A __main__ is a program: importing it runs it.
    modules = sorted(module for module in graph.modules if module in files and not module.endswith(".__main__"))
    folders = sorted({os.path.dirname(file.path) for module, file in index.tree.files.items() if module == package})
    started = time.perf_counter()
    with RuntimeProcess() as process:
        runtime = process.ask(modules, folders, bases)
    seconds = time.perf_counter() - started
    yield f"imported {len(modules) - len(runtime.errors)} of {len(modules)} modules in {seconds:.1f} s"
    for module in files:
        if module not in modules:
            runtime.errors[module] = "it is a program, and was not imported" if module in graph.modules else (
                "the import graph leaves it out"
            )
    for base, reason in runtime.bases.items():
        raise LookupError(f"{base} cannot be had at run time: {reason}")
    truth = Truth(runtime, files)
    for position, base in enumerate(bases):
        yield compare(base, position, answers[base], truth)
        for item in answers[base].undecided:
            yield f"  undecided: {item.path}:{item.line} {item.name}: {item.reason}"
        for problem in answers[base].problems:
            yield f"  problem: {problem.path}:{problem.line} {problem.reason}"


def _report(result: Comparison) -> Iterator[str]:
    yield (
        f"{result.base}: {result.at_run_time} subclasses made by class statements, {result.agreed} of them found; "
        f"{result.dynamic} made otherwise, {result.dynamic_found} of them found; "
        f"{len(result.false)} found that are none, {len(result.excess)} found that did not come to be"
    )
    verdict = "holds" if result.holds else "DOES NOT HOLD"
    yield f"  precision {result.precision:.5f}, recall {result.recall:.5f}: {verdict}"
    for name in result.false:
        yield f"  FALSE {name}"
    for title, entries in (("missed", result.misses), ("never came to be", result.excess)):
        by_reason: dict[str, list[str]] = {}
        for name, reason in entries:
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            yield f"  {title}, {reason}: {len(names)}"
            yield from (f"    {name}" for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.truth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", help="an installed top-level package; EVERY MODULE OF IT IS IMPORTED")
    parser.add_argument("bases", nargs="+", metavar="base", help="dotted name of a class of the package")
    options = parser.parse_args(arguments)
    good = True
    try:
        for item in _run(options.package, options.bases):
            if isinstance(item, str):
                print(item)
            else:
                good &= item.holds
                print(*_report(item), sep="\n")
    except (LookupError, SourceError, UnknownNameError, RootNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
