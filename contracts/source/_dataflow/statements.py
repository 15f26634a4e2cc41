"""Statements, one after another, on every path."""

from __future__ import annotations

import abc
import ast
from collections.abc import Sequence

from contracts.source._dataflow.conditions import Conditions
from contracts.source._dataflow.state import State, forget, merge
from contracts.source._dataflow.values import (
    FRESH,
    NOTHING,
    NUMBER,
    Constant,
    Input,
    Made,
    Outside,
    Step,
    Text,
    Value,
    extend,
    join,
    value,
)
from contracts.source._names import absolute

_MOST_ROUNDS = 4  # of a loop, until what its names hold stays as it is


class Statements(Conditions, abc.ABC):
    """Runs statements."""

    def block(self, statements: Sequence[ast.stmt], state: State | None) -> State | None:
        """Run statements; None where control never comes to their end."""
        for statement in statements:
            if state is None:
                return None
            self.tick()
            state = self.statement(statement, state)
            if state is not None and self.frame.raising:
                self.frame.raising[-1].append(state.copy())
        return state

    def statement(self, node: ast.stmt, state: State) -> State | None:
        """Run one statement."""
        match node:
            case ast.Expr():
                self.perform(node.value, state)
            case ast.Assign():
                new = self.evaluate(node.value, state)
                for target in node.targets:
                    self.bind(target, new, state, Text("{}", node.value))
            case ast.AnnAssign():
                if node.value is not None:
                    self.bind(node.target, self.evaluate(node.value, state), state, Text("{}", node.value))
            case ast.AugAssign():
                self.augment(node, state)
            case ast.Return():
                returned = self.evaluate(node.value, state) if node.value is not None else NOTHING
                self.frame.returned.append(returned)
                self.frame.ends.append(state)
                return None
            case ast.If():
                return self.if_(node, state)
            case ast.For() | ast.AsyncFor() | ast.While():
                return self.loop(node, state)
            case ast.With() | ast.AsyncWith():
                return self.with_(node, state)
            case ast.Try() | ast.TryStar():
                return self.try_(node, state)
            case ast.Match():
                return self.match(node, state)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.bind_name(node.name, value(self.nested(node, state)), state)
            case _:
                return self.other_statement(node, state)
        return state

    def other_statement(self, node: ast.stmt, state: State) -> State | None:
        """The rarer statements."""
        match node:
            case ast.Raise():
                for part in (node.exc, node.cause):
                    if part is not None:
                        self.perform(part, state)
                return None
            case ast.Assert():
                self.perform(node.test, state)
                self.narrow(node.test, state, positive=True)
            case ast.Break() | ast.Continue():
                stack = self.frame.leaving if isinstance(node, ast.Break) else self.frame.repeating
                if stack:
                    stack[-1].append(state)
                return None
            case ast.Delete():
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        state.unbind(self.frame.key, {target.id})
                    elif isinstance(target, ast.Subscript):
                        for item in self.evaluate(target.value, state):
                            if isinstance(item, Input | Made):
                                state.shuffle(item)
            case ast.Nonlocal() | ast.Global():
                self.frame.outer_names.update(node.names)
            case ast.Import():
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    module = alias.name if alias.asname else name
                    self.bind_name(name, value(*self.world.imported(module, None)), state)
            case ast.ImportFrom():
                file = self.world.syntax.file(self.frame.module)
                package = file.module if file.is_package else file.module.rpartition(".")[0]
                source = absolute(node, package)
                for alias in node.names:
                    imported = self.world.imported(source, alias.name)
                    self.bind_name(alias.asname or alias.name, value(*imported), state)
            case _:
                pass
        return state

    def augment(self, node: ast.AugAssign, state: State) -> None:
        """``x += y``: writes into a tensor, and binds the name of anything else anew."""
        added = self.evaluate(node.value, state)
        target = node.target
        if isinstance(target, ast.Subscript):
            self.evaluate(target.slice, state)
            owners = self.evaluate(target.value, state)
            for item in owners:
                if isinstance(item, Made):
                    self.augment_value(self.evaluate(target, state), node, added, state)
            inputs = {item: trail for item, trail in owners.items() if isinstance(item, Input)}
            for item, trail in inputs.items():
                if self.nature(item).holds is not None and self.nature(item).tensor is False:
                    self.augment_value({item.reach("[]"): trail}, node, added, state)
                elif self.may_be_tensor(item):
                    self.write(item, trail, node, self.augmented_text(node))
            return
        held = self.evaluate(target, state)
        result = self.augment_value(held, node, added, state)
        if isinstance(target, ast.Name):
            self.bind_name(target.id, result, state)

    def augment_value(self, held: Value, node: ast.AugAssign, added: Value, state: State) -> Value:
        """What a value is after ``+=`` or the like."""
        kept: list[Value] = []
        for place, (item, trail) in enumerate(held.items()):
            if isinstance(item, Input):
                nature = self.nature(item)
                if self.frame.kernel:
                    kept.append({item: trail})
                elif isinstance(node.op, ast.MatMult) or nature.number:
                    kept.append(value(FRESH if nature.tensor else NUMBER))
                elif self.may_be_tensor(item):
                    self.write(item, trail, node, self.augmented_text(node))
                    kept.append({item: trail})
                elif nature.holds is not None:
                    state.append(item, self.elements(added, state, keys=False))
                    kept.append({item: trail})
            elif isinstance(item, Made):
                more = self.elements(added, state, keys=False)
                if more and item.kind != "tuple":
                    self.extend_container(item, added, state)
                    kept.append(value(item))
                elif more:
                    made = Made((*self.site(node), "sum", place), "tuple")
                    state.parts[made] = {"[]": join(state.elements(item), more)}
                    kept.append(value(made))
                else:
                    kept.append(value(item))
            elif isinstance(item, Constant):
                kept.append(value(NUMBER) if isinstance(item.value, int | float) else NOTHING)
            else:
                kept.append(value(item))
        return join(*kept)

    def augmented_text(self, node: ast.AugAssign) -> Text:
        return Text(f"{{}} {_OPERATORS[type(node.op)]}= ...", node.target)

    def with_(self, node: ast.With | ast.AsyncWith, state: State) -> State | None:
        suppresses = False
        for item in node.items:
            entered = self.evaluate(item.context_expr, state)
            if isinstance(item.context_expr, ast.Call):
                suppresses |= Outside("contextlib.suppress") in self.evaluate(item.context_expr.func, state)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, self.entered(entered, state), state, Text("{}", item.context_expr))
        if not suppresses:
            return self.block(node.body, state)
        end, partial = self.attempt(node.body, state)
        return merge([end, partial])

    def attempt(self, statements: Sequence[ast.stmt], state: State) -> tuple[State | None, State]:
        """Run statements; the second result is what may hold where an exception leaves them."""
        raising: list[State] = [state.copy()]
        self.frame.raising.append(raising)
        end = self.block(statements, state)
        self.frame.raising.pop()
        partial = merge(raising)
        assert partial is not None
        if self.frame.raising:
            self.frame.raising[-1] += raising
        return end, partial

    def entered(self, entered: Value, state: State) -> Value:
        """What ``with ... as`` binds: what a generator yields, or else the object itself."""
        generators: Value = {i: t for i, t in entered.items() if isinstance(i, Made) and i.kind == "list"}
        rest = {i: t for i, t in entered.items() if i not in generators}
        return join(rest, self.elements(generators, state))

    def if_(self, node: ast.If, state: State) -> State | None:
        self.perform(node.test, state)
        truth = self.truth(node.test, state)
        ends: list[State | None] = []
        for body, positive in ((node.body, True), (node.orelse, False)):
            if truth is not (not positive):
                branch = state.copy()
                self.narrow(node.test, branch, positive=positive)
                ends.append(self.block(body, branch))
        return merge(ends)

    def loop(self, node: ast.For | ast.AsyncFor | ast.While, state: State) -> State | None:
        leaving: list[State] = []
        self.frame.leaving.append(leaving)
        first = state.copy()
        for _ in range(_MOST_ROUNDS):
            forget(state, first, join(*self.frame.yielded))  # or the next round would not make it anew
            before = state.copy()
            repeating: list[State] = []
            self.frame.repeating.append(repeating)
            if isinstance(node, ast.While):
                self.perform(node.test, state)
                body = state.copy()
                self.narrow(node.test, body, positive=True)
            else:
                iterated = self.elements(self.evaluate(node.iter, state), state)
                body = state.copy()
                self.bind(node.target, iterated, body, Text("an element of {}", node.iter))
            end = self.block(node.body, body)
            self.frame.repeating.pop()
            merged = merge([state, end, *repeating])
            assert merged is not None
            state = merged
            if state.same_as(before):
                break
        self.frame.leaving.pop()
        after = None if isinstance(node, ast.While) and self.truth(node.test, state) is True else state
        return merge([self.block(node.orelse, after), *leaving])

    def try_(self, node: ast.Try | ast.TryStar, state: State) -> State | None:
        after, partial = self.attempt(node.body, state)
        ends: list[State | None] = [self.block(node.orelse, after)]
        for handler in node.handlers:
            inside = partial.copy()
            if handler.name:
                self.bind_name(handler.name, NOTHING, inside)
            ends.append(self.block(handler.body, inside))
        end = merge(ends)
        if not node.finalbody:
            return end
        # Also on the way out of the function, by an exception or by a return.
        self.block(node.finalbody, merge([partial, end]))
        return self.block(node.finalbody, end)

    def match(self, node: ast.Match, state: State) -> State | None:
        subject = self.evaluate(node.subject, state)
        ends: list[State | None] = [state]
        for case in node.cases:
            branch = state.copy()
            self.match_pattern(case.pattern, subject, branch)
            if case.guard is not None:
                self.perform(case.guard, branch)
            ends.append(self.block(case.body, branch))
        return merge(ends)

    def match_pattern(self, pattern: ast.pattern, subject: Value, state: State) -> None:
        """Bind the names of a pattern."""
        match pattern:
            case ast.MatchAs(pattern=inner, name=name):
                if inner is not None:
                    self.match_pattern(inner, subject, state)
                if name is not None:
                    step = Step(self.frame.module, pattern.lineno, Text("case {}", pattern))
                    self.bind_name(name, extend(subject, step), state)
            case ast.MatchOr(patterns):
                for option in patterns:
                    self.match_pattern(option, subject, state)
            case ast.MatchSequence(patterns):
                starred = any(isinstance(item, ast.MatchStar) for item in patterns)
                for place, item in enumerate(patterns):
                    part = self.unpack(subject, place, len(patterns), state, starred=starred)
                    if isinstance(item, ast.MatchStar):
                        if item.name is not None:
                            self.bind_name(item.name, self.container_of(part, "list", item, state), state)
                    else:
                        self.match_pattern(item, part, state)
            case ast.MatchMapping(patterns=patterns, rest=rest):
                held = self.elements(subject, state, keys=False)
                for item in patterns:
                    self.match_pattern(item, held, state)
                if rest is not None:
                    self.bind_name(rest, self.container_of(held, "dict", pattern, state), state)
            case ast.MatchClass(patterns=patterns, kwd_attrs=names, kwd_patterns=named):
                for place, item in enumerate(patterns):
                    self.match_pattern(item, self.matched(subject, place, item, state), state)
                for name, item in zip(names, named, strict=True):
                    held = self.attribute(subject, name, self.world.stand_in(item, name), state)
                    self.match_pattern(item, held, state)
            case _:
                pass

    def matched(self, subject: Value, place: int, pattern: ast.pattern, state: State) -> Value:
        """What a class pattern matches at a position: a field, or the object itself (``Tensor(x)``)."""
        found: list[Value] = []
        for item, trail in subject.items():
            of = self.class_of(item)
            fields = self.world.fields(of) if of is not None else None
            if fields is not None and place < len(fields):
                name = fields[place]
                found.append(self.attribute({item: trail}, name, self.world.stand_in(pattern, name), state))
            else:
                found.append({item: trail})
        return join(*found)


_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.MatMult: "@",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
}
