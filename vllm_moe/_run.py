"""One Mixture-of-Experts layer on this rank: built, run, compared with a dense reference, and timed."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from vllm_moe.fused_moe.all2all_utils import describe_transport
from vllm_moe.fused_moe.layer import LOCAL_BACKENDS, FusedMoE
from vllm_moe.transports import EpGroup

__all__ = ["DTYPES", "Options", "Report", "run_rank"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_ALLOWED_ERROR = {
    torch.bfloat16: 0.01,
    torch.float16: 0.002,
    torch.float32: 1e-5,
    "fp8_tensor": 0.12,
    "fp8_token": 0.12,
    "fp8_block": 0.12,
    "int8_token": 0.045,
}
"""Largest norm of the error over the norm of the reference: about twice what the format's few bits cost."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True)
class Options:
    """What to run; the same on every rank."""

    backend: str
    tokens: int
    hidden: int
    intermediate: int
    experts: int
    topk: int
    quantization: str
    dtype: str
    shared: int
    redundant: int
    micro_batches: int
    repeat: int
    seed: int
    weight_on_input: bool


@dataclass(frozen=True)
class Report:
    """What came of it, over all ranks."""

    ranks: int
    device: str
    backend: str
    transport: str
    experts: str
    activation_format: str
    hidden: int
    """As the backend wanted it."""
    error: float
    """Norm of the error over the norm of the reference."""
    allowed: float
    milliseconds: float
    """Median time of a call; the slowest rank's."""

    @property
    def right(self) -> bool:
        """Whether the error is one that the formats explain; NaN is not."""
        return self.error <= self.allowed


def run_rank(options: Options, group: EpGroup, progress: Progress) -> Report:
    """Build the layer, run it, compare and time it; every rank gets the same report.

    Raises ValueError when the sizes or the backend do not fit, TransportError when a rank is missing.
    """
    dtype = DTYPES[options.dtype]
    layer = FusedMoE(
        options.experts,
        options.topk,
        options.hidden,
        options.intermediate,
        dtype,
        quantization=options.quantization,
        apply_router_weight_on_input=options.weight_on_input,
        num_redundant_experts=options.redundant,
        shared_intermediate_size=options.shared,
        all2all_backend=options.backend,
        ep_group=group,
        max_num_tokens=_capacity(options, group.world_size),
    )
    total = 3 * options.experts + 1 + (3 if options.shared else 0)
    for number, (name, weight) in enumerate(_checkpoint(options)):
        progress("weights", number, total)
        layer.load_weights([(name, weight.to(group.device, dtype))])
    progress("weights", total, total)
    layer.process_weights_after_loading()

    generator = torch.Generator().manual_seed(options.seed * 7919 + 17 + group.rank)
    hidden_states = torch.randn(options.tokens, options.hidden, generator=generator).to(group.device, dtype)
    output = layer(hidden_states, options.micro_batches)
    exact = _reference(options, layer, hidden_states, progress)
    off = float((output.cpu().double() - exact).square().sum())
    norm = float(exact.square().sum())

    times = []
    for number in range(options.repeat):
        progress("calls", number, options.repeat)
        group.barrier("before a timed call")
        _wait_for(group.device)
        start = time.perf_counter()
        layer(hidden_states, options.micro_batches)
        _wait_for(group.device)
        times.append((time.perf_counter() - start) * 1e3)
    progress("calls", options.repeat, options.repeat)

    everyone = _gather_floats(group, [off, norm, statistics.median(times)])
    summed_norm = sum(row[1] for row in everyone)
    prepare_finalize = layer.kernel.prepare_finalize
    local = options.backend in LOCAL_BACKENDS
    return Report(
        ranks=group.world_size,
        device=str(group.device),
        backend=type(prepare_finalize).__name__,
        transport="none: tokens stay on their rank" if local else describe_transport(prepare_finalize),
        experts=type(layer.kernel.fused_experts).__name__,
        activation_format=prepare_finalize.activation_format.name,
        hidden=layer.moe_config.hidden_dim,
        error=math.sqrt(sum(row[0] for row in everyone) / summed_norm) if summed_norm else 0.0,
        allowed=_ALLOWED_ERROR[dtype if options.quantization == "none" else options.quantization],
        milliseconds=max(row[2] for row in everyone),
    )


def _capacity(options: Options, world_size: int) -> int:
    """Tokens of one micro-batch, rounded so that ranks times tokens is a multiple of 4."""
    tokens = max(1, math.ceil(options.tokens / options.micro_batches))
    step = 4 // math.gcd(4, world_size)
    return math.ceil(tokens / step) * step


def _random(options: Options, number: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + number)
    return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)


def _expert(options: Options, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate, up and down of an expert, float32; the same on every rank."""
    hidden, width = options.hidden, options.intermediate
    return (
        _random(options, 3 * expert, width, hidden),
        _random(options, 3 * expert + 1, width, hidden),
        _random(options, 3 * expert + 2, hidden, width),
    )


def _shared(options: Options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    first = 3 * options.experts
    return (
        _random(options, first, options.shared, options.hidden),
        _random(options, first + 1, options.shared, options.hidden),
        _random(options, first + 2, options.hidden, options.shared),
    )


def _checkpoint(options: Options) -> Iterator[tuple[str, torch.Tensor]]:
    names = ("gate_proj", "up_proj", "down_proj")
    yield "gate.weight", _random(options, 3 * options.experts + 3, options.experts, options.hidden)
    for expert in range(options.experts):
        for name, weight in zip(names, _expert(options, expert), strict=True):
            yield f"experts.{expert}.{name}.weight", weight
    if options.shared:
        for name, weight in zip(names, _shared(options), strict=True):
            yield f"shared_expert.{name}.weight", weight


def _mlp(rows: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    gate, up, down = (weight.double() for weight in weights)
    return (functional.silu(rows @ gate.T) * (rows @ up.T)) @ down.T


def _reference(
    options: Options, layer: FusedMoE, hidden_states: torch.Tensor, progress: Progress
) -> torch.Tensor:
    """Compute the layer in float64, expert by expert, from weights as loaded and with the layer's routing."""
    dtype = DTYPES[options.dtype]
    weights, ids = (tensor.cpu() for tensor in layer.route(hidden_states))
    rows = hidden_states.cpu().double()
    exact = torch.zeros_like(rows)
    for expert in range(options.experts):
        progress("reference", expert, options.experts)
        token, slot = (ids == expert).nonzero(as_tuple=True)
        if token.numel():
            loaded = tuple(weight.to(dtype) for weight in _expert(options, expert))
            weight = weights[token, slot].double().unsqueeze(1)
            given = rows[token] * weight if options.weight_on_input else rows[token]
            out = _mlp(given, loaded)  # type: ignore[arg-type]  # three tensors
            exact.index_add_(0, token, out if options.weight_on_input else out * weight)
    if options.shared:
        exact += _mlp(rows, tuple(weight.to(dtype) for weight in _shared(options)))  # type: ignore[arg-type]  # three
    progress("reference", options.experts, options.experts)
    return exact


def _gather_floats(group: EpGroup, values: list[float]) -> list[list[float]]:
    bits = torch.tensor(values, dtype=torch.float64).view(torch.int64).tolist()
    everyone = torch.tensor(group.gather_ints("results", bits), dtype=torch.int64)
    table: list[list[float]] = everyone.view(torch.float64).tolist()
    return table


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
