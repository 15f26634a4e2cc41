"""The search for subclasses: from each carrier of a name to the modules that import it.

A *carrier* is a module in which some name may stand for one of the classes found so far. A module can name
such a class only if it imports a carrier, or a package above one, or if it imports by a computed name; so
from each carrier only those modules are searched, for that one name, and only those in which a class header
or a renaming holds it are parsed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from grimp import ImportGraph

from contracts.source._answer import Answer, ClassDefinition, Problem, UndecidedClass
from contracts.source._candidates import Text
from contracts.source._errors import SourceError
from contracts.source._left_out import why_left_out
from contracts.source._resolve import ClassValue, Display, Frame, FunctionValue, Unknown, Value
from contracts.source._summary import Ref, Summary
from contracts.source._tree import relative_path

if TYPE_CHECKING:
    from contracts.source._index import Index

# Refs that stand for something only running could tell, or that hold it.
_DYNAMIC_REFS = frozenset({"k", "x", "p", "i", "e"})


class Search:
    """One question: the subclasses of some classes.

    Args:
        index: whose tree is searched.
        bases: the classes.
        graph: the import graph of the tree.
    """

    def __init__(self, index: Index, bases: Iterable[ClassValue], graph: ImportGraph) -> None:
        self._index = index
        self._files = index.tree.files
        self._survey = index.survey
        self._graph = graph
        self._in_graph = graph.modules
        self._targets = frozenset(bases)
        self._chains: dict[ClassValue, tuple[ClassValue, ...] | None] = {}
        self._found: dict[tuple[str, str], ClassDefinition] = {}
        self._unresolved: dict[ClassValue, set[Unknown]] = {}
        self._carried: set[tuple[str, bytes]] = set()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._problems: set[Problem] = set()
        self._dynamic_done: set[str] = set()
        self._importers: dict[str, list[tuple[str, Text, bool]]] = {}
        self._roamed: set[bytes] = set()

    def run(self) -> Answer:
        """Search to the fixed point."""
        for target in self._targets:
            self._carry(target.module, _own_name(target))
        self._drain()
        for module in self._survey.with_dynamic_bases:
            if module in self._in_graph:
                self._evaluate_dynamic(module)
        self._drain()
        self._look_at_left_out_files()
        for error in [*self._relevant_errors(), *self._survey.errors.values()]:
            self._problem(error)
        return Answer(
            tuple(sorted(self._found.values())),
            tuple(sorted(self._undecided())),
            tuple(sorted(self._problems)),
        )

    # Where to look

    def _drain(self) -> None:
        while self._queue:
            module, name = self._queue.popleft()
            text = self._survey.text(module)
            binds, callees = text.uses(name)
            passes = any(self._may_create(module, callee) for callee in callees)
            if binds or passes or text.names_in_header(name):
                self._evaluate(module, name, binds=binds, passes=passes)
            for alias in text.import_aliases(name):
                self._carry(module, alias)
            for importer, there, holds in self._can_see(module):
                if name in there.imported or there.has_star_import or (holds and there.has_word(name)):
                    self._carry(importer, name)
            if name not in self._roamed:
                self._roamed.add(name)
                for roaming in self._survey.roaming:
                    if self._survey.names(roaming, name):
                        self._carry(roaming, name)

    def _carry(self, module: str, name: bytes) -> None:
        if (module, name) not in self._carried:
            self._carried.add((module, name))
            self._queue.append((module, name))

    def _can_see(self, module: str) -> Iterator[tuple[str, Text, bool]]:
        """The modules that can name what ``module`` holds, and their texts.

        With each, whether it may hold ``module`` itself, or a package above it, by some name: then it can name
        without importing.
        """
        while module:
            if module not in self._importers:
                self._importers[module] = self._sees(module)
            yield from self._importers[module]
            module = module.rpartition(".")[0]

    def _sees(self, module: str) -> list[tuple[str, Text, bool]]:
        """The importers of one module; itself, too, if it may give what it does not name."""
        last = module.rpartition(".")[2].encode()
        seen = []
        if module in self._in_graph:
            for importer in self._graph.find_modules_that_directly_import(module):
                if importer in self._files:
                    text = self._survey.text(importer)
                    seen.append((importer, text, last in text.imported))
        if module in self._files and b"__getattr__" in self._survey.text(module).source:
            seen.append((module, self._survey.text(module), True))
        return seen

    def _relevant_errors(self) -> Iterable[SourceError]:
        """The files that could not be read, without those that no subclass can have to do with."""
        errors = self._index.errors
        if not errors:
            return []
        related = {module for module, _ in self._carried} | self._survey.roaming
        for module in [*related]:
            if module in self._in_graph:
                related |= self._graph.find_upstream_modules(module)
        for target in self._targets:
            if target.module in self._in_graph:
                related |= self._graph.find_downstream_modules(target.module)
        return [error for module, error in errors.items() if module in related]

    def _problem(self, error: SourceError) -> None:
        self._problems.add(Problem.of(error))

    # What is there

    def _evaluate(self, module: str, name: bytes, *, binds: bool, passes: bool) -> None:
        resolver = self._index.resolver
        summary = self._index.summary(module, deep=passes)
        token = name.decode("utf-8", "replace")
        for key, record in summary.classes.items():
            if _mentions(record.bases, token):
                self._judge(ClassValue(module, key))
        self._evaluate_dynamic(module)
        for exported, ref in summary.exports.items() if binds else ():
            if exported != token and _mentions(ref, token) and ref[0] not in {"d", "c"}:
                values = resolver.values(ref, module)
                if self._holds(values, 0):
                    self._carry(module, exported.encode())
        if passes:
            self._evaluate_calls(module, summary, token)

    def _evaluate_calls(self, module: str, summary: Summary, token: str) -> None:
        """Classes that come to be in a function that is handed one of ours."""
        resolver = self._index.resolver
        for call in summary.calls:
            _, function, arguments, keywords = call
            ours = [ref for ref in [*arguments, *keywords.values()] if _mentions(ref, token)]
            if not ours:
                continue
            handed = [value for ref in ours for value in resolver.values(ref, module)]
            if not self._holds(frozenset(handed), 0):
                continue
            for callee in resolver.values(function, module):
                if isinstance(callee, FunctionValue):
                    frame = resolver.bind(callee, arguments, keywords, module, ())
                    self._judge_locals(callee, frame)

    def _may_create(self, module: str, callee: bytes) -> bool:
        """Whether a function, as a module writes its name, may create a class; told from the texts alone."""
        owner, _, _ = callee.partition(b".")
        name = callee.rpartition(b".")[2]
        text = self._survey.text(module)
        if owner == name and b"def " + name in text.source:
            return text.creates_locally
        if not owner:
            return False  # a method of some object
        if callee == b"?":
            return text.creates_locally or bool(text.imports)
        package = module if self._files[module].is_package else module.rpartition(".")[0]
        for written in text.imported_from(owner):
            source = _absolute(written, package)
            for candidate in (source, f"{source}.{owner.decode('utf-8', 'replace')}"):
                if candidate in self._files:
                    there = self._survey.text(candidate)
                    if there.creates_locally or b"def " + name not in there.source:
                        return True
        return False

    def _judge_locals(self, function: FunctionValue, frame: Frame) -> None:
        summary = self._index.summary(function.module, deep=True)
        prefix = f"{summary.functions[function.key].qualname}.<locals>."
        for key, record in summary.classes.items():
            if record.qualname.startswith(prefix):
                self._judge(ClassValue(function.module, key, frame))

    def _evaluate_dynamic(self, module: str) -> None:
        if module in self._dynamic_done:
            return
        self._dynamic_done.add(module)
        for key, record in self._index.summary(module).classes.items():
            if _is_dynamic(record.bases):
                self._judge(ClassValue(module, key))

    def _judge(self, value: ClassValue) -> None:
        if value in self._targets:
            return
        chain = self._chain(value)
        if chain is not None:
            for item in (value, *chain):
                self._add(item)
        elif unknowns := self._index.hierarchy.unknowns(value):
            self._unresolved[value] = unknowns

    def _chain(self, value: ClassValue) -> tuple[ClassValue, ...] | None:
        return self._index.hierarchy.chain(value, self._targets, self._chains)

    def _add(self, value: ClassValue) -> None:
        place = (value.module, value.key)
        if value in self._targets or place in self._found:
            return
        self._found[place] = self._index.define(value, self._chain(value) or ())
        self._carry(value.module, _own_name(value))

    def _holds(self, values: Iterable[Value], depth: int) -> bool:
        """Whether one of our classes is among the values, or in a display among them."""
        held = False
        for value in values:
            if isinstance(value, ClassValue):
                if value in self._targets:
                    held = True
                elif self._chain(value) is not None:
                    self._add(value)
                    held = True
            elif isinstance(value, Display) and depth < 5:
                items = self._index.resolver.display_items(value)
                for item in items:  # each, even when one is found: looking adds it
                    held |= self._holds(item, depth + 1)
        return held

    # What remains open

    def _undecided(self) -> Iterable[UndecidedClass]:
        found = {(value.module, value.key) for value in self._unresolved if self._chain(value) is not None}
        carriers = {module for module, _ in self._carried}
        downstream: set[str] | None = None
        for value, unknowns in self._unresolved.items():
            if (value.module, value.key) in found or (value.module, value.key) in self._found:
                continue
            for unknown in sorted(unknowns, key=lambda u: u.reason):
                if unknown.anywhere and downstream is None:
                    downstream = {
                        module
                        for target in self._targets
                        for module in self._graph.find_downstream_modules(target.module)
                    }
                if self._matters(value, unknown, carriers, downstream or set()):
                    plain = self._index.define(value)
                    yield UndecidedClass(
                        plain.path, plain.line, plain.column, plain.module, plain.name, unknown.reason
                    )
                    break

    def _matters(
        self, value: ClassValue, unknown: Unknown, carriers: set[str], downstream: set[str]
    ) -> bool:
        """Whether one of our classes can reach what is unknown about a base."""
        if value.module in carriers or unknown.modules & carriers:
            return True
        if unknown.anywhere and value.module in downstream | self._survey.roaming:
            return True
        names = {function.partition(":")[2].partition(".")[0].encode() for function in unknown.functions}
        return any(self._survey.names(carrier, name) for name in names for carrier in carriers)

    def _look_at_left_out_files(self) -> None:
        names = {name for _, name in self._carried}
        for file in self._index.left_out(self._graph):
            text = self._survey.text_of(file)
            held = [name for name in names if text.has_word(name)]
            if not any(text.names_in_header(name) or any(text.uses(name)) for name in held):
                continue
            try:
                summary = self._index.summarize_file(file)
            except SourceError as error:
                self._problem(error)
                continue
            for key, record in summary.classes.items():
                if any(_mentions(record.bases, name.decode()) for name in held) or _is_dynamic(record.bases):
                    value = ClassValue(file.module, key)
                    if self._files.get(file.module) is not file or self._chain(value) is not None:
                        reason = f"defines {record.qualname}, but {why_left_out(file, self._in_graph)}"
                        self._problems.add(Problem(relative_path(file.path), record.line, reason))


def _own_name(value: ClassValue) -> bytes:
    return value.key.partition("@")[0].rpartition(".")[2].encode()


def _mentions(ref: object, name: str) -> bool:
    if isinstance(ref, list):
        if len(ref) == 2 and ref[0] == "c":
            return str(ref[1]).partition("@")[0].rpartition(".")[2] == name
        return any(_mentions(item, name) for item in ref)
    return ref == name


def _is_dynamic(ref: Ref | list[Ref]) -> bool:
    if isinstance(ref, list):
        return (bool(ref) and (ref[0] in _DYNAMIC_REFS if isinstance(ref[0], str) else False)) or any(
            _is_dynamic(item) for item in ref
        )
    return False


def _absolute(written: str, package: str) -> str:
    """The module that ``from written import`` means in ``package``."""
    name = written.lstrip(".")
    level = len(written) - len(name)
    if not level:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])
