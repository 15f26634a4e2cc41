"""What functions do to what they are given, statement by statement, through every call that can be followed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from contracts.source._dataflow.bindings import Frame
from contracts.source._dataflow.memory import Effect, Naming, Record, Renaming, Write, Writes, keep
from contracts.source._dataflow.state import State, forget, merge, reachable
from contracts.source._dataflow.statements import Statements
from contracts.source._dataflow.values import (
    NOTHING,
    Arguments,
    Bound,
    Input,
    Item,
    Made,
    Partial,
    Routine,
    Text,
    Trail,
    Value,
    either,
    extend,
    has_input,
    join,
    value,
)
from contracts.source._dataflow.world import World
from contracts.source._methods import Definition
from contracts.source._resolve import ClassValue
from contracts.source._types import Type

_DEEPEST = 12  # calls, one inside the other
_MOST_RECURSIONS = 3  # of one function inside itself, with other arguments
_MOST_STEPS = 200_000
_POINTER_WRITERS = ("triton.language.store", "triton.language.atomic_")


class TooMuchError(Exception):
    """A method that takes too many steps to follow."""


class Flow(Statements):
    """Follows one method.

    Args:
        world: what the tree says.
        types: the types of the method's parameters.
        of: the class whose object it is called on.
        untracked: the parameters that it may write into, and ``self``.
        promised: says which parameters a method of the tree that is called may write into, if it is itself
            held not to write into any other; None for any other function.
    """

    def __init__(
        self,
        world: World,
        types: Mapping[str, Type],
        of: ClassValue,
        untracked: frozenset[str],
        promised: Callable[[Routine, Item | None], frozenset[str] | None],
    ) -> None:
        super().__init__(world, types)
        self.of = of
        self.untracked = untracked
        self.promised = promised
        self.writes: Writes = {}
        self.consulted: set[str] = set()
        self.frames: dict[int, Frame] = {}
        self.too_deep = ""
        self._frame_keys: dict[tuple[int, int, int], int] = {}
        self._frame_places: list[tuple[int, int, int]] = []
        self._running: list[tuple[Routine, dict[str, Value]]] = []
        self._records: list[Record] = []
        self._quiet = 0
        self._steps = 0

    def follow(self, routine: Routine, given: Mapping[str, Value], receiver: Item | None) -> None:
        """Run the method with these parameters, and then the functions that it leaves behind."""
        state = State()
        self.frame = Frame(-1, routine.module, routine.owner, None, None)
        returned = self.enter(routine, dict(given), receiver, routine.node, state)
        self.escape(returned, state)
        for item, parts in list(state.parts.items()):
            if isinstance(item, Input):
                for held in parts.values():
                    self.escape(held, state)

    def tick(self) -> None:
        """Count a step of work."""
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise TooMuchError

    # What the parts below need

    def site(self, node: ast.AST) -> tuple[int, int]:
        """A name for what a place of the code makes in the current call."""
        return self.frame.key, id(node)

    def write(self, item: Item, trail: Trail, node: ast.AST, text: Text) -> None:
        """Note that an operation writes into an item."""
        if not isinstance(item, Input) or item.parameter in self.untracked:
            return
        if self.nature(item).number:
            return
        line, offset = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        self._keep(Write(item, self.frame.module, line, offset, text, trail))

    def _keep(self, write: Write) -> None:
        if self._records and self._records[-1].quiet == self._quiet:
            keep(self._records[-1].writes, write)
        if not self._quiet:
            keep(self.writes, write)

    def continue_as(self, state: State, ends: Sequence[State | None]) -> None:
        """Let ``state`` be what holds after any of some paths."""
        merged = merge(ends)
        if merged is not None:
            state.names, state.parts = merged.names, merged.parts

    def escape(self, given: Value, state: State) -> None:
        """Follow functions that code out of sight may call, with arguments of which nothing is known."""
        if not any(isinstance(item, Routine | Bound | Partial | Made) for item in given):
            return
        pending, seen = list(given), set(given)
        while pending:
            item = pending.pop()
            function: Item = item
            arguments = Arguments()
            if isinstance(function, Partial):
                arguments = function.arguments
                function = function.function
            if isinstance(function, Bound):
                arguments = arguments.behind(function.receiver, ())
                function = function.routine
            if isinstance(function, Routine):
                self._touch(function)
                if all(function != running for running, _ in self._running):
                    call = self.world.stand_in(function.node, getattr(function.node, "name", "it"))
                    self.run(function, arguments, None, call, state)
            for held in state.parts.get(item, {}).values() if isinstance(item, Made) else ():
                pending += [inner for inner in held if inner not in seen]
                seen |= held.keys()

    def get_property(self, definition: Definition, receiver: Item, node: ast.expr, state: State) -> Value:
        """What reading a property gives."""
        if definition.node is None:
            return NOTHING
        routine = Routine(definition.module, definition.node, None, definition.owner)
        given = self.run(routine, Arguments([value(receiver)]), receiver, node, state)
        if given or not isinstance(receiver, Input):
            return given
        return value(receiver.reach(f".{definition.name}"))

    # Calls

    def run(
        self, routine: Routine, arguments: Arguments, receiver: Item | None, node: ast.expr, state: State
    ) -> Value:
        """What a function of the tree returns for these arguments."""
        if receiver is not None and isinstance(receiver, Input) and not receiver.path:
            self._consult({getattr(routine.node, "name", "")})
        function = routine.node
        annotation = None if isinstance(function, ast.Lambda) else function.returns
        closes_over = routine.frame is not None
        given = join(*arguments.all())
        if not closes_over and not any(map(self.matters, reachable(given, state))):
            if annotation is not None:
                return self.described(annotation, routine)
            if routine.module != self.frame.module:
                return NOTHING
        names = self.parameters(routine, arguments, node, state)
        self._touch(routine)
        same = [held for running, held in self._running if running == routine]
        if len(same) >= _MOST_RECURSIONS or any(_as_before(names, held) for held in same):
            return {item: trail for item, trail in given.items() if isinstance(item, Input)}
        if len(self._running) > _DEEPEST:
            self.too_deep = self.too_deep or str(Text("{}", node))
            if self._records:
                self._records[-1].is_cut = True
            return NOTHING
        allowed = self.promised(routine, receiver)
        if allowed is None:
            return self.enter(routine, names, receiver, node, state)
        for name in sorted(allowed):
            text = Text(f"{{}}(), which writes its {name},", _head(node))
            self.write_all(names.get(name, NOTHING), node, text, state)
        self._quiet += 1
        try:
            return self.enter(routine, names, receiver, node, state)
        finally:
            self._quiet -= 1

    def matters(self, item: Item) -> bool:
        """Whether something would be lost if the item were not followed."""
        return isinstance(item, Input) and item.parameter not in self.untracked and not self.nature(item).number

    def described(self, annotation: ast.expr, routine: Routine) -> Value:
        """What is known of a result by its annotation."""
        return value(*self.world.described(self.world.type_of(annotation, routine.module, routine.owner)))

    def parameters(
        self, routine: Routine, arguments: Arguments, node: ast.expr, state: State
    ) -> dict[str, Value]:
        """What the parameters of a function hold when it begins."""
        declared = routine.node.args
        names: dict[str, Value] = {}
        positional = [*declared.posonlyargs, *declared.args]
        defaults = [None] * (len(positional) - len(declared.defaults)) + list(declared.defaults)
        taken = list(arguments.positional)
        for item, default in zip(
            [*positional, *declared.kwonlyargs], [*defaults, *declared.kw_defaults], strict=True
        ):
            by_position = item in positional and bool(taken)
            if by_position:
                held = taken.pop(0)
            elif item.arg in arguments.named:
                held = arguments.named[item.arg]
            else:
                held = join(arguments.rest if item in positional else NOTHING, arguments.named_rest)
                if default is not None and routine.frame is None:
                    held = join(held, self.default(default, routine))
                held = join(held, state.part(routine, f"={item.arg}") or NOTHING)
            if has_input(held):
                held = extend(held, self.step(node, Text(f"{item.arg} of {{}}()", _head(node))))
            elif not held and item.annotation is not None:
                held = self.described(item.annotation, routine)
            names[item.arg] = held
        if declared.vararg is not None:
            made = Made((*self.site(node), "rest"), "tuple")
            parts = {f"[{place}]": held for place, held in enumerate(taken)}
            state.parts[made] = {**parts, "[]": arguments.rest} if arguments.rest else parts
            names[declared.vararg.arg] = value(made)
        if declared.kwarg is not None:
            made = Made((*self.site(node), "named rest"), "dict")
            left = {name: held for name, held in arguments.named.items() if name not in names}
            parts = {f"['{name}']": held for name, held in left.items()}
            state.parts[made] = {**parts, "[]": arguments.named_rest} if arguments.named_rest else parts
            names[declared.kwarg.arg] = value(made)
        return names

    def default(self, node: ast.expr, routine: Routine) -> Value:
        """What a default is."""
        if isinstance(node, ast.Constant):
            return self.evaluate(node, State())
        if isinstance(node, ast.Name):
            return value(*self.world.global_(routine.module, node.id))
        return NOTHING

    def enter(
        self, routine: Routine, names: dict[str, Value], receiver: Item | None, node: ast.AST, state: State
    ) -> Value:
        """Do what a function does, as it was seen before or else by running it."""
        if not self._running or routine.frame is not None:
            return self.execute(routine, names, receiver, node, state)
        key = self._frame_key((self.frame.key, id(node), id(routine.node)))
        naming = Naming(state.copy(), lambda frame: self._path(key, frame), (self.frame.key, id(node)))
        alike = naming.key(names, receiver, lambda name: (self.type_of(Input(name)), name in self.untracked))
        if alike is None:
            return self.execute(routine, names, receiver, node, state)
        call = (routine, self.frame.kernel, alike)
        effect = self.world.effects.get(call)
        if effect is not None:
            if self._fits(effect):
                return self._replay(effect, Renaming(naming, lambda path: self._frame_inside(key, path)), state)
            return self.execute(routine, names, receiver, node, state)
        record = Record(len(self._running), self._quiet)
        self._records.append(record)
        try:
            result = self.execute(routine, names, receiver, node, state)
        finally:
            self._records.pop()
            if self._records:
                self._records[-1].absorb(record)
        if not record.is_cut and not any(running in record.touched for running, _ in self._running):
            effect = naming.effect(record, state, result)
            if effect is not None:
                self.world.effects[call] = effect
        return result

    def _fits(self, effect: Effect) -> bool:
        """Whether a call does here what it did there: it leads back to none of the functions that run, nor too deep."""
        if len(self._running) + effect.levels > _DEEPEST:
            return False
        return not any(running in effect.touched for running, _ in self._running)

    def _replay(self, effect: Effect, renaming: Renaming, state: State) -> Value:
        self.tick()
        for code, parts in effect.changes:
            state.parts[renaming.item(code)] = {name: renaming.value(held) for name, held in parts.items()}
        for code, trail, write in effect.writes:
            self._keep(replace(write, written=renaming.item(code), trail=renaming.trail(trail)))
        self._consult(effect.consulted)
        if self._records:
            self._records[-1].touched |= effect.touched
            self._records[-1].deepest = max(self._records[-1].deepest, len(self._running) + effect.levels)
        return renaming.value(effect.result)

    def _touch(self, routine: Routine) -> None:
        """Note that it matters whether a function runs already, and how many do."""
        if self._records:
            self._records[-1].touched.add(routine)
            self._records[-1].deepest = max(self._records[-1].deepest, len(self._running))

    def _consult(self, names: set[str]) -> None:
        self.consulted |= names
        if self._records:
            self._records[-1].consulted |= names

    def _frame_key(self, place: tuple[int, int, int]) -> int:
        """The key of the frame of a call: by the frame that it is in, the call, and the function."""
        key = self._frame_keys.setdefault(place, len(self._frame_keys))
        if key == len(self._frame_places):
            self._frame_places.append(place)
        return key

    def _path(self, outer: int, frame: Hashable) -> tuple[tuple[int, int], ...] | None:
        """The calls that lead from one frame to one inside it; None if it is not inside."""
        path: list[tuple[int, int]] = []
        while isinstance(frame, int) and frame > outer:
            frame, call, function = self._frame_places[frame]
            path.append((call, function))
        return tuple(reversed(path)) if frame == outer else None

    def _frame_inside(self, outer: int, path: Sequence[tuple[int, int]]) -> int:
        for call, function in path:
            outer = self._frame_key((outer, call, function))
        return outer

    def execute(
        self, routine: Routine, names: dict[str, Value], receiver: Item | None, node: ast.AST, state: State
    ) -> Value:
        """Run a function's body; ``state`` becomes what holds when it is done."""
        key = self._frame_key((self.frame.key, id(node), id(routine.node)))
        before, frame = self.frame, Frame(key, routine.module, routine.owner, routine.frame, receiver)
        frame.kernel = before.kernel or self.is_kernel(routine)
        self.frames[key] = frame
        state.names[key] = names
        self.frame = frame
        self._running.append((routine, dict(names)))
        entry = state.copy()
        try:
            if isinstance(routine.node, ast.Lambda):
                return self.evaluate(routine.node.body, state)
            end = self.block(routine.node.body, state.copy())
        finally:
            self._running.pop()
            self.frame = before
        self.continue_as(state, [*frame.ends, end])
        result = either(*frame.returned)
        if frame.yielded:
            made = Made((before.key, id(node), "generator"), "list")
            state.parts[made] = {"[]": join(*frame.yielded)}
            result = value(made)
        elif not result and routine.node.returns is not None:
            result = self.described(routine.node.returns, routine)
        if not self.world.has_nested(routine.module, routine.node):
            state.names.pop(key, None)
        forget(state, entry, result)
        return result

    def is_kernel(self, routine: Routine) -> bool:
        """Whether a function is Triton code."""
        decorators = getattr(routine.node, "decorator_list", ())
        return any("triton" in ast.unparse(decorator).partition("(")[0] for decorator in decorators)

    def outside(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """What a function from outside of the tree gives; Triton's write through pointers."""
        if self.frame.kernel and name.startswith(_POINTER_WRITERS):
            self.write_all(arguments.first(0, "pointer"), node, Text("{}()", node.func), state)
            return NOTHING
        return super().outside(name, arguments, node, state)


def _as_before(names: Mapping[str, Value], before: Mapping[str, Value]) -> bool:
    """Whether the parameters hold the same items, whatever their trails."""
    return all(held.keys() == before[name].keys() for name, held in names.items())


def _head(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


