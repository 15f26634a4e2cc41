"""How far ``unmutated_inputs`` agrees with what running says.

``python -m tests.bench.mutation`` lints the cases of ``tests/contracts/fixtures/unmutated_inputs``, runs each with real
tensors, and prints a page: of the parameters that are reported, the share that running writes into (precision); of
those that running writes into, the share that is reported (recall); and each in which the two differ.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
from pathlib import Path

import torch

from tests.contracts.mutation import FIXTURE, measure, reported
from tests.contracts.projects import Project

__all__ = ["main"]


def main() -> None:
    """Print the page."""
    with tempfile.TemporaryDirectory() as folder:
        project = Project(Path(folder))
        shutil.copytree(FIXTURE, folder, dirs_exist_ok=True)
        options = {"base_classes": ["moe.base.Kernel"], "methods": ["apply"], "writable": ["apply.output"]}
        project.configure([{"type": "unmutated_inputs", **options}], roots=["moe"])
        measured = measure(reported(project.lint("--no-cache").text))
    print(f"CPython {platform.python_version()}, torch {torch.__version__.partition('+')[0]}.\n")
    print("| | |\n|---|---|")
    print(f"| functions | {measured.cases} |")
    print(f"| that write into none of their inputs | {measured.clean} |")
    print(f"| parameters | {measured.parameters} |")
    print(f"| not written into | {measured.parameters - len(measured.right) - len(measured.missed)} |")
    print(f"| reported, and written into | {len(measured.right)} |")
    print(f"| reported, and not written into | {len(measured.false)} |")
    print(f"| written into, and not reported | {len(measured.missed)} |")
    print(f"| precision | {measured.precision:.3f} |")
    print(f"| recall | {measured.recall:.3f} |")
    for name, found in (("Reported, and not written into", measured.false), ("Not reported", measured.missed)):
        print(f"\n{name}: " + ", ".join(f"`{case}.{parameter}`" for case, parameter in sorted(found)) + ".")


if __name__ == "__main__":
    main()
