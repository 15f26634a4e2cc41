"""Worlds that the tests of the suite share."""

import pytest

from checks.report import make_worlds


@pytest.fixture(scope="session")
def worlds():
    """Worlds of threads whose ranks give up soon, since many backends hang on purpose."""
    made = make_worlds("threads", seconds=5.0, deadline=60.0)
    yield made
    made.close()


@pytest.fixture(scope="session")
def worlds_on_a_gpu():
    """Worlds of processes, since a wrong backend may leave a stream that cannot be used any more."""
    made = make_worlds("processes", device="cuda")
    yield made
    made.close()
