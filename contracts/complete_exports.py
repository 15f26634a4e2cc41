"""A package exports the implementations in it."""

from __future__ import annotations

from typing import NamedTuple, cast

from grimp import ImportGraph
from importlinter import fields
from importlinter.application.contract_utils import AlertLevel
from importlinter.domain.imports import ModuleExpression

from contracts._base import DefinitionContract, describe, doubt, kinship, listed, matching_modules
from contracts._findings import Examination, Finding
from contracts.placement import AbstractClasses
from contracts.source import ClassDefinition, Exports, Index, Problem, SourceError, UnknownNameError


class OptionalModule(NamedTuple):
    """A module that its package does not import, and why."""

    module: str
    reason: str


class OptionalModuleField(fields.Field[OptionalModule]):
    """``pkg.module: reason``."""

    def parse(self, raw_data: str | list[str]) -> OptionalModule:
        """Read one line.

        Raises:
            ValidationError: the reason is missing.
        """
        module, _, reason = (part.strip() for part in str(raw_data).partition(":"))
        if not module or not reason:
            raise fields.ValidationError(f"'{raw_data}' gives no reason: write 'module: reason'.")
        return OptionalModule(module, reason)


class CompleteExportsContract(DefinitionContract):
    """Every public implementation in a package is in the package's ``__all__``, and all that is there exists.

    What a package exports is how others find what is in it, and what they may rely on when modules move. A
    backend that was added without its export is imported by the path of its module, and the next move breaks
    that. A name in ``__all__`` that nothing binds breaks ``from package import *``.

    Subclasses count at any depth, if their names begin with no underscore; a module belongs to the package in
    whose folder it lies. ``__all__`` may be a list or a tuple, grow by ``+=``, ``append`` and ``extend``, and
    take in the ``__all__`` of other modules; of conditions, either branch counts. A class may be exported
    under another name, or lazily, by a module ``__getattr__`` that says where it is. An ``__all__`` that
    reading cannot tell is reported as that.

    Options:

    - ``base_classes``: dotted names of classes in the root packages.
    - ``packages``: packages, or expressions such as ``pkg.backends.*``; their own modules, not those of
      packages below them.
    - ``optional_modules``: one line ``pkg.backends.vendor: reason`` for each module whose classes need not be
      exported, since importing it needs what not everyone has.
    - ``unmatched_optional_modules_alerting``: what to do about an optional module in which nothing is left to
      exempt: ``error`` (default), ``warn`` or ``none``.
    - ``abstract_classes``: ``exempt`` (default) or ``checked``.

    With ``packages = pkg.backends`` this, in ``pkg/backends/__init__.py``, breaks it as soon as a module of
    the package defines another backend::

        from pkg.backends.plain import PlainBackend

        __all__ = ["PlainBackend"]
    """

    type_name = "complete_exports"

    base_classes = fields.ListField(subfield=fields.StringField())
    packages = fields.ListField(subfield=fields.ModuleExpressionField())
    optional_modules = fields.ListField(subfield=OptionalModuleField(), required=False, default=[])
    unmatched_optional_modules_alerting = fields.EnumField(AlertLevel, default=AlertLevel.ERROR)
    abstract_classes = fields.EnumField(AbstractClasses, default=AbstractClasses.EXEMPT)

    def validate(self) -> None:
        """Refuse a contract that holds of anything."""
        self.require("base_classes")
        self.require("packages")

    def examine(self, index: Index, graph: ImportGraph) -> Examination:
        """Find the classes that are not exported, and the exports that are not there."""
        bases = cast("list[str]", self.base_classes)
        packages = self._packages(index, graph)
        answer = index.subclasses(bases, graph)
        checks_abstract = cast("AbstractClasses", self.abstract_classes) is AbstractClasses.CHECKED
        own: dict[str, list[ClassDefinition]] = {package: [] for package in sorted(packages)}
        for definition in answer.found:
            package = _package_of(definition.module, packages)
            if package and _is_public(definition.name) and (checks_abstract or not definition.is_abstract):
                own[package].append(definition)
        open_ = [
            item for item in answer.undecided if _package_of(item.module, packages) and _is_public(item.name)
        ]
        if not any(own.values()) and not open_ and not answer.problems:
            kind = "public subclass" if checks_abstract else "public concrete subclass"
            raise UnknownNameError(
                f"Nothing to check: {listed(bases)} has no {kind} in {listed(sorted(packages))}."
            )
        optional = {entry.module for entry in cast("list[OptionalModule]", self.optional_modules)}
        used = {item.module for item in open_}
        examination = Examination([], [], [describe(problem) for problem in answer.problems])
        for package, definitions in own.items():
            try:
                exports = index.exports(package, definitions)
            except SourceError as error:
                examination.problems.append(describe(Problem.of(error)))
                continue
            for definition in definitions:
                if exports.classes[definition.dotted_name] == "exported":
                    continue
                if definition.module in optional:
                    used.add(definition.module)
                else:
                    examination.findings.append(_unexported(definition, package, exports))
            _add_dangling(package, exports, examination)
        rule = "which its package exports"
        examination.undecided += [doubt(item, bases, rule) for item in open_ if item.module not in optional]
        examination.findings.sort()
        examination.undecided.sort()
        self._idle = [] if examination.problems else sorted(optional - used)
        return examination

    def _packages(self, index: Index, graph: ImportGraph) -> set[str]:
        expressions = cast("list[ModuleExpression]", self.packages)
        packages = set()
        for expression in expressions:
            matches = {
                module
                for module in matching_modules("packages", [expression], graph)
                if module in index.tree.files and index.tree.files[module].is_package
            }
            if not matches:
                raise UnknownNameError(f"packages: '{expression}' matches no package with an __init__.py.")
            packages |= matches
        return packages

    def _alerts(self, examination: Examination, ignored: list[Finding]) -> list[str]:
        idle = [
            f"optional_modules: '{module}' has nothing left to exempt. Remove it."
            for module in getattr(self, "_idle", [])
        ]
        warnings = super()._alerts(examination, ignored)
        self._alert(self.unmatched_optional_modules_alerting, idle, warnings, examination)
        return warnings


def _package_of(module: str, packages: set[str]) -> str:
    """The package of ``packages`` to which a module belongs; empty if none."""
    parent = module.rpartition(".")[0]
    return module if module in packages else parent if parent in packages else ""


def _is_public(name: str) -> bool:
    return not name.startswith("_") and "." not in name


def _unexported(definition: ClassDefinition, package: str, exports: Exports) -> Finding:
    status = exports.classes[definition.dotted_name]
    place = f"{exports.path}:{exports.line}"
    if not exports.line:
        fact = f"{package} has no __all__: write one into {exports.path}, with the class in it"
    elif status == "bound":
        fact = f"{package} imports it but leaves it out of __all__: add it at {place}"
    elif status == "another":
        fact = f"the {definition.name} that {package} exports is another one: give them different names"
    else:
        fact = f"{package} does not export it: import it there and add it to __all__ at {place}"
    return Finding(
        definition.path,
        definition.line,
        definition.column,
        definition.dotted_name,
        f"{kinship(definition)} and {fact}",
    )


def _add_dangling(package: str, exports: Exports, examination: Examination) -> None:
    for line, column, name, reason in exports.dangling:
        if reason:
            rule = f"which may not exist: it comes from {reason}, which reading cannot follow"
            into = examination.undecided
        else:
            rule = "which nothing binds: import it there, or take it out of __all__"
            into = examination.findings
        into.append(
            Finding(exports.path, line, column, f"{package}.{name}", f"{package} exports {name}, {rule}")
        )
