"""Round trips through a backend, prepare to finalize, in every rank of a world.

The experts here multiply a row by a factor of their own, so that whatever is lost, doubled or sent to the
wrong expert shows. They write NaN wherever there is no row, and read no row that is not there.
"""

from dataclasses import dataclass, replace

import torch

from vllm_moe.fused_moe.activation import MoEActivation
from vllm_moe.fused_moe.all2all_utils import make_all2all_prepare_finalize, maybe_make_prepare_finalize
from vllm_moe.fused_moe.config import (
    FP8_DTYPE,
    FusedMoEConfig,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
    RoutingMethodType,
)
from vllm_moe.fused_moe.modular_kernel import (
    FusedMoEActivationFormat,
    FusedMoEPrepareAndFinalize,
    FusedMoEPrepareAndFinalizeModular,
)
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate
from vllm_moe.fused_moe.ubatching import ubatch
from vllm_moe.transports import EpGroup

BACKENDS = (
    "allgather_reducescatter",
    "deepep_high_throughput",
    "deepep_low_latency",
    "flashinfer_nvlink_one_sided",
    "flashinfer_nvlink_two_sided",
    "mori",
    "nixl_ep",
)
LOW_LATENCY = ("deepep_low_latency", "nixl_ep")
QUANTIZATIONS = ("none", "fp8_static", "fp8_tensor", "fp8_token", "fp8_block", "int8_token")
ROUTINGS = ("uniform", "duplicates", "holes", "one_expert")
STATIC_SCALE = 0.25


@dataclass(frozen=True)
class Case:
    """One round trip."""

    backend: str
    quantization: str = "none"
    routing: str = "uniform"
    tokens: tuple[int, ...] = (5, 0, 8, 3)
    """Tokens of each rank; as many as the world has ranks are used."""
    topk: int = 2
    num_experts: int = 8
    dtype: torch.dtype = torch.bfloat16
    weight_on_input: bool = False
    defer_input_quant: bool = False
    max_num_tokens: int = 8
    seed: int = 0
    wide: int = 0
    """The hidden size, if not the least that the backend is tested with."""

    @property
    def hidden(self) -> int:
        if self.wide:
            return self.wide
        return 2048 if self.backend in LOW_LATENCY else 512

    def quant_config(self, device: torch.device) -> FusedMoEQuantConfig:
        kind, _, group = self.quantization.partition("_")
        if kind == "none":
            return FusedMoEQuantConfig.make()
        return FusedMoEQuantConfig.make(
            FP8_DTYPE if kind == "fp8" else torch.int8,
            per_act_token_quant=group == "token",
            block_shape=[128, 128] if group == "block" else None,
            a1_scale=torch.tensor([STATIC_SCALE], device=device) if group == "static" else None,
        )

    def moe_config(self, group: EpGroup) -> FusedMoEConfig:
        world = group.world_size
        return FusedMoEConfig(
            num_experts=self.num_experts,
            experts_per_token=self.topk,
            hidden_dim=self.hidden,
            intermediate_size_per_partition=64,
            num_local_experts=self.num_experts // world,
            num_logical_experts=self.num_experts,
            activation=MoEActivation.SILU,
            device=group.device,
            routing_method=RoutingMethodType.Renormalize,
            moe_parallel_config=FusedMoEParallelConfig.make(
                1, 1, world, 1, rank=group.rank, enable_expert_parallel=True, all2all_backend=self.backend
            ),
            in_dtype=self.dtype,
            max_num_tokens=self.max_num_tokens,
        )


def build(group: EpGroup, case: Case, **options: object) -> FusedMoEPrepareAndFinalize:
    """Build the case's backend, through the factory."""
    moe, quant_config = case.moe_config(group), case.quant_config(group.device)
    if group.world_size == 1:
        return make_all2all_prepare_finalize(case.backend, moe, quant_config, group, **options)
    return maybe_make_prepare_finalize(moe, quant_config, ep_group=group, **options)


def factors(num_experts: int) -> torch.Tensor:
    """Give what each expert multiplies by, float64."""
    return 0.5 + 0.375 * torch.arange(num_experts, dtype=torch.float64)


def inputs(case: Case, rank: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give a rank's activations, weights and ids; magnitudes differ by 10 between neighbouring ranks."""
    tokens, topk, experts = case.tokens[rank], case.topk, case.num_experts
    generator = torch.Generator().manual_seed(1000 * case.seed + rank)
    a1 = torch.randn(tokens, case.hidden, generator=generator) * (10.0 if rank % 2 else 1.0)
    weights = torch.rand(tokens, topk, generator=generator) + 0.25
    ids = torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :topk]
    if case.routing == "one_expert":
        ids = torch.full_like(ids, experts - 1)
        ids[:, 1:] = torch.arange(topk - 1)
    if case.routing == "duplicates":
        ids[::2] = ids[::2, :1]
    if case.routing == "holes":
        ids[1::3] = -1
        ids[::3, -1] = -1
        a1[1::3] = torch.nan
        weights[ids < 0] = torch.nan
    return a1.to(case.dtype).to(device), weights.to(device), ids.to(device)


def reference(case: Case, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the dense float64 output for a rank's tokens, and how far off each element may be.

    A row is quantized once and rounded to the activations' dtype up to four times on its way: as weighted
    input, times its expert's factor, after the partial sum on a rank, after the sum over ranks.
    """
    cpu = torch.device("cpu")
    a1, weights, ids = inputs(case, rank, cpu)
    x, routed = a1.double(), ids >= 0
    gain = torch.where(routed, weights.double() * factors(case.num_experts)[ids.clamp(min=0)], 0.0).sum(dim=1)
    x = torch.where(routed.any(dim=1, keepdim=True), x, 0.0)
    exact = gain.unsqueeze(1) * x
    # With the weight on the input the weighted row is what is quantized: the same relative error.
    step = _scale(case, x, world)
    if case.defer_input_quant or case.quantization == "none":
        off = torch.zeros_like(x)
    elif case.quantization.startswith("fp8"):
        off = x.abs() * 2.0**-4 + step * 2.0**-10
    else:
        off = (step * 0.501).expand_as(x)
    rounding = 4.1 * torch.finfo(case.dtype).eps / 2
    return exact, gain.unsqueeze(1) * off * 1.01 + exact.abs() * rounding + 1e-12


def _scale(case: Case, x: torch.Tensor, world: int) -> torch.Tensor:
    """Give the largest scale that each element of ``x`` can be quantized with, broadcastable to its shape."""
    limit = 127.0 if case.quantization.startswith("int8") else 448.0
    if case.quantization.endswith("token"):
        return x.abs().amax(dim=1, keepdim=True) / limit
    if case.quantization.endswith("block"):
        blocks = x.view(x.size(0), -1, 128) if x.numel() else x.view(0, case.hidden // 128, 128)
        return (blocks.abs().amax(dim=2) / limit).repeat_interleave(128, dim=1)
    if case.quantization.endswith("static"):
        return torch.full((1, 1), STATIC_SCALE, dtype=torch.float64)
    largest = [
        inputs(case, rank, torch.device("cpu"))[0].double().nan_to_num(0.0).abs() for rank in range(world)
    ]
    amax = max((float(values.max()) for values in largest if values.numel()), default=0.0)
    # The weighted input can be larger than the input.
    return torch.full((1, 1), amax * (1.25 if case.weight_on_input else 1.0) / limit, dtype=torch.float64)


def dequantized(rows: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """float64 values of what ``prepare`` gave."""
    values = rows.to(torch.float64)
    if scale is None:
        return values
    wide = scale.to(torch.float64)
    if wide.size(-1) > 1:
        wide = wide.repeat_interleave(values.size(-1) // wide.size(-1), dim=-1)
    return values * wide


def run_experts(
    case: Case,
    pf: FusedMoEPrepareAndFinalizeModular,
    group: EpGroup,
    prepared: tuple,
    topk_ids: torch.Tensor,
) -> torch.Tensor:
    """Multiply every received row by the factor of its expert; NaN everywhere else."""
    a1q, scale, meta, _, _ = prepared
    local = case.num_experts // group.world_size
    mine = factors(case.num_experts)[group.rank * local : (group.rank + 1) * local].to(a1q.device)
    values = dequantized(a1q, scale)
    if pf.activation_format is FusedMoEActivationFormat.BatchedExperts:
        out = values * mine.view(-1, 1, 1)
        empty = torch.arange(a1q.size(1), device=a1q.device) >= meta.expert_num_tokens.unsqueeze(1)
        return out.masked_fill(empty.unsqueeze(2), torch.nan).to(case.dtype)
    here = (topk_ids // local == group.rank) & (topk_ids >= 0)
    factor = mine[(topk_ids - group.rank * local).long().clamp(0, local - 1)]
    out = values.unsqueeze(1) * factor.unsqueeze(2)
    return out.masked_fill(~here.unsqueeze(2), torch.nan).to(case.dtype)


class RoundTrip:
    """One rank's way through a backend, in the steps that a driver takes, with checks of what passes by."""

    def __init__(self, group: EpGroup, pf: FusedMoEPrepareAndFinalizeModular, case: Case) -> None:
        self.group, self.pf, self.case = group, pf, case
        self.a1, self.weights, self.ids = inputs(case, group.rank, group.device)
        self.kept = [tensor.clone() for tensor in (self.a1, self.weights, self.ids)]
        self.versions = [tensor._version for tensor in (self.a1, self.weights, self.ids)]
        self.output = torch.full_like(self.a1, torch.nan)

    def prepare_arguments(self) -> tuple:
        quant_config = self.case.quant_config(self.group.device)
        return (
            self.a1,
            self.weights,
            self.ids,
            self.case.num_experts,
            expert_map(self.case, self.group),
            self.case.weight_on_input,
            quant_config,
            self.case.defer_input_quant,
        )

    def prepared(self, prepared: tuple) -> None:
        """Take what prepare gave, check it, and run the experts."""
        given = (self.a1, self.weights, self.ids)
        for now, before, version in zip(given, self.kept, self.versions, strict=True):
            assert now._version == version, "prepare wrote an argument"
            assert torch.equal(now.nan_to_num(7.0), before.nan_to_num(7.0))
        a1q, scale, meta, ids, weights = prepared
        self._check_result(a1q, scale, meta, ids, weights)
        self.dispatched = (self.ids, self.weights) if ids is None else (ids, weights)
        self.fused = run_experts(self.case, self.pf, self.group, prepared, self.dispatched[0])

    def finalize_arguments(self) -> tuple:
        ids, weights = self.dispatched
        return (
            self.output,
            self.fused,
            weights,
            ids,
            self.case.weight_on_input,
            TopKWeightAndReduceDelegate(),
        )

    def error(self) -> float:
        """Give the largest error in units of what is allowed; at most 1 is right."""
        exact, allowed = reference(self.case, self.group.rank, self.group.world_size)
        if not exact.numel():
            return 0.0
        off = (self.output.cpu().double() - exact).abs() / allowed
        return float(off.nan_to_num(nan=torch.inf).max())

    def run(self) -> float:
        """Go the synchronous way."""
        self.prepared(self.pf.prepare(*self.prepare_arguments()))
        arguments = self.finalize_arguments()
        before = [argument.clone() for argument in arguments[1:4]]
        assert self.pf.finalize(*arguments) is None
        for now, then in zip(arguments[1:4], before, strict=True):
            assert torch.equal(now.nan_to_num(7.0), then.nan_to_num(7.0))
        return self.error()

    def _check_result(self, a1q, scale, meta, ids, weights) -> None:
        case, world = self.case, self.group.world_size
        local = case.num_experts // world
        quantized = case.quantization != "none" and not case.defer_input_quant
        assert (scale is not None) == quantized
        config = case.quant_config(self.group.device)
        assert a1q.dtype == (config.quant_dtype if quantized else case.dtype)
        if self.pf.activation_format is FusedMoEActivationFormat.BatchedExperts:
            assert a1q.shape == (local, case.max_num_tokens * world, case.hidden)
            assert ids is None
            assert weights is None
            if scale is not None:
                assert scale.shape == config.batched_scale_shape(*a1q.shape)
        else:
            assert a1q.dim() == 2
            assert (ids is None) == (weights is None)
            ids, weights = (self.ids, self.weights) if ids is None else (ids, weights)
            assert ids.shape == weights.shape == (a1q.size(0), case.topk)
            assert weights.dtype == self.weights.dtype
            if scale is not None:
                assert scale.shape == config.scale_shape(*a1q.shape)
        if scale is not None:
            assert scale.dtype is torch.float32
        batched = self.pf.activation_format is FusedMoEActivationFormat.BatchedExperts
        expected = expected_counts(case, self.group, merged=batched)
        if meta is not None:
            assert meta.expert_num_tokens.dtype is torch.int32
            assert meta.expert_num_tokens.tolist() == expected
            if meta.expert_num_tokens_cpu is not None:
                assert meta.expert_num_tokens_cpu.tolist() == expected
        if ids is not None:
            own = ids[(ids >= 0) & (ids // local == self.group.rank)] - self.group.rank * local
            assert torch.bincount(own.long(), minlength=local).tolist() == expected


def expert_map(case: Case, group: EpGroup) -> torch.Tensor:
    """From global to local ids, -1 for other ranks' experts."""
    local = case.num_experts // group.world_size
    table = torch.full((case.num_experts,), -1, dtype=torch.int32)
    table[group.rank * local : (group.rank + 1) * local] = torch.arange(local, dtype=torch.int32)
    return table.to(group.device)


def expected_counts(case: Case, group: EpGroup, *, merged: bool) -> list[int]:
    """Count each local expert's rows from all ranks; ``merged`` counts a token once an expert."""
    local = case.num_experts // group.world_size
    counts = [0] * local
    for rank in range(group.world_size):
        for row in inputs(case, rank, torch.device("cpu"))[2].tolist():
            for expert in set(row) if merged else row:
                if expert >= 0 and expert // local == group.rank:
                    counts[expert % local] += 1
    return counts


def round_trip(group: EpGroup, case: Case) -> float:
    """Run a case once."""
    return RoundTrip(group, build(group, case), case).run()


def round_trips(group: EpGroup, cases: list[Case]) -> list[float]:
    """Run cases that share one backend object; each output has to outlive the next call."""
    pf = build(group, cases[0])
    trips = [RoundTrip(group, pf, case) for case in cases]
    for trip in trips:
        trip.run()
    return [trip.error() for trip in trips]


def micro_batches(group: EpGroup, case: Case, order: str) -> list[float]:
    """Two micro-batches in flight: ``order`` names the steps, such as ``p0 p1 f0 f1``."""
    pf = build(group, case)
    cases = [case, replace(case, seed=case.seed + 1, tokens=case.tokens[::-1])]
    trips = [RoundTrip(group, pf, one) for one in cases]
    for step in order.split():
        trip = trips[int(step[1])]
        with ubatch(int(step[1])):
            if step[0] == "p":
                trip.prepared(pf.prepare(*trip.prepare_arguments()))
            else:
                pf.finalize(*trip.finalize_arguments())
    return [trip.error() for trip in trips]


def interleaved(group: EpGroup, case: Case) -> list[float]:
    """Two micro-batches whose sends both go out before either is received, and the same on the way back."""
    pf = build(group, case)
    assert pf.supports_async()
    cases = [case, replace(case, seed=case.seed + 1, tokens=case.tokens[::-1])]
    trips = [RoundTrip(group, pf, one) for one in cases]
    started = []
    for number, trip in enumerate(trips):
        with ubatch(number):
            started.append(pf.prepare_async(*trip.prepare_arguments()))
    for number, trip in reversed(list(enumerate(trips))):
        with ubatch(number):
            hook, receiver = (
                started[number] if isinstance(started[number], tuple) else (None, started[number])
            )
            if hook is not None:
                hook()
            trip.prepared(receiver())
    ending = []
    for number, trip in enumerate(trips):
        with ubatch(number):
            ending.append(pf.finalize_async(*trip.finalize_arguments()))
    # The low-latency kernels have to receive one send before the next, so only the last is sure to be
    # outstanding.
    if group.world_size > 1 and trips[1].output.numel():
        assert trips[1].output.isnan().all(), "output is final before the receiver was called"
    for number in reversed(range(len(trips))):
        hook, receiver = ending[number] if isinstance(ending[number], tuple) else (None, ending[number])
        if hook is not None:
            hook()
        receiver()
    return [trip.error() for trip in trips]


def caller_overwrites_routing(group: EpGroup, case: Case) -> float:
    """Run with a caller that reuses its ids between prepare and finalize."""
    pf = build(group, case)
    trip = RoundTrip(group, pf, case)
    trip.prepared(pf.prepare(*trip.prepare_arguments()))
    ids, weights = trip.dispatched
    if ids is trip.ids:
        # prepare gave none of its own: what the driver hands to finalize is the caller's, as it is now.
        trip.ids.copy_((trip.ids + 1) % case.num_experts)
    output, fused, _, _, flag, reduce_impl = trip.finalize_arguments()
    pf.finalize(output, fused, weights, ids, flag, reduce_impl)
    return trip.error()


def strided_arguments(group: EpGroup, case: Case) -> float:
    """Activations, ids and output that are every other column or row of something larger."""
    pf = build(group, case)
    trip = RoundTrip(group, pf, case)
    wide = trip.a1.repeat_interleave(2, dim=1)
    trip.a1 = wide[:, ::2]
    trip.ids = trip.ids.repeat_interleave(2, dim=0)[::2]
    trip.weights = trip.weights.t().contiguous().t()
    trip.versions = [tensor._version for tensor in (trip.a1, trip.weights, trip.ids)]
    assert not trip.a1.is_contiguous() or trip.a1.size(0) < 2
    backing = torch.full((trip.a1.size(0), 2 * case.hidden), torch.nan, dtype=case.dtype, device=group.device)
    trip.output = backing[:, ::2]
    trip.prepared(pf.prepare(*trip.prepare_arguments()))
    pf.finalize(*trip.finalize_arguments())
    assert backing[:, 1::2].isnan().all()
    return trip.error()


def twice(group: EpGroup, case: Case) -> bool:
    """Whether two equal calls give equal bits."""
    pf = build(group, case)
    first, second = RoundTrip(group, pf, case), RoundTrip(group, pf, case)
    first.run()
    second.run()
    return torch.equal(first.output.nan_to_num(7.0), second.output.nan_to_num(7.0))
