"""The classes that a configuration names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from contracts.source._errors import UnknownNameError
from contracts.source._resolve import ClassValue, External, FunctionValue, ModuleValue, Unknown, Value
from contracts.source._tree import is_importable

if TYPE_CHECKING:
    from contracts.source._index import Index


def resolve_bases(index: Index, names: Sequence[str]) -> list[ClassValue]:
    """The classes that dotted names stand for.

    Raises:
        UnknownNameError: one does not exist or lies outside the root packages.
    """
    return [value for name in names for value in _resolve_base(index, name)]


def _resolve_base(index: Index, name: str) -> list[ClassValue]:
    top = name.partition(".")[0]
    roots = ", ".join(index.tree.roots)
    if not any(name == root or name.startswith(f"{root}.") for root in index.tree.roots):
        if is_importable(top):
            raise UnknownNameError(
                f"Base class '{name}' is outside the root packages ({roots}), which are all that is "
                f"read. Add '{top}' to root_packages, or name a class of {roots}."
            )
        raise UnknownNameError(
            f"Base class '{name}' is outside the root packages ({roots}), and there is no package "
            f"'{top}' on the path. Name a class of {roots}."
        )
    module, attributes = _split(index, name)
    values: set[Value] = {ModuleValue(module)}
    inside_class = False
    for attribute in attributes:
        inside_class |= any(isinstance(value, ClassValue) for value in values)
        values = {found for value in values for found in index.resolver.attribute(value, attribute)}
    if module in index.errors:
        raise index.errors[module]
    classes = sorted(value for value in values if isinstance(value, ClassValue))
    if classes:
        return classes
    if inside_class:
        # What a class might inherit from outside the root packages is nothing that reading could find.
        values = {value for value in values if not isinstance(value, External)}
    if values:
        kinds = "; ".join(sorted({_kind(value, roots) for value in values}))
        raise UnknownNameError(f"Base class '{name}' is no class that reading can find: it is {kinds}.")
    raise UnknownNameError(f"Base class '{name}' does not exist.{_closest(index, module, attributes)}")


def _kind(value: Value, roots: str) -> str:
    """What a value is that is no class of the root packages, and what to do about it."""
    match value:
        case ModuleValue():
            return "a module. Name a class in it"
        case FunctionValue():
            return "a function. Name the class that it makes"
        case External(name):
            return f"{name}, outside the root packages ({roots}), which are all that is read"
        case Unknown(reason):
            return f"made by {reason}. Name a class statement"
        case _:
            return "another kind of value. Name a class statement"


def _split(index: Index, name: str) -> tuple[str, list[str]]:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        if module in index.tree.files:
            return module, parts[length:]
    return parts[0], parts[1:]


def _closest(index: Index, module: str, attributes: list[str]) -> str:
    if len(attributes) > 1 and module in index.tree.files and index.tree.files[module].is_package:
        wanted = f"{module}.{attributes[0]}"
        close = difflib.get_close_matches(wanted, index.tree.files, n=1)
        return f" Closest module: '{close[0]}'." if close else f" There is no module '{wanted}'."
    if module not in index.tree.files:
        close = difflib.get_close_matches(".".join([module, *attributes[:-1]]), index.tree.files, n=1)
        return f" Closest module: '{close[0]}'." if close else f" There is no module '{module}.{attributes[0]}'."
    summary = index.summary(module)
    names = [record.qualname for record in summary.classes.values()]
    close = difflib.get_close_matches(".".join(attributes), names, n=1)
    return f" Closest name: '{close[0]}'." if close else f" {module} defines: {', '.join(sorted(names)) or 'no class'}."
