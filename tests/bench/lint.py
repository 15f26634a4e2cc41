"""What our contracts add to lint-imports, as ratios against as many built-in contracts in the same run.

    python -m tests.bench.lint TREE                  all of it, on an unpacked vLLM release or a checkout
    python -m tests.bench.lint TREE --config FILE    another configuration than the vLLM preset
    python -m tests.bench.lint --sizes 1000,50000    the growth alone, on generated packages

It prints Markdown. Whole processes are timed from outside, in turn (ours, theirs, ours, theirs ...), each pair
under one state of the machine; the medians and the median of the pairwise ratios are printed. The rival is the
cheapest built-in contract type, ``protected``, in a form that is always kept. *Cold* runs begin with an empty
cache folder; *warm* runs with what the run before left there. Processor time is the steadier measure on a machine
that does other things, too.
"""

from __future__ import annotations

import argparse
import configparser
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import contracts
from contracts.presets import preset_path
from tests.bench.names import common_names
from tests.bench.synthetic import growth, synthesize

LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"
SIZES = "1000,10000,50000"
BASES = "vllm.v1.attention.backend.AttentionBackend,vllm.model_executor.custom_op.CustomOp"


@dataclass
class Run:
    """One process: wall-clock seconds, user + system seconds, peak memory in MiB."""

    wall: float
    cpu: float
    memory: float


@dataclass
class Pairs:
    """Runs of ours and of the rival, in turn."""

    ours: list[Run]
    theirs: list[Run]

    def median(self, side: str, measure: str) -> float:
        """The median of a measure ("wall", "cpu", "memory") on one side ("ours", "theirs")."""
        return statistics.median(getattr(run, measure) for run in getattr(self, side))

    def ratio(self, measure: str) -> float:
        """The median of the ratios, pair by pair."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return statistics.median(getattr(ours, measure) / getattr(theirs, measure) for ours, theirs in pairs)

    def added(self, measure: str) -> float:
        """The median of the differences, pair by pair."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return statistics.median(getattr(ours, measure) - getattr(theirs, measure) for ours, theirs in pairs)


def run(tree: Path, config: Path, cache: Path) -> Run:
    """Time one lint-imports; whether the contracts are kept does not matter here, only that they ran."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(Path(contracts.__file__).parent.parent)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    process = subprocess.Popen(
        [LINT_IMPORTS, "--no-logo", "--config", config, "--cache-dir", cache],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    printed = process.stdout.read().decode()
    _, _, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = 0
    if "Contracts: " not in printed or "ould not check" in printed:
        sys.exit(f"lint-imports --config {config} in {tree} did not check its contracts:\n{printed}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def rival(config: Path, folder: Path) -> Path:
    """As many built-in contracts, over the same root packages."""
    ours = configparser.ConfigParser()
    ours.read(config)
    session = ours["importlinter"]
    root = (session.get("root_package") or session["root_packages"].split()[0]).strip()
    lines = ["[importlinter]", f"root_package = {root}"]
    for number, section in enumerate(s for s in ours.sections() if s.startswith("importlinter:contract:")):
        lines += [
            f"[importlinter:contract:{number}]",
            f"name = {ours[section]['name']}",
            "type = protected",
            f"protected_modules = {root}",
            f"allowed_importers = {root}",
        ]
    path = folder / "rival.ini"
    path.write_text("\n".join(lines))
    return path


def compare(tree: Path, config: Path, runs: int) -> dict[str, Pairs]:
    """Pairs of runs by state."""
    results: dict[str, Pairs] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = rival(config, folder)
        caches = {config: folder / "ours", other: folder / "theirs"}
        run(tree, config, folder / "warm-up")  # the files into the page cache, the bytecode compiled
        time.sleep(2.5)  # a file younger than two seconds is never trusted by its time stamps
        for state in ("cold", "warm"):
            pairs = results[state] = Pairs([], [])
            for _ in range(runs):
                for path, into in ((config, pairs.ours), (other, pairs.theirs)):
                    if state == "cold":
                        shutil.rmtree(caches[path], ignore_errors=True)
                    into.append(run(tree, path, caches[path]))
        checkout = folder / tree.name
        shutil.copytree(tree, checkout, symlinks=True, ignore=shutil.ignore_patterns(".git"))
        files = [file for file in checkout.rglob("*") if file.is_file() and not file.is_symlink()]
        restored = folder / "restored"
        pairs = results["restored"] = Pairs([], [])
        for _ in range(runs):
            for file in files:
                os.utime(file)
            for path, into in ((config, pairs.ours), (other, pairs.theirs)):
                shutil.rmtree(restored, ignore_errors=True)
                shutil.copytree(caches[path], restored)
                into.append(run(checkout, path, restored))
    return results


def preset_table(tree: Path, config: Path, runs: int) -> None:
    """Print what a configuration costs on a tree."""
    contracts_in_it = len(re.findall(r"^\[importlinter:contract:", config.read_text(), re.MULTILINE))
    print(f"\n`{config.name}` ({contracts_in_it} contracts) on {tree.name}, {runs} pairs of runs each:\n")
    print(
        "| | ours, s | built-in, s | ratio | ratio of processor time | ours, MiB | built-in, MiB |\n"
        "|---|---|---|---|---|---|---|"
    )
    for state, pairs in compare(tree, config, runs).items():
        print(
            f"| {state} | {pairs.median('ours', 'wall'):.2f} | {pairs.median('theirs', 'wall'):.2f} "
            f"| **{pairs.ratio('wall'):.2f}** | {pairs.ratio('cpu'):.2f} "
            f"| {pairs.median('ours', 'memory'):.0f} | {pairs.median('theirs', 'memory'):.0f} |"
        )


def growth_table(sizes: Sequence[int]) -> None:
    """Print what one placement contract adds on generated packages."""
    print(
        "\nWhat a search for the hundred scattered subclasses of a base adds on generated packages, in processor time, "
        "when nothing is remembered (cold), one file was edited, or nothing changed (warm):\n"
    )
    print(
        "| modules | import graph, s | cold, ms | per 1,000 modules | one edit, ms | per 1,000 modules | warm, ms "
        "| per 1,000 modules | parsed: cold, one edit |\n|---|---|---|---|---|---|---|---|---|"
    )
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            synthesize(Path(name), size)
            row = growth(Path(name))
        times = " | ".join(f"{ms:.1f} | {ms * 1000 / size:.2f}" for ms in (row.cold, row.edited, row.warm))
        print(f"| {size:,} | {row.graph:.1f} | {times} | {row.parsed_cold}, {row.parsed_edited} |", flush=True)


def names_table(tree: Path, bases: Sequence[str]) -> None:
    """Print what bases with common names cost, against what reading the modules that can see them costs."""
    print(
        "\nBases with a common name, in processor seconds; *can see* are the modules that import the base's module, "
        "or that of one of its subclasses. The last column compares the answer with that of a search that parses "
        "every file of the tree and leaves nothing out:\n"
    )
    print(
        "| base | subclasses | modules that can see it | parsed | answer, s | reading and parsing those, s | "
        "missed, false |\n|---|---|---|---|---|---|---|"
    )
    for row in common_names(tree, bases):
        print(
            f"| `{row.base.rpartition('.')[2]}` | {row.found} | {row.seeing} | {row.parsed} | {row.answer:.2f} "
            f"| {row.reading:.2f} | {row.missed}, {row.false} |",
            flush=True,
        )


def machine() -> str:
    """The machine and the versions, in a line."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("import-linter", "grimp"))
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        processor = match[1] if match else processor
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {versions}; {processor}, {os.cpu_count()} cores, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", nargs="?", type=Path, help="a folder that holds the root package")
    parser.add_argument("--config", type=Path, help="a configuration; the vLLM preset unless told otherwise")
    parser.add_argument("--runs", type=int, default=9, help="pairs of runs in each state")
    parser.add_argument("--bases", default=BASES, help="classes of the tree with common names, separated by commas")
    parser.add_argument("--sizes", default=None, help=f"numbers of modules to generate; {SIZES} unless told otherwise")
    arguments = parser.parse_args()
    if arguments.tree is None and arguments.sizes is None:
        parser.error("give a TREE, or --sizes for the growth alone")
    print(f"{machine()}.")
    if arguments.tree is not None:
        tree = arguments.tree.resolve()
        config = (arguments.config or preset_path("vllm")).resolve()
        preset_table(tree, config, arguments.runs)
        names_table(tree, [base for base in arguments.bases.split(",") if base])
    if arguments.sizes != "":
        sizes = [int(size) for size in (arguments.sizes or SIZES).split(",")]
        growth_table(sizes)


if __name__ == "__main__":
    main()
