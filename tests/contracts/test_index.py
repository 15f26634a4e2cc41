"""The index of classes, on packages that say on each line what is expected of it."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from contracts.source import Answer, Cache, Index
from tests.bench.truth import RuntimeProcess, Truth
from tests.contracts.expectations import Case, Expectation, read_case

HIERARCHIES = Path(__file__).parent / "fixtures" / "hierarchies"
CASES = sorted(folder.name for folder in HIERARCHIES.iterdir() if folder.is_dir())


@pytest.fixture
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The fixture packages of one case, importable."""
    if request.param == "type_parameters" and sys.version_info < (3, 12):
        pytest.skip("type parameters are syntax of Python 3.12, and the index parses with the Python it runs on")
    folder = HIERARCHIES / request.param
    monkeypatch.syspath_prepend(folder)
    return read_case(folder)


@pytest.fixture(scope="module")
def process() -> Iterator[RuntimeProcess]:
    """A process that imports fixture packages, and leaves no bytecode beside them."""
    with RuntimeProcess(["-B"]) as running:
        yield running


def ask(case: Case, label: str) -> Answer:
    """The index's answer for one base of a case."""
    graph = grimp.build_graph(*case.roots, cache_dir=None)
    return Index(case.roots, Cache(None, [])).subclasses([case.bases[label]], graph)


def relative(case: Case, path: str) -> str:
    """A reported path, as expectations write it."""
    return str(Path(os.path.realpath(path)).relative_to(os.path.realpath(case.folder)))


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_reports_what_each_line_expects_and_nothing_else(case: Case) -> None:
    """For every base: found are the lines that say so, undecided those that say that, and no other line."""
    found: set[Expectation] = set()
    undecided: set[Expectation] = set()
    abstract: set[Expectation] = set()
    for label in case.bases:
        answer = ask(case, label)
        assert not answer.problems
        for definition in answer.found:
            expectation = Expectation(relative(case, definition.path), definition.line, label)
            found.add(expectation)
            if definition.is_abstract:
                abstract.add(expectation)
        undecided |= {Expectation(relative(case, item.path), item.line, label) for item in answer.undecided}
    problems = [
        *(f"{item} not found" for item in sorted(case.found - found)),
        *(f"{item} found" for item in sorted(found - case.found)),
        *(f"{item} not undecided" for item in sorted(case.undecided - undecided)),
        *(f"{item} undecided" for item in sorted(undecided - case.undecided)),
        *(f"{item} not abstract" for item in sorted(case.abstract - abstract)),
        *(f"{item} abstract" for item in sorted(abstract - case.abstract)),
    ]
    assert not problems, "\n".join(["", *problems])


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_expectations_are_what_python_makes_of_the_packages(case: Case, process: RuntimeProcess) -> None:
    """Every module imports; the lines that make subclasses are those expected to, undecided ones aside."""
    labels = list(case.bases)
    folders = [str(case.folder / root) for root in case.roots]
    runtime = process.ask(case.modules, folders, [case.bases[label] for label in labels], path=[str(case.folder)])
    assert not runtime.errors
    assert not runtime.bases
    paths = {module: path for path in case.folder.rglob("*.py") for module in [_module_of(case, path)]}
    truth = Truth(runtime, {module: str(path) for module, path in paths.items()})
    real: set[Expectation] = set()
    abstract: set[Expectation] = set()
    for place, (of, is_abstract) in truth.placed.items():
        for position in of:
            expectation = Expectation(relative(case, place.path), place.line, labels[position])
            real.add(expectation)
            if is_abstract:
                abstract.add(expectation)
    # Calls leave no line behind: their classes are told by the name that stands on the line.
    called = {(name, labels[position]) for _, name, of in truth.dynamic for position in of}
    lines = {item: _line(case, item) for item in case.found}
    by_call = {item for item, text in lines.items() if not re.match(r"\s*class\b", text)}
    made = {
        item for item in by_call for name, label in called if label == item.label and f'"{name}"' in _call(case, item)
    }
    expected = case.found - case.not_here
    problems = [
        *(f"{item} is expected, but Python makes no subclass there" for item in sorted(expected - by_call - real)),
        *(f"{item} is expected, but no call there made a subclass" for item in sorted(expected & by_call - made)),
        *(f"{item} is marked (not here), but Python makes one" for item in sorted(case.not_here & (real | made))),
        *(f"{item} is made, but not expected" for item in sorted(real - case.found - case.undecided)),
        *(f"{item} abstractness differs" for item in sorted((abstract ^ case.abstract) & expected)),
    ]
    assert not problems, "\n".join(["", *problems])


def test_a_base_whose_module_cannot_be_imported_is_named(tmp_path: Path, process: RuntimeProcess) -> None:
    """Whatever its module raises, the run-time side says so, and goes on."""
    module = "falls_at_import"
    (tmp_path / f"{module}.py").write_text("assert False, 'only on Windows'\n")
    runtime = process.ask([module], [str(tmp_path)], [f"{module}.Base"], path=[str(tmp_path)])
    assert runtime.errors == {module: "AssertionError: only on Windows"}
    assert runtime.bases == {f"{module}.Base": "AssertionError: only on Windows"}


def _module_of(case: Case, path: Path) -> str:
    parts = path.relative_to(case.folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _line(case: Case, item: Expectation) -> str:
    return _call(case, item).partition("\n")[0]


def _call(case: Case, item: Expectation) -> str:
    """The line of an expectation and the one after it, where a long call holds the name."""
    text = (case.folder / item.path).read_bytes().decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(text.split("\n")[item.line - 1 : item.line + 1])


@pytest.mark.parametrize("case", CASES[:1], indirect=True)
def test_a_process_that_reads_several_trees_keeps_one(case: Case) -> None:
    """What the index of a process's only run holds is out of the garbage collector's reach until there is another."""
    Index(case.roots, Cache(None, []), is_lasting=True)
    assert gc.get_freeze_count() > 0
    Index(case.roots, Cache(None, []))
    assert gc.get_freeze_count() == 0
