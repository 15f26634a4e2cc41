"""Paths in string literals, also where one literal is written as several."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from contracts.fix._document import Document

_OPENING = re.compile(r"""[rRuU]?(\"\"\"|'''|"|')""")


def opening(text: str) -> int | None:
    """How long the prefix and the quotes are with which a plain literal begins; None for other text."""
    match = _OPENING.match(text)
    return match.end() if match else None


def replace(document: Document, node: ast.AST, before: str, after: str) -> bool:
    """Replace what stands once in a literal, touching no more than what differs; whether that could be done."""
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node.value.count(before) != 1:
        return False
    pieces = [*_pieces(document, node)]
    if "".join(body for _, body in pieces) != node.value:
        return False  # one with escapes in it
    common = _common(before, after)
    rest = before[common:], after[common:]
    same_end = _common(rest[0][::-1], rest[1][::-1])
    start = node.value.index(before) + common
    end = start + len(rest[0]) - same_end
    place = 0
    for source, body in pieces:
        if place <= start and end <= place + len(body):
            new = rest[1][: len(rest[1]) - same_end]
            document.replace(source + start - place, source + end - place, new)
            return True
        place += len(body)
    return False


def _pieces(document: Document, node: ast.Constant) -> Iterator[tuple[int, str]]:
    """Where the text of each literal begins, and the text."""
    start, end = document.span(node)
    # In brackets, since the lines of a literal in several need not be statements.
    source = f"({document.text[start:end]})"
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source, newline="").readline):
        if token.type != tokenize.STRING:
            continue
        skipped = opening(token.string)
        if skipped is not None:
            quotes = token.string[:skipped].lstrip("rRuU")
            at = sum(len(line) for line in lines[: token.start[0] - 1]) + token.start[1] - 1
            yield start + at + skipped, token.string[skipped : -len(quotes)]


def _common(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
