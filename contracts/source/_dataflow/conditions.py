"""Conditions: which branch is taken, and what is known of names in it."""

from __future__ import annotations

import abc
import ast

from contracts.source._dataflow.expressions import Expressions
from contracts.source._dataflow.state import State
from contracts.source._dataflow.values import (
    FRESH,
    NUMBER,
    Constant,
    Made,
    Outside,
    Value,
    constant,
    value,
)
from contracts.source._syntax import is_type_checking

_PLAIN_CLASSES = frozenset({"builtins.int", "builtins.float", "builtins.bool", "builtins.str", "builtins.complex"})


class Conditions(Expressions, abc.ABC):
    """Decides conditions, as far as constants and classes do."""

    def truth(self, test: ast.expr, state: State) -> bool | None:
        """Whether a condition holds; None where it depends."""
        match test:
            case ast.UnaryOp(op=ast.Not()):
                inner = self.truth(test.operand, state)
                return None if inner is None else not inner
            case ast.BoolOp():
                truths = [self.truth(item, state) for item in test.values]
                decisive = isinstance(test.op, ast.Or)
                if decisive in truths:
                    return decisive
                return None if None in truths else not decisive
            case ast.Constant() | ast.Name() | ast.Attribute():
                if is_type_checking(test):
                    return False
                truths = [constant(item) for item in self.evaluate(test, state)]
                return truths[0] if truths and all(item is truths[0] for item in truths) else None
            case ast.Compare(ops=[ast.Is() | ast.IsNot() | ast.Eq() | ast.NotEq() as operator]):
                same = self.equal(test.left, test.comparators[0], state)
                if same is None or isinstance(operator, ast.Is | ast.Eq):
                    return same
                return not same
            case ast.Call(func=ast.Name(id="isinstance"), args=[subject, classes]):
                return self.is_instance(self.evaluate(subject, state), classes, state)
            case _:
                return None

    def equal(self, left: ast.expr, right: ast.expr, state: State) -> bool | None:
        """Whether two simple expressions are the same constant, or one of them surely is none."""
        if not isinstance(left, ast.Name | ast.Constant | ast.Attribute):
            return None
        if not isinstance(right, ast.Constant):
            return None
        held = list(self.evaluate(left, state))
        wanted = Constant(type(right.value).__name__, right.value)
        if not held:
            return None
        if all(isinstance(item, Constant) for item in held):
            if wanted not in held:
                return False
            return True if len(held) == 1 else None
        if right.value is None and all(isinstance(item, Made) or item == FRESH for item in held):
            return False
        return None

    def is_instance(self, subjects: Value, classes: ast.expr, state: State) -> bool | None:
        """Whether objects that the code makes are of a class."""
        made = [item.of for item in subjects if isinstance(item, Made) and item.of is not None]
        if len(made) != len(subjects) or not made:
            return None
        wanted = [self.class_of(item) for item in self.evaluate(classes, state)]
        if not wanted or None in wanted:
            return None
        targets = frozenset(item for item in wanted if item is not None)
        hierarchy = self.world.syntax.index.hierarchy
        verdicts = {item in targets or hierarchy.chain(item, targets, {}) is not None for item in made}
        return verdicts.pop() if len(verdicts) == 1 else None

    def narrow(self, test: ast.expr, state: State, *, positive: bool) -> None:
        """Take what a condition says of names into the state of one branch."""
        match test:
            case ast.UnaryOp(op=ast.Not()):
                self.narrow(test.operand, state, positive=not positive)
            case ast.BoolOp(op=ast.And()) if positive:
                for item in test.values:
                    self.narrow(item, state, positive=True)
            case ast.BoolOp(op=ast.Or()) if not positive:
                for item in test.values:
                    self.narrow(item, state, positive=False)
            case ast.Compare(
                left=ast.Name(id=name), ops=[ast.Is() | ast.IsNot() as operator], comparators=[ast.Constant(value=None)]
            ):
                is_none = positive is isinstance(operator, ast.Is)
                none = Constant("NoneType", None)
                held = self.name(name, state)
                kept = {i: t for i, t in held.items() if i != none}
                self.bind_name(name, value(none) if is_none else kept, state)
            case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), classes]) if positive:
                wanted = list(self.evaluate(classes, state))
                wanted += [item for each in wanted for held in state.parts.get(each, {}).values() for item in held]
                named = [item for item in wanted if isinstance(item, Outside)]
                if named and all(item.name in _PLAIN_CLASSES for item in named) and len(named) >= len(wanted) - 1:
                    self.bind_name(name, value(NUMBER), state)
            case _:
                pass

    def widened(self, before: State, after: State) -> State:
        """``after`` without what a test said of names that it held ``before``."""
        names = before.names.get(self.frame.key, {})
        mine = after.names.get(self.frame.key, {})
        for name, held in names.items():
            if mine.get(name) in (value(Constant("NoneType", None)), value(NUMBER)):
                after.bind(self.frame.key, name, held)
        return after
