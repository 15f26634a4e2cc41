"""A small repository to lint: written into a temporary folder, linted in this process or in one of its own."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import click
from click.testing import CliRunner
from importlinter.application import output
from importlinter.cli import lint_imports_command

from contracts._types import TYPES
from contracts.cli import main

__all__ = ["REPOSITORY", "Outcome", "Project", "listing", "marked", "refused", "report"]

REPOSITORY = Path(__file__).parents[2]

_COUNTS = re.compile(r"Analyzed \d+ files, \d+ dependencies\.\n-+\n")

# What lets root read and write whatever it likes (Linux: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH) is dropped before
# the program starts. Anyone else has no such right to lose.
_OBEY_MODES = """
import ctypes, os, sys
PR_CAPBSET_DROP = 24
if os.geteuid() == 0:
    for capability in (1, 2):
        if ctypes.CDLL(None, use_errno=True).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
os.execv(sys.argv[1], sys.argv[1:])
"""

Options = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of ``lint-imports`` left: its exit code and all that it printed."""

    code: int
    text: str

    def __iter__(self):
        """Unpack as ``code, text``; the counts of files and dependencies stand as N and M in the text."""
        counts = "Analyzed N files, M dependencies.\n" + "-" * len("Analyzed N files, M dependencies.") + "\n"
        return iter((self.code, _COUNTS.sub(counts, self.text)))


class Project:
    """A repository in ``folder``, linted from there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Write files, by their relative paths; a text is freed of its common indentation."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else dedent(content).encode())

    def contract(self, **options: str | Sequence[str]) -> None:
        """Configure one contract, named "Rule" unless told otherwise, for the root package ``pkg``."""
        self.configure([options])

    def configure(
        self,
        contracts: Sequence[Options],
        *,
        roots: Sequence[str] = ("pkg",),
        syntax: str = "ini",
        session: Options | None = None,
    ) -> None:
        """Write the configuration: ``.importlinter``, or ``pyproject.toml`` where ``syntax`` is "toml"."""
        contracts = [{"name": "Rule", **options} for options in contracts]
        used = {options.get("type") for options in contracts}
        types = [f"{name}: {path}" for name, path in TYPES.items() if name in used]
        head: Options = {"root_packages": roots, "contract_types": types, **(session or {})}
        for name in (".importlinter", "pyproject.toml"):
            (self.folder / name).unlink(missing_ok=True)
        if syntax == "ini":
            blocks = [_ini_block("importlinter", head)]
            blocks += [_ini_block(f"importlinter:contract:{n}", c) for n, c in enumerate(contracts)]
            self.write({".importlinter": "\n".join(blocks)})
        else:
            blocks = ["[tool.importlinter]\n" + _toml_lines(head)]
            blocks += ["[[tool.importlinter.contracts]]\n" + _toml_lines(c) for c in contracts]
            self.write({"pyproject.toml": "\n".join(blocks)})

    def lint(self, *arguments: str) -> Outcome:
        """Run ``lint-imports --no-logo`` in this process."""
        return self._invoke(lint_imports_command, ["--no-logo", *arguments])

    def moe_contracts(self, *arguments: str) -> Outcome:
        """Run ``moe-contracts`` in this process; what it says on standard error is at the end of the text."""
        return self._invoke(main, arguments)

    def _invoke(self, command: click.Command, arguments: Sequence[str]) -> Outcome:
        before = list(sys.path), Path.cwd(), output.console.soft_wrap
        importlib.invalidate_caches()
        os.chdir(self.folder)
        try:
            result = CliRunner().invoke(command, list(arguments), catch_exceptions=False, standalone_mode=True)
        finally:
            sys.path[:], folder, output.console.soft_wrap = before
            os.chdir(folder)
        return Outcome(result.exit_code, result.output)

    def run(self, command: Sequence[str], **options) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder, with this repository's ``contracts`` on the path, and ``path``."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "PYTHONWARNINGS"}
        }
        path = [REPOSITORY, *options.pop("path", ())]
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), **options.pop("env", {})}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
            **options,
        )

    def lint_as_process(self, *arguments: str, obeys_modes: bool = False, **options) -> Outcome:
        """Run the real ``lint-imports --no-logo``, its output in a pipe.

        With ``obeys_modes`` the permissions of files hold for it, even if it is root.
        """
        command = [script("lint-imports"), "--no-logo", *arguments]
        if obeys_modes:
            command = [sys.executable, "-c", _OBEY_MODES, *command]
        done = self.run(command, **options)
        return Outcome(done.returncode, done.stdout)


def script(name: str) -> str:
    """The path of a command installed beside the running Python."""
    found = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
    assert found, f"the command {name} is not installed"
    return found


def report(
    broken: Mapping[str, Sequence[str]] | None = None,
    *,
    kept: Sequence[str] = (),
    warnings: Mapping[str, Sequence[str]] | None = None,
    order: Sequence[str] | None = None,
) -> str:
    """A whole report as import-linter prints it (without its counts).

    Args:
        broken: the lines under each broken contract.
        kept: the kept contracts; the number of warnings is added by itself.
        warnings: the warnings of each contract that has some.
        order: the contracts as they are configured; alphabetical unless told otherwise.
    """
    broken, warnings = broken or {}, warnings or {}
    text = f"\n{_heading('Contracts')}{_heading('Analyzed N files, M dependencies.', above=False)}"
    names = order or sorted([*broken, *kept])
    for name in names:
        count = len(warnings.get(name, ()))
        suffix = f" ({count} warning{'s' if count > 1 else ''})" if count else ""
        text += f"{name} {'BROKEN' if name in broken else 'KEPT'}{suffix}\n"
    text += f"\nContracts: {len(kept)} kept, {len(broken)} broken.\n"
    if warnings:
        text += "\n" + _heading("Warnings")
        text += "\n".join(
            _heading(name, above=False) + "".join(f"- {line}\n" for line in lines)
            for name, lines in sorted(warnings.items(), key=lambda item: names.index(item[0]))
        )
    if broken:
        text += "\n\n" + _heading("Broken contracts")
        for name, lines in sorted(broken.items(), key=lambda item: names.index(item[0])):
            text += _heading(name, above=False) + "".join(f"{line}\n" for line in lines) + "\n"
    return text


def refused(name: str, *lines: str) -> str:
    """What import-linter prints of a contract whose options it refuses."""
    return f'Contract "{name}" is not configured correctly:\n' + "".join(f"    {line}\n" for line in lines)


def listing(folder: Path) -> list[str]:
    """The relative paths of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _heading(text: str, *, above: bool = True) -> str:
    line = "-" * len(text) + "\n"
    return f"{line if above else ''}{text}\n{line}\n"


def _ini_block(section: str, options: Options) -> str:
    lines = [f"[{section}]"]
    for name, value in options.items():
        if isinstance(value, str):
            lines.append(f"{name} = " + value.replace("\n", "\n    "))
        else:
            lines += [f"{name} =", *(f"    {item}" for item in value)]
    return "\n".join(lines) + "\n"


def _toml_lines(options: Options) -> str:
    lines = []
    for name, value in options.items():
        lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return "[" + ", ".join(_toml(item) for item in value) + "]"


def marked(project: Project, form: str, marks: Sequence[str] = ("broken",)) -> list[str]:
    """The findings that the comments ``# broken: ...`` of a project's files announce, in the order of a report.

    ``marks`` are the words that count in place of "broken"; ``form`` is formatted with ``path``, ``line``, ``column``
    (of the class's name), ``module`` and ``text``.
    """
    pattern = re.compile(rf"^(?P<indent>\s*)class (?P<name>\w+).*  # (?:{'|'.join(marks)}): (?P<text>.+)$")
    lines = []
    for path in sorted(str(path.relative_to(project.folder)) for path in project.folder.rglob("*.py")):
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for number, line in enumerate((project.folder / path).read_text().splitlines(), 1):
            match = pattern.match(line)
            if match:
                column = match.start("name") + 1
                lines.append(form.format(path=path, line=number, column=column, module=module, text=match["text"]))
    return lines
