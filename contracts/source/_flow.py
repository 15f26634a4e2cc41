"""What functions do to what they are given, statement by statement, through every call that can be followed."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from contracts.source._calls import Arguments, text_of
from contracts.source._expressions import Expressions, Frame
from contracts.source._methods import Definition
from contracts.source._names import absolute, is_type_checking
from contracts.source._resolve import ClassValue
from contracts.source._types import Type
from contracts.source._values import (
    FRESH,
    NOTHING,
    NUMBER,
    Bound,
    Constant,
    Input,
    Item,
    Made,
    Outside,
    Routine,
    State,
    Step,
    Trail,
    Value,
    clearer,
    constant,
    extend,
    join,
    merge,
    reaches_input,
    value,
)
from contracts.source._world import World

_DEEPEST = 12  # calls, one inside the other
_MOST_STEPS = 200_000
_MOST_ROUNDS = 4  # of a loop, until what its names hold stays as it is
_POINTER_WRITERS = ("triton.language.store", "triton.language.atomic_")


class TooMuch(Exception):
    """A method that takes too many steps to follow."""


@dataclass(frozen=True, slots=True)
class Write:
    """A statement that writes into a parameter: where it stands, what it says, and by which steps it got there."""

    written: Input
    module: str
    line: int
    offset: int
    text: str
    trail: Trail


class Flow(Expressions):
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
        self.writes: dict[tuple[str, str, int, int], Write] = {}
        self.consulted: set[str] = set()
        self.frames: dict[int, Frame] = {}
        self.too_deep = ""
        self._frame_keys: dict[tuple[int, int, int], int] = {}
        self._running: list[Routine] = []
        self._out_of_sight: dict[ast.AST, ast.expr] = {}
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
            raise TooMuch

    # What the parts below need

    def site(self, node: ast.AST) -> tuple[int, int]:
        """A name for what a place of the code makes in the current call."""
        return self.frame.key, id(node)

    def write(self, item: Item, trail: Trail, node: ast.AST, text: str) -> None:
        """Note that an operation writes into an item."""
        if self._quiet or not isinstance(item, Input) or item.parameter in self.untracked:
            return
        if self.nature(item).number:
            return
        line, offset = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        key = (item.parameter, self.frame.module, line, offset)
        known = self.writes.get(key)
        if known is None or clearer(trail, known.trail):
            self.writes[key] = Write(item, self.frame.module, line, offset, text, trail)

    def continue_as(self, state: State, ends: Sequence[State | None]) -> None:
        """Let ``state`` be what holds after any of some paths."""
        merged = merge(ends)
        if merged is not None:
            state.names, state.parts = merged.names, merged.parts

    def escape(self, given: Value, state: State) -> None:
        """Follow functions that code out of sight may call, with arguments of which nothing is known."""
        pending, seen = list(given), set(given)
        while pending:
            item = pending.pop()
            routine = item.routine if isinstance(item, Bound) else item
            if isinstance(routine, Routine) and routine.frame is not None and routine not in self._running:
                self.run(routine, Arguments(), None, self._call_of(routine.node), state)
            for held in state.parts.get(item, {}).values() if isinstance(item, Made) else ():
                pending += [inner for inner in held if inner not in seen]
                seen |= held.keys()

    def _call_of(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> ast.expr:
        """An expression that stands for a call out of sight; one for each function, since its identity counts."""
        if node not in self._out_of_sight:
            name = ast.Name("it" if isinstance(node, ast.Lambda) else node.name)
            self._out_of_sight[node] = ast.copy_location(name, node)
        return self._out_of_sight[node]

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
            self.consulted.add(getattr(routine.node, "name", ""))
        function = routine.node
        annotation = None if isinstance(function, ast.Lambda) else function.returns
        closes_over = routine.frame is not None
        given = join(*arguments.all())
        if not closes_over and not reaches_input(given, state, self.is_irrelevant):
            if annotation is not None:
                return self.described(annotation, routine)
            if routine.module != self.frame.module:
                return NOTHING
        if routine in self._running:
            return {item: trail for item, trail in given.items() if isinstance(item, Input)}
        if len(self._running) > _DEEPEST:
            self.too_deep = self.too_deep or text_of(node)
            return NOTHING
        names = self.parameters(routine, arguments, node, state)
        allowed = self.promised(routine, receiver)
        if allowed is None:
            return self.enter(routine, names, receiver, node, state)
        for name in sorted(allowed):
            self.write_all(names.get(name, NOTHING), node, f"{text_of(_head(node))}(), which writes its {name},", state)
        self._quiet += 1
        try:
            return self.enter(routine, names, receiver, node, state)
        finally:
            self._quiet -= 1

    def is_irrelevant(self, item: Input) -> bool:
        """Whether nothing is lost if an input is not followed."""
        return item.parameter in self.untracked or self.nature(item).number

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
        head = text_of(_head(node))
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
                if default is not None:
                    held = join(held, self.default(default, routine))
            step = Step(self.frame.module, node.lineno, f"{item.arg} of {head}()")
            names[item.arg] = extend(held, step)
            if not held and item.annotation is not None:
                names[item.arg] = self.described(item.annotation, routine)
        if declared.vararg is not None:
            made = Made((*self.site(node), "rest"), "tuple")
            state.parts[made] = {f"[{place}]": held for place, held in enumerate(taken)}
            if arguments.rest:
                state.parts[made]["[]"] = arguments.rest
            names[declared.vararg.arg] = value(made)
        if declared.kwarg is not None:
            made = Made((*self.site(node), "named rest"), "dict")
            left = {name: held for name, held in arguments.named.items() if name not in names}
            state.parts[made] = {f"['{name}']": held for name, held in left.items()}
            if arguments.named_rest:
                state.parts[made]["[]"] = arguments.named_rest
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
        """Run a function's body; ``state`` becomes what holds when it is done."""
        place = (self.frame.key, id(node), id(routine.node))
        key = self._frame_keys.setdefault(place, len(self._frame_keys))
        before, frame = self.frame, Frame(key, routine.module, routine.owner, routine.frame, receiver)
        frame.kernel = before.kernel or self.is_kernel(routine)
        self.frames[key] = frame
        state.names[key] = names
        self.frame = frame
        self._running.append(routine)
        try:
            if isinstance(routine.node, ast.Lambda):
                return self.evaluate(routine.node.body, state)
            end = self.block(routine.node.body, state.copy())
        finally:
            self._running.pop()
            self.frame = before
        self.continue_as(state, [*frame.ends, end])
        if not self.world.has_nested(routine.node):
            state.names.pop(key, None)
        if frame.yielded:
            made = Made((before.key, id(node), "generator"), "list")
            state.parts[made] = {"[]": join(*frame.yielded)}
            return value(made)
        result = join(*frame.returned)
        if not result and routine.node.returns is not None:
            return self.described(routine.node.returns, routine)
        return result

    def is_kernel(self, routine: Routine) -> bool:
        """Whether a function is Triton code."""
        decorators = getattr(routine.node, "decorator_list", ())
        return any("triton" in ast.unparse(decorator).partition("(")[0] for decorator in decorators)

    def outside(self, name: str, arguments: Arguments, node: ast.Call, state: State) -> Value:
        """What a function from outside of the tree gives; Triton's write through pointers."""
        if self.frame.kernel and name.startswith(_POINTER_WRITERS):
            self.write_all(arguments.first(0, "pointer"), node, f"{text_of(node.func)}()", state)
            return NOTHING
        return super().outside(name, arguments, node, state)

    # Conditions

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
                truths = [constant(item) for item in self.evaluate(test, state) if item != NUMBER]
                return truths[0] if truths and all(item is truths[0] for item in truths) else None
            case ast.Compare(ops=[ast.Is() | ast.IsNot() | ast.Eq() | ast.NotEq() as operator]):
                same = self.equal(test.left, test.comparators[0], state)
                if same is None or isinstance(operator, ast.Is | ast.Eq):
                    return same
                return not same
            case ast.Call(func=ast.Name(id="isinstance"), args=[subject, classes]):
                return self.is_instance(self.evaluate(subject, state), self.evaluate(classes, state), state)
            case _:
                return None

    def equal(self, left: ast.expr, right: ast.expr, state: State) -> bool | None:
        """Whether two simple expressions are the same constant, or one of them surely is none."""
        if not isinstance(left, ast.Name | ast.Constant | ast.Attribute):
            return None
        if not isinstance(right, ast.Constant):
            return None
        held = [item for item in self.evaluate(left, state) if item != NUMBER]
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

    def is_instance(self, subjects: Value, classes: Value, state: State) -> bool | None:
        """Whether objects that the code makes are of a class."""
        wanted = [self.class_of(item) for item in classes]
        made = [item.of for item in subjects if isinstance(item, Made) and item.of is not None]
        if len(made) != len(subjects) or not made or not wanted or None in wanted:
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
                wanted += [item for given in (state.parts.get(w, {}) for w in wanted) for v in given.values() for item in v]
                named = [item for item in wanted if isinstance(item, Outside)]
                if named and all(item.name in _PLAIN_CLASSES for item in named) and len(named) >= len(wanted) - 1:
                    self.bind_name(name, value(NUMBER), state)
            case _:
                pass

    def widened(self, before: State, after: State) -> State:
        """``after`` without what a test said of names that it held ``before``."""
        names = before.names.get(self.frame.key, {})
        mine = after.names.setdefault(self.frame.key, {})
        for name, held in names.items():
            if mine.get(name) in (value(Constant("NoneType", None)), value(NUMBER)):
                mine[name] = held
        return after

    # Statements

    def block(self, statements: Sequence[ast.stmt], state: State | None) -> State | None:
        """Run statements; None where control never comes to their end."""
        for statement in statements:
            if state is None:
                return None
            self.tick()
            state = self.statement(statement, state)
        return state

    def statement(self, node: ast.stmt, state: State) -> State | None:
        """Run one statement."""
        match node:
            case ast.Expr():
                self.evaluate(node.value, state)
            case ast.Assign():
                new = self.evaluate(node.value, state)
                for target in node.targets:
                    self.bind(target, new, state, text_of(node.value))
            case ast.AnnAssign():
                if node.value is not None:
                    self.bind(node.target, self.evaluate(node.value, state), state, text_of(node.value))
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
                for item in node.items:
                    entered = self.evaluate(item.context_expr, state)
                    if item.optional_vars is not None:
                        self.bind(item.optional_vars, self.entered(entered, state), state, text_of(item.context_expr))
                return self.block(node.body, state)
            case ast.Try() | ast.TryStar():
                return self.try_(node, state)
            case ast.Match():
                return self.match(node, state)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                routine = Routine(self.frame.module, node, self.frame.key, self.frame.owner)
                self.bind_name(node.name, value(routine), state)
            case _:
                return self.other_statement(node, state)
        return state

    def other_statement(self, node: ast.stmt, state: State) -> State | None:
        """The rarer statements."""
        match node:
            case ast.Raise():
                for part in (node.exc, node.cause):
                    if part is not None:
                        self.evaluate(part, state)
                return None
            case ast.Assert():
                self.evaluate(node.test, state)
                self.narrow(node.test, state, positive=True)
            case ast.Break() | ast.Continue():
                stack = self.frame.leaving if isinstance(node, ast.Break) else self.frame.repeating
                if stack:
                    stack[-1].append(state)
                return None
            case ast.Delete():
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        state.names.get(self.frame.key, {}).pop(target.id, None)
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
        for item, trail in held.items():
            if isinstance(item, Input):
                nature = self.nature(item)
                if self.frame.kernel:
                    kept.append({item: trail})
                elif isinstance(node.op, ast.MatMult) or nature.number:
                    kept.append(value(FRESH if nature.tensor else NUMBER))
                elif self.may_be_tensor(item) or nature.holds is not None:
                    self.write(item, trail, node, self.augmented_text(node))
                    kept.append({item: trail})
            elif isinstance(item, Made):
                more = self.elements(added, state, keys=False)
                if more and item.kind != "tuple":
                    state.set_part(item, "[]", more, surely=False)
                    kept.append(value(item))
                elif more:
                    made = Made((*self.site(node), "sum"), "tuple")
                    state.parts[made] = {"[]": join(state.elements(item), more)}
                    kept.append(value(made))
                else:
                    kept.append(value(item))
            elif isinstance(item, Constant):
                kept.append(value(NUMBER) if isinstance(item.value, int | float) else NOTHING)
            else:
                kept.append(value(item))
        return join(*kept)

    def augmented_text(self, node: ast.AugAssign) -> str:
        return f"{text_of(node.target)} {_OPERATORS[type(node.op)]}= ..."

    def entered(self, entered: Value, state: State) -> Value:
        """What ``with ... as`` binds: what a generator yields, or else the object itself."""
        generators: Value = {i: t for i, t in entered.items() if isinstance(i, Made) and i.kind == "list"}
        rest = {i: t for i, t in entered.items() if i not in generators}
        return join(rest, self.elements(generators, state))

    def if_(self, node: ast.If, state: State) -> State | None:
        self.evaluate(node.test, state)
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
        for _ in range(_MOST_ROUNDS):
            before = state.copy()
            repeating: list[State] = []
            self.frame.repeating.append(repeating)
            if isinstance(node, ast.While):
                self.evaluate(node.test, state)
                body = state.copy()
                self.narrow(node.test, body, positive=True)
            else:
                iterated = self.elements(self.evaluate(node.iter, state), state)
                body = state.copy()
                self.bind(node.target, iterated, body, f"an element of {text_of(node.iter)}")
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
        before = state.copy()
        after = self.block(node.body, state.copy())
        # An exception may leave any prefix of the body done.
        partial = merge([before, after]) or before
        ends: list[State | None] = [self.block(node.orelse, after.copy() if after is not None else None)]
        for handler in node.handlers:
            inside = partial.copy()
            if handler.name:
                self.bind_name(handler.name, NOTHING, inside)
            ends.append(self.block(handler.body, inside))
        end = merge(ends)
        if not node.finalbody:
            return end
        if end is None:
            self.block(node.finalbody, partial.copy())
            return None
        return self.block(node.finalbody, end.copy())

    def match(self, node: ast.Match, state: State) -> State | None:
        subject = self.evaluate(node.subject, state)
        ends: list[State | None] = [state]
        for case in node.cases:
            branch = state.copy()
            for part in ast.walk(case.pattern):
                name = getattr(part, "name", None) or getattr(part, "rest", None)
                if isinstance(part, ast.MatchAs | ast.MatchStar | ast.MatchMapping) and name:
                    whole = part is case.pattern or (isinstance(case.pattern, ast.MatchAs | ast.MatchOr))
                    held = subject if whole else join(subject, self.elements(subject, branch, keys=False))
                    step = Step(self.frame.module, part.lineno, f"case {name}")
                    self.bind_name(name, extend(held, step), branch)
            if case.guard is not None:
                self.evaluate(case.guard, branch)
            ends.append(self.block(case.body, branch))
        return merge(ends)


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
_PLAIN_CLASSES = frozenset({"builtins.int", "builtins.float", "builtins.bool", "builtins.str", "builtins.complex"})


def _head(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


