"""Methods of tensors and containers: what they write into, and what they give."""

from __future__ import annotations

import abc
import ast

from contracts.source._dataflow.calls import Calls
from contracts.source._dataflow.objects import constant_key
from contracts.source._dataflow.operations import (
    NUMBERS,
    REDUCTIONS,
    SOMETIMES,
    VIEWS,
    writes_in_place,
)
from contracts.source._dataflow.state import State
from contracts.source._dataflow.values import (
    FRESH,
    NOTHING,
    NUMBER,
    Arguments,
    Constant,
    Input,
    Item,
    Made,
    Marker,
    Text,
    Trail,
    Value,
    extend,
    join,
    value,
)
from contracts.source._resolve import ClassValue

_GROWING = {"append": 0, "add": 0, "appendleft": 0, "extend": 0, "extendleft": 0, "update": 0, "insert": 1}


class Members(Calls, abc.ABC):
    """Applies methods whose class is not in the tree."""

    def is_true(self, given: Value) -> bool:
        """Whether a value may be True."""
        return any(isinstance(item, Constant) and item.value is True for item in given)

    def view(self, given: Value, name: str, node: ast.Call) -> Value:
        """A view of a tensor, unless the call says to copy."""
        for keyword in node.keywords:
            if keyword.arg == "copy" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True:
                return value(FRESH)
        kept: Value = {item: trail for item, trail in given.items() if isinstance(item, Input | Made) or item == FRESH}
        if name in SOMETIMES:
            kept = extend(kept, self.step(node, Text("{}", node), copies=True))
        return kept or value(FRESH)

    def unbound_method(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """``torch.Tensor.mul_(x, ...)``."""
        receivers = arguments.first(0, "self")
        rest = Arguments(arguments.positional[1:], arguments.named, arguments.rest, arguments.named_rest)
        return join(*(self.method(item, trail, name, rest, node, state) for item, trail in receivers.items()))

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
                self.write_all(out, node, Text("{}(out=...)", node.func), state)
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
            self.write(item, trail, node, Text("{}()", node.func))
            return {item: trail}
        out = arguments.named.get("out", NOTHING)
        self.write_all(out, node, Text("{}(out=...)", node.func), state)
        if name in VIEWS:
            return self.view({item: trail}, name, node)
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
        if name in _GROWING:
            self.grow(item, name, arguments, state)
            return NOTHING
        if name == "setdefault":
            held = join(held, *arguments.positional[1:2])
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
            self.grow(item, name, arguments, state)
            return NOTHING
        if name in {"remove", "reverse", "sort", "rotate"}:
            state.shuffle(item)
            return NOTHING
        if name in {"get", "pop", "setdefault", "__getitem__", "popleft"}:
            key = constant_key(node.args[0]) if node.args and item.kind == "dict" else None
            if name == "setdefault":
                state.set_part(item, key or "[]", join(*arguments.positional[1:2]), surely=False)
            found = state.held(item, key) if key is not None else state.elements(item)
            if name in {"pop", "popleft"} and item.kind != "dict":
                state.shuffle(item)
            return join(found, *arguments.positional[1:2])
        if name == "clear":
            state.parts[item] = {}
            return NOTHING
        if name == "items":
            return self.pairs(state.elements(item), node, state)
        if name in {"values", "copy", "__iter__"}:
            made = Made(self.site(node), item.kind if name == "copy" else "list")
            state.parts[made] = dict(state.parts.get(item, {})) if name == "copy" else {"[]": state.elements(item)}
            return value(made)
        return NOTHING

    def grow(self, item: Input | Made, name: str, arguments: Arguments, state: State) -> None:
        """Add to a container."""
        for given in (*arguments.positional[_GROWING[name] :], *arguments.named.values()):
            match name:
                case "append":
                    state.append(item, given)
                case "extend":
                    self.extend_container(item, given, state)
                case "insert" | "appendleft":
                    state.shuffle(item, given)
                case "extendleft":
                    state.shuffle(item, self.elements(given, state))
                case "update":
                    state.set_part(item, "[]", self.elements(given, state, keys=False), surely=False)
                case _:
                    state.set_part(item, "[]", given, surely=False)

    def extend_container(self, item: Input | Made, given: Value, state: State) -> None:
        """Add the elements of something at the end of a list, or to a set or dict."""
        parts = self.spread(given, state)
        if parts is None or not isinstance(item, Made) or item.kind != "list":
            state.set_part(item, "[]", self.elements(given, state, keys=False), surely=False)
        else:
            for part in parts:
                state.append(item, part)
