"""What a ref means: follows names across modules to the classes, modules and functions that they stand for."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from typing import NamedTuple

from contracts.source._summary import ClassRecord, Ref, Summary

_MAX_FRAME = 12  # bound parameters that a call carries; enough for factories of factories
_MAX_DEPTH = 60  # of names that lead to names; only a runaway definition goes deeper


class Unknown(NamedTuple):
    """A value that reading cannot tell.

    ``modules`` and ``functions`` ("module:function") are where it comes from: only what they can name can
    reach it. ``anywhere`` says that not even that much is known.
    """

    reason: str
    modules: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    anywhere: bool = False


class ClassValue(NamedTuple):
    """A class of ``module``; ``frame`` binds the parameters of the call that made it."""

    module: str
    key: str
    frame: Frame = ()


class ModuleValue(NamedTuple):
    """A module inside the root packages."""

    name: str


class FunctionValue(NamedTuple):
    """A function of ``module``."""

    module: str
    key: str


class External(NamedTuple):
    """Something from outside the root packages."""

    name: str


class Display(NamedTuple):
    """A tuple, list or dict display, still to be read in its module."""

    ref: int
    module: str
    frame: Frame


class Constant(NamedTuple):
    """A string or int."""

    value: str | int


Value = Unknown | ClassValue | ModuleValue | FunctionValue | External | Display | Constant
Frame = tuple[tuple[str, str, str, frozenset[Value]], ...]
_Values = frozenset[Value]
_NOTHING: _Values = frozenset()


class Resolver:
    """Resolves refs, loading the summaries that it needs and no others.

    Args:
        summary: gives a module's summary.
        deep_summary: gives it with every function looked into.
        modules: the names of all modules of the root packages.
        packages: those among them that are packages.
    """

    def __init__(
        self,
        summary: Callable[[str], Summary],
        deep_summary: Callable[[str], Summary],
        modules: Iterable[str],
        packages: Iterable[str],
    ) -> None:
        self._summary = summary
        self._deep_summary = deep_summary
        self._modules = frozenset(modules)
        self._packages = frozenset(packages)
        self._tops = {module.partition(".")[0] for module in self._modules}
        self._prefixes = {
            ".".join(parts[:n]) for module in self._modules if (parts := module.split(".")) for n in range(1, len(parts))
        }
        self._attributes: dict[tuple[str, str], _Values] = {}
        self._known: dict[tuple[int, str, Frame], tuple[Ref, _Values]] = {}
        self._displays: dict[int, Ref] = {}
        self._depth = 0

    def record(self, value: ClassValue) -> ClassRecord:
        """What was read of a class."""
        return self._summary(value.module).classes[value.key]

    def bases(self, value: ClassValue) -> list[_Values]:
        """The possible values of each base, in order; a starred base counts as one of unknown length."""
        result: list[_Values] = []
        for base in self.record(value).bases:
            if base[0] == "e":
                items = self.items(base[1], value.module, value.frame)
                result += [self._drop_displays(item) for item in items]
            else:
                result.append(self._drop_displays(self.values(base, value.module, value.frame)))
        return result

    def export(self, module: str, name: str) -> _Values:
        """What ``module.name`` may be once the module has run."""
        key = (module, name)
        if key in self._attributes:
            return self._attributes[key]
        if module not in self._modules:
            full = f"{module}.{name}"
            inside = full in self._modules or full in self._prefixes
            result: _Values = frozenset({ModuleValue(full) if inside else External(full)})
            if module in self._prefixes and not inside:
                result = _NOTHING
            self._attributes[key] = result
            return result
        self._attributes[key] = _NOTHING  # a cycle of names that only name each other is nothing
        self._attributes[key] = result = self._export(module, name)
        return result

    def _export(self, module: str, name: str) -> _Values:
        summary = self._summary(module)
        ref = summary.exports.get(name)
        full = f"{module}.{name}"
        if ref is not None:
            values = self.values(ref, module)
            if values or full not in self._modules:
                return values  # or else a package that imports a submodule of itself
        for star in reversed(summary.stars):
            if self.star_has(star, name):
                return self.export(star, name)
        if full in self._modules or full in self._prefixes:
            return frozenset({ModuleValue(full)})
        if summary.strings is not None:
            return self._lazy(module, name, summary)
        if any(star.partition(".")[0] not in self._tops for star in summary.stars):
            return frozenset({External(f"*.{name}")})
        return _NOTHING

    def _lazy(self, module: str, name: str, summary: Summary) -> _Values:
        """A name that a module ``__getattr__`` gives: from any module that a string here spells."""
        hint = summary.typing_only.get(name)
        if hint is not None:
            return self.values(hint, module)
        package = module if module in self._packages else module.rpartition(".")[0]
        found: set[Value] = set()
        mentioned = False
        for string in summary.strings or ():
            target, _, attribute = string.partition(":")
            if string == name or attribute == name or string.endswith(f".{name}"):
                mentioned = True
            for candidate in _spelled(target, package):
                stem, _, last = candidate.rpartition(".")
                if candidate in self._modules and candidate != module:
                    if name in self._summary(candidate).exports:
                        found |= self.export(candidate, name)
                elif last == name and stem in self._modules and stem != module:
                    found |= self.export(stem, name)
        if found or not mentioned:
            return frozenset(found)
        return frozenset({Unknown(f"the module __getattr__ of {module}", frozenset({module}))})

    def star_has(self, module: str, name: str) -> bool:
        """Whether ``from module import *`` brings ``name``."""
        if module not in self._modules:
            return False
        summary = self._summary(module)
        if summary.all is not None:
            return name in summary.all
        if "__all__" not in summary.exports and name.startswith("_"):
            return False
        return name in summary.exports or any(
            star != module and self.star_has(star, name) for star in summary.stars
        )

    def values(self, ref: Ref, module: str, frame: Frame = ()) -> _Values:
        """What a ref of ``module`` may stand for."""
        key = (id(ref), module, frame)
        known = self._known.get(key)
        if known is not None:
            return known[1]
        if self._depth > _MAX_DEPTH:
            return frozenset({Unknown("names that lead to names without end", frozenset({module}))})
        self._depth += 1
        self._known[key] = (ref, _NOTHING)  # what only names itself is nothing
        try:
            result = self._values(ref, module, frame)
        finally:
            self._depth -= 1
        self._known[key] = (ref, result)  # with the ref, which must live as long as its id is a key
        return result

    def _values(self, ref: Ref, module: str, frame: Frame) -> _Values:
        match ref:
            case ["m", name]:
                inside = name in self._modules or name in self._prefixes
                return frozenset({ModuleValue(name) if inside else External(name)})
            case ["f", source, name]:
                return self.export(source, name)
            case ["a", inner, name]:
                return _each(self.values(inner, module, frame), lambda v: self.attribute(v, name))
            case ["g", name]:
                return self._global(module, name)
            case ["c", key]:
                local = frame and self._summary(module).classes[key].in_function
                return frozenset({ClassValue(module, key, frame if local else ())})
            case ["d", key]:
                return frozenset({FunctionValue(module, key)})
            case ["u", refs]:
                return frozenset().union(*(self.values(item, module, frame) for item in refs))
            case ["*", star, name, otherwise]:
                if self.star_has(star, name):
                    return self.export(star, name)
                found = self.values(otherwise, module, frame)
                if star.partition(".")[0] not in self._tops:
                    found |= {External(f"{star}.{name}")}
                return found
            case ["s", inner, key]:
                return _each(self.values(inner, module, frame), lambda v: self._subscript(v, key))
            case ["i", inner, position]:
                items = self.items(inner, module, frame)
                if position is not None and position < len(items):
                    return items[position]
                return frozenset().union(*items)
            case ["k", function, arguments, keywords]:
                return self._call(function, arguments, keywords, module, frame)
            case ["p", key, name, known]:
                return self._parameter(key, name, known, module, frame)
            case ["t" | "h" | "+", *_]:
                self._displays[id(ref)] = ref
                return frozenset({Display(id(ref), module, frame)})
            case ["v", value]:
                return frozenset({Constant(value)})
            case ["b", name]:
                return frozenset({self._unbound(module, name)})
            case ["x", reason]:
                return frozenset({Unknown(reason, frozenset({module}))})
            case _:
                return _NOTHING

    def items(self, ref: Ref, module: str, frame: Frame) -> list[_Values]:
        """The elements of a sequence, each with its possible values."""
        if ref[0] == "t":
            result: list[_Values] = []
            for item in ref[1]:
                if item[0] == "e":
                    result += self.items(item[1], module, frame)
                else:
                    result.append(self.values(item, module, frame))
            return result
        if ref[0] == "h":
            return [frozenset({Constant(key)}) if key is not None else _NOTHING for key, _ in ref[1]]
        if ref[0] == "+":
            return self.items(ref[1], module, frame) + self.items(ref[2], module, frame)
        merged: list[_Values] = []
        for value in self.values(ref, module, frame):
            if isinstance(value, Display):
                display = self._displays[value.ref]
                if display is not ref:
                    merged += self.items(display, value.module, value.frame)
            elif isinstance(value, Unknown):
                merged.append(frozenset({value}))
            elif not isinstance(value, Constant):
                merged.append(frozenset({Unknown("a sequence not written as a display", frozenset({module}))}))
        return merged

    def _global(self, module: str, name: str) -> _Values:
        summary = self._summary(module)
        if name in summary.exports or any(self.star_has(star, name) for star in summary.stars):
            return self.export(module, name)
        return frozenset({self._unbound(module, name)})

    def _unbound(self, module: str, name: str) -> Value:
        """What a name is that its module never binds."""
        submodule = f"{module}.{name}"
        if submodule in self._modules and not hasattr(builtins, name):
            return ModuleValue(submodule)  # importing a submodule binds its name in the package
        return External(f"builtins.{name}")

    def attribute(self, value: Value, name: str) -> _Values:
        """What ``value.name`` may be."""
        match value:
            case ModuleValue(module):
                return self.export(module, name)
            case External(outer):
                return frozenset({External(f"{outer}.{name}")})
            case ClassValue():
                record = self.record(value)
                if name in record.attributes:
                    return self.values(record.attributes[name], value.module, value.frame)
                inherited: _Values = _NOTHING
                for options in self.bases(value):
                    inherited |= _each(options, lambda v: self.attribute(v, name))
                return inherited
            case Unknown():
                return frozenset({value})
            case FunctionValue(module, _):
                return frozenset({Unknown(f"an attribute of a function of {module}", frozenset({module}))})
            case _:
                return _NOTHING

    def _subscript(self, value: Value, key: str | int | None) -> _Values:
        if not isinstance(value, Display):
            return frozenset({value}) if not isinstance(value, Constant) else _NOTHING
        ref = self._displays[value.ref]
        if ref[0] == "h":
            chosen = [item for name, item in ref[1] if key is None or name is None or name == key]
            return frozenset().union(*(self.values(item, value.module, value.frame) for item in chosen))
        items = self.items(ref, value.module, value.frame)
        if isinstance(key, int) and -len(items) <= key < len(items):
            return items[key]
        return frozenset().union(*items)

    def _parameter(self, key: str, name: str, known: Ref | None, module: str, frame: Frame) -> _Values:
        for bound_module, bound_key, bound_name, values in frame:
            if (bound_module, bound_key, bound_name) == (module, key, name):
                return values
        function = key.partition("@")[0]
        unknown = Unknown(f"the parameter {name} of {function}", functions=frozenset({f"{module}:{function}"}))
        return frozenset({unknown}) | (self.values(known, module, frame) if known is not None else _NOTHING)

    def _call(
        self, function: Ref, arguments: list[Ref], keywords: dict[str, Ref], module: str, frame: Frame
    ) -> _Values:
        result: set[Value] = set()
        for callee in self.values(function, module, frame):
            match callee:
                case FunctionValue():
                    result |= self._returned(callee, arguments, keywords, module, frame)
                case External(name):
                    result |= self._external_call(name, arguments, module, frame)
                case Unknown():
                    result.add(callee)
                case ClassValue():
                    # An instance. Its class may say (by __mro_entries__) what it is as a base; few do.
                    if "__mro_entries__" in self.record(callee).attributes:
                        result.add(Unknown("an object with __mro_entries__", frozenset({callee.module})))
        return frozenset(result)

    def _returned(
        self, function: FunctionValue, arguments: list[Ref], keywords: dict[str, Ref], module: str, frame: Frame
    ) -> _Values:
        record = self._deep_summary(function.module).functions[function.key]
        bound = self.bind(function, arguments, keywords, module, frame)
        result: _Values = _NOTHING
        for returned in record.returns or ():
            result |= self.values(returned, function.module, bound)
        if not record.returns:
            reason = f"what {record.qualname} returns"
            result = frozenset({Unknown(reason, frozenset({function.module}))})
        return result

    def bind(
        self, function: FunctionValue, arguments: list[Ref], keywords: dict[str, Ref], module: str, frame: Frame
    ) -> Frame:
        """The parameters of ``function`` in a call made in ``module``, on top of the caller's ``frame``."""
        parameters = self._deep_summary(function.module).functions[function.key].parameters
        if any(argument[0] == "e" for argument in arguments):
            named: list[tuple[str, Ref]] = []
        else:
            named = list(zip(parameters, arguments, strict=False))
        named += [(name, ref) for name, ref in keywords.items() if name in parameters]
        bound = [
            (function.module, function.key, name, self.values(ref, module, frame)) for name, ref in named
        ]
        # Innermost first, so that a recursive call sees its own arguments.
        return (*bound, *frame)[:_MAX_FRAME]

    def _external_call(self, name: str, arguments: list[Ref], module: str, frame: Frame) -> _Values:
        values = [self.values(argument, module, frame) for argument in arguments if argument[0] != "e"]
        last = name.rpartition(".")[2]
        if last in {"import_module", "__import__"} and values:
            return self._imported(values[0], module)
        if last == "getattr" and len(values) > 1:
            names = [v.value for v in values[1] if isinstance(v, Constant) and isinstance(v.value, str)]
            if names and len(names) == len(values[1]):
                return frozenset(
                    found for owner in values[0] for n in names for found in self.attribute(owner, n)
                )
            owners = {v.name for v in values[0] if isinstance(v, ModuleValue)}
            return frozenset({Unknown("getattr with a computed name", frozenset(owners), anywhere=not owners)})
        if last == "cast" and len(values) > 1:
            return values[1]
        if last == "with_metaclass":
            return frozenset().union(*values[1:])
        if last in {"globals", "locals", "vars", "eval", "exec"}:
            return frozenset({Unknown(f"{last}()", frozenset({module}))})
        inner: set[Value] = set()
        for value in frozenset().union(*values):
            if isinstance(value, ClassValue | Unknown):
                inner.add(Unknown(f"what {name.removeprefix('builtins.')} returns", frozenset({module})))
        return frozenset(inner) or frozenset({External(f"{name}()")})

    def _imported(self, names: _Values, module: str) -> _Values:
        package = module if module in self._packages else module.rpartition(".")[0]
        result: set[Value] = set()
        for value in names:
            if not isinstance(value, Constant) or not isinstance(value.value, str):
                result.add(Unknown("a module imported by a computed name", anywhere=True))
                continue
            spelled = _spelled(value.value, package) if value.value.startswith(".") else [value.value]
            for name in spelled:
                inside = name in self._modules or name in self._prefixes
                result.add(ModuleValue(name) if inside else External(name))
        return frozenset(result)

    def display_items(self, value: Display) -> list[_Values]:
        """What a display holds: the elements of a sequence, the values of a dict."""
        ref = self._displays[value.ref]
        if ref[0] == "h":
            return [self.values(item, value.module, value.frame) for _, item in ref[1]]
        return self.items(ref, value.module, value.frame)

    def _drop_displays(self, values: _Values) -> _Values:
        return frozenset(value for value in values if not isinstance(value, Display | Constant))


def _each(values: _Values, function: Callable[[Value], _Values]) -> _Values:
    result: set[Value] = set()
    for value in values:
        result |= function(value)
    return frozenset(result)


def _spelled(string: str, package: str) -> list[str]:
    """The absolute module names that a string may spell, seen from ``package``."""
    stripped = string.lstrip(".")
    if not stripped or not all(part.isidentifier() for part in stripped.split(".")):
        return []
    level = len(string) - len(stripped)
    if level:
        parts = package.split(".")
        return [".".join([*parts[: len(parts) - level + 1], stripped])]
    return [stripped, f"{package}.{stripped}"]
