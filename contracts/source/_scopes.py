"""Scopes and places in a syntax tree."""

from __future__ import annotations

import ast
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

Place = tuple[int, int]
Placed = ast.expr | ast.alias | ast.keyword | ast.stmt


def defined_at(tree: ast.Module, lines: Sequence[str], qualname: Sequence[str]) -> Iterator[Place]:
    """Where a module defines a name, by a statement other than an import."""
    first, *rest = qualname
    for statement in own_statements(tree.body):
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if statement.name == first and not rest:
                found = re.search(rf"\b{re.escape(first)}\b", lines[statement.lineno - 1])
                yield statement.lineno, (found.start() if found else statement.col_offset) + 1
            elif statement.name == first and isinstance(statement, ast.ClassDef):
                yield from defined_at(ast.Module(statement.body, []), lines, rest)
        elif not rest:
            for node in own_expressions(statement):
                if isinstance(node, ast.Name) and node.id == first and isinstance(node.ctx, ast.Store):
                    yield place(node, lines)


class Scope:
    """The names that one scope binds, and what they stand for: dotted names, where that is known."""

    def __init__(self, parent: Scope | None, is_class: bool = False) -> None:
        self.parent = parent
        self.is_class = is_class
        self.names: dict[str, set[str]] = {}
        self.texts: dict[str, list[str | None]] = {}

    def lookup(self, name: str) -> Scope | None:
        """The scope in which a name is bound, as seen from this one."""
        if name in self.names:
            return self
        outer = self.parent
        while outer is not None and outer.is_class:
            outer = outer.parent
        return outer.lookup(name) if outer is not None else None


def lines_with(lines: Sequence[str], words: Iterable[str]) -> list[int]:
    """The numbers of the lines that hold one of some names, as Python reads names."""
    any_word = re.compile("|".join(map(re.escape, sorted(words))))
    return [
        number
        for number, line in enumerate(lines, 1)
        if any_word.search(line if line.isascii() else unicodedata.normalize("NFKC", line))
    ]


def touches(statement: ast.stmt, lines: Sequence[int]) -> bool:
    """Whether a statement, with its decorators, stands in one of the lines, which ascend."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
    nearest = bisect_left(lines, first)
    return nearest < len(lines) and lines[nearest] <= (statement.end_lineno or first)


def place(node: Placed, lines: Sequence[str]) -> Place:
    """Line and column, both from 1, the column in characters."""
    line = lines[node.lineno - 1] if node.lineno <= len(lines) else ""
    return node.lineno, len(line.encode()[: node.col_offset].decode(errors="replace")) + 1


def own_statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a scope, also those in its branches and loops."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for block in blocks(statement):
            yield from own_statements(block)


def blocks(statement: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    """The blocks of statements directly inside one."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if block:
            yield block
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def own_expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """What a statement holds beside other statements, without the insides of functions."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    pending = list(ast.iter_child_nodes(statement))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.stmt | ast.Lambda):
            continue
        yield node
        pending += ast.iter_child_nodes(node)


def last_name(node: ast.expr) -> str:
    """The last part of a dotted expression."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def absolute(name: str, package: str | None) -> str | None:
    """The name that one with leading dots stands for in ``package``; None if it leads out of it."""
    rest = name.lstrip(".")
    up = len(name) - len(rest) - 1
    parts = package.split(".") if package else []
    if len(parts) <= up:
        return None
    return ".".join([*parts[: len(parts) - up], *([rest] if rest else [])])


def owner_and_attribute(node: ast.Call) -> tuple[ast.expr | None, ast.expr | None]:
    """The object and the attribute's name that a call takes, by position or, as in mock.patch, by keyword."""
    given = dict(zip(("target", "attribute"), node.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    return given.get("target"), given.get("attribute", given.get("name"))
