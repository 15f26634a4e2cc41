"""The matrix of backends and checks: on the terminal while it runs, as JSON, and as a page.

:func:`main` is what ``moe-contracts check`` calls. Ranks are processes there, so that a backend that hangs or kills its
process is a cell of the matrix like any other.
"""

import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from checks._package import DEFAULT_PACKAGE, package
from checks._registry import Check
from checks._rows import Backend
from checks.backends import rows
from checks.engine import TOPICS, Outcome, all_checks, judge
from checks.harness import Worlds

__all__ = ["Matrix", "defects", "first_broken", "main", "make_worlds", "run", "select"]

_WRITE_SECONDS = 2.0


@dataclass
class Matrix:
    """Everything that a run found."""

    outcomes: list[Outcome] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> list[Outcome]:
        """What does not hold."""
        return [outcome for outcome in self.outcomes if outcome.status == "broken"]

    def cell(self, backend: str, check: str) -> list[Outcome]:
        """What came of a check on a backend, by world size."""
        return [one for one in self.outcomes if (one.backend, one.check) == (backend, check)]

    def as_json(self, *, complete: bool = True) -> str:
        """The run, or what there is of it so far."""
        return json.dumps(
            {
                "complete": complete,
                "environment": self.environment,
                "checks": {name: check.property for name, check in all_checks().items()},
                "outcomes": [outcome.as_dict() for outcome in self.outcomes],
            },
            indent=2,
        )


def select(names: Sequence[str], fused_moe: str | None = None) -> list[Backend]:
    """The rows of these backends, all if none is named.

    Raises ValueError for a backend that there is not, ImportError for a package that cannot be imported.
    """
    known = rows(package(fused_moe or DEFAULT_PACKAGE).name)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"There is no backend {unknown[0]!r}. There are: {', '.join(sorted(known))}.")
    return [known[name] for name in dict.fromkeys(names)] if names else list(known.values())


def make_worlds(kind: str, fused_moe: str | None = None, **options: Any) -> Worlds:
    """Worlds in which the package under test and the checks are imported before a deadline counts."""
    imports = (f"{fused_moe or DEFAULT_PACKAGE}.modular_kernel", *(f"checks.{topic}" for topic in TOPICS))
    return Worlds(kind, imports=imports, **options)  # type: ignore[arg-type]  # one of two words


def run(
    backends: Sequence[Backend],
    checks: Sequence[Check],
    sizes: Sequence[int],
    worlds: Worlds,
    seed: int = 0,
) -> Iterator[Outcome]:
    """Judge each check on each backend in each world, one outcome after another; nothing that fails stops the rest."""
    for size in sizes:
        for row in backends:
            for check in checks:
                yield judge(worlds.get(size, check.packages(row)), row, check, seed)


def first_broken(
    backend: str, sizes: Sequence[int] = (1, 2), *, fused_moe: str | None = None, deadline: float = 20.0
) -> Outcome | None:
    """The first check that is broken, with ranks in threads of this process; None when all that applies is kept.

    For whoever changes a backend and wants to know soon: checks that need instrumented processes are left out.
    """
    (row,) = select([backend], fused_moe)
    quick = [check for check in all_checks().values() if not check.instrumented]
    made = make_worlds("threads", fused_moe, seconds=deadline / 4, deadline=deadline)
    try:
        outcomes = run([row], quick, sizes, made)
        return next((outcome for outcome in outcomes if outcome.status == "broken"), None)
    finally:
        made.close()


def defects() -> str:
    """The table "real defect -> check that catches it", as Markdown, from what the wrong backends say of themselves."""
    lines = ["| seen in | what went wrong | caught by |", "|---|---|---|"]
    for check in all_checks().values():
        lines += [f"| {one.seen_in} | {one.defect} | `{check.name}` |" for one in check.wrong if one.seen_in]
    return "\n".join(lines) + "\n"


def _environment(arguments: dict[str, Any]) -> dict[str, str]:
    device = torch.cuda.get_device_name() if arguments["device"] == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "on": device,
        "when": time.strftime("%Y-%m-%d %H:%M"),
        **{key: str(value) for key, value in arguments.items()},
    }


def main(
    backends: Sequence[str] = (),
    *,
    device: str = "cpu",
    world_sizes: Sequence[int] = (1, 2, 4),
    transport: str = "torch",
    worlds: str = "processes",
    seed: int = 0,
    fused_moe: str | None = None,
    only: Sequence[str] = (),
    first: bool = False,
    json_path: str | None = None,
    html_path: str | None = None,
    seconds: float = 10.0,
    deadline: float = 60.0,
    extra_rows: Sequence[Backend] = (),
) -> int:
    """Run the matrix and show it; 0 when all holds, 1 when something is broken, 2 when it could not be run.

    - ``backends``: names; none is all of ``fused_moe``'s. ``extra_rows`` are run besides.
    - ``only``: names of checks; none is all. ``first``: stop at the first that is broken.
    - ``json_path``: is written every few seconds, so that something is there of a run that is cut off.
    - ``seconds``, ``deadline``: how long an exchange, and a case on all its ranks, may take.
    """
    from checks._terminal import Progress, complain  # noqa: PLC0415 -- rich is not needed to import this

    try:
        chosen = [] if extra_rows and not backends else select(backends, fused_moe)
        chosen += list(extra_rows)
        checks = _checks(only)
        _check_arguments(world_sizes, device, [json_path, html_path])
    except (ValueError, ImportError) as error:
        complain(str(error))
        return 2
    world_sizes = list(dict.fromkeys(world_sizes))
    arguments = {"device": device, "transport": transport, "worlds": worlds, "seed": seed}
    matrix = Matrix(environment=_environment(arguments))
    options = {"device": device, "transport": transport, "seconds": seconds, "deadline": deadline}
    made = make_worlds(worlds, fused_moe, **options)
    written = time.monotonic()
    try:
        with Progress(len(chosen) * len(checks) * len(world_sizes), len(checks)) as progress:
            for outcome in run(chosen, checks, world_sizes, made, seed):
                matrix.outcomes.append(outcome)
                progress.show(outcome)
                if json_path is not None and time.monotonic() > written + _WRITE_SECONDS:
                    Path(json_path).write_text(matrix.as_json(complete=False), encoding="utf-8")
                    written = time.monotonic()
                if first and matrix.broken:
                    break
    finally:
        made.close()
    progress.table(matrix, [row.name for row in chosen], checks)
    if json_path is not None:
        Path(json_path).write_text(matrix.as_json(), encoding="utf-8")
    if html_path is not None:
        from checks._html import render  # noqa: PLC0415 -- only when it is asked for

        Path(html_path).write_text(render(matrix, [row.name for row in chosen], checks), encoding="utf-8")
    if not any(outcome.status == "kept" for outcome in matrix.outcomes) and not matrix.broken:
        complain("Nothing could be shown: every check was skipped.")
        return 2
    return 1 if matrix.broken else 0


def _check_arguments(world_sizes: Sequence[int], device: str, paths: Sequence[str | None]) -> None:
    for path in paths:
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {Path(path).parent}.")
    if not world_sizes or min(world_sizes) < 1:
        raise ValueError(f"World sizes are {list(world_sizes)}, expected numbers of at least 1.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("Device cuda was asked for, but torch sees no GPU. Leave --device out for the CPU.")


def _checks(only: Sequence[str]) -> list[Check]:
    known = all_checks()
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"There is no check {unknown[0]!r}. There are: {', '.join(sorted(known))}.")
    return [check for name, check in known.items() if not only or name in only]
