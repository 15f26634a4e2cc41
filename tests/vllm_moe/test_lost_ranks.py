"""Ranks that die or stay away: the others get an error that names them, in time."""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import pytest

from tests.vllm_moe.worlds import World, die
from vllm_moe.transports import EpGroup, TransportError

SECONDS = 4.0
"""Timeout of an exchange. Ranks on a busy machine have to start it, and then to give it up, within this."""


def exchange(group: EpGroup) -> list[list[int]]:
    """Do an exchange that needs every rank."""
    return group.gather_ints("test", [group.rank])


def exchange_twice(group: EpGroup) -> list[list[int]]:
    """Try again after a failure."""
    try:
        return exchange(group)
    except TransportError:
        return exchange(group)


def fail_at(group: EpGroup, numbers: Sequence[int]) -> str:
    """Say what a rank is told that has waited in vain in this exchange, or nothing if it has not."""
    group.timeout = timedelta(seconds=SECONDS)
    if group.rank >= len(numbers):
        return ""
    return str(group.failure("test", numbers[group.rank], RuntimeError("no answer")))


@pytest.fixture
def lonely() -> Iterator[Callable[[int], World]]:
    """Make a world that is not used again."""
    made = []

    def make(size: int) -> World:
        made.append(World(size, seconds=SECONDS))
        return made[-1]

    yield make
    for world in made:
        world.close()


def without_rank_1(world: World, function: Callable[[EpGroup], object]) -> dict[int, str]:
    """Call ``function`` on every rank but 1, and give what they raise."""
    others = [rank for rank in range(world.size) if rank != 1]
    for rank in others:
        world._pipes[rank].send((function, ()))
    results = world.collect(others)
    assert not any(good for good, _ in results.values())
    return {rank: text for rank, (_, text) in results.items()}


def told(rank: int, size: int) -> str:
    """Give what ``rank`` is told about rank 1."""
    return (
        f"test: exchange 1 of rank {rank} did not finish within 4 s: rank 1 of {size} died or never called it. "
        "The group cannot be used any more; start all ranks again. (gloo: "
    )


@pytest.mark.parametrize("size", [2, 3])
def test_a_rank_that_dies_is_named(lonely, size):
    """The others get an error that names the dead rank, long before their processes would be given up."""
    world = lonely(size)
    assert world.run(exchange) == [[[rank] for rank in range(size)]] * size
    world._pipes[1].send((die, ()))
    world.collect([1])
    for rank, text in without_rank_1(world, exchange).items():
        assert f"TransportError: {told(rank, size)}" in text


def test_a_rank_that_never_calls_is_named(lonely):
    """So do they when the rank lives and does something else."""
    for rank, text in without_rank_1(lonely(3), exchange).items():
        assert f"TransportError: {told(rank, 3)}" in text


def test_a_failed_group_stays_failed(lonely):
    """A later call on the same group says at once what happened before."""
    text = without_rank_1(lonely(2), exchange_twice)[0]
    assert f"TransportError: test: an earlier exchange of this group failed. {told(0, 2)}" in text


def test_a_rank_that_waits_elsewhere_is_not_taken_for_lost(lonely, world):
    """A rank that the lost one holds up in an earlier exchange is not blamed; without a lost one it is told."""
    said = "test: exchange {} of rank {} did not finish within 4 s: {}. The group"
    lost = "rank 2 of 3 died or never called it"
    texts = lonely(3).run(fail_at, [8, 7])
    assert texts[0].startswith(said.format(8, 0, lost))
    assert texts[1].startswith(said.format(7, 1, lost))
    texts = world(2).run(fail_at, [8, 7])
    assert texts[0].startswith(said.format(8, 0, "rank 1 in exchange 7 waited in vain too"))
    assert texts[1].startswith(said.format(7, 1, "rank 0 in exchange 8 waited in vain too"))
    assert world(2).run(fail_at, [8, 8])[0].startswith(said.format(8, 0, "every rank called it"))
