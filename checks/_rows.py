"""What a backend's author writes: one row, saying how to build the backend and what it declares."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from checks._package import DEFAULT_PACKAGE, QUANTIZATIONS

__all__ = ["Backend", "Layer", "Place", "Vendor"]

Tables = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Place:
    """Where a rank is; ``torch.distributed`` is initialized there, with gloo, for exactly these ranks."""

    rank: int
    world_size: int
    device: torch.device
    transport: str = "torch"
    """``vendor``: the vendor's library; ``torch``: ``torch.distributed`` in its place."""
    seconds: float = 10.0
    """How long any one exchange may take."""


@dataclass(frozen=True)
class Layer:
    """The layer that a backend is built for."""

    hidden: int
    topk: int
    num_experts: int
    """Physical experts over all ranks."""
    num_local_experts: int
    dtype: torch.dtype
    max_num_tokens: int
    """The most tokens that a rank passes to one ``prepare``."""
    quant_config: Any
    """The fused_moe package's own configuration."""
    expert_map: torch.Tensor
    """int32 ``[num_experts]`` from global to local id, -1 for another rank's."""
    tables: Tables | None = None
    """``(global_to_physical, physical_to_global, local_expert_global_ids)``, where experts are not placed linearly."""
    dp_size: int = 1
    tp_size: int = 1


@dataclass(frozen=True)
class Vendor:
    """The library behind a backend, for what can be seen of the calls into it."""

    path: str
    """Where the backend keeps the vendor's object, such as ``buffer`` or ``transport.op``."""
    signatures: str
    """Whose signatures: ``deep_ep``, ``flashinfer_one_sided``, ``flashinfer_two_sided``, ``mori`` or ``nixl_ep``."""
    modules: tuple[str, ...] = ()
    """Names that the library is imported by; one is enough."""


@dataclass(frozen=True)
class Backend:
    """A row: a backend, and what it declares. Whatever is not declared here is expected of it."""

    name: str
    make: Callable[[Place, Layer], Any]
    """Builds it on one rank. In worlds of processes this has to be a function of an importable module."""
    fused_moe: str = DEFAULT_PACKAGE
    """The package whose interface it follows."""
    packages: tuple[str, ...] = ()
    """Packages that its code is in, to be instrumented; ``prepare_finalize`` of ``fused_moe`` always is."""
    dtypes: tuple[str, ...] = ("bfloat16",)
    """Activation dtypes; the first is used where a check does not ask for another."""
    hidden: int = 256
    """The smallest hidden size of interest; a multiple of 128."""
    quantizations: tuple[str, ...] = QUANTIZATIONS
    reductions: tuple[str, ...] = ("delegate",)
    """Weight-and-reduce implementations that ``finalize`` takes: delegate, contiguous, noop, naive_batched."""
    world_sizes: tuple[int, ...] = (1, 2, 4)
    devices: tuple[str, ...] = ("cpu", "cuda")
    replicated: bool = False
    """Every rank passes the same tokens and works on its own experts; nothing is sent."""
    monolithic: bool = False
    placements: tuple[str, ...] = ("linear",)
    """linear, round_robin (expert e on rank e % ranks), redundant (some experts twice, ids through the tables)."""
    micro_batch: Callable[[int], AbstractContextManager[None]] | None = None
    """Enters a micro-batch by number; None when only one exchange may be in flight."""
    defers: bool = True
    """Takes ``defer_input_quant``; otherwise it has to refuse it."""
    consumes_expert_output: bool = False
    """``finalize`` may overwrite the experts' output."""
    takes_aliased_output: bool = True
    """``output`` may share memory with the experts' output."""
    deterministic: bool = True
    capturable: bool = False
    """Can be captured in a CUDA graph."""
    skips_missing: bool = True
    """Takes ids of -1."""
    refuses_bad_ids: bool = True
    """Raises for ids out of range (on the CPU)."""
    round_up: Callable[[int, torch.dtype], int] | None = None
    """What ``maybe_roundup_layer_hidden_size`` is for this backend."""
    grids: bool = True
    """``make`` heeds ``dp_size`` and ``tp_size``."""
    vendor: Vendor | None = None
    because: dict[str, str] = field(default_factory=dict, hash=False, compare=False)
    """For each field that declares less than the default: why. It is what a skip says."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.because) - {one.name for one in fields(self)})
        if unknown:
            raise ValueError(f"{self.name}: because gives a reason for {unknown[0]!r}, which is no field of a Backend.")

    @property
    def instrumented(self) -> tuple[str, ...]:
        """The packages whose functions have to check their types."""
        return (f"{self.fused_moe}.prepare_finalize", *self.packages)

    def why(self, field_name: str, default: str) -> str:
        """The reason that a skip gives: what is declared, and why."""
        value = getattr(self, field_name)
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        return f"{self.name} declares {field_name} {shown}: {self.because.get(field_name, default)}"
