"""The question which overrides do not keep what the methods that they override promise."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from contracts.source._answer import Answer
from contracts.source._methods import Definition, Methods
from contracts.source._names import Names
from contracts.source._questions import Family, Remark, dotted, family, label, plain, short
from contracts.source._resolve import ClassValue
from contracts.source._signatures import Comparison, Difference, Signatures
from contracts.source._syntax import Syntax

if TYPE_CHECKING:
    from contracts.source._index import Index


def overrides(
    index: Index, answer: Answer, bases: Sequence[str], methods: Sequence[str], *, require_annotations: bool
) -> dict[str, Any]:
    """Compare every override in the subclasses with what it overrides.

    Each is compared with the nearest ancestor that defines the method, and with what the configured base
    has; ancestors from outside of the bases' hierarchy promise nothing. A method that a class takes from a
    mixin must fit as one of its own would.

    Args:
        index: whose tree is read.
        answer: the subclasses of the bases.
        bases: dotted names of the base classes.
        methods: names or patterns of methods; all public ones if there are none.
        require_annotations: whether what the base annotates must be annotated.

    Returns:
        ``findings``, ``undecided`` and ``problems``, in plain data.

    Raises:
        UnknownNameError: a base does not exist, or a pattern matches no method.
    """
    syntax = Syntax(index)
    return _Question(syntax, bases, answer, require_annotations).ask(methods)


class _Question:
    def __init__(
        self, syntax: Syntax, bases: Sequence[str], answer: Answer, require_annotations: bool
    ) -> None:
        names = Names(syntax)
        self.syntax = syntax
        self.require_annotations = require_annotations
        self.methods = Methods(syntax, names)
        self.signatures = Signatures(syntax, names, self.methods)
        self.family: Family = family(syntax, self.methods, bases, answer)
        self.findings: list[Remark] = []
        self.undecided: list[Remark] = []

    def ask(self, patterns: Sequence[str]) -> dict[str, Any]:
        wanted = self.family.names(patterns)
        for value in self.family.definitions:
            if self.syntax.class_(value) is None and self.made_with_methods(value):
                self.doubt(value, None, short(value), "what methods the call that makes it gives it")
            for name in sorted(wanted):
                self.look_at(value, name)
        return plain(self.findings, self.undecided, self.syntax.problems)

    def look_at(self, value: ClassValue, name: str) -> None:
        promised = [a for a in self.family.promised(value) if self.methods.defined(a).get(name)]
        if not promised:
            return
        provided = self.provided(value, name)
        if provided is None:
            return
        provider, definitions = provided
        if provider != value and provider in self.family.promised(value):
            return  # inherited, and looked at where it is defined
        against = [self.methods.defined(promised[0])[name], *self.of_the_bases(value, name)]
        for definition in definitions:
            seen: set[tuple[str, str]] = set()
            for bases in against:
                base, comparison = self.best(bases, definition, value)
                for difference in comparison.differences:
                    if (difference.parameter, difference.fact) not in seen:
                        seen.add((difference.parameter, difference.fact))
                        self.report(value, definition, base, difference)
                for doubt in comparison.doubts:
                    if ("", doubt) not in seen:
                        seen.add(("", doubt))
                        self.doubt(value, definition, f"{short(value)}.{name}", doubt, base)

    def provided(self, value: ClassValue, name: str) -> tuple[ClassValue, list[Definition]] | None:
        """Where a class takes a method from; None where a class that is not known may come first."""
        for ancestor in self.methods.order(value):
            if ancestor is None:
                return None
            found = self.methods.defined(ancestor).get(name)
            if found:
                return ancestor, found
        return None

    def of_the_bases(self, value: ClassValue, name: str) -> Iterator[list[Definition]]:
        """What the configured bases have under a name."""
        for base in self.family.bases:
            if base in self.family.promised(value):
                found = self.methods.lookup(base, name)
                if found is not None:
                    yield found[1]

    def best(
        self, bases: Sequence[Definition], definition: Definition, value: ClassValue
    ) -> tuple[Definition, Comparison]:
        """The comparison with whichever definition fits best, where the base's depends on a condition."""
        results = [
            (
                base,
                self.signatures.compare(
                    base, definition, value, require_annotations=self.require_annotations
                ),
            )
            for base in bases
        ]
        return min(results, key=lambda result: (len(result[1].differences), len(result[1].doubts)))

    def report(self, value: ClassValue, definition: Definition, base: Definition, found: Difference) -> None:
        rule = f"{label(base, self.syntax)} {found.rule}. {found.advice}"
        name = f"{dotted(value)}.{definition.name}"
        if definition.owner == value:
            path, line, column = self.syntax.path(value.module), found.line, found.column
            message = f"{short(value)}.{definition.name} {found.fact}: {rule}"
            if found.parameter:
                name = f"{name}.{found.parameter}"
        else:
            path, line, column = self.place(value)
            message = (
                f"{short(value)} takes {definition.name} from {label(definition, self.syntax)}, "
                f"which {found.fact}: {rule}"
            )
        self.findings.append(Remark(path, line, column, name, message))

    def doubt(
        self,
        value: ClassValue,
        definition: Definition | None,
        what: str,
        doubt: str,
        base: Definition | None = None,
    ) -> None:
        path, line, column = self.place(value)
        name = dotted(value)
        if definition is not None:
            name = f"{name}.{definition.name}"
            if definition.owner == value:
                line, column = definition.line, definition.column
        fits = f"may not fit {label(base, self.syntax)}" if base is not None else "may not fit its bases"
        self.undecided.append(Remark(path, line, column, name, f"{what} {fits}: reading cannot tell {doubt}"))

    def place(self, value: ClassValue) -> tuple[str, int, int]:
        definition = self.family.definitions[value]
        return definition.path, definition.line, definition.column

    def made_with_methods(self, value: ClassValue) -> bool:
        """Whether the call that makes a class gives it a namespace that is not empty."""
        line = self.family.definitions[value].line
        for node in ast.walk(self.syntax.module(value.module)):
            if isinstance(node, ast.Call) and node.lineno == line and len(node.args) >= 2:
                namespace = node.args[2:] or node.args[-1:]
                if any(isinstance(item, ast.Dict) and not item.keys for item in namespace):
                    return False
        return True
