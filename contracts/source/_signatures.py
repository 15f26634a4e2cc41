"""What an override takes and gives, compared with what the method that it overrides does."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from contracts.source._defaults import Defaults
from contracts.source._methods import EITHER, NAME, NAMED_REST, POSITION, REST, Definition, Methods, Parameter
from contracts.source._names import Names
from contracts.source._resolve import ClassValue
from contracts.source._subtypes import Subtypes, Verdict
from contracts.source._syntax import Syntax
from contracts.source._types import ANY, Named, Type, Types, Variable

_KINDS = {
    "instance": "an instance method",
    "static": "a static method",
    "class": "a class method",
    "property": "a property",
    "attribute": "an attribute",
}


class Difference(NamedTuple):
    """One way in which an override differs: the fact, what the base does, and what to do.

    ``parameter`` is the one that it is about, or empty; ``line`` and ``column`` (from 1) where it stands.
    """

    parameter: str
    line: int
    column: int
    fact: str
    rule: str
    advice: str


class Comparison(NamedTuple):
    """What breaks the base's promise, and what reading cannot tell."""

    differences: list[Difference]
    doubts: list[str]


class Signatures:
    """Compares definitions.

    Args:
        syntax: the trees.
        names: follows the names in them.
        methods: the definitions.
    """

    def __init__(self, syntax: Syntax, names: Names, methods: Methods) -> None:
        self._methods = methods
        self._types = Types(syntax, names)
        self._subtypes = Subtypes(syntax)
        self._defaults = Defaults(names)

    def compare(
        self, base: Definition, override: Definition, subject: ClassValue, *, require_annotations: bool
    ) -> Comparison:
        """Compare an override with the definition that it overrides, as they meet in the class ``subject``."""
        bound = self._types.bindings(subject, base.owner, self._methods.order(subject))
        pair = _Pair(self, base, override, bound, require_annotations)
        doubts = self._decorators(base, override)
        if not doubts:
            pair.run()
        return Comparison(pair.differences, [*doubts, *pair.doubts])

    def type_of(
        self, definition: Definition, annotation: ast.expr | None, bound: Mapping[Variable, Type] | None
    ) -> Type:
        """The type that an annotation of a definition spells."""
        scope = definition.owner if definition.module == definition.owner.module else None
        return self._types.read(annotation, definition.module, scope, bound, definition.declared)

    def accepts(self, wide: Type, narrow: Type) -> Verdict:
        """Whether every ``narrow`` is a ``wide``."""
        return self._subtypes.accepts(wide, narrow)

    def same_default(
        self, one: Definition, default: ast.expr, other: Definition, theirs: ast.expr
    ) -> Verdict:
        """Whether two defaults are the same value."""
        return self._defaults.same(default, one.owner, theirs, other.owner)

    def _decorators(self, base: Definition, override: Definition) -> list[str]:
        """The decorators that are not understood, unless both definitions have the same ones."""
        ours, theirs = override.not_understood, base.not_understood
        same = self._methods.decorators.same
        if len(ours) == len(theirs) and all(
            same(one, override.owner, other, base.owner) for one, other in zip(ours, theirs, strict=True)
        ):
            return []
        return [f"what {_decorator(node)} makes of it" for node in ours] + [
            f"what {_decorator(node)} makes of {_label(base)}" for node in theirs
        ]


class _Pair:
    """One comparison."""

    def __init__(
        self,
        signatures: Signatures,
        base: Definition,
        override: Definition,
        bound: Mapping[Variable, Type],
        require_annotations: bool,
    ) -> None:
        self.signatures = signatures
        self.base = base
        self.override = override
        self.bound = bound
        self.require_annotations = require_annotations
        self.differences: list[Difference] = []
        self.doubts: list[str] = []

    def run(self) -> None:
        base, override = self.base, self.override
        if override.kind == "attribute" and base.kind in {"property", "attribute"}:
            return  # read alike
        called_alike = {base.kind, override.kind} == {"static", "class"}
        if base.kind != override.kind and base.kind != "attribute" and not called_alike:
            advice = (
                "Decorate it with @property." if base.kind == "property" else f"Make it {_KINDS[base.kind]}."
            )
            self.differ(None, f"is {_KINDS[override.kind]}", f"is {_KINDS[base.kind]}", advice)
            return
        if base.kind == "property":
            self.property()
        if override.node is None or base.node is None:
            return
        if base.is_method:
            self.parameters()
        self.result()

    def differ(self, parameter: Parameter | None, fact: str, rule: str, advice: str) -> None:
        own = parameter is not None and self.override.module == self.override.owner.module
        line, column = (
            (parameter.line, parameter.column)
            if own and parameter
            else (
                self.override.line,
                self.override.column,
            )
        )
        self.differences.append(
            Difference(parameter.name if parameter else "", line, column, fact, rule, advice)
        )

    def property(self) -> None:
        if self.base.settable and not self.override.settable:
            self.differ(None, "cannot be set", "can", "Give it a setter.")
        if self.base.deletable and not self.override.deletable:
            self.differ(None, "cannot be deleted", "can", "Give it a deleter.")

    # Parameters

    def parameters(self) -> None:
        theirs, ours = self.base.parameters, self.override.parameters
        matched = dict(self.match(theirs, ours))
        for item in ours:
            taken = any(other is item for other in matched.values())
            required = item.default is None and item.kind not in {REST, NAMED_REST}
            if not taken and required and not _takes_anything(self.base) and not self.renamed(item):
                advice = "Give it a default, or leave it out."
                self.differ(item, f"requires '{item.name}'", f"takes no '{item.name}'", advice)
        unannotated: list[Parameter] = []
        for parameter, item in matched.items():
            self.defaults(parameter, item)
            if item.annotation is None:
                if parameter.annotation is not None and item.kind == parameter.kind:
                    unannotated.append(item)
            else:
                self.parameter_type(parameter, item)
        if unannotated and self.require_annotations:
            listed = ", ".join(f"'{item.name}'" for item in unannotated)
            self.differ(None, f"does not annotate {listed}", "does", "Annotate what the base annotates.")

    def match(
        self, theirs: Sequence[Parameter], ours: Sequence[Parameter]
    ) -> Iterator[tuple[Parameter, Parameter]]:
        """Pair each of the base's parameters with the override's that takes it."""
        positional = [item for item in ours if item.kind in {POSITION, EITHER}]
        by_name = {item.name: item for item in ours if item.kind in {EITHER, NAME}}
        rest = next((item for item in ours if item.kind == REST), None)
        named_rest = next((item for item in ours if item.kind == NAMED_REST), None)
        self.order([p.name for p in theirs if p.kind == EITHER], [p.name for p in positional])
        self.new_names: set[str] = set()
        place = 0
        for parameter in theirs:
            name = parameter.name
            if parameter.kind in {POSITION, EITHER}:
                item = positional[place] if place < len(positional) else None
                place += 1
                if parameter.kind == POSITION:
                    taker = item or rest
                    if taker is None:
                        self.missing(parameter)
                    else:
                        yield parameter, taker
                elif name in by_name:
                    if by_name[name].kind == NAME and rest is None:
                        self.differ(by_name[name], f"takes '{name}' by name only", "takes it by position too",
                                    "Let it be passed by position.")  # fmt: skip
                    yield parameter, by_name[name]
                elif item is not None and item.name == name:
                    self.differ(item, f"takes '{name}' by position only", "takes it by name too",
                                "Let it be passed by name.")  # fmt: skip
                    yield parameter, item
                elif item is not None and all(item.name != other.name for other in theirs):
                    if item.kind == EITHER or named_rest is None:
                        self.new_names.add(item.name)
                        self.differ(item, f"calls its parameter {place} '{item.name}'", f"calls it '{name}'",
                                    "Rename it: callers may pass it by name.")  # fmt: skip
                    yield parameter, item
                elif rest is not None and named_rest is not None:
                    yield parameter, named_rest
                else:
                    self.missing(parameter)
            elif parameter.kind == NAME:
                taker = by_name.get(name) or named_rest
                if taker is None:
                    self.missing(parameter)
                else:
                    yield parameter, taker
            else:
                taker = rest if parameter.kind == REST else named_rest
                if taker is not None:
                    yield parameter, taker
                elif not _takes_anything(self.base):
                    stars = "*" if parameter.kind == REST else "**"
                    self.differ(None, f"takes no {stars}{name}", "does", "Add it.")

    def missing(self, parameter: Parameter) -> None:
        self.differ(None, f"takes no '{parameter.name}'", "does", "Add it.")

    def renamed(self, parameter: Parameter) -> bool:
        return parameter.name in self.new_names

    def order(self, theirs: Sequence[str], ours: Sequence[str]) -> None:
        """Report a changed order of the parameters that both take, or one that is put before them."""
        common = [name for name in theirs if name in ours]
        kept = [name for name in ours if name in theirs]
        if common != kept:
            fact = f"takes its parameters in the order {', '.join(kept)}"
            self.differ(None, fact, f"takes them in the order {', '.join(common)}", "Keep the order.")
            return
        extra = len(ours) - len(kept)
        gone = len([p for p in self.base.parameters if p.kind in {EITHER, POSITION}]) - len(common)
        for name in ours if extra > gone else ():
            item = next(p for p in self.override.parameters if p.name == name)
            after = [other for other in ours[ours.index(name) + 1 :] if other in theirs]
            if name not in theirs and after and item.default is not None:
                self.differ(item, f"takes '{name}' before '{after[0]}'", f"takes no '{name}'",
                            "Put it behind what the base takes.")  # fmt: skip

    def defaults(self, parameter: Parameter, item: Parameter) -> None:
        if parameter.default is None or item.kind in {REST, NAMED_REST}:
            return
        text = ast.unparse(parameter.default)
        if item.default is None:
            advice = f"Default it to {text}." if text != "..." else "Give it a default."
            rule = f"defaults it to {text}" if text != "..." else "does not"
            self.differ(item, f"requires '{item.name}'", rule, advice)
            return
        same = self.signatures.same_default(self.override, item.default, self.base, parameter.default)
        if same is False:
            fact = f"defaults '{item.name}' to {ast.unparse(item.default)}"
            self.differ(item, fact, f"defaults it to {text}", "Use the base's default.")
        elif same is None:
            self.doubts.append(
                f"whether the defaults {ast.unparse(item.default)} and {text} of '{item.name}' are one"
            )

    def parameter_type(self, parameter: Parameter, item: Parameter) -> None:
        wide = self.signatures.type_of(self.override, item.annotation, None)
        narrow = self.signatures.type_of(self.base, parameter.annotation, self.bound)
        verdict = self.signatures.accepts(wide, narrow)
        if verdict is True or parameter.annotation is None or item.annotation is None:
            return
        ours, theirs = ast.unparse(item.annotation), ast.unparse(parameter.annotation)
        if verdict is False:
            advice = "A parameter may be wider than the base's, never narrower."
            self.differ(item, f"takes '{item.name}' as {ours}", f"takes it as {theirs}", advice)
        else:
            self.doubts.append(f"whether its '{item.name}', {ours}, takes every {theirs}")

    # Result

    def result(self) -> None:
        base, override = self.base, self.override
        wide, narrow = self.given(base, self.bound), self.given(override, None)
        if base.is_coroutine != override.is_coroutine:
            awaited_anyway = wide if override.is_coroutine else narrow
            if not _is_awaitable(awaited_anyway):
                self.asynchrony()
                return
        if override.returns is None:
            if self.require_annotations and base.returns is not None:
                rule = f"{'is' if base.kind == 'property' else 'returns'} {ast.unparse(base.returns)}"
                self.differ(None, "has no return annotation", rule, "Annotate it.")
            return
        if base.returns is None:
            return
        verdict = self.signatures.accepts(wide, narrow)
        ours, theirs = ast.unparse(override.returns), ast.unparse(base.returns)
        if verdict is False:
            advice = "A return type may be narrower than the base's, never wider."
            self.differ(None, f"returns {ours}", f"returns {theirs}", advice)
        elif verdict is None:
            self.doubts.append(f"whether what it returns, {ours}, is a {theirs}")

    def asynchrony(self) -> None:
        def what(definition: Definition) -> str:
            if definition.is_coroutine:
                return "is a coroutine"
            return (
                "is an async generator"
                if isinstance(definition.node, ast.AsyncFunctionDef)
                else "is not async"
            )

        advice = "Its callers do not await it." if self.override.is_coroutine else "Its callers await it."
        self.differ(None, what(self.override), what(self.base), advice)

    def given(self, definition: Definition, bound: Mapping[Variable, Type] | None) -> Type:
        """What a call gives."""
        type_ = self.signatures.type_of(definition, definition.returns, bound)
        if definition.manages_context and isinstance(type_, Named):
            manager = (
                "AbstractAsyncContextManager" if "Async" in str(type_.name) else "AbstractContextManager"
            )
            return Named(f"contextlib.{manager}", (type_.arguments or (ANY,))[:1])
        if definition.is_coroutine:
            return Named("collections.abc.Coroutine", (ANY, ANY, type_))
        return type_


def _is_awaitable(type_: Type) -> bool:
    return isinstance(type_, Named) and type_.name in {
        "collections.abc.Coroutine",
        "collections.abc.Awaitable",
    }


def _takes_anything(definition: Definition) -> bool:
    """Whether the parameters end in ``*args, **kwargs`` of any type, which says that overrides may choose."""
    rest = [p for p in definition.parameters if p.kind in {REST, NAMED_REST}]
    return len(rest) == 2 and all(
        p.annotation is None or ast.unparse(p.annotation).rpartition(".")[2] == "Any" for p in rest
    )


def _label(definition: Definition) -> str:
    return f"{definition.owner.key.partition('@')[0]}.{definition.name}"


def _decorator(node: ast.expr) -> str:
    text = ast.unparse(node.func if isinstance(node, ast.Call) else node)
    return f"@{text}"
