"""What calls do to values: torch's operations, containers, classes and functions of the tree."""

from __future__ import annotations

import abc
import ast

from contracts.source._dataflow.objects import Objects
from contracts.source._dataflow.state import State
from contracts.source._dataflow.values import (
    NOTHING,
    OPAQUE,
    Arguments,
    Attribute,
    Bound,
    Class,
    Constant,
    Input,
    Instance,
    Item,
    Made,
    Outside,
    Partial,
    Routine,
    Text,
    Trail,
    Value,
    either,
    join,
    value,
)
from contracts.source._resolve import ClassValue


class Calls(Objects, abc.ABC):
    """Applies callables.

    Args:
        world: what the tree says.
        types: the types of the method's parameters.
    """

    @abc.abstractmethod
    def run(
        self, routine: Routine, arguments: Arguments, receiver: Item | None, node: ast.expr, state: State
    ) -> Value:
        """What a function of the tree returns for these arguments."""

    @abc.abstractmethod
    def write(self, item: Item, trail: Trail, node: ast.AST, text: Text) -> None:
        """Note that an operation writes into an item."""

    @abc.abstractmethod
    def escape(self, given: Value, state: State) -> None:
        """Note that functions among the items may be called by code that is not followed."""

    # Calls

    def call(self, node: ast.Call, state: State) -> Value:
        """What a call gives."""
        function = node.func
        if isinstance(function, ast.Name) and function.id == "super":
            return self.super_of(node, state)
        callees = self.evaluate(function, state)
        arguments = self.arguments(node, state)
        followed = [(item, trail) for item, trail in callees.items() if not isinstance(item, Constant)]
        if not followed:
            return self.unfollowed(arguments, node, state)
        if len(followed) == 1:
            return self.apply(*followed[0], arguments, node, state)
        results: list[Value] = []
        ends: list[State] = []
        for item, trail in followed:
            branch = state.copy()
            results.append(self.apply(item, trail, arguments, node, branch))
            ends.append(branch)
        self.continue_as(state, ends)
        return either(*results)

    @abc.abstractmethod
    def outside(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """What a function from outside of the tree gives, by its dotted name."""

    @abc.abstractmethod
    def method(
        self, owner: Item, trail: Trail, name: str, arguments: Arguments, node: ast.Call, state: State
    ) -> Value:
        """What a method gives whose class is not in the tree."""

    @abc.abstractmethod
    def super_of(self, node: ast.Call, state: State) -> Value:
        """What ``super()`` is."""

    def arguments(self, node: ast.Call, state: State) -> Arguments:
        """Evaluate the arguments of a call."""
        found = Arguments()
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                spread = self.evaluate(argument.value, state)
                parts = self.spread(spread, state)
                if parts is not None and not found.rest:
                    found.positional += parts
                else:
                    found.rest = join(found.rest, self.elements(spread, state))
            elif found.rest:
                found.rest = join(found.rest, self.evaluate(argument, state))
            else:
                found.positional.append(self.evaluate(argument, state))
        for keyword in node.keywords:
            given = self.evaluate(keyword.value, state)
            if keyword.arg is not None:
                found.named[keyword.arg] = given
                continue
            for item in given:
                parts_of = state.parts.get(item, {}) if isinstance(item, Made) else {}
                for name, held in parts_of.items():
                    if name.startswith("['"):
                        found.named[name[2:-2]] = join(found.named.get(name[2:-2], NOTHING), held)
            found.named_rest = join(found.named_rest, self.elements(given, state, keys=False))
        return found

    def spread(self, given: Value, state: State) -> list[Value] | None:
        """The elements of a tuple or list whose length is known."""
        if len(given) != 1:
            return None
        item = next(iter(given))
        parts = state.parts.get(item, {})
        if not isinstance(item, Made) or item.kind not in {"tuple", "list"} or "[]" in parts:
            return None
        return [parts[f"[{place}]"] for place in range(len(parts)) if f"[{place}]" in parts]

    def apply(self, item: Item, trail: Trail, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """What calling one item gives."""
        match item:
            case Routine():
                return self.run(item, arguments, None, node, state)
            case Bound(routine, receiver):
                return self.run(routine, arguments.behind(receiver, trail), receiver, node, state)
            case Class(of):
                return self.instance(of, arguments, node, state)
            case Outside(name):
                return self.outside(name, arguments, node, state)
            case Attribute(owner, name):
                return self.method(owner, trail, name, arguments, node, state)
            case Partial(function, arguments=kept):
                whole = Arguments(
                    [*kept.positional, *arguments.positional],
                    {**kept.named, **arguments.named},
                    join(kept.rest, arguments.rest),
                    join(kept.named_rest, arguments.named_rest),
                )
                return self.apply(function, trail, whole, node, state)
            case Made() | Instance() | Input():
                return self.called_object(item, trail, arguments, node, state)
            case _:
                return self.unfollowed(arguments, node, state)

    def called_object(
        self, item: Item, trail: Trail, arguments: Arguments, node: ast.Call, state: State
    ) -> Value:
        """``object(...)``: its ``__call__``, or the ``forward`` of a module of torch."""
        of = self.class_of(item)
        for name in ("__call__", "forward"):
            for definition in self.world.method(of, name) if of is not None else ():
                if definition.node is not None:
                    routine = Routine(definition.module, definition.node, None, definition.owner)
                    return self.run(routine, arguments.behind(item, trail), item, node, state)
        return self.unfollowed(arguments, node, state)

    def unfollowed(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """A call of something that reading cannot follow: it writes into ``out``, and into nothing else."""
        for given in arguments.all():
            self.escape(given, state)
        out = arguments.named.get("out", NOTHING)
        self.write_all(out, node, Text("{}(out=...)", node.func), state)
        return join(out, value(OPAQUE))

    def write_all(self, given: Value, node: ast.AST, text: Text, state: State) -> None:
        """Note a write into whatever is given, or into the elements of a tuple or list of it."""
        for item, trail in given.items():
            if isinstance(item, Made) and item.kind != "object":
                self.write_all(state.elements(item), node, text, state)
            elif isinstance(item, Input) and self.nature(item).holds is not None:
                self.write(item.reach("[]"), trail, node, text)
            else:
                self.write(item, trail, node, text)

    # Classes

    def instance(self, of: ClassValue, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """An object of a class of the tree."""
        made = Made(self.site(node), "object", of)
        state.parts.setdefault(made, {})
        fields = self.world.fields(of)
        if fields is not None:
            for place, name in enumerate(fields):
                held = arguments.first(place, name)
                if held:
                    state.set_part(made, f".{name}", held, surely=True)
        for definition in self.world.method(of, "__init__"):
            if definition.node is not None:
                routine = Routine(definition.module, definition.node, None, definition.owner)
                self.run(routine, arguments.behind(made, ()), made, node, state)
        if fields is None and not self.world.method(of, "__init__"):
            for given in arguments.all():
                self.escape(given, state)
        return value(made)
