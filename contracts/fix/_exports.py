"""What a package's ``__init__`` exports: adds classes to it, in the style in which it exports others."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from contracts._writing import CouldNotError
from contracts.fix._imports import Binding, ImportEditor, absolute, relative
from contracts.fix._moves import Moves
from contracts.source._scopes import own_statements

_LAZY = """
{table}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
"""


class Exporter:
    """Adds exports to one package; ``finish`` writes what goes into its lists.

    Args:
        editor: changes the imports of its ``__init__``.
        package: its dotted name.
        moves: what moves at the same time.
        limit: the longest line.
    """

    def __init__(self, editor: ImportEditor, package: str, moves: Moves) -> None:
        self.document = document = editor.document
        self.package = package
        self._moves = moves
        self._editor = editor
        body = document.tree.body
        self._own = [
            statement
            for statement in body
            if isinstance(statement, ast.ImportFrom) and (absolute(statement, package) or "").startswith(f"{package}.")
        ]
        displays = [_all_display(statement) for statement in own_statements(body)]
        self._displays = [display for display in displays if display is not None]
        self._listed: dict[str, str] = {}
        self._lazy: dict[str, str] = {}

    @property
    def exports_something(self) -> bool:
        """Whether the package exports what its modules hold, rather than leave them to be imported by path."""
        return bool(self._own or self._displays)

    def names(self, name: str) -> bool:
        """Whether the package says a name at all: binds it, or gives it lazily."""
        constants = (node.value for node in self.document.nodes if isinstance(node, ast.Constant))
        return self.binds(name) is not None or name in constants

    def binds(self, name: str) -> ast.stmt | None:
        """The statement that binds a name in the package."""
        for statement in own_statements(self.document.tree.body):
            match statement:
                case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                    bound = {alias.asname or alias.name for alias in aliases}
                case ast.ClassDef(name=own) | ast.FunctionDef(name=own):
                    bound = {own}
                case ast.Assign(targets=targets):
                    bound = {target.id for target in targets if isinstance(target, ast.Name)}
                case _:
                    continue
            if name in bound:
                return statement
        return None

    def add(self, module: str, name: str, *, demanded: bool) -> None:
        """Export ``name`` of ``module``: import it, and list it in ``__all__``.

        Args:
            module: the module.
            name: the class.
            demanded: whether there must be an ``__all__``.

        Raises:
            CouldNotError: the package has something else of that name.
        """
        known = self.binds(name)
        if known is None:
            self._import(module, name)
        elif self._imports(known, name) != f"{module}.{name}":
            raise CouldNotError(
                f"{self.document.place(known)} {self.package} has another {name}. Rename one of them first."
            )
        if demanded or self._displays:
            self._listed[name] = module

    def add_lazily(self, module: str, name: str, *, listed: bool) -> None:
        """Export a class that is imported when it is first asked for, since not everyone can import its module.

        Args:
            module: the module.
            name: the class.
            listed: whether ``__all__`` lists it; then ``from package import *`` imports it.

        Raises:
            CouldNotError: the package has something else of that name, or a ``__getattr__`` without a table.
        """
        known = self.binds(name)
        getter = self.binds("__getattr__")
        if known is None and getter is not None and self._table(getter) is None:
            known = getter
        if known is not None:
            raise CouldNotError(
                f"{self.document.place(known)} stands where {self.package} would export {name} lazily. "
                "Add the export by hand first."
            )
        self._lazy[name] = module
        if listed:
            self._listed[name] = module

    def finish(self) -> None:
        """Write ``__all__``, and what is exported lazily."""
        known = {e.value for d in self._displays for e in d.elts if isinstance(e, ast.Constant)}
        new = {name: module for name, module in self._listed.items() if name not in known}
        if new and self._displays:
            self._list(self._displays[0], new)
        elif new:
            self._make_list(new)
        if self._lazy:
            getter = self.binds("__getattr__")
            table = self._table(getter) if getter is not None else None
            if table is not None:
                self._extend_table(table)
            else:
                self._make_table()

    # Imports

    def _imports(self, statement: ast.stmt, bound: str) -> str | None:
        """Where a statement takes a name from, once all has moved."""
        source = absolute(statement, self.package) if isinstance(statement, ast.ImportFrom) else None
        if source is None or not isinstance(statement, ast.ImportFrom):
            return None
        name = next(a.name for a in statement.names if (a.asname or a.name) == bound)
        return self._moves.new(f"{source}.{name}")

    def _import(self, module: str, name: str) -> None:
        own = self._own[-1] if self._own else None
        bound = name
        if own is not None and all(a.asname == a.name for s in self._own for a in s.names):
            bound = ""
        binding = Binding(module, f"{name} as {name}" if bound == "" else name)
        if own is not None:
            self._editor.add(own, [binding], like=own if own.level else None)
            return
        others = [s for s in self.document.tree.body if isinstance(s, ast.Import | ast.ImportFrom)]
        if others:
            self._editor.add(others[-1], [binding])
            return
        text = f"from {module} import {binding.alias}\n"
        first = self.document.tree.body[0] if self.document.tree.body else None
        if first is None:
            at = len(self.document.text)
        elif ast.get_docstring(self.document.tree) is not None:
            at, text = self.document.line_start((first.end_lineno or 1) + 1), f"\n{text}"
        else:
            at, text = self.document.line_start(first.lineno), f"{text}\n"
        self.document.insert(at, text)

    # __all__

    def _list(self, display: ast.List | ast.Tuple, new: dict[str, str]) -> None:
        names = [str(e.value) if isinstance(e, ast.Constant) else "" for e in display.elts]
        key = next((k for k in (_as_is, str.lower) if [*map(k, names)] == sorted(map(k, names))), None)
        order = sorted(new, key=key) if key is not None else [*new]
        if not names:
            text = self.document.source(display)
            opening, closing = text[0], text[-1]
            listed = ", ".join(_doubled(order))
            self.document.replace(
                *self.document.span(display), f"{opening}{listed},{closing}" if closing == ")" else f"[{listed}]"
            )
            return
        places: dict[int, list[str]] = {}
        for name in order:
            if key is not None:
                index = sum(key(known) < key(name) for known in names)
            else:
                index = self._beside_import(new[name], names)
            places.setdefault(index, []).append(name)
        for index, group in places.items():
            add_items(self._editor, display.elts, index, [self._quoted(name, display.elts[0]) for name in group])

    def _quoted(self, name: str, like: ast.expr) -> str:
        quote = "'" if self.document.source(like).lstrip("rbuRBU").startswith("'") else '"'
        return f"{quote}{name}{quote}"

    def _beside_import(self, module: str, names: Sequence[str]) -> int:
        """Where a name goes in a list that is not sorted: as its import stands among those of the others."""
        later = {
            alias.asname or alias.name
            for statement in self._own
            if (absolute(statement, self.package) or "").lower() > module.lower()
            for alias in statement.names
        }
        return next((index for index, known in enumerate(names) if known in later), len(names))

    def _make_list(self, new: dict[str, str]) -> None:
        """Write an ``__all__`` with all that the package imports from its modules."""
        names = {alias.asname or alias.name for statement in self._own for alias in statement.names}
        listed = sorted({*new, *(name for name in names if not name.startswith("_") and name != "*")})
        text = f"__all__ = [{', '.join(_doubled(listed))}]"
        if len(text) > self._editor.limit:
            text = "__all__ = [\n" + "".join(f"    {name},\n" for name in _doubled(listed)) + "]"
        imports = [s for s in self.document.tree.body if isinstance(s, ast.Import | ast.ImportFrom)]
        if imports:
            last = imports[-1].end_lineno or imports[-1].lineno
            self.document.insert(self.document.line_start(last + 1), f"\n{text}\n")
        else:
            self._append(f"\n{text}\n" if self.document.text.strip() else f"{text}\n")

    # What is exported lazily

    def _table(self, getter: ast.stmt) -> ast.Dict | None:
        """The table, from names to modules, that a module ``__getattr__`` looks into."""
        used = {node.id for node in ast.walk(getter) if isinstance(node, ast.Name)}
        for statement in self.document.tree.body:
            if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(statement.value, ast.Dict):
                continue
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            values = statement.value.values
            is_used = any(isinstance(target, ast.Name) and target.id in used for target in targets)
            strings = [value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
            if is_used and values and strings == values:
                return statement.value
        return None

    def _extend_table(self, table: ast.Dict) -> None:
        sample = table.values[0].value if isinstance(table.values[0], ast.Constant) else ""
        items = []
        for name, module in sorted(self._lazy.items()):
            place = module
            if not str(sample).startswith(f"{self.package}."):
                place = relative(module, self.package)
                place = place if str(sample).startswith(".") else place.removeprefix(".")
            items.append(f"{self._quoted(name, table.values[0])}: {self._quoted(place, table.values[0])}")
        add_items(self._editor, table.values, len(table.values), items)

    def _make_table(self) -> None:
        items = [f'"{name}": "{module}"' for name, module in sorted(self._lazy.items())]
        text = f"_LAZY = {{{', '.join(items)}}}"
        if len(text) > self._editor.limit:
            text = "_LAZY = {\n" + "".join(f"    {item},\n" for item in items) + "}"
        self._append(_LAZY.format(table=f"# Imported when they are first asked for: not everyone can.\n{text}"))
        needed = [
            text
            for name, text in (("importlib", "import importlib\n"), ("Any", "from typing import Any\n"))
            if self.binds(name) is None
        ]
        body = self.document.tree.body
        first = next((s for s in body if isinstance(s, ast.Import | ast.ImportFrom) and not _is_future(s)), None)
        if first is not None:
            self.document.insert(self.document.line_start(first.lineno), "".join(needed) + "\n")
            return
        before = [
            s for s in body if _is_future(s) or (s is body[0] and ast.get_docstring(self.document.tree) is not None)
        ]
        line = (before[-1].end_lineno or 0) + 1 if before else 1
        while line <= len(self.document.lines) and self.document.lines[line - 1].startswith("#"):
            line += 1
        self.document.insert(self.document.line_start(line), ("\n" if line > 1 else "") + "".join(needed))

    def _append(self, text: str) -> None:
        """Write at the end of the file."""
        whole = self.document.text
        self.document.insert(len(whole), ("" if not whole or whole.endswith(("\n", "\r")) else "\n") + text)


def add_items(editor: ImportEditor, elements: Sequence[ast.expr], index: int, items: Sequence[str]) -> None:
    """Put items into a display, before the element of an index, or behind the last one.

    Args:
        editor: knows the document, and the longest line.
        elements: the elements of the display; of a dict, its values.
        index: where.
        items: the texts.
    """
    document = editor.document
    last = elements[min(index, len(elements) - 1)]
    line = document.lines[last.lineno - 1]
    indent = line[: len(line) - len(line.lstrip())]
    start, end = document.span(last)
    if index < len(elements):
        own_line = line.lstrip().startswith(document.source(last))
        document.insert(start, "".join(f"{item},\n{indent}" if own_line else f"{item}, " for item in items))
        return
    rest = document.text[end:].lstrip()
    closing = document.text[end:].lstrip(" \t,").startswith(("]", ")", "}"))
    if closing:
        document.insert(end, "".join(f", {item}" for item in items))
    elif rest.startswith(","):
        after = document.line_start((last.end_lineno or last.lineno) + 1)
        document.insert(after, "".join(f"{indent}{item},\n" for item in items))
    else:
        document.insert(end, "".join(f",\n{indent}{item}" for item in items))


def _as_is(text: str) -> str:
    return text


def _doubled(names: Sequence[str]) -> list[str]:
    return [f'"{name}"' for name in names]


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _all_display(statement: ast.stmt) -> ast.List | ast.Tuple | None:
    """The names written out in a statement that binds ``__all__``."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    else:
        return None
    value = statement.value
    if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
        return value if isinstance(value, ast.List | ast.Tuple) else None
    return None
