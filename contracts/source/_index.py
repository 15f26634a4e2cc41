"""The index of classes: which classes are subclasses of a base, and where they are defined."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from grimp import ImportGraph

from contracts.source._answer import Answer, ClassDefinition, Exports, Problem
from contracts.source._cache import Cache
from contracts.source._errors import SourceError
from contracts.source._snapshot import PROCESS_BEGAN_NS
from contracts.source._tree import SourceFile, Tree, relative_path

# What parses and resolves is imported where it is used: a warm run, in which every answer is remembered,
# never gets there, and would spend more time on importing it than on all the rest.
if TYPE_CHECKING:
    import ast
    import re

    from contracts.source._excerpt import Definition
    from contracts.source._hierarchy import Hierarchy
    from contracts.source._outside import OutsideFiles
    from contracts.source._resolve import ClassValue, Resolver
    from contracts.source._sight import Sight
    from contracts.source._summary import Summary
    from contracts.source._survey import Survey


class Index:
    """Answers questions about the classes of some root packages, parsing no more files than it must.

    Args:
        roots: the root packages.
        cache: where answers and summaries are kept between runs.
        is_lasting: to be used for as long as the process runs, so that no garbage collection, such as the one
            at its end, need walk what it holds. Another index takes that back.

    Raises:
        RootNotFoundError: a root package is nowhere on the path.
    """

    def __init__(self, roots: Sequence[str], cache: Cache, *, is_lasting: bool = False) -> None:
        self._is_lasting = is_lasting
        self.tree = Tree(roots, PROCESS_BEGAN_NS if is_lasting else None)
        self._cache = cache
        cache.open(self.tree)
        if is_lasting:
            gc.freeze()  # with all that was imported
        else:
            gc.unfreeze()
        self._summaries: dict[tuple[str, bool], Summary] = {}
        self._trees: dict[str, ast.Module] = {}
        self._definitions: dict[tuple[str, int], Definition | None] = {}
        self._lines: dict[str, list[str]] = {}
        self._sight: Sight | None = None
        self.errors: dict[str, SourceError] = {}

    @cached_property
    def resolver(self) -> Resolver:
        """Follows names across the modules."""
        from contracts.source._resolve import Resolver  # noqa: PLC0415  see above

        files = self.tree.files
        packages = {module for module, file in files.items() if file.is_package}
        return Resolver(
            self.summary,
            lambda module: self.summary(module, deep=True),
            files,
            packages,
            lambda module, name: self.survey.names(module, name.encode()),
        )

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """The classes, seen as a hierarchy."""
        from contracts.source._hierarchy import Hierarchy  # noqa: PLC0415  see above

        return Hierarchy(self.resolver)

    @cached_property
    def survey(self) -> Survey:
        """What the bytes of every file tell."""
        from contracts.source._survey import Survey  # noqa: PLC0415  see above

        return Survey(self.tree)

    def sight(self, graph: ImportGraph) -> Sight:
        """Who can name what; the graphs of one run's contracts are copies of one."""
        if self._sight is None:
            from contracts.source._sight import Sight  # noqa: PLC0415  see above

            self._sight = Sight(graph, self.tree.files, self.survey)
        return self._sight

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

    def exports(self, package: str, classes: Sequence[ClassDefinition]) -> Exports:
        """What a package exports, and of ``classes``, which.

        Raises:
            SourceError: the package cannot be read, or reading cannot tell its ``__all__``.
        """
        key = ["exports", package, *(definition.dotted_name for definition in classes)]
        return Exports(*self.remembered(key, lambda: tuple(self._exports(package, classes))))

    def left_out(self, graph: ImportGraph) -> list[SourceFile]:
        """The Python files under the root packages that the import graph does not hold."""
        hidden = [file for module, file in self.tree.files.items() if module not in graph.modules]
        return sorted([*hidden, *self.tree.shadowed], key=lambda file: file.path)

    def _remembered(self, key: list[str], compute: Callable[[], Answer]) -> Answer:
        return Answer.from_plain(self.remembered(key, lambda: compute().to_plain()))

    def remembered(
        self, key: list[str], compute: Callable[[], Any], outside: OutsideFiles | None = None
    ) -> Any:
        """What ``compute`` gives, from the cache while no file changed.

        Args:
            key: what is asked.
            compute: finds the answer, in plain data and not None.
            outside: the files beside the tree that the answer depends on, too.
        """
        beside = outside.snapshot if outside is not None else None
        stored = self._cache.answer(key, beside)
        if stored is not None:
            return stored
        # A syntax tree is many small objects that all live: collecting garbage among them only costs.
        collecting = gc.isenabled()
        gc.disable()
        try:
            answer = compute()
        finally:
            if self._is_lasting:
                gc.freeze()
            if collecting:
                gc.enable()
        self._cache.store(key, answer, beside)
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
                from contracts.source._summary import Summary  # noqa: PLC0415  see above

                self._summaries[key] = Summary()
        return self._summaries[key]

    def syntax_tree(self, module: str) -> ast.Module:
        """A module's whole syntax tree, parsed once for all contracts of a run.

        Raises:
            SourceError: it cannot be read, decoded or parsed.
        """
        if module not in self._trees:
            from contracts.source._summary import parse  # noqa: PLC0415  see above

            self._trees[module] = parse(self.tree.files[module])
        return self._trees[module]

    def lines(self, module: str) -> list[str]:
        """The lines of a module's text, without their ends.

        Raises:
            SourceError: it cannot be read or decoded.
        """
        if module not in self._lines:
            self._lines[module] = self.tree.files[module].text.split("\n")
        return self._lines[module]

    def definition(self, module: str, line: int) -> Definition | None:
        """The function or class that begins at a line, parsed alone; None where that cannot be.

        Raises:
            SourceError: the module cannot be read or decoded.
        """
        key = (module, line)
        if key not in self._definitions:
            from contracts.source._excerpt import definition  # noqa: PLC0415  see above

            self._definitions[key] = definition(self.lines(module), line)
        return self._definitions[key]

    def has_tree(self, module: str) -> bool:
        """Whether ``syntax_tree`` has parsed a module already."""
        return module in self._trees

    def summarize_file(self, file: SourceFile, *, deep: bool = False) -> Summary:
        """What a file says, from the cache where its content was read before.

        Raises:
            SourceError: it cannot be read, decoded or parsed.
        """
        from contracts.source._interpreter import summarize  # noqa: PLC0415  see above
        from contracts.source._summary import Summary  # noqa: PLC0415  see above

        stored = self._cache.summary(file, deep=deep)
        if stored is not None:
            return Summary.from_plain(stored)
        summary = summarize(file, deep=deep)
        self._cache.keep_summary(file, summary.to_plain(), deep=deep)
        return summary

    def _subclasses(self, names: Sequence[str], graph: ImportGraph) -> Answer:
        from contracts.source._bases import resolve_bases  # noqa: PLC0415  see above
        from contracts.source._search import Search  # noqa: PLC0415  see above

        return Search(self, resolve_bases(self, names), graph).run()

    def _exports(self, package: str, classes: Sequence[ClassDefinition]) -> Exports:
        from contracts.source._exports import read_exports  # noqa: PLC0415  see above

        return read_exports(self, package, classes)

    def _defined_in(self, modules: Sequence[str], pattern: re.Pattern[str], graph: ImportGraph) -> Answer:
        from contracts.source._resolve import ClassValue  # noqa: PLC0415  see above

        found: list[ClassDefinition] = []
        problems: list[Problem] = []
        for module in modules:
            file = self.tree.files.get(module)
            if file is None:
                continue  # a namespace package
            if not self.survey.text(module).defines(pattern):
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
