"""Modules define none of a kind of class."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from typing import cast

from grimp import ImportGraph
from importlinter import fields
from importlinter.domain.imports import ModuleExpression

from contracts._base import DefinitionContract, kinship, listed, matching_modules
from contracts._findings import Examination, Finding
from contracts.placement import AbstractClasses
from contracts.source import Answer, ClassDefinition, Index, relative_path, why_left_out


class ForbiddenDefinitionsContract(DefinitionContract):
    """None of the modules defines a class that subclasses given bases or bears a given name.

    Where ``placement`` says where implementations belong, this says where none may be, by name too: a
    backend that forgot its base class is still found. A Python file that matches ``modules`` but that the
    import graph leaves out could not be checked, and is reported as that.

    Options:

    - ``modules``: modules or expressions; ``pkg.fused_moe.*`` are its children and not theirs.
    - ``subclasses_of``: dotted names of classes in the root packages.
    - ``names``: class names, with ``*`` and ``?`` as in file names.
    - ``abstract_classes``: ``exempt`` (default) or ``checked``.
    """

    type_name = "forbidden_definitions"

    modules = fields.ListField(subfield=fields.ModuleExpressionField())
    subclasses_of = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    names = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    abstract_classes = fields.EnumField(AbstractClasses, default=AbstractClasses.EXEMPT)

    def validate(self) -> None:
        """Refuse a contract that forbids nothing."""
        self.require_modules_or_names("subclasses_of", "names")

    def examine(self, index: Index, graph: ImportGraph) -> Examination:
        """Find the definitions that the modules may not hold."""
        expressions = cast("list[ModuleExpression]", self.modules)
        modules = matching_modules("modules", expressions, graph)
        where = listed([str(expression) for expression in expressions])
        checks_abstract = cast("AbstractClasses", self.abstract_classes) is AbstractClasses.CHECKED
        bases = cast("list[str]", self.subclasses_of)
        findings: dict[tuple[str, int, int], Finding] = {}
        undecided: list[Finding] = []
        problems = _left_out(index, graph, expressions)

        def collect(answer: Answer, fact: Callable[[ClassDefinition], str]) -> None:
            for definition in answer.found:
                place = (definition.path, definition.line, definition.column)
                counts = checks_abstract or not definition.is_abstract
                if counts and definition.module in modules and place not in findings:
                    message = f"{fact(definition)} and is defined in {definition.module}: {where} may define none"
                    findings[place] = Finding(*place, definition.dotted_name, message)
            problems.extend(f"{p.path}:{p.line} {p.reason}" for p in answer.problems)

        if bases:
            answer = index.subclasses(bases, graph)
            collect(answer, kinship)
            names = listed([base.rpartition(".")[2] for base in bases])
            undecided = [
                Finding(
                    open_.path,
                    open_.line,
                    open_.column,
                    open_.dotted_name,
                    f"{open_.name} may be a {names}, of which {where} may define none: "
                    f"reading cannot tell {open_.reason}",
                )
                for open_ in answer.undecided
                if open_.module in modules
            ]
        for name in cast("list[str]", self.names):
            collect(index.defined_in(modules, re.compile(fnmatch.translate(name)), graph), _matches(name))
        return Examination(sorted(findings.values()), undecided, sorted(set(problems)))


def _matches(name: str) -> Callable[[ClassDefinition], str]:
    return lambda definition: f"{definition.name} matches {name}"


def _left_out(index: Index, graph: ImportGraph, expressions: list[ModuleExpression]) -> list[str]:
    """The Python files that the modules' expressions mean and the import graph does not hold."""
    patterns = [_expression_pattern(str(expression)) for expression in expressions]
    return [
        f"{relative_path(file.path)}:1 {why_left_out(file, graph.modules)}"
        for file in index.left_out(graph)
        if any(pattern.fullmatch(file.module) for pattern in patterns)
    ]


def _expression_pattern(expression: str) -> re.Pattern[str]:
    parts = {"*": r"[^.]+", "**": r".+"}
    return re.compile(r"\.".join(parts.get(part, re.escape(part)) for part in expression.split(".")))
