"""What our contracts add to lint-imports, as ratios against as many built-in contracts in the same run.

    python -m tests.bench.lint TREE                    the vLLM preset on an unpacked release or a checkout
    python -m tests.bench.lint TREE --config FILE      another configuration
    python -m tests.bench.lint --synthetic 1000,50000  growth on generated packages

Whole processes are timed from outside, in turn (ours, theirs, ours, theirs ...), each pair under one state of
the machine; the medians and the median of the pairwise ratios are printed. The rival is the cheapest
built-in contract type, ``protected``, in a form that is always kept. *Cold* runs begin with an empty cache
folder; *warm* runs with what the run before left there.
"""

from __future__ import annotations

import argparse
import configparser
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import contracts

PRESET = Path(contracts.__file__).parent / "presets" / "vllm.ini"
LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


@dataclass
class Run:
    """One process: wall-clock seconds, user + system seconds, peak memory in MiB."""

    wall: float
    cpu: float
    memory: float


def run(tree: Path, config: Path, cache: Path) -> Run:
    """Time one lint-imports; whether the contracts are kept does not matter here, only that they ran."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(Path(contracts.__file__).parent.parent)}
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
    if "Contracts: " not in printed or "Could not check" in printed:
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


def compare(tree: Path, config: Path, runs: int) -> dict[str, tuple[list[Run], list[Run]]]:
    """Pairs of runs (ours, theirs) by state."""
    results: dict[str, tuple[list[Run], list[Run]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = rival(config, folder)
        caches = {config: folder / "ours", other: folder / "theirs"}
        run(tree, config, folder / "warm-up")  # the files into the page cache, the bytecode compiled
        time.sleep(2.5)  # a file younger than two seconds is never trusted by its time stamps
        for state in ("cold", "warm"):
            ours: list[Run] = []
            theirs: list[Run] = []
            for _ in range(runs):
                for path, into in ((config, ours), (other, theirs)):
                    if state == "cold":
                        shutil.rmtree(caches[path], ignore_errors=True)
                    into.append(run(tree, path, caches[path]))
            results[state] = (ours, theirs)
    return results


def table(title: str, results: dict[str, tuple[list[Run], list[Run]]]) -> None:
    """Print one comparison."""
    print(f"\n{title}")
    print(f"{'':8}{'ours s':>9}{'theirs s':>10}{'ratio':>8}{'cpu ratio':>11}{'ours MiB':>10}{'theirs MiB':>12}")
    for state, (ours, theirs) in results.items():
        ratio = statistics.median(a.wall / b.wall for a, b in zip(ours, theirs, strict=True))
        cpu = statistics.median(a.cpu / b.cpu for a, b in zip(ours, theirs, strict=True))
        print(
            f"{state:8}{statistics.median(r.wall for r in ours):9.3f}"
            f"{statistics.median(r.wall for r in theirs):10.3f}{ratio:8.3f}{cpu:11.3f}"
            f"{max(r.memory for r in ours):10.1f}{max(r.memory for r in theirs):12.1f}"
        )


def synthesize(folder: Path, modules: int) -> Path:
    """A package of that many modules: one base with a common name, a hundred scattered subclasses.

    Each module imports ten others and defines a class that its own, unrelated ``Base`` is the base of.
    """
    package = folder / "synthetic"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text(
        "from abc import ABC, abstractmethod\n\n\nclass Base(ABC):\n    @abstractmethod\n    def run(self): ...\n"
    )
    step = max(modules // 100, 1)
    for number in range(modules):
        group = package / f"group{number // 100}"
        if number % 100 == 0:
            group.mkdir()
            (group / "__init__.py").write_text("")
        lines = [
            f"from synthetic.group{other // 100}.module{other} import helper as helper{other}"
            for other in {(number * 7 + k * 13) % modules for k in range(10)}
        ]
        lines += ["", "def helper(value):", "    return value + 1", ""]
        if number % step == 0:
            lines += ["from synthetic.base import Base", "class Implementation(Base):", "    def run(self):"]
            lines += ["        return helper(1)"]
        else:
            lines += ["class Base:", "    pass", "class Other(Base):", "    pass"]
        lines += [f"def work{k}(a, b):\n    return [a * b + {k} for _ in range({k})]" for k in range(20)]
        (group / f"module{number}.py").write_text("\n".join(lines) + "\n")
    config = folder / ".importlinter"
    config.write_text(
        "[importlinter]\nroot_package = synthetic\ncontract_types =\n"
        "    placement: contracts.placement.PlacementContract\n"
        "[importlinter:contract:placement]\nname = placement\ntype = placement\n"
        "base_classes = synthetic.base.Base\nallowed_modules = synthetic.*\n"
    )
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", nargs="?", type=Path, help="a folder that holds the root package")
    parser.add_argument("--config", type=Path, default=PRESET)
    parser.add_argument("--runs", type=int, default=9, help="pairs of each state")
    parser.add_argument("--synthetic", help="numbers of modules, separated by commas")
    arguments = parser.parse_args()
    if (arguments.tree is None) == (arguments.synthetic is None):
        parser.error("give a TREE, or --synthetic SIZES")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("import-linter", "grimp"))
    print(f"{platform.python_implementation()} {platform.python_version()}, {versions}, {os.cpu_count()} cores")
    if arguments.tree is not None:
        results = compare(arguments.tree.resolve(), arguments.config.resolve(), arguments.runs)
        table(f"{arguments.config.name} on {arguments.tree.name}, {arguments.runs} pairs", results)
        return
    for size in map(int, arguments.synthetic.split(",")):
        with tempfile.TemporaryDirectory() as name:
            config = synthesize(Path(name), size)
            table(f"{size} modules, {arguments.runs} pairs", compare(Path(name), config, arguments.runs))


if __name__ == "__main__":
    main()
