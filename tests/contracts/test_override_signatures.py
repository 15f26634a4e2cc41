"""The contract type ``override_signatures``."""

import re
import shutil
from pathlib import Path

import pytest

from tests.contracts.projects import Project

TYPES = {"contract_types": ["override_signatures: contracts.override_signatures.OverrideSignaturesContract"]}
_BASES = {
    "annotations": ["Base", "GenericBase"],
    "decorators": ["Base"],
    "defaults": ["Base"],
    "inheritance": ["Base"],
    "kinds": ["Base"],
    "parameters": ["Base"],
}
_REPORTED = re.compile(r"(?P<path>\S+):(?P<line>\d+):\d+ (?P<what>\S+) (?P<fact>.*?): \S+ \(\S+:\d+\) .*[.]")
_OPEN = re.compile(
    r"(?P<path>\S+):(?P<line>\d+):\d+ (?P<what>\S+) may not fit .*?: reading cannot tell (?P<fact>.*?)[.] If it is right, "
    r"add \S+ to ignore_definitions"
)


def configure(project: Project, *, roots=("pkg",), **options) -> None:
    project.configure(
        [{"type": "override_signatures", "base_classes": ["pkg.base.Base"], **options}],
        roots=roots,
        session=TYPES,
    )


@pytest.fixture
def moe(empty, fixtures) -> Project:
    """Give a copy of the fixture: overrides of all kinds, with what is said of them on their lines."""
    shutil.copytree(fixtures / "overrides", empty.folder, dirs_exist_ok=True)
    bases = [f"moe.{module}.{name}" for module, names in _BASES.items() for name in names]
    configure(empty, roots=["moe"], base_classes=bases)
    return empty


def marked(folder: Path, mark: str) -> list[tuple[str, int, str]]:
    """What the comments of a fixture announce: path, line and fact, in order."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.search(rf"  # {mark}: (.+)$", line)
            if match:
                relative = str(path.relative_to(folder))
                found += [(relative, number, fact) for fact in match[1].split(" & ")]
    return sorted(found)


def read(lines: list[str], form: re.Pattern[str]) -> list[tuple[str, int, str]]:
    """What the lines of a report say, in the same form."""
    found = []
    for line in lines:
        match = form.fullmatch(line)
        assert match, line
        fact = match["fact"].partition(", which ")[2] if " takes " in line and ", which " in match["fact"] else match["fact"]
        found.append((match["path"], int(match["line"]), fact))
    return sorted(found)


def reported(outcome, section: str) -> list[str]:
    body = outcome.text.partition(f"\n{section}\n")[2]
    return [line.removeprefix("- ") for line in body.splitlines() if re.match(r"(?:- )?\S+\.py:", line)]


def test_findings_stand_where_the_fixture_says(moe):
    """Each override that does not fit is reported, and each of which reading cannot tell; nothing else is."""
    outcome = moe.lint()
    broken = reported(outcome, "Broken contracts")
    assert read(broken, _REPORTED) == marked(moe.folder, "broken")
    warnings = [line for line in reported(outcome, "Warnings") if line not in broken]
    assert read(warnings, _OPEN) == marked(moe.folder, "open")
