"""What one module says about names and classes, read from its syntax tree.

A module is interpreted abstractly, statement by statement, the way Python would execute it: each name maps
to a *ref*, a small expression of plain lists that says where its value comes from. Branches are merged
(`if`, `try`, `match`, loops: whatever any of them binds is possible), a later binding replaces an earlier
one, and code that only type checkers see is left out. Refs that reach into other modules stay symbolic;
``_resolve`` follows them.

Refs are lists, tagged by their first item:

========================  ======================================================================
``["m", module]``         a module object
``["f", module, name]``   ``from module import name``
``["a", ref, name]``      attribute
``["s", ref, key]``       subscript; the key where it is a constant, a ref, or None
``["i", ref, n|None]``    n-th element of a sequence, from its end if negative; None, any of them
``["l", ref, n, m]``      the elements of a sequence without the first n and the last m
``["k", ref, [ref], {}]`` call
``["@", ref, ref]``       the second, a sequence of bases, if the first is a metaclass
``["w", ref]``            what ``with ref as`` binds
``["?", ref, ref]``       in a ``__getattr__``: the second, for the names in the first
``["y", ref]``            a sequence of any number of elements, each of which is ref
``["t", [ref]]``          tuple, list or set display; an element ``["e", ref]`` is starred
``["+", ref, ref]``       concatenation
``["h", [[key, ref]]]``   dict display; key None where it is no constant
``["u", [ref]]``          one of several
``["c", key]``            a class of this module; the key is its qualified name, line and column
``["d", key]``            a function of this module, likewise
``["g", name]``           a global of this module, looked up when it is used
``["*", m, name, ref]``   ``name`` from ``from m import *``, or else ref
``["p", key, name, ref]`` parameter of a function; ref: its default or annotated ``type[...]``
``["v", constant]``       a string or int constant
``["b", name]``           a builtin, or nothing
``["o"]``                 certainly no class
``["x", reason]``         could be anything
========================  ======================================================================
"""

from __future__ import annotations

import ast
import contextlib
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

from contracts.source._errors import SourceError
from contracts.source._outline import outline
from contracts.source._tree import SourceFile

Ref = list[Any]


@dataclass(slots=True)
class ClassRecord:
    """A class that running the module may create.

    ``attributes`` are the names its body binds, ``abstract`` those among them marked abstract;
    ``in_function`` says that it comes to be only when the function is called; ``decorators`` are the names,
    as written, of what it is handed to.
    """

    qualname: str
    line: int
    column: int
    bases: list[Ref]
    attributes: dict[str, Ref] = field(default_factory=dict)
    abstract: list[str] = field(default_factory=list)
    in_function: bool = False
    metaclass: Ref | None = None
    decorators: list[str] = field(default_factory=list)


@dataclass(slots=True)
class FunctionRecord:
    """A function; ``returns`` is None until a call to it has to be understood.

    ``kind`` is "class" for a class method, empty for another method that is bound to its object, and
    "static" for the rest; the first ``positional`` parameters may be given by position; ``rest`` is the name
    of ``*args``.
    """

    qualname: str
    parameters: list[str]
    returns: list[Ref] | None = None
    kind: str = "static"
    positional: int = 0
    rest: str = ""


@dataclass(slots=True)
class Summary:
    """One module: its final namespace, star imports, classes and functions.

    ``strings`` are all string constants where names may be had that no statement binds; ``typing_only`` are
    the names bound for type checkers alone; ``calls`` are the calls with arguments; ``patches`` are
    assignments ``owner.name = value`` to what the module does not define; ``replacement`` is what the module
    puts into ``sys.modules`` in its own place; ``injects`` says that it binds names of its own in a way that
    reading cannot follow.
    """

    exports: dict[str, Ref] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    classes: dict[str, ClassRecord] = field(default_factory=dict)
    functions: dict[str, FunctionRecord] = field(default_factory=dict)
    strings: list[str] | None = None
    typing_only: dict[str, Ref] = field(default_factory=dict)
    calls: list[Ref] = field(default_factory=list)
    patches: list[list[Any]] = field(default_factory=list)
    replacement: Ref | None = None
    injects: bool = False

    def to_plain(self) -> list[Any]:
        """Plain lists, for the cache."""
        return [
            self.exports,
            self.stars,
            {
                key: [
                    c.qualname, c.line, c.column, c.bases, c.attributes, c.abstract, c.in_function, c.metaclass,
                    c.decorators,
                ]
                for key, c in self.classes.items()
            },
            {
                key: [f.qualname, f.parameters, f.returns, f.kind, f.positional, f.rest]
                for key, f in self.functions.items()
            },
            self.strings,
            self.typing_only,
            self.calls,
            self.patches,
            self.replacement,
            self.injects,
        ]  # fmt: skip

    @classmethod
    def from_plain(cls, data: list[Any]) -> Summary:
        """The inverse of ``to_plain``."""
        exports, stars, classes, functions, *rest = data
        return cls(
            exports,
            stars,
            {key: ClassRecord(*record) for key, record in classes.items()},
            {key: FunctionRecord(*record) for key, record in functions.items()},
            *rest,
        )


def parse(file: SourceFile, interest: list[int] | None = None) -> ast.Module:
    """The file's syntax tree.

    Args:
        file: the file.
        interest: where in its text something stands that matters, to leave out the function bodies without;
            by default all is read.

    Raises:
        SourceError: it cannot be read, decoded or parsed by the running Python; names the line.
    """
    if interest is not None:
        shorter = outline(file.text, interest)
        with warnings.catch_warnings(), contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            warnings.simplefilter("ignore")
            return ast.parse(shorter, file.path)
        # Either the whole cannot be parsed, and says why, or the outline was misled.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the linted code's literals; its own tools report those
            # From the decoded text, not the bytes: ast.parse ignores what detect_encoding reports.
            return ast.parse(file.text, file.path)
    except (SyntaxError, ValueError) as error:
        # About a null byte Python says no line, and which error it raises depends on its version.
        null = file.content[: max(file.content.find(b"\0"), 0)].count(b"\n") + 1
        line, reason = (error.lineno or null, error.msg) if isinstance(error, SyntaxError) else (null, error)
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        advice = "Correct it, or run lint-imports with the Python that it is written for"
        raise SourceError(
            file.path, line, f"cannot be parsed by Python {version}: {reason}. {advice}"
        ) from error
    except (RecursionError, MemoryError) as error:
        reason = "cannot be parsed: an expression is nested too deeply for Python's parser. Split it"
        raise SourceError(file.path, 1, reason) from error
