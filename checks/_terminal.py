"""The matrix on the terminal: a line while it runs, what is broken as it is found, then the table."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from checks._registry import Check
from checks.engine import Outcome

if TYPE_CHECKING:
    from checks.report import Matrix

__all__ = ["Progress", "complain"]


class Mark(NamedTuple):
    """How a status is shown."""

    sign: str
    plain: str
    """Where the terminal has no other characters."""
    style: str


MARKS = {
    "kept": Mark("✓", "o", "green"),
    "broken": Mark("✗", "X", "bold red"),
    "skipped": Mark("-", "-", "dim"),
}


def complain(text: str) -> None:
    """Say why nothing could be run."""
    Console(stderr=True).print(text, style="red", markup=False, soft_wrap=True)


class Progress:
    """Shows outcomes as they come."""

    def __init__(self, total: int, checks: int) -> None:
        self.console = Console()
        self._checks, self._here = checks, list[Outcome]()
        self._bar = Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, outcome: Outcome) -> None:
        """Count one, and say what is broken."""
        self._bar.update(
            self._task, advance=1, description=f"{outcome.backend}, {_ranks(outcome.world_size)}: {outcome.check}"
        )
        if outcome.status == "broken":
            self._say(outcome.message, "red")
        self._here.append(outcome)
        if len(self._here) == self._checks:
            counts = ", ".join(f"{n} {word}" for word in MARKS if (n := sum(o.status == word for o in self._here)))
            seconds = sum(one.seconds for one in self._here)
            self._say(f"{outcome.backend}, {_ranks(outcome.world_size)}: {counts} in {seconds:.1f} s", "dim")
            self._here = []

    def _say(self, text: str, style: str) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _cell(self, outcomes: Sequence[Outcome]) -> Text:
        broken = ",".join(str(outcome.world_size) for outcome in outcomes if outcome.status == "broken")
        kept = any(outcome.status == "kept" for outcome in outcomes)
        status = "broken" if broken else "kept" if kept else "skipped"
        sign = MARKS[status].sign if self.console.encoding.startswith("utf") else MARKS[status].plain
        return Text(sign + broken, style=MARKS[status].style)

    def table(self, matrix: "Matrix", backends: Sequence[str], checks: Sequence[Check]) -> None:
        """The matrix: a row a check, a column a backend; worlds that are broken are told by their size."""
        # Names stand above their columns where there is room, otherwise numbers do.
        room = self.console.width - max(len(check.name) for check in checks)
        named = sum(len(name) + 2 for name in backends) < room
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("check", no_wrap=True)
        for number, name in enumerate(backends, start=1):
            table.add_column(name if named else str(number), justify="center", no_wrap=True)
            if not named:
                self.console.print(f"{number:3} {name}", markup=False, highlight=False)
        for check in checks:
            table.add_row(check.name, *(self._cell(matrix.cell(name, check.name)) for name in backends))
        self.console.print(table)
        counts = {status: sum(one.status == status for one in matrix.outcomes) for status in MARKS}
        seconds = sum(outcome.seconds for outcome in matrix.outcomes)
        self.console.print(
            f"{counts['kept']} kept, {counts['broken']} broken, {counts['skipped']} skipped in {seconds:.0f} s",
            markup=False,
            highlight=False,
        )
        reasons: dict[str, int] = {}
        for outcome in matrix.outcomes:
            if outcome.status == "skipped":
                reasons[outcome.message] = reasons.get(outcome.message, 0) + 1
        for reason, count in reasons.items():
            self.console.print(f"  skipped {count}x: {reason}", markup=False, highlight=False, soft_wrap=True)


def _ranks(size: int) -> str:
    return f"{size} rank{'s' if size > 1 else ''}"
