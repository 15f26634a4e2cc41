"""Classes of which reading cannot tell whether they are subclasses, and whether that matters.

A base that comes from a parameter matters only if some call may hand over one of the classes asked about; one
that some module makes otherwise, only if those classes can get there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from contracts.source._answer import UndecidedClass
from contracts.source._kinds import ClassValue, Display, FunctionValue, Instance, Unknown, Value
from contracts.source._summary import Ref

if TYPE_CHECKING:
    from contracts.source._search import Search


class Doubts:
    """The undecided classes of a search.

    Args:
        search: knows the classes that are found, and where their names are.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._index = search.index
        self._unresolved: dict[ClassValue, set[Unknown]] = {}
        self._handed: dict[str, bool] = {}

    def add(self, value: ClassValue, unknowns: set[Unknown]) -> None:
        """Note a class, and what is not known of its bases."""
        self._unresolved[value] = unknowns

    def __contains__(self, value: object) -> bool:
        return value in self._unresolved

    def that_matter(self) -> Iterator[tuple[ClassValue, str]]:
        """The classes that may be subclasses, each with the reason why it is not known."""
        self._handed.clear()
        for value, unknowns in [*self._unresolved.items()]:
            if self._search.is_found(value):
                continue
            for unknown in sorted(unknowns, key=lambda u: u.reason):
                if self._matters(value.module, unknown):
                    yield value, unknown.reason
                    break

    def reported(self) -> list[UndecidedClass]:
        """The classes that may be subclasses, as they are reported; once each."""
        reported: dict[tuple[str, str], UndecidedClass] = {}
        for value, reason in self.that_matter():
            plain = self._index.define(value)
            reported.setdefault(
                (value.module, value.key),
                UndecidedClass(plain.path, plain.line, plain.column, plain.module, plain.name, reason),
            )
        return sorted(reported.values())

    def _matters(self, module: str, unknown: Unknown) -> bool:
        """Whether one of our classes can reach what is unknown about a base of a class in ``module``."""
        if unknown.functions:
            return any(self._may_be_handed(parameter) for parameter in unknown.functions)
        if unknown.classes:
            return any(self._search.is_ours(value) for value in unknown.classes)
        if unknown.anywhere:
            return not (unknown.modules or {module}).isdisjoint(self._search.reaching)
        return not (unknown.modules | {module}).isdisjoint(self._search.carriers)

    # Parameters

    def _may_be_handed(self, parameter: str) -> bool:
        """Whether a call may hand over one of our classes, or what may be one; "module:function:name"."""
        if parameter not in self._handed:
            self._handed[parameter] = False  # a function that calls itself hands over what it was handed
            self._handed[parameter] = any(self._looks_handed(parameter, caller) for caller in self._callers(parameter))
        return self._handed[parameter]

    def _names(self, module: str, key: str) -> set[bytes]:
        """The names by which a function, or the one around it, can be called from elsewhere."""
        outermost = key.partition("@")[0].partition(".<locals>")[0].rpartition(".")[2]
        exports = self._index.summary(module).exports
        return {outermost.encode()} | {name.encode() for name, ref in exports.items() if ref == ["d", key]}

    def _callers(self, parameter: str) -> Iterable[str]:
        """The modules that may call the function with one of our classes: those that can name one, and its own."""
        module, _, rest = parameter.partition(":")
        names = self._names(module, rest.rpartition(":")[0])
        own = self._index.survey.text(module)
        # A lambda and a special method are called without their names; any other is named where it is called, too.
        if any(name.startswith((b"<", b"__")) or len([*own.occurrences(name)]) > 1 for name in names):
            yield module
        for other in self._search.carriers:
            if other != module and any(self._index.survey.names(other, name) for name in names):
                yield other

    def _looks_handed(self, parameter: str, caller: str) -> bool:
        module, _, rest = parameter.partition(":")
        key, _, name = rest.rpartition(":")
        resolver = self._index.resolver
        summary = self._index.summary(caller, deep=True)
        last = key.partition("@")[0].rpartition(".")[2]
        for _, function, arguments, keywords in summary.calls:
            if not self._worth_a_look(function, last, module, caller):
                continue
            for callee in resolver.values(function, caller):
                if isinstance(callee, FunctionValue) and (callee.module, callee.key) == (module, key):
                    frame = resolver.bind(callee, arguments, keywords, caller, ())
                    given = [values for *place, values in frame if place == [module, key, name]]
                    if any(self._may_hold(value, caller) for values in given for value in values):
                        return True
        return False

    def _worth_a_look(self, function: Ref, name: str, module: str, caller: str) -> bool:
        """Whether a call may be of the function: called through a value, or by a name that may be its own."""
        if function[0] == "a":
            return bool(function[2] == name)
        if function[0] == "f":
            return module.startswith(str(function[1])) or function[2] == name or not name.isidentifier()
        if function[0] == "g" and (bound := self._index.summary(caller, deep=True).exports.get(function[1])):
            return bound[0] == "g" or self._worth_a_look(bound, name, module, caller)
        if function[0] == "d":
            return caller == module
        return function[0] not in {"b", "v", "o", "c"}

    def _may_hold(self, value: Value, module: str, depth: int = 0) -> bool:
        match value:
            case ClassValue():
                return self._search.is_ours(value) or value in self
            case Instance(of):
                return self._search.is_ours(of)
            case Unknown(modules=modules, anywhere=True) if not modules:
                return module in self._search.carriers  # what is loaded by its name might be anything at all
            case Unknown():
                return self._matters(module, value)
            case Display() if depth < 5:
                items = self._index.resolver.display_items(value)
                return any(self._may_hold(item, module, depth + 1) for values in items for item in values)
            case _:
                return False
