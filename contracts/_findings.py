"""What a contract reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One place where a contract is broken.

    ``line`` and ``column`` count from 1; ``name`` is the dotted name under which ``ignore_definitions``
    knows it; ``message`` says fact and rule, without the place.
    """

    path: str
    line: int
    column: int
    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.message}"


@dataclass(slots=True)
class Examination:
    """What a contract type found: what breaks it, what stays open, and what could not be checked."""

    findings: list[Finding]
    undecided: list[Finding]
    problems: list[str]
