"""Whether one type is a subtype of another: yes (True), no (False), or not to be told by reading (None)."""

from __future__ import annotations

import sys

from contracts.source._resolve import ClassValue, External
from contracts.source._syntax import Syntax
from contracts.source._types import (
    ELLIPSIS,
    NONE,
    AnyType,
    Function,
    Literal,
    Named,
    Type,
    Union,
    Unknown,
    Variable,
)

Verdict = bool | None

# Modules of the standard library whose classes the running Python can be asked about.
_STANDARD = frozenset(
    {"builtins", "collections", "collections.abc", "contextlib", "enum", "pathlib", "types"}
)
_PROMOTED = {"builtins.int": ("builtins.float", "builtins.complex"), "builtins.float": ("builtins.complex",)}
_TORCH = {
    "torch.nn.Parameter": ("torch.Tensor",),
    "torch.nn.parameter.Parameter": ("torch.Tensor", "torch.nn.Parameter"),
    "torch.Size": ("builtins.tuple", "collections.abc.Sequence"),
}
_SAME = {"torch._tensor.Tensor": "torch.Tensor", "torch.nn.parameter.Parameter": "torch.nn.Parameter"}
# Whose arguments may be narrowed along with the whole: nothing can be put into them.
_COVARIANT = frozenset(
    """
    builtins.frozenset builtins.tuple builtins.type collections.abc.AsyncGenerator
    collections.abc.AsyncIterable collections.abc.AsyncIterator collections.abc.Awaitable
    collections.abc.Collection collections.abc.Container collections.abc.Coroutine
    collections.abc.Generator collections.abc.ItemsView collections.abc.Iterable collections.abc.Iterator
    collections.abc.KeysView collections.abc.Mapping collections.abc.Reversible collections.abc.Sequence
    collections.abc.Set collections.abc.ValuesView contextlib.AbstractAsyncContextManager
    contextlib.AbstractContextManager
    """.split()
)
_MAPPINGS = frozenset(
    {"builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.abc.Mapping",
     "collections.abc.MutableMapping"}
)  # fmt: skip
# Which argument stays where a generic is taken for a base of it that has one argument.
_KEPT_ARGUMENT = {"collections.abc.Coroutine": 2}


def every(verdicts: list[Verdict]) -> Verdict:
    """Yes if all are; no if one is no."""
    return False if False in verdicts else None if None in verdicts else True


def some(verdicts: list[Verdict]) -> Verdict:
    """Yes if one is; no if all are no."""
    return True if True in verdicts else None if None in verdicts else False


class Subtypes:
    """The subtype relation of a tree's types."""

    def __init__(self, syntax: Syntax) -> None:
        self._syntax = syntax

    def accepts(self, wide: Type, narrow: Type) -> Verdict:
        """Whether every ``narrow`` is a ``wide``."""
        if wide == narrow or isinstance(wide, AnyType) or isinstance(narrow, AnyType):
            return True
        if isinstance(narrow, Union):
            return every([self.accepts(wide, member) for member in narrow.members])
        if wide == Named("builtins.object"):
            return True
        if isinstance(wide, Union):
            if not wide.members:
                return None if isinstance(narrow, Unknown | Variable) else False
            return some([self.accepts(member, narrow) for member in wide.members])
        if isinstance(narrow, Unknown | Variable) or isinstance(wide, Unknown | Variable):
            return None
        if isinstance(wide, Literal):
            return False if isinstance(narrow, Literal) or narrow == NONE else self._literal_from(narrow)
        if isinstance(narrow, Literal):
            if isinstance(wide, Named) and narrow.of:
                return self.accepts(wide, Named(narrow.of))
            return self._is_member(wide, narrow)
        if isinstance(wide, Function):
            return self._function(wide, narrow)
        if isinstance(narrow, Function):
            return (
                None
                if isinstance(wide.name, ClassValue)
                else wide.name in {"typing.Hashable", "types.FunctionType"} or None
            )
        return self._named(wide, narrow)

    def same(self, one: Type, other: Type) -> Verdict:
        """Whether two types are one."""
        return every([self.accepts(one, other), self.accepts(other, one)])

    def _literal_from(self, narrow: Type) -> Verdict:
        # An enum or bool could be spelled out as its literals; nothing else can.
        name = narrow.name if isinstance(narrow, Named) else None
        return None if isinstance(name, ClassValue) or name == "builtins.bool" else False

    def _is_member(self, wide: Type, literal: Literal) -> Verdict:
        if isinstance(wide, Named) and isinstance(wide.name, ClassValue):
            return literal.value.startswith(f"{wide.name.module}.{wide.name.key}.") or None
        return None

    def _function(self, wide: Function, narrow: Type) -> Verdict:
        if not isinstance(narrow, Function):
            if isinstance(narrow, Named) and narrow == NONE:
                return False
            return None  # an object with __call__
        result = self.accepts(wide.result, narrow.result)
        if wide.parameters is None or narrow.parameters is None:
            return result
        if len(wide.parameters) != len(narrow.parameters):
            return False
        pairs = zip(narrow.parameters, wide.parameters, strict=True)
        return every([result, *(self.accepts(theirs, ours) for theirs, ours in pairs)])

    def _named(self, wide: Named, narrow: Named) -> Verdict:
        nominal = self._nominal(wide.name, narrow.name)
        if nominal is not True:
            return nominal
        if wide.arguments is None or (narrow.arguments is None and not _string_like(narrow.name)):
            return True
        return self._arguments(wide, narrow)

    def _nominal(self, wide: ClassValue | str, narrow: ClassValue | str) -> Verdict:
        if isinstance(wide, str):
            wide = _SAME.get(wide, wide)
        if isinstance(narrow, str):
            narrow = _SAME.get(narrow, narrow)
        if wide == narrow:
            return True
        if isinstance(narrow, ClassValue):
            return self._descends(wide, narrow)
        if isinstance(wide, ClassValue):
            # A class from elsewhere does not descend from one of the tree; it may fit a protocol.
            return None if self._is_protocol(wide) or not _is_standard(narrow) else False
        if wide in _PROMOTED.get(narrow, ()) or wide in _TORCH.get(narrow, ()):
            return True
        if narrow == "typing.LiteralString":
            return self._nominal(wide, "builtins.str")
        if narrow == NONE.name:
            return True if wide == "collections.abc.Hashable" else False if _is_standard(wide) else None
        if wide == NONE.name:
            return False if _is_standard(narrow) else None
        above, below = _standard(wide), _standard(narrow)
        if above is None or below is None:
            return None
        return issubclass(below, above)

    def _descends(self, wide: ClassValue | str, narrow: ClassValue) -> Verdict:
        hierarchy, resolver = self._syntax.index.hierarchy, self._syntax.index.resolver
        if isinstance(wide, ClassValue):
            if hierarchy.chain(narrow, frozenset({wide}), {}) is not None:
                return True
            return None if hierarchy.unknowns(narrow) or self._is_protocol(wide) else False
        if hierarchy.unknowns(narrow):
            return None
        verdicts: list[Verdict] = []
        for ancestor in hierarchy.order(narrow):
            for options in resolver.bases(ancestor) if ancestor is not None else ():
                verdicts += [
                    self._nominal(wide, option.name)
                    for option in options
                    if isinstance(option, External) and option.name not in _BARE
                ]
        if True in verdicts:
            return True
        structural = wide.startswith(("collections.abc.", "typing.", "contextlib."))
        return None if None in verdicts or structural else False

    def _is_protocol(self, value: ClassValue) -> bool:
        return any(
            getattr(option, "name", "") in {"typing.Protocol", "typing_extensions.Protocol"}
            for options in self._syntax.index.resolver.bases(value)
            for option in options
        )

    def _arguments(self, wide: Named, narrow: Named) -> Verdict:
        ours, theirs = wide.arguments or (), narrow.arguments or ()
        if _string_like(narrow.name) and wide.name != narrow.name:
            item = Named("builtins.str" if narrow.name == "builtins.str" else "builtins.int")
            return self.accepts(ours[0], item) if len(ours) == 1 else None
        if narrow.name == "builtins.tuple" and wide.name != narrow.name:
            items = [item for item in theirs if item != ELLIPSIS]
            return every([self.accepts(ours[0], item) for item in items]) if len(ours) == 1 else None
        if wide.name == narrow.name == "builtins.tuple":
            return self._tuples(ours, theirs)
        if wide.name == narrow.name or (wide.name in _MAPPINGS and narrow.name in _MAPPINGS):
            if len(ours) != len(theirs):
                return None
        elif len(ours) == 1 and theirs and isinstance(wide.name, str) and isinstance(narrow.name, str):
            kept = _KEPT_ARGUMENT.get(narrow.name, 0)
            theirs = (theirs[kept],) if kept < len(theirs) else theirs[:1]
        else:
            return None
        relation = self.accepts if wide.name in _COVARIANT else self.same
        verdict = every([relation(one, other) for one, other in zip(ours, theirs, strict=True)])
        # Of a generic class of the tree, reading does not work out which arguments may be narrowed.
        return None if verdict is False and isinstance(wide.name, ClassValue) else verdict

    def _tuples(self, ours: tuple[Type, ...], theirs: tuple[Type, ...]) -> Verdict:
        if ours[-1:] == (ELLIPSIS,):
            return every([self.accepts(ours[0], item) for item in theirs if item != ELLIPSIS])
        if theirs[-1:] == (ELLIPSIS,) or len(ours) != len(theirs):
            return False
        return every([self.accepts(one, other) for one, other in zip(ours, theirs, strict=True)])


_BARE = frozenset(
    {"abc.ABC", "typing.Generic", "typing.Protocol", "typing_extensions.Protocol", "builtins.object"}
)


def _string_like(name: ClassValue | str) -> bool:
    return name in {"builtins.str", "builtins.bytes", "builtins.range"}


def _is_standard(name: str) -> bool:
    return name.startswith("typing.") or _standard(name) is not None


def _standard(name: str) -> type | None:
    """A class of the standard library; nothing is imported for it."""
    module, _, attribute = name.rpartition(".")
    if module not in _STANDARD:
        return None
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, type) else None
