"""What expressions may be, while a function runs."""

from __future__ import annotations

import abc
import ast
from collections.abc import Callable, Hashable
from typing import Any

from contracts.source._dataflow.bindings import Bindings, Frame
from contracts.source._dataflow.objects import constant_key
from contracts.source._dataflow.state import State
from contracts.source._dataflow.values import (
    FRESH,
    NOTHING,
    NUMBER,
    OPAQUE,
    Class,
    Constant,
    Input,
    Instance,
    Item,
    Made,
    Marker,
    Module,
    Outside,
    Partial,
    Routine,
    Super,
    Text,
    Value,
    either,
    is_number,
    join,
    value,
)


class Expressions(Bindings, abc.ABC):
    """Evaluates expressions."""

    def evaluate(self, node: ast.expr, state: State) -> Value:
        """What an expression may be; what it changes is changed in ``state``."""
        self.tick()
        evaluator = _EVALUATORS.get(type(node))
        return evaluator(self, node, state) if evaluator is not None else NOTHING

    def _loaded(self, node: ast.Name, state: State) -> Value:
        return self.name(node.id, state)

    def _constant(self, node: ast.Constant, state: State) -> Value:
        held = node.value
        if not isinstance(held, bool | str | int | float | None):
            return NOTHING
        key = (type(held), held)
        if key not in _CONSTANTS:
            _CONSTANTS[key] = value(Constant(type(held).__name__, held))
        return _CONSTANTS[key]

    def _attribute_of(self, node: ast.Attribute, state: State) -> Value:
        return self.attribute(self.evaluate(node.value, state), node.attr, node, state)

    def _subscripted(self, node: ast.Subscript, state: State) -> Value:
        owners = self.evaluate(node.value, state)
        return self.subscript(owners, node, self.evaluate(node.slice, state), state)

    def _any_of(self, node: ast.BoolOp, state: State) -> Value:
        return either(*(self.evaluate(item, state) for item in node.values))

    def _walrus(self, node: ast.NamedExpr, state: State) -> Value:
        new = self.evaluate(node.value, state)
        self.bind(node.target, new, state, Text("{}", node.value))
        return self.name(node.target.id, state)

    def _lambda(self, node: ast.Lambda, state: State) -> Value:
        return value(self.nested(node, state))

    def _inner(self, node: ast.Starred | ast.Await, state: State) -> Value:
        return self.evaluate(node.value, state)

    def _yielded(self, node: ast.Yield | ast.YieldFrom, state: State) -> Value:
        given = self.evaluate(node.value, state) if node.value is not None else NOTHING
        self.frame.yielded.append(self.elements(given, state) if isinstance(node, ast.YieldFrom) else given)
        return NOTHING

    def _slice(self, node: ast.Slice, state: State) -> Value:
        for part in (node.lower, node.upper, node.step):
            if part is not None:
                self.perform(part, state)
        return NOTHING

    def _text(self, node: ast.JoinedStr | ast.FormattedValue, state: State) -> Value:
        self.perform(node, state)
        return NOTHING

    def perform(self, node: ast.expr, state: State) -> None:
        """Evaluate an expression whose value does not count, as far as it may change anything."""
        match node:
            case ast.Name() | ast.Constant():
                pass
            case ast.Compare():
                for part in (node.left, *node.comparators):
                    self.perform(part, state)
            case ast.BoolOp() | ast.JoinedStr():
                for part in node.values:
                    self.perform(part, state)
            case ast.UnaryOp():
                self.perform(node.operand, state)
            case ast.FormattedValue():
                self.perform(node.value, state)
            case _:
                if not self.is_idle(node, state):
                    self.evaluate(node, state)

    def is_idle(self, node: ast.expr, state: State) -> bool:
        """Whether all that an expression names is known to lead to nothing that the method was given."""
        names = self.world.names_in(node)
        if names is None:
            return False
        for name in names:
            held = self.local(name, state)
            if held is None:
                # A global: an object of the module may have been given something.
                if any(isinstance(item, Instance) for item in state.parts):
                    return False
            elif not all(map(_is_idle, held)):
                return False
        return True

    def nested(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, state: State) -> Routine:
        """A function that is defined inside another one; its defaults are evaluated now."""
        routine = Routine(self.frame.module, node, self.frame.key, self.frame.owner)
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        last = positional[len(positional) - len(arguments.defaults) :]
        for argument, default in (
            *zip(last, arguments.defaults, strict=True),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ):
            if default is not None:
                state.set_part(routine, f"={argument.arg}", self.evaluate(default, state), surely=True)
        return routine

    def is_tensor(self, given: Value) -> bool:
        """Whether a tensor is among the items."""
        return any(item == FRESH or (isinstance(item, Input) and self.nature(item).tensor) for item in given)

    def compare(self, node: ast.Compare, state: State) -> Value:
        """A mask, if tensors are compared; what may be one counts as that, since as an index it copies."""
        values = [self.evaluate(item, state) for item in (node.left, *node.comparators)]
        if any(self.is_tensor(item) for item in values):
            return value(FRESH)
        surely = any(isinstance(operator, ast.Is | ast.IsNot | ast.In | ast.NotIn) for operator in node.ops)
        return value(NUMBER if surely or all(_is_number(item) for item in values) else OPAQUE)

    def binary(self, node: ast.BinOp, state: State) -> Value:
        left, right = self.evaluate(node.left, state), self.evaluate(node.right, state)
        if self.frame.kernel and isinstance(node.op, ast.Add | ast.Sub):
            pointers: Value = {item: trail for item, trail in join(left, right).items() if isinstance(item, Input)}
            if pointers:
                return pointers
        if self.is_tensor(left) or self.is_tensor(right):
            return value(FRESH)
        containers = [item for item in (*left, *right) if _is_container(item)]
        containers += [item for item in (*left, *right) if isinstance(item, Input) and self.nature(item).holds]
        if containers and isinstance(node.op, ast.Add | ast.Mult | ast.BitOr):
            kind = next((item.kind for item in containers if isinstance(item, Made)), "list")
            made = Made(self.site(node), kind)
            held = join(*(self.elements(side, state, keys=False) for side in (left, right)))
            state.parts[made] = {"[]": held}
            spread = [self.spread(side, state) for side in (left, right)]
            if isinstance(node.op, ast.Add) and spread[0] is not None and spread[1] is not None:
                whole = [*spread[0], *spread[1]]
                state.parts[made] = {f"[{place}]": part for place, part in enumerate(whole)}
            return value(made)
        return value(NUMBER) if _is_number(left) and _is_number(right) else NOTHING

    def unary(self, node: ast.UnaryOp, state: State) -> Value:
        given = self.evaluate(node.operand, state)
        if isinstance(node.op, ast.UAdd):
            return given
        if isinstance(node.op, ast.Not):
            return value(NUMBER)
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return value(NUMBER)
        return value(FRESH) if self.is_tensor(given) else value(NUMBER) if _is_number(given) else NOTHING

    def choice(self, node: ast.IfExp, state: State) -> Value:
        """``a if test else b``, as far as the test decides it."""
        self.perform(node.test, state)
        truth = self.truth(node.test, state)
        results: list[Value] = []
        ends: list[State | None] = []
        for branch, positive in ((node.body, True), (node.orelse, False)):
            if truth is not (not positive):
                inner = state.copy()
                self.narrow(node.test, inner, positive=positive)
                results.append(self.evaluate(branch, inner))
                ends.append(inner)
        self.continue_as(state, [self.widened(state, end) for end in ends if end is not None])
        return either(*results)

    @abc.abstractmethod
    def widened(self, before: State, after: State) -> State:
        """``after`` without what a test said of names that it held ``before``."""

    @abc.abstractmethod
    def truth(self, test: ast.expr, state: State) -> bool | None:
        """Whether a condition holds; None where it depends."""

    @abc.abstractmethod
    def narrow(self, test: ast.expr, state: State, *, positive: bool) -> None:
        """Take what a condition says of names into the state of one branch."""

    def display(self, node: ast.Tuple | ast.List | ast.Set, state: State) -> Value:
        kind = {ast.Tuple: "tuple", ast.List: "list"}.get(type(node), "set")
        made = Made(self.site(node), kind)
        parts: dict[str, Value] = {}
        for item in node.elts:
            held = self.evaluate(item, state)
            if isinstance(item, ast.Starred):
                spread = self.spread(held, state)
                if spread is None or "[]" in parts:
                    parts["[]"] = join(parts.get("[]", NOTHING), self.elements(held, state))
                else:
                    parts |= {f"[{len(parts) + place}]": part for place, part in enumerate(spread)}
            elif "[]" in parts:
                parts["[]"] = join(parts["[]"], held)
            else:
                parts[f"[{len(parts)}]"] = held
        state.parts[made] = parts
        return value(made)

    def dictionary(self, node: ast.Dict, state: State) -> Value:
        made = Made(self.site(node), "dict")
        parts: dict[str, Value] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            held = self.evaluate(item, state)
            if key is None:
                held = self.elements(held, state, keys=False)
            else:
                self.evaluate(key, state)
            name = constant_key(key) if key is not None else None
            if name is not None:
                parts[name] = held
                continue
            for known in (*parts, "[]"):
                parts[known] = join(parts.get(known, NOTHING), held)
        state.parts[made] = parts
        return value(made)

    def comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp, state: State
    ) -> Value:
        names = state.names.get(self.frame.key, {})
        own = {
            inner.id
            for generator in node.generators
            for inner in ast.walk(generator.target)
            if isinstance(inner, ast.Name)
        }
        before = {name: names[name] for name in own if name in names}
        made = Made(self.site(node), "dict" if isinstance(node, ast.DictComp) else "list")
        parts = self.each_element(node, state) if isinstance(node, ast.ListComp | ast.GeneratorExp) else None
        if parts is None:
            for generator in node.generators:
                iterated = self.elements(self.evaluate(generator.iter, state), state)
                self.bind(generator.target, iterated, state, Text("an element of {}", generator.iter))
                for test in generator.ifs:
                    self.perform(test, state)
                    self.narrow(test, state, positive=True)
            if isinstance(node, ast.DictComp):
                self.evaluate(node.key, state)
            held = self.evaluate(node.value if isinstance(node, ast.DictComp) else node.elt, state)
            parts = {"[]": held} if held else {}
        state.unbind(self.frame.key, own)
        for name, outer in before.items():
            state.bind(self.frame.key, name, outer)
        state.parts[made] = parts
        return value(made)

    def each_element(self, node: ast.ListComp | ast.GeneratorExp, state: State) -> dict[str, Value] | None:
        """The elements of a comprehension over a list of known length; None where they cannot be told apart."""
        generator = node.generators[0]
        if len(node.generators) > 1 or generator.ifs:
            return None
        given = self.spread(self.evaluate(generator.iter, state), state)
        if given is None:
            return None
        parts: dict[str, Value] = {}
        for place, part in enumerate(given):
            self.bind(generator.target, part, state, Text("an element of {}", generator.iter))
            held = parts[f"[{place}]"] = self.evaluate(node.elt, state)
            if any(isinstance(item, Made | Routine | Partial) and item not in part for item in held):
                return None  # what one place of the code makes is one object, whichever element it is made for
        return parts

    def super_of(self, node: ast.Call, state: State) -> Value:
        """What ``super()`` is."""
        if len(node.args) == 2:
            receivers = self.evaluate(node.args[1], state)
            owners = [self.class_of(item) for item in self.evaluate(node.args[0], state)]
            of = next((owner for owner in owners if owner is not None), None)
            return value(*(Super(of, item) for item in receivers)) if of is not None else NOTHING
        frame: Frame | None = self.frame
        while frame is not None and frame.receiver is None and isinstance(frame.parent, int):
            frame = self.frames.get(frame.parent)
        if frame is None or frame.receiver is None or frame.owner is None:
            return NOTHING
        return value(Super(frame.owner, frame.receiver))


# What leads nowhere.
_IDLE = (Constant, Marker, Outside, Class, Module)


def _is_idle(item: Item) -> bool:
    return isinstance(item, _IDLE) or (isinstance(item, Routine) and item.frame is None)


def _is_container(item: Item) -> bool:
    return isinstance(item, Made) and item.kind != "object"


def _is_number(given: Value) -> bool:
    return bool(given) and all(map(is_number, given))


_CONSTANTS: dict[tuple[type, Hashable], Value] = {}
_Evaluator = Callable[[Expressions, Any, State], Value]
_EVALUATORS: dict[type[ast.expr], _Evaluator] = {
    ast.Name: Expressions._loaded,  # noqa: SLF001  a table of its own methods
    ast.Constant: Expressions._constant,  # noqa: SLF001
    ast.Attribute: Expressions._attribute_of,  # noqa: SLF001
    ast.Call: lambda self, node, state: self.call(node, state),
    ast.Subscript: Expressions._subscripted,  # noqa: SLF001
    ast.BinOp: Expressions.binary,
    ast.UnaryOp: Expressions.unary,
    ast.Compare: Expressions.compare,
    ast.BoolOp: Expressions._any_of,  # noqa: SLF001
    ast.IfExp: Expressions.choice,
    ast.NamedExpr: Expressions._walrus,  # noqa: SLF001
    ast.Tuple: Expressions.display,
    ast.List: Expressions.display,
    ast.Set: Expressions.display,
    ast.Dict: Expressions.dictionary,
    ast.ListComp: Expressions.comprehension,
    ast.SetComp: Expressions.comprehension,
    ast.GeneratorExp: Expressions.comprehension,
    ast.DictComp: Expressions.comprehension,
    ast.Lambda: Expressions._lambda,  # noqa: SLF001
    ast.Starred: Expressions._inner,  # noqa: SLF001
    ast.Await: Expressions._inner,  # noqa: SLF001
    ast.Yield: Expressions._yielded,  # noqa: SLF001
    ast.YieldFrom: Expressions._yielded,  # noqa: SLF001
    ast.Slice: Expressions._slice,  # noqa: SLF001
    ast.JoinedStr: Expressions._text,  # noqa: SLF001
    ast.FormattedValue: Expressions._text,  # noqa: SLF001
}
