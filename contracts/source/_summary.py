"""What one module says about names and classes, read from its syntax tree.

A module is interpreted abstractly, statement by statement, the way Python would execute it: each name maps
to a *ref*, a small expression of plain lists that says where its value comes from. Branches are merged
(`if`, `try`, `match`, loops: whatever any of them binds is possible), a later binding replaces an earlier
one, and code that only type checkers see is left out. Refs that reach into other modules stay symbolic;
``_resolve`` follows them.

Refs are lists, tagged by their first item:

========================  ======================================================================
``["m", module]``         a module object
``["f", module, name]``   ``from module import name``
``["a", ref, name]``      attribute
``["s", ref, key|None]``  subscript; the key where it is a constant
``["i", ref, n|None]``    n-th element of a sequence; None, any of them
``["k", ref, [ref], {}]`` call
``["t", [ref]]``          tuple, list or set display; an element ``["e", ref]`` is starred
``["+", ref, ref]``       concatenation
``["h", [[key, ref]]]``   dict display; key None where it is no constant
``["u", [ref]]``          one of several
``["c", key]``            a class of this module; the key is its qualified name, line and column
``["d", key]``            a function of this module, likewise
``["g", name]``           a global of this module, looked up when it is used
``["*", m, name, ref]``   ``name`` from ``from m import *``, or else ref
``["p", key, name, ref]`` parameter of a function; ref: its default or annotated ``type[...]``
``["v", constant]``       a string or int constant
``["b", name]``           a builtin, or nothing
``["o"]``                 certainly no class
``["x", reason]``         could be anything
========================  ======================================================================
"""

from __future__ import annotations

import ast
import contextlib
import re
import sys
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.source._errors import SourceError
from contracts.source._outline import outline, places_of_interest
from contracts.source._tree import SourceFile

Ref = list[Any]

_OPAQUE: Ref = ["o"]
_ABSTRACT_DECORATORS = frozenset(
    {"abstractmethod", "abstractproperty", "abstractclassmethod", "abstractstaticmethod"}
)
_CLASS_NAME = re.compile(r"class\s+(\w+)")
_LARGEST_REF = 200
_LARGEST_DISPLAY = 20_000


@dataclass(slots=True)
class ClassRecord:
    """A class that running the module may create.

    ``attributes`` are the names its body binds, ``abstract`` those among them marked abstract;
    ``in_function`` says that it comes to be only when the function is called.
    """

    qualname: str
    line: int
    column: int
    bases: list[Ref]
    attributes: dict[str, Ref] = field(default_factory=dict)
    abstract: list[str] = field(default_factory=list)
    in_function: bool = False


@dataclass(slots=True)
class FunctionRecord:
    """A function; ``returns`` is None until a call to it has to be understood."""

    qualname: str
    parameters: list[str]
    returns: list[Ref] | None = None


@dataclass(slots=True)
class Summary:
    """One module: its final namespace, star imports, classes and functions.

    ``all`` is None where the module has no ``__all__`` or builds it in a way not understood;
    ``strings`` are all string constants where a module ``__getattr__`` may import lazily;
    ``typing_only`` are the names bound for type checkers alone; ``calls`` are the calls with arguments.
    """

    exports: dict[str, Ref] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    all: list[str] | None = None
    classes: dict[str, ClassRecord] = field(default_factory=dict)
    functions: dict[str, FunctionRecord] = field(default_factory=dict)
    strings: list[str] | None = None
    typing_only: dict[str, Ref] = field(default_factory=dict)
    calls: list[Ref] = field(default_factory=list)

    def to_plain(self) -> list[Any]:
        """Plain lists, for the cache."""
        return [
            self.exports,
            self.stars,
            self.all,
            {
                key: [c.qualname, c.line, c.column, c.bases, c.attributes, c.abstract, c.in_function]
                for key, c in self.classes.items()
            },
            {key: [f.qualname, f.parameters, f.returns] for key, f in self.functions.items()},
            self.strings,
            self.typing_only,
            self.calls,
        ]

    @classmethod
    def from_plain(cls, data: list[Any]) -> Summary:
        """The inverse of ``to_plain``."""
        exports, stars, all_, classes, functions, strings, typing_only, calls = data
        return cls(
            exports,
            stars,
            all_,
            {key: ClassRecord(*record) for key, record in classes.items()},
            {key: FunctionRecord(*record) for key, record in functions.items()},
            strings,
            typing_only,
            calls,
        )


def parse(file: SourceFile, *, is_whole: bool = True) -> ast.Module:
    """The file's syntax tree.

    Args:
        file: the file.
        is_whole: with all function bodies, rather than those alone that may define something.

    Raises:
        SourceError: it cannot be read, decoded or parsed by the running Python; names the line.
    """
    if not is_whole:
        text = file.text
        shorter = outline(text, places_of_interest(text))
        with warnings.catch_warnings(), contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            warnings.simplefilter("ignore")
            return ast.parse(shorter, file.path)
        # Either the whole cannot be parsed, and says why, or the outline was misled.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the linted code's literals; its own tools report those
            # From the decoded text, not the bytes: ast.parse ignores what detect_encoding reports.
            return ast.parse(file.text, file.path)
    except (SyntaxError, ValueError) as error:
        # About a null byte Python says no line, and which error it raises depends on its version.
        null = file.content[: max(file.content.find(b"\0"), 0)].count(b"\n") + 1
        line, reason = (error.lineno or null, error.msg) if isinstance(error, SyntaxError) else (null, error)
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        advice = "Correct it, or run lint-imports with the Python that it is written for"
        raise SourceError(
            file.path, line, f"cannot be parsed by Python {version}: {reason}. {advice}"
        ) from error
    except (RecursionError, MemoryError) as error:
        reason = "cannot be parsed: an expression is nested too deeply for Python's parser. Split it"
        raise SourceError(file.path, 1, reason) from error


def summarize(file: SourceFile, *, deep: bool = False) -> Summary:
    """Interpret a module.

    Args:
        file: the module.
        deep: also look into the functions that define no class, for what they return.

    Raises:
        SourceError: the file cannot be read, decoded or parsed.
    """
    source = file.searchable
    # Where strings count, or what functions return, or where a name may be respelled, all is read.
    is_whole = deep or source is not file.content or b"__getattr__" in source or b"sys.modules" in source
    tree = parse(file, is_whole=is_whole)
    try:
        return _Interpreter(file, deep).run(tree)
    except RecursionError as error:
        raise SourceError(file.path, 1, "cannot be analysed: an expression is nested too deeply. Split it") from error


@dataclass(slots=True)
class _Scope:
    kind: str  # "module", "class" or "function"
    prefix: str
    parent: _Scope | None = None
    env: dict[str, Ref] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    globals: set[str] = field(default_factory=set)
    nonlocals: set[str] = field(default_factory=set)
    function: ast.FunctionDef | ast.AsyncFunctionDef | None = None
    returns: list[Ref] = field(default_factory=list)
    typing_only: bool = False

    @property
    def locals(self) -> frozenset[str]:
        """Names that the function binds anywhere in its own body, so that they are local all through it."""
        if self._locals is None:
            self._locals = _local_names(self.function) if self.function is not None else frozenset()
        return self._locals

    _locals: frozenset[str] | None = None


class _Interpreter:
    def __init__(self, file: SourceFile, deep: bool) -> None:
        self.module = file.module
        self.package = file.module if file.is_package else file.module.rpartition(".")[0]
        self.deep = deep
        self.summary = Summary()
        self.lines = file.text.split("\n")
        self.interesting = _line_numbers(file.searchable.decode("utf-8", "surrogatepass"))
        self.walrus_lines = [number for number, line in enumerate(self.lines, 1) if ":=" in line]
        self.pending: list[tuple[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, _Scope, str]] = []
        self.sizes: dict[int, tuple[Ref, int]] = {}
        self.rebound_globals: dict[str, list[Ref]] = {}

    def run(self, tree: ast.Module) -> Summary:
        module = _Scope("module", "")
        self.body(tree.body, module)
        summary = self.summary
        summary.exports = module.env
        while self.pending:
            node, scope, key = self.pending.pop(0)
            self.function_body(node, scope, key)
        for name, refs in self.rebound_globals.items():
            summary.exports[name] = _union([*refs, summary.exports.get(name)])
        summary.all = _names_in(summary.exports.get("__all__"), summary)
        summary.stars = module.stars
        getter = summary.exports.get("__getattr__")
        if getter is not None or "sys.modules" in "\n".join(self.lines):
            summary.strings = sorted(
                {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            )
        else:
            summary.typing_only = {}
        return summary

    # Statements

    def body(self, statements: Sequence[ast.stmt], scope: _Scope) -> None:
        for statement in statements:
            handler = _HANDLERS.get(type(statement))
            if handler is not None:
                handler(self, statement, scope)
            if self.walrus_lines and _has_between(self.walrus_lines, statement):
                self.walruses(statement, scope)

    def walruses(self, statement: ast.stmt, scope: _Scope) -> None:
        for name, value in ast.iter_fields(statement):
            if name in {"body", "orelse", "finalbody", "handlers", "cases"}:
                continue
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, ast.expr | ast.withitem):
                    for node in ast.walk(item):
                        if isinstance(node, ast.NamedExpr):
                            self.bind(node.target, self.ref(node.value, scope), scope)

    def import_(self, node: ast.Import, scope: _Scope) -> None:
        for alias in node.names:
            if alias.asname:
                self.set(alias.asname, ["m", alias.name], scope)
            else:
                top = alias.name.partition(".")[0]
                self.set(top, ["m", top], scope)

    def import_from(self, node: ast.ImportFrom, scope: _Scope) -> None:
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

    def class_def(self, node: ast.ClassDef, scope: _Scope) -> None:
        if scope.typing_only:
            return
        bases = [self.element(base, scope) for base in node.bases]
        key = self.new_class(node.name, bases, scope, node.lineno, self.name_column(node))
        record = self.summary.classes[key]
        inner = _Scope("class", f"{record.qualname}.", scope)
        self.body(node.body, inner)
        record.attributes = inner.env
        record.abstract = sorted(
            {
                statement.name
                for statement in _definitions(node.body)
                if any(_last_name(d) in _ABSTRACT_DECORATORS for d in statement.decorator_list)
            }
        )
        self.set(node.name, ["c", key], scope)

    def new_class(self, name: str, bases: list[Ref], scope: _Scope, line: int, column: int) -> str:
        in_function = scope.kind == "function" or "<locals>" in scope.prefix
        record = ClassRecord(f"{scope.prefix}{name}", line, column, bases, in_function=in_function)
        key = f"{record.qualname}@{line}:{column}"
        self.summary.classes[key] = record
        return key

    def name_column(self, node: ast.ClassDef) -> int:
        line = self.lines[node.lineno - 1]
        prefix = len(line.encode()[: node.col_offset].decode(errors="replace"))
        found = _CLASS_NAME.match(line, prefix)  # as it is written, which may differ from node.name in form
        return (found.start(1) if found else prefix) + 1

    def function_def(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: _Scope) -> None:
        self.set(node.name, ["d", self.new_function(node.name, node, scope)], scope)

    def new_function(
        self, name: str, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, scope: _Scope
    ) -> str:
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        qualname = f"{scope.prefix}{name}"
        key = f"{qualname}@{node.lineno}:{node.col_offset}"
        self.summary.functions[key] = FunctionRecord(qualname, [parameter.arg for parameter in parameters])
        looked_into = _has_between(self.interesting, node) or self.deep or name == "__getattr__"
        if looked_into and not scope.typing_only:
            self.pending.append((node, scope, key))
        return key

    def function_body(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, outer: _Scope, key: str
    ) -> None:
        record = self.summary.functions[key]
        scope = _Scope("function", f"{record.qualname}.<locals>.", outer)
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

    def type_annotation(self, node: ast.expr | None, scope: _Scope) -> Ref | None:
        """What ``type[X]`` promises of a parameter: that it is X or a subclass."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                node = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return None
        if isinstance(node, ast.Subscript) and _last_name(node.value) in {"type", "Type"}:
            inner = node.slice
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                return self.type_annotation(ast.parse(f"type[{inner.value}]", mode="eval").body, scope)
            return self.ref(inner, scope)
        return None

    def assign(self, node: ast.Assign, scope: _Scope) -> None:
        name = next((t.id for t in node.targets if isinstance(t, ast.Name)), None)
        value = self.ref(node.value, scope, name)
        for target in node.targets:
            self.bind(target, value, scope)

    def ann_assign(self, node: ast.AnnAssign, scope: _Scope) -> None:
        if node.value is not None:
            name = node.target.id if isinstance(node.target, ast.Name) else None
            self.bind(node.target, self.ref(node.value, scope, name), scope)

    def aug_assign(self, node: ast.AugAssign, scope: _Scope) -> None:
        if isinstance(node.target, ast.Name):
            old = self.lookup(node.target.id, scope)
            self.set(node.target.id, self.bounded(_concatenation(old, self.ref(node.value, scope))), scope)

    def type_alias(self, node: ast.stmt, scope: _Scope) -> None:
        # PEP 695 (`type X = ...`) makes an alias object, which cannot be a base.
        name = getattr(node, "name", None)
        if isinstance(name, ast.Name):
            self.set(name.id, _OPAQUE, scope)

    def delete(self, node: ast.Delete, scope: _Scope) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name):
                scope.env.pop(target.id, None)

    def expression(self, node: ast.Expr, scope: _Scope) -> None:
        value = node.value
        if isinstance(value, ast.Call):
            function = value.func
            if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                name, method = function.value.id, function.attr
                if method in {"append", "add"} and len(value.args) == 1:
                    extra: Ref = ["t", [self.ref(value.args[0], scope)]]
                elif method == "insert" and len(value.args) == 2:
                    extra = ["t", [self.ref(value.args[1], scope)]]
                elif method in {"extend", "update"} and len(value.args) == 1:
                    extra = self.ref(value.args[0], scope)
                else:
                    extra = []
                if extra and name in scope.env:
                    self.set(name, self.bounded(_concatenation(scope.env[name], extra)), scope)
                    return
            self.ref(value, scope)

    def return_(self, node: ast.Return, scope: _Scope) -> None:
        if node.value is not None:
            scope.returns.append(self.ref(node.value, scope))

    def global_(self, node: ast.Global, scope: _Scope) -> None:
        scope.globals.update(node.names)

    def nonlocal_(self, node: ast.Nonlocal, scope: _Scope) -> None:
        scope.nonlocals.update(node.names)

    def if_(self, node: ast.If, scope: _Scope) -> None:
        truth = _static_truth(node.test)
        if truth is None:
            self.branches([node.body, node.orelse], scope)
            return
        taken, skipped = (node.body, node.orelse) if truth else (node.orelse, node.body)
        if scope.kind == "module" and not scope.typing_only:
            ghost = _Scope("module", "", None, dict(scope.env), list(scope.stars), typing_only=True)
            self.body(skipped, ghost)
            before = scope.env
            self.summary.typing_only.update({k: v for k, v in ghost.env.items() if before.get(k) is not v})
        self.body(taken, scope)

    def loop(self, node: ast.For | ast.AsyncFor | ast.While, scope: _Scope) -> None:
        def once() -> None:
            if not isinstance(node, ast.While):
                self.bind(node.target, ["i", self.ref(node.iter, scope), None], scope)
            self.body(node.body, scope)

        before = dict(scope.env)
        once()
        scope.env = _merge([before, scope.env])
        self.body(node.orelse, scope)

    def with_(self, node: ast.With | ast.AsyncWith, scope: _Scope) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self.bind(item.optional_vars, ["x", "a with statement"], scope)
        self.body(node.body, scope)

    def try_(self, node: ast.Try, scope: _Scope) -> None:
        before = dict(scope.env)
        self.body(node.body, scope)
        after = scope.env
        # An exception may leave any prefix of the body executed.
        partial = _merge([before, after])
        ends = []
        scope.env = dict(after)
        self.body(node.orelse, scope)
        ends.append(scope.env)
        for handler in node.handlers:
            scope.env = dict(partial)
            if handler.name:
                scope.env[handler.name] = _OPAQUE
            self.body(handler.body, scope)
            if not _leaves(handler.body):
                ends.append(scope.env)
        scope.env = _merge(ends)
        self.body(node.finalbody, scope)

    def match(self, node: ast.Match, scope: _Scope) -> None:
        for case in node.cases:
            for part in ast.walk(case.pattern):
                name = getattr(part, "name", None) or getattr(part, "rest", None)
                if isinstance(part, ast.MatchAs | ast.MatchStar | ast.MatchMapping) and name:
                    self.set(name, ["x", "a match statement"], scope)
        self.branches([*[case.body for case in node.cases], []], scope)

    def branches(self, bodies: list[list[ast.stmt]], scope: _Scope) -> None:
        before = scope.env
        ends = []
        for statements in bodies:
            scope.env = dict(before)
            self.body(statements, scope)
            if not _leaves(statements):
                ends.append(scope.env)
        scope.env = _merge(ends or [before])

    # Names

    def set(self, name: str, ref: Ref, scope: _Scope) -> None:
        if name in scope.globals:
            self.rebound_globals.setdefault(name, []).append(ref)
        elif name in scope.nonlocals and scope.parent is not None:
            outer = scope.parent
            outer.env[name] = _union([outer.env.get(name), ref])
        else:
            scope.env[name] = ref

    def bind(self, target: ast.expr, value: Ref, scope: _Scope) -> None:
        if isinstance(target, ast.Name):
            self.set(target.id, value, scope)
        elif isinstance(target, ast.Tuple | ast.List):
            starred = any(isinstance(item, ast.Starred) for item in target.elts)
            for position, item in enumerate(target.elts):
                if isinstance(item, ast.Starred):
                    self.bind(item.value, ["t", [["e", value]]], scope)
                else:
                    self.bind(item, ["i", value, None if starred else position], scope)
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name):
            name = target.value.id
            key = target.slice.value if isinstance(target.slice, ast.Constant) else None
            if name in scope.env:
                self.set(name, self.bounded(_union([scope.env[name], ["h", [[key, value]]]])), scope)
        elif isinstance(target, ast.Attribute):
            owner = self.ref(target.value, scope)
            if owner[0] == "c":
                self.summary.classes[owner[1]].attributes[target.attr] = value

    def lookup(self, name: str, scope: _Scope) -> Ref:
        if name in scope.globals:
            return ["g", name]
        ref = scope.env.get(name)
        if ref is not None:
            return ref
        if scope.kind == "module":
            found: Ref = ["b", name]
            for star in scope.stars:
                found = ["*", star, name, found]
            return found
        if scope.kind == "function" and name in scope.locals and name not in scope.nonlocals:
            return ["x", f"the local name {name}"]
        outer = scope.parent
        while outer is not None and outer.kind == "class":
            outer = outer.parent
        if outer is None:
            return ["b", name]
        if outer.kind == "module" and scope.kind == "function":
            return ["g", name]  # a function sees the globals as they are when it is called
        return self.lookup(name, outer)

    # Expressions

    def element(self, node: ast.expr, scope: _Scope) -> Ref:
        if isinstance(node, ast.Starred):
            return ["e", self.ref(node.value, scope)]
        return self.ref(node, scope)

    def ref(self, node: ast.expr | None, scope: _Scope, name: str | None = None) -> Ref:
        """What an expression stands for."""
        return self.bounded(self.unbounded_ref(node, scope, name))

    def bounded(self, ref: Ref) -> Ref:
        """``ref``, or "anything" where it has grown too large to be a class.

        Refs hold one another, so that ``x = f(x, x)`` in sequence would double them without end.
        """
        known = self.sizes.get(id(ref))
        if known is None:
            size = 1 + sum(self.size(item) for item in ref[1:])
            limit = _LARGEST_DISPLAY if ref[0] in {"t", "h"} else _LARGEST_REF
            self.sizes[id(ref)] = (ref, size)
            if size > limit:
                return ["x", "a long computation"]
        return ref

    def size(self, item: Any) -> int:
        if isinstance(item, dict):
            return sum(self.size(value) for value in item.values())
        if not isinstance(item, list):
            return 1
        known = self.sizes.get(id(item))
        if known is None:
            # Kept with its size, so that its id stays its own.
            known = self.sizes[id(item)] = (item, sum(self.size(inner) for inner in item))
        return known[1]

    def unbounded_ref(self, node: ast.expr | None, scope: _Scope, name: str | None) -> Ref:
        match node:
            case ast.Name():
                return self.lookup(node.id, scope)
            case ast.Attribute():
                return ["a", self.ref(node.value, scope), node.attr]
            case ast.Constant():
                return ["v", node.value] if isinstance(node.value, str | int) else _OPAQUE
            case ast.Subscript():
                key = node.slice.value if isinstance(node.slice, ast.Constant) else None
                return ["s", self.ref(node.value, scope), key if isinstance(key, str | int) else None]
            case ast.Call():
                return self.call(node, scope, name)
            case ast.Tuple() | ast.List() | ast.Set():
                return ["t", [self.element(item, scope) for item in node.elts]]
            case ast.Dict():
                return ["h", [self.dict_item(k, v, scope) for k, v in zip(node.keys, node.values, strict=True)]]
            case ast.IfExp():
                return _union([self.ref(node.body, scope), self.ref(node.orelse, scope)])
            case ast.BoolOp():
                return _union([self.ref(value, scope) for value in node.values])
            case ast.NamedExpr():
                return self.ref(node.value, scope)
            case ast.BinOp(op=ast.Add()):
                return _concatenation(self.ref(node.left, scope), self.ref(node.right, scope))
            case ast.Lambda():
                return ["d", self.new_function("<lambda>", node, scope)]
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
                return ["x", "a comprehension"]
            case ast.Await() | ast.Yield() | ast.YieldFrom():
                return ["x", "an awaited or yielded value"]
            case _:
                return _OPAQUE

    def dict_item(self, key: ast.expr | None, value: ast.expr, scope: _Scope) -> list[Any]:
        if key is None:
            return [None, ["i", self.ref(value, scope), None]]
        return [key.value if isinstance(key, ast.Constant) else None, self.ref(value, scope)]

    def call(self, node: ast.Call, scope: _Scope, name: str | None) -> Ref:
        created = self.created_class(node, scope, name)
        if created is not None:
            return created
        keywords = {k.arg: self.ref(k.value, scope) for k in node.keywords if k.arg}
        ref = ["k", self.ref(node.func, scope), [self.element(a, scope) for a in node.args], keywords]
        if node.args or keywords:
            self.summary.calls.append(ref)
        return ref

    def created_class(self, node: ast.Call, scope: _Scope, name: str | None) -> Ref | None:
        """``type("C", (B,), {})`` and its relatives, as the class that they create."""
        function = _last_name(node.func)
        keywords = {k.arg: k.value for k in node.keywords}
        bases: ast.expr | None
        if function == "type" and isinstance(node.func, ast.Name) and len(node.args) == 3:
            bases = node.args[1]
        elif function == "new_class" and node.args:
            bases = node.args[1] if len(node.args) > 1 else keywords.get("bases")
        elif function == "make_dataclass" and node.args and "bases" in keywords:
            bases = keywords["bases"]
        else:
            return None
        if scope.typing_only:
            return _OPAQUE
        title = node.args[0]
        called = title.value if isinstance(title, ast.Constant) and isinstance(title.value, str) else name
        refs: list[Ref] = [["e", self.ref(bases, scope)]] if bases is not None else []
        return ["c", self.new_class(called or "<dynamic>", refs, scope, node.lineno, node.col_offset + 1)]


_HANDLERS: dict[type[ast.stmt], Any] = {
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
}
if hasattr(ast, "TypeAlias"):
    _HANDLERS[ast.TypeAlias] = _Interpreter.type_alias


def _has_between(lines: list[int], node: ast.stmt | ast.expr) -> bool:
    """Whether one of ``lines`` (ascending) is among those of a node."""
    first = bisect_left(lines, node.lineno)
    return first < len(lines) and lines[first] <= (node.end_lineno or 0)


def _line_numbers(text: str) -> list[int]:
    """The lines on which something of interest stands, ascending."""
    numbers: list[int] = []
    line, place = 1, 0
    for start in places_of_interest(text):
        line += text.count("\n", place, start)
        place = start
        numbers.append(line)
    return numbers


def _union(refs: Sequence[Ref | None]) -> Ref:
    flat: list[Ref] = []
    for ref in refs:
        if ref is None:
            continue
        for item in ref[1] if ref[0] == "u" else [ref]:
            if item not in flat:
                flat.append(item)
    return flat[0] if len(flat) == 1 else ["u", flat]


def _concatenation(left: Ref, right: Ref) -> Ref:
    """The concatenation; one display where both sides end in one, or else a long list would nest as deeply."""
    if right[0] == "t":
        if left[0] == "t":
            return ["t", [*left[1], *right[1]]]
        if left[0] == "+" and left[2][0] == "t":
            return ["+", left[1], ["t", [*left[2][1], *right[1]]]]
    return ["+", left, right]


def _merge(environments: list[dict[str, Ref]]) -> dict[str, Ref]:
    if len(environments) == 1:
        return environments[0]
    merged: dict[str, Ref] = {}
    for environment in environments:
        for name, ref in environment.items():
            known = merged.get(name)
            merged[name] = ref if known is None or known is ref else _union([known, ref])
    return merged


def _definitions(statements: Sequence[ast.stmt]) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions that a class body defines, in any of its branches."""
    found: list[ast.FunctionDef | ast.AsyncFunctionDef] = []
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(statement)
        elif isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
            found += _definitions(statement.body)
            found += _definitions(getattr(statement, "orelse", []))
    return found


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _static_truth(test: ast.expr) -> bool | None:
    """Whether a condition has one value whenever the code runs; None where it depends."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _static_truth(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, ast.BoolOp):
        values = [_static_truth(value) for value in test.values]
        decisive = isinstance(test.op, ast.Or)
        if decisive in values:
            return decisive
        return None if None in values else not decisive
    return False if _last_name(test) == "TYPE_CHECKING" and not isinstance(test, ast.Call) else None


def _leaves(statements: Sequence[ast.stmt]) -> bool:
    """Whether control never runs off the end of these statements."""
    return bool(statements) and isinstance(
        statements[-1], ast.Raise | ast.Return | ast.Continue | ast.Break
    )


def _local_names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    names: set[str] = set()
    stack: list[ast.AST] = list(node.body)
    while stack:
        item = stack.pop()
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(item.name)
            continue
        if isinstance(item, ast.Lambda):
            continue
        if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store):
            names.add(item.id)
        elif isinstance(item, ast.alias):
            names.add(item.asname or item.name.partition(".")[0])
        stack.extend(ast.iter_child_nodes(item))
    return frozenset(names)


def _names_in(ref: Ref | None, summary: Summary) -> list[str] | None:
    """The strings of an ``__all__``, however it was put together; None where one is not understood."""
    if ref is None:
        return None
    if ref[0] == "t":
        names: list[str] = []
        for item in ref[1]:
            if item[0] == "e":
                more = _names_in(item[1], summary)
                if more is None:
                    return None
                names += more
            elif item[0] == "v" and isinstance(item[1], str):
                names.append(item[1])
            else:
                return None
        return names
    if ref[0] == "+":
        parts = [_names_in(part, summary) for part in ref[1:]]
        return None if None in parts else [name for part in parts for name in part or []]
    if ref[0] == "g":
        return _names_in(summary.exports.get(ref[1]), summary)
    return None
