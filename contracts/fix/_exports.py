"""What a package's ``__init__`` exports: adds a class to it, in the style in which it exports others."""

from __future__ import annotations

import ast

from contracts._writing import CouldNotError
from contracts.fix._imports import Binding, ImportEditor, absolute
from contracts.fix._moves import Moves
from contracts.source._scopes import own_statements

_LAZY = """

def __getattr__(name: str) -> object:
    if name in {names}:
        from {source} import {imported}

        return {{{pairs}}}[name]
    raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
"""


class Exporter:
    """Adds exports to one package.

    Args:
        editor: changes the imports of its ``__init__``.
        package: its dotted name.
        moves: what moves at the same time.
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

    @property
    def exports_something(self) -> bool:
        """Whether the package exports what its modules hold, rather than leave them to be imported by path."""
        return bool(self._own or self._displays)

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

    def add(self, module: str, name: str) -> None:
        """Export ``name`` of ``module``: import it, and list it in ``__all__``.

        Raises:
            CouldNotError: the package has something else of that name, or its ``__all__`` cannot be added to.
        """
        known = self.binds(name)
        if known is not None and self._imports(known, name) != f"{module}.{name}":
            raise CouldNotError(
                f"{self.document.place(known)} {self.package} has another {name}. Rename one of them first."
            )
        if known is None:
            self._import(module, name)
        self.list_name(module, name)

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

    def list_name(self, module: str, name: str) -> None:
        """Add a name to ``__all__``, where there is one."""
        if not self._displays:
            return
        if any(isinstance(e, ast.Constant) and e.value == name for d in self._displays for e in d.elts):
            return
        display = self._displays[0]
        names = [e.value if isinstance(e, ast.Constant) else None for e in display.elts]
        if not names:
            start, end = self.document.span(display)
            text = self.document.source(display)
            self.document.replace(start, end, f'{text[0]}"{name}"{"," if text[0] == "(" else ""}{text[-1]}')
            return
        index = self._index(module, name, [str(n) for n in names])
        element = display.elts[min(index, len(names) - 1)]
        quote = next((q for q in "'\"" if self.document.source(element).lstrip("rbuRBU").startswith(q)), '"')
        literal = f"{quote}{name}{quote}"
        own_line = self.document.lines[element.lineno - 1].strip().startswith(self.document.source(element))
        if index < len(names):
            at = self.document.span(element)[0]
            if own_line:
                line = self.document.lines[element.lineno - 1]
                indent = line[: len(line) - len(line.lstrip())]
                self.document.insert(at, f"{literal},\n{indent}")
            else:
                self.document.insert(at, f"{literal}, ")
        else:
            self._append(element, literal, own_line=own_line)

    def _append(self, last: ast.expr, literal: str, *, own_line: bool) -> None:
        end = self.document.span(last)[1]
        rest = self.document.text[end:]
        comma = len(rest) - len(rest.lstrip()) if rest.lstrip().startswith(",") else None
        if not own_line:
            self.document.insert(end, f", {literal}")
            return
        line = self.document.lines[last.lineno - 1]
        indent = line[: len(line) - len(line.lstrip())]
        if comma is None:
            self.document.insert(end, f",\n{indent}{literal}")
        else:
            self.document.insert(
                self.document.line_start((last.end_lineno or last.lineno) + 1), f"{indent}{literal},\n"
            )

    def _index(self, module: str, name: str, names: list[str]) -> int:
        """Where a name goes: where it sorts, or else where its import stands among those of the others."""
        for keys, own in ((names, name), ([known.lower() for known in names], name.lower())):
            if keys == sorted(keys):
                return sum(key < own for key in keys)
        later = {
            a.asname or a.name
            for s in self._own
            if (absolute(s, self.package) or "").lower() > module.lower()
            for a in s.names
        }
        return next((n for n, known in enumerate(names) if known in later), len(names))

    def add_lazily(self, module: str, name: str, *, listed: bool) -> None:
        """Export a class whose module not everyone can import: it is imported when it is first asked for.

        Raises:
            CouldNotError: the package has a ``__getattr__`` of its own, or something else of that name.
        """
        known = self.binds(name) or self.binds("__getattr__")
        if known is not None:
            raise CouldNotError(
                f"{self.document.place(known)} stands where {self.package} would export {name} lazily. "
                "Add the export there by hand, and list its module in optional_modules for now."
            )
        text = _LAZY.format(names=f'{{"{name}"}}', source=module, imported=name, pairs=f'"{name}": {name}')
        end = self.document.text
        self.document.insert(len(end), ("" if not end or end.endswith(("\n", "\r")) else "\n") + text)
        if listed:
            self.list_name(module, name)


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
