"""Semantic mutations of a module's source, one at a time: what a person could get wrong in a backend.

Left alone: docstrings, annotations, imports, ``__all__``, decorators, and what stands inside ``raise``, which is the
text of a message; and what could only be an error on the spot, such as a name that has no value yet.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Mutation", "mutated", "mutations"]

_COMPARE: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_NAMES = {
    # What is easily taken for something else in this field.
    "num_local_experts": "num_experts",
    "num_experts": "num_local_experts",
    "num_experts_per_rank": "rank",
    "rank": "world_size",
    "world_size": "rank",
    "ep_rank": "ep_size",
    "ep_size": "ep_rank",
    "topk_ids": "got_ids",
    "got_ids": "topk_ids",
    "sent_ids": "topk_ids",
    "ids": "topk_ids",
    "wide_ids": "topk_ids",
    "topk_weights": "got_weights",
    "weights": "topk_weights",
    "rows": "a1",
    "hidden_size": "top_k",
    "capacity": "tokens",
    "most": "num_experts",
    "float32": "bfloat16",
    "bfloat16": "float32",
    "int32": "int64",
    "int64": "int32",
    "Standard": "BatchedExperts",
    "BatchedExperts": "Standard",
    "global_to_physical": "physical_to_global",
    "any": "all",
    "amax": "amin",
    "max": "min",
    "is_token_in_rank": "per_rank",
}
_CASTS = {"clone", "contiguous", "to", "float", "clamp", "copy"}
"""Methods without which the receiver is used as it is."""
_IN_PLACE = {"masked_fill", "clamp", "masked_fill_", "clamp_"}


@dataclass(frozen=True)
class Mutation:
    """One change: where, of which kind, and what it makes of what stood there."""

    module: str
    index: int
    operator: str
    lines: range
    """Those of which at least one has to run for the change to do anything."""
    local: bool
    """Whether it is inside a function; otherwise it takes effect on import."""
    text: str

    @property
    def label(self) -> str:
        """File, line, number among the module's mutations, kind and change."""
        name = self.module.rpartition(".")[2]
        return f"{name}.py:{self.lines.start} [{self.index}] {self.operator}: {self.text}"


def mutations(module: str, source: str) -> list[Mutation]:
    """Every mutation of a module's source, in the order of its text."""
    found = []
    for index, change in enumerate(_Candidates(ast.parse(source)).all()):
        node = change.node
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        text = f"{change.before} -> {change.after}"
        found.append(Mutation(module, index, change.operator, lines, change.local, text))
    return found


def mutated(source: str, mutation: Mutation) -> ast.Module:
    """The source's tree with one mutation made."""
    tree = ast.parse(source)
    for index, change in enumerate(_Candidates(tree).all()):
        if index == mutation.index:
            change.apply()
            return ast.fix_missing_locations(tree)
    raise ValueError(f"{mutation.module} has no mutation {mutation.index}")


@dataclass(frozen=True)
class _Change:
    operator: str
    node: Any
    before: str
    after: str
    apply: Callable[[], None]
    local: bool


def _show(node: ast.AST, width: int = 70) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


class _Candidates:
    """Walks a tree and gives what can be changed in it."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.bound: dict[str, int] = {}
        """The first line on which a name of the function has a value."""
        self.local = False

    def all(self) -> Iterator[_Change]:
        yield from self._body(self.tree, "body")

    def _set(self, operator: str, owner: Any, name: str, new: Any, at: int | None = None) -> _Change:
        """Put ``new`` in the place of a field of ``owner``, or of the item of that field."""
        old = getattr(owner, name) if at is None else getattr(owner, name)[at]

        def apply() -> None:
            if at is None:
                setattr(owner, name, new)
            else:
                getattr(owner, name)[at] = new

        node = old if hasattr(old, "lineno") else owner
        return _Change(operator, node, _show(old), _show(new), apply, self.local)

    def _self(self, operator: str, node: Any, change: Callable[[Any], None]) -> _Change:
        """Change a node itself."""
        copy = ast.parse(ast.unparse(node), mode="eval").body
        change(copy)
        return _Change(operator, node, _show(node), _show(copy), lambda: change(node), self.local)

    # Statements.

    def _body(self, owner: Any, name: str) -> Iterator[_Change]:
        body = getattr(owner, name)
        for at, statement in enumerate(body):
            if isinstance(statement, ast.FunctionDef):
                yield from self._function(statement)
            elif isinstance(statement, ast.ClassDef):
                yield from self._body(statement, "body")
            elif not _is_left_alone(statement):
                yield from self._statement(owner, name, at, statement)

    def _function(self, function: ast.FunctionDef) -> Iterator[_Change]:
        outer = self.bound, self.local
        arguments = function.args
        yield from self._children(arguments, "defaults")
        yield from self._children(arguments, "kw_defaults")
        names = {one.arg: 0 for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        stores = [one for one in ast.walk(function) if isinstance(one, ast.Name) and _stores(one)]
        lines = {one.id: one.lineno for one in sorted(stores, key=lambda one: -one.lineno)}
        self.bound, self.local = self.bound | lines | names, True
        gives_nothing = isinstance(function.returns, ast.Constant) and function.returns.value is None
        first = next((at for at, one in enumerate(function.body) if not _is_left_alone(one)), None)
        if gives_nothing and first is not None and function.name != "__init__":
            yield self._set("early return", function, "body", ast.Return(None), first)
        yield from self._body(function, "body")
        self.bound, self.local = outer

    def _statement(self, owner: Any, name: str, at: int, statement: Any) -> Iterator[_Change]:
        body = getattr(owner, name)
        following = body[at + 1] if at + 1 < len(body) else None
        if self.local and self._can_be_left_out(owner, statement):
            yield self._set("statement deleted", owner, name, ast.Pass(), at)
        if isinstance(statement, ast.Raise):
            return
        if isinstance(statement, ast.Expr) and isinstance(following, (ast.Expr, ast.Return)) and self.local:
            yield self._swap(body, at)
        if isinstance(statement, ast.Return) and statement.value is not None:
            yield from self._returned(statement)
        if isinstance(statement, ast.If) and not isinstance(statement.test, (ast.Compare, ast.UnaryOp)):
            negated = ast.UnaryOp(ast.Not(), statement.test)
            yield self._set("condition negated", statement, "test", negated)
        if isinstance(statement, ast.AugAssign) and type(statement.op) in _ARITHMETIC:
            new = _ARITHMETIC[type(statement.op)]()
            yield _Change(
                "arithmetic", statement, _show(statement), f"the same with {type(new).__name__}",
                lambda: setattr(statement, "op", new), self.local,
            )  # fmt: skip
        for field in statement._fields:
            if field in {"annotation", "targets", "target"}:
                continue
            value = getattr(statement, field)
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield from self._body(statement, field)
            else:
                yield from self._children(statement, field)

    def _can_be_left_out(self, owner: Any, statement: Any) -> bool:
        """Whether the names that come after it have values without it."""
        if isinstance(statement, ast.Raise):
            return not isinstance(owner, ast.If) or len(owner.body) > 1  # or else the condition goes with it
        if not isinstance(statement, ast.Assign):
            return isinstance(statement, (ast.Expr, ast.AugAssign, ast.Delete, ast.If))
        names = [one for one in ast.walk(statement.targets[0]) if isinstance(one, ast.Name) and _stores(one)]
        return all(self.bound[one.id] < statement.lineno for one in names)

    def _swap(self, body: list[Any], at: int) -> _Change:
        one, other = body[at], body[at + 1]

        def apply() -> None:
            body[at], body[at + 1] = other, one

        return _Change("order swapped", one, _show(one), f"after {_show(other)}", apply, self.local)

    def _returned(self, statement: ast.Return) -> Iterator[_Change]:
        if isinstance(statement.value, ast.Tuple):
            for at, item in enumerate(statement.value.elts):
                if not _is_none(item):
                    yield self._set("returned item", statement.value, "elts", ast.Constant(None), at)
        elif not _is_none(statement.value):
            yield self._set("returned value", statement, "value", ast.Constant(None))

    # Expressions.

    def _children(self, owner: Any, field: str) -> Iterator[_Change]:
        value = getattr(owner, field)
        items = enumerate(value) if isinstance(value, list) else [(None, value)]
        for at, item in items:
            if isinstance(item, ast.keyword):
                yield from self._children(item, "value")
            elif isinstance(item, ast.comprehension):
                yield from self._children(item, "iter")
                yield from self._children(item, "ifs")
            elif isinstance(item, ast.expr) and not isinstance(item, ast.JoinedStr):
                yield from self._expression(owner, field, at, item)
                for name in item._fields:
                    yield from self._children(item, name)

    def _expression(self, owner: Any, field: str, at: int | None, node: Any) -> Iterator[_Change]:
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
            yield self._self("comparison", node, lambda n: n.ops.__setitem__(0, _COMPARE[type(n.ops[0])]()))
        elif isinstance(node, ast.BinOp):
            if type(node.op) in _ARITHMETIC:
                yield self._self("arithmetic", node, lambda n: setattr(n, "op", _ARITHMETIC[type(n.op)]()))
        elif isinstance(node, ast.UnaryOp):
            yield self._set("sign or negation dropped", owner, field, node.operand, at)
        elif isinstance(node, ast.BoolOp):
            other = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield self._self("and/or", node, lambda n: setattr(n, "op", other()))
        elif isinstance(node, ast.IfExp):
            yield self._set("only this arm", owner, field, node.body, at)
            yield self._set("only this arm", owner, field, node.orelse, at)
        elif isinstance(node, ast.Constant):
            for new in _other_constants(node.value):
                yield self._set("constant", owner, field, ast.Constant(new), at)
        elif isinstance(node, ast.Name) and self.bound.get(_NAMES.get(node.id, ""), node.lineno) < node.lineno:
            yield self._set("another name", owner, field, ast.Name(_NAMES[node.id], ast.Load()), at)
        elif isinstance(node, ast.Attribute) and not _stores(node) and node.attr in _NAMES:
            yield self._self("another attribute", node, lambda n: setattr(n, "attr", _NAMES[n.attr]))
        elif isinstance(node, ast.Slice) and (node.upper or node.lower):
            yield self._set("whole slice", owner, field, ast.Slice(), at)
        elif isinstance(node, ast.Call):
            yield from self._call(owner, field, at, node)

    def _call(self, owner: Any, field: str, at: int | None, node: ast.Call) -> Iterator[_Change]:
        count = len(node.args)
        if isinstance(node.func, ast.Name) and node.func.id in {"isinstance", "getattr", "super", "type"}:
            return
        if count > 1:
            yield self._self("argument dropped", node, lambda n: n.args.pop())
        # What a message begins with is not data.
        first = 1 if count and isinstance(node.args[0], ast.Name) and node.args[0].id == "where" else 0
        for index in range(first, count - 1):
            yield self._self("arguments swapped", node, lambda n, i=index: _exchange(n.args, i))
        for index in range(len(node.keywords)):
            yield self._self("keyword dropped", node, lambda n, i=index: n.keywords.pop(i))
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in _CASTS:
                yield self._set("method call dropped", owner, field, node.func.value, at)
            if node.func.attr in _IN_PLACE:
                other = node.func.attr[:-1] if node.func.attr.endswith("_") else f"{node.func.attr}_"
                yield self._self("in place or not", node, lambda n: setattr(n.func, "attr", other))


def _exchange(items: list[Any], at: int) -> None:
    items[at], items[at + 1] = items[at + 1], items[at]


def _is_left_alone(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass, ast.Assert)):
        return True
    if isinstance(statement, ast.Assign):
        return isinstance(statement.targets[0], ast.Name) and statement.targets[0].id == "__all__"
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _stores(node: Any) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _other_constants(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1] if value != 1 else [0, 2]
    if isinstance(value, float):
        return [value + 1.0]
    return []
