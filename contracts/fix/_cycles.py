"""Import cycles that a refactoring would make.

Only what runs when a module is imported counts: not what stands in functions or under ``TYPE_CHECKING``. To import
``a.b.c`` from outside ``a`` runs ``a`` and ``a.b`` first, so these count as imported, too.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from grimp import ImportGraph

from contracts.fix._imports import absolute
from contracts.source._syntax import is_type_checking

_Edges = Callable[[str], set[str]]


def imported(tree: ast.Module, module: str, package: str, modules: Collection[str]) -> set[str]:
    """The modules that importing a module imports, among ``modules``."""
    found: set[str] = set()
    for node in _running(tree.body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _with_parents(alias.name, module, modules)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(node, package)
            if source is None:
                continue
            found |= _with_parents(source, module, modules)
            for alias in node.names:
                if f"{source}.{alias.name}" in modules:
                    found |= _with_parents(f"{source}.{alias.name}", module, modules)
    return found - {module}


def _running(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when their module is imported."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        if isinstance(statement, ast.If) and is_type_checking(statement.test):
            blocks = [statement.orelse]
        blocks += [part.body for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ()))]
        for block in blocks:
            yield from _running(block)


def _with_parents(target: str, module: str, modules: Collection[str]) -> set[str]:
    found = set()
    while target:
        # The packages around the module itself run before it in any case.
        if (target in modules and not f"{module}.".startswith(f"{target}.")) or target == module:
            found.add(target)
        target = target.rpartition(".")[0]
    return found


class Imports:
    """What each module imports as it is imported, before a refactoring and after.

    Args:
        graph: the import graph before.
        lines: gives a module's source, by lines.
        before: trees of the modules that change, as they were, by their old names.
        after: trees of the modules that change and of the new ones, as they will be.
        packages: the modules, old and new, that are packages.
        gone: the modules that there will be no more.
    """

    def __init__(
        self,
        graph: ImportGraph,
        lines: Callable[[str], Sequence[str]],
        before: Mapping[str, ast.Module],
        after: Mapping[str, ast.Module],
        packages: Collection[str],
        gone: Collection[str],
    ) -> None:
        self._graph = graph
        self._lines = lines
        inside = {m for m in graph.modules if not graph.is_module_squashed(m)}
        self._old_modules = inside
        self._new_modules = (inside | after.keys()) - set(gone)
        self._before = {m: self._read(tree, m, packages, self._old_modules) for m, tree in before.items()}
        self._after = {m: self._read(tree, m, packages, self._new_modules) for m, tree in after.items()}
        self._known: dict[str, set[str]] = {}

    @staticmethod
    def _read(tree: ast.Module, module: str, packages: Collection[str], modules: Collection[str]) -> set[str]:
        package = module if module in packages else module.rpartition(".")[0]
        return imported(tree, module, package, modules)

    def before(self, module: str) -> set[str]:
        """What a module imports as things are."""
        found = self._before.get(module)
        return self._unchanged(module) if found is None else found

    def after(self, module: str) -> set[str]:
        """What a module will import."""
        found = self._after.get(module)
        return self._unchanged(module) & self._new_modules if found is None else found

    def _unchanged(self, module: str) -> set[str]:
        if module not in self._known:
            found: set[str] = set()
            lines = self._lines(module)
            for target in self._graph.find_modules_directly_imported_by(module) if module in self._old_modules else ():
                if target in self._old_modules and any(
                    not _is_deferred(lines, detail["line_number"])
                    for detail in self._graph.get_import_details(importer=module, imported=target)
                ):
                    found |= _with_parents(target, module, self._old_modules)
            self._known[module] = found - {module}
        return self._known[module]

    def new_cycle(self, renamed: Callable[[str], str]) -> list[str] | None:
        """A cycle that there was not, from a module back to itself; None where there is none.

        Args:
            renamed: where a module that moves whole is after the move.
        """
        old_names = {renamed(module): module for module in self._before}
        for module in sorted(self._after):
            was = {renamed(m) for m in self.before(old_names[module])} if module in old_names else set()
            for target in sorted(self._after[module] - was):
                back = _path(self.after, target, module)
                if back is not None and not self._was_cyclic([module, *back], old_names):
                    return [module, *back]
        return None

    def _was_cyclic(self, cycle: Sequence[str], old_names: Mapping[str, str]) -> bool:
        """Whether the modules of a cycle that are not new imported each other in a circle already."""
        existing = [old_names.get(m, m) for m in dict.fromkeys(cycle) if old_names.get(m, m) in self._old_modules]
        first, *others = existing
        if not others:
            return False
        return all(_path(self.before, first, m) and _path(self.before, m, first) for m in others)


def _path(edges: _Edges, start: str, end: str) -> list[str] | None:
    """A shortest way from one module to another, both included."""
    if start == end:
        return [start]
    came: dict[str, str] = {start: ""}
    pending = [start]
    while pending:
        following = []
        for module in pending:
            for target in sorted(edges(module)):
                if target in came:
                    continue
                came[target] = module
                if target == end:
                    way = [end]
                    while way[-1] != start:
                        way.append(came[way[-1]])
                    return way[::-1]
                following.append(target)
        pending = following
    return None


def _is_deferred(lines: Sequence[str], number: int) -> bool:
    """Whether what stands in a line runs later than its module, or for type checkers only.

    Read from the indentation of the lines above: quicker than parsing, and a whole tree may have to be followed.
    """
    line = lines[number - 1]
    indent = len(line) - len(line.lstrip())
    while indent and number > 1:
        number -= 1
        line = lines[number - 1]
        text = line.lstrip()
        if not text or text[0] in "#)]}" or len(line) - len(text) >= indent:
            continue
        indent = len(line) - len(text)
        if text.startswith(("def ", "async def ")) or (text.startswith("if ") and "TYPE_CHECKING" in text):
            return True
    return False
