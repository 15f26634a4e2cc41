"""From what breaks the contracts to the changes that mend it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from contracts._base import listed
from contracts._writing import CouldNotError
from contracts.complete_exports import CompleteExportsContract
from contracts.fix import _shims, _snippets
from contracts.fix._changes import Changes
from contracts.fix._configured import Configured
from contracts.fix._demands import demands, is_listed_as_optional, is_vendors
from contracts.fix._destination import Misplaced, misplaced, moves_whole, new_module
from contracts.fix._exports import Exporter
from contracts.fix._extract import Part, Split
from contracts.fix._moves import Moves
from contracts.fix._open import Open, fragile
from contracts.fix._units import units
from contracts.fix._uses import Rewriter
from contracts.fix._workspace import CycleError, Workspace
from contracts.retired_modules import RetiredModulesContract, Retirement
from contracts.source import ClassDefinition
from contracts.source._mentions import Module
from contracts.source._references import exists, find_references
from contracts.source._tree import SourceFile


@dataclass
class Options:
    """What the user asked for, beside a contract: where to move, what to leave at the old place, and what git knows."""

    top: str
    with_git: bool
    to: str | None = None
    shim: bool = False


@dataclass
class Plan:
    """What is to be done, and what is to be said about it: ``left`` is what breaks contracts and is not mended."""

    changes: Changes
    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    open: list[Open] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)

    def summary(self) -> list[str]:
        """What was done, what could not be, and each place that could not be decided."""
        lines = self.said or ([] if self.left else ["Nothing to mend."])
        if self.left:
            lines = [*lines, f"Not mended ({len(self.left)}):", *self.left]
        found = sorted(set(self.open))
        if found:
            lines = [*lines, f"Left as they are, for you to look at ({len(found)}):", *map(str, found)]
        if self.rows:
            lines = [*lines, "So that nobody uses the old paths again, add to a retired_modules contract:", *self.rows]
        return lines


def plan(configured: Configured, options: Options) -> Plan:
    """Plan all changes.

    Raises:
        CouldNotError: one of them would go wrong.
        SourceError: a file that matters cannot be read.
    """
    lazily: set[str] = set()
    while True:
        planner = _Planner(configured, options, lazily)
        try:
            return planner.run()
        except CycleError as error:
            # An export is worth less than the import that it would close a circle with.
            exported = {new for new in error.cycle if new in planner.exported} - lazily
            if not exported:
                raise
            lazily |= exported


class _Planner:
    def __init__(self, configured: Configured, options: Options, lazily: Collection[str]) -> None:
        self._configured = configured
        self._options = options
        self._index = configured.index
        self._work = Workspace(configured, options.top, with_git=options.with_git)
        self._plan = Plan(self._work.changes)
        self._made: list[Open] = []
        self._importers: dict[str, bool] = {}
        self._lazily = lazily
        self._exporters: dict[str, Exporter] = {}
        self._unsaid: dict[str, list[str]] = defaultdict(list)
        self.exported: set[str] = set()

    def run(self) -> Plan:
        found, self._plan.left = misplaced(self._configured, self._options.to)
        if found:
            self._move(found)
        self._retire()
        self._complete()
        for exporter in self._exporters.values():
            exporter.finish()
        self._plan.said += [text.format(listed(names)) for text, names in self._unsaid.items()]
        self._work.finish()
        self._plan.open = [self._work.relocated(item) for item in self._plan.open] + self._made
        if found:
            self._plan.open += self._work.leftovers(self._plan.open)
        return self._plan

    # Moving

    def _move(self, found: Sequence[Misplaced]) -> None:
        groups: dict[str, list[Misplaced]] = defaultdict(list)
        for item in found:
            groups[item.definition.module].append(item)
        if self._options.to is not None and self._options.to not in self._packages() and len(found) > 1:
            raise CouldNotError(
                f"--to {self._options.to} names one module, but {len(found)} classes would move. Name a package."
            )
        used = self._used(groups)
        moves = self._work.moves
        splits = []
        for module, group in sorted(groups.items()):
            file = self._work.files[module]
            definitions = [item.definition for item in group]
            if moves_whole(self._work.document(file, module), definitions, used):
                new = new_module(group[0], self._packages(), self._options.to, whole=True)
                self._work.claim(new, group[0].where)
                moves.modules[module] = new
                self._rename(file, module, new)
                self._offer(module, new)
            else:
                splits.append(self._split(file, module, group, used))
        for split in splits:
            moves.copied |= split.copied()
        self._write_parts(splits)
        self._rewrite({split.module for split in splits})
        for item in found:
            self._export(item.definition)

    def _packages(self) -> set[str]:
        return {module for module, file in self._work.files.items() if file.is_package}

    def _used(self, groups: Iterable[str]) -> set[str]:
        """What other files name of some modules, in imports and as attributes.

        Raises:
            CouldNotError: a file that may do so cannot be read.
        """
        names = {
            f"{module}.{name}"
            for module in groups
            for unit in units(self._work.document(self._work.files[module], module))[1]
            for name in unit.binds
        }
        references, problems = find_references(self._index, names, self._work.outside.files)
        if problems:
            raise CouldNotError("\n".join(f"{p.path}:{p.line} {p.reason}" for p in problems))
        return {reference.path for reference in references if reference.form != "string"}

    def _rename(self, file: SourceFile, module: str, new: str) -> None:
        changes = self._work.changes
        changes.renamed[file.path] = self._work.path_of(new)
        self._plan.said.append(f"{changes.show(file.path)} -> {changes.show(changes.renamed[file.path])}")
        document = self._work.document(file, module)
        self._plan.open += fragile(document)
        stub = f"{file.path}i"
        if any(other.path == stub for other in self._work.outside.files):
            changes.renamed[stub] = f"{changes.renamed[file.path]}i"
        if self._options.shim:
            changes.written[file.path] = _shims.for_module(document, module, new)

    def _split(self, file: SourceFile, module: str, group: Sequence[Misplaced], used: Collection[str]) -> Split:
        parts: dict[str, Part] = {}
        for item in group:
            new = new_module(item, self._packages(), self._options.to, whole=False)
            if new not in parts:
                parts[new] = Part(new, self._work.claim(new, item.where), [])
            parts[new].classes.append(item.definition.name)
        own = {name.rpartition(".")[2] for name in used if name.rpartition(".")[0] == module}
        split = Split(file, module, [*parts.values()], own)
        self._work.moves.names |= split.names
        shown = self._work.changes.show
        for part in split.parts:
            self._plan.said.append(f"{listed(part.classes, 'and')}: {shown(file.path)} -> {shown(part.path)}")
            for name in part.classes:
                if not split.still_public(name):
                    self._offer(f"{module}.{name}", f"{part.module}.{name}")
        stub = f"{file.path}i"
        if any(other.path == stub for other in self._work.outside.files):
            self._plan.open.append(Open(shown(stub), 1, f"is the stub of {module}, of which classes left"))
        return split

    def _offer(self, old: str, new: str) -> None:
        """Offer a row for the configuration, unless a contract has it."""
        listed_rows = {
            row.old
            for contract in self._configured.every
            if isinstance(contract, RetiredModulesContract)
            for row in cast("list[Retirement]", contract.retired)
        }
        if old not in listed_rows:
            self._plan.rows.append(f"    {old} -> {new}")

    def _write_parts(self, splits: Sequence[Split]) -> None:
        """Make the new modules, and take out of the old ones what left them."""
        work = self._work
        for split in splits:
            for part in split.parts:
                text, open_ = split.new_text(part, work.moves, work.limit, work.star_has)
                first, last = min(u.first for u in part.units), max(u.last for u in part.units)
                lines = text.split("\n")
                for item in open_:
                    if first <= item.line <= last:
                        line = split.line(item.line)
                        number = lines.index(line) + 1 if line in lines else 1
                        self._made.append(Open(work.changes.show(part.path), number, item.reason))
                work.changes.written[part.path] = split.encode(text)
            document, open_ = split.rest(work.moves, work.limit, work.star_has)
            if self._options.shim:
                left = {name.rpartition(".")[2]: new.rpartition(".")[0] for name, new in split.names.items()}
                gone = {name: new for name, new in left.items() if not split.still_public(name)}
                if gone:
                    _shims.add_names(document, gone)
            self._plan.open += open_
            work.take(document)

    def _rewrite(self, done: Collection[str]) -> None:
        """Change every reference, in all files but some that are done."""
        work, moves = self._work, self._work.moves
        candidates = dict.fromkeys(work.candidates())
        for moved in moves.modules:
            candidates[work.files[moved], moved] = None
        for stub in work.outside.files:
            if stub.path in work.changes.renamed:
                candidates[stub, None] = None
        for file, module in [*candidates]:
            if module in done:
                continue
            if not file.path.endswith((".py", ".pyi")):
                text = _snippets.Text(file, None, None)
                self._plan.open += _snippets.rewrite(text, moves, work.star_has)
                work.take(text)
                continue
            document = work.document(file, module)
            place = Module(module, document.package)
            if module in moves.modules:
                place = Module(moves.modules[module], moves.modules[module].rpartition(".")[0])
            elif file.path in work.changes.renamed:  # a stub
                place = Module(None, work.package_of(SourceFile(work.changes.renamed[file.path], "", False), None))
            rewriter = Rewriter(work.editor(document, place.package), moves, place, work.star_has)
            rewriter.run()
            self._plan.open += rewriter.open
            for name, always in rewriter.importers.items():
                self._importers[name] = always or self._importers.get(name, False)

    # Exports

    def _export(self, definition: ClassDefinition) -> None:
        """Let a package export what moved into it, as it exports others."""
        name = definition.name
        module = self._work.moves.new(definition.dotted_name).rpartition(".")[0]
        package = module.rpartition(".")[0]
        if name.startswith("_"):
            return
        exporter = self._exporter(package)
        path = exporter.document.path
        demanded = demands(self._configured, package, module)
        if not exporter.exports_something and not demanded:
            self._unsaid[f"{path} exports nothing, so it does not export {{}} either."].append(name)
        elif not self._is_optional(definition) and module not in self._lazily:
            self.exported.add(module)
            exporter.add(module, name, demanded=demanded)
        elif not demanded and (others := self._unexported(exporter, package, definition)):
            self._unsaid[
                f"{path} does not export {{}}, whose imports stand under conditions, as it does not export "
                f"{listed(others, 'and')}."
            ].append(name)
        else:
            exporter.add_lazily(module, name, listed=demanded)

    def _exporter(self, package: str) -> Exporter:
        if package not in self._exporters:
            document = self._work.document(self._work.files[package], package)
            self._exporters[package] = Exporter(self._work.editor(document, package), package, self._work.moves)
        return self._exporters[package]

    def _is_optional(self, definition: ClassDefinition) -> bool:
        """Whether not everyone can import a class's module: as a contract says, or else by how others import it."""
        new = self._work.moves.new(definition.dotted_name).rpartition(".")[0]
        if is_listed_as_optional(self._configured, new):
            return True
        always = self._importers.get(self._work.moves.old(definition.dotted_name) or definition.dotted_name)
        if always is not None:
            return not always
        return self._is_vendors(definition.module)

    def _is_vendors(self, module: str) -> bool:
        document = self._work.document(self._work.files[module], module)
        return is_vendors(document, self._index, self._options.top)

    def _unexported(self, exporter: Exporter, package: str, definition: ClassDefinition) -> list[str]:
        """The classes of the same kind that a package holds and does not export."""
        if not definition.chain:
            return []
        found = self._index.subclasses([definition.chain[-1]], self._configured.graph).found
        return [
            other.name
            for other in found
            if other.module.rpartition(".")[0] == package
            and not other.is_abstract
            and not other.name.startswith("_")
            and not exporter.names(other.name)
        ]

    # Other contracts

    def _retire(self) -> None:
        """Change what uses retired paths, where it is known what they are now."""
        for contract in self._configured.contracts:
            if not isinstance(contract, RetiredModulesContract):
                continue
            lines: dict[str, set[int]] = defaultdict(set)
            rows = {row.old: row for row in cast("list[Retirement]", contract.retired)}
            moving = {*self._work.moves.modules, *self._work.moves.names}
            for finding in self._configured.findings(contract):
                row = rows.get(finding.name.rpartition(" -> ")[2].partition(" (")[0])
                if row is not None and row.old in moving:
                    continue  # it is mended by the move
                if row is None or " -> " not in finding.name:
                    self._plan.left.append(f"{finding}. Move it there, or delete it, by hand")
                elif row.new is None:
                    self._plan.left.append(f"{finding}. The contract does not say what is used instead")
                else:
                    lines[os.path.realpath(finding.path)].add(finding.line)
            if lines:
                self._rewrite_lines(self._retired(rows.values()), lines)

    def _retired(self, rows: Iterable[Retirement]) -> Moves:
        moves = Moves()
        for row in rows:
            if row.new is not None:
                kind = exists(self._index, row.new)
                is_name = kind == "name" or (kind is None and row.new.rpartition(".")[2][:1].isupper())
                (moves.names if is_name else moves.modules)[row.old] = row.new
        return moves

    def _rewrite_lines(self, moves: Moves, lines: dict[str, set[int]]) -> None:
        work = self._work
        known: list[tuple[SourceFile, str | None]] = [(file, module) for module, file in work.files.items()]
        known += [(file, None) for file in work.outside.files]
        for file, module in known:
            only = lines.pop(os.path.realpath(file.path), None)
            if only is None:
                continue
            shown = work.changes.show(file.path)
            if not file.path.endswith((".py", ".pyi")):
                text = _snippets.Text(file, None, None)
                self._plan.open += _snippets.rewrite(text, moves, work.star_has, only)
                work.take(text)
            else:
                document = work.document(file, module)
                place = Module(module, document.package)
                rewriter = Rewriter(work.editor(document, document.package), moves, place, work.star_has, only)
                rewriter.run()
                self._plan.open += rewriter.open
            self._plan.said.append(f"{shown}: {len(only)} {'use' if len(only) == 1 else 'uses'} of retired paths")
        for path in sorted(lines):
            self._plan.left.append(f"{work.changes.show(path)}:{min(lines[path])} lies outside of what git looks after")

    def _complete(self) -> None:
        """Export what contracts want exported."""
        for contract in self._configured.contracts:
            if not isinstance(contract, CompleteExportsContract):
                continue
            bases = cast("list[str]", contract.base_classes)
            try:
                names = {finding.name: finding for finding in self._configured.findings(contract)}
            except CouldNotError:
                if not self._work.moves:
                    raise
                continue  # it may be about what moves only now
            for definition in self._index.subclasses(bases, self._configured.graph).found if names else ():
                if names.pop(definition.dotted_name, None) is None:
                    continue
                module = definition.module
                package = module if module in self._packages() else module.rpartition(".")[0]
                exporter = self._exporter(package)
                if module in self._lazily or self._is_vendors(module):
                    exporter.add_lazily(module, definition.name, listed=True)
                else:
                    self.exported.add(module)
                    exporter.add(module, definition.name, demanded=True)
                self._plan.said.append(f"{exporter.document.path}: exports {definition.name}")
            self._plan.left += [str(finding) for finding in names.values()]
