"""Small functions on refs, and on the syntax that they are made from."""

from __future__ import annotations

import ast
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from contracts.source._summary import Ref

OPAQUE: Ref = ["o"]
_DEFINITIONS = frozenset({ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef})
_WITHOUT_NAMES = frozenset({ast.Constant, ast.Lambda, ast.Global, ast.Nonlocal, ast.Load, ast.Store, str, type(None)})


def has_between(lines: list[int], node: ast.stmt | ast.expr) -> bool:
    """Whether one of ``lines`` (ascending) is among those of a node."""
    first = bisect_left(lines, node.lineno)
    return first < len(lines) and lines[first] <= (node.end_lineno or 0)


def line_numbers(text: str, places: list[int]) -> list[int]:
    """The lines, from 1, of some places in a text, both ascending."""
    numbers: list[int] = []
    line, done = 1, 0
    for place in places:
        line += text.count("\n", done, place)
        done = place
        numbers.append(line)
    return numbers


def union(refs: Sequence[Ref | None]) -> Ref:
    """One of several."""
    flat: list[Ref] = []
    for ref in refs:
        if ref is None:
            continue
        for item in ref[1] if ref[0] == "u" else [ref]:
            if item not in flat:
                flat.append(item)
    return flat[0] if len(flat) == 1 else ["u", flat]


def concatenation(left: Ref, right: Ref) -> Ref:
    """The concatenation; one display where both sides end in one, or else a long list would nest as deeply."""
    if right[0] == "t":
        if left[0] == "t":
            return ["t", [*left[1], *right[1]]]
        if left[0] == "+" and left[2][0] == "t":
            return ["+", left[1], ["t", [*left[2][1], *right[1]]]]
    return ["+", left, right]


def merge(environments: list[dict[str, Ref]]) -> dict[str, Ref]:
    """What holds where several branches meet."""
    if len(environments) == 1:
        return environments[0]
    merged: dict[str, Ref] = {}
    for environment in environments:
        for name, ref in environment.items():
            known = merged.get(name)
            merged[name] = ref if known is None or known is ref else union([known, ref])
    return merged


def definitions(statements: Sequence[ast.stmt]) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions that a class body defines, in any of its branches."""
    found: list[ast.FunctionDef | ast.AsyncFunctionDef] = []
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(statement)
        elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            found += definitions(statement.body)
            found += definitions(getattr(statement, "orelse", []))
    return found


def last_name(node: ast.expr) -> str:
    """``name`` of ``name``, ``a.name`` and calls of these; empty for another expression."""
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def static_truth(test: ast.expr) -> bool | None:
    """Whether a condition has one value whenever the code runs; None where it depends."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = static_truth(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, ast.BoolOp):
        values = [static_truth(value) for value in test.values]
        decisive = isinstance(test.op, ast.Or)
        if decisive in values:
            return decisive
        return None if None in values else not decisive
    return False if last_name(test) == "TYPE_CHECKING" and not isinstance(test, ast.Call) else None


def leaves(statements: Sequence[ast.stmt]) -> bool:
    """Whether control never runs off the end of these statements."""
    return bool(statements) and isinstance(
        statements[-1], ast.Raise | ast.Return | ast.Continue | ast.Break
    )


def local_names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    """The names that a function binds anywhere in its own body, so that they are local all through it."""
    names: set[str] = set()
    stack: list[Any] = list(node.body)
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind is ast.Name:
            if type(item.ctx) is ast.Store:
                names.add(item.id)
        elif kind in _DEFINITIONS:
            names.add(item.name)
        elif kind is ast.alias:
            names.add(item.asname or item.name.partition(".")[0])
        elif kind not in _WITHOUT_NAMES:
            for field in item._fields:
                value = getattr(item, field, None)
                if isinstance(value, list):
                    stack += value
                elif isinstance(value, ast.AST):
                    stack.append(value)
    return frozenset(names)
