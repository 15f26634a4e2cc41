"""All that may be held at one point of a function, and what holds where paths meet."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from contracts.source._dataflow.values import (
    NOTHING,
    Attribute,
    Bound,
    Input,
    Item,
    Made,
    Partial,
    Routine,
    Super,
    Value,
    either,
    join,
    value,
)

_Key = TypeVar("_Key", bound=Hashable)
_LONGEST_LIST = 12  # whose elements are told apart
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


def forget(state: State, entry: State, result: Iterable[Item]) -> None:
    """Drop the objects that were made since ``entry`` and that nothing leads to any more, but from ``result``."""
    made = [item for item in state.parts if item not in entry.parts and isinstance(item, Made)]
    if not made:
        return
    changed = [parts for item, parts in state.parts.items() if item in entry.parts and parts is not entry.parts[item]]
    changed += [parts for item, parts in state.parts.items() if item not in entry.parts and not isinstance(item, Made)]
    changed += [names for frame, names in state.names.items() if names is not entry.names.get(frame)]
    roots = [item for parts in changed for held in parts.values() for item in held]
    kept = set(reachable([*result, *roots], state))
    for item in made:
        if item not in kept:
            del state.parts[item]
