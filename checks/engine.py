"""Runs checks on backends, and says of each pair what came of it."""

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from checks._package import DEFAULT_PACKAGE
from checks._registry import CHECKS, Check
from checks._rows import Backend, Place
from checks.bench import Bench
from checks.cases import Case
from checks.harness import World, WorldFailure

__all__ = ["TOPICS", "WORLD_SIZES", "Outcome", "all_checks", "judge", "why_not"]

TOPICS = (
    "interface",
    "routing",
    "results",
    "quantization",
    "buffers",
    "asynchrony",
    "sizes",
    "topology",
    "vendors",
    "devices",
)
"""The modules that checks are in."""

WORLD_SIZES = (1, 2, 4)
"""What the cases have tokens for, and experts that can be shared out evenly."""

Status = Literal["kept", "broken", "skipped"]
_DRAWN_EXAMPLES = 5


@dataclass(frozen=True)
class Outcome:
    """What came of a check on a backend in one world."""

    backend: str
    check: str
    world_size: int
    status: Status
    message: str = ""
    """What was found and how to see it again, or the reason for skipping."""
    detail: str = ""
    """Stacks and traces."""
    left_out: tuple[str, ...] = ()
    """Cases that do not apply to the backend, with the reason."""
    cases: int = 0
    seconds: float = field(default=0.0, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The same for a report."""
        return asdict(self)


def all_checks() -> dict[str, Check]:
    """Every check there is, by name, in the order of :data:`TOPICS`."""
    for topic in TOPICS:
        importlib.import_module(f"checks.{topic}")
    return CHECKS


def run_case(place: Place, gather: Callable[[Any], list[Any]], row: Backend, name: str, case: Case, seed: int) -> None:
    """Run a check's case on one rank."""
    all_checks()[name].function(Bench(row, place, gather, seed), case)


def why_not(row: Backend, check: Check, case: Case, world: World) -> str | None:
    """Why a case does not apply to a backend; None when it does."""
    if world.size not in WORLD_SIZES:
        return f"a world of {world.size} ranks: the cases are laid out for {', '.join(map(str, WORLD_SIZES))}"
    if world.size not in row.world_sizes:
        return row.why("world_sizes", "it takes no others")
    if world.device not in row.devices:
        return row.why("devices", f"it does not run on {world.device}")
    if world.transport == "vendor":
        if row.vendor is None or not row.vendor.modules:
            return f"{row.name} has no vendor's library"
        if not any(importlib.util.find_spec(name) for name in row.vendor.modules):
            return f"no vendor's library for {row.name}: {' and '.join(row.vendor.modules)} cannot be found"
    if check.instrumented and importlib.util.find_spec("typeguard") is None:
        return "typeguard is not installed: pip install typeguard"
    if row.monolithic and not check.monolithic:
        return f"{row.name} is given router logits, no topk ids and weights"
    if row.monolithic and (
        case.weight_on_input
        or case.ids
        or case.placement != "linear"
        or case.routing in {"duplicates", "holes", "all_missing"}
    ):
        return f"{row.name} is given router logits, which cannot say {case}"
    declared: list[tuple[str, str, tuple[str, ...]]] = [
        ("dtype", "dtypes", row.dtypes),
        ("quantization", "quantizations", row.quantizations),
        ("reduction", "reductions", row.reductions),
        ("placement", "placements", row.placements),
    ]
    for one, many, allowed in declared:
        if getattr(case, one) and getattr(case, one) not in allowed:
            return row.why(many, f"{one} {getattr(case, one)} is not among them")
    if not row.skips_missing and case.routing in {"holes", "all_missing"}:
        return row.why("skips_missing", "it takes no ids of -1")
    return None


def judge(world: World, row: Backend, check: Check, seed: int = 0, command: str = "pytest --pyargs checks") -> Outcome:
    """Run every case of a check that applies to a backend, up to the first that fails.

    ``command`` is what the message says to start to see it again; the options are added.
    """
    start = time.perf_counter()
    left_out: list[str] = []
    reasons: list[str] = []
    count = 0

    def outcome(status: Status, message: str, detail: str = "") -> Outcome:
        seconds = time.perf_counter() - start
        return Outcome(row.name, check.name, world.size, status, message, detail, tuple(left_out), count, seconds)

    def run(case: Case) -> None:
        world.run(run_case, row, check.name, case, seed)

    try:
        for case in check.cases:
            reason = why_not(row, check, case, world)
            if reason is not None:
                left_out.append(f"{case}: {reason}")
                reasons.append(reason)
                continue
            try:
                run(case)
            except WorldFailure as failure:
                if failure.kind != "not shown":
                    raise
                left_out.append(f"{case}: {failure}")
                reasons.append(str(failure))
            else:
                count += 1
        if check.drawn is not None and count:
            count += _run_drawn(run, row, check, world, seed)
    except WorldFailure as failure:
        failing = case if not isinstance(failure.__cause__, _Drawn) else failure.__cause__.case
        head, _, detail = str(failure).partition("\n")
        if not head.startswith("rank"):
            head = f"rank {failure.rank} of {world.size}: {head}"
        message = (
            f"{row.name}: {check.name}: {head} (in {failing}). Should be: {check.property} "
            f"Reproduce: {command} {_options(row, check, world, seed)}"
        )
        return outcome("broken", message, detail)
    if not count:
        return outcome("skipped", "; ".join(dict.fromkeys(reasons)))
    return outcome("kept", "")


class _Drawn(Exception):  # noqa: N818 -- it carries the case that hypothesis found
    def __init__(self, case: Case) -> None:
        super().__init__(str(case))
        self.case = case


def _run_drawn(run: Callable[[Case], None], row: Backend, check: Check, world: World, seed: int) -> int:
    """Let hypothesis draw cases, and shrink the first that fails; gives their number."""
    import hypothesis  # noqa: PLC0415 -- the checks themselves do without

    failures: list[tuple[Case, WorldFailure]] = []
    drawn = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=_DRAWN_EXAMPLES,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(case=check.drawn)
    def holds(case: Case) -> None:
        nonlocal drawn
        if why_not(row, check, case, world) is None:
            drawn += 1
            try:
                run(case)
            except WorldFailure as failure:
                failures.append((case, failure))
                raise

    try:
        holds()
    except WorldFailure as failure:
        raise failure from _Drawn(failures[-1][0])
    return drawn


def _options(row: Backend, check: Check, world: World, seed: int) -> str:
    options = [f"--backend {row.name}", f"--world-size {world.size}", f"--seed {seed}"]
    if row.fused_moe != DEFAULT_PACKAGE:
        options.append(f"--fused-moe {row.fused_moe}")
    if world.kind == "processes" and not check.instrumented:
        options.append("--worlds processes")
    if world.device != "cpu":
        options.append(f"--device {world.device}")
    if world.transport != "torch":
        options.append(f"--transport {world.transport}")
    return f"{' '.join(options)} -k {check.name}"
