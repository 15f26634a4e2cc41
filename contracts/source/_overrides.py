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
from contracts.source._signatures import Comparison, Difference, Doubt, Signatures
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
        self.hidden: dict[ClassValue, list[str]] = {}

    def ask(self, patterns: Sequence[str]) -> dict[str, Any]:
        wanted = self.family.names(patterns, private=True)
        for value in self.family.definitions:
            unfit = f"{short(value)} may not fit its bases: reading cannot tell"
            if self.syntax.class_(value) is None and self.made_with_methods(value):
                self.open(self.place(value), dotted(value), f"{unfit} what the call that makes it puts into it")
            for name in sorted(wanted):
                self.look_at(value, name)
        for value, names in self.hidden.items():
            taken = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
            unfit = f"{short(value)} may not fit its bases: reading cannot tell"
            self.open(self.place(value), dotted(value), f"{unfit} whether a base that is not read has its own {taken}")
        return plain(self.findings, self.undecided, self.syntax.problems)

    def look_at(self, value: ClassValue, name: str) -> None:
        promised = [a for a in self.family.promised(value) if self.methods.defined(a).get(name)]
        provided = self.provided(value, name) if promised else None
        if provided is None:
            return
        provider, definitions = provided
        if provider != value and provider in promised:
            # Inherited, and looked at where it is defined: only what that class has not above itself is new.
            known = {provider, *self.family.promised(provider)}
            promised = [ancestor for ancestor in promised if ancestor not in known]
        for definition in definitions:
            seen: set[tuple[str, str]] = set()
            for ancestor in promised:
                for base, comparison in self.compared(self.methods.defined(ancestor)[name], definition, value):
                    for difference in comparison.differences:
                        # Parameters without annotation are in one finding, for the nearest ancestor that has some.
                        fact = "unannotated" if difference.is_unannotated else difference.fact
                        if (difference.parameter, fact) not in seen:
                            seen.add((difference.parameter, fact))
                            self.report(value, definition, base, difference)
                    for doubt in comparison.doubts:
                        if ("", doubt.text) not in seen:
                            seen.add(("", doubt.text))
                            self.doubt(value, definition, base, doubt)

    def provided(self, value: ClassValue, name: str) -> tuple[ClassValue, list[Definition]] | None:
        """Where a class takes a method from; None where a class that is not known may come first."""
        for ancestor in self.methods.order(value):
            if ancestor is None:
                self.hidden.setdefault(value, []).append(name)
                return None
            found = self.methods.defined(ancestor).get(name)
            if found:
                return ancestor, found
        return None

    def compared(
        self, bases: Sequence[Definition], definition: Definition, value: ClassValue
    ) -> Iterator[tuple[Definition, Comparison]]:
        """The comparisons with what an ancestor defines: with it, and with each of its overloads."""
        overrides = definition.overloads if definition.is_overload else [definition]
        if not any(base.is_overload for base in bases):
            yield self.best(bases, overrides, value, require_annotations=self.require_annotations)
        for overload in bases[0].overloads if len(bases) == 1 else ():
            yield self.best([overload], definition.overloads or overrides, value, require_annotations=False)

    def best(
        self,
        bases: Sequence[Definition],
        overrides: Sequence[Definition],
        value: ClassValue,
        *,
        require_annotations: bool,
    ) -> tuple[Definition, Comparison]:
        """The comparison of those that fit best, where either depends on a condition or on the arguments."""
        results = [
            (base, self.signatures.compare(base, override, value, require_annotations=require_annotations))
            for base in bases
            for override in overrides
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

    def doubt(self, value: ClassValue, definition: Definition, base: Definition, doubt: Doubt) -> None:
        if doubt.of_base:
            # Said once, however many overrides there are.
            place = self.syntax.path(base.owner.module), base.line, base.column
            name = f"{dotted(base.owner)}.{base.name}"
            text = f"Overrides of {short(base.owner)}.{base.name} may not fit it: reading cannot tell {doubt.text}"
        else:
            place, name = self.place(value), f"{dotted(value)}.{definition.name}"
            if definition.owner == value:
                place = place[0], definition.line, definition.column
            text = f"{short(value)}.{definition.name} may not fit {label(base, self.syntax)}: "
            text += f"reading cannot tell {doubt.text}"
        self.open(place, name, text)

    def open(self, place: tuple[str, int, int], name: str, text: str) -> None:
        remark = Remark(*place, name, f"{text}. If it is right, add {name} to ignore_definitions")
        if remark not in self.undecided:
            self.undecided.append(remark)

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
