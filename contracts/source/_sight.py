"""Which modules can name what a module holds, told from the import graph and the import statements' text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property

from grimp import ImportGraph

from contracts.source._candidates import Import, Text
from contracts.source._survey import Survey
from contracts.source._tree import SourceFile


class _View:
    """The importers of one module: by the names that they import, and those that may name anything in it."""

    def __init__(self) -> None:
        self.bringing: dict[bytes, list[str]] = {}
        self.stars: list[str] = []
        self.holders: dict[str, Text] = {}


class Sight:
    """Who can name what.

    A module names what another holds by importing it, or as an attribute of that module or of a package above it,
    which it must then hold by some name.

    Args:
        graph: the import graph.
        files: the files, by module.
        survey: their texts.
    """

    def __init__(self, graph: ImportGraph, files: Mapping[str, SourceFile], survey: Survey) -> None:
        self._graph = graph
        self._in_graph = graph.modules
        self._files = files
        self._survey = survey
        self._importers: dict[str, list[str]] = {}
        self._views: dict[str, _View] = {}
        self._deriving: dict[str, set[str]] = {}
        self._downstream: dict[str, AbstractSet[str]] = {}

    def importers(self, module: str) -> list[str]:
        """The modules that import ``module`` or something of it."""
        if module not in self._importers:
            found = self._graph.find_modules_that_directly_import(module) if module in self._in_graph else set()
            self._importers[module] = sorted(found & self._files.keys())
        return self._importers[module]

    def downstream(self, module: str) -> AbstractSet[str]:
        """The modules that import ``module``, directly or not."""
        if module not in self._downstream:
            found = self._graph.find_downstream_modules(module) if module in self._in_graph else frozenset()
            self._downstream[module] = found
        return self._downstream[module]

    def naming(self, module: str, name: bytes) -> Iterator[str]:
        """The modules that may name what ``module``, or one in it, calls ``name``; some more than once."""
        view = self._view(module)
        yield from view.bringing.get(name, ())
        yield from view.stars
        for holder, text in view.holders.items():
            if text.has_word(name):
                yield holder

    def passing(self, module: str) -> Iterator[tuple[str, bytes]]:
        """The modules that may have ``module`` itself from one that imports it, and by what name."""
        last = module.rpartition(".")[2].encode()
        holders = self._view(module).holders
        for holder, text in holders.items():
            for name in {last} | text.import_aliases(last):
                for user in self.naming(holder, name):
                    if user not in holders:
                        yield user, name

    def computing(self, module: str) -> Iterator[str]:
        """The modules that take something of ``module`` by a name that they compute."""
        last = module.rpartition(".")[2].encode()
        for holder, text in self._view(module).holders.items():
            if text.taken_from and not text.taken_from.isdisjoint({last} | text.import_aliases(last)):
                yield holder

    def straying(self, name: bytes) -> Iterator[str]:
        """The modules that may come by ``name`` without an import that the graph shows.

        Those that may import by a computed name, and those with a ``__getattr__`` where they or what they import
        hold it.
        """
        if name in self._stray_words:
            for roaming in self._survey.roaming:
                if self._survey.names(roaming, name):
                    yield roaming
            for lazy, beside in self._beside.items():
                if any(self._survey.names(module, name) for module in beside):
                    yield lazy

    @cached_property
    def _beside(self) -> dict[str, list[str]]:
        """Each module with a ``__getattr__``: with it, what it imports."""
        return {
            lazy: [lazy, *sorted(self._graph.find_modules_directly_imported_by(lazy) & self._files.keys())]
            if lazy in self._in_graph
            else [lazy]
            for lazy in sorted(self._survey.lazy)
        }

    @cached_property
    def _stray_words(self) -> frozenset[bytes]:
        modules = self._survey.roaming.union(*self._beside.values())
        return frozenset().union(*(self._survey.text(module).words for module in modules))

    def deriving(self, module: str) -> set[str]:
        """The modules in which a class header may hold a name that comes from ``module``."""
        if module not in self._deriving:
            users = self.importers(module)
            self._deriving[module] = {user for user in users if self._names_base_from(module, user)}
        return self._deriving[module]

    def _names_base_from(self, module: str, user: str) -> bool:
        text = self._survey.text(user)
        statements = self._statements(user, module)
        brought = text.names_brought(statements)
        return any(text.names_in_header(name) for name in brought) or (
            bool(text.headers) and any(text.brings_all(statement) for statement in statements)
        )

    def _statements(self, importer: str, module: str) -> list[Import]:
        """The import statements of a module that import another, or from it; all of them where that is not known."""
        text = self._survey.text(importer)
        found: list[Import] = []
        for detail in self._graph.get_import_details(importer=importer, imported=module):
            on_line = text.imports_on(detail["line_number"], detail["line_contents"].encode())
            if not on_line:
                return text.import_statements
            found += on_line
        return found or text.import_statements

    def _holds(self, user: str, module: str, statement: Import) -> bool:
        """Whether a statement imports a module itself, rather than something in it, which may bear its name."""
        text = self._survey.text(user)
        written = text.written_modules(statement)
        if statement.begin == statement.keyword:
            return module in written
        above, _, last = module.rpartition(".")
        file = self._files[user]
        package = user if file.is_package else user.rpartition(".")[0]
        return absolute(written[0], package) == above and last.encode() in text.names_brought([statement])

    def _view(self, module: str) -> _View:
        view = self._views.get(module)
        if view is None:
            view = self._views[module] = _View()
            for importer in self.importers(module):
                text = self._survey.text(importer)
                statements = self._statements(importer, module)
                for name in text.names_brought(statements):
                    view.bringing.setdefault(name, []).append(importer)
                if any(text.brings_all(statement) for statement in statements):
                    view.stars.append(importer)
                if any(self._holds(importer, module, statement) for statement in statements):
                    view.holders[importer] = text
        return view


def absolute(written: str, package: str) -> str:
    """The module that ``from written import`` means in ``package``."""
    name = written.lstrip(".")
    level = len(written) - len(name)
    if not level:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])
