"""Namespaces: what the names of modules and the bases of classes stand for, through imports, stars and functions."""

from __future__ import annotations

import abc
import builtins
import sys
from collections.abc import Callable, Iterable
from typing import Any

from contracts.source._kinds import (
    NOTHING,
    ClassValue,
    Constant,
    Display,
    External,
    Frame,
    FunctionValue,
    Instance,
    Method,
    ModuleValue,
    Namespace,
    Unknown,
    Value,
    Values,
)
from contracts.source._known_calls import spelled
from contracts.source._summary import ClassRecord, FunctionRecord, Ref, Summary

_MAX_DEPTH = 90  # of names that lead to names; only a runaway definition goes deeper
_MOST_CALLS = 300  # for one name; numerical code calls itself in more ways than can be followed


class Namespaces(abc.ABC):
    """The names of modules and the bases of classes.

    Args:
        summary: gives a module's summary.
        deep_summary: gives it with every function looked into.
        modules: the names of all modules of the root packages.
        packages: those among them that are packages.
        holds: whether a module's text holds a name.
    """

    def __init__(
        self,
        summary: Callable[[str], Summary],
        deep_summary: Callable[[str], Summary],
        modules: Iterable[str],
        packages: Iterable[str],
        holds: Callable[[str, str], bool],
    ) -> None:
        self._summary = summary
        self._deep_summary = deep_summary
        self._modules = frozenset(modules)
        self._packages = frozenset(packages)
        self._holds = holds
        self._tops = {module.partition(".")[0] for module in self._modules}
        self._prefixes = {
            ".".join(parts[:n])
            for parts in (module.split(".") for module in self._modules)
            for n in range(1, len(parts))
        }
        self._known: dict[Any, tuple[Any, Values]] = {}
        self._open: dict[Any, int] = {}
        self._lowest = sys.maxsize
        self._displays: dict[int, Ref] = {}
        self._calling: list[tuple[str, str]] = []
        self._fuel = 0
        self._reading: set[tuple[int, str, Frame]] = set()
        self._exported: dict[str, frozenset[str] | None] = {}
        self._patches: dict[tuple[str, str], set[Value]] = {}

    # Modules

    def package(self, module: str) -> str:
        """The package that the relative imports of a module start from."""
        return module if module in self._packages else module.rpartition(".")[0]

    def module(self, name: str) -> ModuleValue | External:
        """The module of that name."""
        return ModuleValue(name) if self._is_inside(name) else External(name)

    def _is_inside(self, module: str) -> bool:
        return module in self._modules or module in self._prefixes

    def record(self, value: ClassValue) -> ClassRecord:
        """What was read of a class."""
        known = self._summary(value.module).classes.get(value.key)
        # A call in a function that was not looked into at first may make one, too.
        return known if known is not None else self._deep_summary(value.module).classes[value.key]

    def bases(self, value: ClassValue, which: Callable[[Ref], bool] | None = None) -> list[Values]:
        """The possible values of each base, in order; a starred base counts as one of unknown length.

        Args:
            value: a class.
            which: tells the bases that are of interest, all by default.
        """
        result: list[Values] = []
        for base in self.record(value).bases:
            if which is not None and not which(base):
                continue
            if base[0] == "e":
                result += [self._as_base(item) for item in self.items(base[1], value.module, value.frame)]
            else:
                result.append(self._as_base(self.values(base, value.module, value.frame)))
        for assigned in self._patched(f"{value.module}:{value.key}", "__bases__"):
            if isinstance(assigned, Display):
                result += [self._as_base(item) for item in self.display_items(assigned)]
        return result

    def _as_base(self, values: Values) -> Values:
        """What may be a base; an instance may be one by the ``__mro_entries__`` of its class."""
        found: set[Value] = set()
        for value in values:
            if isinstance(value, Instance):
                if self.class_attribute(value.of, "__mro_entries__"):
                    found.add(Unknown("an object with __mro_entries__", frozenset({value.of.module})))
            elif not isinstance(value, Display | Constant | Namespace | Method):
                found.add(value)
        return frozenset(found)

    def patch(self, owner: Value, name: str, values: Values) -> bool:
        """Note that some module binds ``owner.name``; whether that was news."""
        if isinstance(owner, ModuleValue):
            key = (owner.name, name)
        elif isinstance(owner, ClassValue):
            key = (f"{owner.module}:{owner.key}", name)
        else:
            return False
        known = self._patches.setdefault(key, set())
        if values <= known:
            return False
        known |= values
        self._known.clear()
        return True

    def export(self, module: str, name: str) -> Values:
        """What ``module.name`` may be once the module has run."""
        return self._once((module, name), None, lambda: self._patched(module, name) | self._export(module, name))

    def _patched(self, owner: str, name: str) -> Values:
        return frozenset(self._patches.get((owner, name), ()))

    def _export(self, module: str, name: str) -> Values:
        full = f"{module}.{name}"
        if module not in self._modules:
            if self._is_inside(full):
                return frozenset({ModuleValue(full)})
            return NOTHING if module in self._prefixes else frozenset({External(full)})
        summary = self._summary(module)
        ref = summary.exports.get(name)
        if ref is not None:
            values = self.values(ref, module)
            if values or full not in self._modules:
                return values  # or else a package that imports a submodule of itself
        starred: Values = NOTHING
        for star in reversed(summary.stars):
            if self.star_has(star, name):
                starred |= self.export(star, name)
                if self.exported(star) is not None or "__all__" not in self._summary(star).exports:
                    return starred
        if self._is_inside(full):
            return starred | {ModuleValue(full)}
        if starred:
            return starred
        if summary.replacement is not None or "__getattr__" in summary.exports:
            return self._lazy(module, name, summary)
        if any(star.partition(".")[0] not in self._tops for star in summary.stars):
            return frozenset({External(f"*.{name}")})
        return self._injected(module, summary)

    def _injected(self, module: str, summary: Summary) -> Values:
        """What a name may be that no statement of a module binds."""
        if not summary.injects:
            return NOTHING
        reason = f"a name that {module} binds by exec or globals()"
        return frozenset({Unknown(reason, frozenset({module}), anywhere=True)})

    def _lazy(self, module: str, name: str, summary: Summary) -> Values:
        """A name that a module gives by a function: its own ``__getattr__``, or that of what replaces it."""
        hint = summary.typing_only.get(name)
        if hint is not None:
            return self.values(hint, module)
        getter = summary.replacement if summary.replacement is not None else summary.exports["__getattr__"]
        found: set[Value] = set()
        for value in self.values(getter, module):
            if isinstance(value, FunctionValue):
                found |= self._got(value, name)
            elif isinstance(value, Instance):
                found |= self.attribute(value, name)
        told: set[Value] = {value for value in found if not isinstance(value, Unknown | External)}
        is_spelled = any(name in string for string in summary.strings or ())
        if not told and is_spelled:
            told = self._spelled_out(module, name, summary)
        if told or found or not is_spelled:
            return frozenset(told or found)
        return frozenset({Unknown(f"the module __getattr__ of {module}", frozenset({module}), anywhere=True)})

    def _got(self, function: FunctionValue, name: str) -> Values:
        """What a ``__getattr__`` gives for a name."""
        record = self.function(function)
        if not record.parameters:
            return NOTHING
        frame: Frame = (
            (function.module, function.key, record.parameters[-1], frozenset({Constant(name)})),
        )
        found: set[Value] = set()
        for returned in record.returns or ():
            if returned[0] != "?":
                found |= self.values(returned, function.module, frame)
            elif self._may_contain(self.items(returned[1], function.module, frame), name):
                found |= self.values(returned[2], function.module, frame)
        return frozenset(found)

    def _may_contain(self, items: list[Values], name: str) -> bool:
        """Whether a name is among the items, or may be."""
        values = [value for options in items for value in options]
        return Constant(name) in values or not all(isinstance(value, Constant) for value in values)

    def _spelled_out(self, module: str, name: str, summary: Summary) -> set[Value]:
        """The name, in whatever modules the strings of a module spell."""
        found: set[Value] = set()
        for string in summary.strings or ():
            target = string.partition(":")[0]
            for candidate in spelled(target, self.package(module)):
                stem, _, last = candidate.rpartition(".")
                if candidate in self._modules and candidate != module:
                    if self._holds(candidate, name) and name in self._summary(candidate).exports:
                        found |= self.export(candidate, name)
                elif last == name and stem in self._modules and stem != module:
                    found |= self.export(stem, name)
        return found

    def exported(self, module: str) -> frozenset[str] | None:
        """The names in a module's ``__all__``; None where it has none, or one that reading cannot tell."""
        if module not in self._exported:
            self._exported[module] = frozenset()  # one that names itself has nothing of its own
            ref = self._summary(module).exports.get("__all__")
            items = self.items(ref, module, ()) if ref is not None else []
            values = [value for options in items for value in options]
            names = frozenset(str(value.value) for value in values if isinstance(value, Constant))
            is_told = ref is not None and ref[0] != "y" and all(isinstance(value, Constant) for value in values)
            self._exported[module] = names if is_told else None
        return self._exported[module]

    def star_has(self, module: str, name: str) -> bool:
        """Whether ``from module import *`` brings ``name``, or may bring it."""
        return self._star_has(module, name, frozenset())

    def _star_has(self, module: str, name: str, seen: frozenset[str]) -> bool:
        if module not in self._modules or module in seen or name == "__all__":
            return False
        names = self.exported(module)
        if names is not None:
            return name in names
        summary = self._summary(module)
        if "__all__" not in summary.exports and name.startswith("_"):
            return False
        return name in summary.exports or any(self._star_has(star, name, seen | {module}) for star in summary.stars)

    # What refs stand for

    @abc.abstractmethod
    def values(self, ref: Ref, module: str, frame: Frame = ()) -> Values:
        """What a ref of ``module`` may stand for."""

    @abc.abstractmethod
    def items(self, ref: Ref, module: str, frame: Frame) -> list[Values]:
        """The elements of a sequence, each with its possible values."""

    @abc.abstractmethod
    def display_items(self, value: Display) -> list[Values]:
        """What a display holds."""

    @abc.abstractmethod
    def attribute(self, value: Value, name: str) -> Values:
        """What ``value.name`` may be."""

    @abc.abstractmethod
    def class_attribute(self, value: ClassValue, name: str) -> Values:
        """What a class, or one above it, binds to a name."""

    @abc.abstractmethod
    def function(self, function: FunctionValue) -> FunctionRecord:
        """What was read of a function, with what it returns."""

    def _global(self, module: str, name: str) -> Values:
        summary = self._summary(module)
        if name in summary.exports or any(self.star_has(star, name) for star in summary.stars):
            return self.export(module, name)
        return self._unbound(module, name)

    def _unbound(self, module: str, name: str) -> Values:
        """What a name is that its module never binds."""
        submodule = f"{module}.{name}"
        is_builtin = hasattr(builtins, name)
        if submodule in self._modules and not is_builtin:
            return frozenset({ModuleValue(submodule)})  # importing a submodule binds its name in the package
        patched = self._patched(module, name)
        injected = patched if is_builtin or patched else self._injected(module, self._summary(module))
        return injected or frozenset({External(f"builtins.{name}")})

    def _once(self, key: Any, keep: Any, compute: Callable[[], Values]) -> Values:
        """What ``compute`` gives, computed once; nothing where it is asked for while it is being computed.

        What was found inside such a circle holds for its caller alone, and is not kept.
        """
        known = self._known.get(key)
        if known is not None:
            return known[1]
        depth = self._open.get(key)
        if depth is not None:
            self._lowest = min(self._lowest, depth)
            return NOTHING  # what only names itself is nothing
        depth = len(self._open)
        if not depth:
            self._fuel = _MOST_CALLS
        if depth > _MAX_DEPTH:
            module = key[0] if isinstance(key[0], str) else key[1]
            return frozenset({Unknown("names that lead to names without end", frozenset({module}))})
        outer, self._lowest = self._lowest, sys.maxsize
        self._open[key] = depth
        try:
            result = compute()
        finally:
            del self._open[key]
        if self._lowest >= depth:
            self._known[key] = (keep, result)
        self._lowest = min(outer, self._lowest if self._lowest < depth else sys.maxsize)
        return result
