"""Putting a module's text together from statements, and taking statements out of one."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence

from contracts.fix._document import Document, Unsaved
from contracts.fix._imports import Binding, ImportEditor
from contracts.fix._units import Unit


def joined(head: str, chosen: Sequence[Unit], text_of: Callable[[Unit], str]) -> str:
    """A module from its head and its statements: two blank lines around definitions, none between others."""
    text = head
    before: Unit | None = None
    for unit in chosen:
        big = isinstance(unit.statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        big_before = before is None or isinstance(
            before.statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        )
        if before is None:
            gap = "" if not head else "\n\n" if big else "\n"
        else:
            gap = "\n\n" if big or big_before else "\n" if unit.first - before.last > 1 else ""
        text += gap + text_of(unit)
        before = unit
    return text


def with_imports(text: str, module: str, path: str, sources: Mapping[str, Sequence[str]], limit: int) -> str:
    """A module's text with more imports, in their place."""
    if not sources:
        return text
    document = Document(Unsaved(path, module, text.encode()), module, module.rpartition(".")[0])
    editor = ImportEditor(document, document.package, limit)
    imports = [s for s in document.tree.body if isinstance(s, ast.Import | ast.ImportFrom)]
    anchors = [s for s in imports if isinstance(s, ast.ImportFrom) and s.module != "__future__"] or imports
    for source, names in sources.items():
        bindings = [Binding(source, name) for name in names]
        if anchors:
            like = anchors[-1] if isinstance(anchors[-1], ast.ImportFrom) and anchors[-1].level else None
            editor.add(anchors[-1], bindings, like=like)
        else:
            line = next((n for n, content in enumerate(document.lines, 1) if not content.startswith("#")), 1)
            text = f"from {source} import {', '.join(names)}\n"
            document.insert(document.line_start(line), f"\n{text}" if line > 1 else f"{text}\n\n")
    editor.finish()
    return document.edited().decode()


def for_type_checkers(text: str, module: str, path: str, source: str, names: Sequence[str]) -> str:
    """A module's text with imports that only type checkers see; it imports ``TYPE_CHECKING`` already."""
    document = Document(Unsaved(path, module, text.encode()), module, module.rpartition(".")[0])
    last = [s for s in document.tree.body if isinstance(s, ast.Import | ast.ImportFrom)][-1]
    block = f"\nif TYPE_CHECKING:\n    from {source} import {', '.join(names)}\n"
    document.insert(document.line_start((last.end_lineno or 0) + 1), block)
    return document.edited().decode()


def delete_units(document: Document, leaving: Sequence[Unit]) -> None:
    """Take statements out, with the blank lines that would be too many then."""
    count = len(document.lines)
    gone = {line for unit in leaving for line in range(unit.first, unit.last + 1)}

    def blank(line: int) -> bool:
        return 1 <= line <= count and not document.lines[line - 1].strip()

    runs: list[tuple[int, int]] = []
    for line in sorted(gone):
        if runs and (line == runs[-1][1] + 1 or all(blank(n) for n in range(runs[-1][1] + 1, line))):
            runs[-1] = runs[-1][0], line
        else:
            runs.append((line, line))
    for first, last in runs:
        before, after = first, last
        while blank(before - 1):
            before -= 1
        while blank(after + 1):
            after += 1
        if after >= count:
            start, end = before, count  # the end of the file
        elif first - before < after - last and before > 1:
            start, end = before, last
        else:
            start, end = first, after
        document.replace(document.line_start(start), document.line_start(end + 1), "")
