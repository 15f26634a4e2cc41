"""What a ref means: follows names across modules to the classes, modules and functions that they stand for."""

from __future__ import annotations

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
from contracts.source._known_calls import KnownCalls, method, spelled
from contracts.source._summary import ClassRecord, FunctionRecord, Ref, Summary

__all__ = [
    "ClassValue",
    "Constant",
    "Display",
    "External",
    "Frame",
    "FunctionValue",
    "Instance",
    "ModuleValue",
    "Resolver",
    "Unknown",
    "Value",
]

_MAX_FRAME = 12  # bound parameters that a call carries; enough for factories of factories
_NOT_SHOWN = Unknown("an item of a dict that its display does not hold")
_MAX_CALLS = 4  # of functions that call functions: each may be called in many ways, and so on
_MOST_STRINGS = 64  # that a concatenation may give
_MOST_CALLS = 300  # for one name; numerical code calls itself in more ways than can be followed
_MAX_NESTING = 25  # of sequences that are made of others
_MAX_DEPTH = 90  # of names that lead to names; only a runaway definition goes deeper


class Resolver:
    """Resolves refs, loading the summaries that it needs and no others.

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

    def bases(self, value: ClassValue) -> list[Values]:
        """The possible values of each base, in order; a starred base counts as one of unknown length."""
        result: list[Values] = []
        for base in self.record(value).bases:
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
                if self._class_attribute(value.of, "__mro_entries__"):
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
        record = self._function(function)
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

    # Refs

    def values(self, ref: Ref, module: str, frame: Frame = ()) -> Values:
        """What a ref of ``module`` may stand for."""
        # Kept with the ref, which must live as long as its id is a key.
        return self._once((id(ref), module, frame), ref, lambda: self._values(ref, module, frame))

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

    def _values(self, ref: Ref, module: str, frame: Frame) -> Values:
        match ref:
            case ["m", name]:
                return frozenset({self.module(name)})
            case ["f", source, name]:
                return self.export(source, name)
            case ["a", inner, name]:
                return _each(self.values(inner, module, frame), lambda v: self._some_attribute(v, name))
            case ["g", name]:
                return self._global(module, name)
            case ["c", key]:
                local = frame and self.record(ClassValue(module, key)).in_function
                return frozenset({ClassValue(module, key, frame if local else ())})
            case ["d", key]:
                return frozenset({FunctionValue(module, key)})
            case ["u", refs]:
                return NOTHING.union(*(self.values(item, module, frame) for item in refs))
            case ["*", star, name, otherwise]:
                return self._starred(star, name, otherwise, module, frame)
            case ["s", inner, key]:
                keys = self.values(key, module, frame) if isinstance(key, list) else key
                found = _each(self.values(inner, module, frame), lambda v: self._at(v, keys))
                return frozenset(v for v in found if not _is_not_shown(v)) or found
            case ["i", inner, position]:
                return NOTHING.union(*(_at_place(each, position) for each in self._sequences(inner, module, frame)))
            case ["k", function, arguments, keywords]:
                return self._call(function, arguments, keywords, module, frame)
            case ["w", inner]:
                return self._entered(self.values(inner, module, frame), module)
            case ["p", key, name, known]:
                return self._parameter(key, name, known, module, frame)
            case ["+", left, right]:
                return self._joined(ref, left, right, module, frame)
            case ["t" | "h" | "l" | "y", *_]:
                return self.display(ref, module, frame)
            case ["v", value]:
                return frozenset({Constant(value)})
            case ["b", name]:
                return self._unbound(module, name)
            case ["x", reason]:
                return frozenset({Unknown(reason, frozenset({module}))})
            case _:
                return NOTHING

    def _starred(self, star: str, name: str, otherwise: Ref, module: str, frame: Frame) -> Values:
        found: Values = NOTHING
        if self.star_has(star, name):
            found = self.export(star, name)
            if self.exported(star) is not None or "__all__" not in self._summary(star).exports:
                return found
        found |= self.values(otherwise, module, frame)
        return found if star.partition(".")[0] in self._tops else found | {External(f"{star}.{name}")}

    def _joined(self, ref: Ref, left: Ref, right: Ref, module: str, frame: Frame) -> Values:
        """A concatenation, of strings if both sides are strings."""
        if left[0] in {"t", "h"} or right[0] in {"t", "h"}:
            return self.display(ref, module, frame)
        texts = [self.values(side, module, frame) for side in (left, right)]
        is_text = all(side and all(isinstance(value, Constant) for value in side) for side in texts)
        if is_text and len(texts[0]) * len(texts[1]) > _MOST_STRINGS:
            return frozenset({Unknown("a computed string", frozenset({module}))})
        if is_text:
            return frozenset(
                Constant(f"{one.value}{two.value}")
                for one in texts[0]
                for two in texts[1]
                if isinstance(one, Constant) and isinstance(two, Constant)
            )
        return self.display(ref, module, frame)

    def _entered(self, values: Values, module: str) -> Values:
        """What ``with`` gives: reading does not follow ``__enter__``."""
        unknown = {value for value in values if isinstance(value, Unknown)}
        return frozenset(unknown or {Unknown("a with statement", frozenset({module}))})

    def display(self, ref: Ref, module: str, frame: Frame) -> Values:
        """A display that ``ref`` describes."""
        self._displays[id(ref)] = ref
        return frozenset({Display(id(ref), module, frame)})

    def display_ref(self, value: Display) -> Ref:
        """The ref that describes a display."""
        return self._displays[value.ref]

    def items(self, ref: Ref, module: str, frame: Frame) -> list[Values]:
        """The elements of a sequence, each with its possible values; none of one that holds itself."""
        key = (id(ref), module, frame)
        if key in self._reading:
            return []
        if len(self._reading) >= _MAX_NESTING:
            return [frozenset({Unknown("sequences made of sequences without end", frozenset({module}))})]
        self._reading.add(key)
        try:
            return self._items(ref, module, frame)
        finally:
            self._reading.discard(key)

    def _items(self, ref: Ref, module: str, frame: Frame) -> list[Values]:
        match ref:
            case ["t", elements]:
                result: list[Values] = []
                for item in elements:
                    if item[0] == "e":
                        result += self.items(item[1], module, frame)
                    else:
                        result.append(self.values(item, module, frame))
                return result
            case ["h", pairs]:
                return [frozenset({Constant(key)}) if isinstance(key, str | int) else NOTHING for key, _ in pairs]
            case ["y", item]:
                return [self.values(item, module, frame)]
            case ["l", inner, first, behind]:
                found = self.items(inner, module, frame)
                return found[first : len(found) - behind]
            case ["+", left, right]:
                return self.items(left, module, frame) + self.items(right, module, frame)
            case ["@", maker, inner]:
                made = any(self._is_metaclass(value) for value in self.values(maker, module, frame))
                return self.items(inner, module, frame) if made else []
        return [item for each in self._sequences(ref, module, frame) for item in each]

    def _sequences(self, ref: Ref, module: str, frame: Frame) -> list[list[Values]]:
        """The elements of each sequence that a ref may stand for."""
        if ref[0] in {"t", "h", "l", "y", "+"}:
            return [self.items(ref, module, frame)]
        found: list[list[Values]] = []
        for value in self.values(ref, module, frame):
            if isinstance(value, Display):
                display = self._displays[value.ref]
                if display is not ref:
                    found.append(self.items(display, value.module, value.frame))
            elif isinstance(value, Unknown):
                found.append([frozenset({value})])
            elif not isinstance(value, Constant):
                found.append([frozenset({Unknown("a sequence not written as a display", frozenset({module}))})])
        return found

    def _is_metaclass(self, value: Value) -> bool:
        if isinstance(value, External):
            return value.name.endswith(("Meta", "type"))
        return isinstance(value, ClassValue) and any(
            self._is_metaclass(option) for options in self.bases(value) for option in options if option != value
        )

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

    def attribute(self, value: Value, name: str) -> Values:
        """What ``value.name`` may be."""
        match value:
            case ModuleValue(module):
                return frozenset({Namespace(module)}) if name == "__dict__" else self.export(module, name)
            case External(outer):
                return frozenset({External(f"{outer}.{name}")})
            case ClassValue():
                return self._class_attribute(value, name)
            case Instance(of):
                if name == "__class__":
                    return frozenset({of})
                found = self._class_attribute(of, name)
                getters = [v for v in self._class_attribute(of, "__getattr__") if isinstance(v, FunctionValue)]
                if getters and all(isinstance(v, External) for v in found):
                    return NOTHING.union(*(self._got(getter, name) for getter in getters))
                return frozenset(self._bound(v, "") if isinstance(v, FunctionValue) else v for v in found)
            case Unknown(reason, _, functions) if functions:
                modules = frozenset(function.partition(":")[0] for function in functions)
                return frozenset({Unknown(f"an attribute of {reason}", modules)})
            case Unknown():
                return frozenset({value})
            case FunctionValue(module, _):
                return frozenset({Unknown(f"an attribute of a function of {module}", frozenset({module}))})
            case Display() | Constant() | Namespace():
                return method(value, name)
            case _:
                return NOTHING

    def _some_attribute(self, value: Value, name: str) -> Values:
        """What ``value.name`` may be, where code says that there is such an attribute."""
        found = self.attribute(value, name)
        of = value.of if isinstance(value, Instance) else value
        if found or not isinstance(of, ClassValue):
            return found
        what = of.key.partition("@")[0]
        return frozenset({Unknown(f"an attribute that the body of {what} does not bind", frozenset({of.module}))})

    def _class_attribute(self, value: ClassValue, name: str) -> Values:
        return self._once((value.module, value, name), None, lambda: self._found_attribute(value, name))

    def _found_attribute(self, value: ClassValue, name: str) -> Values:
        record = self.record(value)
        found = self._patched(f"{value.module}:{value.key}", name)
        if name in record.attributes:
            found |= self.values(record.attributes[name], value.module, value.frame)
        if not found:
            for options in self.bases(value):
                found |= _each(options, lambda v: self.attribute(v, name))
        return frozenset(self._bound(v, "class") if isinstance(v, FunctionValue) else v for v in found)

    def _bound(self, function: FunctionValue, kind: str) -> FunctionValue:
        """A method, bound if it is of this kind."""
        record = self._summary(function.module).functions.get(function.key)  # none: made inside a function
        return function._replace(bound=True) if record is not None and record.kind == kind else function

    def _at(self, value: Value, key: Any) -> Values:
        """What ``value[key]`` is; the key is a constant, what it may be, or None."""
        return self.subscript_any(value, key) if isinstance(key, frozenset) else self.subscript(value, key)

    def subscript_any(self, value: Value, keys: Values) -> Values:
        """What ``value[key]`` may be for any of these keys."""
        if not all(isinstance(key, Constant) for key in keys):
            return self.subscript(value, None)
        found = _each(keys, lambda key: self.subscript(value, key.value if isinstance(key, Constant) else None))
        return frozenset(value for value in found if not _is_not_shown(value))

    def subscript(self, value: Value, key: str | int | None) -> Values:
        """What ``value[key]`` is; of a class, the class."""
        if value == External("sys.modules") and isinstance(key, str):
            return frozenset({self.module(key)})
        if isinstance(value, Namespace):
            if isinstance(key, str):
                return self.export(value.module, key)
            reason = f"a computed name of {value.module}"
            return frozenset({Unknown(reason, frozenset({value.module}), anywhere=True)})
        if not isinstance(value, Display):
            return frozenset({value}) if not isinstance(value, Constant | Method | Instance) else NOTHING
        ref = self._displays[value.ref]
        if ref[0] == "h":
            chosen = [item for name, item in ref[1] if key is None or name is None or name == key]
            if key is not None and not chosen:
                return frozenset({_NOT_SHOWN._replace(modules=frozenset({value.module}))})
            return NOTHING.union(*(self.values(item, value.module, value.frame) for item in chosen))
        if ref[0] == "+" and isinstance(key, str):
            sides = [self.values(side, value.module, value.frame) for side in ref[1:]]
            return NOTHING.union(*(_each(side, lambda v: self.subscript(v, key)) for side in sides))
        return _at_place(self.items(ref, value.module, value.frame), key)

    def _parameter(self, key: str, name: str, known: Ref | None, module: str, frame: Frame) -> Values:
        for bound_module, bound_key, bound_name, values in frame:
            if (bound_module, bound_key, bound_name) == (module, key, name):
                return values
        reason = f"the parameter {name} of {key.partition('@')[0]}"
        unknown = Unknown(reason, functions=frozenset({f"{module}:{key}:{name}"}))
        return frozenset({unknown}) | (self.values(known, module, frame) if known is not None else NOTHING)

    # Calls

    def _call(
        self, function: Ref, arguments: list[Ref], keywords: dict[str, Ref], module: str, frame: Frame
    ) -> Values:
        result: set[Value] = set()
        for callee in self.values(function, module, frame):
            match callee:
                case FunctionValue():
                    result |= self._returned(callee, arguments, keywords, module, frame)
                case External(name):
                    result |= KnownCalls(self, module, frame).of_external(name, arguments, keywords)
                case Method():
                    result |= KnownCalls(self, module, frame).of_method(callee, arguments)
                case Unknown():
                    result.add(callee)
                case ClassValue():
                    result.add(Instance(callee))
        return frozenset(result)

    def _returned(
        self, function: FunctionValue, arguments: list[Ref], keywords: dict[str, Ref], module: str, frame: Frame
    ) -> Values:
        place = (function.module, function.key)
        if place in self._calling:
            return NOTHING  # what a function returns when it calls itself is what it returns otherwise
        record = self._function(function)
        self._fuel -= 1
        if not record.returns or len(self._calling) >= _MAX_CALLS or self._fuel < 0:
            return frozenset({Unknown(f"what {record.qualname} returns", frozenset({function.module}))})
        bound = self.bind(function, arguments, keywords, module, frame)
        self._calling.append(place)
        try:
            returned = [ref[2] if ref[0] == "?" else ref for ref in record.returns]
            return NOTHING.union(*(self.values(ref, function.module, bound) for ref in returned))
        finally:
            self._calling.pop()

    def _function(self, function: FunctionValue) -> FunctionRecord:
        """What was read of a function, with what it returns."""
        record = self._summary(function.module).functions.get(function.key)
        if record is None or record.returns is None:
            record = self._deep_summary(function.module).functions[function.key]
        return record

    def bind(
        self, function: FunctionValue, arguments: list[Ref], keywords: dict[str, Ref], module: str, frame: Frame
    ) -> Frame:
        """The parameters of ``function`` in a call made in ``module``, on top of the caller's ``frame``."""
        record = self._function(function)
        positional = record.parameters[int(function.bound) : record.positional]
        is_plain = all(argument[0] != "e" for argument in arguments)
        bound = [
            (function.module, function.key, name, self.values(ref, module, frame))
            for name, ref in [
                *(zip(positional, arguments, strict=False) if is_plain else ()),
                *((name, ref) for name, ref in keywords.items() if name in record.parameters),
            ]
        ]
        if record.rest and (is_plain or not positional):
            rest = self.display(["t", arguments[len(positional) :]], module, frame)
            bound.append((function.module, function.key, record.rest, rest))
        # Innermost first, so that a recursive call sees its own arguments.
        return (*bound, *frame)[:_MAX_FRAME]

    def display_items(self, value: Display) -> list[Values]:
        """What a display holds: the elements of a sequence, the values of a dict."""
        ref = self._displays[value.ref]
        if ref[0] == "h":
            return [self.values(item, value.module, value.frame) for _, item in ref[1]]
        return self.items(ref, value.module, value.frame)


def _each(values: Values, function: Callable[[Value], Values]) -> Values:
    result: set[Value] = set()
    for value in values:
        result |= function(value)
    return frozenset(result)


def _at_place(items: list[Values], place: str | int | None) -> Values:
    """The element at a place, or any where the place is not known or lies outside."""
    if isinstance(place, int) and -len(items) <= place < len(items):
        return items[place]
    return NOTHING.union(*items)


def _is_not_shown(value: Value) -> bool:
    return isinstance(value, Unknown) and value.reason == _NOT_SHOWN.reason
