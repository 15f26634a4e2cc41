"""What a name may stand for."""

from __future__ import annotations

from typing import NamedTuple


class Unknown(NamedTuple):
    """A value that reading cannot tell.

    ``modules`` and ``functions`` ("module:function") are where it comes from, ``classes`` what it was made
    of: only what they can name can reach it. ``anywhere`` says that it may be whatever the modules import, by
    any name; without modules, not even that much is known.
    """

    reason: str
    modules: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    anywhere: bool = False
    classes: frozenset[ClassValue] = frozenset()


class ClassValue(NamedTuple):
    """A class of ``module``; ``frame`` binds the parameters of the call that made it."""

    module: str
    key: str
    frame: Frame = ()


class Instance(NamedTuple):
    """An object of a class."""

    of: ClassValue


class ModuleValue(NamedTuple):
    """A module inside the root packages."""

    name: str


class FunctionValue(NamedTuple):
    """A function of ``module``; ``bound`` says that its first parameter is bound already."""

    module: str
    key: str
    bound: bool = False


class External(NamedTuple):
    """Something from outside the root packages."""

    name: str


class Display(NamedTuple):
    """A tuple, list or dict display, still to be read in its module."""

    ref: int
    module: str
    frame: Frame


class Constant(NamedTuple):
    """A string or int."""

    value: str | int


class Namespace(NamedTuple):
    """The names of a module, as ``globals()`` gives them."""

    module: str


class Method(NamedTuple):
    """A method of a display, of a namespace or of a string."""

    owner: Display | Constant | Namespace
    name: str


Value = (
    Unknown
    | ClassValue
    | Instance
    | ModuleValue
    | FunctionValue
    | External
    | Display
    | Constant
    | Namespace
    | Method
)
Frame = tuple[tuple[str, str, str, frozenset[Value]], ...]
Values = frozenset[Value]
NOTHING: Values = frozenset()
