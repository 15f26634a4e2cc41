"""What calls do to values: torch's operations, containers, classes and functions of the tree."""

from __future__ import annotations

import abc
import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from contracts.source._objects import Objects, constant_key
from contracts.source._resolve import ClassValue
from contracts.source._torch import (
    NUMBERS,
    REDUCTIONS,
    VIEW_FUNCTIONS,
    VIEWS,
    WRAPPERS,
    WRITERS,
    writes_in_place,
    writing_function,
)
from contracts.source._types import Type
from contracts.source._values import (
    FRESH,
    NOTHING,
    NUMBER,
    OPAQUE,
    Attribute,
    Bound,
    Class,
    Constant,
    Input,
    Instance,
    Item,
    Made,
    Marker,
    Outside,
    Partial,
    Routine,
    State,
    Trail,
    Value,
    join,
    value,
)
from contracts.source._world import World

_NUMBER_FUNCTIONS = frozenset(
    "builtins.abs builtins.bool builtins.divmod builtins.float builtins.hash builtins.id builtins.int "
    "builtins.isinstance builtins.issubclass builtins.len builtins.ord builtins.round builtins.sum math.ceil "
    "math.floor math.gcd math.isqrt math.prod math.sqrt torch.numel torch.is_tensor builtins.callable "
    "builtins.hasattr builtins.range".split()
)
_SAME_ELEMENTS = frozenset(
    "builtins.list builtins.tuple builtins.set builtins.frozenset builtins.sorted builtins.reversed builtins.iter "
    "collections.deque itertools.chain itertools.islice itertools.cycle builtins.filter".split()
)
_GROWING = {"append": 0, "add": 0, "appendleft": 0, "extend": 0, "extendleft": 0, "update": 0, "insert": 1}


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


class Calls(Objects):
    """Applies callables.

    Args:
        world: what the tree says.
        types: the types of the method's parameters.
    """

    def __init__(self, world: World, types: Mapping[str, Type]) -> None:
        super().__init__(world, types)
        self._kept: dict[Partial, Arguments] = {}

    @abc.abstractmethod
    def run(
        self, routine: Routine, arguments: Arguments, receiver: Item | None, node: ast.expr, state: State
    ) -> Value:
        """What a function of the tree returns for these arguments."""

    @abc.abstractmethod
    def write(self, item: Item, trail: Trail, node: ast.AST, text: str) -> None:
        """Note that an operation writes into an item."""

    @abc.abstractmethod
    def escape(self, given: Value, state: State) -> None:
        """Note that functions among the items may be called by code that is not followed."""

    @abc.abstractmethod
    def site(self, node: ast.AST) -> tuple[int, int]:
        """A name for what a place of the code makes in the current call."""

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
        return join(*results)

    @abc.abstractmethod
    def super_of(self, node: ast.Call, state: State) -> Value:
        """What ``super()`` is."""

    @abc.abstractmethod
    def continue_as(self, state: State, ends: Sequence[State | None]) -> None:
        """Let ``state`` be what holds after any of some paths."""

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
            case Partial(function):
                kept = self._kept[item]
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
        self.write_all(out, node, f"{text_of(node.func)}(out=...)", state)
        return join(out, value(OPAQUE))

    def write_all(self, given: Value, node: ast.AST, text: str, state: State) -> None:
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

    # Functions from elsewhere

    def outside(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """What a function from outside of the tree gives."""
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, arguments, node, state)
        first = arguments.first(0, "input")
        text = f"{text_of(node.func)}()"
        if name in WRITERS:
            self.write_all(arguments.first(*WRITERS[name]), node, text, state)
            return first
        if name.startswith("torch.Tensor.") or name.startswith("numpy.ndarray."):
            return self.unbound_method(name.rpartition(".")[2], arguments, node, state)
        if writing_function(name):
            self.write_all(first, node, text, state)
            return first
        if self.is_true(arguments.named.get("inplace", NOTHING)):
            self.write_all(first, node, f"{text_of(node.func)}(inplace=True)", state)
            return first
        if name in _SAME_ELEMENTS:
            return self.container(name, arguments, node, state)
        if name in _NUMBER_FUNCTIONS:
            return value(NUMBER)
        module, _, function = name.rpartition(".")
        if name in VIEW_FUNCTIONS or (module == "torch" and function in VIEWS):
            return join(first, *arguments.positional[1:]) if function == "broadcast_tensors" else self.view(
                first, node
            )
        if name in WRAPPERS:
            return first
        result = self.unfollowed(arguments, node, state)
        if module in {"torch", "torch.nn.functional", "torch.linalg", "torch.special"}:
            fresh = value(NUMBER) if function in REDUCTIONS and len(node.args) + len(node.keywords) == 1 else NOTHING
            return join({item: trail for item, trail in result.items() if item != OPAQUE}, value(FRESH), fresh)
        return result

    def is_true(self, given: Value) -> bool:
        """Whether a value may be True."""
        return any(isinstance(item, Constant) and item.value is True for item in given)

    def view(self, given: Value, node: ast.Call) -> Value:
        """A view of a tensor, unless the call says to copy."""
        for keyword in node.keywords:
            if keyword.arg == "copy" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True:
                return value(FRESH)
        kept: Value = {item: trail for item, trail in given.items() if isinstance(item, Input | Made) or item == FRESH}
        return kept or value(FRESH)

    def unbound_method(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """``torch.Tensor.mul_(x, ...)``."""
        receivers = arguments.first(0, "self")
        rest = Arguments(arguments.positional[1:], arguments.named, arguments.rest, arguments.named_rest)
        return join(*(self.method(item, trail, name, rest, node, state) for item, trail in receivers.items()))

    def container(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """A new container with the elements of others."""
        sources = arguments.positional[1:] if name == "builtins.filter" else arguments.positional
        if name == "builtins.sorted":
            self.escape(arguments.named.get("key", NOTHING), state)
        made = Made(self.site(node), "tuple" if name == "builtins.tuple" else "list")
        state.parts.setdefault(made, {})
        for given in (*sources, arguments.rest):
            elements = self.elements(given, state)
            if elements:
                state.set_part(made, "[]", elements, surely=False)
        return value(made)

    # Methods of tensors and containers

    def method(
        self, owner: Item, trail: Trail, name: str, arguments: Arguments, node: ast.Call, state: State
    ) -> Value:
        """What a method gives whose class is not in the tree."""
        match owner:
            case Input():
                return self.method_of_input(owner, trail, name, arguments, node, state)
            case Made(kind="object") | Made(of=ClassValue()):
                return self.unfollowed(arguments, node, state)
            case Made():
                return self.method_of_container(owner, name, arguments, node, state)
            case Marker() if owner == FRESH:
                out = arguments.named.get("out", NOTHING)
                self.write_all(out, node, f"{text_of(node.func)}(out=...)", state)
                if name in NUMBERS:
                    return value(NUMBER)
                reduced = name in REDUCTIONS and not node.args and not node.keywords
                return join(out, value(FRESH, NUMBER) if reduced else value(FRESH))
            case _:
                return self.unfollowed(arguments, node, state)

    def method_of_input(
        self, item: Input, trail: Trail, name: str, arguments: Arguments, node: ast.Call, state: State
    ) -> Value:
        nature = self.nature(item)
        if nature.tensor is False:
            return self.method_of_held_container(item, trail, name, arguments, node, state)
        if writes_in_place(name, known=nature.tensor is True or self.may_be_tensor(item)):
            self.write(item, trail, node, f"{text_of(node.func)}()")
            return {item: trail}
        out = arguments.named.get("out", NOTHING)
        self.write_all(out, node, f"{text_of(node.func)}(out=...)", state)
        if name in VIEWS:
            return self.view({item: trail}, node)
        if name in NUMBERS:
            return value(NUMBER)
        if name in {"requires_grad_", "detach_", "share_memory_", "pin_memory"}:
            return {item: trail}
        if nature.tensor is None and name in {"get", "pop", "items", "popitem", "setdefault", "__getitem__"}:
            return {item: trail}
        for given in arguments.all():
            self.escape(given, state)
        reduced = name in REDUCTIONS and not node.args and not node.keywords
        return join(out, value(FRESH, NUMBER) if reduced else value(FRESH))

    def method_of_held_container(
        self, item: Input, trail: Trail, name: str, arguments: Arguments, node: ast.Call, state: State
    ) -> Value:
        """A method of a list or dict that was passed in."""
        nature = self.nature(item)
        if nature.holds is None:
            return self.unfollowed(arguments, node, state)
        held: Value = join({item.reach("[]"): trail}, state.elements(item))
        if name in {"append", "extend", "insert", "remove", "clear", "update", "sort", "reverse", "popitem"}:
            self.write(item, trail, node, f"{text_of(node.func)}()")
            return NOTHING
        if name in {"pop", "setdefault"}:
            self.write(item, trail, node, f"{text_of(node.func)}()")
        if name == "items":
            return self.pairs(held, node, state)
        if name in {"values", "copy"}:
            made = Made(self.site(node), "list" if name == "values" or not nature.keyed else "dict")
            state.set_part(made, "[]", held, surely=False)
            return value(made)
        return held if name in {"get", "pop", "setdefault", "__getitem__"} else NOTHING

    def pairs(self, held: Value, node: ast.AST, state: State) -> Value:
        """A list of pairs of something and what is held."""
        site = self.site(node)
        pair, made = Made((*site, "pair"), "tuple"), Made(site, "list")
        state.parts[pair] = {"[0]": NOTHING, "[1]": held}
        state.parts[made] = {"[]": value(pair)}
        return value(made)

    def method_of_container(
        self, item: Made, name: str, arguments: Arguments, node: ast.Call, state: State
    ) -> Value:
        if name in _GROWING:
            for given in (*arguments.positional[_GROWING[name] :], *arguments.named.values()):
                whole = name in {"extend", "extendleft", "update"}
                new = self.elements(given, state, keys=False) if whole else given
                key = None
                if whole and isinstance(item, Made) and item.kind == "list":
                    parts = self.spread(given, state)
                    if parts is not None:
                        for part in parts:
                            self.grow(item, part, state)
                        continue
                if name == "append":
                    self.grow(item, new, state)
                elif new:
                    state.set_part(item, key or "[]", new, surely=False)
            return NOTHING
        if name in {"get", "pop", "setdefault", "__getitem__", "popleft"}:
            key = constant_key(node.args[0]) if node.args else None
            parts_now = state.parts.get(item, {})
            if name == "setdefault" and len(arguments.positional) > 1:
                state.set_part(item, key or "[]", arguments.positional[1], surely=False)
                return state.parts[item][key or "[]"]
            found = parts_now[key] if key in parts_now and item.kind == "dict" else state.elements(item)
            return join(found, *arguments.positional[1:2])
        if name in {"clear"}:
            state.parts[item] = {}
            return NOTHING
        if name == "items":
            return self.pairs(state.elements(item), node, state)
        if name in {"values", "copy", "__iter__"}:
            made = Made(self.site(node), item.kind if name == "copy" else "list")
            state.parts[made] = dict(state.parts.get(item, {})) if name == "copy" else {"[]": state.elements(item)}
            return value(made)
        return NOTHING

    def grow(self, item: Made, new: Value, state: State) -> None:
        """Append to a list: at its end while its length is known."""
        parts = state.parts.setdefault(item, {})
        if "[]" in parts or len(parts) >= 12:
            state.set_part(item, "[]", new, surely=False)
        else:
            parts[f"[{len(parts)}]"] = new

    # Builtins that need more than a table

    def _range(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        made = Made(self.site(node), "list")
        state.parts[made] = {"[]": value(NUMBER)}
        return value(made)

    def _enumerate(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        site = self.site(node)
        pair, made = Made((*site, "pair"), "tuple"), Made(site, "list")
        state.parts[pair] = {"[0]": value(NUMBER), "[1]": self.elements(arguments.first(0, "iterable"), state)}
        state.parts[made] = {"[]": value(pair)}
        return value(made)

    def _zip(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        site = self.site(node)
        pair, made = Made((*site, "pair"), "tuple"), Made(site, "list")
        state.parts[pair] = {
            f"[{place}]": self.elements(given, state) for place, given in enumerate(arguments.positional)
        }
        if arguments.rest:
            state.parts[pair]["[]"] = self.elements(arguments.rest, state)
        state.parts[made] = {"[]": value(pair)}
        return value(made)

    def _map(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        items = Arguments([self.elements(given, state) for given in arguments.positional[1:]])
        made = Made(self.site(node), "list")
        results = [
            self.apply(item, trail, items, node, state) for item, trail in arguments.first(0, "func").items()
        ]
        state.set_part(made, "[]", join(*results), surely=False)
        return value(made)

    def _next(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        return join(self.elements(arguments.first(0, "i"), state), *arguments.positional[1:2])

    def _getattr(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        names = [item.value for item in arguments.first(1, "name") if isinstance(item, Constant)]
        found = [
            self.attribute(arguments.first(0, "o"), name, node, state) for name in names if isinstance(name, str)
        ]
        return join(*found, *arguments.positional[2:3])

    def _setattr(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        for name in arguments.first(1, "name"):
            if isinstance(name, Constant) and isinstance(name.value, str):
                owners, new = arguments.first(0, "obj"), arguments.first(2, "value")
                self.set_attribute(owners, name.value, new, node, state)
        return NOTHING

    @abc.abstractmethod
    def set_attribute(self, owners: Value, name: str, new: Value, node: ast.AST, state: State) -> None:
        """Assign to an attribute."""

    def _partial(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        found: list[Item] = []
        for function in arguments.first(0, "func"):
            item = Partial(function, self.site(node))
            self._kept[item] = Arguments(
                arguments.positional[1:], arguments.named, arguments.rest, arguments.named_rest
            )
            found.append(item)
        return value(*found)

    def _same(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        return arguments.first(len(node.args) - 1, "val")

    def _either(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """``max`` and ``min``: one of their arguments, or one of the elements of the only one."""
        given = arguments.positional
        if len(given) == 1:
            return join(self.elements(given[0], state), value(NUMBER))
        found = {item: trail for item, trail in join(*given).items() if isinstance(item, Input)}
        return join({item: t for item, t in found.items() if not self.nature(item).number}, value(NUMBER))

    def _dict(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        made = Made(self.site(node), "dict")
        parts = state.parts[made] = {f"['{name}']": held for name, held in arguments.named.items()}
        rest = [self.elements(given, state, keys=False) for given in arguments.positional]
        held = join(*rest, arguments.named_rest)
        if held:
            parts["[]"] = held
        return value(made)

    def _reduce(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        elements = join(self.elements(arguments.first(1, "iterable"), state), *arguments.positional[2:3])
        pair = Arguments([elements, elements])
        return join(
            *(self.apply(item, trail, pair, node, state) for item, trail in arguments.first(0, "function").items())
        )


_Special = Callable[[Calls, Arguments, ast.Call, State], Value]
_SPECIAL: dict[str, _Special] = {
    "builtins.range": Calls._range,  # noqa: SLF001  a table of its own methods
    "builtins.enumerate": Calls._enumerate,  # noqa: SLF001
    "builtins.zip": Calls._zip,  # noqa: SLF001
    "itertools.zip_longest": Calls._zip,  # noqa: SLF001
    "itertools.product": Calls._zip,  # noqa: SLF001
    "builtins.map": Calls._map,  # noqa: SLF001
    "builtins.next": Calls._next,  # noqa: SLF001
    "builtins.getattr": Calls._getattr,  # noqa: SLF001
    "builtins.setattr": Calls._setattr,  # noqa: SLF001
    "builtins.max": Calls._either,  # noqa: SLF001
    "builtins.min": Calls._either,  # noqa: SLF001
    "builtins.dict": Calls._dict,  # noqa: SLF001
    "collections.OrderedDict": Calls._dict,  # noqa: SLF001
    "functools.partial": Calls._partial,  # noqa: SLF001
    "functools.reduce": Calls._reduce,  # noqa: SLF001
    "typing.cast": Calls._same,  # noqa: SLF001
    "typing.assert_type": Calls._same,  # noqa: SLF001
}


def text_of(node: ast.AST) -> str:
    """A piece of code as it is quoted: on one line, and not too long."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."

