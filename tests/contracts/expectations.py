"""What the fixture packages say about themselves, on the lines that it is about.

A comment at the end of a line that makes a class, or ``# below: `` and the same on the line above it:

- ``# base: Label``: questions are asked about this class;
- ``# found: Label, Label``: it is a subclass of these;
- ``# undecided: Label``: reading cannot tell whether it is;
- ``(not here)`` after a label: with the interpreter and platform of any test run, running the code does not make a
  subclass of it here: the function is not called, the branch not taken. Reading tells that it could;
- ``(abstract)`` at the end: abstract methods are left in it.

Lines without a comment expect nothing, and nothing else may be reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Case", "Expectation", "read_case"]

_MARK = re.compile(r"# (?P<below>below: )?(?P<kind>base|found|undecided): (?P<labels>[^#]*)$")
_LABEL = re.compile(r"(?P<name>[\w.]+)(?P<not_here> \(not here\))?")
_CLASS_NAME = re.compile(r"class\s+(\w+)")


@dataclass(frozen=True, slots=True, order=True)
class Expectation:
    """One line of one file (relative to the case's folder), and what it expects of one base."""

    path: str
    line: int
    label: str


@dataclass(slots=True)
class Case:
    """A fixture: ``roots`` its root packages, ``bases`` the dotted name of each label."""

    folder: Path
    roots: list[str]
    bases: dict[str, str] = field(default_factory=dict)
    found: set[Expectation] = field(default_factory=set)
    undecided: set[Expectation] = field(default_factory=set)
    not_here: set[Expectation] = field(default_factory=set)
    abstract: set[Expectation] = field(default_factory=set)

    @property
    def modules(self) -> list[str]:
        """All modules, in order."""
        return sorted(_module(path.relative_to(self.folder)) for path in self.folder.rglob("*.py"))


def read_case(folder: Path) -> Case:
    """Read the expectations of a case, which is a folder of root packages."""
    roots = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__")
    case = Case(folder, roots)
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        for line, text in _lines(path):
            match = _MARK.search(text)
            if match is None:
                continue
            labels = match["labels"].strip()
            is_abstract = labels.endswith("(abstract)")
            for label in labels.removesuffix("(abstract)").split(","):
                said = _LABEL.fullmatch(label.strip())
                assert said is not None, f"{path}:{line} has an expectation that says nothing: {labels!r}"
                _note(case, relative, line + bool(match["below"]), match["kind"], said, text)
                if is_abstract:
                    case.abstract.add(Expectation(str(relative), line + bool(match["below"]), said["name"]))
    assert case.bases, f"{folder} has no '# base:' comment"
    unknown = {item.label for item in case.found | case.undecided} - case.bases.keys()
    assert not unknown, f"{folder} expects something of {sorted(unknown)}, which no '# base:' comment names"
    return case


def _note(case: Case, path: Path, line: int, kind: str, said: re.Match[str], text: str) -> None:
    label = said["name"]
    if kind == "base":
        name = _CLASS_NAME.search(text)
        assert name is not None, f"{path}:{line} is no class statement"
        assert label not in case.bases, f"{path}:{line} uses the label {label} a second time"
        # Nested classes are named Outer.Inner by an indented statement under the last one that is not.
        outer = _outer(case.folder / path, line) if text[:1].isspace() else ""
        case.bases[label] = f"{_module(path)}.{outer}{name[1]}"
        return
    expectation = Expectation(str(path), line, label)
    (case.found if kind == "found" else case.undecided).add(expectation)
    if said["not_here"]:
        case.not_here.add(expectation)


def _outer(path: Path, line: int) -> str:
    names = [_CLASS_NAME.match(text) for number, text in _lines(path) if number < line]
    return [name[1] for name in names if name][-1] + "."


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # Marks are ASCII, whatever the rest is written in; a lone carriage return ends a line too.
    text = path.read_bytes().decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    yield from enumerate(text.split("\n"), 1)


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
