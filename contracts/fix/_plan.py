"""From what breaks the contracts to the changes that mend it."""

from __future__ import annotations

import ast
import itertools
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from importlinter.domain.imports import ModuleExpression

from contracts._base import is_under, listed, matching_modules
from contracts._writing import CouldNotError
from contracts.complete_exports import CompleteExportsContract, OptionalModule
from contracts.fix import _naming
from contracts.fix._changes import Changes
from contracts.fix._configured import Configured
from contracts.fix._cycles import Imports
from contracts.fix._document import Document
from contracts.fix._exports import Exporter
from contracts.fix._extract import Part, Split
from contracts.fix._imports import ImportEditor, line_length
from contracts.fix._moves import Moves
from contracts.fix._units import Unit, defining, units
from contracts.fix._uses import Open, Rewriter
from contracts.placement import PlacementContract
from contracts.source import ClassDefinition, relative_path
from contracts.source._candidates import Text
from contracts.source._mentions import Module
from contracts.source._outside import OutsideFiles
from contracts.source._references import Wanted, find_references
from contracts.source._tree import SourceFile


@dataclass
class Plan:
    """What is to be done, and what is to be said about it."""

    changes: Changes
    moves: Moves
    said: list[str] = field(default_factory=list)
    open: list[Open] = field(default_factory=list)

    def summary(self) -> list[str]:
        """What was done, and each place that could not be decided."""
        lines = self.said or ["Nothing to mend."]
        found = sorted(set(self.open))
        if found:
            lines = [*lines, f"Left as they are, for you to look at ({len(found)}):", *map(str, found)]
        return lines


@dataclass
class _Move:
    """A class and the package where it belongs."""

    definition: ClassDefinition
    package: str


class Planner:
    """Plans for one configuration.

    Args:
        configured: the contracts.
        top: the folder outside which nothing is changed.
        to: the module or package that the user names as the new place.
    """

    def __init__(self, configured: Configured, top: str, to: str | None) -> None:
        self._configured = configured
        self._index = configured.index
        self._files = configured.index.tree.files
        self._top = top
        self._to = to
        self._limit = line_length(top)
        self._outside = OutsideFiles("repository", [top], configured.index.tree) if _has_sources(top) else None
        self._documents: dict[str, Document] = {}
        self._editors: dict[str, ImportEditor] = {}
        self._importers: dict[str, bool] = {}
        self._new_modules: dict[str, str] = {}
        self.plan = Plan(Changes(top), Moves())

    def run(self) -> Plan:
        """Plan all changes.

        Raises:
            CouldNotError: one of them would go wrong.
            SourceError: a file that matters cannot be read.
        """
        moves = [move for contract in self._configured.contracts for move in self._misplaced(contract)]
        if moves:
            self._move(moves)
        return self.plan

    # What belongs where

    def _misplaced(self, contract: object) -> Iterable[_Move]:
        if not isinstance(contract, PlacementContract):
            return
        findings = self._configured.findings(contract)
        if not findings:
            return
        bases = cast("list[str]", contract.base_classes)
        names = {finding.name for finding in findings}
        expressions = cast("list[ModuleExpression]", contract.allowed_modules)
        allowed = matching_modules("allowed_modules", expressions, self._configured.graph)
        for definition in self._index.subclasses(bases, self._configured.graph).found:
            if definition.dotted_name in names:
                yield _Move(definition, self._to or self._destination(definition, allowed))

    def _destination(self, definition: ClassDefinition, allowed: set[str]) -> str:
        """The allowed package nearest to a class."""
        tops = sorted(m for m in allowed if not is_under(m.rpartition(".")[0], allowed))
        shared = {module: _common_parts(module, definition.module) for module in tops}
        nearest = [m for m in tops if shared[m] == max(shared.values())]
        where = f"{definition.path}:{definition.line} {definition.name}"
        if len(nearest) > 1:
            raise CouldNotError(f"{where} may live in {listed(nearest)}. Say where with --to.")
        return nearest[0]

    # Moving

    def _move(self, moves: Sequence[_Move]) -> None:
        by_module: dict[str, list[_Move]] = defaultdict(list)
        for move in moves:
            if all(known.definition != move.definition for known in by_module[move.definition.module]):
                by_module[move.definition.module].append(move)
        names = {
            f"{module}.{name}"
            for module in by_module
            for unit in units(self._document(self._files[module], module))[1]
            for name in unit.binds
        }
        references, problems = find_references(self._index, names, self._outside)
        if problems:
            raise CouldNotError("\n".join(f"{p.path}:{p.line} {p.reason}" for p in problems))
        used = {reference.path for reference in references if reference.form != "string"}
        splits: list[Split] = []
        for module, group in sorted(by_module.items()):
            whole = self._whole(module, [move.definition for move in group], used)
            target = self._target(group, whole=whole)
            if whole:
                new = target
                self._claim(new, group[0].definition)
                self.plan.moves.modules[module] = new
            else:
                parts = self._parts(group)
                prefix = f"{module}."
                named = {path.removeprefix(prefix) for path in used if path.startswith(prefix)}
                split = Split(self._files[module], module, parts, named)
                splits.append(split)
                self.plan.moves.names |= split.names
        for split in splits:
            self.plan.moves.copied |= split.copied()
        self._write(splits)
        self._export(moves)
        self._finish()

    def _whole(self, module: str, classes: Sequence[ClassDefinition], used: set[str]) -> bool:
        """Whether a module holds nothing but these classes and their helpers."""
        file = self._files[module]
        if file.is_package:
            return False
        _, found = units(self._document(file, module))
        names = {definition.name for definition in classes}
        own = {unit for name in names for unit in defining(found, name)}
        helpers = _reached(own, lambda unit: [u for name in unit.needs for u in defining(found, name)])
        users = _reached(own, lambda unit: [u for u in found if u.needs & unit.binds])
        definitions = [unit for unit in found if unit.is_definition]
        related = _reached(own, lambda unit: [u for u in definitions if u.needs & unit.binds or unit.needs & u.binds])
        ancestors = {name for definition in classes for name in definition.chain}
        for unit in found:
            public = {f"{module}.{name}" for name in unit.binds if not name.startswith("_")}
            if unit.is_import or unit.is_guard or not public or unit in own:
                continue
            if isinstance(unit.statement, ast.ClassDef):
                belongs = unit in helpers and not public & ancestors & used
            elif isinstance(unit.statement, ast.Assign | ast.AnnAssign):
                belongs = unit in related or not public & used
            else:
                belongs = unit in helpers or unit in users or not public & used
            if not belongs:
                return False
        return True

    def _target(self, group: Sequence[_Move], *, whole: bool) -> str:
        """The path of the module in which a group of classes goes."""
        move = group[0]
        package = move.package
        if package not in self._files or not self._files[package].is_package:
            if self._to is not None:
                return package
            where = f"{move.definition.path}:{move.definition.line} {move.definition.name}"
            raise CouldNotError(
                f"{where} belongs in {package}, which is no package with an __init__.py. Say where with --to."
            )
        if whole:
            return f"{package}.{_naming.renamed(move.definition.module, package)}"
        return f"{package}.{_naming.for_class(move.definition.name, move.definition.chain)}"

    def _parts(self, group: Sequence[_Move]) -> list[Part]:
        parts: dict[str, Part] = {}
        for move in group:
            module = self._target([move], whole=False)
            if module not in parts:
                parts[module] = Part(module, self._claim(module, move.definition), [])
            parts[module].classes.append(move.definition.name)
        return [*parts.values()]

    def _claim(self, module: str, definition: ClassDefinition) -> str:
        """The path of a new module's file.

        Raises:
            CouldNotError: there is such a module, or another class goes there.
        """
        where = f"{definition.path}:{definition.line} {definition.name}"
        if any(known == module or known.startswith(f"{module}.") for known in self._files):
            raise CouldNotError(f"{where} would go to {module}, which exists already. Name another module with --to.")
        if module in self.plan.moves.modules.values():
            raise CouldNotError(
                f"{where} would go to {module}, and so would another. Name a module for one of them with --to."
            )
        package = module.rpartition(".")[0]
        if package not in self._files:
            raise CouldNotError(f"{where} would go to {module}, but there is no package {package}. Make it first.")
        path = os.path.join(os.path.dirname(self._files[package].path), f"{module.rpartition('.')[2]}.py")
        self._new_modules[path] = module
        return path

    # Files

    def _document(self, file: SourceFile, module: str | None) -> Document:
        if file.path not in self._documents:
            package = None
            if module is not None:
                package = module if file.is_package else module.rpartition(".")[0]
            self._documents[file.path] = Document(file, module, package)
        return self._documents[file.path]

    def _editor(self, document: Document, package: str | None) -> ImportEditor:
        path = document.file.path
        if path not in self._editors:
            self._editors[path] = ImportEditor(document, package, self._limit)
        return self._editors[path]

    def _star_has(self, module: str, name: str) -> bool:
        return module in self._files and self._index.resolver.star_has(module, name)

    def _candidates(self) -> Iterable[tuple[SourceFile, str | None]]:
        """The files that may name something that moved."""
        wanted = [Wanted(path) for path in self.plan.moves.paths]
        for module, file in self._files.items():
            package = module if file.is_package else module.rpartition(".")[0]
            text = self._index.survey.text_of(file)
            if module in self.plan.moves.modules or any(w.may_be_in(text, package, is_python=True) for w in wanted):
                yield file, module
        for file in self._outside.files if self._outside is not None else ():
            if file.path.endswith((".py", ".pyi")):
                text = Text(file.searchable)
                if any(w.may_be_in(text, "", is_python=True) for w in wanted):
                    yield file, None

    def _write(self, splits: Sequence[Split]) -> None:
        """Rewrite every file, and make the new modules."""
        changes, moves = self.plan.changes, self.plan.moves
        split_modules = {split.module for split in splits}
        for split in splits:
            for part in split.parts:
                text, open_ = split.new_text(part, moves, self._limit, self._star_has)
                document, more = split.rest(moves, self._limit, self._star_has)
                changes.written[part.path] = document.encode(text.replace("\n", document.newline))
                self.plan.open += [item for item in open_ if item in more]
                self.plan.said.append(f"{', '.join(part.classes)}: {split.module} -> {part.module}")
            document, open_ = split.rest(moves, self._limit, self._star_has)
            self.plan.open += open_
            self._documents[document.file.path] = document
        for file, module in [*self._candidates()]:
            if module in split_modules:
                continue
            document = self._document(file, module)
            place = Module(module, document.package)
            if module in moves.modules:
                new = moves.modules[module]
                place = Module(new, new.rpartition(".")[0])
                changes.renamed[file.path] = next(path for path, name in self._new_modules.items() if name == new)
                self.plan.said.append(f"{module} -> {new}")
            rewriter = Rewriter(self._editor(document, place.package), moves, place, self._star_has)
            rewriter.run()
            self.plan.open += rewriter.open
            for old, always in rewriter.importers.items():
                self._importers[old] = always or self._importers.get(old, False)

    # Exports

    def _export(self, moves: Sequence[_Move]) -> None:
        """Let the packages export what moved into them."""
        for move in moves:
            name = move.definition.name
            module = self.plan.moves.new(move.definition.dotted_name).rpartition(".")[0]
            package = module.rpartition(".")[0]
            init = self._files[package]
            if name.startswith("_"):
                continue
            exporter = Exporter(self._editor(self._document(init, package), package), package, self.plan.moves)
            demanded = self._demanded(package, module)
            if not exporter.exports_something and not demanded:
                self.plan.said.append(f"{exporter.document.path} exports nothing, so it does not export {name} either.")
            elif not self._is_optional(move.definition.dotted_name):
                exporter.add(module, name)
            elif not demanded and (others := self._unexported(package, exporter, move)):
                self.plan.said.append(
                    f"{exporter.document.path} does not export {name}, whose module is imported only under "
                    f"conditions, since it does not export {listed(others, 'and')} either."
                )
            else:
                exporter.add_lazily(module, name, listed=demanded)

    def _demanded(self, package: str, module: str) -> bool:
        """Whether a contract demands that a package export what a module of it defines."""
        for contract in self._configured.every:
            if isinstance(contract, CompleteExportsContract):
                expressions = cast("list[ModuleExpression]", contract.packages)
                optional = {o.module for o in cast("list[OptionalModule]", contract.optional_modules)}
                if package in matching_modules("packages", expressions, self._configured.graph):
                    return module not in optional
        return False

    def _is_optional(self, name: str) -> bool:
        """Whether what moved is imported under conditions only, as what needs a vendor's library is."""
        always = self._importers.get(self.plan.moves.old(name) or name)
        return always is False

    def _unexported(self, package: str, exporter: Exporter, move: _Move) -> list[str]:
        """The classes of the same kind that a package holds and does not export."""
        base = move.definition.chain[-1]
        found = self._index.subclasses([base], self._configured.graph).found
        return [
            d.name
            for d in found
            if d.module.rpartition(".")[0] == package
            and not d.is_abstract
            and not d.name.startswith("_")
            and exporter.binds(d.name) is None
        ]

    # The end

    def _finish(self) -> None:
        """Gather the edited files, and make sure that what comes out holds together."""
        changes = self.plan.changes
        for editor in self._editors.values():
            editor.finish()
        for document in self._documents.values():
            if document.edits or document.file.path in changes.renamed:
                path = document.file.path
                self._inside(path)
                changes.before[path] = document.file.content
                content = document.edited()
                if content != document.file.content:
                    changes.written[changes.renamed.get(path, path)] = content
        trees = {path: self._parsed(path, content) for path, content in sorted(changes.written.items())}
        self._refuse_cycles(trees)

    def _parsed(self, path: str, content: bytes) -> ast.Module:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the code's literals
                return ast.parse(content, path)
        except SyntaxError as error:
            shown = self.plan.changes.show(path)
            raise CouldNotError(f"{shown}:{error.lineno} would not parse: {error.msg}. Move this by hand.") from error

    def _refuse_cycles(self, trees: Mapping[str, ast.Module]) -> None:
        """Refuse imports that would run in a circle where they did not.

        Raises:
            CouldNotError: there would be such a cycle; names it.
        """
        moves, changes = self.plan.moves, self.plan.changes
        packages = {module for module, file in self._files.items() if file.is_package}
        modules = {file.path: module for module, file in self._files.items()} | self._new_modules
        before = {d.module: d.tree for d in self._documents.values() if d.module and d.file.path in changes.before}
        after = {modules[path]: tree for path, tree in trees.items() if path in modules}
        for old, new in moves.modules.items():
            after.setdefault(new, before[old])  # not a byte in it changed
        gone = {module for module in moves.modules if self._files[module].path not in changes.written}

        def lines(module: str) -> list[str]:
            return self._files[module].text.split("\n") if module in self._files else []

        imports = Imports(self._configured.graph, lines, before, after, packages, gone)
        cycle = imports.new_cycle(lambda module: moves.modules.get(module, module))
        if cycle:
            raise CouldNotError(
                f"The move would make an import cycle: {' -> '.join(cycle)}. "
                "Break it first: move what both ends need to a module of its own."
            )

    def _inside(self, path: str) -> None:
        if os.path.commonpath([self._top, os.path.realpath(path)]) != self._top:
            raise CouldNotError(f"{relative_path(path)}:1 lies outside {self._top}, so it is not changed.")


def _common_parts(first: str, second: str) -> int:
    """How many parts two dotted names have in common at their start."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])


def _reached(start: Iterable[Unit], following: Callable[[Unit], Iterable[Unit]]) -> set[Unit]:
    """What can be reached from some statements, these included."""
    found: set[Unit] = set()
    pending = list(start)
    while pending:
        unit = pending.pop()
        if unit not in found:
            found.add(unit)
            pending += following(unit)
    return found


def _has_sources(top: str) -> bool:
    return any(not name.startswith(".") for name in os.listdir(top))
