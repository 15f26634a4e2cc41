"""The files that may be changed: found, opened, edited, and put together again."""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping

from contracts._writing import CouldNotError
from contracts.fix._changes import Changes
from contracts.fix._configured import Configured
from contracts.fix._cycles import Imports
from contracts.fix._document import Document
from contracts.fix._git import listed_files
from contracts.fix._imports import ImportEditor, line_length
from contracts.fix._moves import Moves
from contracts.fix._open import Open
from contracts.source import SourceError, relative_path
from contracts.source._candidates import Text
from contracts.source._outside import SUFFIXES
from contracts.source._references import Wanted
from contracts.source._tree import SourceFile

# An import of a name that is known from its start only.
_COMPUTED = re.compile(rb"(?:import_module|__import__)\(\s*f?[\"']([\w.]*)(?:\{|[\"']\s*[+%])")


class CycleError(CouldNotError):
    """The changes would make modules import each other in a circle: ``cycle``, the first module again at its end."""

    def __init__(self, cycle: list[str]) -> None:
        super().__init__(
            f"The move would make an import cycle: {' -> '.join(cycle)}. "
            "Break it first: move what both ends need to a module of its own."
        )
        self.cycle = cycle


class Outside:
    """The files of the repository beside the root packages that may name something in these."""

    def __init__(self, top: str, linted: Iterable[str], *, with_git: bool) -> None:
        taken = frozenset(linted)
        self.every = sorted(listed_files(top, with_git=with_git))
        self.files = [
            SourceFile(path, "", is_package=False)
            for path in self.every
            if path.endswith(SUFFIXES) and path not in taken
        ]


class Workspace:
    """The files of one plan.

    Args:
        configured: the contracts, with the index.
        top: the folder outside which nothing is changed.
        with_git: whether it is a git work tree.
    """

    def __init__(self, configured: Configured, top: str, *, with_git: bool) -> None:
        self.index = configured.index
        self.files = configured.index.tree.files
        self.limit = line_length(top)
        self.changes = Changes(top)
        self.moves = Moves()
        self._graph = configured.graph
        self.outside = Outside(top, configured.index.tree.paths, with_git=with_git)
        self._documents: dict[str, Document] = {}
        self._editors: dict[str, ImportEditor] = {}
        self._new_modules: dict[str, str] = {}
        self._folders = {os.path.dirname(file.path): module for module, file in self.files.items() if file.is_package}

    def package_of(self, file: SourceFile, module: str | None) -> str | None:
        """The package that the relative imports of a file start from."""
        if module is not None:
            return module if file.is_package else module.rpartition(".")[0]
        return self._folders.get(os.path.dirname(file.path))

    def document(self, file: SourceFile, module: str | None) -> Document:
        """A file as it is edited."""
        if file.path not in self._documents:
            self._documents[file.path] = Document(file, module, self.package_of(file, module))
        return self._documents[file.path]

    def take(self, document: Document) -> None:
        """Count a document, that was edited elsewhere, as the one of its file."""
        self._documents[document.file.path] = document

    def editor(self, document: Document, package: str | None) -> ImportEditor:
        """What changes the imports of a document, whose place-to-be is in ``package``."""
        path = document.file.path
        if path not in self._editors:
            self._editors[path] = ImportEditor(document, package, self.limit)
        return self._editors[path]

    def star_has(self, module: str, name: str) -> bool:
        """Whether ``from module import *`` brings a name."""
        return module in self.files and self.index.resolver.star_has(module, name)

    def claim(self, module: str, where: str) -> str:
        """The path of a new module's file.

        Args:
            module: its dotted name.
            where: the class for which it is made, as messages name it.

        Raises:
            CouldNotError: there is such a module, or another class goes there.
        """
        package, _, name = module.rpartition(".")
        if package not in self.files or not self.files[package].is_package:
            raise CouldNotError(f"{where} would go to {module}, but there is no package {package}. Make it first.")
        path = os.path.join(os.path.dirname(self.files[package].path), f"{name}.py")
        if any(known == module or known.startswith(f"{module}.") for known in self.files) or os.path.lexists(path):
            raise CouldNotError(f"{where} would go to {module}, which exists already. Name another module with --to.")
        if path in self._new_modules:
            raise CouldNotError(
                f"{where} would go to {module}, and so would another. Move one of them first, with --to."
            )
        self._new_modules[path] = module
        return path

    def path_of(self, module: str) -> str:
        """The path of a new module that was claimed."""
        return next(path for path, name in self._new_modules.items() if name == module)

    def candidates(self) -> Iterator[tuple[SourceFile, str | None]]:
        """The files that may name something that moved, each with its module."""
        wanted = [Wanted(path) for path in self.moves.paths]
        for module, file in self.files.items():
            text = self.index.survey.text_of(file)
            package = self.package_of(file, module) or ""
            if any(w.may_be_in(text, package, is_python=True) for w in wanted):
                if file.path in self.index.survey.errors:
                    raise self.index.survey.errors[file.path]
                yield file, module
        for file in self.outside.files:
            is_python = file.path.endswith((".py", ".pyi"))
            text = Text(file.searchable if is_python else file.content)
            if any(w.may_be_in(text, self.package_of(file, None) or "", is_python=is_python) for w in wanted):
                yield file, None

    # The end

    def finish(self) -> None:
        """Gather what was edited, and make sure that it holds together.

        Raises:
            CouldNotError: it would not; nothing was changed.
        """
        changes = self.changes
        for editor in self._editors.values():
            editor.finish()
        for document in self._documents.values():
            path = document.file.path
            if document.edits or path in changes.renamed:
                self._refuse_outside(path)
                changes.before[path] = document.file.content
                content = document.edited()
                if content != document.file.content:
                    changes.written[changes.renamed.get(path, path)] = content
        trees = {
            path: self._parsed(path, content)
            for path, content in sorted(changes.written.items())
            if path.endswith((".py", ".pyi"))
        }
        self._refuse_cycles(trees)

    def _refuse_outside(self, path: str) -> None:
        top = self.changes.top
        if os.path.commonpath([top, os.path.realpath(path)]) != top:
            raise CouldNotError(
                f"{relative_path(path)}:1 would change, but lies outside {top}. Run this where it lies."
            )

    def _parsed(self, path: str, content: bytes) -> ast.Module:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the code's literals
                return ast.parse(content, path)
        except SyntaxError as error:
            shown = self.changes.show(path)
            raise CouldNotError(f"{shown}:{error.lineno} would not parse: {error.msg}. Move this by hand.") from error

    def _refuse_cycles(self, trees: Mapping[str, ast.Module]) -> None:
        """Refuse imports that would run in a circle where they did not.

        Raises:
            CycleError: there would be such a cycle.
        """
        moves, changes = self.moves, self.changes
        renamed = {old: new for old, new in moves.modules.items() if self._path(old) in changes.renamed}
        packages = {module for module, file in self.files.items() if file.is_package}
        modules = {file.path: module for module, file in self.files.items()} | self._new_modules
        before = {d.module: d.tree for d in self._documents.values() if d.module and d.file.path in changes.before}
        after = {modules[path]: tree for path, tree in trees.items() if path in modules}
        for old, new in renamed.items():
            after.setdefault(new, before[old])  # not a byte in it changed
        gone = {old for old in renamed if self._path(old) not in changes.written}

        def lines(module: str) -> list[str]:
            return self.files[module].text.split("\n") if module in self.files else []

        imports = Imports(self._graph, lines, before, after, packages, gone)
        cycle = imports.new_cycle(lambda module: renamed.get(module, module))
        if cycle:
            raise CycleError(cycle)

    def _path(self, module: str) -> str:
        return self.files[module].path if module in self.files else ""

    # What is left

    def relocated(self, item: Open) -> Open:
        """A place in a file as it was, as the place in the file as it will be."""
        document = next((d for d in self._documents.values() if d.path == item.path), None)
        if document is None:
            return item
        start = document.line_start(item.line)
        before = [edit for edit in document.edits if edit.start < start]
        more = sum(edit.text.count("\n") - document.text.count("\n", edit.start, edit.end) for edit in before)
        path = document.file.path
        return Open(self.changes.show(self.changes.renamed.get(path, path)), item.line + more, item.reason)

    def leftovers(self, known_already: Iterable[Open]) -> Iterator[Open]:
        """The places in any text file that still name an old path."""
        patterns = [_spelled(old) for old in sorted({*self.moves.modules, *self.moves.names})]
        known = {(item.path, item.line) for item in known_already}
        sources = {new: old for old, new in self.changes.renamed.items()}
        contents = {file.path: file for file in [*self.files.values(), *self.outside.files]}
        for path in sorted({*self.outside.every, *self.changes.written} - self.changes.renamed.keys()):
            content = self.changes.written.get(path)
            if content is None:
                content = _content(contents.get(sources.get(path, path)), path)
            shown = self.changes.show(path)
            for match in _COMPUTED.finditer(content):
                start = match[1].decode(errors="replace")
                meant = sorted(old for old in self.moves.modules if start and old.startswith(start))
                if meant:
                    line = content.count(b"\n", 0, match.start()) + 1
                    known.add((shown, line))
                    yield Open(
                        shown,
                        line,
                        f"imports a computed name, which may be {meant[0]}: it is now {self.moves.new(meant[0])}",
                    )
            for last, pattern, old, new in ((p[0], p[1], p[2], self.moves.new(p[2])) for p in patterns):
                if last not in content:
                    continue
                for match in pattern.finditer(content):
                    line = content.count(b"\n", 0, match.start()) + 1
                    if (shown, line) not in known:
                        known.add((shown, line))
                        yield Open(shown, line, f"says {match[0].decode(errors='replace')}: {old} is now {new}")


def _spelled(old: str) -> tuple[bytes, re.Pattern[bytes], str]:
    """How texts spell a path: ``parent.name`` and ``parent/name``, with the end of what is above before it."""
    parent, _, last = old.rpartition(".")
    above = re.escape(parent.rpartition(".")[2].encode())
    name = re.escape(last.encode())
    return last.encode(), re.compile(rb"\b" + above + rb"[./:]+" + name + rb"\b(?:\.py\b)?"), old


def _content(file: SourceFile | None, path: str) -> bytes:
    try:
        content = (file or SourceFile(path, "", is_package=False)).content
    except SourceError:
        return b""  # a link that leads nowhere, or a file that nobody may read: nothing to change, either
    return b"" if b"\0" in content[:8192] else content
