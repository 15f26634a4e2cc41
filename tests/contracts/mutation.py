"""What the fixture of ``unmutated_inputs`` says about itself, and what running it says."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

FIXTURE = Path(__file__).parent / "fixtures" / "unmutated_inputs"
MODULES = ("statements", "views", "control", "containers", "calls")

_MARK = re.compile(r"# (?P<kind>writes|missed): (?P<labels>.+)$")
_LABEL = re.compile(r"(?:(?P<case>\w+)\.)?(?P<parameter>\w+)(?P<not_run> \(not run\))?")
_FINDING = re.compile(r"^(?P<path>[^:]+):(?P<line>\d+):\d+ (?P<case>\w+)\.apply.* its parameter '(?P<parameter>\w+)'")


class Write(NamedTuple):
    """A statement that writes into a parameter of a case."""

    path: str
    line: int
    case: str
    parameter: str


class Marks(NamedTuple):
    """What the comments say: what is ``reported``, and what running a case has ``done``, by case and parameter."""

    reported: set[Write]
    done: set[tuple[str, str]]


def marks() -> Marks:
    """Read the comments of the fixture."""
    reported: set[Write] = set()
    done: set[tuple[str, str]] = set()
    for path in sorted((FIXTURE / "moe").glob("*.py")):
        case = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            heading = re.match(r"class (\w+)", line)
            case = heading[1] if heading else case
            mark = _MARK.search(line)
            for label in mark["labels"].split(", ") if mark and path.stem != "base" else ():
                said = _LABEL.fullmatch(label)
                assert said, f"{path}:{number} says nothing: {label!r}"
                about = said["case"] or case, said["parameter"]
                if mark["kind"] == "writes":
                    reported.add(Write(f"moe/{path.name}", number, *about))
                if not said["not_run"]:
                    done.add(about)
    return Marks(reported, done)


def reported(text: str) -> set[Write]:
    """The findings in a report of ``lint-imports``."""
    found = (_FINDING.match(line) for line in text.splitlines())
    return {Write(m["path"], int(m["line"]), m["case"], m["parameter"]) for m in found if m}


class Measured(NamedTuple):
    """How reading agrees with running, over the cases' parameters."""

    cases: int
    clean: int
    parameters: int
    right: set[tuple[str, str]]
    false: set[tuple[str, str]]
    missed: set[tuple[str, str]]

    @property
    def precision(self) -> float:
        """Of the parameters that were reported, the share that is really written into."""
        return len(self.right) / (len(self.right) + len(self.false))

    @property
    def recall(self) -> float:
        """Of the parameters that are really written into, the share that was reported."""
        return len(self.right) / (len(self.right) + len(self.missed))


def measure(found: set[Write]) -> Measured:
    """Compare findings with what running the cases does; ``clean`` cases write into nothing."""
    done = {(name, parameter) for name, case in cases().items() for parameter in written(case)}
    said = {(write.case, write.parameter) for write in found}
    clean = len(cases().keys() - {case for case, _ in done})
    parameters = sum(len(inspect.signature(case.apply).parameters) - 1 for case in cases().values())
    return Measured(len(cases()), clean, parameters, said & done, said - done, done - said)


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Let the fixture be imported; afterwards nothing of it is, so that it can be linted."""
    sys.path.insert(0, str(FIXTURE))
    sys.modules.update(_imported)
    try:
        yield
    finally:
        sys.path.remove(str(FIXTURE))
        _imported.update({name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "moe"})


_imported: dict[str, ModuleType] = {}


@cache
def cases() -> dict[str, type]:
    """The classes of the fixture whose ``apply`` can be run."""
    with importable():
        modules = [importlib.import_module(f"moe.{name}") for name in MODULES]
    kernel = _imported["moe.base"].Kernel
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, kernel) and value is not kernel
    }


def written(case: type) -> set[str]:
    """The parameters of a case that running it changes, for any of some arguments."""
    found: set[str] = set()
    for seed in range(6):
        for flag in (False, True):
            generator = torch.Generator().manual_seed(seed)
            made = _arguments(generator, flag)
            names = inspect.signature(case.apply).parameters
            given = {name: made[name] for name in names if name != "self"}
            before = {name: [(t, t._version, t.clone()) for t in _tensors(value)] for name, value in given.items()}
            with importable():
                _run(case(), given)
            found |= {name for name, tensors in before.items() if name != "output" and any(map(_changed, tensors))}
    return found


def _changed(kept) -> bool:
    tensor, version, content = kept
    # What is written through .data or numpy moves no version.
    return tensor._version != version or not torch.equal(tensor, content)


def _arguments(generator: torch.Generator, flag: bool):
    def tensor(*shape):
        return torch.rand(shape, generator=generator) + 0.5

    box = _imported["moe.base"].Box
    return {
        "x": tensor(4, 4),
        "y": tensor(4, 4),
        "w": tensor(4, 1),
        "output": tensor(4, 4),
        "mask": torch.rand(4, generator=generator) < 0.5,
        "index": torch.randint(0, 4, (4,), generator=generator),
        "items": [tensor(4, 4), tensor(4, 4)],
        "table": {"a": tensor(4, 4), "b": tensor(4, 4)},
        "sizes": [1, 2],
        "box": box(tensor(4, 4)),
        "flag": flag,
        "count": 2,
    }


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, torch.Tensor))
    elif hasattr(value, "content"):
        yield value.content


def _run(kernel, given) -> None:
    """Call ``apply`` as a driver would, and then what it returns."""
    positional = [
        given.pop(name)
        for name, parameter in inspect.signature(kernel.apply).parameters.items()
        if parameter.kind is parameter.POSITIONAL_ONLY
    ]
    result = kernel.apply(*positional, **given)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    for hook in result if isinstance(result, tuple) else [result]:
        if callable(hook) and not isinstance(hook, torch.Tensor):
            hook()
