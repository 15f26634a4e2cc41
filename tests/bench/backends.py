"""Every prepare/finalize backend in worlds of several ranks on one machine: right, and how fast.

Each backend runs round trips against a dense float64 reference (six quantizations, four kinds of routing,
uneven tokens), over ``torch.distributed`` with gloo; and ``nixl_ep`` over the genuine library too where it
can be imported, with all ranks on one GPU. Then one call of a usual size is timed. Run ``python -m
tests.bench.backends --help``.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tests.vllm_moe import dispatch_cases
from tests.vllm_moe.dispatch_cases import BACKENDS, LOW_LATENCY, QUANTIZATIONS, ROUTINGS, Case, RoundTrip
from tests.vllm_moe.worlds import World, WorldError
from vllm_moe.fused_moe.all2all_utils import describe_transport
from vllm_moe.fused_moe.config import FusedMoEQuantConfig
from vllm_moe.fused_moe.modular_kernel import FusedMoEPrepareAndFinalizeModular
from vllm_moe.fused_moe.prepare_finalize import BatchedPrepareAndFinalize, MoEPrepareAndFinalizeNoDPEPModular
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate
from vllm_moe.transports import EpGroup, TransportChoice, TransportError, load_vendor

LOCAL_BACKENDS = ("batched", "no_dp_ep")
ASYNC_BACKENDS = ("deepep_high_throughput", *LOW_LATENCY)


@dataclass
class Result:
    """One backend in one world."""

    backend: str
    transport: str
    ranks: int
    cases: int
    worst_error: float
    """The largest error over all cases, in units of what the dtypes allow."""
    prepare_us: float | None
    finalize_us: float | None
    """Medians over calls of ``timed_tokens`` tokens a rank, and over ranks the largest."""


@dataclass(frozen=True)
class Timed:
    """The call that is timed."""

    tokens: int
    hidden: int
    num_experts: int
    topk: int
    calls: int


def _local_backend(case: Case) -> FusedMoEPrepareAndFinalizeModular:
    if case.backend == "batched":
        return BatchedPrepareAndFinalize(case.max_num_tokens, case.num_experts, 1, 0)
    return MoEPrepareAndFinalizeNoDPEPModular()


def _build(group: EpGroup, case: Case) -> FusedMoEPrepareAndFinalizeModular:
    return _local_backend(case) if case.backend in LOCAL_BACKENDS else dispatch_cases.build(group, case)


def _cases(backend: str) -> list[Case]:
    cases = [Case(backend, quantization, routing) for quantization in QUANTIZATIONS for routing in ROUTINGS]
    cases += [Case(backend, "fp8_token", "holes", topk=1, weight_on_input=True)]
    cases += [Case(backend, "fp8_tensor", tokens=(0, 1, 0, 0)), Case(backend, "none", topk=8)]
    return cases


def check(group: EpGroup, backend: str) -> tuple[str, int, float]:
    """Run every case: ``(what carries the tokens, how many cases, worst error)``."""
    worst = 0.0
    count = 0
    described = "no transport"
    for case in _cases(backend):
        pf = _build(group, case)
        described = described if backend in LOCAL_BACKENDS else describe_transport(pf)
        worst = max(worst, RoundTrip(group, pf, case).run())
        count += 1
    if backend in ASYNC_BACKENDS:
        for quantization in ("none", "fp8_block"):
            worst = max(worst, *dispatch_cases.interleaved(group, Case(backend, quantization)))
            count += 1
    group.barrier("end of the checks")
    return described, count, worst


def measure(group: EpGroup, backend: str, timed: Timed) -> tuple[float, float]:
    """Median microseconds of prepare and of finalize, unquantized."""
    case = Case(
        backend,
        tokens=(timed.tokens,) * group.world_size,
        num_experts=timed.num_experts,
        topk=timed.topk,
        max_num_tokens=timed.tokens,
        wide=timed.hidden,
    )
    pf = _build(group, case)
    a1, weights, ids = dispatch_cases.inputs(case, group.rank, group.device)
    output = torch.empty_like(a1)
    table = dispatch_cases.expert_map(case, group)
    quant_config = FusedMoEQuantConfig.make()

    def clock() -> float:
        if group.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    prepare_us, finalize_us = [], []
    for number in range(timed.calls + 3):
        group.barrier("before a timed call")
        start = clock()
        prepared = pf.prepare(a1, weights, ids, case.num_experts, table, False, quant_config)
        middle = clock()
        got_ids, got_weights = (ids, weights) if prepared[3] is None else prepared[3:5]
        rows = prepared[0]
        fused = rows if rows.dim() == 3 else rows.unsqueeze(1).expand(-1, case.topk, -1).contiguous()
        before = clock()
        pf.finalize(output, fused, got_weights, got_ids, False, TopKWeightAndReduceDelegate())
        after = clock()
        if number >= 3:
            prepare_us.append((middle - start) * 1e6)
            finalize_us.append((after - before) * 1e6)
    group.barrier("end of the timing")
    return statistics.median(prepare_us), statistics.median(finalize_us)


def lose_a_rank(group: EpGroup) -> str:
    """Rank 1 stops calling after one round trip: what the others are told."""
    case = Case("nixl_ep")
    pf = dispatch_cases.build(group, case)
    RoundTrip(group, pf, case).run()
    if group.rank == 1:
        time.sleep(4 * group.timeout.total_seconds())
        return ""
    trip = RoundTrip(group, pf, case)
    trip.pf.prepare(*trip.prepare_arguments())
    trip.fused = torch.zeros(
        case.num_experts // group.world_size,
        case.max_num_tokens * group.world_size,
        case.hidden,
        dtype=case.dtype,
        device=group.device,
    )
    trip.dispatched = (trip.ids, trip.weights)
    pf.finalize(*trip.finalize_arguments())
    try:
        pf.buffer.check()
    except TransportError as error:
        return str(error)
    return "nothing was noticed"


class Worlds:
    """Worlds by size, each started once; one that failed is started again."""

    def __init__(self, device: str, transport: TransportChoice, seconds: float = 20.0) -> None:
        self.device, self.transport, self.seconds = device, transport, seconds
        self._current: World | None = None

    def get(self, size: int, *, fresh: bool = False) -> World:
        """Give a world of this size, ending one of another size."""
        current = self._current
        if current is not None and (fresh or current.broken or current.size != size):
            self.close()
        if self._current is None:
            self._current = World(size, seconds=self.seconds, device=self.device, transport=self.transport)
        return self._current

    def close(self) -> None:
        """End the current world."""
        if self._current is not None:
            self._current.close()
            self._current = None


def run_one(worlds: Worlds, backend: str, size: int, timed: Timed) -> Result:
    """Check and time one backend; a vendor's library gets a new world for each, since it keeps its memory."""
    fresh = worlds.transport == "vendor"
    checked = worlds.get(size, fresh=fresh).run(check, backend)
    times = worlds.get(size, fresh=fresh).run(measure, backend, timed)
    return Result(
        backend,
        checked[0][0],
        size,
        checked[0][1],
        max(error for _, _, error in checked),
        max(prepare for prepare, _ in times),
        max(finalize for _, finalize in times),
    )


def markdown(report: dict, results: list[Result]) -> str:
    """Give the report as a page."""
    timed = report["timed"]
    lines = [
        "# Backends",
        "",
        f"{report['device']}; torch {report['torch']}, Python {report['python']}. Command: "
        f"`{report['command']}`.",
        f"Vendor libraries: {report['vendors'] or 'none importable'}.",
        "",
        f"Timed call: {timed['tokens']} tokens a rank, hidden size {timed['hidden']}, {timed['num_experts']} "
        "experts, "
        f"topk {timed['topk']}, bf16, unquantized; median of {timed['calls']} calls, synchronized, the "
        "slowest rank's. "
        "Errors are in units of what the dtypes allow: at most 1 is right. On one GPU several ranks take "
        "turns, so "
        "their times say what sharing it costs, not what the exchange takes with a GPU each.",
        "",
        "| backend | carried by | ranks | cases | worst error | prepare us | finalize us |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.backend} | {r.transport} | {r.ranks} | {r.cases} | {r.worst_error:.2f} | "
        f"{r.prepare_us:.0f} | {r.finalize_us:.0f} |"
        for r in results
    ]
    if report["failures"]:
        lines += ["", "Failed:", "", *(f"- {failure}" for failure in report["failures"])]
    if report["lost_rank"]:
        lines += ["", f"When rank 1 of 2 stops calling nixl_ep, rank 0 is told: `{report['lost_rank']}`"]
    return "\n".join(lines) + "\n"


def _command() -> str:
    """Give the command line, without where the report went."""
    words = sys.argv[1:]
    if "--output" in words:
        at = words.index("--output")
        words = words[:at] + words[at + 2 :]
    return " ".join(["python -m tests.bench.backends", *words])


def main() -> int:
    """Run what the command line asks for and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--ranks", default="1,2,4", help="worlds, separated by commas")
    parser.add_argument("--backends", default=",".join((*LOCAL_BACKENDS, *BACKENDS)))
    parser.add_argument("--vendor", action="store_true", help="also nixl_ep over the genuine library")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--topk", type=int, default=8)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--output", type=Path, help="where to write .json and .md, without the suffix")
    options = parser.parse_args()
    timed = Timed(options.tokens, options.hidden, options.experts, options.topk, options.calls)
    worlds = [int(size) for size in options.ranks.split(",")]

    results: list[Result] = []
    report: dict = {
        "device": torch.cuda.get_device_name()
        if options.device == "cuda"
        else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": _command(),
        "vendors": "",
        "timed": asdict(timed),
        "failures": [],
        "lost_rank": "",
    }
    if options.vendor:
        module, version = load_vendor("nixl_ep")
        report["vendors"] = f"{module.__name__ if module else 'nixl_ep'} ({version})"

    def write() -> None:
        report["results"] = [asdict(result) for result in results]
        if options.output:
            options.output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
            options.output.with_suffix(".md").write_text(markdown(report, results))

    def run(kind: TransportChoice, entries: list[tuple[str, int]]) -> None:
        kept = Worlds(options.device, kind)
        for backend, size in entries:
            start = time.perf_counter()
            try:
                results.append(run_one(kept, backend, size, timed))
            except WorldError as error:
                last = str(error).strip().splitlines()
                report["failures"].append(f"{backend} ({kind}) on {size} ranks: {last[-1]}")
                print(f"{backend} {size} {kind} FAILED\n{error}", flush=True)
            else:
                print(results[-1], f"{time.perf_counter() - start:.1f} s", flush=True)
            write()
        kept.close()

    if options.vendor:
        run("vendor", [("nixl_ep", size) for size in worlds])
        world = World(2, seconds=4.0, device=options.device, transport="vendor")
        try:
            report["lost_rank"] = world.run(lose_a_rank)[0]
        except WorldError as error:
            report["lost_rank"] = str(error).strip().splitlines()[-1]
        finally:
            world.close()
        print(report["lost_rank"], flush=True)
        write()
    run(
        "torch",
        [
            (backend, size)
            for size in worlds
            for backend in options.backends.split(",")
            if backend not in LOCAL_BACKENDS or size == 1
        ],
    )
    return 1 if report["failures"] or any(result.worst_error > 1 for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
