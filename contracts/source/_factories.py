"""Classes that come to be in functions which are handed one of the classes that a search is about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from contracts.source._occurrences import all_of, is_dynamic
from contracts.source._resolve import ClassValue, Frame, FunctionValue
from contracts.source._sight import absolute
from contracts.source._summary import Ref

if TYPE_CHECKING:
    from contracts.source._search import Search

_DEEPEST_CALL = 5  # of functions that hand on what they are handed


class Factories:
    """The calls that a search follows.

    Args:
        search: judges the classes.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._index = search.index
        self._makers: dict[tuple[str, str], bool] = {}
        self._followed: set[tuple[str, int]] = set()

    def evaluate(self, module: str, tokens: frozenset[str]) -> None:
        """Classes that come to be in a function that is handed one of ours."""
        summary = self._index.summary(module, deep=True)
        for place in all_of(self._search.occurrences(module, deep=True).calls, tokens):
            if (module, place) not in self._followed:
                self._followed.add((module, place))
                self.follow(summary.calls[place], module, (), 0)

    def forget(self) -> None:
        """Follow every call anew: what names stand for has changed."""
        self._followed.clear()
        self._makers.clear()

    def follow(self, call: Ref, module: str, frame: Frame, depth: int) -> None:
        _, function, arguments, keywords = call
        resolver = self._index.resolver
        functions = [v for v in resolver.values(function, module, frame) if isinstance(v, FunctionValue)]
        makers = [callee for callee in functions if self._makes(callee)]
        if not makers:  # as nearly always; what is handed over costs most
            return
        handed = [value for ref in [*arguments, *keywords.values()] for value in resolver.values(ref, module, frame)]
        if not self._search.holds(handed, 0):
            return
        for callee in makers:
            inner = resolver.bind(callee, arguments, keywords, module, frame)
            self._judge_locals(callee, inner)
            for handing_on in self._handing_on(callee) if depth < _DEEPEST_CALL else ():
                self.follow(handing_on, callee.module, inner, depth + 1)

    def _handing_on(self, function: FunctionValue) -> list[Ref]:
        """The calls in a function to which it hands a parameter of its own."""
        calls = self._index.summary(function.module, deep=True).calls
        places = self._search.occurrences(function.module, deep=True).calls.get(function.key, [])
        return [calls[place] for place in places]

    def _makes(self, function: FunctionValue) -> bool:
        """Whether a class with bases told by a call may come to be in a function, or in one to which it hands on."""
        reached = {(function.module, function.key): function}
        pending = [function]
        while pending:
            callee = pending.pop()
            known = self._makers.get((callee.module, callee.key))
            if known or (known is None and self._has_dynamic_locals(callee)):
                self._makers[callee.module, callee.key] = self._makers[function.module, function.key] = True
                return True
            for call in self._handing_on(callee) if known is None else ():
                for value in self._index.resolver.values(call[1], callee.module):
                    if isinstance(value, FunctionValue) and (value.module, value.key) not in reached:
                        reached[value.module, value.key] = value
                        pending.append(value)
        # Nothing that was reached leads to a class, whatever calls what in a circle.
        self._makers |= dict.fromkeys(reached, False)
        return False

    def _has_dynamic_locals(self, function: FunctionValue) -> bool:
        """Whether what a function is handed may tell what the classes are that come to be in it."""
        classes = self._index.summary(function.module, deep=True).classes
        bases = [classes[key].bases for key in self._local_classes(function)]
        return any(is_dynamic(refs) or _holds_local(refs) for refs in bases)

    def _local_classes(self, function: FunctionValue) -> Iterator[str]:
        """The keys of the classes that come to be in a function."""
        summary = self._index.summary(function.module, deep=True)
        prefix = f"{summary.functions[function.key].qualname}.<locals>."
        for key, record in summary.classes.items():
            if record.qualname.startswith(prefix):
                yield key

    def may_create(self, module: str, callee: bytes) -> bool:
        """Whether a function, as a module writes its name, may create a class; told from the texts alone."""
        owner, _, _ = callee.partition(b".")
        name = callee.rpartition(b".")[2]
        text = self._index.survey.text(module)
        if b"def " + name in text.source and text.creates_locally:
            return True
        if not owner or (owner == name and b"def " + name in text.source):
            return False  # a method of some object, or a function that creates none
        if callee == b"?":
            return text.creates_locally or bool(text.imports)
        package = module if self._index.tree.files[module].is_package else module.rpartition(".")[0]
        for written in text.imported_from(owner):
            source = absolute(written, package)
            for candidate in (source, f"{source}.{owner.decode('utf-8', 'replace')}"):
                if candidate in self._index.tree.files:
                    there = self._index.survey.text(candidate)
                    if there.creates_locally or b"def " + name not in there.source:
                        return True
        return False

    def _judge_locals(self, function: FunctionValue, frame: Frame) -> None:
        for key in self._local_classes(function):
            self._search.judge(ClassValue(function.module, key, frame))


def _holds_local(ref: Ref | list[Ref]) -> bool:
    """Whether a ref, or one of several, holds a class that comes to be in a function, and what may depend on it."""
    if not isinstance(ref, list):
        return False
    return (ref[:1] == ["c"] and "<locals>" in ref[1]) or any(_holds_local(item) for item in ref)
