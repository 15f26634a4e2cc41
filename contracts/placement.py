"""Implementations live where they belong."""

from __future__ import annotations

import enum
from typing import cast

from grimp import ImportGraph
from importlinter import fields
from importlinter.domain.imports import ModuleExpression

from contracts._base import (
    DefinitionContract,
    describe,
    doubt,
    is_under,
    kinship,
    listed,
    matching_modules,
)
from contracts._findings import Examination, Finding
from contracts.source import Index, UnknownNameError


class AbstractClasses(enum.Enum):
    """Whether classes with abstract methods left count."""

    EXEMPT = "exempt"
    CHECKED = "checked"


class PlacementContract(DefinitionContract):
    """Every concrete subclass of the base classes is defined under the allowed modules.

    Who looks for the implementations of a base looks where they all are; one that was put elsewhere is missed by
    the next change to all of them. Reviews let such a one pass, since each file on its own looks right.

    Subclasses count at any depth, wherever in the root packages they are defined and however their base is
    imported, re-exported or renamed. A class in which abstract methods are left is an intermediate base and
    may live anywhere, unless told otherwise.

    Options:

    - ``base_classes``: dotted names of classes in the root packages.
    - ``allowed_modules``: modules, or expressions such as ``pkg.backends.*``; each with all below it.
    - ``abstract_classes``: ``exempt`` (default) or ``checked``.

    With ``base_classes = pkg.base.Backend`` and ``allowed_modules = pkg.backends`` this, in ``pkg/fast.py``,
    breaks it::

        from pkg import base


        class FastBackend(base.Backend):
            def run(self): ...
    """

    type_name = "placement"

    base_classes = fields.ListField(subfield=fields.StringField())
    allowed_modules = fields.ListField(subfield=fields.ModuleExpressionField())
    abstract_classes = fields.EnumField(AbstractClasses, default=AbstractClasses.EXEMPT)

    def validate(self) -> None:
        """Refuse a contract that places nothing, or nowhere."""
        self.require("base_classes")
        self.require("allowed_modules")

    def examine(self, index: Index, graph: ImportGraph) -> Examination:
        """Find the subclasses that live elsewhere."""
        bases = cast("list[str]", self.base_classes)
        expressions = cast("list[ModuleExpression]", self.allowed_modules)
        allowed = matching_modules("allowed_modules", expressions, graph)
        checks_abstract = cast("AbstractClasses", self.abstract_classes) is AbstractClasses.CHECKED
        answer = index.subclasses(bases, graph)
        checked = [definition for definition in answer.found if checks_abstract or not definition.is_abstract]
        if not checked and not answer.undecided and not answer.problems:
            kind = "subclass" if checks_abstract else "concrete subclass"
            raise UnknownNameError(
                f"Nothing to check: {listed(bases)} has no {kind} in {listed(index.tree.roots)}. "
                "Correct base_classes, or remove the contract."
            )
        place = listed([str(expression) for expression in expressions])
        findings = [
            Finding(
                definition.path,
                definition.line,
                definition.column,
                definition.dotted_name,
                f"{kinship(definition)} and lives in {definition.module}: it belongs in {place}",
            )
            for definition in checked
            if not is_under(definition.module, allowed)
        ]
        undecided = [
            doubt(open_, bases, f"which belongs in {place}")
            for open_ in answer.undecided
            if not is_under(open_.module, allowed)
        ]
        return Examination(findings, undecided, [describe(problem) for problem in answer.problems])
