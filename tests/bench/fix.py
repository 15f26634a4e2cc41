"""``moe-contracts fix`` on vLLM 0.19.1 against release 0.20.0, in which people made the same three moves.

    python -m tests.bench.fix vllm-0.19.1 vllm-0.20.0 [--runs 3] [--rope PYTHON] [--output results/fix.md]

takes two unpacked source distributions. On a copy of the first it runs ``fix --apply`` with the preset, checks that
the contracts are kept, that every file parses and that nothing uses an old path, and compares what came out with
the second: the new modules, the classes in them, and where the five files that import them take their names from.
Every difference is listed with its reason; the program fails if there is one without. ``--rope`` names a Python
that has rope, which then makes the same moves in another copy. Nothing of vLLM's text is printed or kept.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from contracts.presets import preset_path
from tests.contracts.projects import script

PACKAGE = "vllm.model_executor.layers.fused_moe"
FOLDER = Path(*PACKAGE.split("."))
PLACE = FOLDER / "prepare_finalize"
MOVES = {
    "BatchedPrepareAndFinalize": ("fused_batched_moe", "batched"),
    "MoriPrepareAndFinalize": ("mori_prepare_finalize", "mori"),
    "NixlEPPrepareAndFinalize": ("nixl_ep_prepare_finalize", "nixl_ep"),
}
IMPORTERS = [
    FOLDER / "all2all_utils.py",
    PLACE / "__init__.py",
    Path("tests/kernels/moe/test_batched_deepgemm.py"),
    Path("tests/kernels/moe/utils.py"),
    Path("tests/kernels/moe/modular_kernel_tools/mk_objects.py"),
]


class Comparison:
    """The lines of the report; ``unexplained`` counts the differences without a reason."""

    def __init__(self, before: Path, ours: Path, theirs: Path) -> None:
        self.before, self.ours, self.theirs = before, ours, theirs
        self.lines: list[str] = []
        self.unexplained = 0

    def say(self, subject: str, verdict: str) -> None:
        """A row of the report."""
        self.lines.append(f"| {subject} | {verdict} |")

    def differ(self, subject: str, fact: str, reason: str) -> None:
        """A difference, and its reason."""
        self.unexplained += not reason
        self.say(subject, f"{fact}: {reason or 'NO REASON FOUND'}")

    def run(self) -> None:
        """Compare everything."""
        self._modules()
        for name, (_, module) in MOVES.items():
            self._class(name, module)
        for path in IMPORTERS:
            self._imports(path)

    def _modules(self) -> None:
        added = [
            {p.name for p in (tree / PLACE).glob("*.py")} - {p.name for p in (self.before / PLACE).glob("*.py")}
            for tree in (self.ours, self.theirs)
        ]
        if added[0] == added[1] == {f"{module}.py" for _, module in MOVES.values()}:
            self.say("new modules", f"the same: {', '.join(sorted(added[0]))}")
        else:
            self.differ("new modules", f"{sorted(added[0])} against {sorted(added[1])}", "")
        for old in ("mori_prepare_finalize", "nixl_ep_prepare_finalize"):
            gone = [not (tree / FOLDER / f"{old}.py").exists() for tree in (self.ours, self.theirs)]
            if not all(gone):
                self.differ(f"`{old}.py`", f"gone here: {gone[0]}, there: {gone[1]}", "")

    def _class(self, name: str, module: str) -> None:
        source = MOVES[name][0]
        old, ours, theirs = (
            _class_in(tree / path, name)
            for tree, path in (
                (self.before, FOLDER / f"{source}.py"),
                (self.ours, PLACE / f"{module}.py"),
                (self.theirs, PLACE / f"{module}.py"),
            )
        )
        if ast.dump(ours) == ast.dump(theirs):
            self.say(f"class `{name}`", "the same")
            return
        moved_unchanged = ast.dump(ours) == ast.dump(old)
        lines = ast.unparse(ours).splitlines(), ast.unparse(theirs).splitlines()
        count = sum(a not in lines[1] for a in lines[0]) + sum(b not in lines[0] for b in lines[1])
        reason = "it moved unchanged, and the release changed it otherwise" if moved_unchanged else ""
        self.differ(f"class `{name}`", f"{count} line{'s' * (count != 1)} differ", reason)

    def _imports(self, path: Path) -> None:
        old, ours, theirs = (dict(_imported(tree / path)) for tree in (self.before, self.ours, self.theirs))
        known = f"`{path.as_posix()}`"
        same = 0
        for name in sorted({*ours, *theirs}):
            mine, other = ours.get(name), theirs.get(name)
            if mine == other:
                same += 1
                continue
            fact = f"`{name}` comes from {mine or 'nowhere'}, in the release from {other or 'nowhere'}"
            self.differ(known, fact, self._why(name, mine, other, old.get(name)))
        self.say(known, f"{same} imported names, the same; of these the moved ones: {self._moved(ours)}")

    def _why(self, name: str, mine: str | None, other: str | None, before: str | None) -> str:
        if name in MOVES:
            return ""
        if before is None and mine is None:
            return "the release uses it, which 0.19.1 did not"
        if mine == before and other is None:
            return "the release does not use it any more"
        if mine == before and other is not None and not _exists(self.before, other.rpartition(".")[0]):
            return "another move of the release"
        return ""

    @staticmethod
    def _moved(imported: dict[str, str]) -> str:
        found = sorted(f"{name} from `{path.rpartition('.')[0]}`" for name, path in imported.items() if name in MOVES)
        return ", ".join(found) or "none"


def _class_in(path: Path, name: str) -> ast.ClassDef:
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise SystemExit(f"{path} defines no {name}: are these the two releases?")


def _imported(path: Path) -> Iterator[tuple[str, str]]:
    """The names that a file imports, each with its absolute path."""
    tree = next(p for p in path.parents if (p / "vllm").is_dir())
    package = path.relative_to(tree).parent.parts
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{source}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name


def _exists(tree: Path, module: str) -> bool:
    path = tree.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def _copy(tree: Path, folder: Path, name: str) -> Path:
    copy = folder / name
    shutil.copytree(tree, copy, symlinks=True)
    for command in (["init", "-q"], ["add", "-A", "-f"], ["commit", "-q", "-m", "0.19.1"]):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@e", *command], cwd=copy, check=True)
    return copy


def _measured(command: list[str], folder: Path) -> tuple[float, float, subprocess.CompletedProcess[str]]:
    """Wall and CPU seconds of a command, and what came of it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def _check(tree: Path, cache: Path, preset: str) -> list[str]:
    """What is checked of the tree after the moves, as rows of the report."""
    found = []
    lint = [script("lint-imports"), "--no-logo", "--cache-dir", str(cache)]
    done = subprocess.run([*lint, "--config", preset], cwd=tree, capture_output=True, text=True, check=False)
    kept = re.search(r"Contracts: (\d+) kept, 0 broken\.", done.stdout)
    if done.returncode or kept is None:
        raise SystemExit(f"the preset is not kept:\n{done.stdout}")
    retired = "prepare-finalize-retired: nothing in vllm, benchmarks, docs, examples, tests and tools uses an old path"
    found.append(f"| `lint-imports` with the whole preset ({retired}) | {kept[0]} |")
    count = 0
    for path in tree.rglob("*.py"):
        ast.parse(path.read_bytes(), str(path))
        count += 1
    found.append(f"| every Python file parses | {count} files |")
    again = [script("moe-contracts"), "fix", "--config", preset, "--cache-dir", str(cache)]
    done = subprocess.run([*again, "--apply", "--allow-dirty"], cwd=tree, capture_output=True, text=True, check=False)
    if done.stdout != "Nothing to mend.\n":
        raise SystemExit(f"the second run found more to do:\n{done.stdout}{done.stderr}")
    found.append("| the second run | nothing to mend |")
    return found


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="vLLM 0.19.1, unpacked")
    parser.add_argument("after", type=Path, help="vLLM 0.20.0, unpacked")
    parser.add_argument("--runs", type=int, default=1, help="how often to measure")
    parser.add_argument("--rope", help="a Python that has rope")
    parser.add_argument("--output", type=Path, help="where to write the report, beside standard output")
    options = parser.parse_args()
    preset = str(preset_path("vllm"))
    lines = ["# The three moves of vLLM 0.20.0, made by `moe-contracts fix`", ""]
    with tempfile.TemporaryDirectory() as folder:
        cold, warm, ropes = [], [], []
        for run in range(options.runs):
            tree = _copy(options.before, Path(folder), f"tree-{run}")
            cache = Path(folder) / f"cache-{run}"
            cache.mkdir()
            command = [script("moe-contracts"), "fix", "--config", preset, "--cache-dir", str(cache)]
            cold.append(_measured([*command, "--diff"], tree)[:2])
            *times, done = _measured([*command, "--apply"], tree)
            if done.returncode:
                raise SystemExit(done.stderr)
            warm.append(times)
            if options.rope:
                copy = _copy(options.before, Path(folder), f"rope-{run}")
                rope = Path(__file__).with_name("rope_moves.py")
                *times, rope_done = _measured([options.rope, str(rope), str(copy)], copy)
                if rope_done.returncode:
                    raise SystemExit(rope_done.stderr)
                ropes.append(times)
                shutil.rmtree(copy)
            if run < options.runs - 1:
                shutil.rmtree(tree)
        checks = _check(tree, cache, preset)
        comparison = Comparison(options.before, tree, options.after)
        comparison.run()
    runs = f"{options.runs} run{'s' * (options.runs != 1)}"
    python = f"CPython {platform.python_version()}, {os.cpu_count()} cores, {runs}"
    lines += [f"`python -m tests.bench.fix` ({python}):", "", "| seconds, each run | wall | CPU |", "|---|---|---|"]
    for name, times in (
        ("`fix --diff`, no cache", cold),
        ("`fix --apply`, after it", warm),
        ("rope, the same moves", ropes),
    ):
        if times:
            walls, cpus = zip(*times, strict=True)
            lines.append(f"| {name} | {_seconds(walls)} | {_seconds(cpus)} |")
    lines += [
        "",
        "On a machine that does other things, too, compare CPU seconds.",
        "",
        "| after the moves | |",
        "|---|---|",
        *checks,
        "",
        "| against the release | |",
        "|---|---|",
    ]
    lines += [*comparison.lines, "", f"Differences without a reason: {comparison.unexplained}.", ""]
    report = "\n".join(lines)
    sys.stdout.write(report)
    if options.output:
        options.output.write_text(report)
    sys.exit(bool(comparison.unexplained))


def _seconds(times: tuple[float, ...]) -> str:
    return ", ".join(f"{seconds:.1f}" for seconds in times)


if __name__ == "__main__":
    main()
