"""What stays at an old path, so that what imports it still works, and hears of the new one."""

from __future__ import annotations

import ast
import textwrap

from contracts._writing import CouldNotError
from contracts.fix._document import Document

_MODULE = '''"""Moved to {new}. What imports it from here still works, with a warning."""

import warnings

import {new} as _moved


def __getattr__(name: str) -> object:
    if name == "__all__":
        return getattr(_moved, name, [public for public in vars(_moved) if not public.startswith("_")])
    value = getattr(_moved, name)
    if not name.startswith("__"):
        warnings.warn(
            "{old} moved to {new}: import it from there",
            DeprecationWarning,
            stacklevel=2,
        )
    return value
'''

_NAMES = '''

def __getattr__(name: str) -> object:
    """Give what moved elsewhere, with a warning."""
    if name in {{{names}}}:
        import importlib
        import warnings

        new = {table}[name]
        warnings.warn(
            f"{{__name__}}.{{name}} moved to {{new}}: import it from there",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(new), name)
    raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
'''


def for_module(document: Document, old: str, new: str) -> bytes:
    """What a module that moved whole leaves behind."""
    header = []
    for line in document.lines:
        if not line.startswith("#") or line.startswith("#!"):
            break
        header.append(f"{line}\n")
    return document.encode(("".join(header) + _MODULE.format(old=old, new=new)).replace("\n", document.newline))


def add_names(document: Document, names: dict[str, str]) -> None:
    """Let a module still give what left it.

    Args:
        document: the module.
        names: the new module of each name.

    Raises:
        CouldNotError: it has a ``__getattr__`` of its own.
    """
    for node in document.tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
            raise CouldNotError(
                f"{document.place(node)} {document.module} has a __getattr__, in which --shim would put its own. "
                "Move without --shim, and let this one give the old names."
            )
    listed = ", ".join(f'"{name}"' for name in sorted(names))
    items = ", ".join(f'"{name}": "{names[name]}"' for name in sorted(names))
    table = f"{{{items}}}"
    if len(table) > 60:
        inner = textwrap.indent(",\n".join(f'"{name}": "{names[name]}"' for name in sorted(names)), " " * 12)
        table = f"{{\n{inner},\n        }}"
    text = _NAMES.format(names=listed, table=table)
    end = len(document.text)
    document.insert(end, ("" if document.text.endswith(("\n", "\r")) else "\n") + text)
