"""What a name may hold while a function runs: inputs and their views, and whatever leads to them.

A *value* is a set of items, each with its trail: the steps by which it came there from a parameter. Items that
have nothing to do with a parameter are kept only as far as they decide something: which class an object is
of, which function a name is, whether an index is a number.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from contracts.source._resolve import ClassValue

_Key = TypeVar("_Key", bound=Hashable)
_LONGEST_TEXT = 60
_LONGEST_TRAIL = 8
_MOST_ITEMS = 40
_LONGEST_LIST = 12  # whose elements are told apart
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


@dataclass(frozen=True, slots=True)
class Input:
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


@dataclass(frozen=True, slots=True)
class Instance:
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


@dataclass(frozen=True, slots=True)
class Class:
    """A class."""

    value: ClassValue


@dataclass(frozen=True, slots=True)
class Super:
    """``super()``: an object, seen from behind a class in its method resolution order."""

    of: ClassValue
    receiver: Item


@dataclass(frozen=True, slots=True)
class Module:
    """A module of the tree."""

    name: str


@dataclass(frozen=True, slots=True)
class Outside:
    """Something from outside of the tree, by its dotted name."""

    name: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant; ``kind`` keeps True and 1 apart."""

    kind: str
    value: Hashable


@dataclass(frozen=True, slots=True)
class Marker:
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


def extend(given: Value, step: Step) -> Value:
    """A value after one more step; only what came from a parameter keeps a trail."""
    return {item: _longer(trail, step) if isinstance(item, Input) else trail for item, trail in given.items()}


def _longer(trail: Trail, step: Step) -> Trail:
    if trail and trail[-1].copies and step.text.node is trail[-1].text.node:
        return (*trail[:-1], replace(step, copies=True))
    return (*trail, step) if trail[-1:] != (step,) and len(trail) < _LONGEST_TRAIL else trail


def constant(item: Item) -> bool | None:
    """Whether a constant counts as true; None for anything else."""
    return bool(item.value) if isinstance(item, Constant) else None


_Parts = dict[str, Value]  # never changed once it is in a state: copies of the state share it


@dataclass(slots=True)
class State:
    """All that may be held at one point: names by the call that they belong to, and parts of objects."""

    names: dict[Hashable, _Parts] = field(default_factory=dict)
    parts: dict[Item, _Parts] = field(default_factory=dict)

    def copy(self) -> State:
        """A copy that may go its own way."""
        return State(dict(self.names), dict(self.parts))

    def bind(self, frame: Hashable, name: str, new: Value) -> None:
        """Let a name hold something."""
        self.names[frame] = {**self.names.get(frame, {}), name: new}

    def unbind(self, frame: Hashable, names: Collection[str]) -> None:
        """Forget names."""
        self.names[frame] = {name: held for name, held in self.names.get(frame, {}).items() if name not in names}

    def part(self, item: Item, name: str) -> Value | None:
        """What an object's part was last set to; None if it was not."""
        return self.parts.get(item, {}).get(name)

    def held(self, item: Item, name: str) -> Value:
        """What a part may hold: what it was set to, or else what any element may be, or what it was from the start."""
        return _held(item, self.parts.get(item, {}), name)

    def set_part(self, item: Item, name: str, new: Value, *, surely: bool) -> None:
        """Set a part of an object; if it may be another one, or another object, it may still hold what it held."""
        parts = dict(self.parts.get(item, {}))
        if not surely:
            if name == "[]":
                parts.update((key, join(held, new)) for key, held in parts.items() if key[0] == "[")
            new = join(self.held(item, name), new)
        parts[name] = new
        self.parts[item] = parts

    def append(self, item: Item, new: Value) -> None:
        """Add an element at the end of a list: at a known place, while the length is known."""
        parts = self.parts.get(item, {})
        if isinstance(item, Input) or "[]" in parts or len(parts) >= _LONGEST_LIST:
            self.parts[item] = {**parts, "[]": join(self.held(item, "[]"), new)}
        else:
            self.parts[item] = {**parts, f"[{len(parts)}]": new}

    def shuffle(self, item: Item, new: Value = NOTHING) -> None:
        """Let any element be at any place, and ``new`` too."""
        mixed = join(self.held(item, "[]"), self.elements(item), new)
        parts = {name: held for name, held in self.parts.get(item, {}).items() if name[0] != "["}
        self.parts[item] = {**parts, "[]": mixed} if mixed else parts

    def elements(self, item: Item) -> Value:
        """Whatever the elements of a container that the code made may be."""
        return _elements(self.parts.get(item, {}))

    def same_as(self, other: State) -> bool:
        """Whether the same items are held everywhere, whatever their trails."""
        return _same(self.names, other.names) and _same(self.parts, other.parts)


def merge(states: Iterable[State | None]) -> State | None:
    """What holds after whichever of some paths was taken; None where none of them gets there."""
    reached = [state for state in states if state is not None]
    if len(reached) <= 1:
        return reached[0] if reached else None
    merged = reached[0].copy()
    for other in reached[1:]:
        for frame, names in other.names.items():
            mine = merged.names.get(frame, names)
            merged.names[frame] = mine if mine is names else _joined(mine, names)
        for item in {**merged.parts, **other.parts}:
            one, two = merged.parts.get(item), other.parts.get(item)
            if one is two:
                continue
            if isinstance(item, Input) or (one is not None and two is not None):
                one, two = one or {}, two or {}
                merged.parts[item] = _joined(_completed(item, one, two), _completed(item, two, one))
            elif two is not None:
                merged.parts[item] = two
    return merged


def _completed(item: Item, parts: _Parts, other: _Parts) -> _Parts:
    """The parts that one path has set, and for those that only the other has set, what they hold on this one."""
    missing = [name for name in other if name not in parts]
    if not missing:
        return parts
    completed = {**parts, **{name: _held(item, parts, name) for name in missing}}
    if isinstance(item, Made) and item.kind == "list":
        # Its length is not known any more.
        completed["[]"] = _elements(parts)
    return completed


def _held(item: Item, parts: _Parts, name: str) -> Value:
    if name not in parts and name[0] == "[":
        name = "[]"
    if name in parts:
        return parts[name]
    return value(item.reach(name)) if isinstance(item, Input) else NOTHING


def _elements(parts: _Parts) -> Value:
    return either(*(held for name, held in parts.items() if name[0] == "["))


def _joined(mine: _Parts, other: _Parts) -> _Parts:
    joined = dict(mine)
    for name, held in other.items():
        known = joined.get(name, held)
        joined[name] = known if known is held else either(known, held)
    return joined


def _same(one: Mapping[_Key, _Parts], other: Mapping[_Key, _Parts]) -> bool:
    return one.keys() == other.keys() and all(
        names is other[key]
        or (
            names.keys() == other[key].keys()
            and all(held is other[key][name] or held.keys() == other[key][name].keys() for name, held in names.items())
        )
        for key, names in one.items()
    )


def reachable(given: Iterable[Item], state: State) -> Iterator[Item]:
    """The items, and whatever can be reached through the objects and functions among them."""
    pending, seen = list(given), set(given)
    while pending:
        item = pending.pop()
        yield item
        nested: Iterable[Iterable[Item]] = ()
        match item:
            case Routine(frame=frame) if frame is not None:
                nested = state.names.get(frame, {}).values()
            case Bound(routine, receiver):
                nested = [[routine, receiver]]
            case Partial(function, arguments=arguments):
                nested = [[function], *arguments.all()]
            case Attribute(owner=inner) | Super(receiver=inner):
                nested = [[inner]]
        for held in (*nested, *state.parts.get(item, {}).values()):
            new = [inner for inner in held if inner not in seen]
            seen.update(new)
            pending += new
