"""What a contract reports."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
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


class Examination:
    """What a contract type found: what breaks it, what stays open, and what could not be checked."""

    def __init__(self, findings: list[Finding], undecided: list[Finding], problems: list[str]) -> None:
        self.findings = findings
        self.undecided = undecided
        self.problems = problems
