"""Few tokens, none, as many as there is room for, and too many; and the hidden sizes that there are kernels for."""

from dataclasses import replace
from typing import Any, ClassVar

import torch

from checks import reference
from checks._ranks import Broken, NotShown
from checks._registry import check
from checks.bench import Bench, Trip, variants
from checks.cases import Case, Inputs
from checks.honest import Honest
from checks.honest_formats import HonestBatched, HonestMonolithic


class SkipsTheCollective(Honest):
    """Returns at once when it has no tokens."""

    defect = "a rank with no tokens skips the collective"
    seen_in = "all collectives, 51984, 53578; mori 109"

    def prepare(self, *arguments: Any, **named: Any) -> Any:
        """Nothing to send, so nothing is done."""
        a1, weights, ids = arguments[:3]
        if a1.size(0) == 0:
            return a1, None, None, ids, weights
        return super().prepare(*arguments, **named)

    def finalize(self, *arguments: Any, **named: Any) -> None:
        """Nothing to receive either."""
        if arguments[0].size(0):
            super().finalize(*arguments, **named)


class GivesNoWeightsWithoutTokens(Honest):
    """Gives None for the weights of nothing."""

    defect = "a rank with no tokens gets None weights"
    seen_in = "43547"
    caught_in = 1

    def result(self, got: Any, *arguments: Any) -> Any:
        """Ids without weights."""
        result = super().result(got, *arguments)
        return (*result[:4], None) if int(got.total) == 0 else result


class MonolithicStumblesOverNothing(HonestMonolithic):
    """Looks for the largest value of no values."""

    defect = "the amax of an empty batch raises"
    caught_in = 1

    def outgoing(self, a1: torch.Tensor, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Amax of nothing."""
        a1.amax()
        return super().outgoing(a1, scheme, config)


@check(
    cases=[
        *variants(
            Case(), tokens=((0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 3, 0, 2)), quantization=("none", "fp8_tensor")
        ),
        Case(tokens=(0, 0, 0, 1), quantization="fp8_block"),
    ],
    wrong=[SkipsTheCollective, GivesNoWeightsWithoutTokens, MonolithicStumblesOverNothing],
    monolithic=True,
)
def ranks_without_tokens_join(bench: Bench, case: Case) -> None:
    """No tokens at all and a single token work, and a rank that has none still takes part."""
    trip = bench.trip(case).prepare()
    problem = None
    if trip.logits is None and (trip.got_ids is None) != (trip.got_weights is None):
        problem = "of the dispatched ids and weights one is None and the other is not"
    bench.same_on_all(problem)
    bench.same_on_all(trip.experts().finalize().problem())


class DropsWhatDoesNotFit(Honest):
    """Sends as many rows as there is room for."""

    defect = "tokens past the capacity are dropped in silence"
    caught_in = 1

    def check_capacity(self, tokens: int) -> None:
        """Not at all."""

    def prepare_async(self, *arguments: Any, **named: Any) -> Any:
        """The first ones."""
        room = self.layer.max_num_tokens
        return super().prepare_async(*(one[:room] for one in arguments[:3]), *arguments[3:], **named)


class MakesTheBufferTooSmall(HonestBatched):
    """Has room for one rank's tokens."""

    defect = "buffer too small"
    seen_in = "deepep_ll, 19298, 57894"

    def rows_per_expert(self) -> int:
        """Not times the ranks."""
        return self.layer.max_num_tokens


class WrapsRowIndices(HonestBatched):
    """Numbers rows in 15 bits."""

    defect = "row index wraps"
    seen_in = "mori 252, 260 (32-bit row index)"
    caught_in = 1

    def row_index(self, place: torch.Tensor) -> torch.Tensor:
        """Modulo."""
        return place % (1 << 15)


_MANY = 65_540


@check(
    cases=[
        Case(tokens=(8, 8, 8, 8), routing="one_expert"),
        Case(tokens=(7, 7, 7, 7), capacity=7, routing="one_expert"),
        Case(tokens=(1, 1, 1, 1), capacity=1),
        Case(tokens=(9, 9, 9, 9), routing="one_expert", variant="one too many"),
        Case(
            tokens=(_MANY, 2, 2, 2),
            capacity=_MANY,
            num_experts=4,
            topk=1,
            routing="one_expert",
            variant="many rows",
        ),
    ],
    wrong=[DropsWhatDoesNotFit, MakesTheBufferTooSmall, WrapsRowIndices],
)
def capacity_is_kept_and_named(bench: Bench, case: Case) -> None:
    """As many tokens as the capacity work, odd numbers and over 65,535 too; one more is an error that names both."""
    if case.variant == "many rows":
        if bench.world_size > 1:
            raise NotShown(f"{_MANY} rows are sent by one rank to itself only: run it with --world-size 1")
        if bench.row.hidden > 512 and bench.device.type == "cpu":
            raise NotShown(f"{_MANY} rows of {bench.row.hidden} elements need a GPU's memory")
    if case.variant == "many rows":
        case = replace(case, hidden=128 if bench.row.round_up is None else bench.row.round_up(128, bench.dtype(case)))
    try:
        backend = bench.build(case)
    except Broken:
        raise
    except ValueError as refusal:
        if str(case.capacity) not in str(refusal):
            raise
        raise NotShown(f"{bench.row.name} refuses a capacity of {case.capacity}: {refusal}") from None
    limit = backend.max_num_tokens_per_rank()
    if case.variant == "many rows":
        bench.same_on_all(_outer_rows_problem(bench.trip(case, backend).run()))
        return
    if case.variant != "one too many" or limit is None:
        bench.same_on_all(bench.trip(case, backend).run().problem())
        return
    if limit != case.capacity:
        raise Broken(f"max_num_tokens_per_rank is {limit}, but the backend was built for {case.capacity}")
    text = None
    try:
        bench.trip(case, backend).prepare()
    except Broken:
        raise
    except Exception as refusal:  # noqa: BLE001 -- what it says is looked at
        text = str(refusal)
    problem = None
    if text is None and _too_many(bench, case, limit):
        problem = f"{limit + 1} tokens were taken, but there is room for {limit}: expected an error"
    if text is not None and not (str(limit) in text and str(limit + 1) in text):
        problem = f"the error for {limit + 1} tokens does not name {limit + 1} and {limit}: {text.splitlines()[0]!r}"
    bench.same_on_all(problem)


def _too_many(bench: Bench, case: Case, limit: int) -> bool:
    """Whether a rank has to see that there is no room: it sends too many, or one of its experts is sent too many."""
    if not bench.row.replicated:
        return True
    here = reference.expected_counts(case, bench.rank, bench.world_size, bench.all_inputs(case), merged=True)
    return max(here) > limit


def _outer_rows_problem(trip: Trip) -> str | None:
    """What is wrong with the first and last tokens of many: those whose row numbers are likeliest to be mixed up."""
    given, found = trip.on_cpu, trip.complete()
    for which, rows in (("first", slice(None, 200)), ("last", slice(-200, None))):
        some = Inputs(given.a1[rows], given.weights[rows], given.ids[rows])
        allowed = reference.allowed_error(trip.case, some, [], trip.bench.dtype(trip.case))
        error, words = reference.worst(found[rows], reference.dense_output(trip.case, some), allowed)
        if error > 1.0:
            return f"the {which} of {given.a1.size(0)} tokens are wrong: {words}"
    return None


def _keeps_hidden(hidden: int, _dtype: torch.dtype) -> int:
    return hidden


class HasKernelsForSomeSizes(Honest):
    """Rounds nothing up, and takes multiples of 512 only."""

    defect = "hidden sizes not compiled for"
    seen_in = "deepep_ll, 21603; DeepEP 329, 458"
    caught_in = 1
    declares: ClassVar[dict[str, Any]] = {"round_up": _keeps_hidden}

    def weighted_input(self, a1: torch.Tensor, weights: torch.Tensor, on_input: bool) -> torch.Tensor:
        """As a kernel that was not instantiated."""
        if a1.size(1) % 512:
            raise RuntimeError(f"Unsupported hidden size: {a1.size(1)}")
        return super().weighted_input(a1, weights, on_input)


@check(
    cases=variants(Case(tokens=(3, 2, 1, 2)), hidden=(100, 2048, 2560, 2880, 3072, 4096, 5120, 6144, 7168, 8192)),
    wrong=[HasKernelsForSomeSizes],
)
def rounded_hidden_sizes_are_accepted(bench: Bench, case: Case) -> None:
    """What maybe_roundup_layer_hidden_size gives is no smaller, and prepare takes it; trimmed, the output is right."""
    if bench.row.round_up is None:
        raise NotShown(bench.row.why("round_up", "it does not say how sizes are rounded up"))
    asked = case.hidden
    rounded = bench.row.round_up(asked, bench.dtype(case))
    if rounded < asked:
        raise Broken(f"hidden size {asked} is rounded to {rounded}, which is less")
    trip = bench.trip(replace(case, hidden=rounded))
    trip.a1[:, asked:] = 0
    trip.on_cpu = replace(trip.on_cpu, a1=trip.a1.cpu())
    trip.run()
    problem = trip.problem()
    if bool(trip.output[:, asked:].ne(0).any()):
        problem = problem or f"what was padded from {asked} to {rounded} is not zero in the output"
    bench.same_on_all(problem)
