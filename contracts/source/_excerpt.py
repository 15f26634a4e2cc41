"""The syntax trees of single statements, without parsing the rest of their file.

A file of three thousand lines is parsed in 30 ms, a function of it in a fraction of one. Where a definition begins
the index knows; it ends before the first line that is indented no deeper and with which what came before is whole:
a line inside a string or brackets leaves those open, and so does not parse. Lines and columns are the file's own.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence

_MOST_TRIES = 20  # lines that look like the end and lie inside a string
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
_QUOTES = ('"""', "'''")
_TYPING_BLOCK = re.compile(r"if (typing\.)?TYPE_CHECKING:\s*(#.*)?")
_IMPORT = re.compile(r"(from typing import )?[\w, ]+")

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definition(lines: Sequence[str], line: int) -> Definition | None:
    """The definition whose ``def``, ``async def`` or ``class`` begins a line; None where only the whole file tells.

    Args:
        lines: of the file, without their ends.
        line: from 1.
    """
    column = len(lines[line - 1]) - len(lines[line - 1].lstrip(" "))
    start = _first_decorator(lines, line - 1, column)
    found = _statement(lines, start, line - 1, column) if start is not None else None
    is_it = isinstance(found, Definition) and (found.lineno, found.col_offset) == (line, column)
    return found if is_it and isinstance(found, Definition) else None


def enclosing(lines: Sequence[str], line: int, name: str) -> int | None:
    """The last line up to ``line`` where a definition of this name begins that is not indented; None if none does."""
    head = re.compile(rf"(async +def|def|class) +{name}\b")
    return next((place for place in range(line, 0, -1) if head.match(lines[place - 1])), None)


def typing_blocks(lines: Sequence[str]) -> list[ast.If] | None:
    """The blocks ``if TYPE_CHECKING:`` of a module; None where only the whole file tells."""
    found: list[ast.If] = []
    for place, text in enumerate(lines):
        if "TYPE_CHECKING" not in text or _IMPORT.fullmatch(text):
            continue
        above = "\n".join(lines[:place])
        if not _TYPING_BLOCK.fullmatch(text) or any(above.count(quotes) % 2 for quotes in _QUOTES):
            return None
        block = _statement(lines, place, place, 0)
        if not isinstance(block, ast.If):
            return None
        found.append(block)
    return found


def _statement(lines: Sequence[str], start: int, head: int, column: int) -> ast.stmt | None:
    """The compound statement from ``start``, of which ``head`` is the line behind which its body may begin."""
    # An indented statement needs something that it can be indented in.
    above = "\n" * (start - 1) + "if 1:\n" if column else "\n" * start
    for end in _ends(lines, head + 1, column):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                body = ast.parse(above + "\n".join(lines[start:end]) + "\n").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if column and len(body) == 1 and isinstance(body[0], ast.If):
            body = body[0].body
        return body[0] if len(body) == 1 else None
    return None


def _ends(lines: Sequence[str], first: int, column: int) -> Iterator[int]:
    """Where a block may end that is indented deeper than ``column``; nothing where tabs make that unclear."""
    tries = 0
    for end in range(first, len(lines)):
        text = lines[end]
        inner = text.lstrip(" ")
        if not inner or inner[0] in "#)]}" or len(text) - len(inner) > column:
            continue
        tries += 1
        if inner[0] in "\t\f" or tries > _MOST_TRIES:
            return
        yield end
    yield len(lines)


def _first_decorator(lines: Sequence[str], place: int, column: int) -> int | None:
    """The index of the line where the decorators of a definition begin, or it itself; None where that is unsure."""
    first = place
    for above in range(place - 1, -1, -1):
        text = lines[above]
        inner = text.lstrip(" ")
        if not inner or inner[0] in "#)]}" or len(text) - len(inner) > column:
            continue
        if inner[0] in "\t\f" or (above and lines[above - 1].endswith("\\")):
            return None
        if len(text) - len(inner) == column and inner[0] == "@":
            first = above
            continue
        # Or is this line part of a decorator's argument? Then what is opened above is closed below.
        between = "\n".join(lines[above:first])
        is_whole = all(between.count(one) == between.count(other) for one, other in _BRACKETS)
        return first if is_whole and not any(between.count(quotes) % 2 for quotes in _QUOTES) else None
    return first
