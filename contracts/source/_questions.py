"""What the questions about methods share: the classes to look at, and the names that a contract is about."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.source._answer import Answer, ClassDefinition, Problem
from contracts.source._bases import resolve_bases
from contracts.source._errors import UnknownNameError
from contracts.source._methods import Definition, Methods
from contracts.source._resolve import ClassValue
from contracts.source._syntax import Syntax

# What takes other arguments in each class: it is called by the name of the class.
_MAKERS = frozenset({"__init__", "__init_subclass__", "__new__", "__post_init__"})


@dataclass(slots=True)
class Remark:
    """Something about a method: where, the dotted name of what it is about, and what."""

    path: str
    line: int
    column: int
    name: str
    message: str

    def to_plain(self) -> list[Any]:
        """Plain data, for the cache."""
        return [self.path, self.line, self.column, self.name, self.message]


@dataclass(slots=True)
class Family:
    """The classes of a contract: the bases that it names, and their subclasses.

    ``definitions`` are the subclasses as the index reports them, by value.
    """

    bases: list[ClassValue]
    definitions: dict[ClassValue, ClassDefinition]
    methods: Methods
    interfaces: dict[ClassValue, list[ClassValue]] = field(default_factory=dict)

    def promised(self, value: ClassValue) -> list[ClassValue]:
        """The ancestors of a class whose methods it must honour, nearest first."""
        if value not in self.interfaces:
            order = self.methods.order(value)
            above = {ancestor for base in self.bases for ancestor in self.methods.order(base)}
            found = [
                ancestor
                for ancestor in order[1:]
                if ancestor is not None and (ancestor in self.definitions or ancestor in above)
            ]
            if value in self.definitions and not any(base in found for base in self.bases):
                # Bases bound to a parameter: the chain of names still says which base it is.
                names = set(self.definitions[value].chain)
                found += [base for base in self.bases if dotted(base) in names]
            self.interfaces[value] = found
        return self.interfaces[value]

    def names(self, patterns: Sequence[str], option: str = "methods", *, private: bool = False) -> set[str]:
        """The methods and properties, of the bases and of the classes between, that patterns match.

        Where there is no pattern, the public ones; with ``private``, all but those that make instances. What begins
        with two underscores and ends in fewer is a class's own, and none of them.

        Raises:
            UnknownNameError: a pattern matches nothing.
        """
        above = {*self.bases, *(a for value in self.definitions for a in self.promised(value))}
        methods = {
            name
            for owner in {*above, *self.definitions}
            for name, items in self.methods.defined(owner).items()
            if any(item.kind != "attribute" for item in items) and not _is_mangled(name)
        }
        defined = {name for owner in above for name in self.methods.defined(owner) if name in methods}
        if not patterns:
            wanted = {name for name in defined if (private and name not in _MAKERS) or not name.startswith("_")}
            if not wanted:
                listed = ", ".join(sorted(dotted(base) for base in self.bases))
                kind = "method" if private else "public method"
                raise UnknownNameError(f"Nothing to check: {listed} defines no {kind} or property.")
            return wanted
        found: set[str] = set()
        for pattern in patterns:
            matches = {name for name in defined if matches_name(name, pattern)}
            if not matches:
                listed = ", ".join(sorted(dotted(base) for base in self.bases))
                raise UnknownNameError(
                    f"{option}: no method of {listed} matches '{pattern}'.{closest(pattern, defined)}"
                )
            found |= matches
        return found


def family(syntax: Syntax, methods: Methods, bases: Sequence[str], answer: Answer) -> Family:
    """The classes of a contract.

    Args:
        syntax: the trees.
        methods: the definitions.
        bases: dotted names of the base classes.
        answer: their subclasses.
    """
    definitions = {
        ClassValue(item.module, f"{item.name}@{item.line}:{item.column}"): item for item in answer.found
    }
    targets = resolve_bases(syntax.index, bases)
    for value in targets:  # one may be a subclass of another
        chain = syntax.index.hierarchy.chain(value, frozenset(targets), {})
        if chain is not None:
            definitions[value] = syntax.index.define(value, chain)
    return Family(targets, definitions, methods)


def _is_mangled(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")


def matches_name(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name; a private one only if the pattern says so from the start."""
    if name.startswith("_") and not pattern.startswith("_"):
        return False
    return fnmatch.fnmatchcase(name, pattern)


def closest(wanted: str, names: Iterable[str]) -> str:
    """A sentence with the closest name, or nothing."""
    close = difflib.get_close_matches(wanted, sorted(names), n=1)
    return f" Closest name: '{close[0]}'." if close else ""


def dotted(value: ClassValue) -> str:
    """A class's dotted name."""
    return f"{value.module}.{value.key.partition('@')[0]}"


def short(value: ClassValue) -> str:
    """A class's name without its module."""
    return value.key.partition("@")[0]


def label(definition: Definition, syntax: Syntax) -> str:
    """``Class.method (path:line)``."""
    owner = definition.owner
    return f"{short(owner)}.{definition.name} ({syntax.path(owner.module)}:{definition.line})"


def plain(
    findings: Iterable[Remark], undecided: Iterable[Remark], problems: Collection[Problem]
) -> dict[str, Any]:
    """An answer as plain data, for the cache."""
    return {
        "findings": sorted(remark.to_plain() for remark in findings),
        "undecided": sorted(remark.to_plain() for remark in undecided),
        "problems": [f"{problem.path}:{problem.line} {problem.reason}" for problem in sorted(problems)],
    }
