"""What calls of well-known functions give: builtins, methods of displays and strings, importlib, typing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from contracts.source._kinds import (
    NOTHING,
    ClassValue,
    Constant,
    Display,
    External,
    Frame,
    Instance,
    Method,
    ModuleValue,
    Namespace,
    Unknown,
    Value,
    Values,
)
from contracts.source._summary import Ref

if TYPE_CHECKING:
    from contracts.source._resolve import Resolver

_COPIES = frozenset({"frozenset", "iter", "list", "reversed", "set", "sorted", "tuple"})
_TEXT_METHODS = frozenset(
    {"lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rpartition", "rsplit", "rstrip"}
    | {"split", "strip", "upper"}
)
_DICT_METHODS = frozenset({"copy", "get", "items", "keys", "pop", "setdefault", "values"})
_OPAQUE: Ref = ["o"]
_DEEPEST_DISPLAY = 3  # of displays in displays that are looked into


def method(value: Display | Constant | Namespace, name: str) -> Values:
    """The method of a display, of a namespace or of a string, where what it gives can be told."""
    known = _TEXT_METHODS if isinstance(value, Constant) else _DICT_METHODS
    return frozenset({Method(value, name)}) if name in known else NOTHING


class KnownCalls:
    """Calls, as made in a module with some frame.

    Args:
        resolver: follows the names in the arguments.
        module: where the call stands.
        frame: what the parameters around it are bound to.
    """

    def __init__(self, resolver: Resolver, module: str, frame: Frame) -> None:
        self._resolver = resolver
        self._module = module
        self._frame = frame

    def _values(self, ref: Ref) -> Values:
        return self._resolver.values(ref, self._module, self._frame)

    def _display(self, ref: Ref) -> Values:
        return self._resolver.display(ref, self._module, self._frame)

    def of_method(self, of: Method, arguments: Sequence[Ref]) -> Values:
        """What a method of a display or of a string gives."""
        if isinstance(of.owner, Constant):
            return self._of_text(of.owner.value, of.name, [self._values(argument) for argument in arguments])
        if isinstance(of.owner, Namespace):
            keys = self._values(arguments[0]) if arguments and of.name in {"get", "pop", "setdefault"} else None
            return self._resolver.subscript_any(of.owner, keys or frozenset({External("builtins.str")}))
        display = of.owner
        ref = self._resolver.display_ref(display)
        if of.name == "copy":
            return frozenset({display})
        if of.name == "pop" and ref[0] != "h":
            return self._resolver.subscript(display, None)
        if ref[0] != "h":
            return NOTHING
        if of.name in {"get", "pop", "setdefault"}:
            keys = self._values(arguments[0]) if arguments else NOTHING
            found = self._resolver.subscript_any(display, keys)
            return found.union(*(self._values(argument) for argument in arguments[1:2]))
        pairs = [(["v", key] if isinstance(key, str | int) else _OPAQUE, value) for key, value in ref[1]]
        shown: list[Ref] = [
            ["t", [key, value]] if of.name == "items" else value if of.name == "values" else key
            for key, value in pairs
        ]
        return self._resolver.display(["t", shown], display.module, display.frame)

    def _of_text(self, text: str | int, name: str, arguments: list[Values]) -> Values:
        if not isinstance(text, str):
            return NOTHING
        given: list[str | int] = []
        for values in arguments:
            constants = [value.value for value in values if isinstance(value, Constant)]
            if len(constants) != 1 or len(values) != 1:
                return frozenset({Unknown("a computed string", frozenset({self._module}))})
            given += constants
        try:
            result = getattr(text, name)(*given)
        except (TypeError, ValueError):
            return NOTHING  # the call would fail
        if isinstance(result, str):
            return frozenset({Constant(result)})
        return self._display(["t", [["v", part] for part in result]])

    def of_external(self, name: str, arguments: Sequence[Ref], keywords: Mapping[str, Ref]) -> Values:
        """What a function from outside the root packages gives."""
        plain = [argument for argument in arguments if argument[0] != "e"]
        last = name.rpartition(".")[2]
        if name.startswith("builtins."):
            found = self._of_builtin(last, plain, keywords)
            if found is not None:
                return found
        values = [self._values(argument) for argument in plain]
        if last == "import_module" and values:
            return self._imported(values[0], values[1] if len(values) > 1 else self._keyword("package", keywords))
        if last == "cast" and len(values) > 1:
            return values[1]
        if last == "with_metaclass":
            return NOTHING.union(*values[1:])
        given = NOTHING.union(*values, *(self._values(ref) for ref in keywords.values()))
        given = self._opened(given)
        classes = frozenset(value for value in given if isinstance(value, ClassValue))
        classes |= {value.of for value in given if isinstance(value, Instance)}
        inner: set[Value] = {value for value in given if isinstance(value, Unknown)}
        if classes:
            inner.add(Unknown(f"what {name.removeprefix('builtins.')} returns", classes=classes))
        return frozenset(inner) or frozenset({External(f"{name}()")})

    def _opened(self, values: Values, depth: int = 0) -> Values:
        """The values, and what the displays among them hold."""
        found = set(values)
        for value in values:
            if isinstance(value, Display) and depth < _DEEPEST_DISPLAY:
                for item in self._resolver.display_items(value):
                    found |= self._opened(item, depth + 1)
        return frozenset(found)

    def _keyword(self, name: str, keywords: Mapping[str, Ref]) -> Values:
        return self._values(keywords[name]) if name in keywords else NOTHING

    def _of_builtin(self, name: str, arguments: list[Ref], keywords: Mapping[str, Ref]) -> Values | None:
        """What a builtin gives; None where nothing is known of it."""
        if name in _COPIES and len(arguments) == 1:
            return self._display(["t", [["e", arguments[0]]]])
        if name in {"next", "max", "min"} and len(arguments) == 1:
            return self._values(["i", arguments[0], None])
        if name == "enumerate" and arguments:
            return self._display(["t", [["t", [_OPAQUE, ["i", arguments[0], None]]]]])
        if name == "zip" and arguments:
            return self._display(["t", [["t", [["i", argument, None] for argument in arguments]]]])
        if name == "dict" and not arguments:
            return self._display(["h", [[key, value] for key, value in keywords.items()]])
        values = [self._values(argument) for argument in arguments]
        if name == "type" and len(values) == 1:
            return NOTHING.union(*(self._resolver.attribute(value, "__class__") for value in values[0]))
        if name == "getattr" and len(values) > 1:
            return self._getattr(values)
        if name == "__import__" and values:
            found = self._imported(values[0], NOTHING)
            return found if "fromlist" in keywords or len(values) > 3 else self._tops(found)
        if name == "globals" or (name in {"locals", "vars"} and not arguments):
            return frozenset({Namespace(self._module)})
        if name == "vars":
            return NOTHING.union(*(self._resolver.attribute(value, "__dict__") for value in values[0]))
        if name in {"eval", "exec"}:
            return frozenset({Unknown(f"{name}()", frozenset({self._module}), anywhere=True)})
        return None

    def _getattr(self, values: list[Values]) -> Values:
        names = [v.value for v in values[1] if isinstance(v, Constant) and isinstance(v.value, str)]
        default = NOTHING.union(*values[2:3])
        if names and len(names) == len(values[1]):
            found = (self._resolver.attribute(owner, name) for owner in values[0] for name in names)
            return default.union(*found)
        owners = frozenset(v.name for v in values[0] if isinstance(v, ModuleValue))
        return default | {Unknown("getattr with a computed name", owners, anywhere=not owners)}

    def _imported(self, names: Values, anchors: Values) -> Values:
        """The modules that ``import_module`` gives."""
        packages = [anchor.value for anchor in anchors if isinstance(anchor, Constant)]
        if not packages:
            packages = [self._resolver.package(self._module)]
        result: set[Value] = set()
        for value in names:
            if not isinstance(value, Constant) or not isinstance(value.value, str):
                result.add(Unknown("a module imported by a computed name", anywhere=True))
                continue
            for package in packages:
                absolute = [value.value]
                if value.value.startswith("."):
                    absolute = spelled(value.value, str(package))
                result.update(self._resolver.module(name) for name in absolute)
        return frozenset(result)

    def _tops(self, modules: Values) -> Values:
        """``__import__`` of a dotted name gives the package at its top."""
        return frozenset(
            self._resolver.module(value.name.partition(".")[0])
            if isinstance(value, ModuleValue | External)
            else value
            for value in modules
        )


def spelled(string: str, package: str) -> list[str]:
    """The absolute module names that a string may spell, seen from ``package``."""
    stripped = string.lstrip(".")
    if not stripped or not all(part.isidentifier() for part in stripped.split(".")):
        return []
    level = len(string) - len(stripped)
    if level:
        parts = package.split(".")
        return [".".join([*parts[: len(parts) - level + 1], stripped])]
    return [stripped, f"{package}.{stripped}"]
