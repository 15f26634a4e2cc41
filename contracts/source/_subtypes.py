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
    Types,
    Union,
    Unknown,
    Variable,
    substitute,
)

Verdict = bool | None

# Modules of the standard library whose classes the running Python can be asked about.
_STANDARD = frozenset(
    {"builtins", "collections", "collections.abc", "contextlib", "enum", "pathlib", "types"}
)
# Where there are classes and aliases for which others pass; builtins are told apart one by one.
_WITH_PROTOCOLS = frozenset("abc builtins collections contextlib importlib io numbers os types typing".split())
_PROMOTED = {
    "builtins.int": ("builtins.float", "builtins.complex"),
    "builtins.float": ("builtins.complex",),
    "typing.NamedTuple": ("builtins.tuple",),
    "typing.TypedDict": ("collections.abc.Mapping",),
}
# Plain classes of torch, with their bases: what reading knows of classes from outside.
_TORCH = {
    "torch.Tensor": ("builtins.object",),
    "torch.Generator": ("builtins.object",),
    "torch.device": ("builtins.object",),
    "torch.dtype": ("builtins.object",),
    "torch.distributed.ProcessGroup": ("builtins.object",),
    "torch.nn.Module": ("builtins.object",),
    "torch.nn.Parameter": ("torch.Tensor",),
    "torch.Size": ("builtins.tuple", "collections.abc.Sequence"),
}
_SAME = {
    "torch._C.device": "torch.device",
    "torch._C.dtype": "torch.dtype",
    "torch._tensor.Tensor": "torch.Tensor",
    "torch.nn.modules.Module": "torch.nn.Module",
    "torch.nn.modules.module.Module": "torch.nn.Module",
    "torch.nn.parameter.Parameter": "torch.nn.Parameter",
}
# How each argument may change along with the whole: narrower (+), wider (-), or not at all (=). Where a class is not
# here, what is put into it stays as it is: not at all.
_VARIANCE = {
    **dict.fromkeys(
        """
        builtins.frozenset builtins.tuple builtins.type collections.abc.AsyncIterable
        collections.abc.AsyncIterator collections.abc.Awaitable collections.abc.Collection
        collections.abc.Container collections.abc.Iterable collections.abc.Iterator
        collections.abc.Reversible collections.abc.Sequence collections.abc.Set collections.abc.ValuesView
        contextlib.AbstractAsyncContextManager contextlib.AbstractContextManager
        contextlib._AsyncGeneratorContextManager contextlib._GeneratorContextManager
        """.split(),
        "+",
    ),
    "collections.abc.AsyncGenerator": "+-",
    "collections.abc.Coroutine": "+-+",
    "collections.abc.Generator": "+-+",
    "collections.abc.Mapping": "=+",
}
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

    def __init__(self, syntax: Syntax, types: Types) -> None:
        self._syntax = syntax
        self._types = types
        self._known: dict[tuple[Type, Type], Verdict] = {}

    def accepts(self, wide: Type, narrow: Type) -> Verdict:
        """Whether every ``narrow`` is a ``wide``."""
        key = (wide, narrow)
        if key not in self._known:  # what may not change is compared both ways, at every depth
            self._known[key] = self._accepts(wide, narrow)
        return self._known[key]

    def _accepts(self, wide: Type, narrow: Type) -> Verdict:
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
            fits = self._nominal(wide.name, "types.FunctionType")
            return None if fits and wide.name == "types.FunctionType" else fits
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
            known = _standard(narrow.name) if isinstance(narrow, Named) and isinstance(narrow.name, str) else None
            return False if known is not None and not _is_callable(known) else None
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
        if isinstance(narrow.name, ClassValue) and narrow.name != wide.name:
            narrow = self._seen_as(wide, narrow)
        bare = narrow.arguments is None and not _string_like(narrow.name)
        if wide.arguments is None or (bare and (narrow.name == wide.name or not isinstance(narrow.name, ClassValue))):
            return True  # a generic without arguments is one of any
        return self._arguments(wide, narrow)

    def _seen_as(self, wide: Named, narrow: Named) -> Named:
        """A class of the tree as the generic class that it descends from."""
        if not isinstance(wide.name, ClassValue) or not isinstance(narrow.name, ClassValue):
            return narrow
        types, order = self._types, self._syntax.index.hierarchy.order(narrow.name)
        own = dict(zip(types.parameters_of(narrow.name), narrow.arguments or (), strict=False))
        bound = types.bindings(narrow.name, wide.name, order)
        arguments = [substitute(bound.get(item, item), own) for item in types.parameters_of(wide.name)]
        return Named(wide.name, tuple(arguments) or None)

    def _nominal(self, wide: ClassValue | str, narrow: ClassValue | str) -> Verdict:
        if isinstance(wide, str):
            wide = _SAME.get(wide, wide)
        if isinstance(narrow, str):
            narrow = _SAME.get(narrow, narrow)
        if wide == narrow or (isinstance(wide, str) and isinstance(narrow, str) and _is_exported(wide, narrow)):
            return True
        if isinstance(narrow, ClassValue):
            return self._descends(wide, narrow)
        if isinstance(wide, ClassValue):
            # A class from elsewhere does not descend from one of the tree; it may fit a protocol.
            return None if self._is_protocol(wide) or not (_is_known(narrow) or _is_plain(narrow)) else False
        if wide in _PROMOTED.get(narrow, ()) or wide in _TORCH.get(narrow, ()):
            return True
        if narrow == "typing.LiteralString":
            return self._nominal(wide, "builtins.str")
        if narrow == NONE.name and wide == "collections.abc.Hashable":
            return True
        if (_is_plain(wide) and _is_simple(narrow)) or (wide == NONE.name and _is_plain(narrow)):
            return False
        if not _is_known(wide) or not _is_known(narrow) or (_is_structural(wide) and narrow in _TORCH):
            return None
        above, below = _standard(wide), _standard(narrow)
        return issubclass(below, above) if above is not None and below is not None else False

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
        # What is from outside and not known may be a protocol, or an alias of much.
        return None if None in verdicts or not (_is_known(wide) or _is_plain(wide)) or _is_structural(wide) else False

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
        relations = {"+": self.accepts, "-": lambda one, other: self.accepts(other, one), "=": self.same}
        variance = _VARIANCE.get(wide.name, "") if isinstance(wide.name, str) else ""
        changes = variance.ljust(len(ours), variance[-1:] or "=")
        verdict = every([relations[how](one, other) for how, one, other in zip(changes, ours, theirs, strict=False)])
        # Of a class that is not known, reading does not work out which arguments may be narrowed.
        known = isinstance(wide.name, str) and _is_known(wide.name)
        return None if verdict is False and not known else verdict

    def _tuples(self, ours: tuple[Type, ...], theirs: tuple[Type, ...]) -> Verdict:
        if ours[-1:] == (ELLIPSIS,):
            return every([self.accepts(ours[0], item) for item in theirs if item != ELLIPSIS])
        if theirs[-1:] == (ELLIPSIS,) or len(ours) != len(theirs):
            return False
        return every([self.accepts(one, other) for one, other in zip(ours, theirs, strict=True)])


_BARE = frozenset(
    {"abc.ABC", "typing.Generic", "typing.Protocol", "typing_extensions.Protocol", "builtins.object"}
)


def _is_callable(class_: type) -> bool:
    return any("__call__" in vars(item) for item in class_.__mro__)


def _string_like(name: ClassValue | str) -> bool:
    return name in {"builtins.str", "builtins.bytes", "builtins.range"}


def _is_known(name: str) -> bool:
    """Whether a class from outside of the tree is one whose bases are known."""
    return name in _TORCH or name == NONE.name or _standard(name) is not None


def _is_exported(one: str, other: str) -> bool:
    """Whether one name is the other's in the top level of its package, which packages keep for what they export."""
    shorter, longer = sorted((one, other), key=len)
    package, _, name = shorter.partition(".")
    return "." not in name and longer.startswith(f"{package}.") and longer.endswith(f".{name}")


def _is_plain(name: str) -> bool:
    """Whether a class is one of the standard library for which nothing passes that is not derived from it."""
    top = name.partition(".")[0]
    return top in sys.stdlib_module_names and top not in _WITH_PROTOCOLS


def _is_simple(name: str) -> bool:
    """Whether a class is derived from no other but built-in ones."""
    return name == NONE.name or name.startswith("builtins.") or name in _TORCH


def _is_structural(name: str) -> bool:
    """Whether a class may have what it takes to be one of this name without being derived from it."""
    return name.startswith(("collections.abc.", "typing.", "contextlib."))


def _standard(name: str) -> type | None:
    """A class of the standard library; nothing is imported for it."""
    module, _, attribute = name.rpartition(".")
    if module not in _STANDARD:
        return None
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, type) else None
