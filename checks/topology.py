"""Which ranks a backend goes by, when there are several ways of being parallel."""

from checks._ranks import Broken, NotShown
from checks._registry import check
from checks.bench import Bench
from checks.cases import Case
from checks.honest import Honest
from checks.honest_formats import HonestMonolithic


class GoesByTheDataParallelSize(Honest):
    """Takes its configuration by the data-parallel size."""

    defect = "dispatch configuration looked up by dp_size"
    seen_in = "deepep_ht, 23619"
    caught_in = 4

    def group_size(self) -> int:
        """The data-parallel size."""
        return self.layer.dp_size


class UsesTheWrongGroup(HonestMonolithic):
    """Sums over the data-parallel group."""

    defect = "wrong group in DP2 x TP2"
    seen_in = "naive, 32705"
    caught_in = 4

    def group_size(self) -> int:
        """The data-parallel size."""
        return self.layer.dp_size


@check(
    cases=[Case(grid=grid, topk=4) for grid in ((1, 1), (2, 1), (4, 1), (2, 2))],
    wrong=[GoesByTheDataParallelSize, UsesTheWrongGroup],
    monolithic=True,
)
def sizes_follow_the_expert_parallel_group(bench: Bench, case: Case) -> None:
    """Whatever the data- and tensor-parallel sizes, the ranks that hold experts are those that tokens come from."""
    dp, tp = case.grid
    if dp * tp != bench.world_size:
        raise NotShown(f"a grid of {dp} x {tp} is no world of {bench.world_size}")
    if not bench.row.grids:
        raise NotShown(bench.row.why("grids", "it is built without a grid"))
    trip = bench.trip(case)
    expected = 1 if bench.row.replicated else bench.world_size
    if trip.backend.num_dispatchers() != expected:
        raise Broken(
            f"num_dispatchers is {trip.backend.num_dispatchers()} in a grid of {dp} x {tp}, should be {expected} (the "
            "expert-parallel size)"
        )
    bench.same_on_all(trip.run().problem())
