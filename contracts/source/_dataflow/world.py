"""What the tree says of functions, classes and types, as it is needed to follow values through a function."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from contracts.source._dataflow.memory import Effect
from contracts.source._dataflow.operations import TENSOR_TYPES
from contracts.source._dataflow.values import (
    FRESH,
    NUMBER,
    Class,
    Instance,
    Item,
    Module,
    Outside,
    Routine,
)
from contracts.source._dataflow.values import Constant as ConstantItem
from contracts.source._methods import Definition, Methods
from contracts.source._names import Alias, Lost, Meaning, Names
from contracts.source._resolve import ClassValue, Constant, External, FunctionValue, ModuleValue
from contracts.source._syntax import Syntax, all_statements, walk
from contracts.source._types import ANY, ELLIPSIS, AnyType, Function, Literal, Named, Type, Types, Union, Unknown

_PLAIN = frozenset(
    "builtins.bool builtins.bytes builtins.complex builtins.float builtins.int builtins.str torch.Size torch.device "
    "torch.dtype torch.layout types.NoneType builtins.range".split()
)
_FUNCTION_WORD = re.compile(r"\b(?:def|lambda)\b")
_DICTS = frozenset(
    "builtins.dict collections.OrderedDict collections.defaultdict collections.abc.Mapping "
    "collections.abc.MutableMapping".split()
)
_SEQUENCES = frozenset(
    "builtins.list builtins.tuple builtins.set builtins.frozenset collections.deque collections.abc.Sequence "
    "collections.abc.MutableSequence collections.abc.Iterable collections.abc.Iterator collections.abc.Collection "
    "collections.abc.Generator".split()
)


class Nature(NamedTuple):
    """What a type says of an object.

    ``tensor`` is None where it does not say; ``number`` means that it cannot be changed at all; ``classes`` are
    the classes of the tree that it may be of; ``holds`` is the type of its elements, if it has some, and
    ``keyed`` says that these are found by keys.
    """

    tensor: bool | None
    number: bool = False
    classes: tuple[ClassValue, ...] = ()
    holds: Type | None = None
    keyed: bool = False


class World:
    """Static knowledge of a tree.

    Args:
        syntax: the trees.
        names: follows the names in them.
        methods: the definitions in classes.
    """

    def __init__(self, syntax: Syntax, names: Names, methods: Methods) -> None:
        self.syntax = syntax
        self.names = names
        self.methods = methods
        self._types = Types(syntax, names)
        self._globals: dict[tuple[str, str], tuple[Item, ...]] = {}
        self._attributes: dict[tuple[ClassValue, str], Type | None] = {}
        self._natures: dict[Type, Nature] = {}
        self._tensor_classes: dict[ClassValue, bool] = {}
        self._nested: dict[ast.AST, bool] = {}
        self._stand_ins: dict[tuple[ast.AST, str], ast.expr] = {}
        self.effects: dict[Hashable, Effect] = {}
        self._names_in: dict[ast.expr, frozenset[str] | None] = {}

    def has_nested(self, module: str, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> bool:
        """Whether there is a function inside a function of a module."""
        if node not in self._nested:
            first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", ()))])
            text = "\n".join(self.syntax.index.lines(module)[first - 1 : node.end_lineno])
            # Its own word is one of them.
            self._nested[node] = len(_FUNCTION_WORD.findall(text)) > 1 and any(
                isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                for item in walk(node)
                if item is not node
            )
        return self._nested[node]

    def names_in(self, node: ast.expr) -> frozenset[str] | None:
        """The names in an expression; None if it binds one, yields, or asks for ``super()``."""
        if node not in self._names_in:
            inner = list(walk(node))
            names = frozenset(item.id for item in inner if isinstance(item, ast.Name))
            binds = any(isinstance(item, ast.NamedExpr | ast.Yield | ast.YieldFrom) for item in inner)
            self._names_in[node] = None if binds or "super" in names else names
        return self._names_in[node]

    def stand_in(self, node: ast.AST, name: str) -> ast.expr:
        """A name that stands where the code has none: always the same for a node, since its identity counts."""
        key = (node, name)
        if key not in self._stand_ins:
            self._stand_ins[key] = ast.copy_location(ast.Name(name), node)
        return self._stand_ins[key]

    def another(self, node: ast.expr, number: int) -> ast.expr:
        """The expression, as one of several that are evaluated at its place; always the same one for a number."""
        key = (node, str(number))
        if key not in self._stand_ins:
            self._stand_ins[key] = copy.copy(node)
        return self._stand_ins[key]

    # Names

    def global_(self, module: str, name: str) -> tuple[Item, ...]:
        """What a global name of a module may be."""
        key = (module, name)
        if key not in self._globals:
            self._globals[key] = ()
            self._globals[key] = tuple(self._look_up(module, name))
        return self._globals[key]

    def _look_up(self, module: str, name: str) -> Iterator[Item]:
        found = False
        for value in sorted(self.syntax.index.resolver.export(module, name), key=repr):
            match value:
                case ClassValue():
                    item: Item = Class(value._replace(frame=()))
                case FunctionValue():
                    node = self.syntax.function(value)
                    if node is None:
                        continue
                    item = Routine(value.module, node)
                case ModuleValue(inner):
                    item = Module(inner)
                case External(outside) if not outside.endswith("()"):
                    item = Outside(outside.removeprefix("*."))
                case Constant(held):
                    item = ConstantItem(type(held).__name__, held)
                case _:
                    continue
            found = True
            yield item
        if not found:
            yield from self._from_meaning(self.names.expression(module, ast.Name(name)))

    def _from_meaning(self, meaning: Meaning) -> Iterator[Item]:
        """A name that only an assignment tells: an instance made in the module."""
        if isinstance(meaning, External):
            yield Outside(meaning.name)
        elif isinstance(meaning, Alias):
            for expression in self.names.assigned(meaning):
                if isinstance(expression, ast.Call):
                    of = self.names.expression(meaning.module, expression.func)
                    if isinstance(of, ClassValue):
                        yield Instance(of)
                elif isinstance(expression, ast.Constant) and isinstance(expression.value, int | float):
                    yield NUMBER

    def imported(self, module: str, name: str | None) -> tuple[Item, ...]:
        """What ``import module`` or ``from module import name`` inside a function binds."""
        files = self.syntax.index.tree.files
        if name is None:
            return (Module(module),) if module in files else (Outside(module),)
        if module in files:
            return self.global_(module, name)
        return (Outside(f"{module}.{name}"),)

    # Types

    def type_of(self, annotation: ast.expr | None, module: str, owner: ClassValue | None) -> Type:
        """The type that an annotation of a function spells."""
        scope = owner if owner is not None and owner.module == module else None
        return self._types.read(annotation, module, scope)

    def class_type(self, of: ClassValue) -> Type:
        """The type of a class's objects."""
        return Named(of)

    def type_of_default(self, default: ast.expr | None) -> Type:
        """What a default says of a parameter without annotation: that it is no tensor, if it is a number or so."""
        held = default.value if isinstance(default, ast.Constant) else None
        return Named(f"builtins.{type(held).__name__}") if isinstance(held, int | float | str) else ANY

    def nature(self, type_: Type) -> Nature:
        """What a type says of its objects."""
        if type_ not in self._natures:
            self._natures[type_] = self._nature(type_)
        return self._natures[type_]

    def _nature(self, type_: Type) -> Nature:
        match type_:
            case Union(members):
                natures = [self.nature(member) for member in members if member != Named("types.NoneType")]
                tensors = {nature.tensor for nature in natures}
                return Nature(
                    True if True in tensors else None if None in tensors else False,
                    all(nature.number for nature in natures),
                    tuple(sorted({c for nature in natures for c in nature.classes})),
                    next((nature.holds for nature in natures if nature.holds is not None), None),
                    any(nature.keyed for nature in natures),
                )
            case Named(name, arguments):
                return self._named(name, arguments or ())
            case Literal():
                return Nature(False, number=True)
            case Function():
                return Nature(False)
            case _:
                return Nature(None)

    def _named(self, name: ClassValue | str, arguments: tuple[Type, ...]) -> Nature:
        if isinstance(name, ClassValue):
            holds = ANY if self.is_named_tuple(name) else None
            return Nature(self._is_tensor_class(name), classes=(name,), holds=holds)
        if name in _PLAIN:
            return Nature(False, number=True)
        if name in TENSOR_TYPES or any(self.nature(item).tensor for item in arguments if name.startswith("jaxtyping.")):
            return Nature(True)
        if name in _DICTS:
            return Nature(False, holds=arguments[1] if len(arguments) == 2 else ANY, keyed=True)
        if name in _SEQUENCES:
            items = [item for item in arguments if item != ELLIPSIS]
            return Nature(False, holds=Union(frozenset(items)) if len(items) > 1 else items[0] if items else ANY)
        return Nature(None if name.startswith("typing.") else False)

    def _is_tensor_class(self, value: ClassValue) -> bool:
        if value not in self._tensor_classes:
            resolver = self.syntax.index.resolver
            self._tensor_classes[value] = any(
                isinstance(option, External) and option.name in TENSOR_TYPES
                for ancestor in self.methods.order(value)
                if ancestor is not None
                for options in resolver.bases(ancestor)
                for option in options
            )
        return self._tensor_classes[value]

    def described(self, type_: Type) -> tuple[Item, ...]:
        """What is known of some object of a type."""
        nature = self.nature(type_)
        found: list[Item] = [Instance(of) for of in nature.classes]
        if nature.tensor:
            found.append(FRESH)
        if nature.number:
            found.append(NUMBER)
        return tuple(found)

    def is_vague(self, type_: Type) -> bool:
        """Whether a type says nothing."""
        return isinstance(type_, AnyType | Unknown)

    # Classes

    def method(self, of: ClassValue, name: str, *, behind: ClassValue | None = None) -> list[Definition]:
        """The definitions that a class, or what is behind a class in its order, gives a name."""
        order = self.methods.order(of)
        if behind is not None and behind in order:
            order = order[order.index(behind) + 1 :]
        for ancestor in order:
            found = self.methods.defined(ancestor).get(name) if ancestor is not None else None
            if found:
                return [definition for definition in found if definition.kind != "attribute"]
        return []

    def attribute_type(self, of: ClassValue, name: str) -> Type | None:
        """The type of an attribute of a class's objects, as far as the class says; None where it does not."""
        key = (of, name)
        if key not in self._attributes:
            self._attributes[key] = None
            for ancestor in self.methods.order(of):
                found = self._own_attribute_type(ancestor, name) if ancestor is not None else None
                if found is not None:
                    self._attributes[key] = found
                    break
        return self._attributes[key]

    def _own_attribute_type(self, of: ClassValue, name: str) -> Type | None:
        for definition in self.methods.defined(of).get(name, ()):
            if definition.kind == "property" and definition.returns is not None:
                return self.type_of(definition.returns, definition.module, of)
        node = self.syntax.class_(of)
        if node is None:
            return None
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and _is_name(statement.target, name):
                return self.type_of(statement.annotation, of.module, of)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef) and statement.args.args:
                found = self._assigned_type(statement, statement.args.args[0].arg, name, of)
                if found is not None:
                    return found
        return None

    def _assigned_type(self, function: ast.FunctionDef, self_name: str, name: str, of: ClassValue) -> Type | None:
        """The type of what a method assigns to ``self.name``."""
        for statement in all_statements(function.body):
            if isinstance(statement, ast.AnnAssign) and _is_attribute(statement.target, self_name, name):
                return self.type_of(statement.annotation, of.module, of)
            if isinstance(statement, ast.Assign) and any(
                _is_attribute(target, self_name, name) for target in statement.targets
            ):
                assigned = statement.value
                if isinstance(assigned, ast.Call):
                    meaning = self.names.expression(of.module, assigned.func, of)
                    if isinstance(meaning, ClassValue):
                        return Named(meaning)
                elif isinstance(assigned, ast.Name):
                    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
                    for argument in arguments:
                        if argument.arg == assigned.id and argument.annotation is not None:
                            return self.type_of(argument.annotation, of.module, of)
        return None

    def is_named_tuple(self, of: ClassValue) -> bool:
        """Whether a class's objects are tuples of its fields."""
        return any(
            isinstance(option, External) and option.name == "typing.NamedTuple"
            for ancestor in self.methods.order(of)
            if ancestor is not None
            for options in self.syntax.index.resolver.bases(ancestor)
            for option in options
        )

    def fields(self, of: ClassValue) -> list[str] | None:
        """The fields by which a dataclass or named tuple is made, in order; None for other classes."""
        order = [ancestor for ancestor in self.methods.order(of) if ancestor is not None]
        if not any(self._has_fields(ancestor) for ancestor in order):
            return None
        found: dict[str, None] = {}
        for ancestor in reversed(order):
            node = self.syntax.class_(ancestor)
            for statement in node.body if node is not None and self._has_fields(ancestor) else ():
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    found[statement.target.id] = None
        return list(found)

    def _has_fields(self, of: ClassValue) -> bool:
        node = self.syntax.class_(of)
        if node is None:
            return False
        heads = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
        meanings = [self.names.expression(of.module, head) for head in (*heads, *node.bases)]
        return any(
            isinstance(meaning, External)
            and meaning.name in {"dataclasses.dataclass", "typing.NamedTuple", "attrs.define", "attr.s", "attrs.frozen"}
            for meaning in meanings
            if not isinstance(meaning, Lost)
        )


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_attribute(node: ast.expr, owner: str, name: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == name and _is_name(node.value, owner)
