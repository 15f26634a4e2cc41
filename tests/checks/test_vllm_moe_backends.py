"""Every backend of vllm_moe keeps every contract that applies to it, in worlds of 1, 2 and 4 ranks."""

import pytest

from checks.backends import rows
from checks.engine import all_checks, judge
from checks.report import make_worlds


@pytest.fixture(scope="module", params=["threads", pytest.param("processes", marks=pytest.mark.slow)])
def worlds_of_both_kinds(request):
    """Ranks in threads for speed, and in processes for truth."""
    made = make_worlds(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in sorted(rows().items())])
def test_a_backend_keeps_every_contract(worlds_of_both_kinds, row, size):
    """Nothing is broken, and what is skipped says why."""
    worlds = worlds_of_both_kinds
    outcomes = [judge(worlds.get(size, one.packages(row)), row, one) for one in all_checks().values()]
    assert [outcome.message for outcome in outcomes if outcome.status == "broken"] == []
    assert all(outcome.message for outcome in outcomes if outcome.status == "skipped")
    assert sum(outcome.status == "kept" for outcome in outcomes) >= 12
