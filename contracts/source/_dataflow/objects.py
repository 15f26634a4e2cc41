"""Attributes, elements and subscripts of values: where an input can be reached, and where it is copied."""

from __future__ import annotations

import abc
import ast
from collections.abc import Mapping, Sequence

from contracts.source._dataflow.operations import NUMBERS, VIEW_ATTRIBUTES
from contracts.source._dataflow.state import State
from contracts.source._dataflow.values import (
    FRESH,
    NOTHING,
    NUMBER,
    OPAQUE,
    Attribute,
    Bound,
    Class,
    Input,
    Instance,
    Item,
    Made,
    Marker,
    Module,
    Outside,
    Partial,
    Routine,
    Step,
    Super,
    Text,
    Trail,
    Value,
    is_number,
    join,
    value,
)
from contracts.source._dataflow.world import Nature, World
from contracts.source._methods import Definition
from contracts.source._resolve import ClassValue
from contracts.source._types import ANY, Type


class Objects(abc.ABC):
    """What is reached from a value.

    Args:
        world: what the tree says.
        types: the types of the method's parameters.
    """

    def __init__(self, world: World, types: Mapping[str, Type]) -> None:
        self.world = world
        self._types: dict[Input, Type] = {Input(name): type_ for name, type_ in types.items()}
        self._natures: dict[Input, Nature] = {}

    @abc.abstractmethod
    def evaluate(self, node: ast.expr, state: State) -> Value:
        """What an expression may be; what it changes is changed in ``state``."""

    @abc.abstractmethod
    def continue_as(self, state: State, ends: Sequence[State | None]) -> None:
        """Let ``state`` be what holds after any of some paths."""

    @abc.abstractmethod
    def step(self, node: ast.expr | ast.stmt, text: Text, *, copies: bool = False) -> Step:
        """A step of a trail, at a place of the current function."""

    @abc.abstractmethod
    def site(self, node: ast.AST) -> tuple[int, int]:
        """A name for what a place of the code makes in the current call."""

    @abc.abstractmethod
    def get_property(self, definition: Definition, receiver: Item, node: ast.expr, state: State) -> Value:
        """What reading a property gives."""

    # Types

    def nature(self, item: Input) -> Nature:
        """What is known of an input by its type."""
        if item not in self._natures:
            self._natures[item] = self.world.nature(self.type_of(item))
        return self._natures[item]

    def type_of(self, item: Input) -> Type:
        """The type of an input, or of what is reached from it."""
        if item not in self._types:
            owner = Input(item.parameter, item.path[:-1])
            part = item.path[-1] if item.path else ""
            nature = self.nature(owner) if item.path else Nature(None)
            found: Type | None = ANY
            if part == "[]":
                found = nature.holds
            elif part:
                options = [self.world.attribute_type(of, part[1:]) for of in nature.classes]
                found = next((option for option in options if option is not None), None)
            self._types[item] = ANY if found is None else found
        return self._types[item]

    def may_be_tensor(self, item: Input) -> bool:
        """Whether what is done to an input, if only tensors take it, is done to a tensor.

        Parameters without annotation count as tensors; of what is merely reached through some object,
        nothing is assumed.
        """
        tensor = self.nature(item).tensor
        if tensor is None:
            return "." not in "".join(item.path)
        return tensor

    # Attributes

    def attribute(self, owners: Value, name: str, node: ast.expr, state: State) -> Value:
        """What ``owner.name`` is, for a load."""
        found: list[Value] = []
        for place, (item, trail) in enumerate(owners.items()):
            set_before = state.part(item, f".{name}")
            if set_before is not None:
                found.append(set_before)
                continue
            # What a property of one object makes is not what that of another one makes.
            of_it = node if not place else self.world.another(node, place)
            found.append(self._attribute(item, trail, name, of_it, state))
        return join(*found)

    def _attribute(self, item: Item, trail: Trail, name: str, node: ast.expr, state: State) -> Value:
        match item:
            case Input():
                return self._of_input(item, trail, name, node, state)
            case Made(of=ClassValue() as of) | Instance(of):
                return self._of_object(item, of, name, node, state)
            case Module(module):
                return value(*self.world.global_(module, name))
            case Outside(outside):
                return value(Outside(f"{outside}.{name}"))
            case Class(of):
                return self._of_class(of, name)
            case Super(of, receiver):
                start = self.class_of(receiver)
                definitions = self.world.method(start or of, name, behind=of)
                return self._members(definitions, receiver, node, state)
            case Marker():
                return self._of_marker(item, name)
            case Made() | Routine() | Bound() | Partial():
                return value(Attribute(item, name))
            case _:
                return NOTHING

    def _of_input(self, item: Input, trail: Trail, name: str, node: ast.expr, state: State) -> Value:
        nature = self.nature(item)
        found: dict[Item, Trail] = {}
        for of in nature.classes:
            definitions = self.world.method(of, name)
            found |= self._members(definitions, item, node, state)
            if not definitions:
                found[item.reach(f".{name}")] = trail
        if nature.tensor is not False:
            if name in VIEW_ATTRIBUTES:
                found[item] = trail
            elif name in NUMBERS:
                found[NUMBER] = ()
            else:
                found[Attribute(item, name)] = trail
        elif nature.holds is not None:
            found[Attribute(item, name)] = trail
        if name == "grad" and nature.tensor:
            found[item.reach(".grad")] = trail
        if not nature.tensor and not nature.classes and name not in NUMBERS:
            found[item.reach(f".{name}")] = trail
        return found

    def _of_object(self, item: Item, of: ClassValue, name: str, node: ast.expr, state: State) -> Value:
        definitions = self.world.method(of, name)
        if definitions:
            return self._members(definitions, item, node, state)
        type_ = self.world.attribute_type(of, name)
        return value(*self.world.described(type_)) if type_ is not None else NOTHING

    def _of_class(self, of: ClassValue, name: str) -> Value:
        found: list[Item] = []
        for definition in self.world.method(of, name):
            if definition.node is None or not definition.is_method:
                continue
            routine = Routine(definition.module, definition.node, None, definition.owner)
            found.append(Bound(routine, Class(of)) if definition.kind == "class" else routine)
        return value(*found)

    def _of_marker(self, item: Marker, name: str) -> Value:
        if item == FRESH:
            if name in NUMBERS:
                return value(NUMBER)
            return value(FRESH) if name in VIEW_ATTRIBUTES else value(Attribute(item, name))
        return value(item, Attribute(item, name)) if item == OPAQUE else value(Attribute(item, name))

    def _members(self, definitions: list[Definition], receiver: Item, node: ast.expr, state: State) -> Value:
        """What reading a name gives that a class defines."""
        found: list[Value] = []
        for definition in definitions:
            if definition.kind == "property":
                found.append(self.get_property(definition, receiver, node, state))
            elif definition.node is not None and definition.is_method:
                routine = Routine(definition.module, definition.node, None, definition.owner)
                bound: Item = routine
                if definition.kind == "instance":
                    bound = Bound(routine, receiver)
                elif definition.kind == "class":
                    of = self.class_of(receiver) or definition.owner
                    bound = Bound(routine, Class(of))
                found.append(value(bound))
        return join(*found)

    def class_of(self, item: Item) -> ClassValue | None:
        """The class of an object, or the class that the item is."""
        match item:
            case Made(of=of) | Instance(of):
                return of
            case Class(of):
                return of
            case Input():
                classes = self.nature(item).classes
                return classes[0] if classes else None
            case _:
                return None

    # Elements

    def elements(self, given: Value, state: State, *, keys: bool = True) -> Value:
        """What iterating gives; of a dict that is its keys, unless ``keys`` is false."""
        found: list[Value] = []
        for item, trail in given.items():
            match item:
                case Input():
                    found.append(self._element(item, trail, keys=keys))
                    if item in state.parts:
                        found.append(state.elements(item))
                case Made(kind="dict"):
                    found.append(NOTHING if keys else state.elements(item))
                case Made():
                    found.append(join(*self.positions(item, state).values()))
                case Marker() if item == FRESH:
                    # A row; of a tensor of indices, a tensor of no dimension, which is as good as a number.
                    found.append(value(OPAQUE, NUMBER))
                case Marker():
                    found.append(value(item))
                case _:
                    pass
        return join(*found)

    def positions(self, item: Item, state: State) -> dict[str, Value]:
        """The elements of an object by their indices, as far as these are known; ``[]`` holds all others."""
        parts = state.parts.get(item, {})
        if isinstance(item, Made) and item.of is not None and self.world.is_named_tuple(item.of):
            names = self.world.fields(item.of) or []
            return {f"[{place}]": parts.get(f".{name}", NOTHING) for place, name in enumerate(names)}
        return {name: held for name, held in parts.items() if name[0] == "["}

    def _element(self, item: Input, trail: Trail, *, keys: bool) -> Value:
        nature = self.nature(item)
        if nature.number:
            return NOTHING
        if nature.tensor is not False:
            return {item: trail}
        if nature.holds is None:
            return NOTHING
        if nature.keyed and keys:
            return NOTHING
        return {item.reach("[]"): trail}

    def subscript(self, owners: Value, node: ast.Subscript, index: Value, state: State) -> Value:
        """What ``owner[index]`` is, for a load."""
        if sum(isinstance(item, Made) for item in owners) > 1:
            # A part of each would be the same object, since it is made at the same place.
            branches = [state.copy() for _ in owners]
            found = [
                self.subscript({item: trail}, node, index, branch)
                for (item, trail), branch in zip(owners.items(), branches, strict=True)
            ]
            self.continue_as(state, branches)
            return join(*found)
        found = []
        for item, trail in owners.items():
            match item:
                case Input():
                    found.append(self._subscript_input(item, trail, node, index, state))
                case Made():
                    found.append(self._subscript_made(item, node, state))
                case Routine() | Bound() | Partial():
                    found.append({item: trail})  # a kernel, and the grid that it is launched on
                case Marker():
                    found.append(value(item))
                case Class():
                    found.append({item: trail})  # a generic class
                case _:
                    pass
        return join(*found)

    def _subscript_input(
        self, item: Input, trail: Trail, node: ast.Subscript, index: Value, state: State
    ) -> Value:
        nature = self.nature(item)
        held = self._subscript_made(item, node, state) if item in state.parts else NOTHING
        if nature.number:
            return NOTHING
        if nature.tensor is False:
            if nature.holds is None:
                return held
            whole = join(held, {item.reach("[]"): trail})
            if isinstance(node.slice, ast.Slice):
                return self.container_of(whole, "list", node, state)
            known = state.part(item, constant_key(node.slice) or "")
            return whole if known is None else known
        if self.copies(node.slice, index, state):
            return value(FRESH)
        return join(held, {item: trail})

    def _subscript_made(self, item: Item, node: ast.Subscript, state: State) -> Value:
        parts = self.positions(item, state)
        known = "[]" not in parts and item.kind in {"list", "tuple", "object"} if isinstance(item, Made) else False
        if isinstance(node.slice, ast.Slice):
            kind = item.kind if isinstance(item, Made) else "list"
            chosen = _literal_slice(node.slice) if known else None
            if chosen is None:
                return self.container_of(join(*parts.values()), kind, node, state)
            made = Made(self.site(node), kind)
            state.parts[made] = {f"[{place}]": part for place, part in enumerate([*parts.values()][chosen])}
            return value(made)
        key = constant_key(node.slice)
        if key is not None and key.startswith("[-") and isinstance(item, Made) and item.kind != "dict":
            key = f"[{len(parts) + int(key[1:-1])}]" if known else None
        if key is None or not isinstance(item, Made):
            return join(*parts.values())
        # If it is none of those known: another key of a dict; an index beyond the end of a list, which raises.
        return parts[key] if key in parts else parts.get("[]", NOTHING)

    def container_of(self, held: Value, kind: str, node: ast.AST, state: State) -> Value:
        """A new container of which each element may be any of what is held."""
        made = Made(self.site(node), kind)
        state.parts[made] = {"[]": held} if held else {}
        return value(made)

    def copies(self, node: ast.expr, index: Value, state: State) -> bool:
        """Whether indexing a tensor with this copies: by lists, masks and tensors of indices, not by slices."""
        if isinstance(node, ast.Tuple):
            return any(self.copies(item, self.evaluate(item, state), state) for item in node.elts)
        if isinstance(node, ast.List | ast.Compare | ast.ListComp):
            return True
        if isinstance(node, ast.Slice | ast.Constant):
            return isinstance(node, ast.Constant) and isinstance(node.value, bool)
        if any(map(is_number, index)):
            return False
        for item in index:
            if item in {FRESH, OPAQUE} or (isinstance(item, Made) and item.kind != "tuple"):
                return True
            if isinstance(item, Input) and self.nature(item).tensor:
                return True
        return False

    # Unpacking

    def unpack(self, given: Value, place: int, count: int, state: State, *, starred: bool) -> Value:
        """What the target at ``place`` of ``count`` gets; ``starred`` says that one of them takes the rest."""
        found: list[Value] = []
        for item, trail in given.items():
            parts = self.positions(item, state)
            if isinstance(item, Made) and item.kind != "dict" and not starred and f"[{place}]" in parts:
                found.append(parts[f"[{place}]"])
            else:
                found.append(self.elements({item: trail}, state))
        return join(*found)


def _literal_slice(node: ast.Slice) -> slice | None:
    bounds = []
    for part in (node.lower, node.upper, node.step):
        try:
            bounds.append(ast.literal_eval(part) if part is not None else None)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    if any(bound is not None and type(bound) is not int for bound in bounds) or bounds[2] == 0:
        return None
    return slice(*bounds)


def constant_key(node: ast.expr) -> str | None:
    """The part that a constant index names."""
    try:
        key = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return f"[{key!r}]" if isinstance(key, int | str) and not isinstance(key, bool) else None

