"""Checks: each a function that is named for what is true when it holds, with wrong backends that it must catch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from checks._rows import Backend
from checks.cases import Case

if TYPE_CHECKING:
    from checks.bench import Bench
    from checks.honest import Honest

__all__ = ["CHECKS", "Check", "check"]

CheckFunction = Callable[["Bench", Case], None]


@dataclass(frozen=True)
class Check:
    """A property, how it is looked at, and what it must catch."""

    name: str
    function: CheckFunction
    cases: tuple[Case, ...]
    wrong: tuple[type["Honest"], ...]
    topic: str
    monolithic: bool
    """Whether it means anything for backends that are given router logits."""
    drawn: Any = None
    """A hypothesis strategy of more cases."""
    instrumented: bool = False
    """Runs in processes where the backend's package is instrumented."""

    @property
    def property(self) -> str:
        """What holds, in a sentence."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def packages(self, row: Backend) -> tuple[str, ...]:
        """What has to be instrumented to run it on a backend; nothing for most checks."""
        return row.instrumented if self.instrumented else ()


CHECKS: dict[str, Check] = {}


def check(
    *,
    cases: Sequence[Case],
    wrong: Sequence[type["Honest"]],
    monolithic: bool = False,
    drawn: Any = None,
    instrumented: bool = False,
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a check, with the cases that expose what it is about and at least one backend that it must catch.

    Raises ValueError without a wrong backend, without a case, without a docstring, or under a name that is taken.
    """

    def register(function: CheckFunction) -> CheckFunction:
        name = function.__name__
        where = f"{function.__module__}.{name}"
        if not wrong:
            raise ValueError(f"{where}: no wrong backend. A check that nothing fails shows nothing: add one.")
        if not cases:
            raise ValueError(f"{where}: no case.")
        if not function.__doc__:
            raise ValueError(f"{where}: no docstring. Its first line is the property in words.")
        if name in CHECKS:
            raise ValueError(f"{where}: there is a check of this name in {CHECKS[name].topic} already.")
        topic = function.__module__.rpartition(".")[2]
        CHECKS[name] = Check(name, function, tuple(cases), tuple(wrong), topic, monolithic, drawn, instrumented)
        return function

    return register
