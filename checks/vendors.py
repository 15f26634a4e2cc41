"""What is called in a vendor's library: its real signatures, and what it demands of the arguments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from checks import _vendor_calls
from checks._ranks import Broken, NotShown
from checks._registry import check
from checks._rows import Vendor
from checks.bench import Bench, variants
from checks.cases import Case
from checks.honest import Honest
from checks.wire import Received

__all__ = ["Call", "Spy", "spy_on"]


@dataclass(frozen=True)
class Call:
    """A call into a library, as it was bound."""

    method: str
    arguments: dict[str, Any]


class Spy:
    """Passes calls on to a library's object, and keeps them; Broken when one does not fit the library's signature."""

    def __init__(self, target: Any, signatures: str) -> None:
        self._target, self._vendor = target, _vendor_calls.VENDORS[signatures]
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if name not in self._vendor.methods:
            return value
        return self._recorded(name, value)

    def _recorded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        signature = self._vendor.methods[name]

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                bound = signature.bind(*arguments, **named)
            except TypeError as error:
                raise Broken(
                    f"{name} of {self._vendor.name} was called in a way that it cannot be: {error}. Its signature is "
                    f"{name}{signature}"
                ) from error
            bound.apply_defaults()
            # Copies, since the arguments may be written afterwards.
            self.calls.append(Call(name, {key: _copy(value) for key, value in bound.arguments.items()}))
            for problem in self._vendor.demands(name, bound.arguments):
                raise Broken(f"{name} of {self._vendor.name}: {problem}")
            return method(*arguments, **named)

        return call


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def spy_on(backend: Any, vendor: Vendor) -> Spy:
    """Put a spy in the place where the backend keeps the library's object."""
    *path, last = vendor.path.split(".")
    owner = backend
    for part in path:
        owner = getattr(owner, part)
    target = getattr(owner, last)
    spy = Spy(vars(target)["_target"] if isinstance(target, Spy) else target, vendor.signatures)
    # Also into dataclasses that are frozen: this one belongs to the backend alone.
    object.__setattr__(owner, last, spy)
    return spy


def _spied(bench: Bench, case: Case) -> tuple[Any, Spy]:
    if bench.row.vendor is None:
        raise NotShown(bench.row.why("vendor", "it says of no library where its calls could be seen"))
    backend = bench.build(case)
    return backend, spy_on(backend, bench.row.vendor)


class DeclaresAnotherDtype(Honest):
    """Declares what the op does not take."""

    defect = "declared int32 while the op needed uint32"
    seen_in = "pplx, 20166, 23273"
    caught_in = 1

    def topk_indices_dtype(self) -> torch.dtype | None:
        """Not what is sent."""
        return torch.int64


class HardCodesTheIdDtype(Honest):
    """Sends int64 to a library that was built for int32."""

    defect = "int64 ids hard-coded while the vendor's topk_idx_t became int32"
    seen_in = "nixl_ep, 45298, nixl 1751"
    caught_in = 1

    def wire_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """As it once was."""
        return ids.to(torch.int64).contiguous()


class ReinterpretsIds(Honest):
    """Takes the bytes of ids for another dtype."""

    defect = "ids are reinterpreted, not cast"
    caught_in = 1

    def wire_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Right for int64 alone."""
        if ids.dtype is torch.int64:
            return super().wire_ids(ids)
        wide = ids.contiguous().view(-1).view(torch.uint8).repeat(2).view(torch.int64)[: ids.numel()]
        return super().wire_ids(wide.view(ids.shape) % self.layer.num_experts)


@check(
    cases=[*variants(Case(), ids_dtype=("int32", "int64"), topk=(2, 3)), Case(ids_dtype="int16")],
    wrong=[DeclaresAnotherDtype, HardCodesTheIdDtype, ReinterpretsIds],
)
def ids_reach_the_library_as_declared(bench: Bench, case: Case) -> None:
    """topk_indices_dtype is the dtype that the library is given; ids of other dtypes are cast or refused."""
    backend = bench.build(case)
    spy = None if bench.row.vendor is None else spy_on(backend, bench.row.vendor)
    declared = backend.topk_indices_dtype()
    problem = None
    try:
        trip = bench.trip(case, backend).run()
    except (TypeError, ValueError):
        # Refused, which is as good, unless it is what the backend itself asks for.
        if declared is None or declared is getattr(torch, case.ids_dtype):
            raise
        return
    problem = trip.problem()
    seen = (
        set()
        if spy is None
        else {
            (call.method, name, value.dtype)
            for call in spy.calls
            for name, value in call.arguments.items()
            if name in _vendor_calls.ID_PARAMETERS and isinstance(value, torch.Tensor)
        }
    )
    for method, name, dtype in sorted(seen, key=str):
        if declared is not None and dtype is not declared:
            problem = problem or f"{name} of {method} is {dtype}, but topk_indices_dtype says {declared}"
    bench.same_on_all(problem)


class PassesAnUnknownKeyword(Honest):
    """Passes what another release took."""

    defect = "keyword that the vendor does not have"
    seen_in = "deepep_ll, 36678"
    caught_in = 1

    def send(self, *arguments: Any) -> tuple[Received, Callable[[], None]]:
        """With a keyword more."""
        wire: Any = self.wire
        got, hook = wire.dispatch(*arguments, slot=self.slot(), return_recv_hook=True, num_sms=20)
        return got, hook


class ReadsAnUnknownAttribute(Honest):
    """Reads what another release had."""

    defect = "attribute that the vendor does not have"
    seen_in = "flashinfer, 28166"
    caught_in = 1

    def send(self, *arguments: Any) -> tuple[Received, Callable[[], None]]:
        """Before the call."""
        self.wire.alltoall_info  # type: ignore[attr-defined]  # noqa: B018
        return super().send(*arguments)


class SendsStridedRows(Honest):
    """Does not make its arguments contiguous."""

    defect = "the library is given strided memory"
    caught_in = 1

    def send(
        self, rows: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, scale: torch.Tensor | None
    ) -> tuple[Received, Callable[[], None]]:
        """A transposed copy."""
        return super().send(rows.t().contiguous().t(), weights, ids, scale)


@check(
    cases=[
        *variants(Case(), quantization=("none", "fp8_token", "fp8_block")),
        Case(strided=True),
        Case(routing="holes"),
        Case(topk=3),
        Case(tokens=(0, 3, 1, 8)),
    ],
    wrong=[PassesAnUnknownKeyword, ReadsAnUnknownAttribute, SendsStridedRows],
)
def vendor_calls_fit_the_library(bench: Bench, case: Case) -> None:
    """Every call into the library binds to its real signature and keeps to what it demands of its arguments."""
    backend, spy = _spied(bench, case)
    trip = bench.trip(case, backend).run()
    problem = trip.problem()
    if not spy.calls:
        problem = problem or "nothing of the library was called: the row's vendor path is not where the calls are"
    bench.same_on_all(problem or _vendor_calls.pairing_problem(spy.calls))
