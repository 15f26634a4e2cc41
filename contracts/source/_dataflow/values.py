"""What a name may hold while a function runs: inputs and their views, and whatever leads to them.

A *value* is a set of items, each with its trail: the steps by which it came there from a parameter. Items that
have nothing to do with a parameter are kept only as far as they decide something: which class an object is
of, which function a name is, whether an index is a number.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from contracts.source._resolve import ClassValue

_Key = TypeVar("_Key", bound=Hashable)
_LONGEST_TRAIL = 8
_MOST_ITEMS = 40
_LONGEST_LIST = 12  # whose elements are told apart
_MOST_LEVELS = 4  # of attributes and elements, one inside the other


@dataclass(frozen=True, slots=True)
class Step:
    """A statement by which something got its name: where it stands, and its text."""

    module: str
    line: int
    text: str


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
    """``functools.partial``: ``site`` tells where its arguments are kept."""

    function: Item
    site: Hashable


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
    joined: dict[Item, Trail] = dict(filled[0])
    for other in filled[1:]:
        for item, trail in other.items():
            known = joined.get(item)
            if known is None or clearer(trail, known):
                joined[item] = trail
    if len(joined) > _MOST_ITEMS:
        # Inputs matter; of the rest there may be a few too many.
        kept = [item for item in joined if isinstance(item, Input | Made)]
        return {item: joined[item] for item in kept[:_MOST_ITEMS]}
    return joined


def clearer(trail: Trail, known: Trail) -> bool:
    """Whether a trail tells more than another: it is shorter, but not empty."""
    return bool(trail) and (not known or len(trail) < len(known))


def extend(given: Value, step: Step) -> Value:
    """A value after one more step; only what came from a parameter keeps a trail."""
    return {
        item: (*trail, step)
        if isinstance(item, Input) and trail[-1:] != (step,) and len(trail) < _LONGEST_TRAIL
        else trail
        for item, trail in given.items()
    }


def constant(item: Item) -> bool | None:
    """Whether a constant counts as true; None for anything else."""
    return bool(item.value) if isinstance(item, Constant) else None


@dataclass(slots=True)
class State:
    """All that may be held at one point: names by the call that they belong to, and parts of objects."""

    names: dict[Hashable, dict[str, Value]] = field(default_factory=dict)
    parts: dict[Item, dict[str, Value]] = field(default_factory=dict)

    def copy(self) -> State:
        """A copy that may go its own way."""
        return State(
            {frame: dict(names) for frame, names in self.names.items()},
            {item: dict(parts) for item, parts in self.parts.items()},
        )

    def part(self, item: Item, name: str) -> Value | None:
        """What an object's part was last set to; None if it was not."""
        return self.parts.get(item, {}).get(name)

    def held(self, item: Item, name: str) -> Value:
        """What a part may hold: what it was set to, or else what any element may be, or what it was from the start."""
        parts = self.parts.get(item, {})
        if name not in parts and name[0] == "[":
            name = "[]"
        return parts.get(name, value(item.reach(name)) if isinstance(item, Input) else NOTHING)

    def set_part(self, item: Item, name: str, new: Value, *, surely: bool) -> None:
        """Set a part of an object; if it may be another one, or another object, it may still hold what it held."""
        parts = self.parts.setdefault(item, {})
        if not surely:
            if name == "[]":
                for key in parts:
                    parts[key] = join(parts[key], new) if key[0] == "[" else parts[key]
            new = join(self.held(item, name), new)
        parts[name] = new

    def append(self, item: Item, new: Value) -> None:
        """Add an element at the end of a list: at a known place, while the length is known."""
        parts = self.parts.setdefault(item, {})
        if isinstance(item, Input) or "[]" in parts or len(parts) >= _LONGEST_LIST:
            parts["[]"] = join(self.held(item, "[]"), new)
        else:
            parts[f"[{len(parts)}]"] = new

    def shuffle(self, item: Item, new: Value = NOTHING) -> None:
        """Let any element be at any place, and ``new`` too."""
        parts = self.parts.setdefault(item, {})
        mixed = join(self.held(item, "[]"), *(parts.pop(name) for name in [*parts] if name[0] == "["), new)
        if mixed:
            parts["[]"] = mixed

    def elements(self, item: Item) -> Value:
        """Whatever the elements of a container that the code made may be."""
        parts = self.parts.get(item, {})
        return join(*(held for name, held in parts.items() if name[0] == "["))

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
        _merge_into(merged.names, other.names)
        _default_parts(merged, other)
        _merge_into(merged.parts, other.parts)
    return merged


def _default_parts(one: State, other: State) -> None:
    """A part that only one path has set holds, on the other, what any element or what it held from the start."""
    for mine, theirs in ((one.parts, other.parts), (other.parts, one.parts)):
        state = one if theirs is one.parts else other
        for item, parts in mine.items():
            if not isinstance(item, Input) and item not in theirs:
                continue  # an object that the other path did not make
            missing = [name for name in parts if name not in theirs.get(item, {})]
            for name in missing:
                if not (isinstance(item, Made) and name == "[]"):
                    theirs.setdefault(item, {})[name] = state.held(item, name)
            if missing and isinstance(item, Made) and item.kind == "list":
                # Its length is not known any more.
                theirs[item]["[]"] = state.elements(item)


def _merge_into(merged: dict[_Key, dict[str, Value]], other: Mapping[_Key, Mapping[str, Value]]) -> None:
    for key, names in other.items():
        mine = merged.setdefault(key, {})
        for name, held in names.items():
            known = mine.get(name)
            if known is None:
                mine[name] = held
            elif known is not held:
                mine[name] = join(known, held)


def _same(one: Mapping[_Key, Mapping[str, Value]], other: Mapping[_Key, Mapping[str, Value]]) -> bool:
    return one.keys() == other.keys() and all(
        names.keys() == other[key].keys()
        and all(held is other[key][name] or held.keys() == other[key][name].keys() for name, held in names.items())
        for key, names in one.items()
    )


def reaches_input(given: Value, state: State, ignored: Callable[[Input], bool]) -> bool:
    """Whether an input that matters is among the items, or can be reached through the objects among them."""
    pending, seen = list(given), set(given)
    while pending:
        item = pending.pop()
        if isinstance(item, Input) and not ignored(item):
            return True
        if isinstance(item, Routine) and item.frame is not None:
            nested: Iterable[Value] = state.names.get(item.frame, {}).values()
        elif isinstance(item, Bound):
            nested = [value(item.receiver, item.routine)]
        elif isinstance(item, Attribute | Super):
            nested = [value(item.owner if isinstance(item, Attribute) else item.receiver)]
        else:
            nested = ()
        for held in (*nested, *state.parts.get(item, {}).values()):
            for inner in held:
                if inner not in seen:
                    seen.add(inner)
                    pending.append(inner)
    return False
