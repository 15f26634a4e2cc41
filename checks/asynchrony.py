"""Hooks, receivers and micro-batches."""

from dataclasses import replace
from typing import Any

from checks._ranks import Broken, NotShown
from checks._registry import check
from checks.bench import Bench, Trip, same_bits, variants
from checks.cases import Case
from checks.honest import Honest


class DropsTheReceiveHook(Honest):
    """The synchronous finalize starts the combine and does not wait."""

    defect = "synchronous finalize drops the receive hook: returns before the data arrived"
    seen_in = "deepep_ll, nixl_ep"
    caught_in = 1

    def finalize(self, *arguments: Any, **named: Any) -> None:
        """The hook is never called."""
        _, receiver = self.finalize_async(*arguments, **named)
        receiver()


class SaysAsyncAndIsNot(Honest):
    """Says that it can overlap, and inherits the methods that raise."""

    defect = "shared expert overlapped on a backend that cannot"
    seen_in = "monolithic + all2all, 36050"
    caught_in = 1

    def prepare_async(self, *arguments: Any, **named: Any) -> Any:
        """Only its own prepare may."""
        if not named.pop("inside", False):
            raise NotImplementedError
        return super().prepare_async(*arguments, **named)

    def prepare(self, *arguments: Any, **named: Any) -> Any:
        """Synchronous."""
        hook, receiver = self.prepare_async(*arguments, **named, inside=True)
        hook()
        return receiver()


class GivesNoHook(Honest):
    """Gives a pair of which the first is None."""

    defect = "(None, callable) where (callable, callable) is promised"
    caught_in = 1

    def finalize_async(self, *arguments: Any, **named: Any) -> Any:
        """One function for both."""
        hook, receiver = super().finalize_async(*arguments, **named)

        def both() -> None:
            hook()
            receiver()

        return None, both

    def finalize(self, *arguments: Any, **named: Any) -> None:
        """As it should be."""
        self.finalize_async(*arguments, **named)[1]()


class HidesThatItIsAsync(Honest):
    """Has both halves, and says that it has not."""

    defect = "supports_async is False, though the halves are there"
    caught_in = 1

    def supports_async(self) -> bool:
        """Not so."""
        return False


@check(
    cases=[
        *variants(Case(), quantization=("none", "fp8_token", "fp8_block", "fp8_tensor")),
        Case(routing="holes", topk=3),
        Case(topk=1, weight_on_input=True),
        Case(tokens=(0, 3, 0, 1)),
    ],
    wrong=[DropsTheReceiveHook, SaysAsyncAndIsNot, GivesNoHook, HidesThatItIsAsync],
)
def async_equals_sync(bench: Bench, case: Case) -> None:
    """Where supports_async is True the two halves, hook then receiver, give what prepare and finalize give."""
    backend = bench.build(case)
    sync = bench.trip(case, backend).run()
    problem = sync.problem("the synchronous output")
    bench.same_on_all(problem)
    if not backend.supports_async():
        own = [name for name in ("prepare_async", "finalize_async") if _is_its_own(bench, backend, name)]
        if own:
            raise Broken(f"supports_async is False, but {' and '.join(own)} are there: the driver will never use them")
        raise NotShown(f"{bench.row.name} says that supports_async is False; its synchronous way is right")
    trip = bench.trip(case, backend)
    hook, receiver = trip.prepare_async()
    hook()
    receiver()
    problem = None
    if trip.a1q.shape != sync.a1q.shape or trip.a1q.dtype is not sync.a1q.dtype:
        problem = f"prepare_async gives activations {list(trip.a1q.shape)}, prepare {list(sync.a1q.shape)}"
    trip.experts()
    hook, done = trip.finalize_async()
    hook()
    done()
    found = trip.problem("the asynchronous output")
    problem = problem or found
    if bench.row.deterministic and not same_bits(trip.output, sync.output):
        problem = problem or "the asynchronous output has other bits than the synchronous one"
    bench.same_on_all(problem)


def _is_its_own(bench: Bench, backend: Any, name: str) -> bool:
    """Whether a backend has a method of its own, not the base's, which only raises."""
    base = getattr(bench.package.modular, name, None)
    return getattr(type(backend), name, None) is not base


class OverwritesTheFirstDispatch(Honest):
    """Has memory for one dispatch."""

    defect = "second dispatch overwrote the first's received rows"
    seen_in = "deepep_ht + two micro-batches, 27666, 46990"
    caught_in = 1

    def slot(self) -> int:
        """The same for all micro-batches."""
        return 0


class KeepsOneHandle(Honest):
    """Remembers the last dispatch only."""

    defect = "the second micro-batch's handle replaces the first's"
    caught_in = 1

    def prepare_async(self, *arguments: Any, **named: Any) -> Any:
        """For every micro-batch."""
        started = super().prepare_async(*arguments, **named)
        last = next(reversed(self.flights.values()))
        for number in self.flights:
            self.flights[number] = last
        return started


@check(
    cases=variants(
        Case(),
        variant=("p0 p1 f0 f1", "p0 p1 f1 f0", "overlapping sends"),
        quantization=("none", "fp8_token"),
    )
    + variants(Case(topk=3, routing="holes"), variant=("p0 p1 f0 f1", "p0 p1 f1 f0")),
    wrong=[OverwritesTheFirstDispatch, KeepsOneHandle],
)
def micro_batches_keep_their_own_handles(bench: Bench, case: Case) -> None:
    """Two micro-batches of different sizes in flight, finalized in either order, each get their own result."""
    if bench.row.micro_batch is None:
        raise NotShown(bench.row.why("micro_batch", "only one exchange may be in flight"))
    backend = bench.build(case)
    cases = [case, replace(case, seed=case.seed + 1, tokens=case.tokens[::-1])]
    trips = [bench.trip(one, backend, number) for number, one in enumerate(cases)]
    if case.variant == "overlapping sends":
        if not backend.supports_async():
            raise NotShown(f"{bench.row.name} says that supports_async is False")
        _overlap(bench, trips)
    else:
        for step in case.variant.split():
            trip = trips[int(step[1])]
            trip.prepare() if step[0] == "p" else trip.experts().finalize()
    problems = [trip.problem(f"the output of micro-batch {number}") for number, trip in enumerate(trips)]
    bench.same_on_all(next((problem for problem in problems if problem), None))


def _overlap(bench: Bench, trips: list[Trip]) -> None:
    """Both sends go out before either is received, on the way there and on the way back."""
    started = [trip.prepare_async() for trip in trips]
    for trip, (hook, receiver) in reversed(list(zip(trips, started, strict=True))):
        with bench.micro_batch(trip.number):
            hook()
            receiver()
        trip.experts()
    ending = [trip.finalize_async() for trip in trips]
    for trip, (hook, done) in reversed(list(zip(trips, ending, strict=True))):
        with bench.micro_batch(trip.number):
            hook()
            done()
