"""Which dotted paths one syntax tree mentions, in which form and where.

Names are followed within the tree: what an import, or an assignment of something imported, binds in a scope
is known in that scope and in the functions inside it, unless they bind the name themselves.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from contracts.source._scopes import (
    Placed,
    Scope,
    absolute,
    blocks,
    last_name,
    lines_with,
    own_expressions,
    own_statements,
    owner_and_attribute,
    place,
    touches,
)

# Calls that give the module which their first argument names.
_IMPORTERS = frozenset({"__import__", "import_module", "importorskip"})
# Calls that take an object and the name of one of its attributes.
_BY_ATTRIBUTE = frozenset({"delattr", "getattr", "hasattr", "object", "setattr", "spy"})
_PATH = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Mention(NamedTuple):
    """A place, from line 1 and column 1, that names ``path``, or with it the longer ``name``.

    ``form`` is "import", "attribute" or "string"; ``is_module`` says that nothing but a module can be meant.
    """

    line: int
    column: int
    form: str
    name: str
    path: str
    is_module: bool


class Module(NamedTuple):
    """Where a tree belongs: its dotted name, and the package that its relative imports start from."""

    name: str | None
    package: str | None


class Paths:
    """Dotted paths to look for."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(paths)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._paths))

    def match(self, name: str) -> str | None:
        """The longest of the paths that ``name`` is, or lies in."""
        while name:
            if name in self._paths:
                return name
            name = name.rpartition(".")[0]
        return None


def mentions(
    tree: ast.Module,
    lines: Sequence[str],
    paths: Paths,
    module: Module,
    star_has: Callable[[str, str], bool],
) -> list[Mention]:
    """What ``tree`` mentions of ``paths``, each place once.

    Args:
        tree: the syntax tree.
        lines: its source.
        paths: what to look for.
        module: where the tree belongs.
        star_has: whether ``from module import *`` brings a name.

    Raises:
        RecursionError: an expression is nested too deeply.
    """
    reader = Reader(lines, paths, module, star_has)
    reader.imports(tree.body)
    reader.block(tree.body, reader.scope(tree.body, None))
    reader.stars()
    return sorted(reader.found)


class Reader:
    """Reads one tree.

    What is found goes through ``add``. ``imported`` are the paths that a plain ``import a.b`` names: it binds no
    more than ``a``, and the uses of such a path are not reported again.
    """

    def __init__(
        self, lines: Sequence[str], paths: Paths, module: Module, star_has: Callable[[str, str], bool]
    ) -> None:
        self._lines = lines
        self._paths = paths
        self._module = module
        self._star_has = star_has
        self._lines_of_interest = lines_with(lines, {path.rpartition(".")[2] for path in paths})
        self.found: set[Mention] = set()
        self.imported: set[str] = set()
        self._stars: list[tuple[str, ast.ImportFrom]] = []
        self._unbound: set[str] = set()

    # Imports

    def imports(self, body: Sequence[ast.stmt]) -> None:
        """Look at all imports, wherever they stand."""
        for node in body:
            if isinstance(node, ast.ImportFrom):
                self._import_from(node)  # also of a star, without the name that it may bring
            if not touches(node, self._lines_of_interest):
                continue
            for block in blocks(node):
                self.imports(block)
            if isinstance(node, ast.Import):
                for alias in node.names:
                    path = self._paths.match(alias.name)
                    if path is not None:
                        self.add(alias, "import", alias.name, path, is_module=True)
                        if not alias.asname:
                            self.imported.add(path)

    def _import_from(self, node: ast.ImportFrom) -> None:
        source = self._source(node)
        if source is None:
            return
        within = self._paths.match(source)
        for alias in node.names:
            name = source if alias.name == "*" else f"{source}.{alias.name}"
            path = self._paths.match(name)
            if path is None:
                if alias.name == "*":
                    self._stars.append((source, node))
            elif path == within:
                self.add(node, "import", source, path, is_module=True)
            else:
                self.add(alias, "import", name, path)

    def _source(self, node: ast.ImportFrom) -> str | None:
        """The module that names are imported from; None if reading cannot tell."""
        if not node.level:
            return node.module
        return absolute("." * node.level + (node.module or ""), self._module.package)

    def stars(self) -> None:
        """Look at star imports of a module in which one of the paths lies: they may bring it."""
        for source, node in self._stars:
            for path in self._paths:
                parent, _, name = path.rpartition(".")
                if parent != source or name not in self._unbound:
                    continue
                if not any(other != source and self._star_has(other, name) for other, _ in self._stars):
                    self.add(node, "import", path, path)

    # Scopes

    def scope(self, body: Sequence[ast.stmt], parent: Scope | None, is_class: bool = False) -> Scope:
        """The scope of a block, with all that it binds."""
        scope = Scope(parent, is_class)
        assigned: list[tuple[str, ast.expr]] = []
        for statement in own_statements(body):
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    bound = alias.name if alias.asname else alias.name.partition(".")[0]
                    self._bind(scope, alias.asname or bound, bound)
            elif isinstance(statement, ast.ImportFrom):
                source = self._source(statement)
                for alias in statement.names:
                    self._bind(
                        scope, alias.asname or alias.name, f"{source}.{alias.name}" if source else None
                    )
            elif isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self._bind(scope, statement.name, None)
            for node in own_expressions(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    self._bind(scope, node.id, None)
                elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                    self._bind(scope, node.name, None)
            if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                assigned += [(t.id, statement.value) for t in targets if isinstance(t, ast.Name)]
        for name, value in assigned:
            scope.names[name] |= {d for d in self._dotted(value, scope) if self._paths.match(d) is None}
            text, whole = self._text(value, scope)
            scope.texts.setdefault(name, []).append(text if whole else None)
        return scope

    def _bind(self, scope: Scope, name: str, dotted: str | None) -> None:
        known = scope.names.setdefault(name, set())
        # Where the import itself is reported, what it binds is not reported again.
        if dotted is not None and self._paths.match(dotted) is None:
            known.add(dotted)

    # The rest of the tree

    def block(self, body: Sequence[ast.stmt], scope: Scope) -> None:
        """Look at statements."""
        for statement in body:
            documentation = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not documentation and touches(statement, self._lines_of_interest):
                self._visit(statement, scope)

    def _visit(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            self._function(node, scope)
        elif isinstance(node, ast.ClassDef):
            for item in [*node.decorator_list, *node.bases, *node.keywords]:
                self._visit(item, scope)
            self.block(node.body, self.scope(node.body, scope, is_class=True))
        elif isinstance(node, ast.Attribute):
            if not self._attribute(node, scope):
                self._visit(node.value, scope)
        elif isinstance(node, ast.Name):
            if (
                isinstance(node.ctx, ast.Load)
                and scope.lookup(node.id) is None
                and not hasattr(builtins, node.id)
            ):
                self._unbound.add(node.id)
        elif isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            if not self._string(node, scope, self._module.package):
                for child in ast.iter_child_nodes(node):
                    if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
                        self._visit(child, scope)
        elif isinstance(node, ast.Call):
            self._call(node, scope)
        else:
            self._children(node, scope)

    def _children(self, node: ast.AST, scope: Scope) -> None:
        for _, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                self._visit(value, scope)
            elif isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self.block(value, scope)
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, ast.AST):
                        self._visit(item, scope)

    def _function(self, node: _Function, scope: Scope) -> None:
        for outside in (*getattr(node, "decorator_list", ()), node.args, getattr(node, "returns", None)):
            if outside is not None:
                self._visit(outside, scope)
        inner = self.scope([] if isinstance(node, ast.Lambda) else node.body, scope)
        arguments = node.args
        every = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]
        for argument in every:
            if argument is not None:
                inner.names.setdefault(argument.arg, set())
        if isinstance(node, ast.Lambda):
            self._visit(node.body, inner)
        else:
            self.block(node.body, inner)

    def _attribute(self, node: ast.Attribute, scope: Scope) -> bool:
        for dotted in sorted(self._dotted(node, scope)):
            path = self._paths.match(dotted)
            if path is not None:
                if path not in self.imported:
                    self.add(node, "attribute", dotted, path)
                return True
        return False

    def _call(self, node: ast.Call, scope: Scope) -> None:
        function = last_name(node.func)
        handled: list[ast.expr] = []
        if function in _IMPORTERS and len(node.args) > 1:
            text, whole = self._text(node.args[0], scope)
            package, known = self._text(node.args[1], scope)
            if whole and known and text.startswith("."):
                self._string(node.args[0], scope, package)
                handled = [node.args[0]]
        elif function in _BY_ATTRIBUTE:
            owner, attribute = owner_and_attribute(node)
            if owner is not None and attribute is not None:
                name, whole = self._text(attribute, scope)
                if whole:
                    self._named(attribute, name, self._dotted(owner, scope))
        elif function == "__import__" and node.args:
            text, whole = self._text(node.args[0], scope)
            listed = [*node.args[3:4], *(k.value for k in node.keywords if k.arg == "fromlist")]
            for names in listed if whole else ():
                for item in names.elts if isinstance(names, ast.List | ast.Tuple) else ():
                    self._named(item, self._text(item, scope)[0], {text})
        elif function == "multiple" and node.args:
            text, whole = self._text(node.args[0], scope)
            owners = {text} if whole else self._dotted(node.args[0], scope)
            for keyword in node.keywords:
                if keyword.arg:
                    self._named(keyword, keyword.arg, owners)
        for keyword in node.keywords:
            if function in _IMPORTERS and keyword.arg == "package" and node.args:
                package, known = self._text(keyword.value, scope)
                if known:
                    self._string(node.args[0], scope, package)
                    handled = [node.args[0]]
        for child in [node.func, *node.args, *node.keywords]:
            if child not in handled:
                self._visit(child, scope)

    def _named(self, node: ast.expr | ast.keyword, name: str, owners: Iterable[str]) -> None:
        """A string that names an attribute of something."""
        for owner in sorted(owners):
            path = self._paths.match(f"{owner}.{name}")
            if path is not None and self._paths.match(owner) is None:
                self.add(node, "string", f"{owner}.{name}", path)

    def _string(self, node: ast.expr, scope: Scope, package: str | None) -> bool:
        """Look at a string; whether the node has been dealt with as one."""
        text, whole = self._text(node, scope)
        if not whole:
            # Of a computed string, what is known at its start is enough if the path ends in it.
            cut = max(text.rfind("."), text.rfind(":"))
            text = text[: max(cut, 0)]
        name: str | None = text.replace(":", ".", 1)
        if text.startswith("."):
            name = absolute(text.replace(":", ".", 1), package)
        if name is not None and _PATH.fullmatch(name):
            path = self._paths.match(name)
            if path is not None:
                self.add(node, "string", name, path)
                return True
        return whole

    # Values

    def _dotted(self, node: ast.expr, scope: Scope) -> set[str]:
        """The dotted names that an expression may stand for."""
        match node:
            case ast.Name():
                bound = scope.lookup(node.id)
                return bound.names[node.id] if bound is not None else set()
            case ast.Attribute():
                return {f"{owner}.{node.attr}" for owner in self._dotted(node.value, scope)}
            case ast.NamedExpr():
                return self._dotted(node.value, scope)
            case ast.Call() if last_name(node.func) in _IMPORTERS and node.args:
                text, whole = self._text(node.args[0], scope)
                known = whole and _PATH.fullmatch(text) and self._paths.match(text) is None
                top = text.partition(".")[0] if last_name(node.func) == "__import__" else text
                return {top} if known else set()
            case ast.Subscript(value=ast.Attribute(attr="modules") | ast.Name(id="modules")):
                text, whole = self._text(node.slice, scope)
                return {text} if whole and self._paths.match(text) is None else set()
            case _:
                return set()

    def _text(self, node: ast.expr, scope: Scope) -> tuple[str, bool]:
        """What is known of a string from its start, and whether that is all of it."""
        match node:
            case ast.Constant(value=str(text)):
                return text, True
            case ast.JoinedStr():
                return self._joined(node.values, scope)
            case ast.FormattedValue(conversion=-1, format_spec=None):
                return self._text(node.value, scope)
            case ast.BinOp(op=ast.Add()):
                return self._joined([node.left, node.right], scope)
            case ast.Name(id="__name__") if self._module.name:
                return self._module.name, True
            case ast.Name(id="__package__") if self._module.package:
                return self._module.package, True
            case ast.Name():
                bound = scope.lookup(node.id)
                texts = bound.texts.get(node.id, []) if bound is not None else []
                if len(texts) == 1 and texts[0] is not None:
                    return texts[0], True
        return "", False

    def _joined(self, nodes: Sequence[ast.expr], scope: Scope) -> tuple[str, bool]:
        known = ""
        for node in nodes:
            text, whole = self._text(node, scope)
            known += text
            if not whole:
                return known, False
        return known, True

    def add(self, node: Placed, form: str, name: str, path: str, *, is_module: bool = False) -> None:
        """Note a mention."""
        self.found.add(Mention(*place(node, self._lines), form, name, path, is_module))
