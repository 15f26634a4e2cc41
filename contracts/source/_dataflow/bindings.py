"""What names hold, and what assignments change."""

from __future__ import annotations

import abc
import ast
from collections.abc import Hashable
from dataclasses import dataclass, field

from contracts.source._dataflow.functions import Functions
from contracts.source._dataflow.objects import constant_key
from contracts.source._dataflow.operations import WRITTEN_ATTRIBUTES
from contracts.source._dataflow.state import State
from contracts.source._dataflow.values import (
    Input,
    Instance,
    Item,
    Made,
    Step,
    Text,
    Value,
    extend,
    has_input,
    value,
)
from contracts.source._resolve import ClassValue


@dataclass(slots=True)
class Frame:
    """One call of a function that is followed.

    ``parent`` is the frame of the function around a nested one; ``kernel`` says that it is Triton code, in
    which arithmetic on a pointer gives a pointer.
    """

    key: int
    module: str
    owner: ClassValue | None
    parent: Hashable
    receiver: Item | None
    kernel: bool = False
    returned: list[Value] = field(default_factory=list)
    ends: list[State] = field(default_factory=list)
    yielded: list[Value] = field(default_factory=list)
    generates: bool = False
    outer_names: set[str] = field(default_factory=set)
    leaving: list[list[State]] = field(default_factory=list)
    repeating: list[list[State]] = field(default_factory=list)
    raising: list[list[State]] = field(default_factory=list)


class Bindings(Functions, abc.ABC):
    """Binds names, attributes and items."""

    frame: Frame
    frames: dict[int, Frame]

    @abc.abstractmethod
    def tick(self) -> None:
        """Count a step of work."""

    # Names

    def name(self, name: str, state: State) -> Value:
        """What a name holds."""
        held = self.local(name, state)
        return value(*self.world.global_(self.frame.module, name)) if held is None else held

    def local(self, name: str, state: State) -> Value | None:
        """What a name holds in the function that runs, or in those around it; None for a global."""
        key: Hashable = self.frame.key
        while isinstance(key, int) and key in self.frames:
            held = state.names.get(key, {}).get(name)
            if held is not None:
                return held
            key = self.frames[key].parent
        return None

    def bind_name(self, name: str, new: Value, state: State) -> None:
        """Let a name hold something."""
        key: Hashable = self.frame.key
        if name in self.frame.outer_names:
            outer = self.frame.parent
            while isinstance(outer, int) and outer in self.frames:
                if name in state.names.get(outer, {}):
                    key = outer
                    break
                outer = self.frames[outer].parent
            else:
                return  # a global
        state.bind(key, name, new)

    def step(self, node: ast.expr | ast.stmt, text: Text, *, copies: bool = False) -> Step:
        """A step of a trail, at a place of the current function."""
        return Step(self.frame.module, node.lineno, text, copies)

    def bind(self, target: ast.expr, new: Value, state: State, source: Text) -> None:
        """Assign to a target; ``source`` is the text of what is assigned."""
        match target:
            case ast.Name():
                if has_input(new):
                    text = Text(f"{target.id} = {source.form}", source.node)
                    new = extend(new, self.step(target, text))
                self.bind_name(target.id, new, state)
            case ast.Tuple() | ast.List():
                starred = any(isinstance(item, ast.Starred) for item in target.elts)
                for place, item in enumerate(target.elts):
                    part = self.unpack(new, place, len(target.elts), state, starred=starred)
                    if isinstance(item, ast.Starred):
                        made = Made((*self.site(item), "rest"), "list")
                        state.parts[made] = {"[]": part}
                        self.bind(item.value, value(made), state, source)
                    else:
                        self.bind(item, part, state, source)
            case ast.Attribute():
                owners = self.evaluate(target.value, state)
                self.set_attribute(owners, target.attr, new, target, state)
            case ast.Subscript():
                self.evaluate(target.slice, state)
                self.set_item(self.evaluate(target.value, state), target, new, state)
            case ast.Starred():
                self.bind(target.value, new, state, source)
            case _:
                pass

    def set_attribute(self, owners: Value, name: str, new: Value, node: ast.AST, state: State) -> None:
        """Assign to an attribute: of a tensor that may change its data, of any object it changes the object."""
        surely = len(owners) == 1
        for item, trail in owners.items():
            if isinstance(item, Input) and name in WRITTEN_ATTRIBUTES and self.may_be_tensor(item):
                self.write(item, trail, node, Text("{} = ..." if isinstance(node, ast.Attribute) else "{}", node))
            elif isinstance(item, Input | Made | Instance):
                state.set_part(item, f".{name}", new, surely=surely)

    def set_item(self, owners: Value, node: ast.Subscript, new: Value, state: State) -> None:
        """``owner[index] = new``."""
        key = constant_key(node.slice)
        surely = key is not None and not key.startswith("[-") and len(owners) == 1
        for item, trail in owners.items():
            if isinstance(item, Made) and isinstance(node.slice, ast.Slice):
                state.shuffle(item, self.elements(new, state))
            elif isinstance(item, Made):
                state.set_part(item, key if surely and key else "[]", new, surely=surely)
            elif isinstance(item, Input):
                nature = self.nature(item)
                if nature.holds is not None and nature.tensor is False:
                    new = self.elements(new, state) if isinstance(node.slice, ast.Slice) else new
                    state.set_part(item, key if surely and key else "[]", new, surely=surely)
                elif self.may_be_tensor(item):
                    self.write(item, trail, node, Text("{} = ...", node))
