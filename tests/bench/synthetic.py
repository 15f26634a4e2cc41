"""Generated packages of any size."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import grimp

from contracts.source import Cache, Index, _interpreter

_BASE = """\
from abc import ABC, abstractmethod


class Base(ABC):
    @abstractmethod
    def run(self): ...
"""
_SUBCLASS = """\
from synthetic.base import Base


class Implementation(Base):
    def run(self):
        return helper(1)
"""
_NAMESAKE = """\
class Base:
    pass


class Other(Base):
    pass
"""


def synthesize(folder: Path, modules: int) -> None:
    """Write a package of that many modules: one base with a common name, a hundred scattered subclasses.

    Each module imports ten others, and each but the hundred defines a class whose base is a ``Base`` of its own.
    """
    package = folder / "synthetic"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text(_BASE)
    step = max(modules // 100, 1)
    for number in range(modules):
        group = package / f"group{number // 100}"
        if number % 100 == 0:
            group.mkdir()
            (group / "__init__.py").write_text("")
        parts = [
            f"from synthetic.group{other // 100}.module{other} import helper as helper{other}\n"
            for other in sorted({(number * 7 + k * 13) % modules for k in range(10)})
        ]
        parts.append("\n\ndef helper(value):\n    return value + 1\n\n\n")
        parts.append(_SUBCLASS if number % step == 0 else _NAMESAKE)
        parts += [f"\n\ndef work{k}(a, b):\n    return [a * b + {k} for _ in range({k})]\n" for k in range(20)]
        (group / f"module{number}.py").write_text("".join(parts))


@dataclass
class Growth:
    """What a search costs: processor time in ms (the import graph in s), and how many files it parses."""

    graph: float
    cold: float
    edited: float
    warm: float
    parsed_cold: int
    parsed_edited: int


def growth(folder: Path) -> Growth:
    """Search a generated package with nothing remembered, after one edit, and with nothing changed."""
    before, path = Path.cwd(), [*sys.path]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        started = time.process_time()
        graph = grimp.build_graph("synthetic", cache_dir=None)
        graph_s = time.process_time() - started
        time.sleep(2.5)  # a file younger than two seconds is never trusted by its time stamps
        cold, parsed_cold = _search(graph)
        warm = min(_search(graph)[0] for _ in range(3))
        edited = folder / "synthetic" / "group0" / "module0.py"
        edited.write_text(edited.read_text() + "# edited\n")
        time.sleep(2.5)
        again, parsed_edited = _search(graph)
    finally:
        os.chdir(before)
        sys.path[:] = path
    return Growth(graph_s, cold, again, warm, parsed_cold, parsed_edited)


def _search(graph: grimp.ImportGraph) -> tuple[float, int]:
    parsed = 0
    parse = _interpreter.parse

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return parse(*arguments, **options)

    with mock.patch.object(_interpreter, "parse", counted):
        started = time.process_time()
        answer = Index(["synthetic"], Cache("cache", [])).subclasses(["synthetic.base.Base"], graph)
        taken = time.process_time() - started
    assert len(answer.found) == 100, len(answer.found)
    return taken * 1000, parsed
