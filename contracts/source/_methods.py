"""The methods, properties and attributes that class bodies define, and where a class takes each from."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from contracts.source._decorators import Decorators, Effect
from contracts.source._names import Lost, Names
from contracts.source._resolve import ClassValue, External, FunctionValue
from contracts.source._syntax import Syntax, is_type_checking

# What is certainly no function.
DATA = (
    ast.Constant, ast.List, ast.Dict, ast.Set, ast.Tuple, ast.JoinedStr, ast.ListComp, ast.SetComp, ast.DictComp,
    ast.GeneratorExp, ast.Compare, ast.UnaryOp, ast.BinOp,
)  # fmt: skip
_WRAPPERS = {
    "": "instance",
    "builtins.staticmethod": "static",
    "builtins.classmethod": "class",
    "builtins.property": "property",
}

POSITION, EITHER, NAME, REST, NAMED_REST = "position", "either", "name", "rest", "named rest"
BY_POSITION = frozenset({POSITION, EITHER})


class Parameter(NamedTuple):
    """A parameter; ``kind`` says how it may be passed, ``line`` and ``column`` (from 1) where it stands."""

    name: str
    kind: str
    default: ast.expr | None
    annotation: ast.expr | None
    line: int
    column: int

    @property
    def written(self) -> str:
        """The name with its stars."""
        return {REST: "*", NAMED_REST: "**"}.get(self.kind, "") + self.name


_DEF = re.compile(r"(?:async\s+)?def\s+")


@dataclass(slots=True)
class Definition:
    """What a class body binds a name to.

    ``kind`` is ``instance``, ``static`` or ``class`` for methods, ``property``, or ``attribute``;
    ``not_understood`` are the decorators of which reading cannot tell what they do, or the expression that
    gives an attribute it knows not what; ``parameters`` are those of a call through the class's instances,
    without ``self``, and ``lacks_self`` says that there is none; ``annotation`` and ``value`` are an
    attribute's; ``overloads`` are those of an implementation, or without one, up to itself.
    """

    owner: ClassValue
    name: str
    kind: str
    line: int
    column: int
    node: ast.FunctionDef | ast.AsyncFunctionDef | None = None
    module: str = ""
    parameters: list[Parameter] = field(default_factory=list)
    not_understood: list[ast.expr] = field(default_factory=list)
    settable: bool = False
    deletable: bool = False
    manages_context: bool = False
    is_coroutine: bool = False
    lacks_self: bool = False
    annotation: ast.expr | None = None
    value: ast.expr | None = None
    is_overload: bool = False
    overloads: list[Definition] = field(default_factory=list)

    @property
    def is_method(self) -> bool:
        """Whether it is called."""
        return self.kind in {"instance", "static", "class"}

    @property
    def returns(self) -> ast.expr | None:
        """The return annotation, or an attribute's."""
        return self.node.returns if self.node is not None else self.annotation

    @property
    def declared(self) -> frozenset[str]:
        """The type variables that it declares itself."""
        return frozenset(parameter.name for parameter in getattr(self.node, "type_params", ()))


class Methods:
    """The definitions in the classes of a tree.

    Args:
        syntax: the trees.
        names: follows the names in them.
    """

    def __init__(self, syntax: Syntax, names: Names) -> None:
        self._syntax = syntax
        self._names = names
        self.decorators = Decorators(syntax, names)
        self._defined: dict[ClassValue, dict[str, list[Definition]]] = {}
        self._orders: dict[ClassValue, list[ClassValue | None]] = {}

    def order(self, value: ClassValue) -> list[ClassValue | None]:
        """The method resolution order; None stands for a class that is not known."""
        if value not in self._orders:
            self._orders[value] = self._syntax.index.hierarchy.order(value)
        return self._orders[value]

    def defined(self, value: ClassValue) -> dict[str, list[Definition]]:
        """What a class body binds, by name; several where it depends on a condition."""
        if value not in self._defined:
            found: dict[str, list[Definition]] = {}
            self._defined[value] = found  # a body may name the class
            node = self._syntax.class_(value)
            if node is not None:
                self._read(node.body, value, found)
                for name in self._syntax.index.resolver.record(value).attributes.keys() - found.keys():
                    found[name] = [self._attribute(name, node, value)]  # by an import, a loop, "with" or ":="
                    found[name][0].not_understood = [ast.Name(name)]
        return self._defined[value]

    def lookup(self, value: ClassValue, name: str) -> tuple[ClassValue, list[Definition]] | None:
        """Where a class takes a name from, itself first; None where no known class defines it."""
        for ancestor in self.order(value):
            if ancestor is None:
                continue
            found = self.defined(ancestor).get(name)
            if found:
                return ancestor, found
        return None

    def _read(
        self, statements: Sequence[ast.stmt], owner: ClassValue, found: dict[str, list[Definition]]
    ) -> None:
        """Add what a block binds; a later binding replaces an earlier one."""
        for statement in statements:
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    self._add_function(statement, owner, found)
                case ast.Assign():
                    for target in statement.targets:
                        if isinstance(target, ast.Name):
                            found[target.id] = [self._assigned(target, statement.value, owner)]
                        elif isinstance(target, ast.Tuple | ast.List):
                            for name in (item for item in ast.walk(target) if isinstance(item, ast.Name)):
                                found[name.id] = [self._attribute(name.id, name, owner)]
                                found[name.id][0].not_understood = [statement.value]
                case ast.AnnAssign(target=ast.Name() as name, value=value):
                    if value is not None:
                        found[name.id] = [self._assigned(name, value, owner)]
                    elif name.id not in found:
                        found[name.id] = [self._attribute(name.id, name, owner)]
                    found[name.id][0].annotation = statement.annotation
                case ast.ClassDef():
                    found[statement.name] = [self._attribute(statement.name, statement, owner)]
                case ast.Delete():
                    for target in statement.targets:
                        if isinstance(target, ast.Name):
                            found.pop(target.id, None)
                case ast.If():
                    if is_type_checking(statement.test):
                        self._read(statement.orelse, owner, found)
                    else:
                        self._branches([statement.body, statement.orelse], owner, found)
                case ast.Match():
                    self._branches([*(case.body for case in statement.cases), []], owner, found)
                case ast.Try() | ast.TryStar():
                    body = [*statement.body, *statement.orelse]
                    self._branches([body, *(handler.body for handler in statement.handlers)], owner, found)
                    self._read(statement.finalbody, owner, found)
                case ast.With() | ast.For() | ast.While():
                    self._read(statement.body, owner, found)

    def _branches(
        self, blocks: Sequence[Sequence[ast.stmt]], owner: ClassValue, found: dict[str, list[Definition]]
    ) -> None:
        before = dict(found)
        ends = []
        for block in blocks:
            end = dict(before)
            self._read(block, owner, end)
            ends.append(end)
        for name in sorted({name for end in ends for name in end}):
            options: list[Definition] = []
            for end in ends:
                options += [item for item in end.get(name, ()) if all(item is not other for other in options)]
            found[name] = options

    def _add_function(
        self,
        node: ast.FunctionDef | ast.AsyncFunctionDef,
        owner: ClassValue,
        found: dict[str, list[Definition]],
    ) -> None:
        definition = Definition(owner, node.name, "instance", node.lineno, 1, node, owner.module)
        definition.column = self._name_column(node, owner.module)
        if node.name in {"__init_subclass__", "__class_getitem__"}:
            definition.kind = "class"
        elif node.name == "__new__":
            definition.kind = "static"
        for decorator in node.decorator_list:
            effect = self.decorators.effect(decorator, node, owner)
            if effect in {Effect.SETTER, Effect.DELETER}:
                self._extend_property(definition, effect, found)
                return
            if effect is Effect.UNKNOWN:
                definition.not_understood.append(decorator)
            elif effect is Effect.OVERLOAD:
                definition.is_overload = True
            elif effect is Effect.CONTEXT_MANAGER:
                definition.manages_context = True
            elif effect is Effect.CACHED_PROPERTY:
                definition.kind, definition.settable, definition.deletable = "property", True, True
            elif effect is not Effect.NOTHING:
                definition.kind = effect.value
        self._fill(definition, node, owner.module)
        before = found.get(node.name, [])
        if len(before) == 1 and before[0].is_overload:
            definition.overloads += before[0].overloads
        if definition.is_overload:
            definition.overloads.append(definition)
        found[node.name] = [definition]

    def _extend_property(
        self, definition: Definition, effect: Effect, found: dict[str, list[Definition]]
    ) -> None:
        known = found.get(definition.name)
        if known is None:
            # `@Base.x.setter`: the getter is the base's.
            definition.kind, definition.node = "property", None
            known = found[definition.name] = [definition]
        for item in known:
            item.settable |= effect is Effect.SETTER
            item.deletable |= effect is Effect.DELETER

    def _assigned(self, target: ast.Name, value: ast.expr, owner: ClassValue) -> Definition:
        """``name = function`` and its relatives."""
        definition = self._attribute(target.id, target, owner)
        definition.value = value
        if isinstance(value, DATA):
            return definition
        wrapper, wrapped = "", value
        if isinstance(value, ast.Call):
            meaning = self._names.expression(owner.module, value.func, owner)
            wrapper = meaning.name if isinstance(meaning, External) else "?"
            wrapped = value.args[0] if value.args else value
            if wrapper == "builtins.property":
                given = len(value.args) + len(value.keywords)
                definition.kind, definition.settable, definition.deletable = "property", given > 1, given > 2
        kind = _WRAPPERS.get(wrapper)
        function = self._function(wrapped, owner) if kind is not None else None
        if kind is not None and function is not None:
            definition.kind = kind
            definition.module, definition.node = function
            self._fill(definition, definition.node, definition.module)
        elif definition.kind == "attribute":
            definition.not_understood = [value]
        return definition

    def _function(
        self, value: ast.expr, owner: ClassValue
    ) -> tuple[str, ast.FunctionDef | ast.AsyncFunctionDef] | None:
        """The function that an expression in a class body names or is, with its module; None if it is wrapped."""
        if isinstance(value, ast.Lambda):
            body = ast.copy_location(ast.Return(value.body), value.body)
            return owner.module, ast.copy_location(ast.FunctionDef("", value.args, [body], []), value)
        meaning = self._names.expression(owner.module, value, owner)
        if isinstance(value, ast.Name):
            ref = self._syntax.index.resolver.record(owner).attributes.get(value.id)
            if ref is not None:
                meaning = FunctionValue(owner.module, ref[1]) if ref[0] == "d" else Lost(value.id)
        elif isinstance(value, ast.Attribute):
            holder = self._names.expression(owner.module, value.value, owner)
            found = self.lookup(holder, value.attr) if isinstance(holder, ClassValue) else None
            if found is not None and [item.kind for item in found[1]] == ["instance"]:
                method = found[1][0].node
                return (found[1][0].module, method) if method is not None and not method.decorator_list else None
        if isinstance(meaning, FunctionValue):
            node = self._syntax.function(meaning)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.decorator_list:
                return meaning.module, node
        return None

    def _attribute(self, name: str, node: ast.expr | ast.stmt, owner: ClassValue) -> Definition:
        column = self._syntax.column(owner.module, node.lineno, node.col_offset)
        return Definition(owner, name, "attribute", node.lineno, column, module=owner.module)

    def _fill(
        self, definition: Definition, node: ast.FunctionDef | ast.AsyncFunctionDef, module: str
    ) -> None:
        definition.is_coroutine = isinstance(node, ast.AsyncFunctionDef) and not _yields(node)
        definition.parameters = self.parameters(node, module)
        if definition.kind in {"instance", "class", "property"}:
            first = definition.parameters[0].kind if definition.parameters else NAME
            if first in {POSITION, EITHER}:
                definition.parameters = definition.parameters[1:]
            definition.lacks_self = first in {NAME, NAMED_REST}

    def parameters(self, node: ast.FunctionDef | ast.AsyncFunctionDef, module: str) -> list[Parameter]:
        """All parameters of a function, in order."""
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
        found: list[tuple[ast.arg, str, ast.expr | None]] = []
        for place, (item, default) in enumerate(zip(positional, defaults, strict=True)):
            private = item.arg.startswith("__") and not item.arg.endswith("__")
            only = place < len(arguments.posonlyargs) or private
            found.append((item, POSITION if only else EITHER, default))
        if arguments.vararg is not None:
            found.append((arguments.vararg, REST, None))
        found += [
            (item, NAME, default)
            for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        ]
        if arguments.kwarg is not None:
            found.append((arguments.kwarg, NAMED_REST, None))
        return [
            Parameter(
                item.arg,
                kind,
                default,
                item.annotation,
                item.lineno,
                self._syntax.column(module, item.lineno, item.col_offset),
            )
            for item, kind, default in found
        ]

    def _name_column(self, node: ast.FunctionDef | ast.AsyncFunctionDef, module: str) -> int:
        line = self._syntax.line(module, node.lineno)
        start = self._syntax.column(module, node.lineno, node.col_offset) - 1
        found = _DEF.match(line, start)
        return (found.end() if found and line.startswith(node.name, found.end()) else start) + 1


def _yields(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    pending: list[ast.AST] = list(node.body)
    while pending:
        item = pending.pop()
        if isinstance(item, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            pending.extend(ast.iter_child_nodes(item))
    return False
