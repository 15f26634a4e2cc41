"""The Python in files that are not Python: code blocks in Markdown and reStructuredText, notebooks' cells."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from contracts.source._errors import SourceError
from contracts.source._tree import SourceFile

_PYTHON = frozenset(
    {"python", "python3", "py", "py3", "pyi", "pycon", "python-console", "python-repl", "ipython", "ipython3"}
)
# A fence may follow a quote mark or a list's bullet.
_FENCE = re.compile(r"^((?:[ \t]*(?:>|[-*+][ \t]|\d+[.)][ \t]))*[ \t]*)(`{3,}|~{3,})([^`]*)$")
_DIRECTIVE = re.compile(r"^([ \t]*)\.\.[ \t]+([\w-]+)::[ \t]*([\w-]*)[ \t]*$")
_CODE_DIRECTIVES = frozenset({"code", "code-block", "sourcecode"})
_PYTHON_DIRECTIVES = frozenset(
    {"doctest", "ipython", "jupyter-execute", "testcleanup", "testcode", "testsetup"}
)
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LONGEST_STATEMENT = 60  # lines; for imports in blocks that do not parse

_NOT_A_NOTEBOOK = "Save it with a newer Jupyter, or leave it out of also_scan"


class Part(NamedTuple):
    """A syntax tree, its lines, and where each lies in the file: the line, and how far to the right."""

    tree: ast.Module
    lines: list[str]
    places: list[tuple[int, int]]


def parts(file: SourceFile) -> list[Part]:
    """The Python parts of a file that is not Python. What does not parse is taken statement by statement.

    Raises:
        SourceError: the file cannot be read or decoded, or is a notebook that is no JSON.
    """
    try:
        text = file.content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = file.content.count(b"\n", 0, error.start) + 1
        reason = f"cannot be decoded: byte 0x{file.content[error.start]:02x} is not utf-8. Save it as UTF-8"
        raise SourceError(file.path, line, reason) from error
    if file.path.endswith(".ipynb"):
        blocks = _cells(file, text)
    else:
        blocks = _blocks(text.split("\n"), restructured=file.path.endswith(".rst"))
    return [part for block in blocks for part in _parse(block)]


class _Block(NamedTuple):
    lines: list[str]
    places: list[tuple[int, int]]


# Documents


def _blocks(lines: Sequence[str], *, restructured: bool) -> Iterator[_Block]:
    number = 0
    while number < len(lines):
        found = _directive(lines, number) if restructured else _fence(lines, number)
        if found is not None:
            start, end, after, python = found
            if python:
                yield _cut(lines, start, end)
            else:
                yield from _prompts(lines, start, end)
            number = after
        else:
            yield from _prompts(lines, number, number + 1)
            number += 1


def _fence(lines: Sequence[str], number: int) -> tuple[int, int, int, bool] | None:
    """The block that a fence opens: where it begins and ends, where to go on, and whether it is Python."""
    opening = _FENCE.match(lines[number])
    if opening is None:
        return None
    _, fence, info = opening.groups()
    end = number + 1
    while end < len(lines):
        rest = lines[end].lstrip("> \t").rstrip()
        if len(rest) >= len(fence) and not rest.strip(fence[0]):
            break
        end += 1
    words = re.split(r"[\s{}.,:]+", info.strip(" \t{}.").lower())
    python = bool(_PYTHON & set(words[:1])) or (
        words[0] in {"code", "code-block", "code-cell", "sourcecode"} and bool(_PYTHON & set(words[1:2]))
    )
    return number + 1, end, end + 1, python


def _directive(lines: Sequence[str], number: int) -> tuple[int, int, int, bool] | None:
    """The same for a reStructuredText directive that holds code."""
    opening = _DIRECTIVE.match(lines[number])
    if opening is None or opening[2] not in _CODE_DIRECTIVES | _PYTHON_DIRECTIVES:
        return None
    indent = len(opening[1].expandtabs())
    end = number + 1
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > indent):
        end += 1
    start = number + 1
    while start < end and re.match(r"[ \t]+:[\w-]+:", lines[start]):
        start += 1
    return start, end, end, opening[2] in _PYTHON_DIRECTIVES or opening[3].lower() in _PYTHON


def _cut(lines: Sequence[str], start: int, end: int) -> _Block:
    """Lines as a block, without what is left of all of them, and without prompts."""
    chosen = [line.expandtabs(8) for line in lines[start:end]]
    quoted = [line for line in chosen if line.strip()]
    prefix = ""
    if quoted and all(line.lstrip().startswith(">") and not _PROMPT.match(line) for line in quoted):
        prefix = r"[ ]*>[ ]?"
    cut = [len(found[0]) if prefix and (found := re.match(prefix, line)) else 0 for line in chosen]
    chosen = [line[skipped:] for line, skipped in zip(chosen, cut, strict=True)]
    if any(_PROMPT.match(line) and line.lstrip().startswith(">>>") for line in chosen):
        return _without_prompts(chosen, [(start + 1 + n, cut[n]) for n in range(len(chosen))])
    margin = min((_indent(line) for line in chosen if line.strip()), default=0)
    return _Block(
        [line[margin:] for line in chosen], [(start + 1 + n, cut[n] + margin) for n in range(len(chosen))]
    )


def _prompts(lines: Sequence[str], start: int, end: int) -> Iterator[_Block]:
    """A line with a prompt, and those that continue it, as blocks of their own."""
    for number in range(start, end):
        if lines[number].lstrip().startswith(">>>") and _PROMPT.match(lines[number]):
            last = number + 1
            while last < len(lines) and lines[last].lstrip().startswith("...") and _PROMPT.match(lines[last]):
                last += 1
            chosen = list(lines[number:last])
            yield _without_prompts(chosen, [(number + 1 + n, 0) for n in range(len(chosen))])


def _without_prompts(lines: Sequence[str], places: Sequence[tuple[int, int]]) -> _Block:
    code, where = [], []
    for line, (number, column) in zip(lines, places, strict=True):
        prompt = _PROMPT.match(line)
        if prompt:  # what stands without one is output
            code.append(line[prompt.end() :])
            where.append((number, column + prompt.end()))
    return _Block(code, where)


def _indent(line: str) -> int:
    expanded = line.expandtabs()
    return len(expanded) - len(expanded.lstrip())


# Notebooks


def _cells(file: SourceFile, text: str) -> Iterator[_Block]:
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        reason = f"cannot be parsed: no notebook: {error}. {_NOT_A_NOTEBOOK}"
        raise SourceError(file.path, line, reason) from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        reason = f"cannot be parsed: a notebook without cells (older than format 4). {_NOT_A_NOTEBOOK}"
        raise SourceError(file.path, 1, reason)
    literals = _sources(text)
    for cell in cells:
        if isinstance(cell, dict) and cell.get("cell_type") == "code":
            source = cell.get("source", [])
            pieces = [source] if isinstance(source, str) else source
            if isinstance(pieces, list) and all(isinstance(piece, str) for piece in pieces):
                yield _cell(pieces, literals, text)


def _sources(text: str) -> Iterator[tuple[int, str]]:
    """The strings under the keys ``source`` of a JSON text, and where they begin."""
    wanted = False
    for found in _STRING.finditer(text):
        value = json.loads(found[0], strict=False)
        if text[found.end() : found.end() + 80].lstrip()[:1] == ":":
            wanted = value == "source"
        elif wanted:
            yield found.start(), value


def _cell(pieces: Sequence[str], strings: Iterator[tuple[int, str]], text: str) -> _Block:
    """A cell's lines, found again in the file's text: its strings come in the order of its cells."""
    lines: list[str] = []
    places: list[tuple[int, int]] = []
    for piece in pieces:
        start = next((start for start, value in strings if value == piece), 0)
        number = text.count("\n", 0, start) + 1
        column = start - (text.rfind("\n", 0, start) + 1) + 1
        for line in piece.removesuffix("\n").split("\n"):
            lines.append(line)
            places.append((number, column))
            column += len(json.dumps(f"{line}\n", ensure_ascii=False)) - 2
    if lines and re.match(r"%%(?!time|timeit|capture|prun)", lines[0]):
        return _Block([], [])  # another language
    # Shell commands and magics are no Python; their lines stay, so that the others keep their places.
    return _Block([re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in lines], places)


# Parsing


def _parse(block: _Block) -> Iterator[Part]:
    whole = _tree("\n".join(block.lines))
    if whole is not None:
        yield Part(whole, block.lines, block.places)
        return
    number = 0
    while number < len(block.lines):
        statement = block.lines[number].lstrip()
        longest = _LONGEST_STATEMENT if statement.startswith(("import ", "from ")) else 1
        part = _statement(block, number, longest)
        if part is not None:
            yield part
        number += len(part.lines) if part is not None else 1


def _statement(block: _Block, start: int, longest: int) -> Part | None:
    """The statement that begins in a line, if one does."""
    margin = len(block.lines[start]) - len(block.lines[start].lstrip())
    for end in range(start + 1, min(start + longest, len(block.lines)) + 1):
        lines = [block.lines[start][margin:], *block.lines[start + 1 : end]]
        tree = _tree("\n".join(lines))
        if tree is not None:
            (line, column), *others = block.places[start:end]
            return Part(tree, lines, [(line, column + margin), *others])
    return None


def _tree(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # a sketch rather than a program, as documentation often has
