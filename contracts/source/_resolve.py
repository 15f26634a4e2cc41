"""What a ref means: follows names across modules to the classes, modules and functions that they stand for."""

from __future__ import annotations

from collections.abc import Callable
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
from contracts.source._known_calls import KnownCalls, method
from contracts.source._namespaces import Namespaces
from contracts.source._summary import FunctionRecord, Ref

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
_MAX_NESTING = 25  # of sequences that are made of others


class Resolver(Namespaces):
    """Resolves refs, loading the summaries that it needs and no others."""

    # Refs

    def values(self, ref: Ref, module: str, frame: Frame = ()) -> Values:
        """What a ref of ``module`` may stand for."""
        # Kept with the ref, which must live as long as its id is a key.
        return self._once((id(ref), module, frame), ref, lambda: self._values(ref, module, frame))

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

    def attribute(self, value: Value, name: str) -> Values:
        """What ``value.name`` may be."""
        match value:
            case ModuleValue(module):
                return frozenset({Namespace(module)}) if name == "__dict__" else self.export(module, name)
            case External(outer):
                return frozenset({External(f"{outer}.{name}")})
            case ClassValue():
                return self.class_attribute(value, name)
            case Instance(of):
                if name == "__class__":
                    return frozenset({of})
                found = self.class_attribute(of, name)
                getters = [v for v in self.class_attribute(of, "__getattr__") if isinstance(v, FunctionValue)]
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

    def class_attribute(self, value: ClassValue, name: str) -> Values:
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
        record = self.function(function)
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

    def function(self, function: FunctionValue) -> FunctionRecord:
        """What was read of a function, with what it returns."""
        record = self._summary(function.module).functions.get(function.key)
        if record is None or record.returns is None:
            record = self._deep_summary(function.module).functions[function.key]
        return record

    def bind(
        self, function: FunctionValue, arguments: list[Ref], keywords: dict[str, Ref], module: str, frame: Frame
    ) -> Frame:
        """The parameters of ``function`` in a call made in ``module``, on top of the caller's ``frame``."""
        record = self.function(function)
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
