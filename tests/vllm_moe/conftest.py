"""Fixtures of the tests of vllm_moe."""

from collections.abc import Callable, Iterator

import pytest

from tests.vllm_moe.worlds import World


@pytest.fixture(scope="session")
def world() -> Iterator[Callable[[int], World]]:
    """Give a world of as many ranks as asked for; made once, and anew after a test that broke it."""
    made: dict[int, World] = {}

    def get(size: int) -> World:
        if size in made and made[size].broken:
            made.pop(size).close()
        if size not in made:
            made[size] = World(size)
        return made[size]

    yield get
    for one in made.values():
        one.close()
