"""The statements of a module, what each binds, and which names of the module each needs."""

from __future__ import annotations

import ast
import symtable
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from contracts.fix._document import Document, whole_lines
from contracts.source._scopes import last_name, own_expressions, own_statements
from contracts.source._syntax import is_type_checking

_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Assign, ast.AnnAssign)


@dataclass(eq=False)
class Unit:
    """A statement of a module's top level, its lines, the names it binds and those it needs."""

    statement: ast.stmt
    first: int
    last: int
    binds: set[str]
    needs: set[str] = field(default_factory=set)

    @property
    def is_import(self) -> bool:
        """Whether it is an import and nothing else."""
        return isinstance(self.statement, ast.Import | ast.ImportFrom)

    @property
    def is_future(self) -> bool:
        """Whether it is a ``from __future__ import``."""
        return isinstance(self.statement, ast.ImportFrom) and self.statement.module == "__future__"

    @property
    def is_definition(self) -> bool:
        """Whether it defines a class, a function or a variable, and can move."""
        return isinstance(self.statement, _DEFINITIONS) and not any(n.startswith("__") for n in self.binds)

    @property
    def is_guard(self) -> bool:
        """Whether it holds imports under a condition, with what replaces them where they fail."""
        return isinstance(self.statement, ast.If | ast.Try) and all(
            isinstance(s, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.If | ast.Try | ast.Pass)
            for s in own_statements([self.statement])
        )

    @property
    def is_for_type_checkers(self) -> bool:
        """Whether it holds imports that only type checkers see."""
        return self.is_guard and isinstance(self.statement, ast.If) and is_type_checking(self.statement.test)

    @property
    def imports(self) -> list[ast.Import | ast.ImportFrom]:
        """The import statements in it."""
        return [s for s in own_statements([self.statement]) if isinstance(s, ast.Import | ast.ImportFrom)]


def units(document: Document) -> tuple[int, list[Unit]]:
    """How many lines of comments head a module, and its statements.

    Raises:
        CouldNotError: two statements share a line.
    """
    header = 0
    while header < len(document.lines) and document.lines[header].startswith("#"):
        header += 1
    body = document.tree.body
    found = [
        Unit(statement, first, last, set(_bound(statement)))
        for statement, (first, last) in zip(body, whole_lines(document, body, header), strict=True)
    ]
    for unit in found:
        unit.needs = needed("\n".join(document.lines[unit.first - 1 : unit.last]), unit.statement)
    return header, found


def needed(text: str, statement: ast.stmt) -> set[str]:
    """The names that statements expect their module to bind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the code's literals
        table = symtable.symtable(text, "<module>", "exec")
    names = set(_global_names(table, top=True))
    for string in annotation_strings(ast.walk(statement)):
        names |= _names_in(str(string.value))
    if "__all__" in _bound(statement):
        names |= {n.value for n in ast.walk(statement) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return names


def annotation_strings(nodes: Iterable[ast.AST]) -> Iterator[ast.Constant]:
    """The strings among some nodes that stand where types do."""
    for node in nodes:
        found: list[ast.expr | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.Call) and node.args and last_name(node.func) == "cast":
            found.append(node.args[0])
        for annotation in found:
            for inner in ast.walk(annotation) if annotation is not None else ():
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner


def _global_names(table: symtable.SymbolTable, *, top: bool) -> Iterator[str]:
    for symbol in table.get_symbols():
        if (symbol.is_referenced() and (top or symbol.is_global())) or symbol.is_declared_global():
            yield symbol.get_name()
    for child in table.get_children():
        yield from _global_names(child, top=False)


def _names_in(text: str) -> set[str]:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return set()  # a string inside a type, as in Literal["a b"]
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _bound(statement: ast.stmt) -> Iterator[str]:
    for inner in own_statements([statement]):
        if isinstance(inner, ast.Import):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in inner.names if alias.name != "*")
        elif isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner.name
        for node in own_expressions(inner):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                yield node.name


def defining(all_units: Sequence[Unit], name: str) -> list[Unit]:
    """The statements that bind a name."""
    return [unit for unit in all_units if name in unit.binds]
