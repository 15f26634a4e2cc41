"""Modules define none of a kind of class."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable
from typing import cast

from grimp import ImportGraph
from importlinter import fields
from importlinter.domain.imports import ModuleExpression

from contracts._base import DefinitionContract, describe, doubt, kinship, listed, matching_modules
from contracts._findings import Examination, Finding
from contracts.placement import AbstractClasses
from contracts.source import Answer, ClassDefinition, Index, Problem, relative_path, why_left_out


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

    With ``modules = pkg.*`` and ``names = *Backend`` this, in ``pkg/fast.py``, breaks it::

        class FastBackend:
            def run(self): ...
    """

    type_name = "forbidden_definitions"

    modules = fields.ListField(subfield=fields.ModuleExpressionField())
    subclasses_of = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    names = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    abstract_classes = fields.EnumField(AbstractClasses, default=AbstractClasses.EXEMPT)

    def validate(self) -> None:
        """Refuse a contract that forbids nothing."""
        self.require("modules")
        self.require("subclasses_of", "names")

    def examine(self, index: Index, graph: ImportGraph) -> Examination:
        """Find the definitions that the modules may not hold."""
        expressions = cast("list[ModuleExpression]", self.modules)
        modules = matching_modules("modules", expressions, graph)
        where = listed([str(expression) for expression in expressions])
        checks_abstract = cast("AbstractClasses", self.abstract_classes) is AbstractClasses.CHECKED
        bases = cast("list[str]", self.subclasses_of)
        findings: dict[tuple[str, int, int], Finding] = {}
        undecided: list[Finding] = []
        unread: set[Problem] = set()

        def collect(answer: Answer, fact: Callable[[ClassDefinition], str]) -> None:
            for definition in answer.found:
                place = (definition.path, definition.line, definition.column)
                counts = checks_abstract or not definition.is_abstract
                if counts and definition.module in modules and place not in findings:
                    message = f"{fact(definition)} and is defined in {definition.module}: {where} may define none"
                    findings[place] = Finding(*place, definition.dotted_name, message)
            unread.update(answer.problems)

        if bases:
            answer = index.subclasses(bases, graph)
            collect(answer, kinship)
            undecided = [
                doubt(open_, bases, f"of which {where} may define none")
                for open_ in answer.undecided
                if open_.module in modules
            ]
        for name in cast("list[str]", self.names):
            collect(index.defined_in(modules, re.compile(fnmatch.translate(name)), graph), _matches(name))
        told = {problem.path for problem in unread}
        unread.update(problem for problem in _left_out(index, graph, expressions) if problem.path not in told)
        problems = [describe(problem) for problem in sorted(unread)]
        return Examination(sorted(findings.values()), undecided, problems)


def _matches(name: str) -> Callable[[ClassDefinition], str]:
    return lambda definition: f"{definition.name} matches {name}"


def _left_out(index: Index, graph: ImportGraph, expressions: list[ModuleExpression]) -> list[Problem]:
    """The Python files that the modules' expressions mean and the import graph does not hold."""
    patterns = [_expression_pattern(str(expression)) for expression in expressions]
    return [
        Problem(relative_path(file.path), 1, f"cannot be checked: {why_left_out(file, graph.modules)}")
        for file in index.left_out(graph)
        if any(pattern.fullmatch(_position(file.module, file.path)) for pattern in patterns)
    ]


def _position(module: str, path: str) -> str:
    """A file's place in the tree as a dotted name; dots in the file's own name are no levels of it."""
    stem = os.path.basename(path).removesuffix(".py")
    return module.removesuffix(stem) + stem.replace(".", "-") if "." in stem else module


def _expression_pattern(expression: str) -> re.Pattern[str]:
    parts = {"*": r"[^.]+", "**": r".+"}
    return re.compile(r"\.".join(parts.get(part, re.escape(part)) for part in expression.split(".")))
