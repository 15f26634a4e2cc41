"""Where tokens go: counts, ids, missing experts, and the routing that the combine goes by."""

from collections import Counter
from typing import Any

import torch

from checks import reference
from checks._ranks import Broken, NotShown
from checks._registry import check
from checks.bench import Bench, Trip, same_bits, variants
from checks.cases import ROUTINGS, Case, hosted_experts
from checks.honest import Honest
from checks.honest_formats import HonestBatched

_ONE_PER_TOKEN = [Case(routing=routing) for routing in ROUTINGS if routing != "duplicates"]


class CountsOnlyTheTotal(Honest):
    """Gives one total in place of one count for each local expert."""

    defect = "expert_num_tokens is a single total, not one count per local expert: illegal memory access"
    seen_in = "mori + AITER, 57029"
    caught_in = 1

    def count(self, ids: torch.Tensor, own_ids: torch.Tensor) -> torch.Tensor | None:
        """How many rows."""
        return (ids >= 0).any(dim=1).sum().view(1).to(torch.int32)


class CountsWhatItSent(Honest):
    """Gives the histogram of this rank's own routing, over all experts."""

    defect = "returned the histogram of what it SENT, length num_experts"
    seen_in = "deepep_ht, v0.9.1"

    def count(self, ids: torch.Tensor, own_ids: torch.Tensor) -> torch.Tensor | None:
        """By the ids that were sent."""
        sent = own_ids[own_ids >= 0].long()
        return torch.bincount(sent, minlength=self.layer.num_experts).to(torch.int32)


class CountsForAllExperts(HonestBatched):
    """Allocates a count for every expert there is."""

    defect = "tokens_per_expert has num_experts entries"
    seen_in = "batched, every release"

    def count_batched(self, counts: torch.Tensor) -> torch.Tensor:
        """Zeros after this rank's own."""
        return torch.nn.functional.pad(counts, (0, self.layer.num_experts - counts.numel()))


class GivesEmptyCounts(Honest):
    """Gives metadata without any count."""

    defect = "expert_num_tokens is present, and empty"
    caught_in = 1

    def count(self, ids: torch.Tensor, own_ids: torch.Tensor) -> torch.Tensor | None:
        """Nothing."""
        return ids.new_empty(0, dtype=torch.int32)


@check(
    cases=[*_ONE_PER_TOKEN, Case(quantization="fp8_token"), Case(tokens=(0, 0, 6, 0))],
    wrong=[CountsOnlyTheTotal, CountsWhatItSent, CountsForAllExperts, GivesEmptyCounts],
)
def expert_counts_are_those_received(bench: Bench, case: Case) -> None:
    """expert_num_tokens is None, or int32 with one entry for each local expert, equal to what was received."""
    trip = bench.trip(case).prepare()
    found = _count_problem(bench, trip)
    bench.same_on_all(found)
    trip.experts().finalize()


def _count_problem(bench: Bench, trip: Trip) -> str | None:
    if trip.meta is None:
        return "there are no counts, and a batched layout means nothing without" if trip.batched else None
    counts, on_cpu = trip.meta.expert_num_tokens, trip.meta.expert_num_tokens_cpu
    local = trip.layer.num_local_experts
    if counts.shape != (local,):
        entries = f"{counts.numel()} entries" if counts.dim() == 1 else f"shape {list(counts.shape)}"
        return f"expert_num_tokens has {entries}, should be {local} (one for each local expert)"
    if counts.dtype is not torch.int32:
        return f"expert_num_tokens is {counts.dtype}, should be torch.int32"
    expected = reference.expected_counts(
        trip.case, bench.rank, bench.world_size, bench.all_inputs(trip.case), merged=trip.batched
    )
    if counts.tolist() != expected:
        return f"expert_num_tokens is {counts.tolist()}, but {expected} were sent to this rank's experts"
    if on_cpu is not None and on_cpu.tolist() != expected:
        return f"expert_num_tokens_cpu is {on_cpu.tolist()}, but expert_num_tokens is {expected}"
    return None


class LeavesIdsOfPadding(Honest):
    """Does not mark rows that hold nothing."""

    defect = "ids of padding rows uninitialised, alias real experts"
    seen_in = "deepep_v2, 46432, DeepEP 739"
    caught_in = 1

    def mark_padding(self, ids: torch.Tensor, total: int) -> torch.Tensor:
        """As they are."""
        return ids


class LosesTheLastSlot(Honest):
    """Does not send a token's last expert."""

    defect = "a (token, expert) pair is lost"
    caught_in = 1

    def wire_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """One slot short."""
        ids = ids.clone()
        ids[:, -1] = -1
        return super().wire_ids(ids)


class LeavesForeignIds(Honest):
    """Gives ids of experts that other ranks own, unmarked."""

    defect = "slots of other ranks' experts are not marked"

    def global_ids(self, physical: torch.Tensor) -> torch.Tensor:
        """All of them."""
        return physical.long()

    def count(self, ids: torch.Tensor, own_ids: torch.Tensor) -> torch.Tensor | None:
        """Right all the same."""
        return super().count(torch.where(self.layer.expert_map[ids.clamp(min=0)] < 0, -1, ids), own_ids)


@check(
    cases=_ONE_PER_TOKEN,
    wrong=[LeavesIdsOfPadding, LosesTheLastSlot, LeavesForeignIds],
)
def dispatched_pairs_are_those_sent(bench: Bench, case: Case) -> None:
    """Every returned id is owned here or marked, padding is marked, and over all ranks what was sent arrives."""
    trip = bench.trip(case).prepare()
    problem = None
    local = hosted_experts(case, bench.rank, bench.world_size)
    if trip.batched:
        rows = [(expert, row) for expert, row in trip.real_rows().nonzero().tolist()]
        received = reference.received_pairs(
            torch.stack([trip.a1q[expert, row] for expert, row in rows]) if rows else trip.a1q[0, :0],
            [[local[expert]] for expert, _ in rows],
        )
    else:
        own = trip.own_slots()
        ids = trip.driver_ids.long()
        if trip.got_ids is not None and bool((~own & (ids != -1)).any()):
            row, slot = (~own & (ids != -1)).nonzero()[0].tolist()
            problem = (
                f"id {int(ids[row, slot])} in row {row}, slot {slot}, is neither owned by this rank ({local}) nor -1"
            )
        kept = [row for row in range(ids.size(0)) if bool(own[row].any())]
        received = reference.received_pairs(trip.a1q[kept], [ids[row][own[row]].tolist() for row in kept])
    sent: Counter[tuple[bytes, int]] = Counter()
    for given in bench.all_inputs(case):
        sent += reference.received_pairs(given.a1, [[e for e in row if e >= 0] for row in given.ids.tolist()])
    everything: Counter[tuple[bytes, int]] = sum(bench.gather(received), Counter())
    if everything != sent:
        lost, extra = sent - everything, everything - sent
        problem = problem or (
            f"{sum(lost.values())} of {sum(sent.values())} (token, expert) pairs did not arrive (experts "
            f"{sorted({expert for _, expert in lost})}), {sum(extra.values())} arrived that nobody sent (experts "
            f"{sorted({expert for _, expert in extra})})"
        )
    bench.same_on_all(problem)


class TakesMissingForTheLastExpert(Honest):
    """Uses -1 as an index, which is the last expert."""

    defect = "-1 ids used as indices"
    seen_in = "router padding, 48979, 50759"
    caught_in = 1

    def physical_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Through a table, as Python counts."""
        table = torch.arange(self.layer.num_experts, device=ids.device)
        return table[ids.long()]


class SharesScalesBetweenRows(Honest):
    """Computes block scales over two rows at a time."""

    defect = "NaN in padding rows reaches real tokens' block scales"
    seen_in = "DP padding, 41249"
    caught_in = 1

    def scales_of(self, x: torch.Tensor, scheme: str, config: Any) -> torch.Tensor:
        """Neighbouring rows have one scale."""
        scale = super().scales_of(x, scheme, config)
        return torch.maximum(scale, scale.roll(1, dims=0)) if scheme.endswith("block") else scale


@check(
    cases=[
        *variants(Case(routing="holes"), quantization=("none", "fp8_static", "fp8_tensor", "fp8_token", "fp8_block")),
        Case(routing="all_missing"),
        Case(routing="holes", placement="round_robin"),
        Case(routing="holes", topk=1, weight_on_input=True),
        Case(routing="holes", ids_dtype="int32"),
    ],
    wrong=[TakesMissingForTheLastExpert, SharesScalesBetweenRows],
)
def missing_experts_are_skipped(bench: Bench, case: Case) -> None:
    """An id of -1 sends nothing: rows without an expert come back zero, and even NaN in them changes no other bit."""
    backend = bench.build(case)
    trip = bench.trip(case, backend).run()
    calm = bench.trip(case, backend)
    missing = (calm.ids < 0).all(dim=1)
    calm.a1 = torch.where(missing.unsqueeze(1), torch.zeros_like(calm.a1), calm.a1)
    calm.run()
    problem = trip.problem()
    if bool(trip.output[missing].ne(0).any()):
        row = int(missing.nonzero()[trip.output[missing].ne(0).any(dim=1)][0])
        problem = f"token {row} has no expert, and its output is {trip.output[row, 0].item()}, should be 0"
    if bench.row.deterministic and not same_bits(trip.output, calm.output):
        problem = problem or "rows that have experts change with what is in rows that have none"
    bench.same_on_all(problem)


class CombinesByDispatchedIds(Honest):
    """Gives the combine the ids that finalize was given."""

    defect = "combine was given the dispatched topk_ids: garbage at 32 ranks, fine at 8"
    seen_in = "mori, 52639, 45225, ROCm/mori 475"

    def combine_ids(self, flight: Any, given_ids: torch.Tensor) -> torch.Tensor:
        """The dispatched ones, as many as there are tokens."""
        tokens = flight.own_ids.size(0)
        given = torch.nn.functional.pad(given_ids, (0, 0, 0, max(0, tokens - given_ids.size(0))), value=-1)
        return given[:tokens].to(torch.int32)


class KeepsTheCallersIds(Honest):
    """Keeps the caller's tensor in place of a copy."""

    defect = "the routing is kept by reference, and the caller uses its memory again"
    caught_in = 1

    def prepare_async(self, *arguments: Any, **named: Any) -> Any:
        """By reference."""
        started = super().prepare_async(*arguments, **named)
        self.by_reference = arguments[2]
        return started

    def combine_ids(self, flight: Any, given_ids: torch.Tensor) -> torch.Tensor:
        """As it is now."""
        return self.wire_ids(self.physical_ids(self.by_reference))


@check(
    cases=[Case(), Case(tokens=(8, 3, 5, 7)), Case(routing="skewed", topk=3), Case(quantization="fp8_token")],
    wrong=[CombinesByDispatchedIds, KeepsTheCallersIds],
)
def combine_goes_by_the_routing_before_dispatch(bench: Bench, case: Case) -> None:
    """The combine goes by this rank's own routing, though finalize is given the dispatched one."""
    if bench.row.replicated:
        raise NotShown(bench.row.why("replicated", "nothing is sent, so there is nothing to combine"))
    trip = bench.trip(case).prepare().experts()
    ids, weights = trip.driver_ids.clone(), trip.driver_weights.clone()
    trip.ids.fill_(-1)
    trip.weights.fill_(0.0)
    trip.got_ids, trip.got_weights = ids, weights
    trip.finalize()
    bench.same_on_all(trip.problem())


class IgnoresTheTables(Honest):
    """Sends ids as they come."""

    defect = "ids not mapped to physical ones"
    seen_in = "EPLB, 30559"

    def physical_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Unmapped."""
        return ids


class ClampsIds(Honest):
    """Takes an id that names nothing for the last expert."""

    defect = "an id out of range goes to an expert that nobody chose"
    caught_in = 1

    def check_ids(self, ids: torch.Tensor, num_experts: int) -> None:
        """Not at all."""

    def physical_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Clamped."""
        return super().physical_ids(ids.clamp(max=self.layer.num_experts - 1))


@check(
    cases=[
        Case(),
        Case(variant="no expert map"),
        Case(placement="round_robin"),
        Case(placement="round_robin", routing="holes", quantization="fp8_token"),
        Case(placement="redundant"),
        Case(placement="redundant", routing="skewed"),
        Case(variant="out of range", tokens=(5, 4, 8, 3)),
    ],
    wrong=[IgnoresTheTables, ClampsIds],
)
def expert_placements_agree(bench: Bench, case: Case) -> None:
    """Linear, round-robin and redundant placements give the same answer, and ids out of range are refused."""
    trip = bench.trip(case)
    if case.variant == "no expert map":
        if bench.world_size > 1:
            raise NotShown("a layer without an expert map has all experts: run it with --world-size 1")
        trip.given_map = None
    if case.variant != "out of range":
        bench.same_on_all(trip.run().problem())
        return
    if not bench.row.refuses_bad_ids:
        raise NotShown(bench.row.why("refuses_bad_ids", "ids are not looked at"))
    if bench.device.type != "cpu":
        raise NotShown("a device would have to be waited for to see an id: run it with --device cpu")
    bad = trip.layer.num_experts
    trip.ids[:, 0] = bad
    refused = None
    try:
        trip.prepare()
    except Broken:
        raise
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a refusal
        refused = error
    empty_rank = trip.ids.size(0) == 0
    bench.same_on_all(
        None if refused is not None or empty_rank else f"id {bad} of {bad} experts was taken, expected an error"
    )
