"""Who may write what, and what memory that nobody wrote may do: inputs, expert output, padding, results, output."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from checks._package import QUANTIZATIONS
from checks._ranks import NotShown
from checks._registry import check
from checks.bench import Bench, Trip, keep, same_bits, variants
from checks.cases import Case
from checks.honest import Honest
from checks.honest_formats import HonestBatched, HonestMonolithic
from checks.wire import Received

__all__ = ["PoisonedAllocator"]

POISONS = (float("nan"), float("inf"), 1e30)


class ScalesTheCallersActivations(Honest):
    """Multiplies ``a1`` itself."""

    defect = "`a1.mul_` scales the caller's tensor"
    seen_in = "batched, flashinfer one- and two-sided, every release"
    caught_in = 1

    def weighted_input(self, a1: torch.Tensor, weights: torch.Tensor, on_input: bool) -> torch.Tensor:
        """In place."""
        return a1.mul_(weights) if on_input else a1


class GivesTheSharedExpertItsOwnOutput(Honest):
    """Writes its result over the hidden states that a shared expert has yet to read."""

    defect = "the shared expert read hidden states already changed by the routed path"
    seen_in = "shared experts, 24530, 28939"
    caught_in = 1

    def weighted_input(self, a1: torch.Tensor, weights: torch.Tensor, on_input: bool) -> torch.Tensor:
        """Remembers the caller's tensor."""
        self.caller = a1
        return super().weighted_input(a1, weights, on_input)

    def write(self, output: torch.Tensor, combined: torch.Tensor) -> None:
        """Into both."""
        super().write(output, combined)
        self.caller.copy_(combined)


@check(
    cases=[
        *variants(Case(topk=1, weight_on_input=True), quantization=QUANTIZATIONS),
        *variants(Case(), quantization=QUANTIZATIONS),
        Case(topk=1, weight_on_input=True, strided=True),
        Case(routing="holes", strided=True),
    ],
    wrong=[ScalesTheCallersActivations, GivesTheSharedExpertItsOwnOutput],
    monolithic=True,
)
def prepare_leaves_its_inputs_alone(bench: Bench, case: Case) -> None:
    """Prepare and finalize leave activations, ids, weights, maps and scales bit for bit, and unwritten."""
    backend = bench.build(case)
    ways: list[Callable[[Trip], Trip]] = [Trip.run]
    if backend.supports_async():
        ways.append(Trip.run_async)
    problem = None
    for way in ways:
        trip = bench.trip(case, backend)
        kept = keep(
            a1=trip.a1,
            topk_weights=trip.weights,
            topk_ids=trip.ids,
            router_logits=trip.logits,
            expert_map=trip.layer.expert_map,
            a1_scale=trip.layer.quant_config.a1_scale,
        )
        way(trip)
        problem = problem or next((found for found in (one.problem() for one in kept) if found), None)
    bench.same_on_all(problem)


class WeighsTheExpertsOutput(Honest):
    """Multiplies the weights into what the experts wrote."""

    defect = "weights multiplied into fused_expert_output through a view or slice: a second finalize is wrong"
    seen_in = "TopKWeightAndReduceContiguous, NaiveBatched"
    caught_in = 1

    def weigh(self, fused: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, on_input: bool) -> torch.Tensor:
        """Through a view."""
        if not on_input:
            fused.view(-1, fused.size(2)).mul_(weights.reshape(-1, 1))
        return super().weigh(fused, weights, ids, True)


@check(
    cases=[
        *variants(Case(), reduction=("delegate", "contiguous", "noop", "naive_batched")),
        *variants(Case(topk=1, weight_on_input=True), reduction=("delegate", "contiguous", "noop", "naive_batched")),
        Case(routing="holes"),
    ],
    wrong=[WeighsTheExpertsOutput],
    monolithic=True,
)
def finalize_leaves_its_inputs_alone(bench: Bench, case: Case) -> None:
    """Finalize leaves the experts' output, weights and ids bit for bit, unless it declares that it consumes them."""
    if bench.row.consumes_expert_output:
        raise NotShown(bench.row.why("consumes_expert_output", "its finalize may overwrite the experts' output"))
    trip = bench.trip(case).prepare().experts()
    if trip.logits is not None:
        kept = keep(fused_expert_output=trip.fused)
    else:
        kept = keep(fused_expert_output=trip.fused, topk_weights=trip.driver_weights, topk_ids=trip.driver_ids)
    trip.finalize()
    bench.same_on_all(next((found for found in (one.problem() for one in kept) if found), None))


_UNWRITTEN: frozenset[Any] = frozenset({torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty})


class PoisonedAllocator(TorchFunctionMode):
    """Fills memory that is allocated and not yet written, in this thread, with ``poison``.

    Integers get ids that exist: what is worst to find there by accident.
    """

    def __init__(self, poison: float) -> None:
        super().__init__()
        self.poison = poison

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, and fill its result if it is an allocation."""
        result = func(*args, **(kwargs or {}))
        if func in _UNWRITTEN:
            poison_(result, self.poison)
        return result


def poison_(tensor: torch.Tensor, poison: float) -> None:
    """Fill with poison, as far as the dtype has it."""
    if tensor.dtype.is_floating_point:
        wide = torch.full((1,), poison, dtype=torch.float32, device=tensor.device)
        tensor.copy_(wide.to(tensor.dtype).expand(tensor.shape))
    elif tensor.dtype is not torch.bool:
        tensor.fill_(0 if poison == 0.0 else 1)


class ScalesWithPadding(Honest):
    """Computes a shared scale over rows that nobody wrote."""

    defect = "dynamic per-tensor scale taken over uninitialised padding"
    seen_in = "deepep_v2, 50511"
    caught_in = 1

    def quantized_after(self, rows: torch.Tensor, total: int, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows."""
        return super().quantized_after(rows, rows.size(0), config)


class FillsTooLate(Honest):
    """The fill that makes padding reproducible comes when some rows are there already."""

    defect = "deterministic fill races the communication kernel"
    seen_in = "DeepEP 589, 600"
    caught_in = 1

    def incoming(self, got: Received, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One real row is overwritten."""
        total = int(got.total)
        if total:
            poison_(got.rows[total - 1 :], float("nan"))
        return super().incoming(got, scheme, config)


class ReadsPaddingOfExpertOutput(HonestBatched):
    """Adds up to the end of each expert's rows instead of to its count."""

    defect = "rows past an expert's count enter the sum, with weight 0"
    caught_in = 1

    def finalize_async(self, *arguments: Any, **named: Any) -> Any:
        """0 * NaN is NaN."""
        fused = arguments[1]
        total = fused.float().mul(0.0).sum(dim=(0, 1))
        return super().finalize_async(arguments[0], fused + total.to(fused.dtype), *arguments[2:], **named)


@check(
    cases=[
        *variants(Case(tokens=(5, 2, 7, 3)), quantization=QUANTIZATIONS),
        Case(routing="holes", quantization="fp8_tensor"),
        Case(routing="few_experts"),
    ],
    wrong=[ScalesWithPadding, FillsTooLate, ReadsPaddingOfExpertOutput],
)
def padding_never_matters(bench: Bench, case: Case) -> None:
    """NaN, inf, 1e30 and valid-looking ids in memory that holds nothing change no bit of what is real."""
    outputs = []
    problem = None
    for poison in (0.0, *POISONS):
        with PoisonedAllocator(poison):
            trip = bench.trip(case).prepare()
            _overwrite_padding(trip, poison)
        trip.poison = poison
        trip.experts()
        with PoisonedAllocator(poison):
            trip.finalize()
        outputs.append(trip.output.clone())
        found = trip.problem(f"the output with {poison} in unused memory")
        problem = problem or found
        if bench.row.deterministic and not same_bits(outputs[0], outputs[-1]):
            problem = problem or f"the output has other bits with {poison} in unused memory than with 0"
    bench.same_on_all(problem)


def _overwrite_padding(trip: Trip, poison: float) -> None:
    """Poison what prepare gave, where it holds no token; not where it gave the caller's own tensors."""
    if not trip.batched and trip.got_ids is None:
        return
    empty = ~trip.real_rows()
    for tensor in (trip.a1q, trip.scale):
        if tensor is not None and tensor.shape[:-1] == empty.shape:
            bad = torch.empty_like(tensor)
            poison_(bad, poison)
            # Assignment by a mask knows no fp8.
            dtype = torch.uint8 if tensor.element_size() == 1 else tensor.dtype
            tensor.view(dtype)[empty] = bad.view(dtype)[empty]


class GivesScratch(HonestMonolithic):
    """Returns memory that the next call writes."""

    defect = "the result is scratch that the next call overwrites"
    seen_in = "symmetric-memory collective, 58154"
    caught_in = 1

    def finalize(self, fused_expert_output: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """The same memory each time."""
        result = super().finalize(fused_expert_output)
        shape = (self.layer.max_num_tokens, result.size(1))
        scratch = self.wire.owned("result", 0, shape, result)[: result.size(0)]
        return scratch.copy_(result)


class KeepsAHighWaterMark(Honest):
    """Remembers the smallest call and takes no more than twice that."""

    defect = "a limit drifts with what was called before"
    caught_in = 1
    smallest = 1 << 30

    def check_capacity(self, tokens: int) -> None:
        """By history."""
        super().check_capacity(tokens)
        if tokens:
            self.smallest = min(self.smallest, tokens)
            if tokens > 2 * self.smallest:
                raise ValueError(f"{tokens} tokens, but the buffer has shrunk to {2 * self.smallest}")


@check(
    cases=[Case(), Case(quantization="fp8_token"), Case(quantization="fp8_tensor", routing="holes")],
    wrong=[GivesScratch, KeepsAHighWaterMark],
    monolithic=True,
)
def results_survive_the_next_call(bench: Bench, case: Case) -> None:
    """The outputs of 4, 1, 7, 0 and 4 tokens through one backend are right, and still the same after the calls."""
    backend = bench.build(case)
    done: list[tuple[Trip, torch.Tensor]] = []
    problem = None
    for number, tokens in enumerate((4, 1, 7, 0, 4)):
        one = replace(case, tokens=(tokens, 4, 8 - tokens, 1), seed=case.seed + number)
        trip = bench.trip(one, backend).run()
        found = trip.problem(f"the output of call {number + 1} ({tokens} tokens on rank 0)")
        problem = problem or found
        done.append((trip, trip.output.clone()))
    for number, (trip, then) in enumerate(done):
        if not same_bits(trip.output, then):
            problem = problem or f"the output of call {number + 1} was changed by a later call"
    bench.same_on_all(problem)


class ZeroesTheOutputFirst(Honest):
    """Clears ``output`` before it has read the experts' output."""

    defect = "who owns the output was unspecified"
    seen_in = "flashinfer, naive, 44452, 47156"
    caught_in = 1

    def finalize_async(self, *arguments: Any, **named: Any) -> Any:
        """They may share memory."""
        arguments[0].zero_()
        return super().finalize_async(*arguments, **named)


class TakesTheOutputForContiguous(Honest):
    """Writes ``output`` as if its rows followed each other."""

    defect = "the output's strides are not heeded"
    caught_in = 1

    def write(self, output: torch.Tensor, combined: torch.Tensor) -> None:
        """By address."""
        flat = output.as_strided((output.numel(),), (1,)) if output.numel() else output.view(-1)
        flat.copy_(combined.reshape(-1))


class LeavesRowsUnwritten(Honest):
    """Writes only rows that came back with something."""

    defect = "rows without an expert keep what was in the output"
    caught_in = 1

    def write(self, output: torch.Tensor, combined: torch.Tensor) -> None:
        """Zero rows are left as they are."""
        some = combined.ne(0).any(dim=1)
        output[some] = combined[some]


@check(
    cases=[
        Case(),
        Case(strided=True),
        Case(routing="holes"),
        Case(routing="holes", strided=True),
        Case(topk=1, tokens=(5, 4, 8, 3), variant="alias"),
        Case(tokens=(5, 4, 8, 3), variant="alias"),
    ],
    wrong=[ZeroesTheOutputFirst, TakesTheOutputForContiguous, LeavesRowsUnwritten],
)
def finalize_writes_exactly_the_output(bench: Bench, case: Case) -> None:
    """Finalize writes every element of output and none beside it, also where output is strided or the experts' own."""
    if case.variant == "alias" and not bench.row.takes_aliased_output:
        raise NotShown(bench.row.why("takes_aliased_output", "output never shares memory with the experts' output"))
    trip = bench.trip(case).prepare().experts()
    if case.variant == "alias":
        rows = trip.fused.view(-1, trip.fused.size(-1))
        if rows.size(0) >= trip.a1.size(0):
            trip.output = rows[: trip.a1.size(0)]
    trip.finalize()
    problem = None
    if trip.output.isnan().any():
        index = [int(part) for part in trip.output.isnan().nonzero()[0]]
        problem = f"{int(trip.output.isnan().sum())} elements of output were not written, the first at {index}"
    if case.strided and not trip.backing[:, 1::2].isnan().all():
        written = int((~trip.backing[:, 1::2].isnan()).sum())
        problem = f"{written} elements beside output were written"
    found = trip.problem()
    bench.same_on_all(problem or found)
