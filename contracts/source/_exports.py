"""What a package says it exports: the names in its ``__all__``, and whether anything binds them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from contracts.source._answer import ClassDefinition, Exports
from contracts.source._errors import SourceError
from contracts.source._resolve import (
    ClassValue,
    Constant,
    External,
    FunctionValue,
    ModuleValue,
    Unknown,
    Value,
)
from contracts.source._summary import Ref, parse
from contracts.source._tree import SourceFile, relative_path

if TYPE_CHECKING:
    from contracts.source._index import Index

_COPIES = frozenset(External(f"builtins.{name}") for name in ("frozenset", "list", "set", "sorted", "tuple"))
_KEEP_CONTENT = frozenset({"copy", "count", "index", "keys", "reverse", "sort"})
_IMPLICIT = frozenset(
    {"__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"}
)
_OUTSIDE = "the __all__ of {}, which is not among the root packages"
_UNDERSTOOD = _KEEP_CONTENT | {"append", "extend", "insert"}


def read_exports(index: Index, package: str, classes: Sequence[ClassDefinition]) -> Exports:
    """Read what ``package`` exports, and of ``classes``, which.

    Raises:
        SourceError: the package cannot be read, or reading cannot tell its ``__all__``.
    """
    return _Reader(index, package).read(classes)


class _Reader:
    def __init__(self, index: Index, package: str) -> None:
        self._index = index
        self._resolver = index.resolver
        self._package = package
        self._file: SourceFile = index.tree.files[package]

    def read(self, classes: Sequence[ClassDefinition]) -> Exports:
        summary = self._index.summary(self._package)
        if self._package in self._index.errors:
            raise self._index.errors[self._package]
        tree = parse(self._file)
        line = self._line(tree)
        names: list[str] = []
        if line:
            names = list(
                dict.fromkeys(self._names(summary.exports.get("__all__"), self._package, set(), line))
            )
        exported = {value for name in names for value in self._values(name) if isinstance(value, ClassValue)}
        return Exports(
            relative_path(self._file.path),
            line,
            tuple(sorted(found for name in names for found in self._dangling(name, tree, line))),
            {d.dotted_name: self._status(d, names, exported) for d in classes},
        )

    def _status(self, definition: ClassDefinition, names: Sequence[str], exported: AbstractSet[Value]) -> str:
        own = ClassValue(definition.module, f"{definition.name}@{definition.line}:{definition.column}")
        values = self._values(definition.name)
        if own in exported:
            return "exported"
        if definition.name not in names:
            return "bound" if own in values and self._says(definition.name) else "absent"
        return "another" if values and all(isinstance(value, ClassValue) for value in values) else "exported"

    def _values(self, name: str) -> AbstractSet[Value]:
        """What a name of the package stands for."""
        values = self._resolver.export(self._package, name)
        if any(not isinstance(value, Unknown) for value in values):
            return values
        files = self._index.tree.files
        targets = [target for target in self._tabled(name) if target[0] in files]
        tabled = {value for target in targets for value in self._resolver.export(*target)}
        return tabled or values

    def _says(self, name: str) -> bool:
        """Whether the package names the name at all, be it for a module ``__getattr__``."""
        summary = self._index.summary(self._package)
        starred = any(self._resolver.star_has(star, name) for star in summary.stars)
        return starred or name in {*summary.exports, *summary.typing_only, *(summary.strings or ())}

    def _tabled(self, name: str) -> list[tuple[str, str]]:
        """The modules, and the names in them, that dicts of the package give for a name."""
        summary = self._index.summary(self._package)
        if summary.strings is None:
            return []  # there is no __getattr__
        found = []
        for table in summary.exports.values():
            for key, value in table[1] if table[0] == "h" else ():
                written = value[1] if value[0] == "t" else [value]
                if key != name or not all(ref[0] == "v" and isinstance(ref[1], str) for ref in written):
                    continue
                module, _, attribute = ":".join(ref[1] for ref in written).partition(":")
                inside = f"{self._package}.{module.lstrip('.')}"
                if module.startswith(".") or inside in self._index.tree.files:
                    found.append((inside, attribute or name))
                elif module in self._index.tree.files:
                    found.append((module, attribute or name))
        return found

    # Reading __all__

    def _line(self, tree: ast.Module) -> int:
        """Where ``__all__`` is first bound."""
        first = 0
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.alias):
                continue
            self._refuse_changes(node)
            if isinstance(node, ast.alias):
                bound = (node.asname or node.name) == "__all__"
            else:
                bound = (
                    isinstance(node, ast.Name) and node.id == "__all__" and isinstance(node.ctx, ast.Store)
                )
            if bound:
                first = min(first or node.lineno, node.lineno)
        return first

    def _refuse_changes(self, node: ast.Name | ast.Attribute | ast.Subscript | ast.alias) -> None:
        """Refuse what changes ``__all__`` otherwise than by growing it."""
        if isinstance(node, ast.Name) and node.id == "__all__" and isinstance(node.ctx, ast.Del):
            raise self._cannot_tell(node.lineno, "it is deleted")
        if not isinstance(node, ast.Attribute | ast.Subscript):
            return
        if isinstance(node.value, ast.Name) and node.value.id == "__all__":
            if isinstance(node, ast.Attribute) and node.attr not in _UNDERSTOOD:
                raise self._cannot_tell(node.lineno, f"__all__.{node.attr}")
            if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
                raise self._cannot_tell(node.lineno, "items are replaced")

    def _cannot_tell(self, line: int, reason: str) -> SourceError:
        return SourceError(
            self._file.path,
            line,
            f"__all__ of {self._package} is built in a way that reading cannot tell: {reason}. "
            "Write its names out",
        )

    def _names(self, ref: Ref | None, module: str, seen: set[str], line: int) -> list[str]:
        """The strings that a ref of ``module`` holds."""
        match ref:
            case ["t", items]:
                return [
                    name
                    for item in items
                    for name in (
                        self._names(item[1], module, seen, line)
                        if item[0] == "e"
                        else self._strings(item, module, line)
                    )
                ]
            case ["+", left, right]:
                return self._names(left, module, seen, line) + self._names(right, module, seen, line)
            case ["u", refs]:
                return [name for item in refs for name in self._names(item, module, seen, line)]
            case ["h", items]:
                return [name for item in items for name in self._keys(item, module, seen, line)]
            case ["*", _, "__all__", before]:
                return self._names(before, module, seen, line)  # a star import does not bring __all__
            case ["b", "__all__"]:
                return []
            case ["g", name]:
                if f"{module}:{name}" in seen:
                    return []  # a function that makes it longer
                more = self._index.summary(module).exports.get(name)
                return self._names(more, module, seen | {f"{module}:{name}"}, line)
            case ["k", function, [argument], _] if self._resolver.values(function, module) <= _COPIES:
                return self._names(argument, module, seen, line)
            case ["k", ["a", inner, "keys" | "copy"], [], _]:
                return self._names(inner, module, seen, line)
            case ["f", source, "__all__"]:
                return self._all_of(source, seen, line)
            case ["a", inner, "__all__"]:
                owners = self._resolver.values(inner, module)
                modules = [value.name for value in owners if isinstance(value, ModuleValue)]
                outer = sorted(v.name for v in owners if isinstance(v, External))
                if outer and not outer[0].startswith("builtins."):
                    raise self._cannot_tell(line, _OUTSIDE.format(outer[0]))
                if modules and len(modules) == len(owners):
                    return [name for source in sorted(modules) for name in self._all_of(source, seen, line)]
            case ["y", _]:
                raise self._cannot_tell(line, "a comprehension")
            case ["x", reason]:
                raise self._cannot_tell(line, reason)
        raise self._cannot_tell(line, "no display of strings")

    def _keys(self, item: Sequence[Any], module: str, seen: set[str], line: int) -> list[str]:
        """The keys that an item of a dict display brings."""
        match item:
            case [str(key), _]:
                return [key]
            case [None, ["i", unpacked, None]]:
                return self._names(unpacked, module, seen, line)
        raise self._cannot_tell(line, "a dict whose keys are not all written out")

    def _all_of(self, module: str, seen: set[str], line: int) -> list[str]:
        if module in seen:
            raise self._cannot_tell(line, f"it leads back to the __all__ of {module}")
        if module not in self._index.tree.files:
            raise self._cannot_tell(line, _OUTSIDE.format(module))
        ref = self._index.summary(module).exports.get("__all__")
        if module in self._index.errors:
            raise self._index.errors[module]
        if ref is None:
            raise self._cannot_tell(line, f"{module} has no __all__")
        return self._names(ref, module, seen | {module}, line)

    def _strings(self, ref: Ref, module: str, line: int) -> list[str]:
        if ref[0] == "a" and ref[2] == "__name__":
            values = self._resolver.values(ref[1], module)
            names = [v.key.partition("@")[0] for v in values if isinstance(v, ClassValue | FunctionValue)]
        else:
            values = self._resolver.values(ref, module)
            names = [v.value for v in values if isinstance(v, Constant) and isinstance(v.value, str)]
        if not names or len(names) != len(values):
            raise self._cannot_tell(line, "an element that is no string")
        return sorted(names)

    # What binds a name

    def _dangling(self, name: str, tree: ast.Module, line: int) -> Iterator[tuple[int, int, str, str]]:
        """A name in ``__all__``, if nothing binds it."""
        summary = self._index.summary(self._package)
        if (
            name in summary.exports
            or name in _IMPLICIT
            or f"{self._package}.{name}" in self._index.tree.files
        ):
            return
        values = self._values(name)
        if any(not isinstance(value, Unknown) for value in values):
            return
        if any(self._resolver.star_has(star, name) for star in summary.stars):
            return
        open_ = values and not self._tabled(name)
        reason = f"the module __getattr__ of {self._package}" if open_ else ""
        yield *self._place(name, tree, line), name, reason

    def _place(self, name: str, tree: ast.Module, line: int) -> tuple[int, int]:
        """Where a name is written, in ``__all__`` if it is."""
        written = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value == name]
        if not written:
            return line, 1
        node = min(written, key=lambda n: (n.lineno < line, n.lineno))
        text = self._file.text.split("\n")[node.lineno - 1]
        return node.lineno, len(text.encode()[: node.col_offset].decode(errors="replace")) + 1
