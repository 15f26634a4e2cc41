"""Import statements: names taken out of them, paths changed in them, new ones put in their place.

libcst rewrites a statement of which a part goes, since commas, brackets and comments hang together there; a path
that changes, and a statement that is added, are plain replacements of text.
"""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import libcst as cst

from contracts._writing import CouldNotError
from contracts.fix._document import Document

_SPACE = r"(?:[ \t\f]|\\\r?\n)*"
_FROM = re.compile(rf"from(?P<gap>{_SPACE})(?P<module>\.[.\s]*[\w.]*|[\w.]+?){_SPACE}(?=import\b)")
_Import = ast.Import | ast.ImportFrom


class Binding(NamedTuple):
    """``from module import name as bound``, or ``import module`` where there is no name."""

    module: str
    name: str = ""
    bound: str = ""

    @property
    def alias(self) -> str:
        """What stands after ``import``."""
        return self.name if self.bound in {"", self.name} else f"{self.name} as {self.bound}"


def line_length(folder: str) -> int:
    """The longest line that a repository's formatter leaves; 88 where its pyproject.toml says nothing."""
    try:
        with open(os.path.join(folder, "pyproject.toml"), "rb") as file:
            tools = tomllib.load(file).get("tool", {})
    except FileNotFoundError:
        return 88
    except tomllib.TOMLDecodeError as error:
        raise CouldNotError(f"pyproject.toml cannot be read: {error}.") from error
    found = tools.get("ruff", {}).get("line-length") or tools.get("black", {}).get("line-length")
    return found if isinstance(found, int) else 88


# Paths


def absolute(node: ast.ImportFrom, package: str | None) -> str | None:
    """The module that names are imported from; None where a relative import leads out of everything."""
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    if len(parts) < node.level:
        return None
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def relative(module: str, package: str) -> str:
    """How a relative import in ``package`` spells ``module``; the absolute name if they share no package."""
    here, there = package.split("."), module.split(".")
    common = 0
    while common < min(len(here), len(there)) and here[common] == there[common]:
        common += 1
    return "." * (len(here) - common + 1) + ".".join(there[common:]) if common else module


def set_source(document: Document, node: ast.ImportFrom, module: str) -> None:
    """Let a statement import from another module, spelled ``module``."""
    start, _ = document.span(node)
    match = _FROM.match(document.text, start)
    spelled = "." * node.level + (node.module or "")
    if match is None or re.sub(r"\s", "", match["module"]) != spelled:
        raise CouldNotError(f"{document.place(node)} is spelled in an unusual way. Change this import by hand.")
    gap = "" if match["gap"] or module.startswith(".") else " "
    begin, end = match.span("module")
    # `from .import x` needs no space before `import`; `from a import x` does.
    after = "" if document.text[end : end + 1].isspace() or document.text[end : end + 1] == "\\" else " "
    document.replace(begin, end, f"{gap}{module}{after}")


# Statements


def render(source: str, names: Sequence[str], indent: str, limit: int, *, wrapped: bool = False) -> str:
    """A statement that imports names, without the indentation of its first line."""
    line = f"from {source} import {', '.join(names)}"
    if not wrapped and len(indent) + len(line) <= limit:
        return line
    listed = "".join(f"{indent}    {name},\n" for name in names)
    return f"from {source} import (\n{listed}{indent})"


def without(document: Document, node: _Import, dropped: Collection[ast.alias]) -> str:
    """The text of a statement less some of its names, all else as it stands."""
    statement = cst.parse_statement(document.source(node))
    line = cst.ensure_type(statement, cst.SimpleStatementLine).body[0]
    if not isinstance(line, cst.Import | cst.ImportFrom) or isinstance(line.names, cst.ImportStar):
        raise CouldNotError(f"{document.place(node)} is spelled in an unusual way. Change this import by hand.")
    pairs = list(zip(line.names, node.names, strict=True))
    kept = [alias for alias, known in pairs if known not in dropped]
    last = line.names[-1]
    if kept[-1] is not last:
        kept[-1] = kept[-1].with_changes(comma=_last_comma(kept[-1].comma, last.comma))
    text = cst.Module([], default_newline=document.newline).code_for_node(line.with_changes(names=kept))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _last_comma(
    own: cst.Comma | cst.MaybeSentinel, last: cst.Comma | cst.MaybeSentinel
) -> cst.BaseAssignTargetExpression:
    """The comma after what comes to stand last: it keeps its comment, and the bracket its place."""
    if not isinstance(own, cst.Comma) or not isinstance(own.whitespace_after, cst.ParenthesizedWhitespace):
        return last  # type: ignore[return-value]
    space = own.whitespace_after
    if isinstance(last, cst.Comma) and isinstance(last.whitespace_after, cst.ParenthesizedWhitespace):
        end = last.whitespace_after
        space = space.with_changes(indent=end.indent, last_line=end.last_line, empty_lines=end.empty_lines)
        return own.with_changes(whitespace_after=space)  # type: ignore[return-value]
    return own if space.first_line.comment is not None else last  # type: ignore[return-value]


class ImportEditor:
    """Changes the imports of one file; what is added and removed is so once ``finish`` is called.

    Args:
        document: the file.
        package: the package that relative imports start from in the file's place-to-be.
        limit: the longest line.
        fresh: whether the file is new, so that nobody minds if an import that got shorter goes on one line.
    """

    def __init__(self, document: Document, package: str | None, limit: int, *, fresh: bool = False) -> None:
        self.fresh = fresh
        self.document = document
        self.package = package
        self.limit = limit
        self._block_of = {id(s): block for block in document.blocks for s in block}
        self._added: dict[tuple[int, str, bool], tuple[ast.stmt, ast.ImportFrom | None, dict[str, None]]] = {}
        self._sources: dict[ast.stmt, str] = {}
        self._gone: list[_Import] = []
        self._changed: set[_Import] = set()
        self._inserted: set[int] = set()

    def spell(self, module: str, *, like: ast.ImportFrom | None) -> str:
        """A module's name, relative where a statement is."""
        if like is None or not like.level or not self.package:
            return module
        return relative(module, self.package)

    def change(self, node: ast.ImportFrom, targets: Mapping[ast.alias, Binding | None]) -> None:
        """Let a statement import some of its names from elsewhere.

        Args:
            node: the statement.
            targets: where names come from now; None for a name that goes.
        """
        self._changed.add(node)
        source = absolute(node, self.document.package)
        stays = [alias for alias in node.names if alias not in targets]
        moved = {alias: target for alias, target in targets.items() if target is not None}
        sources = {target.module for target in moved.values()}
        if stays or not moved:
            if len(stays) < len(node.names):
                self._shrink(node, stays)
            elif source is not None and self.package != self.document.package and node.level:
                set_source(self.document, node, self.spell(source, like=node))
            for module in sorted(sources):
                bindings = [target for target in moved.values() if target.module == module]
                self.add(node, bindings, like=node)
            return
        if len(moved) == len(node.names) and len(sources) == 1:
            self._redirect(node, moved, sources.pop())
            return
        start, end = self.document.span(node)
        first, *others = sorted(sources)
        indent = self._indent(node)
        names = [target.alias for target in moved.values() if target.module == first]
        text = render(
            self.spell(first, like=node), names, indent, self.limit, wrapped="(" in self.document.source(node)
        )
        self.document.replace(start, end, text)
        for module in others:
            self.add(node, [target for target in moved.values() if target.module == module], like=node)

    def _shrink(self, node: ast.ImportFrom, stays: Sequence[ast.alias]) -> None:
        if not stays:
            self.remove(node)
            return
        source = absolute(node, self.document.package)
        text = without(self.document, node, [alias for alias in node.names if alias not in stays])
        if source is not None and self.package != self.document.package and node.level:
            spelled = self.spell(source, like=node)
            text = _FROM.sub(lambda match: f"from {spelled} ", text, count=1)
        if self.fresh and "#" not in text:
            joined = re.sub(r"\(\s*(.*?),?\s*\)$", r"\1", text, flags=re.DOTALL)
            if "\n" not in joined and len(joined) <= self.limit:
                text = joined
        self.document.replace(*self.document.span(node), text)

    def _redirect(self, node: ast.ImportFrom, moved: Mapping[ast.alias, Binding], module: str) -> None:
        """All names of a statement come from one other module: its path changes in place."""
        spelled = self.spell(module, like=node)
        source = self.document.source(node)
        before = "." * node.level + (node.module or "")
        longer = len(self._line(node)) + len(spelled) - len(before)
        if "(" not in source and "\n" not in source and longer > self.limit >= len(self._line(node)):
            names = [target.alias for target in moved.values()]
            text = render(spelled, names, self._indent(node), self.limit, wrapped=True)
            self.document.replace(*self.document.span(node), text)
            return
        self._sources[node] = spelled
        set_source(self.document, node, spelled)
        for alias, target in moved.items():
            if target.name != alias.name:
                self.document.replace(*self.document.span(alias), target.alias)

    def remove(self, node: _Import) -> None:
        """Take a statement out, with its line if nothing else stands there."""
        self._gone.append(node)

    def add(self, anchor: ast.stmt, bindings: Sequence[Binding], *, like: ast.ImportFrom | None = None) -> None:
        """Import more names, in the block of a statement: where they sort, or else right after it."""
        module = bindings[0].module
        key = (id(self._block_of[id(anchor)]), module, bool(bindings[0].name))
        _, _, names = self._added.setdefault(key, (anchor, like, {}))
        names |= dict.fromkeys(binding.alias for binding in bindings if binding.name)

    def finish(self) -> None:
        """Make the additions, and take out the lines of what was removed."""
        for (_, module, _), (anchor, like, names) in self._added.items():
            self._add(anchor, module, [*names], like)
        document = self.document
        removed: set[int] = set()
        for node in self._gone:
            removed |= self._remove(node)
        for line in sorted(removed):
            if line - 1 not in removed or line in self._inserted:
                last = line
                while last + 1 in removed and last + 1 not in self._inserted:
                    last += 1
                first, following = self._with_blanks(line, last + 1)
                document.replace(document.line_start(first), document.line_start(following), "")

    def _with_blanks(self, first: int, following: int) -> tuple[int, int]:
        """The lines that go, with the blank ones that would be too many: around them, or at the file's start."""
        lines = self.document.lines
        if not self._inserted & {first, following}:
            if following > len(lines) or not lines[following - 1].strip():
                while first > 1 and not lines[first - 2].strip():
                    first -= 1
            while first == 1 and following <= len(lines) and not lines[following - 1].strip():
                following += 1
        return first, following

    def _remove(self, node: _Import) -> set[int]:
        """The lines that go with a statement."""
        start, end = self.document.span(node)
        last = node.end_lineno or node.lineno
        block = self._block_of[id(node)]
        filled = any(key[0] == id(block) for key in self._added) and not self._prefix(node).strip()
        if node is block[0] and all(statement in self._gone for statement in block) and not filled:
            self.document.replace(start, end, "pass")
            return set()
        rest = self.document.lines[last - 1][end - self.document.line_start(last) :].strip()
        if self._prefix(node).strip() or (rest and not rest.startswith("#")):
            place = self.document.place(node)
            raise CouldNotError(f"{place} holds two statements. Write each on a line of its own first.")
        return {*range(node.lineno, last + 1)}

    def _add(self, anchor: ast.stmt, module: str, names: Sequence[str], like: ast.ImportFrom | None) -> None:
        known = self._importing(self._block_of[id(anchor)], module) if names else None
        if known is not None:
            self._extend(known, names)
            return
        spelled = self.spell(module, like=like)
        indent = self._indent(anchor)
        wrapped = like is not None and "(" in self.document.source(like)
        text = render(spelled, names, indent, self.limit, wrapped=wrapped) if names else f"import {module}"
        if self._prefix(anchor).strip():  # `if x: import y`
            self.document.insert(self.document.span(anchor)[1], f"; {text}")
            return
        at = self._sorted_place(anchor, spelled) if names else None
        self._insert_line(at or (anchor.end_lineno or anchor.lineno) + 1, f"{indent}{text}")

    def _importing(self, block: Sequence[ast.stmt], module: str) -> ast.ImportFrom | None:
        """A statement of a block that imports names from a module already, and goes on so."""
        if self.package != self.document.package:
            return None
        for node in block:
            if not isinstance(node, ast.ImportFrom) or node in self._gone or node in self._changed:
                continue
            if absolute(node, self.document.package) == module and node.names[0].name != "*":
                return node
        return None

    def _extend(self, node: ast.ImportFrom, names: Sequence[str]) -> None:
        """Import more names in a statement."""
        known = [_with_name(alias) for alias in node.names]
        new = [name for name in names if name not in known]
        everything = [*known, *new]
        if known == sorted(known, key=_import_order):
            everything.sort(key=_import_order)
        source = self.document.source(node)
        if "(" not in source or "#" not in source:
            spelled = "." * node.level + (node.module or "")
            wrapped = "\n" in source or "\r" in source
            text = render(spelled, everything, self._indent(node), self.limit, wrapped=wrapped)
            self.document.replace(*self.document.span(node), text)
            return
        last = self.document.span(node.names[-1])[1]
        end = self.document.text.index(")", last)
        comma = "" if "," in self.document.text[last:end].partition("#")[0] else ","
        self.document.insert(last, comma)
        line = self.document.line_start(self.document.line_of(end))
        self.document.insert(line, "".join(f"{self._indent(node)}    {name},\n" for name in new))

    def _insert_line(self, line: int, text: str) -> None:
        self._inserted.add(line)
        at = self.document.line_start(line)
        if at and not self.document.text[:at].endswith(("\n", "\r")):
            self.document.insert(at, f"\n{text}")  # the last line has no end
        else:
            self.document.insert(at, f"{text}\n")

    def _sorted_place(self, anchor: ast.stmt, spelled: str) -> int | None:
        """The line before which a new import from ``spelled`` belongs, where its neighbours are sorted."""
        section = [node for node in self._section(anchor) if isinstance(node, ast.ImportFrom) and not node.level]
        keys = [(node.module or "").lower() for node in section]
        if spelled.startswith(".") or not keys or keys != sorted(keys):
            return None
        for node, key in zip(section, keys, strict=True):
            if self._sources.get(node, key).lower() > spelled.lower():
                line = node.lineno
                while line > 1 and self.document.lines[line - 2].lstrip().startswith("#") and node is not section[0]:
                    line -= 1
                return line
        return (section[-1].end_lineno or 0) + 1

    def _section(self, anchor: ast.stmt) -> list[ast.stmt]:
        """The imports around a statement that no blank line parts from it."""
        block = self._block_of[id(anchor)]
        index = block.index(anchor)
        low = high = index
        while low and isinstance(block[low - 1], _Import) and self._adjacent(block[low - 1], block[low]):
            low -= 1
        while (
            high + 1 < len(block)
            and isinstance(block[high + 1], _Import)
            and self._adjacent(block[high], block[high + 1])
        ):
            high += 1
        return block[low : high + 1]

    def _adjacent(self, first: ast.stmt, second: ast.stmt) -> bool:
        between = self.document.lines[first.end_lineno or 0 : second.lineno - 1]
        return all(line.strip() for line in between)

    def _prefix(self, node: ast.stmt) -> str:
        start, _ = self.document.span(node)
        return self.document.text[self.document.line_start(node.lineno) : start]

    def _indent(self, node: ast.stmt) -> str:
        line = self.document.lines[node.lineno - 1]
        return line[: len(line) - len(line.lstrip())]

    def _line(self, node: ast.stmt) -> str:
        return self.document.lines[node.lineno - 1]


def _with_name(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


def _import_order(name: str) -> tuple[int, str]:
    """Constants, classes and the rest, as isort and ruff order them."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name
