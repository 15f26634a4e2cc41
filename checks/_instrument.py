"""typeguard over a backend's own package, as strict as it goes, and shapes tied together across a call.

``install`` has to run before the package is imported. Nothing here is imported unless instrumentation is asked for, so
that it costs nothing when it is off.

typeguard's hook (4.6) has gaps that are closed here: a Mock passes every check, only the first item of a collection is
looked at, and annotations that cannot be resolved only warn. It does not know shapes either: `tie` puts the interface
in front of a backend, with shapes in the annotations, and a checker that holds equal names to equal sizes.
"""

import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Annotated, Any, get_type_hints
from unittest.mock import NonCallableMock

import torch
import typeguard

__all__ = ["Dims", "install", "instrumented_functions", "tie", "uninstrumented_functions"]

_CHECKING = ("check_argument_types", "check_return_type", "check_variable_assignment")


class _NotAMock:
    """Stands where typeguard looks for Mocks to let pass; nothing is an instance of it."""


def install(packages: tuple[str, ...]) -> None:
    """Instrument packages when they are imported, in this process, without leaving bytecode behind.

    Raises RuntimeError for one that is imported already: it would be checked in part, or not at all.
    """
    early = sorted(name for name in sys.modules if name.startswith(tuple(f"{one}." for one in packages)))
    early += [name for name in packages if name in sys.modules]
    if early:
        raise RuntimeError(f"instrumentation: {', '.join(early)} imported already. Install it before that.")
    # typeguard keeps instrumented and plain bytecode of nested modules under one name.
    sys.dont_write_bytecode = True
    typeguard.config.collection_check_strategy = typeguard.CollectionCheckStrategy.ALL_ITEMS
    typeguard.config.forward_ref_policy = typeguard.ForwardRefPolicy.ERROR
    warnings.filterwarnings("error", category=typeguard.InstrumentationWarning)
    warnings.filterwarnings("error", category=typeguard.TypeHintWarning)
    _refuse_mocks()
    typeguard.install_import_hook(packages)


def _refuse_mocks() -> None:
    checkers: Any = sys.modules["typeguard._checkers"]
    checkers.Mock = _NotAMock
    if _look_up not in typeguard.checker_lookup_functions:
        typeguard.checker_lookup_functions.insert(0, _look_up)


@dataclass(frozen=True)
class Dims:
    """The shape of a tensor by name; equal names within one call are equal sizes. Several are alternatives.

    ``dtype`` is one of torch's (``int32``), or a name likewise: equal names within one call are equal dtypes.
    """

    shapes: tuple[str, ...]
    dtype: str

    def __init__(self, *shapes: str, dtype: str = "") -> None:
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "dtype", dtype)


def _look_up(origin: Any, args: Any, extras: tuple[Any, ...]) -> Callable[..., None] | None:
    dims = next((extra for extra in extras if isinstance(extra, Dims)), None)
    if dims is not None:
        return lambda value, _origin, _args, memo: _check_dims(value, dims, memo)
    if inspect.isclass(origin):
        others = [one for one in typeguard.checker_lookup_functions if one is not _look_up]
        found = next((checker for one in others if (checker := one(origin, args, extras))), None)
        return lambda value, kind, arguments, memo: _check_class(value, kind, arguments, memo, found)
    return None


def _check_class(value: Any, kind: Any, args: Any, memo: Any, found: Callable[..., None] | None) -> None:
    # A mock with a spec says that it is of the class, so its type is asked, not isinstance.
    if issubclass(type(value), NonCallableMock):
        raise typeguard.TypeCheckError(f"is a {type(value).__name__}, where the real thing is needed")
    if found is not None:
        found(value, kind, args, memo)
    elif not isinstance(value, kind):
        raise typeguard.TypeCheckError(f"is not an instance of {kind.__module__}.{kind.__qualname__}")


def _check_dims(value: Any, dims: Dims, memo: Any) -> None:
    _check_class(value, torch.Tensor, (), memo, None)
    _check_dtype(value, dims.dtype, memo.locals.setdefault("__dtypes__", {}))
    # The memo is that of the call, so what is kept in it is shared by its arguments and its result.
    bound: dict[str, int] = memo.locals.setdefault("__dims__", {})
    problems = []
    for shape in dims.shapes:
        names = shape.split()
        if len(names) != value.dim():
            problems.append(f"has {value.dim()} dimensions {list(value.shape)}, expected [{', '.join(names)}]")
            continue
        wrong = [
            f"{name} is {size}, but {bound[name]} elsewhere in the call"
            for name, size in zip(names, value.shape, strict=True)
            if bound.get(name, size) != size
        ]
        if not wrong:
            bound.update(zip(names, value.shape, strict=True))
            return
        problems.append(f"has shape {list(value.shape)}, expected [{', '.join(names)}]: {'; '.join(wrong)}")
    raise typeguard.TypeCheckError(", and ".join(problems))


def _check_dtype(value: torch.Tensor, name: str, bound: dict[str, torch.dtype]) -> None:
    if not name:
        return
    promised = getattr(torch, name, None) or bound.setdefault(name, value.dtype)
    if value.dtype is not promised:
        why = "is promised" if name not in bound else f"{name} are elsewhere in the call"
        raise typeguard.TypeCheckError(f"is of {value.dtype}, where {promised} {why}")


def _functions(kind: type) -> list[FunctionType]:
    found = []
    for _, member in inspect.getmembers_static(kind):
        of = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not isinstance(of, FunctionType) or of.__module__ != kind.__module__:
            continue
        if set(of.__annotations__.values()) - {None, Any, "None", "Any"}:
            found.append(of)
    return found


def _is_instrumented(function: FunctionType) -> bool:
    code = function.__code__
    return any(name.startswith(_CHECKING) for name in (*code.co_names, *code.co_freevars, *code.co_varnames))


def instrumented_functions(kind: type) -> list[str]:
    """The methods of a class, private ones too, that check their types."""
    return [one.__qualname__ for parent in kind.__mro__ for one in _functions(parent) if _is_instrumented(one)]


def uninstrumented_functions(kind: type) -> list[str]:
    """Those that have something to check and do not, or not all of it: typeguard passes over what does not resolve."""
    return [one.__qualname__ for one in _functions(kind) if not (_resolves(one) and _is_instrumented(one))]


def _resolves(function: FunctionType) -> bool:
    try:
        get_type_hints(function)
    except NameError:
        return False
    return True


SCALES = Dims("one scales", "rows scales", "experts one scales", "experts places scales", dtype="float32")
Tokens = Annotated[torch.Tensor, Dims("tokens hidden", dtype="activations")]
Slots = Annotated[torch.Tensor, Dims("tokens topk")]
Weights = Annotated[torch.Tensor, Dims("tokens topk", dtype="weights")]
Counts = Annotated[torch.Tensor, Dims("counts", dtype="int32")]
Result = tuple[
    Annotated[torch.Tensor, Dims("rows hidden", "experts places hidden")],
    Annotated[torch.Tensor, SCALES] | None,
    Any,
    Annotated[torch.Tensor, Dims("rows topk")] | None,
    Annotated[torch.Tensor, Dims("rows topk", dtype="weights")] | None,
]


def tie(backend: Any) -> Any:
    """Put the interface in front of a backend, with the shapes of arguments and results tied together."""
    _refuse_mocks()
    return _Tied(backend)


class _Tied:
    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def prepare(self, *arguments: Any, **named: Any) -> Any:
        result = self._backend.prepare(*arguments, **named)
        if len(arguments) == 3:
            return _tied_monolithic_prepare(*arguments, result)
        return _tie_prepared(arguments, result)

    def prepare_async(self, *arguments: Any, **named: Any) -> Any:
        started = self._backend.prepare_async(*arguments, **named)
        hook, receiver = started if isinstance(started, tuple) else (None, started)

        def receive() -> Any:
            return _tie_prepared(arguments, receiver())

        return receive if hook is None else (hook, receive)

    def finalize(self, *arguments: Any) -> Any:
        if len(arguments) == 1:
            return self._backend.finalize(*arguments)
        self._tied_finalize(*arguments[:4])
        return self._backend.finalize(*arguments)

    def finalize_async(self, *arguments: Any) -> Any:
        self._tied_finalize(*arguments[:4])
        return self._backend.finalize_async(*arguments)

    def _tied_finalize(self, *arguments: Any) -> None:
        batched = self._backend.activation_format.name == "BatchedExperts"
        (_tied_batched_finalize if batched else _tied_standard_finalize)(*arguments)


def _tie_prepared(arguments: tuple[Any, ...], result: Any) -> Any:
    a1, topk_weights, topk_ids = arguments[:3]
    meta = result[2]
    counts, on_cpu = (None, None) if meta is None else (meta.expert_num_tokens, meta.expert_num_tokens_cpu)
    return _tied_prepare(a1, topk_weights, topk_ids, counts, on_cpu, result)


@typeguard.typechecked
def _tied_prepare(
    a1: Tokens,
    topk_weights: Weights,
    topk_ids: Slots,
    expert_num_tokens: Counts | None,
    expert_num_tokens_cpu: Counts | None,
    result: Any,
) -> Result:
    return result  # type: ignore[no-any-return]  # checked by typeguard


@typeguard.typechecked
def _tied_monolithic_prepare(
    a1: Tokens,
    router_logits: Annotated[torch.Tensor, Dims("tokens num_experts", dtype="logits")],
    quant_config: Any,
    result: Any,
) -> tuple[
    Annotated[torch.Tensor, Dims("rows hidden")],
    Annotated[torch.Tensor, SCALES] | None,
    Annotated[torch.Tensor, Dims("rows num_experts", dtype="logits")],
]:
    return result  # type: ignore[no-any-return]


@typeguard.typechecked
def _tied_standard_finalize(
    output: Tokens,
    fused_expert_output: Annotated[torch.Tensor, Dims("rows topk hidden", "rows hidden", dtype="activations")],
    topk_weights: Annotated[torch.Tensor, Dims("rows topk")],
    topk_ids: Annotated[torch.Tensor, Dims("rows topk")],
) -> None:
    return None


@typeguard.typechecked
def _tied_batched_finalize(
    output: Tokens,
    fused_expert_output: Annotated[torch.Tensor, Dims("experts places hidden", dtype="activations")],
    topk_weights: Slots,
    topk_ids: Slots,
) -> None:
    return None
