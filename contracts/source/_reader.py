"""Names and expressions of a module, as refs."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from contracts.source._refs import OPAQUE, concatenation, last_name, local_names, union
from contracts.source._summary import ClassRecord, FunctionRecord, Ref, Summary

_LARGEST_REF = 200
_LARGEST_DISPLAY = 20_000
_NAMESPACES = frozenset({"globals", "locals", "vars"})

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(slots=True)
class Scope:
    """A namespace while its code is interpreted.

    ``kind`` is "module", "class" or "function"; ``env`` what its names stand for now, ``rebound`` what
    functions inside it may also bind them to; ``exits`` are the namespaces with which ``break`` or ``raise``
    left a block; ``guard`` are, in a ``__getattr__``, the names for which a block is reached, None where it is reached
    for any.
    """

    kind: str
    prefix: str
    parent: Scope | None = None
    env: dict[str, Ref] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    globals: set[str] = field(default_factory=set)
    nonlocals: set[str] = field(default_factory=set)
    rebound: dict[str, list[Ref]] = field(default_factory=dict)
    function: ast.FunctionDef | ast.AsyncFunctionDef | None = None
    returns: list[Ref] = field(default_factory=list)
    exits: list[dict[str, Ref]] = field(default_factory=list)
    guard: Ref | None = None
    typing_only: bool = False

    @property
    def locals(self) -> frozenset[str]:
        """Names that the function binds anywhere in its own body, so that they are local all through it."""
        if self._locals is None:
            self._locals = local_names(self.function) if self.function is not None else frozenset()
        return self._locals

    _locals: frozenset[str] | None = None


class Reader:
    """Binds and looks up names, and turns expressions into refs.

    Args:
        module: the module's dotted name.
        package: the package that its relative imports start from.
        shared: the names that functions of the module declare ``global``.
    """

    def __init__(self, module: str, package: str, shared: frozenset[str]) -> None:
        self.module = module
        self.package = package
        self.shared = shared
        self.summary = Summary()
        self.pending: list[tuple[Function, Scope, str]] = []
        self.rebound_globals: dict[str, list[Ref]] = {}
        self._sizes: dict[int, tuple[Ref, int]] = {}

    # Names

    def set(self, name: str, ref: Ref, scope: Scope) -> None:
        """Bind a name."""
        if name in scope.globals:
            self.rebound_globals.setdefault(name, []).append(ref)
        elif name in scope.nonlocals:
            outer = scope.parent
            while outer is not None and not (outer.kind == "function" and name in outer.env.keys() | outer.locals):
                outer = outer.parent
            if outer is not None:
                outer.rebound.setdefault(name, []).append(ref)
        else:
            scope.env[name] = ref

    def set_global(self, name: str, ref: Ref, scope: Scope) -> None:
        """Bind a name of the module, from anywhere in it."""
        if scope.kind == "module":
            scope.env[name] = ref
        else:
            self.rebound_globals.setdefault(name, []).append(ref)

    def bind(self, target: ast.expr, value: Ref, scope: Scope) -> None:
        """Assign to any target."""
        match target:
            case ast.Name():
                self.set(target.id, value, scope)
            case ast.Tuple() | ast.List():
                self._unpack(target.elts, value, scope)
            case ast.Subscript():
                self._bind_item(target, value, scope)
            case ast.Attribute():
                self.bind_attribute(self.ref(target.value, scope), target.attr, value)

    def _unpack(self, targets: list[ast.expr], value: Ref, scope: Scope) -> None:
        star = next((n for n, item in enumerate(targets) if isinstance(item, ast.Starred)), len(targets))
        for position, item in enumerate(targets):
            behind = len(targets) - position
            if isinstance(item, ast.Starred):
                self.bind(item.value, ["l", value, position, behind - 1], scope)
            else:
                self.bind(item, ["i", value, position if position < star else -behind], scope)

    def _bind_item(self, target: ast.Subscript, value: Ref, scope: Scope) -> None:
        key = self.key(target.slice, scope)
        match target.value:
            case ast.Name(name) if name in scope.env:
                item = ["h", [[key if isinstance(key, str | int) else None, value]]]
                self.set(name, self.bounded(union([scope.env[name], item])), scope)
            case ast.Call(func=ast.Name(name), args=[]) if name in _NAMESPACES:
                if name != "globals" and scope.kind != "module":
                    return
                if isinstance(key, str):
                    self.set_global(key, value, scope)
                else:
                    self.summary.injects = True
            case ast.Attribute(value=ast.Name("sys"), attr="modules") if key == self.module:
                self.summary.replacement = value

    def bind_attribute(self, owner: Ref, name: str, value: Ref) -> None:
        """Assign to ``owner.name``."""
        match owner:
            case ["c", key] if name == "__bases__":
                self.summary.classes[key].bases.append(["e", value])  # beside the old ones: when is not told
            case ["c", key]:
                self.summary.classes[key].attributes[name] = value
            case ["m" | "f" | "a" | "s" | "g", *_] if value[0] not in {"o", "v", "p", "k", "x", "b"}:
                self.summary.patches.append([owner, name, value])

    def lookup(self, name: str, scope: Scope) -> Ref:
        """What a name stands for where it is used."""
        if name in scope.globals:
            return ["g", name]
        ref = scope.env.get(name)
        if scope.kind == "module":
            return self._lookup_global(name, ref, scope)
        if name in scope.rebound:
            return union([ref, *scope.rebound[name]])
        if ref is not None:
            return ref
        if scope.kind == "function" and name in scope.locals and name not in scope.nonlocals:
            return ["x", f"the local name {name}"]
        outer = scope.parent
        while outer is not None and outer.kind == "class":
            outer = outer.parent
        if outer is None:
            return ["b", name]
        if outer.kind == "module" and scope.kind == "function" and name not in {"__name__", "__package__"}:
            return ["g", name]  # a function sees the globals as they are when it is called
        return self.lookup(name, outer)

    def _lookup_global(self, name: str, ref: Ref | None, scope: Scope) -> Ref:
        if name in self.shared:
            return union([ref, ["g", name]])
        if ref is not None:
            return ref
        if name in {"__name__", "__package__"}:
            return ["v", self.module if name == "__name__" else self.package]
        found: Ref = ["b", name]
        for star in scope.stars:
            found = ["*", star, name, found]
        return found

    # Expressions

    def element(self, node: ast.expr, scope: Scope) -> Ref:
        """What an element of a display, or an argument, stands for."""
        if isinstance(node, ast.Starred):
            return ["e", self.ref(node.value, scope)]
        return self.ref(node, scope)

    def ref(self, node: ast.expr | None, scope: Scope, name: str | None = None) -> Ref:
        """What an expression stands for; ``name`` is the name that it is assigned to."""
        return self.bounded(self._unbounded_ref(node, scope, name))

    def bounded(self, ref: Ref) -> Ref:
        """``ref``, or "anything" where it has grown too large to be a class.

        Refs hold one another, so that ``x = f(x, x)`` in sequence would double them without end.
        """
        known = self._sizes.get(id(ref))
        if known is None:
            size = 1
            for item in ref[1:]:
                size += self._size(item) if isinstance(item, list | dict) else 1
            self._sizes[id(ref)] = (ref, size)
            if size > (_LARGEST_DISPLAY if ref[0] in {"t", "h"} else _LARGEST_REF):
                return ["x", "a long computation"]
        return ref

    def _size(self, item: list[Any] | dict[str, Any]) -> int:
        if isinstance(item, list):
            known = self._sizes.get(id(item))
            if known is not None:
                return known[1]
        size = 0
        for inner in item if isinstance(item, list) else item.values():
            size += self._size(inner) if isinstance(inner, list | dict) else 1
        if isinstance(item, list):
            self._sizes[id(item)] = (item, size)  # kept with its size, so that its id stays its own
        return size

    def _unbounded_ref(self, node: ast.expr | None, scope: Scope, name: str | None) -> Ref:
        match node:
            case ast.Name():
                return self.lookup(node.id, scope)
            case ast.Attribute():
                return ["a", self.ref(node.value, scope), node.attr]
            case ast.Constant():
                return ["v", node.value] if isinstance(node.value, str | int) else OPAQUE
            case ast.Subscript():
                return ["s", self.ref(node.value, scope), self.key(node.slice, scope)]
            case ast.Call():
                return self.call(node, scope, name)
            case ast.Tuple() | ast.List() | ast.Set():
                return ["t", [self.element(item, scope) for item in node.elts]]
            case ast.Dict():
                return ["h", [self._dict_item(k, v, scope) for k, v in zip(node.keys, node.values, strict=True)]]
            case ast.IfExp():
                return union([self.ref(node.body, scope), self.ref(node.orelse, scope)])
            case ast.BoolOp():
                return union([self.ref(value, scope) for value in node.values])
            case ast.NamedExpr():
                return self.ref(node.value, scope)
            case ast.BinOp(op=ast.Add()):
                return concatenation(self.ref(node.left, scope), self.ref(node.right, scope))
            case ast.JoinedStr():
                return self._joined(node, scope)
            case ast.Lambda():
                return ["d", self.new_function("<lambda>", node, scope)]
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
                return self._comprehension(node, scope)
            case ast.Await() | ast.Yield() | ast.YieldFrom():
                return ["x", "an awaited or yielded value"]
            case _:
                return OPAQUE

    def key(self, node: ast.expr, scope: Scope) -> Any:
        """The key of a subscript: a constant, a ref to the parameter that it is, or None where it is neither."""
        if isinstance(node, ast.Name):
            ref = self.lookup(node.id, scope)
            return ref[1] if ref[0] == "v" else ref if ref[0] in {"p", "i"} else None
        if isinstance(node, ast.Tuple | ast.Slice | ast.Attribute | ast.Subscript | ast.Call):
            return None
        try:
            constant = ast.literal_eval(node)
        except (ValueError, TypeError, MemoryError, RecursionError):
            return None
        return constant if isinstance(constant, str | int) else None

    def _joined(self, node: ast.JoinedStr, scope: Scope) -> Ref:
        """An f-string of names without formats, as the concatenation that it is."""
        found: Ref | None = None
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                if part.format_spec is not None or part.conversion != -1:
                    return OPAQUE
                piece = self.ref(part.value, scope)
            else:
                piece = self.ref(part, scope)
            found = piece if found is None else ["+", found, piece]
        return found if found is not None else OPAQUE

    def _comprehension(
        self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp, scope: Scope
    ) -> Ref:
        """A display of what the comprehension may hold, whatever its conditions say."""
        outside = scope.env
        scope.env = dict(outside)
        for generator in node.generators:
            self.bind(generator.target, ["i", self.ref(generator.iter, scope), None], scope)
        if isinstance(node, ast.DictComp):
            found: Ref = ["h", [[None, self.ref(node.value, scope)]]]
        else:
            found = ["y", self.ref(node.elt, scope)]
        scope.env = outside
        return found

    def _dict_item(self, key: ast.expr | None, value: ast.expr, scope: Scope) -> list[Any]:
        if key is None:
            return [None, ["i", self.ref(value, scope), None]]
        return [key.value if isinstance(key, ast.Constant) else None, self.ref(value, scope)]

    def call(self, node: ast.Call, scope: Scope, name: str | None) -> Ref:
        """A call, or the class that it creates."""
        created = self._created_class(node, scope, name)
        if created is not None:
            return created
        keywords = {k.arg: self.ref(k.value, scope) for k in node.keywords if k.arg}
        ref = ["k", self.ref(node.func, scope), [self.element(a, scope) for a in node.args], keywords]
        if node.args or keywords:
            self.summary.calls.append(ref)
        return ref

    def _created_class(self, node: ast.Call, scope: Scope, name: str | None) -> Ref | None:
        """``type("C", (B,), {})`` and its relatives, as the class that they create."""
        function = last_name(node.func)
        keywords = {k.arg: k.value for k in node.keywords}
        bases: ast.expr | None
        maker: Ref | None = None
        if function == "partial" and node.args and last_name(node.args[0]) in {"type", "new_class", "make_dataclass"}:
            # There is a class; what a call of it gives is not followed.
            made = ast.Call(ast.Name("new_class"), node.args[1:], node.keywords)
            self._created_class(ast.copy_location(made, node), scope, name)
            return None
        if function == "type" and isinstance(node.func, ast.Name) and len(node.args) == 3:
            bases = node.args[1]
        elif function == "new_class" and node.args:
            bases = node.args[1] if len(node.args) > 1 else keywords.get("bases")
        elif function == "make_dataclass" and node.args and "bases" in keywords:
            bases = keywords["bases"]
        elif len(node.args) == 3 and isinstance(node.args[1], ast.Tuple) and isinstance(node.args[2], ast.Dict):
            bases = node.args[1]  # if the function is a metaclass
            maker = self.ref(node.func, scope)
        else:
            return None
        if scope.typing_only:
            return OPAQUE
        title = node.args[0]
        called = title.value if isinstance(title, ast.Constant) and isinstance(title.value, str) else name
        held = self.ref(bases, scope) if bases is not None else ["t", []]
        refs: list[Ref] = [["e", held if maker is None else ["@", maker, held]]]
        return ["c", self.new_class(called or "<dynamic>", refs, scope, node.lineno, node.col_offset + 1)]

    # Definitions

    def new_class(self, name: str, bases: list[Ref], scope: Scope, line: int, column: int) -> str:
        """Note a class; returns its key."""
        in_function = scope.kind == "function" or "<locals>" in scope.prefix
        record = ClassRecord(f"{scope.prefix}{name}", line, column, bases, in_function=in_function)
        key = f"{record.qualname}@{line}:{column}"
        self.summary.classes[key] = record
        return key

    def new_function(self, name: str, node: Function, scope: Scope) -> str:
        """Note a function, to be looked into later if anything in it matters; returns its key."""
        arguments = node.args
        positional = [parameter.arg for parameter in (*arguments.posonlyargs, *arguments.args)]
        parameters = [*positional, *(parameter.arg for parameter in arguments.kwonlyargs)]
        qualname = f"{scope.prefix}{name}"
        key = f"{qualname}@{node.lineno}:{node.col_offset}"
        decorators = [] if isinstance(node, ast.Lambda) else [last_name(item) for item in node.decorator_list]
        kind = "static" if scope.kind != "class" or "staticmethod" in decorators else ""
        kind = "class" if "classmethod" in decorators else kind
        rest = arguments.vararg.arg if arguments.vararg else ""
        self.summary.functions[key] = FunctionRecord(qualname, parameters, None, kind, len(positional), rest)
        if not scope.typing_only:
            self.schedule(name, node, scope, key)
        return key

    def schedule(self, name: str, node: Function, scope: Scope, key: str) -> None:
        """See to it that a function is looked into, if that may matter."""
        raise NotImplementedError
