"""Where misplaced classes go: which package, which module, and whether their module goes with them."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import cast

from importlinter.domain.imports import ModuleExpression

from contracts._base import is_under, listed, matching_modules
from contracts._writing import CouldNotError
from contracts.fix import _naming
from contracts.fix._configured import Configured
from contracts.fix._document import Document
from contracts.fix._moves import upwards
from contracts.fix._units import Unit, defining, units
from contracts.forbidden_definitions import ForbiddenDefinitionsContract
from contracts.placement import PlacementContract
from contracts.source import ClassDefinition
from contracts.source._resolve import ClassValue


@dataclass
class Misplaced:
    """A class, and the package or, if the user named one, the module where it belongs."""

    definition: ClassDefinition
    target: str

    @property
    def where(self) -> str:
        """The class as messages name it."""
        return f"{self.definition.path}:{self.definition.line} {self.definition.name}"


def misplaced(configured: Configured, to: str | None) -> tuple[list[Misplaced], list[str]]:
    """The classes that break contracts by where they are, and what cannot be mended so.

    Args:
        configured: the contracts.
        to: the place that the user named.

    Raises:
        CouldNotError: a class has no place to go, or more than one.
    """
    found: dict[str, Misplaced] = {}
    for contract in configured.contracts:
        if isinstance(contract, PlacementContract):
            names = {finding.name for finding in configured.findings(contract)}
            for item in _of(configured, contract, to) if names else ():
                if item.definition.dotted_name in names:
                    found.setdefault(item.definition.dotted_name, item)
    left: list[str] = []
    for contract in configured.contracts:
        if isinstance(contract, ForbiddenDefinitionsContract):
            for finding in configured.findings(contract):
                placed = found.get(finding.name) or _placed(configured, finding.name, to)
                if placed is None:
                    left.append(f"{finding}. No placement contract says where it belongs: say so with --to")
                else:
                    found.setdefault(finding.name, placed)
    return [found[name] for name in sorted(found)], left


def _of(configured: Configured, contract: PlacementContract, to: str | None) -> Iterable[Misplaced]:
    """The classes that a placement contract is about, each with its place."""
    bases = cast("list[str]", contract.base_classes)
    expressions = cast("list[ModuleExpression]", contract.allowed_modules)
    allowed = matching_modules("allowed_modules", expressions, configured.graph)
    for definition in configured.index.subclasses(bases, configured.graph).found:
        if not is_under(definition.module, allowed):
            yield Misplaced(definition, to or _nearest(definition, allowed))


def _placed(configured: Configured, name: str, to: str | None) -> Misplaced | None:
    """The place of a class that only a contract of another type found, as a placement contract has it."""
    for contract in configured.every:
        if isinstance(contract, PlacementContract):
            for item in _of(configured, contract, to):
                if item.definition.dotted_name == name:
                    return item
    if to is None:
        return None
    module = next(m for m in upwards(name) if m in configured.index.tree.files)
    for key, record in configured.index.summary(module).classes.items():
        if f"{module}.{record.qualname}" == name:
            return Misplaced(configured.index.define(ClassValue(module, key)), to)
    return None


def _nearest(definition: ClassDefinition, allowed: set[str]) -> str:
    """The allowed package nearest to a class."""
    tops = sorted(module for module in allowed if not is_under(module.rpartition(".")[0], allowed))
    shared = {module: _common_parts(module, definition.module) for module in tops}
    nearest = [module for module in tops if shared[module] == max(shared.values())]
    if len(nearest) > 1:
        where = f"{definition.path}:{definition.line} {definition.name}"
        raise CouldNotError(f"{where} may live in {listed(nearest)}. Say where with --to.")
    return nearest[0]


def new_module(item: Misplaced, packages: Collection[str], to: str | None, *, whole: bool) -> str:
    """The path of the module in which a class goes.

    Args:
        item: the class.
        packages: the packages that there are.
        to: the place that the user named.
        whole: whether its module goes with it.

    Raises:
        CouldNotError: its place is no package.
    """
    if item.target not in packages:
        if to is not None:
            return to
        raise CouldNotError(
            f"{item.where} belongs in {item.target}, which is no package with an __init__.py. Say where with --to."
        )
    if whole:
        return f"{item.target}.{_naming.renamed(item.definition.module, item.target)}"
    return f"{item.target}.{_naming.for_class(item.definition.name, item.definition.chain)}"


def moves_whole(document: Document, classes: Sequence[ClassDefinition], used: AbstractSet[str]) -> bool:
    """Whether a module holds nothing but these classes and their helpers.

    Args:
        document: the module.
        classes: the classes in it that move.
        used: the dotted names that other files name.
    """
    if document.file.is_package:
        return False
    _, found = units(document)
    names = {definition.name for definition in classes}
    own = {unit for name in names for unit in defining(found, name)}
    helpers = _reached(own, lambda unit: [u for name in unit.needs for u in defining(found, name)])
    users = _reached(own, lambda unit: [u for u in found if u.needs & unit.binds])
    definitions = [unit for unit in found if unit.is_definition]
    related = _reached(own, lambda unit: [u for u in definitions if u.needs & unit.binds or unit.needs & u.binds])
    ancestors = {name for definition in classes for name in definition.chain}
    for unit in found:
        public = {f"{document.module}.{name}" for name in unit.binds if not name.startswith("_")}
        if unit.is_import or unit.is_guard or not public or unit in own:
            continue
        if isinstance(unit.statement, ast.ClassDef):
            belongs = unit in helpers and not public & ancestors & used
        elif isinstance(unit.statement, ast.Assign | ast.AnnAssign):
            belongs = unit in related or not public & used
        else:
            belongs = unit in helpers or unit in users
        if not belongs:
            return False
    return True


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
