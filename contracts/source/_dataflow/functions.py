"""Functions from elsewhere: torch's, and the builtins through which a tensor may pass."""

from __future__ import annotations

import abc
import ast
from collections.abc import Callable

from contracts.source._dataflow.members import Members
from contracts.source._dataflow.operations import (
    REDUCTIONS,
    VIEW_FUNCTIONS,
    VIEWS,
    WRAPPERS,
    WRITERS,
    writing_function,
)
from contracts.source._dataflow.state import State
from contracts.source._dataflow.values import (
    FRESH,
    NOTHING,
    NUMBER,
    OPAQUE,
    Arguments,
    Constant,
    Input,
    Item,
    Made,
    Partial,
    Text,
    Value,
    join,
    value,
)

_NUMBER_FUNCTIONS = frozenset(
    "builtins.abs builtins.bool builtins.divmod builtins.float builtins.hash builtins.id builtins.int "
    "builtins.isinstance builtins.issubclass builtins.len builtins.ord builtins.round builtins.sum math.ceil "
    "math.floor math.gcd math.isqrt math.prod math.sqrt torch.numel torch.is_tensor builtins.callable "
    "builtins.hasattr builtins.range".split()
)
_SAME_PLACES = frozenset({"builtins.list", "builtins.tuple", "builtins.iter"})
_SAME_ELEMENTS = frozenset(
    "builtins.list builtins.tuple builtins.set builtins.frozenset builtins.sorted builtins.reversed builtins.iter "
    "collections.deque itertools.chain itertools.islice itertools.cycle builtins.filter".split()
)


class Functions(Members, abc.ABC):
    """Applies functions that are not in the tree."""

    def outside(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """What a function from outside of the tree gives."""
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, arguments, node, state)
        first = arguments.first(0, "input")
        text = Text("{}()", node.func)
        if name in WRITERS:
            self.write_all(arguments.first(*WRITERS[name]), node, text, state)
            return first
        if name.startswith(("torch.Tensor.", "numpy.ndarray.")):
            return self.unbound_method(name.rpartition(".")[2], arguments, node, state)
        if writing_function(name):
            self.write_all(first, node, text, state)
            return first
        if self.is_true(arguments.named.get("inplace", NOTHING)):
            self.write_all(first, node, Text("{}(inplace=True)", node.func), state)
            return first
        if name in _SAME_ELEMENTS:
            return self.container(name, arguments, node, state)
        if name in _NUMBER_FUNCTIONS:
            return value(NUMBER)
        module, _, function = name.rpartition(".")
        if name in VIEW_FUNCTIONS or (module == "torch" and function in VIEWS):
            if function == "broadcast_tensors":
                return join(first, *arguments.positional[1:])
            return self.view(first, function, node)
        if name in WRAPPERS:
            return first
        result = self.unfollowed(arguments, node, state)
        if module in {"torch", "torch.nn.functional", "torch.linalg", "torch.special"}:
            fresh = value(NUMBER) if function in REDUCTIONS and len(node.args) + len(node.keywords) == 1 else NOTHING
            return join({item: trail for item, trail in result.items() if item != OPAQUE}, value(FRESH), fresh)
        return result

    def container(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """A new container with the elements of others."""
        sources = arguments.positional[1:] if name == "builtins.filter" else arguments.positional
        if name == "builtins.sorted":
            self.escape(arguments.named.get("key", NOTHING), state)
        kind = "tuple" if name == "builtins.tuple" else "list"
        parts = self.spread(arguments.first(0, "iterable"), state) if name in _SAME_PLACES else None
        if parts is None:
            elements = join(*(self.elements(given, state) for given in (*sources, arguments.rest)))
            return self.container_of(elements, kind, node, state)
        made = Made(self.site(node), kind)
        state.parts[made] = {f"[{place}]": part for place, part in enumerate(parts)}
        return value(made)

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
        parts = {f"[{place}]": self.elements(given, state) for place, given in enumerate(arguments.positional)}
        state.parts[pair] = {**parts, "[]": self.elements(arguments.rest, state)} if arguments.rest else parts
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
            rest = Arguments(arguments.positional[1:], arguments.named, arguments.rest, arguments.named_rest)
            found.append(Partial(function, self.site(node), rest))
        return value(*found)

    def _cast(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        return arguments.first(1, "val")

    def _first(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        return join(arguments.first(0, "val"), arguments.named.get("enter_result", NOTHING))

    def _either(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """``max`` and ``min``: one of their arguments, or one of the elements of the only one."""
        given = arguments.positional
        if len(given) == 1:
            return join(self.elements(given[0], state), value(NUMBER))
        found = {item: trail for item, trail in join(*given).items() if isinstance(item, Input)}
        return join({item: t for item, t in found.items() if not self.nature(item).number}, value(NUMBER))

    def _dict(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        made = Made(self.site(node), "dict")
        parts = {f"['{name}']": held for name, held in arguments.named.items()}
        rest = [self.elements(given, state, keys=False) for given in arguments.positional]
        held = join(*rest, arguments.named_rest)
        state.parts[made] = {**parts, "[]": held} if held else parts
        return value(made)

    def _namespace(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        made = Made(self.site(node), "object")
        state.parts[made] = {f".{name}": held for name, held in arguments.named.items()}
        return value(made)

    def _reduce(self, arguments: Arguments, node: ast.Call, state: State) -> Value:
        elements = join(self.elements(arguments.first(1, "iterable"), state), *arguments.positional[2:3])
        pair = Arguments([elements, elements])
        return join(
            *(self.apply(item, trail, pair, node, state) for item, trail in arguments.first(0, "function").items())
        )


_Special = Callable[[Functions, Arguments, ast.Call, State], Value]
_SPECIAL: dict[str, _Special] = {
    "builtins.range": Functions._range,  # noqa: SLF001  a table of its own methods
    "builtins.enumerate": Functions._enumerate,  # noqa: SLF001
    "builtins.zip": Functions._zip,  # noqa: SLF001
    "itertools.zip_longest": Functions._zip,  # noqa: SLF001
    "itertools.product": Functions._zip,  # noqa: SLF001
    "builtins.map": Functions._map,  # noqa: SLF001
    "builtins.next": Functions._next,  # noqa: SLF001
    "builtins.getattr": Functions._getattr,  # noqa: SLF001
    "builtins.setattr": Functions._setattr,  # noqa: SLF001
    "builtins.max": Functions._either,  # noqa: SLF001
    "builtins.min": Functions._either,  # noqa: SLF001
    "builtins.dict": Functions._dict,  # noqa: SLF001
    "collections.OrderedDict": Functions._dict,  # noqa: SLF001
    "functools.partial": Functions._partial,  # noqa: SLF001
    "functools.reduce": Functions._reduce,  # noqa: SLF001
    "types.SimpleNamespace": Functions._namespace,  # noqa: SLF001
    "contextlib.nullcontext": Functions._first,  # noqa: SLF001
    "typing.cast": Functions._cast,  # noqa: SLF001
    "typing.assert_type": Functions._first,  # noqa: SLF001
}
