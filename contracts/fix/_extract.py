"""Parts a module: some of its classes leave for modules of their own, with what they alone need."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from contracts._writing import CouldNotError
from contracts.fix._compose import delete_units, for_type_checkers, joined, with_imports
from contracts.fix._document import Document, apply
from contracts.fix._imports import Binding, ImportEditor
from contracts.fix._moves import Moves
from contracts.fix._open import Open
from contracts.fix._units import Unit, defining, units
from contracts.fix._uses import Rewriter
from contracts.source._mentions import Module
from contracts.source._syntax import is_type_checking
from contracts.source._tree import SourceFile


@dataclass
class Part:
    """A module that comes to be: its name, its file, and the statements that go there.

    ``copies`` are those that stay, too: a logger, say, is each module's own.
    """

    module: str
    path: str
    classes: list[str]
    units: list[Unit] = field(default_factory=list)
    copies: list[Unit] = field(default_factory=list)

    @property
    def all(self) -> list[Unit]:
        """All statements of the new module, imports aside, in their order."""
        return sorted([*self.units, *self.copies], key=lambda unit: unit.first)

    @property
    def package(self) -> str:
        """The package in which it lies."""
        return self.module.rpartition(".")[0]


class Split:
    """How a module's statements are distributed over it and the new modules.

    Args:
        file: the module.
        module: its dotted name.
        parts: the new modules, with the classes that go there.
        used_elsewhere: the names of this module that other files name.

    Raises:
        CouldNotError: a class cannot be taken out of where it is.
        SourceError: the module cannot be read.
    """

    def __init__(self, file: SourceFile, module: str, parts: Sequence[Part], used_elsewhere: Collection[str]) -> None:
        self.file = file
        self.module = module
        self.package = module if file.is_package else module.rpartition(".")[0]
        self.parts = list(parts)
        self._used_elsewhere = used_elsewhere
        self._document = document = self._open()
        self._header, self._units = units(document)
        for part in self.parts:
            part.units = [self._class(name) for name in part.classes]
            names = set(part.classes)
            part.units += [unit for unit in self._units if _root_of_target(unit.statement) in names]
        for part in self.parts:
            self._take_along(part)
            self._copy(part)
        self._moved = {unit: part for part in self.parts for unit in part.units}
        self._stays = [unit for unit in self._units if unit not in self._moved]
        self.names = {
            f"{module}.{name}": f"{part.module}.{name}"
            for unit, part in self._moved.items()
            if unit.is_definition
            for name in unit.binds
        }

    def _open(self) -> Document:
        return Document(self.file, self.module, self.package)

    # What goes where

    def _class(self, name: str) -> Unit:
        found = defining(self._units, name)
        place = f"{self._document.path}:{found[0].statement.lineno if found else 1}"
        if len(found) != 1:
            raise CouldNotError(
                f"{place} {name} is bound {len(found)} times in {self.module}. Give each its own name first."
            )
        if not isinstance(found[0].statement, ast.ClassDef):
            raise CouldNotError(
                f"{place} {name} is defined inside another statement. Move it to the top level of {self.module} first."
            )
        return found[0]

    def _take_along(self, part: Part) -> None:
        """Let the helpers go along that nothing else needs."""
        taken = {unit for other in self.parts for unit in other.units}
        candidates: set[Unit] = set()
        pending = list(part.units)
        while pending:
            for name in sorted(pending.pop().needs):
                for unit in defining(self._units, name):
                    if unit not in taken and unit not in candidates and self._may_go(unit):
                        candidates.add(unit)
                        pending.append(unit)
        while True:
            going = {*part.units, *candidates}
            kept = {
                unit
                for unit in candidates
                if any(
                    other.needs & unit.binds or other.binds & unit.binds for other in self._units if other not in going
                )
            }
            if not kept:
                break
            candidates -= kept
        part.units = [unit for unit in self._units if unit in part.units or unit in candidates]

    def _copy(self, part: Part) -> None:
        """Make again what is made of the module's name, and needed on both sides."""
        pending = list(part.units)
        while pending:
            for name in pending.pop().needs:
                for unit in defining(self._units, name):
                    is_own = isinstance(unit.statement, ast.Assign | ast.AnnAssign) and "__name__" in unit.needs
                    if is_own and unit not in part.all:
                        part.copies.append(unit)
                        pending.append(unit)

    def _may_go(self, unit: Unit) -> bool:
        if not unit.is_definition:
            return False
        public = [name for name in unit.binds if not name.startswith("_")]
        return not any(name in self._used_elsewhere for name in public)

    # The names that the parts share

    def _needs(self, chosen: Sequence[Unit]) -> set[str]:
        """All that some statements need, with what guards their imports needs."""
        names = {name for unit in chosen for name in unit.needs}
        for unit in self._units:
            if unit.is_guard and unit not in chosen and unit.binds & names:
                names |= unit.needs
        return names

    def _stay_needs(self, but: Collection[Unit] = ()) -> set[str]:
        return {name for unit in self._stays if unit not in but for name in unit.needs}

    def copied(self) -> dict[str, str | None]:
        """The imported names that moved along, as ``Moves`` has them."""
        found: dict[str, str | None] = {}
        for part in self.parts:
            for name in sorted(self._needs(part.all)):
                if any(unit.is_import or unit.is_guard for unit in defining(self._units, name)):
                    path = f"{self.module}.{name}"
                    gone = name not in self._stay_needs() and path not in found and not self._kept_import(name)
                    found[path] = f"{part.module}.{name}" if gone else None
        return found

    def _kept_import(self, name: str) -> bool:
        """Whether an import stays, though nothing in the module needs it."""
        return self.file.is_package or name in self._used_elsewhere or not self._is_droppable(name)

    def _is_droppable(self, name: str) -> bool:
        lines = [self._document.lines[u.last - 1] for u in defining(self._units, name)]
        return not any("F401" in line for line in lines)

    def line(self, number: int) -> str:
        """A line of the old module."""
        return self._document.lines[number - 1]

    def encode(self, text: str) -> bytes:
        """The content of a new module: in the old one's encoding, with its line ends."""
        return self._document.encode(text.replace("\n", self._document.newline))

    def still_public(self, name: str) -> bool:
        """Whether the module still binds what left it, since it is a package's or ``__all__`` lists it."""
        return name in self._stay_needs() or self.file.is_package

    # The new module

    def new_text(
        self, part: Part, moves: Moves, limit: int, star_has: Callable[[str, str], bool]
    ) -> tuple[str, list[Open]]:
        """The text of a new module, and what in it could not be decided."""
        document, twins = self._fresh()
        needs = self._needs(part.all)
        chosen = [
            unit
            for unit in self._units
            if unit.is_future or ((unit.is_import or unit.is_guard) and self._wanted(unit, needs, part))
        ]
        editor = ImportEditor(document, part.package, limit, fresh=True)
        rewriter = Rewriter(editor, moves, Module(part.module, part.package), star_has)
        dropped: dict[ast.ImportFrom, set[ast.alias]] = {}
        for unit in chosen:
            if unit.is_future or not (unit.is_import or unit.is_for_type_checkers):
                continue
            for statement in twins[unit.first].imports:
                gone = {a for a in statement.names if a.name != "*" and (a.asname or a.name) not in needs}
                if gone and isinstance(statement, ast.ImportFrom):
                    dropped[statement] = gone
        rewriter.run(dropped)
        editor.finish()

        def text_of(unit: Unit) -> str:
            start, end = document.line_start(unit.first), document.line_start(unit.last + 1)
            text = apply(document.text, document.edits, document.path, start, end)
            return text.replace(document.newline, "\n").rstrip("\n") + "\n"

        header = "".join(f"{line}\n" for line in document.lines[: self._header] if not line.startswith("#!"))
        if header and self._blank_after_header():
            header += "\n"
        pairs = zip([None, *chosen], chosen, strict=False)
        head = header + "".join(self._gap(before, unit) + text_of(unit) for before, unit in pairs)
        text = joined(head.rstrip("\n") + "\n" if head else "", part.all, text_of)
        text = self._with_own_imports(part, text, limit, needs - {n for u in chosen for n in u.binds})
        return text, rewriter.open

    def _fresh(self) -> tuple[Document, dict[int, Unit]]:
        """The module to be edited once more, and its statements by their first lines."""
        document = self._open()
        return document, {unit.first: unit for unit in units(document)[1]}

    def _blank_after_header(self) -> bool:
        lines = self._document.lines
        return (
            self._header >= len(lines)
            or not lines[self._header].strip()
            or bool(ast.get_docstring(self._document.tree))
        )

    def _wanted(self, unit: Unit, needs: set[str], part: Part) -> bool:
        if isinstance(unit.statement, ast.ImportFrom) and unit.statement.names[0].name == "*":
            known = {name for other in self._units for name in other.binds}
            return bool(needs - known)
        if isinstance(unit.statement, ast.Import) and not unit.statement.names[0].asname:
            text = "\n".join("\n".join(self._document.lines[u.first - 1 : u.last]) for u in part.all)
            dotted = [alias.name for alias in unit.statement.names]
            return bool(unit.binds & needs) and ("." not in "".join(dotted) or any(name in text for name in dotted))
        return bool(unit.binds & needs)

    def _gap(self, before: Unit | None, unit: Unit) -> str:
        """The blank line between two imports, where there was one."""
        if before is None:
            return ""
        between = self._document.lines[before.last : unit.first - 1]
        return "" if all(line.strip() for line in between) else "\n"

    def _with_own_imports(self, part: Part, text: str, limit: int, names: set[str]) -> str:
        """Import what stayed behind, or went to another new module."""
        own = {name for unit in part.all for name in unit.binds}
        sources: dict[str, list[str]] = {}
        for_types: list[str] = []
        for name in sorted(names - own):
            for unit in defining(self._units, name)[:1]:
                home = self._moved[unit].module if unit in self._moved else self.module
                if isinstance(unit.statement, ast.If) and is_type_checking(unit.statement.test):
                    for_types.append(name)
                elif not (unit.is_import or unit.is_guard):
                    sources.setdefault(home, []).append(name)
        if for_types:
            sources.setdefault("typing", []).append("TYPE_CHECKING")
        text = with_imports(text, part.module, part.path, sources, limit)
        return for_type_checkers(text, part.module, part.path, self.module, for_types) if for_types else text

    # What stays

    def rest(self, moves: Moves, limit: int, star_has: Callable[[str, str], bool]) -> tuple[Document, list[Open]]:
        """The module without what left it, as an edited document."""
        document, twins = self._fresh()
        went = {name for part in self.parts for name in self._needs(part.all)}
        gone = {name for name in went - self._stay_needs() if not self._kept_import(name)}
        spent = {unit for unit in self._stays if unit.is_guard and unit.binds and unit.binds <= gone}
        gone = {name for name in went - self._stay_needs(spent) if not self._kept_import(name)}
        editor = ImportEditor(document, self.package, limit)
        rewriter = Rewriter(editor, moves, Module(self.module, self.package), star_has)
        dropped: dict[ast.ImportFrom, set[ast.alias]] = {}
        for unit in self._stays:
            twin = twins[unit.first]
            if unit in spent:
                continue
            if twin.is_import or twin.is_for_type_checkers:
                for statement in twin.imports:
                    lost = {
                        a
                        for a in statement.names
                        if (a.asname or a.name.partition(".")[0]) in gone and a.asname != a.name
                    }
                    if isinstance(statement, ast.ImportFrom) and lost:
                        dropped[statement] = lost
                    elif lost == set(statement.names):
                        editor.remove(statement)
        rewriter.run(dropped)
        delete_units(document, [twins[unit.first] for unit in (*spent, *self._moved)])
        self._import_back(document, editor, [*twins.values()])
        editor.finish()
        return document, rewriter.open

    def _import_back(self, document: Document, editor: ImportEditor, fresh: Sequence[Unit]) -> None:
        """Import what the rest of the module needs of what left it."""
        needs = self._stay_needs()
        if self.file.is_package:
            needs |= {name for part in self.parts for name in part.classes}
        sources: dict[str, list[str]] = {}
        for unit, part in self._moved.items():
            for name in sorted(unit.binds & needs):
                sources.setdefault(part.module, []).append(name)
        statements = [unit.statement for unit in fresh if unit.is_import]
        anchor: ast.stmt | None = statements[-1] if statements else None
        sources_ = [s for s in statements if isinstance(s, ast.ImportFrom) and s.module != "__future__"]
        anchor = sources_[-1] if sources_ else anchor
        for module, names in sources.items():
            if anchor is not None:
                like = anchor if isinstance(anchor, ast.ImportFrom) and anchor.level else None
                editor.add(anchor, [Binding(module, name) for name in names], like=like)
                continue
            text = f"from {module} import {', '.join(names)}\n"
            if ast.get_docstring(document.tree) is None:
                document.insert(document.line_start(self._header + 1), f"{text}\n")
            else:
                document.insert(document.line_start((document.tree.body[0].end_lineno or 1) + 1), f"\n{text}")


def _root_of_target(statement: ast.stmt) -> str:
    """The name whose attribute a statement sets, as in ``Class.attribute = ...``."""
    targets = (
        statement.targets
        if isinstance(statement, ast.Assign)
        else [statement.target]
        if isinstance(statement, ast.AugAssign)
        else []
    )
    for target in targets:
        root: ast.expr = target
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if root is not target and isinstance(root, ast.Name):
            return root.id
    return ""
