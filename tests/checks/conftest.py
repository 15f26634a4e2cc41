"""Worlds that the tests of the suite share."""

import pytest

from checks._package import DEFAULT_PACKAGE
from checks.report import make_worlds


@pytest.fixture(scope="session")
def worlds():
    """Worlds of threads, and of instrumented processes, with timeouts that suit backends that hang on purpose."""
    made = make_worlds("threads", seconds=2.0, deadline=30.0)
    made[True].options["instrumented"] = (
        f"{DEFAULT_PACKAGE}.prepare_finalize",
        "checks.honest",
        "checks.interface",
    )
    made[True].options["seconds"] = 20.0
    yield made
    for one in made.values():
        one.close()
