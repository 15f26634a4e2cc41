"""What the index answers, in plain data that a cache can keep."""

from __future__ import annotations

from typing import Any, NamedTuple

from contracts.source._errors import SourceError
from contracts.source._tree import relative_path


class ClassDefinition(NamedTuple):
    """A class, where it is defined, and how it descends from a base.

    ``line`` and ``column`` (from 1) are those of its name; ``chain`` holds the dotted names of its bases
    from the nearest up to the configured one; ``is_abstract`` says that abstract methods are left in it.
    """

    path: str
    line: int
    column: int
    module: str
    name: str
    chain: tuple[str, ...] = ()
    is_abstract: bool = False

    @property
    def dotted_name(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"


class UndecidedClass(NamedTuple):
    """A class of which reading cannot tell whether it is a subclass, and why."""

    path: str
    line: int
    column: int
    module: str
    name: str
    reason: str

    @property
    def dotted_name(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"


class Problem(NamedTuple):
    """A file that should have been read and was not: ``path:line reason``."""

    path: str
    line: int
    reason: str

    @classmethod
    def of(cls, error: SourceError) -> Problem:
        """A source error as it is reported."""
        return cls(relative_path(error.path), error.line, error.reason)


class Exports(NamedTuple):
    """What a package exports.

    ``line`` is where ``__all__`` is first bound, 0 where it is not. ``dangling`` are the names in it that
    nothing binds, each as (line, column, name, reason), where the reason says what reading cannot tell, or is
    empty. ``classes`` says of each class asked about, by dotted name, that it is "exported", or "bound" to a
    name of the package that is not in ``__all__``, or "absent", or that its name stands there for "another"
    class; a class whose name is dangling counts as exported.
    """

    path: str
    line: int
    dangling: tuple[tuple[int, int, str, str], ...]
    classes: dict[str, str]


class Answer(NamedTuple):
    """What the index found: each tuple sorted by path and line."""

    found: tuple[ClassDefinition, ...] = ()
    undecided: tuple[UndecidedClass, ...] = ()
    problems: tuple[Problem, ...] = ()

    def to_plain(self) -> tuple[Any, ...]:
        """Plain tuples, as the cache keeps them."""
        return tuple(tuple(tuple(item) for item in part) for part in self)

    @classmethod
    def from_plain(cls, data: tuple[Any, ...]) -> Answer:
        """The inverse of ``to_plain``."""
        found, undecided, problems = data
        return cls(
            tuple(ClassDefinition(*item) for item in found),
            tuple(UndecidedClass(*item) for item in undecided),
            tuple(Problem(*item) for item in problems),
        )
