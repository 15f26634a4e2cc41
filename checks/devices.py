"""What only shows on a GPU: streams, and CUDA graphs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from checks._ranks import Broken, NotShown
from checks._registry import check
from checks.bench import Bench, variants
from checks.cases import Case
from checks.honest import Honest


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class FreesWhatAnotherStreamReads(Honest):
    """Sends from memory of its own on a stream of its own, and lets go of it."""

    defect = "tensor allocated on one stream, read on another, freed early"
    seen_in = "deepep_ht, newest release"
    caught_in = 1
    needs = "cuda"

    def outgoing(self, a1: torch.Tensor, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The copy that travels is made when its source is gone."""
        rows, scale = super().outgoing(a1, scheme, config)
        source = rows.clone()
        stream = _stream()
        stream.wait_stream(torch.cuda.current_stream())
        travelling = torch.empty_like(rows)
        with torch.cuda.stream(stream):
            sleep: Any = torch.cuda._sleep  # noqa: SLF001 -- what torch's own tests delay a stream with
            sleep(20_000_000)
            travelling.copy_(source)
        del source
        torch.empty_like(rows).fill_(float("nan"))
        torch.cuda.current_stream().wait_stream(stream)
        return travelling, scale


class FillsOnAnotherStream(Honest):
    """Fills its buffer while rows arrive in it."""

    defect = "deterministic fill races the communication kernel"
    seen_in = "DeepEP 589, 600 (on a GPU)"
    caught_in = 1
    needs = "cuda"

    def incoming(self, got: Any, scheme: str, config: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The fill is late."""
        stream = _stream()
        with torch.cuda.stream(stream):
            got.rows.view(torch.uint8).fill_(0xFF)
        torch.cuda.current_stream().wait_stream(stream)
        return super().incoming(got, scheme, config)


@contextmanager
def _churn(bench: Bench, like: torch.Tensor) -> Iterator[None]:
    """Around the body, memory that is free for this stream is taken and filled with NaN."""

    def fill() -> None:
        blocks = [torch.full_like(like, torch.nan) for _ in range(8)]
        blocks += [torch.full((64, 64), torch.nan, device=bench.device) for _ in range(8)]
        del blocks

    fill()
    yield
    fill()


@check(
    cases=[*variants(Case(), quantization=("none", "fp8_token", "fp8_block")), Case(routing="holes")],
    wrong=[FreesWhatAnotherStreamReads, FillsOnAnotherStream],
)
def tensors_outlive_their_streams(bench: Bench, case: Case) -> None:
    """Tensors that cross streams outlive their use: memory freed and filled between the halves changes nothing."""
    bench.on_cuda("streams exist on a GPU only")
    backend = bench.build(case)
    problem = None
    for number in range(3):
        trip = bench.trip(case, backend)
        stream = _stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            like = trip.a1.clone()
            if backend.supports_async():
                hook, receiver = trip.prepare_async()
                with _churn(bench, like):
                    hook()
                    receiver()
                trip.experts()
                hook, done = trip.finalize_async()
                with _churn(bench, like):
                    hook()
                    done()
            else:
                with _churn(bench, like):
                    trip.prepare()
                with _churn(bench, like):
                    trip.experts().finalize()
            torch.cuda.current_stream().synchronize()
        found = trip.problem(f"the output of call {number + 1}")
        problem = problem or found
    bench.same_on_all(problem)


class WaitsForTheHost(Honest):
    """Declares that it can be captured, and reads a count."""

    defect = "a host synchronization on a path that is declared capturable"
    caught_in = 1
    needs = "cuda"
    declares: ClassVar[dict[str, Any]] = {"capturable": True}


@check(
    cases=[
        *variants(Case(tokens=(8, 8, 8, 8)), quantization=("none", "fp8_token", "fp8_block", "fp8_tensor")),
        Case(tokens=(1, 1, 1, 1)),
        Case(tokens=(8, 8, 8, 8), routing="all_missing"),
    ],
    wrong=[WaitsForTheHost],
)
def graph_replay_equals_eager(bench: Bench, case: Case) -> None:
    """Where it is declared capturable, nothing waits for the host, and a replay with changed inputs equals eager."""
    bench.on_cuda("CUDA graphs exist on a GPU only")
    if not bench.row.capturable:
        raise NotShown(bench.row.why("capturable", "its calls wait for the host"))
    backend = bench.build(case)
    trip = bench.trip(case, backend)
    fused = trip.run().fused.clone()
    side = _stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    prepared: Any = None
    try:
        with torch.cuda.stream(side):
            trip.prepare()
            trip.fused = fused
            trip.finalize()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            prepared = backend.prepare(*trip.arguments(), defer_input_quant=case.defer)
            trip.take(prepared).fused = fused
            trip.finalize()
    except RuntimeError as error:
        raise Broken(f"it is declared capturable, but capture fails: {str(error).splitlines()[0]}") from error
    changed = bench.trip(Case(**{**vars(case), "seed": case.seed + 1}), backend)
    for mine, other in ((trip.a1, changed.a1), (trip.ids, changed.ids), (trip.weights, changed.weights)):
        mine.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    # The experts' output is the graph's input to finalize: run them on what was replayed, and replay once more.
    fused.copy_(trip.take(prepared).experts().fused)
    trip.fused = fused
    graph.replay()
    torch.cuda.synchronize()
    trip.on_cpu, trip.case = changed.on_cpu, changed.case
    problem = trip.problem("the replayed output")
    bench.same_on_all(problem)
