"""What the interface promises: shapes and dtypes, signatures, types at run time, and how a backend comes about."""

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from checks._ranks import Broken, NotShown
from checks._registry import check
from checks._rows import Layer, Place
from checks._signatures import override_problems
from checks.bench import Bench, Trip, variants
from checks.cases import Case
from checks.honest import Honest
from checks.honest_formats import HonestBatched

VENDORS = ("deep_ep", "flashinfer", "mori", "nixl_ep", "nixl_ep_cu12", "nixl_ep_cu13", "pplx_kernels")


class GivesOneIdPerRow(Honest):
    """Gives ids of shape [rows, 1]."""

    defect = "ids returned as [N, 1]"
    seen_in = "deepep_v2, 51824"
    caught_in = 1

    def mark_padding(self, ids: torch.Tensor, total: int) -> torch.Tensor:
        """The first slot."""
        return super().mark_padding(ids, total)[:, :1].contiguous()


class CombinesInDouble(Honest):
    """Sends back what the op refuses."""

    defect = "combine given a dtype the op refuses"
    seen_in = "deepep_ht, 26532"
    caught_in = 1

    def reduced(self, *arguments: Any) -> torch.Tensor:
        """In float64."""
        return super().reduced(*arguments).double()


class WidensWeights(Honest):
    """Gives weights in the dtype that they travelled in."""

    defect = "the weights' dtype is not kept"
    caught_in = 1

    def result(self, *arguments: Any) -> Any:
        """float32, whatever they were."""
        result = super().result(*arguments)
        return (*result[:4], result[4].float())  # type: ignore[union-attr]  # the standard format has weights


class LeavesOutARow(HonestBatched):
    """Has room for one row less than it says."""

    defect = "the batched layout is not max tokens x dispatchers high"
    caught_in = 1

    def rows_per_expert(self) -> int:
        """One more than asked for."""
        return super().rows_per_expert() + 1


@check(
    cases=[
        *variants(Case(), topk=(1, 2, 3, 5, 6, 8)),
        *variants(Case(), dtype=("float16", "float32")),
        Case(topk=3, dtype="float16", quantization="fp8_token"),
        Case(topk=3, quantization="fp8_block"),
        Case(topk=3, variant="bf16 weights"),
    ],
    wrong=[GivesOneIdPerRow, CombinesInDouble, WidensWeights, LeavesOutARow],
    monolithic=True,
)
def results_have_the_promised_shapes(bench: Bench, case: Case) -> None:
    """Activations are [rows, hidden], ids and weights [rows, topk]; or batched, [local experts, capacity, hidden]."""
    trip = bench.trip(case)
    if case.variant == "bf16 weights":
        if trip.logits is not None:
            raise NotShown(f"{bench.row.name} is given router logits, no weights")
        trip.weights = trip.weights.to(torch.bfloat16)
    trip.prepare()
    problem = _self_description(trip) or _shape_problem(bench, trip)
    bench.same_on_all(problem)
    trip.experts().finalize()
    expected = (trip.a1.size(0), trip.a1.size(1))
    if tuple(trip.output.shape) != expected or trip.output.dtype is not trip.a1.dtype:
        problem = (
            f"the output is {trip.output.dtype} {list(trip.output.shape)}, expected {trip.a1.dtype} {list(expected)}"
        )
    bench.same_on_all(problem)


def _self_description(trip: Trip) -> str | None:
    backend = trip.backend
    dtype, limit, ranks = (
        backend.topk_indices_dtype(),
        backend.max_num_tokens_per_rank(),
        backend.num_dispatchers(),
    )
    if dtype is not None and not isinstance(dtype, torch.dtype):
        return f"topk_indices_dtype gives {dtype!r}, expected a torch.dtype or None"
    if limit is not None and not isinstance(limit, int):
        return f"max_num_tokens_per_rank gives {limit!r}, expected an int or None"
    if not isinstance(ranks, int):
        return f"num_dispatchers gives {ranks!r}, expected an int"
    if not isinstance(backend.output_is_reduced(), bool):
        return f"output_is_reduced gives {backend.output_is_reduced()!r}, expected a bool"
    if not isinstance(backend.activation_format, trip.bench.package.formats):
        return f"activation_format is {backend.activation_format!r}, expected a {trip.bench.package.formats.__name__}"
    return None


def _shape_problem(bench: Bench, trip: Trip) -> str | None:
    shape, hidden = tuple(trip.a1q.shape), trip.a1.size(1)
    if trip.logits is not None:
        wanted = (shape[0], trip.case.num_experts)
        if len(shape) != 2 or shape[1] != hidden or tuple(trip.got_logits.shape) != wanted:
            logits = list(trip.got_logits.shape)
            return f"activations {list(shape)} and logits {logits}, expected [rows, {hidden}] and {list(wanted)}"
        return None
    if (trip.got_ids is None) != (trip.got_weights is None):
        return "of the dispatched ids and weights one is None and the other is not"
    if trip.batched:
        most = trip.backend.max_num_tokens_per_rank()
        expected = (trip.layer.num_local_experts, most * trip.backend.num_dispatchers(), hidden)
        return None if shape == expected else f"activations are {list(shape)}, expected {list(expected)}"
    if len(shape) != 2 or shape[1] != hidden:
        return f"activations are {list(shape)}, expected [rows, {hidden}]"
    wanted = (shape[0], trip.case.topk)
    if tuple(trip.driver_ids.shape) != wanted or tuple(trip.driver_weights.shape) != wanted:
        ids, weights = list(trip.driver_ids.shape), list(trip.driver_weights.shape)
        return f"ids are {ids} and weights {weights}, expected {list(wanted)} for activations {list(shape)}"
    if trip.driver_weights.dtype is not trip.weights.dtype:
        return f"the weights are {trip.driver_weights.dtype}, expected {trip.weights.dtype}, as they were given"
    return None


class LeavesOutAReturnAnnotation(Honest):
    """Does not say what num_dispatchers gives."""

    defect = "num_dispatchers has no return annotation"
    seen_in = "mori, 0.20.0"
    caught_in = 1

    def num_dispatchers(self):  # type: ignore[no-untyped-def]  # noqa: ANN201 -- what is wrong with it
        """Unannotated."""
        return self.ranks


class MakesThePropertyAMethod(Honest):
    """Has to be called for its format."""

    defect = "activation_format is a method"
    caught_in = 1

    def activation_format(self) -> Any:
        """A method."""
        return self.fused_moe.formats.Standard


class RenamesAParameter(Honest):
    """Calls the activations by another name."""

    defect = "a parameter has another name than in the base"
    caught_in = 1

    def finalize(
        self,
        out: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: Any,
    ) -> None:
        """By position nobody notices."""
        super().finalize(
            out,
            fused_expert_output,
            topk_weights,
            topk_ids,
            apply_router_weight_on_input,
            weight_and_reduce_impl,
        )


@check(
    cases=[Case()],
    wrong=[LeavesOutAReturnAnnotation, MakesThePropertyAMethod, RenamesAParameter],
    monolithic=True,
)
def overrides_match_the_base(bench: Bench, case: Case) -> None:
    """Each override takes what the base takes (names, order, kinds, defaults, types), and returns no more."""
    kind = bench.package.monolithic if bench.row.monolithic else bench.package.modular
    problems = list(override_problems(type(bench.build(case)), kind))
    bench.same_on_all("; ".join(problems) or None)


class GivesAList(Honest):
    """Gives a list of counts where metadata is promised."""

    defect = "token counts are a list, where a tensor is annotated"
    caught_in = 1

    def count(self, ids: torch.Tensor, own_ids: torch.Tensor) -> Any:
        """The numbers."""
        counts = super().count(ids, own_ids)
        assert counts is not None
        return counts.tolist()


class GivesFewerWeightsThanIds(Honest):
    """Gives a weight less than there are ids."""

    defect = "dispatched ids and weights differ in shape"
    caught_in = 1

    def result(self, *arguments: Any) -> Any:
        """A slot short."""
        result = super().result(*arguments)
        assert result[4] is not None
        return (*result[:4], result[4][:, :-1])


@check(
    cases=[
        Case(),
        Case(topk=1, weight_on_input=True),
        Case(quantization="fp8_token"),
        Case(quantization="fp8_block", topk=3),
        Case(tokens=(0, 1, 0, 0)),
    ],
    wrong=[GivesAList, GivesFewerWeightsThanIds],
    monolithic=True,
    instrumented=True,
)
def instrumented_calls_raise_nothing(bench: Bench, case: Case) -> None:
    """Under typeguard, with shapes tied across arguments and results, real calls raise nothing."""
    from checks import _instrument  # noqa: PLC0415 -- typeguard is imported only where it is used

    backend = bench.build(case)
    if not _instrument.instrumented_functions(type(backend)):
        package = type(backend).__module__.partition(".")[0]
        raise NotShown(f"{type(backend).__module__} is not instrumented: add packages=({package!r},) to its row")
    tied = _instrument.tie(backend)
    bench.same_on_all(bench.trip(case, tied).run().problem())
    if backend.supports_async():
        bench.same_on_all(bench.trip(case, tied).run_async().problem("the asynchronous output"))
    unseen = _instrument.uninstrumented_functions(type(backend))
    if unseen:
        raise NotShown(
            f"types of {', '.join(unseen)} are not all checked: annotations with names for type checkers only"
        )


class ComesToNothing(Honest):
    """Its factory has no branch for it."""

    defect = "factory returned None: 7/8 of the experts silently dropped"
    seen_in = "mori, 37529"
    caught_in = 1

    @classmethod
    def build(cls, kind: type, place: Place, layer: Layer, fused_moe: Any) -> Any:
        """Nothing."""
        return None


class NeedsItsLibraryToBeImported(Honest):
    """Lives in a module that imports a vendor's library."""

    defect = "import error without the vendor library"
    seen_in = "all, 18178"
    caught_in = 1


NeedsItsLibraryToBeImported.__module__ = "checks._imports_a_vendor"

_IMPORTS = threading.Lock()


@contextmanager
def _without(modules: tuple[str, ...]) -> Iterator[None]:
    """Imports of these fail; what was imported comes back afterwards."""
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in modules}
    try:
        for name in {*hidden, *modules}:
            sys.modules[name] = None  # type: ignore[assignment]  # how Python is told that there is no such module
        yield
    finally:
        for name in {*hidden, *modules}:
            del sys.modules[name]
        sys.modules.update(hidden)


@check(
    cases=[Case(), Case(variant="odd", capacity=3, topk=3), Case(variant="import")],
    wrong=[ComesToNothing, NeedsItsLibraryToBeImported],
    monolithic=True,
)
def the_factory_builds_or_says_why(bench: Bench, case: Case) -> None:
    """The factory gives an instance or says why not, and the backend's module imports without a vendor's library."""
    if case.variant == "odd":
        try:
            bench.build(case)
        except Broken:
            raise
        except Exception as refusal:
            if not str(refusal).strip():
                raise Broken(f"the factory refuses {case} by {type(refusal).__name__} without a word") from refusal
        return
    backend = bench.build(case)
    if case.variant != "import":
        return
    name = type(backend).__module__
    problem = None
    if bench.rank == 0 and name in {"__main__", "__mp_main__"}:
        problem = f"the backend is in {name}, which cannot be imported again"
    elif bench.rank == 0:
        with _IMPORTS, _without(VENDORS):
            module = sys.modules.pop(name, None)
            try:
                importlib.import_module(name)
            except ImportError as error:
                problem = f"{name} cannot be imported without a vendor's library: {error}"
            finally:
                if module is not None:
                    sys.modules[name] = module
            problem = problem or _promises_problem(name.rpartition(".")[0])
    bench.same_on_all(problem)


def _promises_problem(name: str) -> str | None:
    """What a package's ``__all__`` names and the package does not give; it gives nothing that is not there either."""
    package = sys.modules.get(name)
    for promised in getattr(package, "__all__", ()):
        try:
            given = getattr(package, promised, None)
        except ImportError as error:
            return f"{name}.{promised} cannot be had without a vendor's library: {error}"
        if given is None:
            return f"{name}.__all__ names {promised}, but {name} has no such thing"
    if hasattr(package, "NoSuchBackend"):
        return f"{name} gives NoSuchBackend, which it does not have: expected AttributeError"
    return None
