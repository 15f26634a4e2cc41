"""The question which methods write into the tensors that they are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from contracts.source._answer import Answer
from contracts.source._dataflow.flow import Flow, TooMuchError
from contracts.source._dataflow.memory import Write
from contracts.source._dataflow.values import Input, Item, Routine, Step, value
from contracts.source._dataflow.world import World
from contracts.source._errors import UnknownNameError
from contracts.source._methods import Definition, Methods
from contracts.source._names import Names
from contracts.source._questions import Remark, closest, dotted, family, plain, short
from contracts.source._resolve import ClassValue
from contracts.source._syntax import Syntax
from contracts.source._types import Type

if TYPE_CHECKING:
    from contracts.source._index import Index


def mutations(
    index: Index, answer: Answer, bases: Sequence[str], methods: Sequence[str], writable: Sequence[str]
) -> dict[str, Any]:
    """Follow every listed method of the subclasses, and of the bases, to what it writes into.

    A method that another one calls, and that is listed itself, is taken at its word: what it writes against
    the contract is reported where it is defined.

    Args:
        index: whose tree is read.
        answer: the subclasses of the bases.
        bases: dotted names of the base classes.
        methods: names or patterns of methods; all public ones if there are none.
        writable: ``method.parameter``, each for a parameter that the method is meant to write into.

    Returns:
        ``findings``, ``undecided`` and ``problems``, in plain data.

    Raises:
        UnknownNameError: a base does not exist, a pattern matches no method, or an entry of ``writable`` no
            parameter.
    """
    return _Question(Syntax(index), bases, answer).ask(methods, writable)


class _Question:
    def __init__(self, syntax: Syntax, bases: Sequence[str], answer: Answer) -> None:
        names = Names(syntax)
        self.syntax = syntax
        self.methods = Methods(syntax, names)
        self.world = World(syntax, names, self.methods)
        self.family = family(syntax, self.methods, bases, answer)
        self.wanted: set[str] = set()
        self.writable: set[str] = set()
        self.findings: list[Remark] = []
        self.undecided: list[Remark] = []
        self.reported: set[tuple[object, ...]] = set()
        self.consulted: dict[int, set[str]] = {}

    def ask(self, patterns: Sequence[str], writable: Sequence[str]) -> dict[str, Any]:
        self.wanted = self.family.names(patterns)
        self.writable = set(writable)
        self.check_writable(writable)
        subjects = list(dict.fromkeys([*self.family.bases, *self.family.definitions]))
        for value_ in subjects:
            for name in sorted(self.wanted):
                for definition in self.methods.defined(value_).get(name, ()):
                    self.look_at(value_, definition)
        for value_ in subjects:
            for name in sorted(self.wanted):
                self.look_at_inherited(value_, name)
        return plain(_numbered(self.findings), self.undecided, self.syntax.problems)

    def check_writable(self, writable: Sequence[str]) -> None:
        known = {
            f"{name}.{parameter.name}"
            for owner in (*self.family.bases, *self.family.definitions)
            for name in self.wanted
            for definition in self.methods.defined(owner).get(name, ())
            for parameter in definition.parameters
        }
        for entry in writable:
            if entry not in known:
                raise UnknownNameError(
                    f"writable: '{entry}' names no parameter of a method that is checked.{closest(entry, known)}"
                )

    def look_at_inherited(self, value_: ClassValue, name: str) -> None:
        """Look again at a method that a class inherits, if what it calls is the class's own."""
        found = self.methods.lookup(value_, name)
        if found is None or found[0] == value_:
            return
        owner, definitions = found
        for definition in definitions:
            called = self.consulted.get(id(definition))
            if called is None:
                self.look_at(owner, definition)
                called = self.consulted.get(id(definition), set())
            if any(self.world.method(owner, other) != self.world.method(value_, other) for other in called):
                self.look_at(value_, definition)

    def look_at(self, of: ClassValue, definition: Definition) -> None:
        node = definition.node
        if node is None:
            return
        routine = Routine(definition.module, node, None, definition.owner)
        parameters = self.methods.parameters(node, definition.module)
        own = {parameter.name for parameter in definition.parameters}
        receivers = [parameter.name for parameter in parameters if parameter.name not in own]
        types = {p.name: self.type_of(definition, p.name) for p in definition.parameters}
        if receivers:
            types[receivers[0]] = self.world.class_type(of)
        untracked = {*receivers, *(p.name for p in definition.parameters if self.may_write(definition, p.name))}
        flow = Flow(self.world, types, of, frozenset(untracked), self.promised)
        receiver = Input(receivers[0]) if receivers else None
        given = {parameter.name: value(Input(parameter.name)) for parameter in parameters}
        try:
            flow.follow(routine, given, receiver)
        except TooMuchError:
            self.doubt(of, definition, "it has too many steps to follow")
        except RecursionError:
            self.doubt(of, definition, "an expression in it, or in what it calls, is nested too deeply")
        if flow.too_deep:
            self.doubt(of, definition, f"calls go too deep at {flow.too_deep}")
        self.consulted[id(definition)] = flow.consulted
        for write in flow.writes.values():
            self.report(of, definition, write)

    def type_of(self, definition: Definition, name: str) -> Type:
        """The type of a parameter: as it is annotated, or else as the base annotates it."""
        for candidate in (definition, *self.overridden(definition)):
            for parameter in candidate.parameters:
                if parameter.name == name and parameter.annotation is not None:
                    return self.world.type_of(parameter.annotation, candidate.module, candidate.owner)
        own = next(p for p in definition.parameters if p.name == name)
        return self.world.type_of_default(own.default)

    def overridden(self, definition: Definition) -> Iterator[Definition]:
        for ancestor in self.family.promised(definition.owner):
            yield from self.methods.defined(ancestor).get(definition.name, ())

    def may_write(self, definition: Definition, parameter: str) -> bool:
        return f"{definition.name}.{parameter}" in self.writable

    def promised(self, routine: Routine, receiver: Item | None) -> frozenset[str] | None:
        """The parameters that a method may write into, if the contract holds it to that; else None."""
        name = getattr(routine.node, "name", "")
        if receiver is None or name not in self.wanted or routine.owner is None:
            return None
        if routine.owner not in self.family.definitions and routine.owner not in self.family.bases:
            return None
        return frozenset(entry.partition(".")[2] for entry in self.writable if entry.partition(".")[0] == name)

    def report(self, of: ClassValue, definition: Definition, write: Write) -> None:
        parameter = write.written.parameter
        key = (id(definition), parameter, write.module, write.line, write.offset)
        if key in self.reported:
            return
        self.reported.add(key)
        path = self.syntax.path(write.module)
        column = self.syntax.column(write.module, write.line, write.offset)
        inherited = "" if of == definition.owner else f" (inherited from {short(definition.owner)})"
        steps = [self.step(step, path) for step in write.trail]
        through = f", through {', then '.join(steps)}" if steps else ""
        what = "changes" if not write.written.path else f"changes {write.written} of"
        message = (
            f"{short(of)}.{definition.name}{inherited} {what} its parameter '{parameter}' in place: "
            f"{write.text} writes into it{through}. Write into a copy, or list {definition.name}.{parameter} as "
            "writable"
        )
        name = f"{dotted(of)}.{definition.name}.{parameter}"
        self.findings.append(Remark(path, write.line, column, name, message))

    def step(self, step: Step, path: str) -> str:
        other = self.syntax.path(step.module)
        place = f"line {step.line}" if other == path else f"{other}:{step.line}"
        return f"{step.text} ({place}{', unless it copies' if step.copies else ''})"

    def doubt(self, of: ClassValue, definition: Definition, reason: str) -> None:
        path = self.syntax.path(definition.owner.module)
        name = f"{dotted(definition.owner)}.{definition.name}"
        what = f"{short(of)}.{definition.name} may change its parameters in place: {reason}"
        self.undecided.append(Remark(path, definition.line, definition.column, name, what))


def _numbered(findings: Sequence[Remark]) -> list[Remark]:
    """The findings, with a number in the names of those that are not the first of their name: each can be ignored."""
    seen: Counter[str] = Counter()
    ordered = sorted(findings, key=lambda remark: (remark.name, remark.path, remark.line, remark.column))
    for remark in ordered:
        seen[remark.name] += 1
        if seen[remark.name] > 1:
            remark.name += f"[{seen[remark.name]}]"
    return ordered
