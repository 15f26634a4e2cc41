"""The conformance suite on a GPU, within a budget of time, and recorded: ``python -m tests.bench.conformance --help``.

The matrix is cut into parts that run side by side, each a process of its own that writes what it finds as it goes.
When the budget is spent, what has not ended is ended, and the report says what is missing.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from checks._package import DEFAULT_PACKAGE
from checks._rows import Backend
from checks.backends import rows
from checks.engine import all_checks
from checks.honest_formats import row_of
from checks.report import main as run_matrix

EXCHANGE_SECONDS = 20.0
CASE_SECONDS = 90.0


@dataclass(frozen=True)
class Part:
    """A part of the matrix."""

    sizes: tuple[int, ...]
    worlds: str = "processes"
    transport: str = "torch"
    backends: tuple[str, ...] = ()
    checks: str = "all"
    """``devices``: those of streams and graphs alone; ``others``: all but those; ``all but graphs``; ``wrong``: the
    wrong backends that show on a GPU only, each with its check alone, which have to be broken."""
    after: str = ""
    """The part that has to have ended before this one starts."""


def _parts() -> dict[str, Part]:
    # Processes that share a GPU take turns on it, which costs milliseconds each time that one waits for it: several
    # ranks that exchange tokens are threads, but for the library whose kernels wait for each other. Ranks that have
    # kernels of their own compiled are processes.
    local = tuple(name for name, row in rows().items() if row.replicated)
    sending = tuple(name for name in rows() if name not in local)
    return {
        "streams-and-graphs": Part((1,), checks="devices"),
        "wrong-on-a-gpu": Part((1,), checks="wrong"),
        "one-rank-local": Part((1,), backends=local, checks="others"),
        "two-ranks-local": Part((2,), backends=local),
        "four-ranks-local": Part((4,), backends=local),
        "one-rank": Part((1,), backends=sending, checks="others"),
        "two-ranks": Part((2,), "threads", backends=sending, checks="all but graphs"),
        "four-ranks": Part((4,), "threads", backends=sending, checks="all but graphs"),
        "nixl-ep-library": Part((1, 2, 4), transport="vendor", backends=("nixl_ep",), after="streams-and-graphs"),
    }


def _chosen(which: str) -> list[str]:
    """The names of a part's checks."""
    devices = [name for name, check in all_checks().items() if check.topic == "devices"]
    others = [name for name in all_checks() if name not in devices]
    # While one thread captures a graph, others may not wait for the device.
    without = [name for name in all_checks() if name != "graph_replay_equals_eager"]
    return {"all": list(all_checks()), "devices": devices, "others": others, "all but graphs": without}[which]


def wrong_on_a_gpu() -> dict[str, list[Backend]]:
    """The wrong backends that show on a GPU only, by the check that has to catch them."""
    return {
        check.name: [row_of(kind, DEFAULT_PACKAGE) for kind in check.wrong if kind.needs == "cuda"]
        for check in all_checks().values()
        if any(kind.needs == "cuda" for kind in check.wrong)
    }


def run_part(part: Part, device: str, path: Path) -> None:
    """Run a part here, into ``path``."""
    options = {
        "device": device,
        "transport": part.transport,
        "worlds": part.worlds,
        "seconds": EXCHANGE_SECONDS,
        "deadline": CASE_SECONDS,
    }
    if part.checks != "wrong":
        chosen = _chosen(part.checks)
        run_matrix(part.backends, only=chosen, world_sizes=part.sizes, json_path=str(path), **options)
        return
    outcomes = []
    for check, backends in wrong_on_a_gpu().items():
        run_matrix(extra_rows=backends, only=[check], world_sizes=part.sizes, json_path=str(path), **options)
        outcomes += json.loads(path.read_text())["outcomes"]
        path.write_text(json.dumps({"complete": True, "outcomes": outcomes}))


def _start(name: str, folder: Path, device: str) -> subprocess.Popen[bytes]:
    arguments = ["--part", name, "--device", device, "--output", str(folder / f"{name}.json")]
    command = [sys.executable, "-m", "tests.bench.conformance", *arguments]
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)


def run_parts(names: list[str], folder: Path, options: argparse.Namespace) -> None:
    """Run parts side by side within the budget, and write the report every few seconds."""
    ended: dict[str, str] = dict.fromkeys(names, "not started")
    waiting = {name: _parts()[name] for name in names}
    running: dict[str, subprocess.Popen[bytes]] = {}
    start = time.monotonic()
    while (waiting or running) and time.monotonic() - start < options.budget:
        for name in [name for name, part in waiting.items() if part.after not in {*waiting, *running}]:
            del waiting[name]
            running[name], ended[name] = _start(name, folder, options.device), "still running"
        time.sleep(2.0)
        for name in [name for name, process in running.items() if process.poll() is not None]:
            code = running.pop(name).returncode
            ended[name] = f"ended after {time.monotonic() - start:.0f} s with exit code {code}"
            print(f"{name}: {ended[name]}", flush=True)
        write(report(folder, ended, options.device), options.output)
    for name, process in running.items():
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ended[name] = f"cut off after {options.budget:.0f} s"
        print(f"{name}: {ended[name]}", flush=True)
    write(report(folder, ended, options.device), options.output)
    logs = [f"== {path.stem}\n{path.read_text(errors='replace')[-20_000:]}" for path in sorted(folder.glob("*.log"))]
    (options.output / "conformance.log").write_text("\n".join(logs))


def write(found: dict, output: Path) -> None:
    """The report, as data and as a page."""
    (output / "conformance.json").write_text(json.dumps(found, indent=1) + "\n")
    (output / "conformance.md").write_text(markdown(found))


def report(folder: Path, ended: dict[str, str], device: str) -> dict[str, object]:
    """What all parts found, as one."""
    parts = {}
    for name, how in ended.items():
        path = folder / f"{name}.json"
        found = json.loads(path.read_text()) if path.exists() else {"complete": False, "outcomes": []}
        parts[name] = {"how": how, "complete": found["complete"], "outcomes": found["outcomes"]}
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": f"python -m tests.bench.conformance --device {device}",
        "parts": parts,
    }


def markdown(found: dict) -> str:
    """The report as a page: a table of counts, what is broken, and what was not shown, with the reasons."""
    lines = [
        "# Conformance on a GPU",
        "",
        f"{found['device']}; torch {found['torch']}, Python {found['python']}. Command: `{found['command']}`.",
        "All ranks share the device; tokens go over gloo, and in the last part through the vendor's own library.",
        "",
        "| part | backend | ranks | kept | broken | skipped |",
        "|---|---|---|---|---|---|",
    ]
    broken, reasons = [], Counter()
    for name, part in found["parts"].items():
        cells: dict[tuple[str, int], Counter] = {}
        for one in part["outcomes"]:
            cells.setdefault((one["backend"], one["world_size"]), Counter())[one["status"]] += 1
            if one["status"] == "broken":
                broken.append(f"- {name}: {one['message']}")
            if one["status"] == "skipped":
                reasons[one["message"]] += 1
        lines += [
            f"| {name} | {backend} | {size} | {counts['kept']} | {counts['broken']} | {counts['skipped']} |"
            for (backend, size), counts in cells.items()
        ]
    missing = [f"- {name}: {part['how']}" for name, part in found["parts"].items() if not part["complete"]]
    for title, items in (
        ("Broken (all of wrong-on-a-gpu have to be, and nothing else)", broken),
        ("Not complete", missing),
        ("Skipped, and why", [f"- {count}x: {reason}" for reason, count in reasons.most_common()]),
    ):
        lines += ["", f"## {title}", "", *(items or ["Nothing."])]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the parts that the command line asks for, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, required=True, help="a folder for the report")
    parser.add_argument("--budget", type=float, default=170.0, help="seconds that everything together may take")
    parser.add_argument(
        "--part", choices=list(_parts()), help="run this part alone, in this process, into the file --output"
    )
    parser.add_argument("--only", action="append", choices=list(_parts()), help="parts to run; repeatable")
    options = parser.parse_args()
    if options.part:
        run_part(_parts()[options.part], options.device, options.output)
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run_parts(options.only or list(_parts()), Path(folder), options)
    print((options.output / "conformance.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
