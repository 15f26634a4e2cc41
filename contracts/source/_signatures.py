"""What an override takes and gives, compared with what the method that it overrides does."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import NamedTuple

from contracts.source._defaults import Defaults
from contracts.source._matching import match
from contracts.source._methods import DATA, NAMED_REST, REST, Definition, Methods, Parameter
from contracts.source._names import Names
from contracts.source._resolve import ClassValue
from contracts.source._subtypes import Subtypes, Verdict
from contracts.source._syntax import Syntax
from contracts.source._types import (
    ANY,
    NONE,
    SELF,
    Function,
    Literal,
    Named,
    Type,
    Types,
    Unknown,
    Variable,
    parts,
    substitute,
)

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
    is_unannotated: bool = False


class Doubt(NamedTuple):
    """What reading cannot tell; ``of_base`` where that is so of any override, for what the base says."""

    text: str
    of_base: bool = False


class Comparison(NamedTuple):
    """What breaks the base's promise, and what reading cannot tell."""

    differences: list[Difference]
    doubts: list[Doubt]


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
        self._subtypes = Subtypes(syntax, self._types)
        self._defaults = Defaults(names)
        self._plain: dict[tuple[int, str, ClassValue | None], tuple[ast.expr, Type]] = {}

    def compare(
        self, base: Definition, override: Definition, subject: ClassValue, *, require_annotations: bool
    ) -> Comparison:
        """Compare an override with the definition that it overrides, as they meet in the class ``subject``.

        Of overloads the types alone count: what they default is what their implementation does.
        """
        bound = self._types.bindings(subject, base.owner, self._methods.order(subject))
        bound[SELF] = Named(subject)
        pair = _Pair(self, base, override, bound, require_annotations)
        if override.kind == "attribute" and base.kind in {"property", "attribute"}:
            pair.attribute()
        else:
            pair.doubts += self._not_understood(base, override)
            if not pair.doubts:
                pair.run()
        return Comparison(pair.differences, pair.doubts)

    def type_of(
        self, definition: Definition, annotation: ast.expr | None, bound: Mapping[Variable, Type]
    ) -> Type:
        """The type that an annotation of a definition spells."""
        if annotation is None:
            return ANY
        module = definition.module
        scope = definition.owner if module == definition.owner.module else None
        known = self._plain.get((id(annotation), module, scope))  # most are read once for each subclass
        if known is not None:
            return known[1]
        type_ = self._types.read(annotation, module, scope, {}, definition.declared)
        if any(isinstance(item, Variable | Unknown) for item in parts(type_)):
            return substitute(self._types.read(annotation, module, scope, bound, definition.declared), bound)
        self._plain[id(annotation), module, scope] = annotation, type_  # kept, so that its id stays its own
        return type_

    def accepts(self, wide: Type, narrow: Type) -> Verdict:
        """Whether every ``narrow`` is a ``wide``."""
        return self._subtypes.accepts(wide, narrow)

    def same_default(
        self, one: Definition, default: ast.expr, other: Definition, theirs: ast.expr
    ) -> Verdict:
        """Whether two defaults are the same value."""
        return self._defaults.same(default, one.owner, theirs, other.owner)

    def _not_understood(self, base: Definition, override: Definition) -> list[Doubt]:
        """The decorators that are not understood, unless both definitions have the same ones."""
        ours, theirs = override.not_understood, base.not_understood
        same = self._methods.decorators.same
        if len(ours) == len(theirs) and all(
            same(one, override.owner, other, base.owner) for one, other in zip(ours, theirs, strict=True)
        ):
            return []
        return [Doubt(_made(override, node, "it")) for node in ours] + [
            Doubt(_made(base, node, _label(base)), of_base=True) for node in theirs
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
        self.own = {SELF: bound[SELF]}
        self.require_annotations = require_annotations
        self.differences: list[Difference] = []
        self.doubts: list[Doubt] = []

    def attribute(self) -> None:
        """Compare an attribute with what is read in the same way."""
        value = self.override.value
        if self.override.annotation is not None:
            self.result()
        elif isinstance(value, ast.Constant) and self.base.returns is not None:
            wide, of = self.given(self.base, self.bound), type(value.value).__name__
            narrow = NONE if value.value is None else Literal(repr(value.value), f"builtins.{of}")
            if self.signatures.accepts(wide, narrow) is False:
                rule = f"is {ast.unparse(self.base.returns)}"
                self.differ(None, f"is {ast.unparse(value)}", rule, f"Give it a value that {rule}.")

    def run(self) -> None:
        base, override = self.base, self.override
        if base.kind == "attribute":
            if override.is_method and not self.may_be_method():
                fact, rule = f"is {_KINDS[override.kind]}", f"is {_KINDS[base.kind]}"
                self.differ(None, fact, rule, "Decorate it with @property.")
            return
        called_alike = {base.kind, override.kind} == {"static", "class"}
        if base.kind != override.kind and not called_alike:
            advice = f"Make it {_KINDS[base.kind]}."
            if base.kind == "property":
                advice = "Decorate it with @property."
            self.differ(None, f"is {_KINDS[override.kind]}", f"is {_KINDS[base.kind]}", advice)
            return
        if override.lacks_self and not base.lacks_self:
            first = "cls" if override.kind == "class" else "self"
            self.differ(None, f"takes no {first}", "does", f"Put {first} before its other parameters.")
        if base.kind == "property":
            self.property()
        if override.node is None or base.node is None:
            return  # a property whose getter is the base's, or stands elsewhere
        if base.is_method:
            self.parameters()
        self.result()

    def may_be_method(self) -> bool:
        """Whether the base's attribute may stand for a method: one of a fitting type, or None, to be filled in."""
        if self.base.annotation is not None:
            wide = self.signatures.type_of(self.base, self.base.annotation, self.bound)
            return self.signatures.accepts(wide, Function(None, ANY)) is not False
        value = self.base.value
        return not isinstance(value, DATA) or (isinstance(value, ast.Constant) and value.value is None)

    def differ(self, parameter: Parameter | None, fact: str, rule: str, advice: str) -> None:
        line, column = self.override.line, self.override.column
        node = self.override.node
        # Where the class body names a function from elsewhere, the parameter stands there too.
        here = node is not None and self.override.module == self.override.owner.module
        if parameter is not None and here and node is not None and node.name in {self.override.name, ""}:
            line, column = parameter.line, parameter.column
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
        ours = self.override.parameters
        matched = match(self.base.parameters, ours, self.differ)
        for parameter, item in matched:
            self.default(parameter, item)
            self.parameter_type(parameter, item)
        unannotated = [
            item.written
            for item in ours
            if item.annotation is None and any(p.annotation for p, taker in matched if taker is item)
        ]
        if unannotated and self.require_annotations:
            listed = ", ".join(f"'{name}'" for name in unannotated)
            self.differ(None, f"does not annotate {listed}", "does", "Annotate what the base annotates.")
            self.differences[-1] = self.differences[-1]._replace(is_unannotated=True)

    def default(self, parameter: Parameter, item: Parameter) -> None:
        of_overload = self.base.is_overload or self.override.is_overload
        if parameter.default is None or item.kind in {REST, NAMED_REST} or of_overload:
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
            ours = ast.unparse(item.default)
            self.doubts.append(Doubt(f"whether the defaults {ours} and {text} of '{item.name}' are one"))

    def parameter_type(self, parameter: Parameter, item: Parameter) -> None:
        if parameter.annotation is None or item.annotation is None:
            return
        wide = self.signatures.type_of(self.override, item.annotation, self.own)
        narrow = self.signatures.type_of(self.base, parameter.annotation, self.bound)
        verdict = self.signatures.accepts(wide, narrow)
        if verdict is True:
            return
        ours, theirs = ast.unparse(item.annotation), ast.unparse(parameter.annotation)
        if verdict is False:
            advice = "A parameter may be wider than the base's, never narrower."
            self.differ(item, f"takes '{item.name}' as {ours}", f"takes it as {theirs}", advice)
        else:
            self.doubt_type(f"whether its '{item.name}', {ours}, takes every {theirs}", narrow)

    def doubt_type(self, text: str, promised: Type) -> None:
        unread = [item for item in parts(promised) if isinstance(item, Unknown)]
        if unread:
            doubt = Doubt(f"what {unread[0].text} is, in an annotation of {_label(self.base)}", of_base=True)
        else:
            doubt = Doubt(text)
        self.doubts.append(doubt)

    # Result

    def result(self) -> None:
        base, override = self.base, self.override
        wide, narrow = self.given(base, self.bound), self.given(override, self.own)
        if base.is_coroutine != override.is_coroutine:
            awaited_anyway = wide if override.is_coroutine else narrow
            if not _is_awaitable(awaited_anyway):
                self.asynchrony()
                return
        verb = "is" if base.kind in {"property", "attribute"} else "returns"
        if base.returns is None:
            return
        if override.returns is None:
            if self.require_annotations:
                rule = f"{verb} {_written_result(base, override)}"
                self.differ(None, "has no return annotation", rule, "Annotate it.")
            return
        verdict = self.signatures.accepts(wide, narrow)
        if verdict is True:
            return
        ours, theirs = (_written_result(item, other) for item, other in ((override, base), (base, override)))
        if verdict is False:
            advice = "A return type may be narrower than the base's, never wider."
            self.differ(None, f"{verb} {ours}", f"{verb} {theirs}", advice)
        else:
            self.doubt_type(f"whether what it {verb}, {ours}, is a {theirs}", wide)

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

    def given(self, definition: Definition, bound: Mapping[Variable, Type]) -> Type:
        """What a call gives."""
        type_ = self.signatures.type_of(definition, definition.returns, bound)
        if definition.manages_context and isinstance(type_, Named):
            kind = "_AsyncGeneratorContextManager" if "Async" in str(type_.name) else "_GeneratorContextManager"
            return Named(f"contextlib.{kind}", (type_.arguments or (ANY,))[:1])
        if definition.is_coroutine:
            return Named("collections.abc.Coroutine", (ANY, ANY, type_))
        return type_


def _written_result(definition: Definition, other: Definition) -> str:
    """The return annotation as it is written, with what is made of it where that is not so of the other."""
    text = ast.unparse(definition.returns) if definition.returns is not None else ""
    if definition.is_coroutine and not other.is_coroutine:
        return f"a coroutine of {text}"
    if definition.manages_context and not other.manages_context:
        return f"what @contextmanager makes of {text}"
    return text


def _is_awaitable(type_: Type) -> bool:
    return isinstance(type_, Named) and type_.name in {
        "collections.abc.Coroutine",
        "collections.abc.Awaitable",
    }


def _label(definition: Definition) -> str:
    return f"{definition.owner.key.partition('@')[0]}.{definition.name}"


def _made(definition: Definition, node: ast.expr, what: str) -> str:
    if definition.kind == "attribute":
        return f"what {ast.unparse(node)} is"
    text = ast.unparse(node.func if isinstance(node, ast.Call) else node)
    return f"what @{text} makes of {what}"
