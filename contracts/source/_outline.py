"""A module's source without the function bodies that define nothing, so that it parses several times faster.

Most of a file is function bodies, and a body in which no class can come to be says nothing about classes.
Lines keep their numbers and columns. Where the shape of the text leaves any doubt (tabs, a bracket that does
not close), the text is left whole; the parser then sees all of it.
"""

from __future__ import annotations

import re

# Strings and comments, so that what they hold is not taken for code. Longest quotes first.
_NO_CODE = re.compile(
    r"#[^\n]*"
    r'|"""(?:[^"\\]|\\.|"(?!""))*"""'
    r"|'''(?:[^'\\]|\\.|'(?!''))*'''"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'(?:[^'\\\n]|\\.)*'",
    re.DOTALL,
)
_DEF = re.compile(r"^( *)(?:async +)?def\b", re.MULTILINE)
_BRACKET_OR_COLON = re.compile(r"[()\[\]{}:]")
_TAB_INDENT = re.compile(r"^ *\t", re.MULTILINE)
# Where a function body may create a class or rebind a global; such bodies are kept.
OF_INTEREST = re.compile(
    r"^[ \t\f]*(?:class\b|global\b)|\b(?:type|new_class|make_dataclass)[ \t]*\(|:=", re.MULTILINE
)
_FILLER = "_" * 4096


def outline(text: str) -> str:
    """``text`` with ``...`` for each function body that holds nothing of interest, line by line in place."""
    if _TAB_INDENT.search(text) or "\f" in text:
        return text
    masked = _NO_CODE.sub(_mask, text)
    pieces: list[str] = []
    done = 0
    for match in _DEF.finditer(masked):
        if match.start() < done:
            continue
        head = _end_of_header(masked, match.end())
        if head is None:
            return text
        line_end = masked.find("\n", head)
        if line_end < 0 or masked[head:line_end].strip():
            continue  # the body stands on the same line
        end = _end_of_body(masked, line_end + 1, len(match[1]))
        body = text[line_end:end]
        if "__getattr__" in text[match.end() : match.end() + 16] or OF_INTEREST.search(body):
            continue
        pieces += [text[done:head], " ...", "\n" * body.count("\n")]
        done = end
    pieces.append(text[done:])
    return "".join(pieces)


def _mask(match: re.Match[str]) -> str:
    length = match.end() - match.start()
    if match[0][0] == "#":
        return " " * length
    return _FILLER[:length] if length <= len(_FILLER) else "_" * length


def _end_of_header(masked: str, start: int) -> int | None:
    """Just behind the colon that ends a ``def`` header."""
    depth = 0
    for match in _BRACKET_OR_COLON.finditer(masked, start):
        character = match[0]
        if character in "([{":
            depth += 1
        elif character != ":":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0:
            return match.end()
    return None


def _end_of_body(masked: str, start: int, indent: int) -> int:
    """Where the lines that are indented deeper than ``indent`` end."""
    pattern = _OUTDENTED.get(indent)
    if pattern is None:
        pattern = _OUTDENTED[indent] = re.compile(rf"^ {{0,{indent}}}\S", re.MULTILINE)
    match = pattern.search(masked, start)
    return match.start() if match else len(masked)


_OUTDENTED: dict[int, re.Pattern[str]] = {}
