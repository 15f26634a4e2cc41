"""Every backend of vllm_moe keeps every contract that applies to it, in worlds of 1, 2 and 4 ranks."""

import pytest

from checks.backends import rows
from checks.engine import all_checks, judge
from checks.harness import Worlds

KINDS = ["threads", pytest.param("processes", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def worlds_of(worlds):
    """Worlds by kind."""
    made = {kind: Worlds(kind, seconds=10.0) for kind in ("threads", "processes")}
    yield made
    for one in made.values():
        one.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", sorted(rows()))
def test_a_backend_keeps_every_contract(worlds, worlds_of, name, size, kind):
    """Nothing is broken, and what is skipped says why."""
    outcomes = [
        judge((worlds[True] if one.instrumented else worlds_of[kind]).get(size), rows()[name], one)
        for one in all_checks().values()
    ]
    assert [outcome.message for outcome in outcomes if outcome.status == "broken"] == []
    assert all(outcome.message for outcome in outcomes if outcome.status == "skipped")
    assert sum(outcome.status == "kept" for outcome in outcomes) >= 12
