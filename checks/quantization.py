"""Quantized dispatch: what arrives is what was sent, to the scheme's precision, with the scales the scheme has."""

from typing import Any

import torch

from checks import reference
from checks._package import FP8, QUANTIZATIONS
from checks._ranks import Broken
from checks._registry import check
from checks.bench import Bench, Trip, variants
from checks.cases import Case, hosted_experts
from checks.honest import Honest
from checks.wire import Received


class OneScaleForAllRanks(Honest):
    """Quantizes by its own amax, and dequantizes everybody's rows by its own scale."""

    defect = "each rank quantized per tensor by its own scale, one scale used for all"
    seen_in = "naive_dp_ep, 54683"

    def outgoing(self, a1: torch.Tensor, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Before the dispatch."""
        if scheme != "fp8_tensor":
            return super().outgoing(a1, scheme, config)
        self.my_scale = self.scales_of(a1, scheme, config)
        return self.quantize(a1, self.my_scale, scheme), None

    def quantized_after(self, rows: torch.Tensor, total: int, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """They are quantized already."""
        return rows, self.my_scale


class SwizzlesOneScheme(Honest):
    """Lays block scales out for another kernel."""

    defect = "swizzled layout applied for one scheme only"
    seen_in = "naive_dp_ep, 42118"
    caught_in = 1

    def incoming(self, got: Received, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Column by column."""
        rows, scale = super().incoming(got, scheme, config)
        if scheme == "fp8_block" and scale is not None:
            scale = scale.t().contiguous().view(scale.shape)
        return rows, scale


class HardCodesTheScaleWidth(Honest):
    """Has a scale for each 16 elements, whatever the scheme."""

    defect = "scale width hard-coded hidden // 16"
    seen_in = "flashinfer one-sided, 40960"
    caught_in = 1

    def incoming(self, got: Received, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Repeated to that width."""
        rows, scale = super().incoming(got, scheme, config)
        if scale is not None and scale.size(0) == rows.size(0):
            scale = scale.repeat_interleave(rows.size(1) // 16 // scale.size(1), dim=1)
        return rows, scale


class IgnoresPerToken(Honest):
    """Passes per_act_token_quant=False on."""

    defect = "per_act_token_quant=False written as a literal"
    seen_in = "deepep_ht and v2, 39022"
    caught_in = 1

    def scheme(self, config: Any) -> str:
        """Per tensor."""
        return super().scheme(config).replace("fp8_token", "fp8_tensor")


class RefusesToDefer(Honest):
    """Declares nothing, and raises."""

    defect = "defer_input_quant refused"
    seen_in = "mori, 37418"
    caught_in = 1

    def prepare(self, *arguments: Any, **named: Any) -> Any:
        """It was passed by keyword."""
        if named.get("defer_input_quant"):
            raise NotImplementedError("defer_input_quant=True is not supported")
        return super().prepare(*arguments, **named)


class HasNoPerTensorBranch(Honest):
    """Falls through for per-tensor fp8."""

    defect = "per-tensor fp8 had no branch"
    seen_in = "mori, 57074"
    caught_in = 1

    def scheme(self, config: Any) -> str:
        """Unquantized."""
        return super().scheme(config).replace("fp8_static", "none").replace("fp8_tensor", "none")


class QuantizesTwice(Honest):
    """Rounds to fp8 with half the range."""

    defect = "values are clamped to half of what fp8 holds"
    caught_in = 1

    def quantize(self, x: torch.Tensor, scale: torch.Tensor, scheme: str) -> torch.Tensor:
        """As on a device whose fp8 ends at 240."""
        return (
            super().quantize(x, scale * 2, scheme) if scheme.endswith("token") else super().quantize(x, scale, scheme)
        )


@check(
    cases=[
        *variants(Case(), quantization=QUANTIZATIONS),
        *variants(Case(routing="holes"), quantization=QUANTIZATIONS[1:]),
        # The first expert alone: an id of 0 is an expert as others are.
        Case(ids=(((0,),) * 5, (), ((0,),) * 8, ((0,),) * 3), topk=1, quantization="fp8_tensor"),
        *variants(Case(defer=True), quantization=("none", "fp8_static", "fp8_token", "fp8_block")),
    ],
    wrong=[
        OneScaleForAllRanks,
        SwizzlesOneScheme,
        HardCodesTheScaleWidth,
        IgnoresPerToken,
        RefusesToDefer,
        HasNoPerTensorBranch,
        QuantizesTwice,
    ],
    monolithic=True,
)
def dequantized_dispatch_is_the_routed_input(bench: Bench, case: Case) -> None:
    """What arrives is what was sent, to the scheme's precision, with its scales exactly when it is quantized."""
    trip = bench.trip(case)
    if case.defer and not bench.row.defers:
        refused = False
        try:
            trip.prepare()
        except Broken:
            raise
        except Exception:  # noqa: BLE001 -- any refusal will do
            refused = True
        bench.same_on_all(
            None if refused else "defer_input_quant was taken by a backend that declares that it does not"
        )
        return
    trip.prepare()
    problem = _scale_problem(bench, trip) or _value_problem(bench, trip)
    trip.experts().finalize()
    bench.same_on_all(problem)
    bench.same_on_all(trip.problem())


def _scale_problem(bench: Bench, trip: Trip) -> str | None:
    case, quantized = trip.case, trip.case.quantization != "none" and not trip.case.defer
    if not quantized:
        if trip.a1q.dtype is not bench.dtype(case):
            return f"activations arrive as {trip.a1q.dtype}, expected {bench.dtype(case)}: nothing is to be quantized"
        return None if trip.scale is None else f"there is a scale of shape {list(trip.scale.shape)}, expected None"
    expected_dtype = FP8 if case.quantization.startswith("fp8") else torch.int8
    if trip.a1q.dtype is not expected_dtype:
        return f"activations arrive as {trip.a1q.dtype}, expected {expected_dtype} ({case.quantization})"
    if trip.scale is None:
        return f"there is no scale, expected one ({case.quantization})"
    if trip.scale.dtype is not torch.float32:
        return f"the scale is {trip.scale.dtype}, expected torch.float32"
    rows, hidden = trip.a1q.shape[-2:]
    shared_by = case.quantization.partition("_")[2]
    shape = {"token": (rows, 1), "block": (rows, hidden // 128)}.get(shared_by, (1, 1))
    wanted = (trip.a1q.size(0), *shape) if trip.batched else shape
    if tuple(trip.scale.shape) != wanted:
        return f"the scale has shape {list(trip.scale.shape)}, expected {list(wanted)} ({case.quantization})"
    return None


def _value_problem(bench: Bench, trip: Trip) -> str | None:
    """Every row that arrived has to be near a row that was sent to that expert."""
    case = trip.case
    given = bench.all_inputs(case)
    sent = torch.cat([one.a1 for one in given]).double()
    routed = torch.cat([one.ids for one in given])
    everyone = [torch.where((one.ids >= 0).any(1, keepdim=True), one.a1.double(), 0.0) for one in given]
    allowed = reference.quantization_error(case, sent.nan_to_num(0.0), everyone) + 1e-9
    values = reference.dequantized(trip.a1q, trip.scale).cpu()
    real = trip.real_rows()
    local = hosted_experts(case, bench.rank, bench.world_size)
    for index in real.nonzero().tolist():
        value = values[tuple(index)]
        if trip.batched:
            experts = [local[index[0]]]
        elif trip.logits is not None:
            experts = []
        else:
            experts = trip.driver_ids[index[0]][trip.own_slots()[index[0]]].tolist()
        off = ((sent - value).abs() / allowed).nan_to_num(nan=torch.inf).amax(dim=1)
        candidates = off.clone()
        for expert in experts:
            candidates = torch.where((routed == expert).any(dim=1), candidates, torch.inf)
        nearest = int(candidates.argmin())
        if not float(candidates[nearest]) <= 1.0:
            element = int(((sent[nearest] - value).abs() / allowed[nearest]).nan_to_num(nan=torch.inf).argmax())
            return (
                f"row {index} is no row that was sent to experts {experts}; nearest is token {nearest}, off "
                f"by {float(candidates[nearest]):.3g} times what {case.quantization} allows; worst element {element}: "
                f"found {float(value[element]):.6g}, expected {float(sent[nearest, element]):.6g}"
            )
    return None
