"""The abstract interpretation of a module: statement by statement, the way Python would execute it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

from contracts.source._candidates import gives_by_function
from contracts.source._errors import SourceError
from contracts.source._outline import places_of_interest
from contracts.source._reader import Function, Reader, Scope
from contracts.source._refs import (
    OPAQUE,
    concatenation,
    definitions,
    has_between,
    last_name,
    leaves,
    line_numbers,
    merge,
    static_truth,
    union,
)
from contracts.source._summary import Ref, Summary, parse
from contracts.source._tree import SourceFile

_ABSTRACT_DECORATORS = frozenset(
    {"abstractmethod", "abstractproperty", "abstractclassmethod", "abstractstaticmethod"}
)
_CLASS_NAME = re.compile(r"class\s+(\w+)")
_GLOBALS = re.compile(rb"^[ \t\f]+global[ \t]+([^\n#;]+)", re.MULTILINE)


def summarize(file: SourceFile, *, deep: bool = False) -> Summary:
    """Interpret a module.

    Args:
        file: the module.
        deep: also look into the functions that define no class, for what they return.

    Raises:
        SourceError: the file cannot be read, decoded or parsed.
    """
    source = file.searchable
    text = file.text
    if source is not file.content:
        text = source.decode("utf-8", "surrogatepass")
    places = places_of_interest(text)
    # Where strings count, or what functions return, or where a name may be respelled, all is read.
    is_whole = deep or source is not file.content or gives_by_function(source)
    tree = parse(file, None if is_whole else places)
    try:
        summary = _Interpreter(file, line_numbers(text, places), deep=deep).run(tree)
        if summary.strings is None or is_whole:
            return summary
        return _Interpreter(file, line_numbers(text, places), deep=deep).run(parse(file))
    except RecursionError as error:
        raise SourceError(file.path, 1, "cannot be analysed: an expression is nested too deeply. Split it") from error


class _Interpreter(Reader):
    def __init__(self, file: SourceFile, interesting: list[int], *, deep: bool) -> None:
        source = file.searchable
        declared = _GLOBALS.findall(source) if b"global" in source else []
        shared = {name.strip().decode() for found in declared for name in found.split(b",")}
        package = file.module if file.is_package else file.module.rpartition(".")[0]
        super().__init__(file.module, package, frozenset(shared))
        self.deep = deep
        self.lines = file.text.split("\n")
        self.interesting = interesting
        has_walrus = b":=" in source
        self.walrus_lines = [n for n, line in enumerate(self.lines, 1) if ":=" in line] if has_walrus else []

    def run(self, tree: ast.Module) -> Summary:
        module = Scope("module", "")
        self.body(tree.body, module)
        summary = self.summary
        summary.exports = module.env
        while self.pending:
            node, scope, key = self.pending.pop(0)
            self.function_body(node, scope, key)
        for name, refs in self.rebound_globals.items():
            summary.exports[name] = union([*refs, summary.exports.get(name)])
        summary.stars = module.stars
        if "__getattr__" in summary.exports or summary.replacement is not None:
            summary.strings = sorted(
                {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            )
        else:
            summary.typing_only = {}
        return summary

    # Statements

    def body(self, statements: Sequence[ast.stmt], scope: Scope) -> None:
        for statement in statements:
            if self.walrus_lines and has_between(self.walrus_lines, statement):
                self.walruses(statement, scope)  # before the blocks of the statement, which see what they bind
            handler = _HANDLERS.get(type(statement))
            if handler is not None:
                handler(self, statement, scope)

    def walruses(self, statement: ast.stmt, scope: Scope) -> None:
        for name, value in ast.iter_fields(statement):
            if name in {"body", "orelse", "finalbody", "handlers", "cases"}:
                continue
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, ast.expr | ast.withitem):
                    for node in ast.walk(item):
                        if isinstance(node, ast.NamedExpr):
                            self.bind(node.target, self.ref(node.value, scope), scope)

    def import_(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            if alias.asname:
                self.set(alias.asname, ["m", alias.name], scope)
            else:
                top = alias.name.partition(".")[0]
                self.set(top, ["m", top], scope)

    def import_from(self, node: ast.ImportFrom, scope: Scope) -> None:
        target = node.module or ""
        if node.level:
            parts = self.package.split(".")
            kept = parts[: len(parts) - node.level + 1]
            target = ".".join([*kept, target] if target else kept)
        for alias in node.names:
            if alias.name == "*":
                for name, ref in scope.env.items():
                    scope.env[name] = ["*", target, name, ref]
                scope.stars.append(target)
            else:
                self.set(alias.asname or alias.name, ["f", target, alias.name], scope)

    def class_def(self, node: ast.ClassDef, scope: Scope) -> None:
        if scope.typing_only:
            return
        bases = [self.element(base, scope) for base in node.bases]
        key = self.new_class(node.name, bases, scope, node.lineno, self.name_column(node))
        record = self.summary.classes[key]
        record.metaclass = next((self.ref(k.value, scope) for k in node.keywords if k.arg == "metaclass"), None)
        inner = Scope("class", f"{record.qualname}.", scope)
        self.body(node.body, inner)
        record.attributes = inner.env
        record.abstract = sorted(
            {
                statement.name
                for statement in definitions(node.body)
                if any(last_name(d) in _ABSTRACT_DECORATORS for d in statement.decorator_list)
            }
        )
        self.set(node.name, ["c", key], scope)
        for decorator in node.decorator_list:
            record.decorators.append(ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator))
            self.summary.calls.append(["k", self.ref(decorator, scope), [["c", key]], {}])

    def name_column(self, node: ast.ClassDef) -> int:
        line = self.lines[node.lineno - 1]
        prefix = len(line.encode()[: node.col_offset].decode(errors="replace"))
        found = _CLASS_NAME.match(line, prefix)  # as it is written, which may differ from node.name in form
        return (found.start(1) if found else prefix) + 1

    def function_def(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        self.set(node.name, ["d", self.new_function(node.name, node, scope)], scope)

    def schedule(self, name: str, node: Function, scope: Scope, key: str) -> None:
        if scope.kind == "function" and any(isinstance(inner, ast.Nonlocal) for inner in ast.walk(node)):
            self.function_body(node, scope, key)  # at once: it may rebind what the lines below it use
            return
        if has_between(self.interesting, node) or self.deep or name == "__getattr__":
            self.pending.append((node, scope, key))

    def function_body(self, node: Function, outer: Scope, key: str) -> None:
        record = self.summary.functions[key]
        scope = Scope("function", f"{record.qualname}.<locals>.", outer)
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults: list[ast.expr | None] = [
            *[None] * (len(positional) - len(arguments.defaults)),
            *arguments.defaults,
        ]
        for parameter, default in zip(
            [*positional, *arguments.kwonlyargs], [*defaults, *arguments.kw_defaults], strict=True
        ):
            hint = self.type_annotation(parameter.annotation, outer)
            known = hint if hint is not None else (self.ref(default, outer) if default else None)
            scope.env[parameter.arg] = ["p", key, parameter.arg, known]
        for rest in (arguments.vararg, arguments.kwarg):
            if rest is not None:
                scope.env[rest.arg] = ["p", key, rest.arg, None]
        if isinstance(node, ast.Lambda):
            scope.returns.append(self.ref(node.body, scope))
        else:
            scope.function = node
            self.body(node.body, scope)
        record.returns = scope.returns

    def type_annotation(self, node: ast.expr | None, scope: Scope) -> Ref | None:
        """What ``type[X]`` promises of a parameter: that it is X or a subclass."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                node = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return None
        if isinstance(node, ast.Subscript) and last_name(node.value) in {"type", "Type"}:
            inner = node.slice
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                return self.type_annotation(ast.Constant(f"type[{inner.value}]"), scope)
            return self.ref(inner, scope)
        return None

    def assign(self, node: ast.Assign, scope: Scope) -> None:
        name = next((t.id for t in node.targets if isinstance(t, ast.Name)), None)
        value = self.ref(node.value, scope, name)
        for target in node.targets:
            self.bind(target, value, scope)

    def ann_assign(self, node: ast.AnnAssign, scope: Scope) -> None:
        if node.value is not None:
            name = node.target.id if isinstance(node.target, ast.Name) else None
            self.bind(node.target, self.ref(node.value, scope, name), scope)

    def aug_assign(self, node: ast.AugAssign, scope: Scope) -> None:
        if isinstance(node.target, ast.Name):
            old = self.lookup(node.target.id, scope)
            self.set(node.target.id, self.bounded(concatenation(old, self.ref(node.value, scope))), scope)
        elif isinstance(node.target, ast.Attribute) and node.target.attr == "__bases__":
            self.bind_attribute(self.ref(node.target.value, scope), "__bases__", self.ref(node.value, scope))

    def type_alias(self, node: ast.stmt, scope: Scope) -> None:
        # PEP 695 (`type X = ...`) makes an alias object, which cannot be a base.
        name = getattr(node, "name", None)
        if isinstance(name, ast.Name):
            self.set(name.id, OPAQUE, scope)

    def delete(self, node: ast.Delete, scope: Scope) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                scope.env.pop(target.id, None)

    def expression(self, node: ast.Expr, scope: Scope) -> None:
        value = node.value
        if not isinstance(value, ast.Call) or not self.changes(value, scope):
            self.ref(value, scope)

    def changes(self, call: ast.Call, scope: Scope) -> bool:
        """Whether a call, the only thing on its line, grows a list or binds names; does so."""
        match call:
            case ast.Call(func=ast.Attribute(value=ast.Name(name), attr="append" | "add"), args=[item]):
                return self.grow(name, ["t", [self.ref(item, scope)]], scope)
            case ast.Call(func=ast.Attribute(value=ast.Name(name), attr="insert"), args=[_, item]):
                return self.grow(name, ["t", [self.ref(item, scope)]], scope)
            case ast.Call(func=ast.Attribute(value=ast.Name(name), attr="extend" | "update"), args=[items]):
                return self.grow(name, self.ref(items, scope), scope)
            case ast.Call(func=ast.Attribute(value=ast.Name(name), attr="update"), args=[]):
                pairs = [[keyword.arg, self.ref(keyword.value, scope)] for keyword in call.keywords]
                return self.grow(name, ["h", pairs], scope)
            case ast.Call(func=ast.Attribute(value=ast.Name(name), attr="setdefault"), args=[key, item]):
                constant = self.key(key, scope)
                pair = [constant if isinstance(constant, str | int) else None, self.ref(item, scope)]
                return self.grow(name, ["h", [pair]], scope)
            case ast.Call(
                func=ast.Attribute(value=ast.Call(func=ast.Name("globals"), args=[]), attr="update"), args=items
            ):
                for keyword in call.keywords:
                    if keyword.arg is not None:
                        self.set_global(keyword.arg, self.ref(keyword.value, scope), scope)
                self.summary.injects |= bool(items) or any(keyword.arg is None for keyword in call.keywords)
                return True
            case ast.Call(func=ast.Name("setattr"), args=[owner, name, item]):
                self.set_attribute(self.ref(owner, scope), name, self.ref(item, scope))
                return True
            case ast.Call(func=ast.Name("exec"), args=[_]) if scope.kind == "module":
                self.summary.injects = True
        return False

    def grow(self, name: str, extra: Ref, scope: Scope) -> bool:
        if name not in scope.env:
            return False
        self.set(name, self.bounded(concatenation(scope.env[name], extra)), scope)
        return True

    def set_attribute(self, owner: Ref, name: ast.expr, value: Ref) -> None:
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            self.bind_attribute(owner, name.value, value)
        elif owner[0] == "s" and owner[1] == ["a", ["m", "sys"], "modules"]:
            self.summary.injects = True

    def return_(self, node: ast.Return, scope: Scope) -> None:
        if node.value is not None:
            ref = self.ref(node.value, scope)
            scope.returns.append(ref if scope.guard is None else ["?", scope.guard, ref])

    def global_(self, node: ast.Global, scope: Scope) -> None:
        scope.globals.update(node.names)

    def nonlocal_(self, node: ast.Nonlocal, scope: Scope) -> None:
        scope.nonlocals.update(node.names)

    # Branches

    def if_(self, node: ast.If, scope: Scope) -> None:
        truth = static_truth(node.test)
        if truth is None:
            self.branches([node.body, node.orelse], scope, self.guard(node.test, scope))
            return
        taken, skipped = (node.body, node.orelse) if truth else (node.orelse, node.body)
        if scope.kind == "module" and not scope.typing_only:
            ghost = Scope("module", "", None, dict(scope.env), list(scope.stars), typing_only=True)
            self.body(skipped, ghost)
            before = scope.env
            self.summary.typing_only.update({k: v for k, v in ghost.env.items() if before.get(k) is not v})
        self.body(taken, scope)

    def loop(self, node: ast.For | ast.AsyncFor | ast.While, scope: Scope) -> None:
        if isinstance(node, ast.While) and static_truth(node.test) is False:
            self.body(node.orelse, scope)
            return
        before, outside = dict(scope.env), scope.exits
        scope.exits = []
        if not isinstance(node, ast.While):
            self.bind(node.target, ["i", self.ref(node.iter, scope), None], scope)
        self.body(node.body, scope)
        scope.env = merge([before, scope.env, *scope.exits])
        scope.exits = outside
        self.body(node.orelse, scope)

    def with_(self, node: ast.With | ast.AsyncWith, scope: Scope) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self.bind(item.optional_vars, ["w", self.ref(item.context_expr, scope)], scope)
        self.body(node.body, scope)

    def try_(self, node: ast.Try, scope: Scope) -> None:
        # An exception may leave any prefix of the body executed.
        prefixes, outside = [dict(scope.env)], scope.exits
        scope.exits = []
        for statement in node.body:
            self.body([statement], scope)
            prefixes.append(dict(scope.env))
        partial = merge([*prefixes, *scope.exits])
        scope.exits = outside
        ends = []
        if not leaves(node.body):
            self.body(node.orelse, scope)
            ends.append(scope.env)
        for handler in node.handlers:
            scope.env = dict(partial)
            if handler.name:
                scope.env[handler.name] = OPAQUE
            self.body(handler.body, scope)
            if not leaves(handler.body):
                ends.append(scope.env)
        scope.env = merge(ends or [partial])
        self.body(node.finalbody, scope)

    def match(self, node: ast.Match, scope: Scope) -> None:
        for case in node.cases:
            for part in ast.walk(case.pattern):
                name = getattr(part, "name", None) or getattr(part, "rest", None)
                if isinstance(part, ast.MatchAs | ast.MatchStar | ast.MatchMapping) and name:
                    self.set(name, ["x", "a match statement"], scope)
        self.branches([*[case.body for case in node.cases], []], scope)

    def branches(self, bodies: list[list[ast.stmt]], scope: Scope, guard: Ref | None = None) -> None:
        """Interpret alternatives; the first is reached for the names in ``guard`` alone."""
        before, outer = scope.env, scope.guard
        ends = []
        for number, statements in enumerate(bodies):
            scope.env = dict(before)
            scope.guard = guard if guard is not None and number == 0 else outer
            self.body(statements, scope)
            if not leaves(statements):
                ends.append(scope.env)
        scope.env, scope.guard = merge(ends or [before]), outer

    def guard(self, test: ast.expr, scope: Scope) -> Ref | None:
        """The names for which a branch of a ``__getattr__`` is taken: ``name == "x"``, or ``name in names``."""
        if scope.function is None or scope.function.name != "__getattr__" or not scope.function.args.args:
            return None
        match test:
            case ast.Compare(ast.Name(name), [ast.Eq()], [right]) if name == scope.function.args.args[-1].arg:
                return ["t", [self.ref(right, scope)]]
            case ast.Compare(ast.Name(name), [ast.In()], [right]) if name == scope.function.args.args[-1].arg:
                return self.ref(right, scope)
        return None

    def leave(self, node: ast.stmt, scope: Scope) -> None:
        """Keep what is bound where ``break``, ``continue`` or ``raise`` leaves a block."""
        del node
        scope.exits.append(dict(scope.env))


_HANDLERS: dict[type[ast.stmt], Callable[[_Interpreter, Any, Scope], None]] = {
    ast.Import: _Interpreter.import_,
    ast.ImportFrom: _Interpreter.import_from,
    ast.ClassDef: _Interpreter.class_def,
    ast.FunctionDef: _Interpreter.function_def,
    ast.AsyncFunctionDef: _Interpreter.function_def,
    ast.Assign: _Interpreter.assign,
    ast.AnnAssign: _Interpreter.ann_assign,
    ast.AugAssign: _Interpreter.aug_assign,
    ast.Delete: _Interpreter.delete,
    ast.Expr: _Interpreter.expression,
    ast.Return: _Interpreter.return_,
    ast.Global: _Interpreter.global_,
    ast.Nonlocal: _Interpreter.nonlocal_,
    ast.If: _Interpreter.if_,
    ast.For: _Interpreter.loop,
    ast.AsyncFor: _Interpreter.loop,
    ast.While: _Interpreter.loop,
    ast.With: _Interpreter.with_,
    ast.AsyncWith: _Interpreter.with_,
    ast.Try: _Interpreter.try_,
    ast.TryStar: _Interpreter.try_,
    ast.Match: _Interpreter.match,
    ast.Break: _Interpreter.leave,
    ast.Continue: _Interpreter.leave,
    ast.Raise: _Interpreter.leave,
}
if hasattr(ast, "TypeAlias"):
    _HANDLERS[ast.TypeAlias] = _Interpreter.type_alias
