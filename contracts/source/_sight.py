"""Which modules can name what a module holds, told from the import graph and the import statements' text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grimp import ImportGraph

from contracts.source._candidates import Text
from contracts.source._survey import Survey
from contracts.source._tree import SourceFile


class _View:
    """The importers of one module."""

    def __init__(self) -> None:
        self.importers: list[tuple[str, Text]] = []
        self.bringing: dict[bytes, list[str]] = {}
        self.stars: list[str] = []
        self.holders: list[tuple[str, Text]] = []


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
        self._views: dict[str, _View] = {}

    def naming(self, module: str, name: bytes) -> Iterator[str]:
        """The modules that may name what ``module`` calls ``name``; some more than once."""
        while module:
            view = self._view(module)
            yield from view.bringing.get(name, ())
            yield from view.stars
            for holder, text in view.holders:
                if text.has_word(name):
                    yield holder
            module = module.rpartition(".")[0]

    def holders(self, module: str) -> list[str]:
        """The modules that import ``module`` itself."""
        return [holder for holder, _ in self._view(module).holders]

    def importers(self, module: str) -> list[tuple[str, Text]]:
        """The modules that import ``module`` or something of it, and their texts."""
        return self._view(module).importers

    def sources(self, user: str, name: bytes) -> set[str]:
        """The modules that ``user`` imports ``name`` from, or imports by a name that holds it."""
        file = self._files[user]
        package = user if file.is_package else user.rpartition(".")[0]
        return {absolute(written, package) for written in self._survey.text(user).imported_from(name)}

    def _view(self, module: str) -> _View:
        if module in self._views:
            return self._views[module]
        view = self._views[module] = _View()
        above, _, last = module.rpartition(".")
        name = last.encode()
        for importer in self._graph.find_modules_that_directly_import(module) if module in self._in_graph else ():
            if importer not in self._files:
                continue
            text = self._survey.text(importer)
            view.importers.append((importer, text))
            for brought in text.imported:
                view.bringing.setdefault(brought, []).append(importer)
            if text.has_star_import:
                view.stars.append(importer)
            # `from module import name` may bring another thing of the module's own name.
            if name in text.imported and (module in text.modules_imported or above in self.sources(importer, name)):
                view.holders.append((importer, text))
        return view


def absolute(written: str, package: str) -> str:
    """The module that ``from written import`` means in ``package``."""
    name = written.lstrip(".")
    level = len(written) - len(name)
    if not level:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])
