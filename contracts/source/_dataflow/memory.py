"""What functions were seen to do: a call like an earlier one, of any method, is not followed again.

Two calls are alike if they differ in names only: in which parameters of the method come in, in the objects that the
code has made before, and in the steps of the trails. Of all of these a function sees no more than how they hang
together, what types they have and how long the trails are; so what it did to those of one call it does to those of
another, and only the names have to be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.source._dataflow.state import State
from contracts.source._dataflow.values import (
    LONGEST_TRAIL,
    Attribute,
    Bound,
    Input,
    Instance,
    Item,
    Made,
    Partial,
    Routine,
    Step,
    Super,
    Text,
    Trail,
    Value,
    clearer,
)
from contracts.source._types import Type

Writes = dict[tuple[str, str, int, int], "Write"]
_Code = Any  # an item, or a tuple that stands for one in any call that is alike
_Coded = tuple[tuple[_Code, tuple[int | Step, ...]], ...]


@dataclass(frozen=True, slots=True)
class Write:
    """A statement that writes into a parameter: where it stands, what it says, and by which steps it got there."""

    written: Input
    module: str
    line: int
    offset: int
    text: Text
    trail: Trail


def keep(writes: Writes, write: Write) -> None:
    """Add a write, unless a clearer one of the same statement is there."""
    key = (write.written.parameter, write.module, write.line, write.offset)
    known = writes.get(key)
    if known is None or clearer(write.trail, known.trail):
        writes[key] = write


@dataclass(slots=True)
class Record:
    """What happens while a call is followed, beside what it does to the state.

    Args:
        depth: the calls around it.
        quiet: those among them whose writes do not count.
    """

    depth: int
    quiet: int
    writes: Writes = field(default_factory=dict)
    consulted: set[str] = field(default_factory=set)
    touched: set[Routine] = field(default_factory=set)
    deepest: int = 0
    is_cut: bool = False

    def absorb(self, inner: Record) -> None:
        """Add what happened in a call inside this one."""
        if inner.quiet == self.quiet:
            for write in inner.writes.values():
                keep(self.writes, write)
        self.consulted |= inner.consulted
        self.touched |= inner.touched
        self.deepest = max(self.deepest, inner.deepest)
        self.is_cut |= inner.is_cut


@dataclass(slots=True)
class Effect:
    """What a call did, in terms of what it was given.

    ``touched`` are the functions that it called, ``levels`` says how many of them one inside the other.
    """

    result: _Coded
    changes: list[tuple[_Code, dict[str, _Coded]]]
    writes: list[tuple[_Code, tuple[int | Step, ...], Write]]
    consulted: set[str]
    touched: set[Routine]
    levels: int


class _UntoldError(Exception):
    """Something that cannot be told in terms of what a call was given."""


class Naming:
    """Names for what a call is given: the same ones for calls that are alike.

    Args:
        state: before the call.
        path: the calls that lead from the call to a frame inside it; None for other frames.
        site: what stands for the call where a generator is made.
    """

    def __init__(
        self, state: State, path: Callable[[Hashable], tuple[tuple[int, int], ...] | None], site: tuple[int, int]
    ) -> None:
        self.state = state
        self.path = path
        self.site = site
        self.parameters: dict[str, int] = {}
        self.made: dict[Made, int] = {}
        self.steps: list[Step] = []
        self._step_places: dict[int, int] = {}
        self._is_closed = False

    def key(
        self, names: Mapping[str, Value], receiver: Item | None, described: Callable[[str], tuple[Type, bool]]
    ) -> Hashable:
        """What calls that are alike have in common; None for a call that cannot be compared.

        Args:
            names: what the function's parameters hold.
            receiver: the object that the method is called on.
            described: the type of a parameter of the method, and whether writes into it count.
        """
        parts = self.state.parts
        if any(isinstance(item, Instance) or self._is_own(item) for item in parts):
            return None
        try:
            given = tuple(self._value(held, is_bound=True) for held in names.values())
            at = self._item(receiver) if receiver is not None else None
            held: list[Hashable] = []
            inputs = [item for item in parts if isinstance(item, Input)]
            done = 0
            while True:
                mine = [item for item in inputs if item.parameter in self.parameters]
                inputs = [item for item in inputs if item.parameter not in self.parameters]
                found: list[Item] = [*mine, *list(self.made)[done:]]
                done = len(self.made)
                if not found:
                    break
                held += [
                    (self._item(item), tuple((name, self._value(part)) for name, part in parts.get(item, {}).items()))
                    for item in found
                ]
        except _UntoldError:
            return None
        self._is_closed = True
        return given, at, tuple(held), tuple(map(described, self.parameters))

    def _is_own(self, item: Item) -> bool:
        """Whether an object was made by an earlier run of the same call: then it is not made anew."""
        if not isinstance(item, Made) or not isinstance(item.site, tuple):
            return False
        return item.site == (*self.site, "generator") or self.path(item.site[0]) is not None

    def effect(self, record: Record, state: State, result: Value) -> Effect | None:
        """What a call did; None where that is not told by what it was given."""
        before = self.state
        if any(names is not before.names.get(frame) for frame, names in state.names.items()):
            return None  # closures
        try:
            return Effect(
                self._value(result),
                [
                    (self._item(item), {name: self._value(held) for name, held in parts.items()})
                    for item, parts in state.parts.items()
                    if parts is not before.parts.get(item)
                ],
                [(self._item(w.written), self._trail(w.trail), w) for w in record.writes.values()],
                record.consulted,
                record.touched,
                record.deepest - record.depth,
            )
        except _UntoldError:
            return None

    # To names

    def _value(self, given: Value, *, is_bound: bool = False) -> _Coded:
        return tuple((self._item(item), self._trail(trail, is_bound=is_bound)) for item, trail in given.items())

    def _item(self, item: Item) -> _Code:
        match item:
            case Input(parameter, path):
                if self._is_closed and parameter not in self.parameters:
                    raise _UntoldError
                return "input", self.parameters.setdefault(parameter, len(self.parameters)), path
            case Made(site, kind, of):
                place = self.made.get(item)
                if place is None and self._is_closed:
                    return self._new(site, kind, of)
                return "given", self.made.setdefault(item, len(self.made)), kind, of
            case Routine(frame=None):
                return item
            case Routine() | Partial():
                raise _UntoldError
            case Bound(routine, receiver):
                return "bound", self._item(routine), self._item(receiver)
            case Attribute(owner, name):
                return "attribute", self._item(owner), name
            case Super(of, receiver):
                return "super", of, self._item(receiver)
            case _:
                return item

    def _new(self, site: Hashable, kind: str, of: Any) -> _Code:
        assert isinstance(site, tuple)
        if site == (*self.site, "generator"):
            return "generator", kind, of
        path = self.path(site[0])
        if path is None:
            raise _UntoldError
        return "new", path, site[1:], kind, of

    def _trail(self, trail: Trail, *, is_bound: bool = False) -> tuple[int | Step, ...]:
        codes: list[int | Step] = []
        for step in trail:
            place = self._step_places.get(id(step))
            if place is None and self._is_closed:
                codes.append(step)
                continue
            if place is None:
                place = self._step_places[id(step)] = len(self.steps)
                self.steps.append(step)
            codes.append(place)
        if trail and not self._is_closed and (not is_bound or len(trail) >= LONGEST_TRAIL):
            codes.append(trail[-1])  # the next step may be the same; the step into a function is another one
        return tuple(codes)


class Renaming:
    """Turns what one call did into what another one does that is alike.

    Args:
        naming: of the other call.
        frame: the key of the frame inside a call, by the calls that lead there.
    """

    def __init__(self, naming: Naming, frame: Callable[[Sequence[tuple[int, int]]], int]) -> None:
        self._parameters = list(naming.parameters)
        self._made = list(naming.made)
        self._steps = naming.steps
        self._site = naming.site
        self._frame = frame

    def value(self, coded: _Coded) -> Value:
        """A value."""
        return {self.item(code): self.trail(trail) for code, trail in coded}

    def item(self, code: _Code) -> Any:
        """An item."""
        if type(code) is not tuple:
            return code
        match code:
            case ("input", place, path):
                return Input(self._parameters[place], path)
            case ("given", place, *_):
                return self._made[place]
            case ("new", path, site, kind, of):
                return Made((self._frame(path), *site), kind, of)
            case ("generator", kind, of):
                return Made((*self._site, "generator"), kind, of)
            case ("bound", routine, receiver):
                return Bound(routine, self.item(receiver))
            case ("attribute", owner, name):
                return Attribute(self.item(owner), name)
            case ("super", of, receiver):
                return Super(of, self.item(receiver))
        raise AssertionError(code)

    def trail(self, coded: tuple[int | Step, ...]) -> Trail:
        """A trail."""
        return tuple(self._steps[step] if isinstance(step, int) else step for step in coded)
