"""Every check catches what it is registered with, and reports it as that; the honest backend passes everything."""

import re
from pathlib import Path

import pytest
import torch

from checks import engine
from checks._package import DEFAULT_PACKAGE
from checks._registry import CHECKS, check
from checks.cases import Case
from checks.engine import all_checks, judge
from checks.honest import Honest
from checks.honest_formats import HonestBatched, HonestMonolithic, row_of
from checks.report import defects

CAUGHT = [
    pytest.param(one, kind, id=f"{one.name}-{kind.__name__}") for one in all_checks().values() for kind in one.wrong
]


@pytest.mark.parametrize(("one", "kind"), CAUGHT)
def test_a_wrong_backend_is_caught_by_its_check(request, worlds, one, kind):
    """The check says BROKEN, names backend and property, and how to see it again."""
    if kind.needs == "cuda":
        if not torch.cuda.is_available():
            pytest.skip(f"{kind.__name__} is wrong on a GPU only")
        worlds = request.getfixturevalue("worlds_on_a_gpu")
    row = row_of(kind, DEFAULT_PACKAGE)
    outcome = judge(worlds.get(kind.caught_in, one.packages(row)), row, one)
    assert outcome.status == "broken", outcome.message
    assert outcome.message.startswith(f"{kind.__name__}: {one.name}: rank")
    assert f"Should be: {one.property}" in outcome.message
    assert f"--backend {kind.__name__} --world-size {kind.caught_in} --seed 0" in outcome.message


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", [Honest, HonestBatched, HonestMonolithic])
def test_the_honest_backend_keeps_everything(worlds, kind, size):
    """So a wrong backend fails for the one thing that is wrong with it."""
    row = row_of(kind, DEFAULT_PACKAGE)
    outcomes = [judge(worlds.get(size, one.packages(row)), row, one) for one in all_checks().values()]
    assert [outcome.message for outcome in outcomes if outcome.status == "broken"] == []
    assert sum(outcome.status == "kept" for outcome in outcomes) >= 12


def test_every_wrong_backend_says_what_is_wrong():
    """Each has a clause for the table, and is registered with one check only."""
    kinds = [kind for one in all_checks().values() for kind in one.wrong]
    assert all(kind.defect for kind in kinds)
    assert len(set(kinds)) == len(kinds)
    assert len(kinds) >= 70


REAL_DEFECTS = (
    "57029 v0.9.1 every+release 24530 TopKWeightAndReduceContiguous NaiveBatched 46432 50511 48979 41249 20166 45298 "
    "41382 23619 32705 27666 newest+release 589 54683 42118 40960 39022 37418 57074 36678 28166 26532 51824 nixl_ep "
    "36050 19298 252 51984 43547 44452 58154 43694 30559 21603 37529 18178 45683 52639"
).split()


@pytest.mark.parametrize("number", REAL_DEFECTS)
def test_every_real_defect_has_a_wrong_backend(number):
    """Each defect that a real backend had is in the table of what the suite catches."""
    assert number.replace("+", " ") in defects()


def test_every_topic_is_listed():
    """No module with checks in it is left out of what is run."""
    folder = Path(engine.__file__).parent
    with_checks = {path.stem for path in folder.glob("*.py") if re.search(r"^@check\(", path.read_text(), re.MULTILINE)}
    assert with_checks == set(engine.TOPICS)


def test_a_check_needs_a_wrong_backend():
    """A check that nothing fails is refused when it is registered."""

    def something_holds(bench, case):
        """Something holds."""

    with pytest.raises(ValueError, match=r"something_holds: no wrong backend\. A check that nothing fails shows"):
        check(cases=[Case()], wrong=[])(something_holds)
    with pytest.raises(ValueError, match="no case"):
        check(cases=[], wrong=[Honest])(something_holds)
    assert "something_holds" not in CHECKS


def test_a_check_is_named_once():
    """A second check of the same name is refused."""

    def async_equals_sync(bench, case):
        """The same name."""

    with pytest.raises(ValueError, match="there is a check of this name in asynchrony already"):
        check(cases=[Case()], wrong=[Honest])(async_equals_sync)
