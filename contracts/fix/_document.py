"""A source file under edit: places in its syntax tree, and replacements in its very bytes.

Whatever is not replaced stays as it is: byte order mark, encoding, line ends, spaces. Syntax trees give places in
the text as Python reads it; edits are kept as spans of the text as it is stored.
"""

from __future__ import annotations

import ast
import codecs
import io
import re
import tokenize
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from contracts._writing import CouldNotError
from contracts.source import SourceError, relative_path
from contracts.source._summary import parse
from contracts.source._tree import SourceFile

_LINE_END = re.compile(r"\r\n|\r|\n")


class Edit(NamedTuple):
    """``text`` in place of what stands from ``start`` to ``end``; an insertion where these are the same."""

    start: int
    end: int
    text: str


class Unsaved(SourceFile):
    """A file that is, as yet, in memory only."""

    def __init__(self, path: str, module: str, content: bytes) -> None:
        super().__init__(path, module, is_package=False)
        self._content = content


class Document:
    """A file, with its text as it is stored.

    Args:
        file: the file.
        module: its dotted name; None outside the root packages.
        package: the package that its relative imports start from.

    Raises:
        SourceError: it cannot be read, decoded or parsed.
    """

    def __init__(self, file: SourceFile, module: str | None, package: str | None) -> None:
        self.file = file
        self.path = relative_path(file.path)
        self.module = module
        self.package = package
        self.edits: list[Edit] = []
        encoding = self._detect(file.content)
        self._mark = codecs.BOM_UTF8 if encoding == "utf-8-sig" else b""
        self.encoding = "utf-8" if self._mark else encoding
        try:
            self.text = file.content.removeprefix(self._mark).decode(self.encoding)
        except UnicodeDecodeError as error:
            raise SourceError(file.path, 1, f"cannot be decoded: {error.reason}") from error
        ends = [match.span() for match in _LINE_END.finditer(self.text)]
        self._starts = [0, *(end for _, end in ends)]
        self._ends = [*(start for start, _ in ends), len(self.text)]
        self.newline = self.text[slice(*ends[0])] if ends else "\n"

    @staticmethod
    def _detect(content: bytes) -> str:
        return tokenize.detect_encoding(io.BytesIO(content).readline)[0]

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree.

        Raises:
            SourceError: the file cannot be parsed.
        """
        return parse(self.file)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree, from the outside in."""
        return [*ast.walk(self.tree)]

    @cached_property
    def blocks(self) -> list[list[ast.stmt]]:
        """Every list of statements in the tree, from the outside in."""
        found = []
        for node in self.nodes:
            if isinstance(node, ast.expr):
                continue
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list) and block:
                    found.append(block)
        return found

    @cached_property
    def lines(self) -> list[str]:
        """The lines, without their ends."""
        return [self.text[start:end] for start, end in zip(self._starts, self._ends, strict=True)]

    # Places

    def offset(self, line: int, column: int) -> int:
        """The offset of a place in a syntax tree: a line from 1, and bytes of UTF-8 from its start."""
        text = self.lines[line - 1]
        return self._starts[line - 1] + (column if text.isascii() else len(text.encode()[:column].decode()))

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node starts and ends."""
        at = node.lineno, node.col_offset, node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
        return self.offset(*at[:2]), self.offset(*at[2:])

    def source(self, node: ast.AST) -> str:
        """A node's text."""
        return self.text[slice(*self.span(node))]

    def line_start(self, line: int) -> int:
        """Where a line starts; the end of the text for the line after the last."""
        return self._starts[line - 1] if line <= len(self._starts) else len(self.text)

    def line_of(self, offset: int) -> int:
        """The line in which an offset lies."""
        import bisect  # noqa: PLC0415  for this one use

        return bisect.bisect_right(self._starts, offset)

    def place(self, node: ast.AST) -> str:
        """``path:line``."""
        return f"{self.path}:{node.lineno}"  # type: ignore[attr-defined]

    # Edits

    def replace(self, start: int, end: int, text: str) -> None:
        """Put ``text``, whose lines end in a bare newline, in place of a span."""
        self.edits.append(Edit(start, end, text.replace("\n", self.newline)))

    def insert(self, at: int, text: str) -> None:
        """Put ``text`` before what stands at an offset."""
        self.replace(at, at, text)

    def edited(self) -> bytes:
        """The file's bytes with all edits made.

        Raises:
            CouldNotError: two edits meet, or the file's encoding cannot hold the result.
        """
        if self.encode(self.text) != self.file.content:
            raise CouldNotError(
                f"{self.path}:1 is encoded in a way that is not kept ({self.encoding}). Save it as UTF-8."
            )
        return self.encode(apply(self.text, self.edits, self.path))

    def encode(self, text: str) -> bytes:
        """A text in this file's encoding, with its byte order mark."""
        try:
            return self._mark + text.encode(self.encoding)
        except UnicodeEncodeError as error:
            raise CouldNotError(
                f"{self.path}:1 is encoded as {self.encoding}, which has no '{error.object[error.start]}'. "
                "Save it as UTF-8 first."
            ) from error


def apply(text: str, edits: Iterable[Edit], path: str, start: int = 0, end: int | None = None) -> str:
    """The text from ``start`` to ``end``, with the edits that lie in it made.

    Raises:
        CouldNotError: two edits meet.
    """
    end = len(text) if end is None else end
    result: list[str] = []
    at = start
    for edit in sorted(dict.fromkeys(edits), key=lambda edit: edit[:2]):
        if not start <= edit.start < end and not edit.start == end == len(text):
            continue
        if edit.start < at or edit.end > end:
            line = text.count("\n", 0, edit.start) + 1
            raise CouldNotError(f"{path}:{line} is too intricate to rewrite: two changes meet there. Do one by hand.")
        result += [text[at : edit.start], edit.text]
        at = edit.end
    return "".join([*result, text[at:end]])


def whole_lines(document: Document, statements: Sequence[ast.stmt], after: int = 0) -> list[tuple[int, int]]:
    """The lines, first and last, that each statement has for itself: with decorators, and comments right above.

    Args:
        document: the file.
        statements: all statements of one block.
        after: the last line that belongs to none of them.

    Raises:
        CouldNotError: two statements share a line.
    """
    result: list[tuple[int, int]] = []
    before = after
    for statement in statements:
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
        if first <= before:
            raise CouldNotError(f"{document.path}:{first} holds two statements. Write each on a line of its own first.")
        while first - 1 > before and document.lines[first - 2].lstrip().startswith("#"):
            first -= 1
        before = statement.end_lineno or statement.lineno
        result.append((first, before))
    return result
