"""What the index answers, in plain data that a cache can keep."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from contracts.source._errors import SourceError
from contracts.source._tree import relative_path


@dataclass(frozen=True, slots=True, order=True)
class ClassDefinition:
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


@dataclass(frozen=True, slots=True, order=True)
class UndecidedClass:
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


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A file that should have been read and was not: ``path:line reason``."""

    path: str
    line: int
    reason: str

    @classmethod
    def of(cls, error: SourceError) -> Problem:
        """A source error as it is reported."""
        return cls(relative_path(error.path), error.line, error.reason)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the index found: each tuple sorted by path and line."""

    found: tuple[ClassDefinition, ...] = ()
    undecided: tuple[UndecidedClass, ...] = ()
    problems: tuple[Problem, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the cache."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Answer:
        """The inverse of ``to_json``."""
        return cls(
            tuple(ClassDefinition(**{**item, "chain": tuple(item["chain"])}) for item in data["found"]),
            tuple(UndecidedClass(**item) for item in data["undecided"]),
            tuple(Problem(**item) for item in data["problems"]),
        )
