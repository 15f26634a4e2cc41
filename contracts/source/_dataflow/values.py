"""What a name may hold while a function runs: inputs and their views, and whatever leads to them.

A *value* is a set of items, each with its trail: the steps by which it came there from a parameter. Items that
have nothing to do with a parameter are kept only as far as they decide something: which class an object is
of, which function a name is, whether an index is a number.
"""

from __future__ import annotations

import ast
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self, cast, dataclass_transform

from contracts.source._resolve import ClassValue

_LONGEST_TEXT = 60
LONGEST_TRAIL = 8
_MOST_ITEMS = 40
_MOST_LEVELS = 4  # of attributes and elements, one inside the other


class Text(NamedTuple):
    """A text about a piece of code, which stands for ``{}`` in it; put together only where it is printed."""

    form: str
    node: ast.AST

    def __str__(self) -> str:
        text = ast.unparse(self.node)
        return self.form.replace("{}", text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}...")


@dataclass(frozen=True, slots=True)
class Step:
    """A statement by which something got its name: where it stands, and its text.

    ``copies`` says that what it does is to copy, at times.
    """

    module: str
    line: int
    text: Text
    copies: bool = False


Trail = tuple[Step, ...]


@dataclass_transform(frozen_default=True)
class Unique:
    """Of items that are equal there is one object: comparing and hashing them, which is most of the work, is quick.

    Only for items of names and numbers, since they are never let go.
    """

    _known: ClassVar[dict[tuple[Any, ...], Any]] = {}
    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Take the fields from the annotations."""
        cls._fields = tuple(cls.__annotations__)
        type.__setattr__(cls, "__match_args__", cls._fields)  # for patterns; a checker knows of it

    def __new__(cls, *given: Any, **named: Any) -> Self:
        """The one object with these fields."""
        if named or len(given) < len(cls._fields):
            defaults = {name: vars(cls)[name] for name in cls._fields if name in vars(cls)}
            fields = {**defaults, **dict(zip(cls._fields, given, strict=False)), **named}
            given = tuple(fields[name] for name in cls._fields)
        known = Unique._known.get((cls, *given))
        if known is None:
            known = Unique._known[cls, *given] = object.__new__(cls)
            vars(known).update(zip(cls._fields, given, strict=True))
        return cast("Self", known)

    def __repr__(self) -> str:
        """The item as it is made."""
        return f"{type(self).__name__}({', '.join(f'{name}={held!r}' for name, held in vars(self).items())})"


class Input(Unique):
    """What a parameter of the method held when it was called, or what is reached from it by a path.

    A view of a tensor is that tensor: what is written into one is written into the other.
    """

    parameter: str
    path: tuple[str, ...] = ()

    def reach(self, part: str) -> Input:
        """What an attribute (``.name``) or an element (``[...]``) of it holds."""
        part = "[]" if part[0] == "[" else part
        if len(self.path) >= _MOST_LEVELS:
            return self
        return Input(self.parameter, (*self.path, part))

    def __str__(self) -> str:
        return self.parameter + "".join("[...]" if part == "[]" else part for part in self.path)


@dataclass(frozen=True, slots=True)
class Made:
    """An object that the code makes: ``site`` is the place that does, and the call in which it did.

    ``kind`` is ``list``, ``tuple``, ``dict`` or ``set``, or ``object`` for an instance of ``of``.
    """

    site: Hashable
    kind: str
    of: ClassValue | None = None


class Instance(Unique):
    """Some object of a class, of which nothing else is known."""

    of: ClassValue


@dataclass(frozen=True, slots=True)
class Routine:
    """A function; ``frame`` is the call in which a nested one was defined, ``owner`` the class of a method."""

    module: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    frame: Hashable = None
    owner: ClassValue | None = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A method of an object, or a function with its first arguments given."""

    routine: Routine
    receiver: Item


@dataclass(frozen=True, slots=True)
class Attribute:
    """A method, by its name, of an object whose class is not in the tree."""

    owner: Item
    name: str


@dataclass(frozen=True, slots=True)
class Partial:
    """``functools.partial``, made at ``site``: a function and its first arguments."""

    function: Item
    site: Hashable
    arguments: Arguments = field(compare=False)


class Class(Unique):
    """A class."""

    value: ClassValue


@dataclass(frozen=True, slots=True)
class Super:
    """``super()``: an object, seen from behind a class in its method resolution order."""

    of: ClassValue
    receiver: Item


class Module(Unique):
    """A module of the tree."""

    name: str


class Outside(Unique):
    """Something from outside of the tree, by its dotted name."""

    name: str


class Constant(Unique):
    """A constant; ``kind`` keeps True and 1 apart."""

    kind: str
    value: Hashable


class Marker(Unique):
    """Something of which only this is known."""

    what: str


NUMBER = Marker("a number")
FRESH = Marker("a new tensor")
OPAQUE = Marker("the result of a call that is not followed")
UNKNOWN = Marker("anything else")

Item = (
    Input
    | Made
    | Instance
    | Routine
    | Bound
    | Attribute
    | Partial
    | Class
    | Super
    | Module
    | Outside
    | Constant
    | Marker
)
Value = Mapping[Item, Trail]
NOTHING: Value = {}


def value(*items: Item) -> Value:
    """A value of these items, without trails."""
    return dict.fromkeys(items, ())


def join(*values: Value) -> Value:
    """Whatever any of the values may be; of two trails the clearer stays."""
    filled = [item for item in values if item]
    if len(filled) <= 1:
        return filled[0] if filled else NOTHING
    first = filled[0]
    joined: dict[Item, Trail] | None = None
    for other in filled[1:]:
        for item, trail in other.items():
            known = first.get(item) if joined is None else joined.get(item)
            if known is None or clearer(trail, known):
                if joined is None:
                    joined = dict(first)
                joined[item] = trail
    if joined is None:
        return first  # itself, so that what did not change is seen at a glance
    if len(joined) > _MOST_ITEMS:
        # Inputs matter; of the rest there may be a few too many.
        kept = [item for item in joined if isinstance(item, Input | Made)]
        return {item: joined[item] for item in kept[:_MOST_ITEMS]}
    return joined


@dataclass(slots=True)
class Arguments:
    """The arguments of a call; ``rest`` and ``named_rest`` are the elements of starred ones."""

    positional: list[Value] = field(default_factory=list)
    named: dict[str, Value] = field(default_factory=dict)
    rest: Value = field(default_factory=dict)
    named_rest: Value = field(default_factory=dict)

    def first(self, place: int, name: str) -> Value:
        """The argument at a position or with a name."""
        if place < len(self.positional):
            return self.positional[place]
        return join(self.named.get(name, NOTHING), self.rest, self.named_rest)

    def all(self) -> Iterator[Value]:
        """Every argument."""
        yield from self.positional
        yield from self.named.values()
        yield self.rest
        yield self.named_rest

    def behind(self, receiver: Item, trail: Trail) -> Arguments:
        """These arguments, with one more in front."""
        return Arguments([{receiver: trail}, *self.positional], self.named, self.rest, self.named_rest)


def either(*values: Value) -> Value:
    """Whichever of the values it is: where nothing is known of one, nothing that is known of the others is sure."""
    whole = join(*values)
    return join(whole, value(UNKNOWN)) if whole and not all(values) else whole


def is_number(item: Item) -> bool:
    """Whether an item is a number."""
    return item == NUMBER or (isinstance(item, Constant) and isinstance(item.value, int | float))


def clearer(trail: Trail, known: Trail) -> bool:
    """Whether a trail tells more than another: it is shorter, but not empty."""
    return bool(trail) and (not known or len(trail) < len(known))


def has_input(given: Value) -> bool:
    """Whether anything that came from a parameter is among the items."""
    return any(type(item) is Input for item in given)


def extend(given: Value, step: Step) -> Value:
    """A value after one more step; only what came from a parameter keeps a trail."""
    if not has_input(given):
        return given
    return {item: _longer(trail, step) if isinstance(item, Input) else trail for item, trail in given.items()}


def _longer(trail: Trail, step: Step) -> Trail:
    if trail and trail[-1].copies and step.text.node is trail[-1].text.node:
        return (*trail[:-1], replace(step, copies=True))
    return (*trail, step) if trail[-1:] != (step,) and len(trail) < LONGEST_TRAIL else trail


def constant(item: Item) -> bool | None:
    """Whether a constant counts as true; None for anything else."""
    return bool(item.value) if isinstance(item, Constant) else None
