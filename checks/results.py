"""What comes out: equal to the dense reference, weighted once, complete where it is said to be, and reproducible."""

import inspect
from typing import Any

import torch
from hypothesis import strategies

from checks import reference
from checks._package import QUANTIZATIONS
from checks._ranks import NotShown
from checks._registry import check
from checks.bench import Bench, Trip, same_bits, variants
from checks.cases import ROUTINGS, Case
from checks.honest import Honest
from checks.honest_formats import HonestBatched, HonestMonolithic

__all__ = ["drawn_routings"]


@strategies.composite
def drawn_routings(draw: Any) -> Case:
    """Any routing of up to 8 tokens on each of up to 4 ranks: repeated ids, -1, skew, ranks without tokens."""
    topk = draw(strategies.integers(1, 4))
    slot = strategies.integers(-1, 7)
    ids = draw(
        strategies.lists(
            strategies.lists(strategies.lists(slot, min_size=topk, max_size=topk), max_size=8),
            min_size=4,
            max_size=4,
        )
    )
    return Case(
        ids=tuple(tuple(tuple(row) for row in rank) for rank in ids),
        tokens=tuple(len(rank) for rank in ids),
        topk=topk,
        quantization=draw(strategies.sampled_from(("none", "fp8_token"))),
    )


class RefusesRepeatedExperts(Honest):
    """Has room for each expert of a token once."""

    defect = "a token naming one expert twice raises"
    seen_in = "NaiveBatched to 0.20.0"
    caught_in = 1

    def physical_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Raises, as an in-place add through an index with repetitions did."""
        for row in ids.tolist():
            named = [expert for expert in row if expert >= 0]
            if len(set(named)) < len(named):
                raise RuntimeError("The expanded size of the tensor must match the existing size")
        return super().physical_ids(ids)


class AnswersWithZeros(Honest):
    """Gives zeros."""

    defect = "the output is zero, which loose tolerances let pass"
    caught_in = 1

    def write(self, output: torch.Tensor, combined: torch.Tensor) -> None:
        """Whatever the experts said."""
        output.zero_()


class LosesItsNeighbour(Honest):
    """Adds up what this rank made, and leaves out the others."""

    defect = "partial results of other ranks are lost"

    def combine_ids(self, flight: Any, given_ids: torch.Tensor) -> torch.Tensor:
        """Only this rank's experts."""
        ids, local = flight.own_ids, self.layer.num_local_experts
        kept: torch.Tensor = torch.where(ids // local == self.place.rank, ids, -1)
        return kept


class SwapsWeights(Honest):
    """Reads a row's weights backwards."""

    defect = "weights are those of another slot"
    caught_in = 1

    def weigh(self, fused: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, on_input: bool) -> torch.Tensor:
        """Backwards."""
        return super().weigh(fused, weights.flip(1), ids, on_input)


@check(
    cases=[
        *variants(Case(), routing=ROUTINGS),
        *variants(Case(), quantization=QUANTIZATIONS[1:]),
        *variants(Case(), topk=(1, 3, 8)),
        Case(dtype="float16"),
        Case(dtype="float32"),
        Case(num_experts=16, topk=5, routing="skewed"),
        Case(strided=True),
    ],
    wrong=[RefusesRepeatedExperts, AnswersWithZeros, LosesItsNeighbour, SwapsWeights],
    monolithic=True,
    drawn=drawn_routings(),
)
def round_trip_equals_the_dense_reference(bench: Bench, case: Case) -> None:
    """prepare, experts with a factor of their own and finalize give what a dense float64 layer gives."""
    bench.same_on_all(bench.trip(case).run().problem())


class WeighsTwice(Honest):
    """Applies the weights to the input, and again to the output."""

    defect = "weights applied in prepare and again in unpermute"
    seen_in = "CUTLASS experts, 43694"
    caught_in = 1

    def weigh(self, fused: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, on_input: bool) -> torch.Tensor:
        """Again."""
        return super().weigh(fused, weights, ids, False)


class WeighsTwiceWhenBatched(HonestBatched):
    """The same in the batched format."""

    defect = "weights applied on the input and in the combine"
    caught_in = 1

    def finalize_async(self, *arguments: Any, **named: Any) -> Any:
        """Whatever the flag says."""
        arguments = (*arguments[:4], False, *arguments[5:])
        return super().finalize_async(*arguments, **named)


@check(
    cases=[
        *variants(
            Case(topk=1),
            weight_on_input=(True, False),
            quantization=("none", "fp8_token", "fp8_block", "fp8_tensor"),
        ),
        *variants(Case(topk=1), weight_on_input=(True, False), reduction=("contiguous", "noop", "naive_batched")),
        *variants(Case(), reduction=("delegate", "contiguous", "noop", "naive_batched")),
    ],
    wrong=[WeighsTwice, WeighsTwiceWhenBatched],
)
def router_weights_are_applied_once(bench: Bench, case: Case) -> None:
    """Router weights are in the output once, on the input or in the reduction, whoever reduces."""
    trip = bench.trip(case).run()
    problem = trip.problem()
    if problem is not None:
        given = trip.on_cpu
        routed = (given.ids >= 0).any(dim=1)
        if case.topk == 1 and bool(routed.any()):
            weight = torch.where(given.ids >= 0, given.weights, 1.0)[routed].double()
            found = trip.output.detach().cpu().double()[routed]
            ratio = (found / trip.expected()[routed]).nanmean(dim=1)
            times = 1 + float((ratio.abs().log() * weight.log().squeeze(1)).sum() / weight.log().square().sum())
            problem += f"; the weights are in it {times:.2f} times"
    bench.same_on_all(problem or _reduction_problem(trip))


def _reduction_problem(trip: Trip) -> str | None:
    """What is wrong with a reduction by itself: without an output it makes one, and its equals are those made alike."""
    reduction, kind = trip.reduction, type(trip.reduction)
    rest = (trip.driver_weights, trip.driver_ids, trip.case.weight_on_input)
    if trip.case.reduction == "delegate":
        try:
            reduction.apply(None, trip.fused.clone(), *rest)
        except RuntimeError:
            return None
        return f"{kind.__name__}.apply gave a result, expected RuntimeError: it leaves the choice to others"
    made = reduction.apply(None, trip.fused.clone(), *rest)
    output = torch.full((trip.driver_ids.size(0), trip.fused.size(-1)), torch.nan, dtype=trip.fused.dtype)
    output = output.to(trip.fused.device)
    given = reduction.apply(output, trip.fused.clone(), *rest)
    if not isinstance(made, torch.Tensor) or not same_bits(made, output):
        return f"{kind.__name__}.apply without an output gives another result than it writes into one"
    if given is not None and not same_bits(given, output):
        return f"{kind.__name__}.apply writes its output and gives something else"
    if trip.case.reduction == "noop":
        rows, hidden = trip.fused.shape
        shared = trip.fused.new_zeros(rows, 2 * hidden)
        shared[:, :hidden] = trip.fused
        packed = shared.view(-1)[: rows * hidden].view(rows, hidden)
        reduction.apply(packed, shared[:, :hidden], *rest)
        if not same_bits(packed, made):
            return f"{kind.__name__}.apply is wrong where output begins in the same place, with other strides"
    named = {name: trip.bench.rank for name in inspect.signature(kind).parameters if name == "rank"}
    if reduction != kind(**named) or reduction == object():
        return f"{kind.__name__} is equal to what it should not be, or not to one that is made alike"
    if kind.__hash__ is not None and hash(reduction) != hash(kind(**named)):
        return f"{kind.__name__} has another hash than one that is equal to it"
    for name in inspect.signature(kind).parameters:
        if reduction == kind(**{**named, name: -1}):
            return f"{kind.__name__} is equal to one with another {name}"
    return None


class DeniesThatItReduces(Honest):
    """Says that the sum over ranks is still to be made."""

    defect = "output_is_reduced False although combine reduces: added twice"
    seen_in = "flashinfer, 41382"

    def output_is_reduced(self) -> bool:
        """Not so."""
        return False


class ClaimsThatItReduces(LosesItsNeighbour):
    """Says that its output is complete."""

    defect = "output_is_reduced True although each rank has its own experts' part only"


@check(
    cases=[Case(tokens=(6, 6, 6, 6), topk=8), Case(tokens=(6, 6, 6, 6)), Case()],
    wrong=[DeniesThatItReduces, ClaimsThatItReduces],
    monolithic=True,
)
def output_is_reduced_tells_the_truth(bench: Bench, case: Case) -> None:
    """Where it is True each rank's output is complete; where it is False only the sum over the ranks is."""
    trip = bench.trip(case).run()
    reduced = trip.backend.output_is_reduced()
    own, words = reference.worst(trip.output, trip.expected(), trip.allowed())
    complete_alone = bench.gather(own <= 1.0 and bool(trip.expected().ne(0).any()))
    problem = None
    if reduced and own > 1.0:
        problem = f"output_is_reduced is True, but the output is off by {own:.3g} times what is allowed; {words}"
    if not reduced and bench.world_size > 1 and any(complete_alone):
        problem = (
            f"output_is_reduced is False, but the output of rank {complete_alone.index(True)} is complete: adding up "
            f"{bench.world_size} ranks makes it wrong"
        )
    bench.same_on_all(problem)
    bench.same_on_all(trip.problem())


class AddsInAnyOrder(Honest):
    """Adds up experts in an order of its own, rounding in between."""

    defect = "not reproducible bit for bit"
    seen_in = "naive_dp_ep, 45683"
    caught_in = 1

    def weigh(self, fused: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, on_input: bool) -> torch.Tensor:
        """In bf16, by chance."""
        kept = torch.where((ids >= 0).unsqueeze(2), fused.float(), 0.0) * weights.float().unsqueeze(2)
        total = torch.zeros_like(kept[:, 0])
        self.calls = getattr(self, "calls", 0) + 1
        generator = torch.Generator().manual_seed(self.calls)
        for slot in torch.randperm(kept.size(1), generator=generator).tolist():
            total = (total + kept[:, slot]).to(fused.dtype).float()
        return total


class MonolithicAddsInAnyOrder(HonestMonolithic):
    """Dithers what it gives."""

    defect = "the last bit depends on the call"
    caught_in = 1
    calls = 0

    def finalize(self, fused_expert_output: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """One unit in the last place, in every other call."""
        result = super().finalize(fused_expert_output)
        self.calls += 1
        return torch.nextafter(result, result + 1.0) if self.calls % 2 else result


@check(
    cases=[
        Case(topk=8, tokens=(7, 3, 8, 5)),
        Case(topk=4, quantization="fp8_tensor"),
        Case(topk=4, routing="skewed"),
    ],
    wrong=[AddsInAnyOrder, MonolithicAddsInAnyOrder],
    monolithic=True,
)
def equal_calls_give_equal_bits(bench: Bench, case: Case) -> None:
    """Five equal calls give equal bits, where the backend declares that it is deterministic."""
    if not bench.row.deterministic:
        raise NotShown(bench.row.why("deterministic", "equal calls may give other bits"))
    backend = bench.build(case)
    outputs = [bench.trip(case, backend).run().output.clone() for _ in range(5)]
    differ = [number for number, output in enumerate(outputs) if not same_bits(outputs[0], output)]
    problem = None
    if differ:
        elements = int((outputs[0] != outputs[differ[0]]).sum())
        problem = (
            f"call {differ[0] + 1} differs from call 1 in {elements} of {outputs[0].numel()} elements, should be 0"
        )
    bench.same_on_all(problem)
