"""Types as annotations spell them, read into one form: aliases expanded, ``Optional`` and ``|`` alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from contracts.source._names import Alias, Lost, Meaning, Names
from contracts.source._resolve import ClassValue, External, FunctionValue, ModuleValue
from contracts.source._syntax import Syntax


@dataclass(frozen=True, slots=True)
class AnyType:
    """Compatible with everything: ``Any``, or no annotation."""


@dataclass(frozen=True, slots=True)
class Named:
    """A class and its arguments; ``arguments`` is None where none are given.

    ``name`` is a class of the tree, or the dotted name of one from elsewhere. A ``tuple`` of any length has
    the argument ``...`` last, as it is written.
    """

    name: ClassValue | str
    arguments: tuple[Type, ...] | None = None


@dataclass(frozen=True, slots=True)
class Union:
    """One of several."""

    members: frozenset[Type]


@dataclass(frozen=True, slots=True)
class Function:
    """``Callable[[...], result]``; ``parameters`` is None for ``...``."""

    parameters: tuple[Type, ...] | None
    result: Type


@dataclass(frozen=True, slots=True)
class Literal:
    """One value, and the name of its type."""

    value: str
    of: str


@dataclass(frozen=True, slots=True, order=True)
class Variable:
    """A type variable; those that a method declares itself (``def f[T]``) are of no module."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """An annotation that reading cannot follow."""

    module: str
    text: str


Type = AnyType | Named | Union | Function | Literal | Variable | Unknown

ANY = AnyType()
NONE = Named("types.NoneType")
NEVER = Union(frozenset())
SELF = Variable("typing", "Self")
ELLIPSIS = Named("builtins.Ellipsis")

_MODERN = {
    "List": "builtins.list",
    "Dict": "builtins.dict",
    "Set": "builtins.set",
    "FrozenSet": "builtins.frozenset",
    "Tuple": "builtins.tuple",
    "Type": "builtins.type",
    "Text": "builtins.str",
    "AbstractSet": "collections.abc.Set",
    "ContextManager": "contextlib.AbstractContextManager",
    "AsyncContextManager": "contextlib.AbstractAsyncContextManager",
    "DefaultDict": "collections.defaultdict",
    "OrderedDict": "collections.OrderedDict",
    "Counter": "collections.Counter",
    "Deque": "collections.deque",
    "ChainMap": "collections.ChainMap",
    "Pattern": "re.Pattern",
    "Match": "re.Match",
}
_ABSTRACT = frozenset(
    "Awaitable Coroutine AsyncIterable AsyncIterator AsyncGenerator Reversible Container Collection Callable "
    "MutableSet Mapping MutableMapping Sequence MutableSequence ByteString MappingView KeysView ItemsView "
    "ValuesView Iterable Iterator Generator Hashable Sized".split()
)
_WRAPPERS = frozenset({"Final", "ClassVar", "Required", "NotRequired", "ReadOnly", "Annotated"})
_VARIABLES = frozenset({"TypeVar", "ParamSpec", "TypeVarTuple"})


class Types:
    """Reads annotations.

    Args:
        syntax: the trees.
        names: follows the names in them.
    """

    def __init__(self, syntax: Syntax, names: Names) -> None:
        self._syntax = syntax
        self._names = names

    def read(
        self,
        node: ast.expr | None,
        module: str,
        scope: ClassValue | None = None,
        bound: Mapping[Variable, Type] | None = None,
        declared: frozenset[str] = frozenset(),
    ) -> Type:
        """The type that an annotation in a module (in the body of the class ``scope``) spells.

        ``bound`` are type variables whose meaning is known; ``declared`` are the names of those that the
        method itself declares.
        """
        return _Reader(self._syntax, self._names, module, scope, bound or {}, declared=declared).read(node)

    def parameters_of(self, value: ClassValue) -> list[Variable]:
        """The type variables of a generic class, in order."""
        node = self._syntax.class_(value)
        if node is None:
            return []
        reader = _Reader(self._syntax, self._names, value.module, None, {})
        declared = getattr(node, "type_params", [])
        if declared:
            return [Variable(value.module, parameter.name) for parameter in declared]
        explicit: list[Variable] = []
        found: list[Variable] = []
        for base in node.bases:
            if isinstance(base, ast.Subscript):
                arguments = [reader.read(item) for item in _items(base.slice)]
                variables = [v for argument in arguments for v in variables_in(argument)]
                if _canonical(self._names.expression(value.module, base.value)) in {
                    "typing.Generic",
                    "typing.Protocol",
                }:
                    explicit += variables
                found += variables
        return list(dict.fromkeys(explicit or found))

    def bindings(
        self, value: ClassValue, ancestor: ClassValue, order: list[ClassValue | None]
    ) -> dict[Variable, Type]:
        """What the type variables of ``ancestor`` are bound to in ``value``, by the headers of the classes between."""
        if value == ancestor:
            return {}
        node = self._syntax.class_(value)
        for base in node.bases if node is not None else ():
            header = base.value if isinstance(base, ast.Subscript) else base
            parent = self._names.expression(value.module, header)
            if not isinstance(parent, ClassValue) or parent not in order:
                continue
            bound: dict[Variable, Type] = dict.fromkeys(self.parameters_of(parent), ANY)
            if isinstance(base, ast.Subscript):
                reader = _Reader(self._syntax, self._names, value.module, None, {})
                arguments = [reader.read(item) for item in _items(base.slice)]
                bound = dict(zip(self.parameters_of(parent), arguments, strict=False))
            if parent == ancestor:
                return bound
            above = self.bindings(parent, ancestor, [item for item in order if item != value])
            if above:
                return {variable: substitute(type_, bound) for variable, type_ in above.items()}
        return {}


class _Reader:
    def __init__(
        self,
        syntax: Syntax,
        names: Names,
        module: str,
        scope: ClassValue | None,
        bound: Mapping[Variable, Type],
        within: frozenset[Alias] = frozenset(),
        declared: frozenset[str] = frozenset(),
    ) -> None:
        self.declared = declared
        self.syntax = syntax
        self.names = names
        self.module = module
        self.scope = scope
        self.bound = bound
        self.within = within

    def read(self, node: ast.expr | None) -> Type:
        match node:
            case None:
                return ANY
            case ast.Constant(value=None):
                return NONE
            case ast.Constant(value=str(text)):
                try:
                    return self.read(ast.parse(text.strip(), mode="eval").body)
                except (SyntaxError, ValueError):
                    return Unknown(self.module, text)
            case ast.Constant() if node.value is ...:
                return ELLIPSIS
            case ast.Name() | ast.Attribute():
                return self.named(node)
            case ast.Subscript():
                return self.subscript(node)
            case ast.BinOp(op=ast.BitOr()):
                return union([self.read(node.left), self.read(node.right)])
            case ast.Starred():
                return self.read(node.value)
            case _:
                return self.unknown(node)

    def unknown(self, node: ast.AST) -> Unknown:
        return Unknown(self.module, ast.unparse(node))

    def named(self, node: ast.Name | ast.Attribute) -> Type:
        if isinstance(node, ast.Name) and node.id in self.declared:
            return Variable("", node.id)
        if isinstance(node, ast.Name) and self.declares(node.id):
            variable = Variable(self.module, node.id)
            return self.bound.get(variable, variable)
        return self.meaning(self.names.expression(self.module, node, self.scope), node)

    def declares(self, name: str) -> bool:
        """Whether the class that the annotation stands in has a type parameter (``class C[T]``) of this name."""
        definition = self.syntax.class_(self.scope) if self.scope is not None else None
        return any(parameter.name == name for parameter in getattr(definition, "type_params", ()))

    def meaning(self, meaning: Meaning, node: ast.expr) -> Type:
        match meaning:
            case ClassValue():
                return Named(meaning)
            case External():
                return _external(_canonical(meaning) or meaning.name)
            case Alias():
                return self.expand(meaning)
            case Lost() | ModuleValue() | FunctionValue():
                return self.unknown(node)

    def expand(self, alias: Alias) -> Type:
        """The type that an alias stands for."""
        if alias in self.within:  # a type that names itself, as JSON's does: it has no end, but it has a name
            return Named(f"{alias.module}.{alias.name}")
        assigned = self.names.assigned(alias)
        if not assigned:
            return Unknown(alias.module, alias.name)
        reader = _Reader(self.syntax, self.names, alias.module, None, self.bound, self.within | {alias})
        read = {reader.assigned(node, alias) for node in assigned}
        return read.pop() if len(read) == 1 else Unknown(alias.module, alias.name)

    def assigned(self, node: ast.expr, alias: Alias) -> Type:
        if isinstance(node, ast.Call):
            function = _canonical(self.names.expression(self.module, node.func)) or ""
            if function.rpartition(".")[2] in _VARIABLES:
                variable = Variable(alias.module, alias.name)
                return self.bound.get(variable, variable)
            if function in {
                "typing.NewType",
                "typing.NamedTuple",
                "collections.namedtuple",
                "typing.TypedDict",
            }:
                return Named(f"{alias.module}.{alias.name}")
        return self.read(node)

    def subscript(self, node: ast.Subscript) -> Type:
        meaning = self.names.expression(self.module, node.value, self.scope)
        items = _items(node.slice)
        name = _canonical(meaning)
        special = name.removeprefix("typing.") if name and name.startswith("typing.") else ""
        if special == "Optional":
            return union([self.read(items[0]), NONE])
        if special == "Union":
            return union([self.read(item) for item in items])
        if special in _WRAPPERS:
            return self.read(items[0])
        if special == "Literal":
            return union([self.literal(item) for item in items])
        if name == "collections.abc.Callable" and len(items) == 2:
            return self.callable(items[0], items[1])
        if isinstance(meaning, Alias):
            expanded = self.expand(meaning)
            variables = list(dict.fromkeys(variables_in(expanded)))
            arguments = [self.read(item) for item in items]
            return substitute(expanded, dict(zip(variables, arguments, strict=False)))
        base = self.meaning(meaning, node.value)
        if isinstance(base, Named):
            return Named(base.name, tuple(self.read(item) for item in items))
        return self.unknown(node)

    def callable(self, parameters: ast.expr, result: ast.expr) -> Type:
        returned = self.read(result)
        if isinstance(parameters, ast.List):
            return Function(tuple(self.read(item) for item in parameters.elts), returned)
        if isinstance(parameters, ast.Constant) and parameters.value is ...:
            return Function(None, returned)
        return self.unknown(parameters)

    def literal(self, node: ast.expr) -> Type:
        if isinstance(node, ast.Constant):
            return (
                NONE
                if node.value is None
                else Literal(repr(node.value), f"builtins.{type(node.value).__name__}")
            )
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return Literal(ast.unparse(node), "builtins.int")
        if isinstance(node, ast.Attribute):
            owner = self.names.expression(self.module, node.value, self.scope)
            if isinstance(owner, ClassValue):
                return Literal(f"{owner.module}.{owner.key}.{node.attr}", "")
        return self.unknown(node)


def union(members: list[Type]) -> Type:
    """One of several, without unions inside; a single one is itself."""
    flat: set[Type] = set()
    for member in members:
        flat |= member.members if isinstance(member, Union) else {member}
    if ANY in flat:
        return ANY
    return flat.pop() if len(flat) == 1 else Union(frozenset(flat))


def parts(type_: Type) -> Iterator[Type]:
    """A type and all that it is made of, as far as there is an order in the order in which it is written."""
    yield type_
    match type_:
        case Named(_, arguments):
            inner = list(arguments or ())
        case Union(members):
            inner = sorted(members, key=repr)
        case Function(parameters, result):
            inner = [*(parameters or ()), result]
        case _:
            inner = []
    for item in inner:
        yield from parts(item)


def variables_in(type_: Type) -> list[Variable]:
    """The type variables in a type."""
    return [item for item in parts(type_) if isinstance(item, Variable)]


def substitute(type_: Type, bound: Mapping[Variable, Type]) -> Type:
    """A type with its variables replaced."""
    match type_:
        case Variable():
            return bound.get(type_, type_)
        case Named(name, arguments) if arguments is not None:
            return Named(name, tuple(substitute(argument, bound) for argument in arguments))
        case Union(members):
            return union([substitute(member, bound) for member in members])
        case Function(parameters, result):
            given = None if parameters is None else tuple(substitute(item, bound) for item in parameters)
            return Function(given, substitute(result, bound))
        case _:
            return type_


def _external(name: str) -> Type:
    if name in {"typing.Any", "_typeshed.Incomplete"}:
        return ANY
    if name in {"typing.Never", "typing.NoReturn"}:
        return NEVER
    if name == "collections.abc.Callable":
        return Function(None, ANY)
    if name == "typing.Self":
        return SELF
    return Named(name)


def _canonical(meaning: Meaning) -> str | None:
    """The modern name of something from the standard library."""
    if not isinstance(meaning, External):
        return None
    module, _, name = meaning.name.rpartition(".")
    if module in {"typing", "typing_extensions"}:
        if name in _ABSTRACT:
            return f"collections.abc.{name}"
        return _MODERN.get(name, f"typing.{name}")
    if module == "_collections_abc":
        return f"collections.abc.{name}"
    return meaning.name


def _items(node: ast.expr) -> list[ast.expr]:
    return list(node.elts) if isinstance(node, ast.Tuple) else [node]
