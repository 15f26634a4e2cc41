"""The index of classes: which classes are subclasses of a base, and where they are defined."""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Callable, Iterable, Sequence

from grimp import ImportGraph

from contracts.source._answer import Answer, ClassDefinition, Problem
from contracts.source._cache import Cache
from contracts.source._errors import SourceError, UnknownNameError
from contracts.source._hierarchy import Hierarchy
from contracts.source._resolve import ClassValue, ModuleValue, Resolver, Value
from contracts.source._search import Search
from contracts.source._summary import Summary, summarize
from contracts.source._survey import Survey
from contracts.source._tree import SourceFile, Tree, is_importable, relative_path


class Index:
    """Answers questions about the classes of some root packages, parsing no more files than it must.

    Args:
        roots: the root packages.
        cache: where answers and summaries are kept between runs.

    Raises:
        RootNotFoundError: a root package is nowhere on the path.
    """

    def __init__(self, roots: Sequence[str], cache: Cache) -> None:
        self.tree = Tree(roots)
        self._cache = cache
        cache.open(self.tree)
        self._summaries: dict[tuple[str, bool], Summary] = {}
        self.errors: dict[str, SourceError] = {}
        files = self.tree.files
        packages = {module for module, file in files.items() if file.is_package}
        self.resolver = Resolver(self.summary, lambda module: self.summary(module, deep=True), files, packages)
        self.hierarchy = Hierarchy(self.resolver)
        self.survey = Survey(self.tree)

    # Questions

    def subclasses(self, bases: Sequence[str], graph: ImportGraph) -> Answer:
        """The strict subclasses, at any depth, of the classes that ``bases`` name.

        Args:
            bases: dotted names; a name through which a class is re-exported will do.
            graph: the import graph of the root packages.

        Raises:
            UnknownNameError: a base does not exist or lies outside the root packages; says what to do.
        """
        return self._remembered(["subclasses", *sorted(bases)], lambda: self._subclasses(bases, graph))

    def defined_in(self, modules: Iterable[str], pattern: re.Pattern[str], graph: ImportGraph) -> Answer:
        """The classes of some modules whose names match ``pattern`` wholly."""
        names = sorted(modules)
        key = ["defined_in", pattern.pattern, *names]
        return self._remembered(key, lambda: self._defined_in(names, pattern, graph))

    def left_out(self, graph: ImportGraph) -> list[SourceFile]:
        """The Python files under the root packages that the import graph does not hold."""
        hidden = [file for module, file in self.tree.files.items() if module not in graph.modules]
        return sorted([*hidden, *(file for file, _ in self.tree.shadowed)], key=lambda file: file.path)

    def _remembered(self, key: list[str], compute: Callable[[], Answer]) -> Answer:
        stored = self._cache.answer(key)
        if stored is not None:
            return Answer.from_json(stored)
        # A syntax tree is many small objects that all live: collecting garbage among them only costs.
        collecting = gc.isenabled()
        gc.disable()
        try:
            answer = compute()
        finally:
            if collecting:
                gc.enable()
        self._cache.store(key, answer.to_json())
        return answer

    # Reading

    def summary(self, module: str, *, deep: bool = False) -> Summary:
        """What a module says; empty, and noted in ``errors``, where it cannot be read."""
        key = (module, deep)
        if key not in self._summaries:
            file = self.tree.files[module]
            try:
                self._summaries[key] = self.summarize_file(file, deep=deep)
            except SourceError as error:
                self.errors[module] = error
                self._summaries[key] = Summary()
        return self._summaries[key]

    def summarize_file(self, file: SourceFile, *, deep: bool = False) -> Summary:
        """What a file says, from the cache where its content was read before.

        Raises:
            SourceError: it cannot be read, decoded or parsed.
        """
        stored = self._cache.summary(file, deep=deep)
        if stored is not None:
            return Summary.from_json(stored)
        summary = summarize(file, deep=deep)
        self._cache.keep_summary(file, summary.to_json(), deep=deep)
        return summary

    def resolve_bases(self, names: Sequence[str]) -> list[ClassValue]:
        """The classes that dotted names stand for.

        Raises:
            UnknownNameError: one does not exist or lies outside the root packages.
        """
        return [value for name in names for value in self._resolve_base(name)]

    def _resolve_base(self, name: str) -> list[ClassValue]:
        top = name.partition(".")[0]
        roots = ", ".join(self.tree.roots)
        if not any(name == root or name.startswith(f"{root}.") for root in self.tree.roots):
            if is_importable(top):
                raise UnknownNameError(
                    f"Base class '{name}' is outside the root packages ({roots}), which are all that is "
                    f"read. Add '{top}' to root_packages, or name a class of {roots}."
                )
            raise UnknownNameError(
                f"Base class '{name}' is outside the root packages ({roots}), and there is no package "
                f"'{top}' on the path. Name a class of {roots}."
            )
        module, attributes = self._split(name)
        values: set[Value] = {ModuleValue(module)}
        for attribute in attributes:
            values = {found for value in values for found in self.resolver.attribute(value, attribute)}
        if module in self.errors:
            raise self.errors[module]
        classes = sorted(value for value in values if isinstance(value, ClassValue))
        if not attributes or (not classes and values):
            raise UnknownNameError(f"Base class '{name}' is no class that reading can find.")
        if not classes:
            raise UnknownNameError(f"Base class '{name}' does not exist.{self._closest(module, attributes)}")
        return classes

    def _split(self, name: str) -> tuple[str, list[str]]:
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            if module in self.tree.files:
                return module, parts[length:]
        return parts[0], parts[1:]

    def _closest(self, module: str, attributes: list[str]) -> str:
        if len(attributes) > 1 and module in self.tree.files and self.tree.files[module].is_package:
            wanted = f"{module}.{attributes[0]}"
            close = difflib.get_close_matches(wanted, self.tree.files, n=1)
            return f" Closest module: '{close[0]}'." if close else f" There is no module '{wanted}'."
        summary = self.summary(module) if module in self.tree.files else Summary()
        names = [record.qualname for record in summary.classes.values()]
        close = difflib.get_close_matches(".".join(attributes), names, n=1)
        return f" Closest name: '{close[0]}'." if close else f" {module} defines: {', '.join(sorted(names)) or 'no class'}."

    def _subclasses(self, names: Sequence[str], graph: ImportGraph) -> Answer:
        return Search(self, self.resolve_bases(names), graph).run()

    def _defined_in(self, modules: Sequence[str], pattern: re.Pattern[str], graph: ImportGraph) -> Answer:
        found: list[ClassDefinition] = []
        problems: list[Problem] = []
        in_bytes = re.compile(pattern.pattern.encode())
        for module in modules:
            file = self.tree.files.get(module)
            if file is None:
                continue  # a namespace package
            if not self.survey.text(module).defines(in_bytes):
                if file.path in self.survey.errors:
                    problems.append(Problem.of(self.survey.errors[file.path]))
                continue
            summary = self.summary(module)
            for key, record in summary.classes.items():
                if pattern.fullmatch(record.qualname.rpartition(".")[2]):
                    found.append(self.define(ClassValue(module, key)))
            if module in self.errors:
                problems.append(Problem.of(self.errors[module]))
        return Answer(tuple(sorted(found)), (), tuple(sorted(problems)))

    def define(self, value: ClassValue, chain: Sequence[ClassValue] = ()) -> ClassDefinition:
        """A class as it is reported."""
        record = self.resolver.record(value)
        return ClassDefinition(
            relative_path(self.tree.files[value.module].path),
            record.line,
            record.column,
            value.module,
            record.qualname,
            tuple(f"{base.module}.{self.resolver.record(base).qualname}" for base in chain),
            self.hierarchy.is_abstract(value),
        )
