"""The matrix on the terminal: a line while it runs, what is broken as it is found, then the table."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from checks._registry import Check
from checks.engine import Outcome

if TYPE_CHECKING:
    from checks.report import Matrix

__all__ = ["Progress", "complain"]

MARKS = {"kept": ("kept", "green"), "broken": ("BROKEN", "bold red"), "skipped": ("-", "dim")}


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

    def table(self, matrix: "Matrix", backends: Sequence[str], checks: Sequence[Check]) -> None:
        """The matrix: a row a check, a column a backend; worlds that differ are told apart."""
        table = Table(title="contract checks", title_justify="left", header_style="bold", show_lines=False)
        table.add_column("check", overflow="fold")
        for name in backends:
            table.add_column(name, overflow="fold", justify="center")
        for check in checks:
            table.add_row(check.name, *(_cell(matrix.cell(name, check.name)) for name in backends))
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


def _cell(outcomes: Sequence[Outcome]) -> str:
    statuses = [outcome.status for outcome in outcomes]
    shown = [status for status in statuses if status != "skipped"] or statuses[:1]
    if len(set(shown)) <= 1:
        text, style = MARKS[shown[0]] if shown else MARKS["skipped"]
        return f"[{style}]{text}[/{style}]"
    broken = ", ".join(str(outcome.world_size) for outcome in outcomes if outcome.status == "broken")
    return f"[bold red]BROKEN[/bold red] ({broken})"
