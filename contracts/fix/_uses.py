"""Changes every place in one file that names something that moved."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Sequence

from contracts.fix._imports import Binding, ImportEditor, absolute, relative
from contracts.fix._moves import Moves
from contracts.fix._open import Open
from contracts.fix._strings import opening, replace
from contracts.fix._tables import change_tables
from contracts.fix._units import annotation_strings
from contracts.source._mentions import Module, Paths, Reader
from contracts.source._scopes import Placed, Scope, own_statements
from contracts.source._syntax import is_type_checking


class Rewriter(Reader):
    """Rewrites one file.

    ``bound`` are the names that it binds or uses, ``open`` are the places that it leaves as they are, and
    ``importers`` the old paths that the file imports, with whether it does so in any case, rather than in a function
    or under a condition.

    Args:
        editor: changes the file's imports, and knows the file, whose ``edits`` grow.
        moves: what moved.
        module: the file's own name and package once all has moved.
        star_has: whether ``from module import *`` brings a name.
        only: the lines that may change; all unless told otherwise.
    """

    def __init__(
        self,
        editor: ImportEditor,
        moves: Moves,
        module: Module,
        star_has: Callable[[str, str], bool],
        only: Collection[int] | None = None,
    ) -> None:
        document = editor.document
        super().__init__(document.lines, Paths(moves.paths), Module(document.module, document.package), star_has)
        self.document = document
        self.moves = moves
        self.editor = editor
        self.open: list[Open] = []
        self.importers: dict[str, bool] = {}
        self.place = module
        self._star = star_has
        self._only = only
        self._changes: dict[ast.ImportFrom, dict[ast.alias, Binding | None]] = {}
        self._owners: dict[Scope, list[ast.Import | ast.ImportFrom]] = {}
        self._used: dict[str, int] = {}
        self._rewritten: dict[str, int] = {}
        self._for_types = {
            statement
            for test in document.nodes
            if isinstance(test, ast.If) and is_type_checking(test.test)
            for statement in own_statements(test.body)
        }
        self._annotations = set(annotation_strings(document.nodes))
        self._needs: dict[tuple[ast.stmt, Binding], None] = {}
        nodes = document.nodes
        self.bound = {node.id for node in nodes if isinstance(node, ast.Name)}
        self.bound |= {alias.asname or alias.name for alias in nodes if isinstance(alias, ast.alias)}

    def run(self, dropped: dict[ast.ImportFrom, set[ast.alias]] | None = None) -> None:
        """Make the edits.

        Args:
            dropped: names that some imports lose, since nothing needs them any more.
        """
        tree = self.document.tree
        for node, aliases in (dropped or {}).items():
            self._changes[node] = dict.fromkeys(aliases)
        self.block(tree.body, self.scope(tree.body, None))
        counts = [n.id for n in self.document.nodes if isinstance(n, ast.Name)]
        self._used = {name: counts.count(name) for name in self._rewritten}
        statements = [s for block in self.document.blocks for s in block]
        for statement in statements:
            if isinstance(statement, ast.ImportFrom):
                self._from(statement)
            elif isinstance(statement, ast.Import):
                self._import(statement)
        if self.document.file.is_package:
            change_tables(self, statements)
        for anchor, binding in self._needs:
            self.editor.add(anchor, [binding], like=anchor if isinstance(anchor, ast.ImportFrom) else None)

    # Imports

    def _from(self, node: ast.ImportFrom) -> None:
        source = absolute(node, self.document.package)
        if source is None:
            return
        targets = self._changes.pop(node, {})
        for alias in node.names:
            if alias.name == "*":
                if self._from_star(node, source):
                    return
                continue
            if alias in targets or not self._may_touch(node, alias):
                continue
            name = f"{source}.{alias.name}"
            old = self.moves.old(name)
            if old is None:
                continue
            self._note_importer(node, old)
            module, _, new = self.moves.new(name).rpartition(".")
            targets[alias] = Binding(module, new, alias.asname or alias.name)
        self._drop_unused(node, targets)
        own_place = self.place.package != self.document.package and node.level
        if targets or own_place:
            self.editor.change(node, targets)

    def _note_importer(self, node: ast.stmt, old: str) -> None:
        """Remember whether an import runs whenever its file does; one for type checkers says nothing."""
        if node in self.document.tree.body:
            self.importers[old] = True
        elif node not in self._for_types:
            self.importers.setdefault(old, False)

    def _from_star(self, node: ast.ImportFrom, source: str) -> bool:
        """Change what everything is imported from; whether it was."""
        if not self._may_touch(node, node.names[0]):
            return False
        if source in self.moves.modules:
            self._note_importer(node, source)
            self.editor.change(node, {node.names[0]: Binding(self.moves.new(source), "*", "*")})
            return True
        for name, place in self.moves.leaving(source).items():
            if self._star(source, name) and source != self.document.module:
                module, _, last = place.rpartition(".")
                self.need(node, Binding(module, last, name))
        return False

    def need(self, anchor: ast.stmt, binding: Binding) -> None:
        """Have something imported in the block of a statement."""
        self._needs[anchor, binding] = None

    def _may_touch(self, *nodes: Placed) -> bool:
        """Whether one of some nodes stands in a line that may change."""
        return self._only is None or any(node.lineno in self._only for node in nodes)

    def _drop_unused(self, node: ast.ImportFrom, targets: dict[ast.alias, Binding | None]) -> None:
        """A name whose every use was rewritten is not needed any more."""
        for alias in node.names:
            bound = alias.asname or alias.name
            if alias not in targets and self._is_spent(bound):
                targets[alias] = None

    def _is_spent(self, bound: str) -> bool:
        if self.document.file.is_package or bound not in self._rewritten:
            return False
        return self._used[bound] == self._rewritten[bound] and not self._is_listed(bound)

    def _is_listed(self, name: str) -> bool:
        return any(isinstance(n, ast.Constant) and n.value == name for n in self.document.nodes)

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            old = self.moves.old(alias.name)
            if old is not None and self._may_touch(node, alias):
                self._note_importer(node, old)
                start, _ = self.document.span(alias)
                self.document.replace(start, start + len(alias.name), self.moves.new(alias.name))
        needed = any(anchor is node for anchor, _ in self._needs)
        if len(node.names) == 1 and needed and self._spent_import(node.names[0]):
            self.editor.remove(node)

    def _spent_import(self, alias: ast.alias) -> bool:
        if alias.asname:
            return self._is_spent(alias.asname)
        attributes = [n for n in self.document.nodes if isinstance(n, ast.Attribute)]
        uses = [n for n in attributes if ast.unparse(n) == alias.name]
        return bool(self._rewritten.get(alias.name)) and len(uses) == self._rewritten[alias.name]

    # Uses

    def scope(self, body: list[ast.stmt], parent: Scope | None, is_class: bool = False) -> Scope:  # type: ignore[override]
        """The scope of a block; remembers its imports."""
        found = super().scope(body, parent, is_class)
        self._owners[found] = [s for s in own_statements(body) if isinstance(s, ast.Import | ast.ImportFrom)]
        return found

    def _attribute(self, node: ast.Attribute, scope: Scope) -> bool:
        dotted = self._dotted(node, scope)
        matches = {name for name in dotted if self.moves.old(name) is not None}
        if not matches or not self._may_touch(node):
            return False
        if len(dotted) > 1:
            self.leave(node, f"may or may not mean {min(matches)}")
            return True
        (name,) = matches
        old = self.moves.old(name) or ""
        inner: ast.expr = node
        for _ in range(name.count(".") - old.count(".")):
            inner = inner.value  # type: ignore[attr-defined]
        if isinstance(inner, ast.Attribute):
            self._rewrite(inner, old, scope)
        return True

    def _rewrite(self, node: ast.Attribute, old: str, scope: Scope, shift: int | None = None) -> None:
        """``x.old`` becomes what names the new place."""
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name):
            self._rewrite_call(node, root, old)
            return
        (bound,) = self._dotted(root, scope)
        new = self.moves.new(old)
        span = self.document.span(node)
        if shift is not None:
            span = shift + node.col_offset, shift + (node.end_col_offset or 0)
        if re.sub(r"[\s\\]", "", self.document.text[slice(*span)]) != ast.unparse(node):
            # Before Python 3.12, places in f-strings are rough.
            self.leave(node, f"names {old}, which is now {new}")
            return
        is_module = old in self.moves.modules
        statements = self._binders(root.id, scope, old)
        plain = [s for s in statements if isinstance(s, ast.Import) and bound == root.id]
        if new.startswith(f"{bound}.") and (is_module or plain):
            self.document.replace(*span, root.id + new[len(bound) :])
            if not is_module:
                for anchor in plain[:1]:
                    self.need(anchor, Binding(new.rpartition(".")[0]))
            owner = old.rpartition(".")[0]
            self._rewritten[owner] = self._rewritten.get(owner, 0) + 1
            return
        if not statements:
            self.leave(node, f"names {old}, which is now {new}, through {root.id}")
            return
        module, _, name = new.rpartition(".")
        other = f"{root.id}_{name}"
        if self._is_imported(name, new, for_types=shift is not None):
            local = name
        else:
            local = self._free_name(name, other, {Binding(module, name, name), Binding(module, name, other)})
            for statement in statements:
                self.need(statement, Binding(module, name, local))
        self.document.replace(*span, local)
        self._rewritten[root.id] = self._rewritten.get(root.id, 0) + 1

    def _is_imported(self, name: str, new: str, *, for_types: bool) -> bool:
        """Whether a name stands for ``new`` all over the file, or for type checkers at least."""
        body = self.document.tree.body
        found = False
        for node in self.document.nodes:
            if isinstance(node, ast.ImportFrom):
                source = absolute(node, self.document.package)
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        if self.moves.new(f"{source}.{alias.name}") != new:
                            return False
                        found |= node in (own_statements(body) if for_types else body)
            elif name in _other_bindings(node):
                return False
        return found

    def _free_name(self, name: str, other: str, bindings: set[Binding]) -> str:
        """A name under which to import something in this file."""
        for _, binding in self._needs:
            if binding in bindings:
                return binding.bound
        return other if name in self.bound else name

    def _binders(self, root: str, scope: Scope, old: str) -> list[ast.Import | ast.ImportFrom]:
        """The imports that bind a name as it is seen in a scope."""
        owner = scope.lookup(root)
        found: list[ast.Import | ast.ImportFrom] = []
        for statement in self._owners.get(owner, []) if owner is not None else []:
            for alias in statement.names:
                if isinstance(statement, ast.ImportFrom):
                    bound = alias.asname or alias.name
                else:
                    bound = alias.asname or alias.name.partition(".")[0]
                if bound == root:
                    found.append(statement)
                    break
        # Of `import a.b` and `import a.b.old`, the one that names what is used.
        owned = old.rpartition(".")[0]
        nearest: list[ast.Import | ast.ImportFrom] = [
            s for s in found if isinstance(s, ast.Import) and any(a.name == owned for a in s.names)
        ]
        return nearest or found

    def _rewrite_call(self, node: ast.Attribute, call: ast.expr, old: str) -> None:
        """``importlib.import_module("a.old").Class``."""
        module = old.rpartition(".")[0]
        new, _, name = self.moves.new(old).rpartition(".")
        argument = call.args[0] if isinstance(call, ast.Call) and call.args else None
        is_direct = node.value is call and argument is not None and name == node.attr
        if not is_direct or argument is None or not self.replace_text(argument, module, new):
            self.leave(node, f"names {old}, which is now {new}.{name}")

    # Strings

    def add(self, node: Placed, form: str, name: str, path: str, *, is_module: bool = False) -> None:
        """A string that is a path, or names an attribute of something."""
        del is_module
        if form != "string" or not self._may_touch(node):
            return
        if path in self.moves.copied and self.moves.old(name) is None:
            new = self.moves.copied[path]
            if new is None:
                self.leave(node, f"names {path}, which is there still, but what used it there may have moved")
                return
            new += name[len(path) :]
        else:
            new = self.moves.new(name)
        if self.replace_text(node, name, new):
            return
        self.leave(node, f"names {name}, which is now {new}")

    def replace_text(self, node: ast.AST, name: str, new: str, *, plain: bool = False) -> bool:
        """Replace a path in a literal, in the form in which it stands there; as it stands, if ``plain``."""
        value = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if not plain and value.startswith("."):
            level = len(value) - len(value.lstrip("."))
            base = name[: len(name) - len(value.lstrip("."))].rstrip(".")
            return level == 1 and replace(self.document, node, value, relative(new, base))
        if not plain and ":" in value:
            return replace(self.document, node, value, _with_colon(value, name, new))
        return replace(self.document, node, name, new)

    def _string(self, node: ast.expr, scope: Scope, package: str | None) -> bool:
        if node in self._annotations and isinstance(node, ast.Constant) and self._may_touch(node):
            self._annotation(node, scope)
            return True
        return super()._string(node, scope, package)

    def _annotation(self, node: ast.Constant, scope: Scope) -> None:
        """An annotation in quotes is an expression like others."""
        text = self.document.source(node)
        quote = opening(text)
        start = self.document.span(node)[0] + (quote or 0)
        try:
            tree = ast.parse(str(node.value).strip(), mode="eval").body
        except SyntaxError:
            return  # a string that is no annotation, as in Literal["..."]
        if quote is None or not self.document.text.startswith(str(node.value), start):
            return  # one with escapes in it
        if not str(node.value).isascii():
            return
        shift = start + len(str(node.value)) - len(str(node.value).lstrip())
        self._in_annotation(tree, scope, shift)

    def _in_annotation(self, node: ast.AST, scope: Scope, shift: int) -> None:
        if isinstance(node, ast.Attribute):
            dotted = self._dotted(node, scope) or {ast.unparse(node)}
            for name in sorted(dotted):
                old = self.moves.old(name)
                if old is None or "\n" in ast.unparse(node):
                    continue
                inner: ast.expr = node
                for _ in range(name.count(".") - old.count(".")):
                    inner = inner.value  # type: ignore[attr-defined]
                if isinstance(inner, ast.Attribute) and self._dotted(inner, scope):
                    self._rewrite(inner, old, scope, shift)
                elif isinstance(inner, ast.Attribute):
                    span = shift + inner.col_offset, shift + (inner.end_col_offset or 0)
                    self.document.replace(*span, self.moves.new(old))
                return
        for child in ast.iter_child_nodes(node):
            self._in_annotation(child, scope, shift)

    def leave(self, node: ast.AST, reason: str) -> None:
        """Note a place that stays as it is."""
        self.open.append(Open(self.document.path, node.lineno, reason))  # type: ignore[attr-defined]


def _other_bindings(node: ast.AST) -> Sequence[str]:
    """The name that a node binds, where it is no import."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            return (name,)
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return (name,)
    return ()


def _with_colon(value: str, name: str, new: str) -> str:
    """``pkg.old:Class`` in its new place: the colon stands before as many parts as it did."""
    after = value.count(".", value.index(":")) + 1
    parts = new.split(".")
    return ".".join(parts[:-after]) + ":" + ".".join(parts[-after:])
