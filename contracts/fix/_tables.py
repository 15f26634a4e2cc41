"""What a package says of its modules by their short names: in ``__all__``, and in the tables of a ``__getattr__``."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from contracts.fix._imports import Binding

if TYPE_CHECKING:
    from contracts.fix._uses import Rewriter


def change_tables(rewriter: Rewriter, statements: Sequence[ast.stmt]) -> None:
    """Change the tables of a module ``__getattr__``, and keep the modules that ``__all__`` lists.

    Args:
        rewriter: changes the package's ``__init__``.
        statements: all statements in it.
    """
    body = rewriter.document.tree.body
    is_lazy = any(isinstance(s, ast.FunctionDef) and s.name == "__getattr__" for s in body)
    for statement in body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) or statement.value is None:
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            _keep_listed(rewriter, statement.value, statements)
        elif is_lazy and isinstance(statement.value, ast.Dict):
            for key, value in zip(statement.value.keys, statement.value.values, strict=True):
                _change_entry(rewriter, key.value if isinstance(key, ast.Constant) else None, value)


def _keep_listed(rewriter: Rewriter, value: ast.expr, statements: Sequence[ast.stmt]) -> None:
    """A module in ``__all__`` is imported by ``*``, if only from where it is now."""
    moves = rewriter.moves
    for node in _strings(value):
        new = moves.modules.get(f"{rewriter.place.package}.{node.value}")
        if new is None or node.value in rewriter.bound:
            continue
        module, _, name = new.rpartition(".")
        anchor = next((s for s in statements if isinstance(s, ast.ImportFrom)), None)
        if anchor is None:
            rewriter.leave(node, f"lists {node.value}, which is now {new}")
        else:
            rewriter.need(anchor, Binding(module, name, node.value))


def _change_entry(rewriter: Rewriter, name: object, value: ast.expr) -> None:
    """An entry that says in which module of the package a name is."""
    moves, inside = rewriter.moves, f"{rewriter.place.package}."
    for node in _strings(value):
        written = node.value
        short = written.lstrip(".")
        module = written if written.startswith(inside) else inside + short
        new = moves.names.get(f"{module}.{name}", "").rpartition(".")[0]
        if module in moves.modules:
            if written == module or written != short:
                continue  # changed as strings elsewhere are
            new = moves.modules[module]
        if not new:
            continue
        after = new if written == module else written[: len(written) - len(short)] + new.removeprefix(inside)
        reachable = written == module or new.startswith(inside)
        if not reachable or not rewriter.replace_text(node, written, after, plain=True):
            rewriter.leave(node, f"names {module}, which is now {new}")


class _String(ast.Constant):
    """A constant that is a string."""

    value: str


def _strings(value: ast.expr) -> Iterator[_String]:
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node  # type: ignore[misc]  # told by its value
