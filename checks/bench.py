"""One rank's bench: builds a backend for a case, drives it as vLLM's kernel does, and compares with the reference."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from checks import reference
from checks._package import Package, package
from checks._ranks import Broken, NotShown
from checks._rows import Backend, Layer, Place
from checks.cases import Case, Inputs, hosted_experts, inputs, physical_experts, placement_tables

__all__ = ["Bench", "Kept", "Trip", "keep", "same_bits", "variants"]


class Bench:
    """What a check has to work with on one rank."""

    def __init__(self, row: Backend, place: Place, gather: Callable[[Any], list[Any]], seed: int) -> None:
        self.row, self.place, self.gather, self.seed = row, place, gather, seed
        self.rank, self.world_size, self.device = place.rank, place.world_size, place.device

    @cached_property
    def package(self) -> Package:
        """The fused_moe package that the backend belongs to."""
        return package(self.row.fused_moe)

    def dtype(self, case: Case) -> torch.dtype:
        """The activations' dtype."""
        dtype: torch.dtype = getattr(torch, case.dtype or self.row.dtypes[0])
        return dtype

    def hidden(self, case: Case) -> int:
        """The hidden size."""
        return case.hidden or self.row.hidden

    def inputs(self, case: Case, rank: int | None = None) -> Inputs:
        """The inputs of a rank (this one's if None), on the CPU; rank 0's where every rank passes the same."""
        rank = self.rank if rank is None else rank
        rank = 0 if self.row.replicated else rank
        return inputs(case, rank, self.hidden(case), self.dtype(case), self.seed)

    def all_inputs(self, case: Case) -> list[Inputs]:
        """The inputs of all who send."""
        senders = 1 if self.row.replicated else self.world_size
        return [self.inputs(case, rank) for rank in range(senders)]

    def layer(self, case: Case) -> Layer:
        """The layer that the case describes, for this rank."""
        experts = physical_experts(case, self.world_size)
        expert_map, tables = placement_tables(case, self.rank, self.world_size)
        return Layer(
            hidden=self.hidden(case),
            topk=case.topk,
            num_experts=experts,
            num_local_experts=experts // self.world_size,
            dtype=self.dtype(case),
            max_num_tokens=case.capacity,
            quant_config=self.package.quant_config(case.quantization, self.device),
            expert_map=expert_map.to(self.device),
            tables=None
            if case.placement == "linear"
            else (tables[0].to(self.device), tables[1].to(self.device), tables[2].to(self.device)),
            dp_size=case.grid[0] or self.world_size,
            tp_size=case.grid[1],
        )

    def build(self, case: Case) -> Any:
        """The backend, built for the case. Raises Broken when it is none."""
        made = self.row.make(self.place, self.layer(case))
        kind = self.package.monolithic if self.row.monolithic else self.package.modular
        if not isinstance(made, kind):
            raise Broken(
                f"the factory gave {made!r} ({type(made).__module__}.{type(made).__qualname__}), expected an instance "
                f"of {kind.__module__}.{kind.__qualname__}"
            )
        return made

    def trip(self, case: Case, backend: Any = None, number: int | None = None) -> "Trip":
        """A way through the backend (a new one if None), as micro-batch ``number``."""
        return Trip(self, case, self.build(case) if backend is None else backend, number)

    def micro_batch(self, number: int | None) -> AbstractContextManager[None]:
        """The context of a micro-batch; nothing when there is only one."""
        if number is None or self.row.micro_batch is None:
            return nullcontext()
        return self.row.micro_batch(number)

    def same_on_all(self, problem: str | None) -> None:
        """Raise Broken with the first rank's problem, on all ranks, if any has one."""
        for rank, found in enumerate(self.gather(problem)):
            if found is not None:
                raise Broken(f"rank {rank} of {self.world_size}: {found}")

    def on_cuda(self, why: str) -> None:
        """Raise NotShown on the CPU."""
        if self.device.type != "cuda":
            raise NotShown(f"{why}: run it with --device cuda")


@dataclass
class Kept:
    """What an argument was before a call."""

    name: str
    tensor: torch.Tensor
    before: torch.Tensor
    version: int

    def problem(self) -> str | None:
        """How it differs now, if it does."""
        now, before = self.tensor, self.before
        same_bits = now.shape == before.shape and torch.equal(_bits(now), _bits(before))
        if same_bits and now._version == self.version:  # noqa: SLF001 -- torch has no public name for it
            return None
        if same_bits:
            return f"{self.name} was written (its _version went from {self.version} to {now._version}), with equal bits"  # noqa: SLF001
        if now.shape != before.shape:
            return f"{self.name} was resized from {list(before.shape)} to {list(now.shape)}"
        differs = (_bits(now) != _bits(before)).view(*now.shape, -1).any(dim=-1)
        index = tuple(int(part) for part in differs.nonzero()[0])
        return (
            f"{self.name} was changed in {int(differs.sum())} of {now.numel()} elements; the first, {list(index)}, was "
            f"{before[index].item()} and is {now[index].item()}"
        )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def keep(**tensors: torch.Tensor | None) -> list[Kept]:
    """Remember tensors to see later whether they were written; None is left out."""
    return [
        Kept(name, tensor, tensor.detach().clone(), tensor._version)  # noqa: SLF001
        for name, tensor in tensors.items()
        if isinstance(tensor, torch.Tensor)
    ]


def _every_other(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    index = [slice(None)] * tensor.dim()
    index[dim] = slice(None, None, 2)
    return tensor.repeat_interleave(2, dim=dim)[tuple(index)]


class Trip:
    """Prepare, reference experts and finalize of one rank's tokens, step by step."""

    def __init__(self, bench: Bench, case: Case, backend: Any, number: int | None = None) -> None:
        self.bench, self.case, self.backend, self.number = bench, case, backend, number
        self.layer = bench.layer(case)
        self.given_map: torch.Tensor | None = self.layer.expert_map
        self.on_cpu = bench.inputs(case)
        self.a1, self.weights, self.ids = (
            tensor.to(bench.device, copy=True) for tensor in (self.on_cpu.a1, self.on_cpu.weights, self.on_cpu.ids)
        )
        self.poison = float("nan")
        """What the experts leave where there is no row or no expert of this rank."""
        self.backing = torch.full_like(self.a1, torch.nan)
        self.output = self.backing
        if case.strided:
            self.a1, self.ids = _every_other(self.a1, 1), _every_other(self.ids, 0)
            self.weights = self.weights.t().contiguous().t()
            self.backing = self.backing.repeat_interleave(2, dim=1)
            self.output = self.backing[:, ::2]
        self.logits = self._logits() if bench.row.monolithic else None
        self.reduction = bench.package.reduction(case.reduction, bench.rank)

    def _logits(self) -> torch.Tensor:
        """Router logits whose exponentials are the weights: what a router of softmax type would have had."""
        wide = torch.zeros(self.a1.size(0), self.case.num_experts, device=self.a1.device)
        wide.scatter_add_(1, self.ids.long().clamp(min=0), torch.where(self.ids >= 0, self.weights, 0.0))
        return wide.log()

    def arguments(self) -> tuple[Any, ...]:
        """What the driver passes to prepare by position."""
        if self.logits is not None:
            return (self.a1, self.logits, self.layer.quant_config)
        return (
            self.a1,
            self.weights,
            self.ids,
            self.layer.num_experts,
            self.given_map,
            self.case.weight_on_input,
            self.layer.quant_config,
        )

    def prepare_async(self) -> tuple[Callable[[], None], Callable[[], "Trip"]]:
        """Start prepare: a hook, which does nothing when the backend gave none, and a receiver."""
        with self.bench.micro_batch(self.number):
            started = self.backend.prepare_async(*self.arguments(), defer_input_quant=self.case.defer)
        hook, receiver = _hook_and_receiver("prepare_async", started)
        return hook, lambda: self.take(receiver())

    def finalize_async(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Start finalize, likewise."""
        with self.bench.micro_batch(self.number):
            started = self.backend.finalize_async(*self.finalize_arguments())
        return _hook_and_receiver("finalize_async", started)

    def run_async(self) -> "Trip":
        """Go the asynchronous way."""
        hook, receiver = self.prepare_async()
        hook()
        receiver()
        self.experts()
        hook, done = self.finalize_async()
        hook()
        done()
        return self

    def prepare(self) -> "Trip":
        """Call prepare and take what it gives."""
        with self.bench.micro_batch(self.number):
            prepared = self.backend.prepare(*self.arguments(), defer_input_quant=self.case.defer)
        return self.take(prepared)

    def take(self, prepared: Any) -> "Trip":
        """Take what prepare, or a receiver, gave. Raises Broken when it is not the right number of items."""
        expected = 3 if self.logits is not None else 5
        if not isinstance(prepared, tuple) or len(prepared) != expected:
            what = f"{len(prepared)} items" if isinstance(prepared, tuple) else f"a {type(prepared).__name__}"
            raise Broken(f"prepare gave {what}, expected a tuple of {expected}")
        self.a1q: torch.Tensor = prepared[0]
        self.scale: torch.Tensor | None = prepared[1]
        if self.logits is not None:
            self.got_logits: torch.Tensor = prepared[2]
            return self
        self.meta: Any = prepared[2]
        self.got_ids: torch.Tensor | None = prepared[3]
        self.got_weights: torch.Tensor | None = prepared[4]
        return self

    @property
    def batched(self) -> bool:
        """Whether the activations are in the batched format."""
        return bool(self.backend.activation_format == self.bench.package.formats.BatchedExperts)

    @property
    def driver_ids(self) -> torch.Tensor:
        """The ids that the driver hands on."""
        return self.ids if self.got_ids is None else self.got_ids

    @property
    def driver_weights(self) -> torch.Tensor:
        """The weights that the driver hands on."""
        return self.weights if self.got_weights is None else self.got_weights

    def own_slots(self) -> torch.Tensor:
        """Bool ``[rows, topk]``: which slots name an expert of this rank (standard format)."""
        ids = self.driver_ids.long()
        inside = (ids >= 0) & (ids < self.layer.expert_map.numel())
        return inside & (self.layer.expert_map[torch.where(inside, ids, 0)] >= 0)

    def real_rows(self) -> torch.Tensor:
        """Bool ``[rows]`` or ``[experts, rows]``: which rows hold a token for an expert of this rank."""
        if self.logits is not None:
            return self.a1q.new_ones(self.a1q.size(0), dtype=torch.bool)
        if not self.batched:
            return self.own_slots().any(dim=1)
        rows = torch.arange(self.a1q.size(1), device=self.a1q.device)
        if self.meta is None:
            return rows.new_ones((self.a1q.size(0), rows.numel()), dtype=torch.bool)
        # Experts read as many counts as they are, and do not see that there are more.
        counts: torch.Tensor = self.meta.expert_num_tokens
        return rows < counts[: self.a1q.size(0)].unsqueeze(1)

    def experts(self) -> "Trip":
        """Run the reference experts on what was prepared."""
        mine = hosted_experts(self.case, self.bench.rank, self.bench.world_size)
        each = reference.factors(self.case.num_experts)
        values = reference.dequantized(self.a1q, self.scale)
        dtype = self.bench.dtype(self.case)
        if self.logits is not None:
            local = torch.zeros_like(each)
            local[mine] = each[mine]
            gain = (self.got_logits.double().exp() * local.to(values.device)).sum(dim=1)
            self.fused = (values * gain.unsqueeze(1)).to(dtype)
        elif self.batched:
            out = values * each[mine].to(values.device).view(-1, 1, 1)
            self.fused = out.masked_fill(~self.real_rows().unsqueeze(2), self.poison).to(dtype)
        else:
            self.fused = self._standard_experts(values, each.to(values.device)).to(dtype)
        return self

    def _standard_experts(self, values: torch.Tensor, each: torch.Tensor) -> torch.Tensor:
        own, ids = self.own_slots(), self.driver_ids.long()
        out = values.unsqueeze(1) * each[torch.where(own, ids, 0)].unsqueeze(2)
        if self.case.reduction == "noop":
            weights = torch.ones_like(self.driver_weights) if self.case.weight_on_input else self.driver_weights
            weighted = torch.where(own, weights.double(), 0.0).unsqueeze(2)
            return torch.where(own.unsqueeze(2), out * weighted, 0.0).sum(dim=1)
        # A slot of another rank's expert is zero, as experts leave it; a slot that is marked may hold anything.
        out = out.masked_fill(~own.unsqueeze(2), 0.0)
        return out.masked_fill((ids < 0).unsqueeze(2), self.poison)

    def finalize_arguments(self) -> tuple[Any, ...]:
        """What the driver passes to finalize."""
        if self.logits is not None:
            return (self.fused,)
        return (
            self.output,
            self.fused,
            self.driver_weights,
            self.driver_ids,
            self.case.weight_on_input,
            self.reduction,
        )

    def finalize(self) -> "Trip":
        """Call finalize; raises Broken when it gives what it should not."""
        with self.bench.micro_batch(self.number):
            result = self.backend.finalize(*self.finalize_arguments())
        if self.logits is not None:
            if not isinstance(result, torch.Tensor):
                raise Broken(f"finalize gave {type(result).__name__}, expected the output")
            self.output = result
        elif result is not None:
            raise Broken(f"finalize gave {type(result).__name__}, expected None: its result is output")
        return self

    def run(self) -> "Trip":
        """Go the synchronous way."""
        return self.prepare().experts().finalize()

    def expected(self) -> torch.Tensor:
        """The dense output for this rank's tokens."""
        return reference.dense_output(self.case, self.on_cpu)

    def allowed(self) -> torch.Tensor:
        """How far the output may be from it."""
        everyone = [
            torch.where((one.ids >= 0).any(dim=1, keepdim=True), one.a1.double(), 0.0)
            for one in self.bench.all_inputs(self.case)
        ]
        return reference.allowed_error(self.case, self.on_cpu, everyone, self.bench.dtype(self.case))

    def complete(self) -> torch.Tensor:
        """The output, added up over the ranks where the backend says that this is left to do."""
        if self.backend.output_is_reduced():
            return self.output
        outputs = self.bench.gather(self.output.detach().to("cpu", torch.float64))
        if len({tuple(output.shape) for output in outputs}) > 1:
            shapes = [list(output.shape) for output in outputs]
            raise Broken(f"output_is_reduced is False, but the ranks' outputs cannot be added up: {shapes}")
        return torch.stack(outputs).sum(dim=0)

    def problem(self, what: str = "the output") -> str | None:
        """What is wrong with the complete output, if anything."""
        found = self.complete()
        if found.shape != self.expected().shape:
            return f"{what} has shape {list(found.shape)}, expected {list(self.expected().shape)}"
        error, words = reference.worst(found, self.expected(), self.allowed())
        return None if error <= 1.0 else f"{what} is off by {error:.3g} times what is allowed; {words}"


def _hook_and_receiver(where: str, started: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    if callable(started):
        return (lambda: None), started
    if isinstance(started, tuple) and len(started) == 2 and all(callable(one) for one in started):
        return started
    what = f"({', '.join(type(one).__name__ for one in started)})" if isinstance(started, tuple) else started
    raise Broken(f"{where} gave {what}, expected a callable or (callable, callable)")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are of one shape and dtype and equal bit for bit."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))


def variants(case: Case, **lists: tuple[Any, ...]) -> list[Case]:
    """Cases in which each named field takes each of its values."""
    cases = [case]
    for name, values in lists.items():
        cases = [replace(one, **{name: value}) for one in cases for value in values]
    return cases
