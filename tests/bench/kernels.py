"""Times of batched prepare and finalize beside the least they could take.

On a CUDA device: eager calls, and calls replayed from a CUDA graph, beside the byte floor: every routed row
read once and every row written once, padding left alone, at the copy speed measured on the same device in
the same run. On a CPU: beside two loops over experts, one of which zeroes the padding, as vLLM's own does.
Run ``python -m tests.bench.kernels --help`` for the options.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vllm_moe.fused_moe.config import FP8_DTYPE, FusedMoEQuantConfig
from vllm_moe.fused_moe.prepare_finalize.batched import BatchedPrepareAndFinalize
from vllm_moe.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceDelegate

SHAPES = (
    # tokens, experts, local experts, hidden, topk
    (64, 256, 32, 7168, 8),
    (256, 256, 32, 7168, 8),
    (1024, 256, 32, 7168, 8),
    (4096, 256, 32, 7168, 8),
    (1024, 256, 256, 7168, 8),
    (1024, 8, 8, 4096, 2),
)
PLOTTED_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
CPU_SHAPE = (1024, 64, 64, 1024, 8)
SCHEMES = {
    "none": FusedMoEQuantConfig.make(),
    "fp8 128-block": FusedMoEQuantConfig.make(FP8_DTYPE, block_shape=[128, 128]),
}
# Eager microseconds of vLLM's newest release for the same calls on an H200, from its own code, unquantized.
VLLM_NEWEST_US = {
    (64, 256, 32, 7168, 8): (351, 353),
    (1024, 256, 32, 7168, 8): (371, 379),
    (4096, 256, 32, 7168, 8): (939, 657),
    (1024, 256, 256, 7168, 8): (1690, 1138),
    (1024, 8, 8, 4096, 2): (364, 364),
}
CACHE_BYTES = 60 * 2**20
WARM_UP_CALLS = 50
GRAPH_NOTE = (
    "graph: one of many calls in one CUDA graph, each on tensors of its own; eager: one call on an idle "
    "device, host work included, which differs a lot from host to host."
)


@dataclass
class Row:
    """One measured step; microseconds."""

    step: str
    scheme: str
    tokens: int
    experts: int
    local: int
    hidden: int
    topk: int
    eager_us: float
    graph_us: float
    floor_us: float
    graph_over_floor: float
    vllm_newest_us: int | None


class Inputs:
    """Tokens of one call and the backend that takes them."""

    def __init__(self, shape: tuple[int, int, int, int, int], scheme: str, device: str, seed: int) -> None:
        tokens, experts, local, hidden, topk = shape
        generator = torch.Generator(device).manual_seed(seed)
        self.experts = experts
        self.a1 = torch.randn(tokens, hidden, device=device, generator=generator).bfloat16()
        scores = torch.rand(tokens, experts, device=device, generator=generator)
        # int32 is what vLLM's router gives a backend that asks for no dtype.
        weights, ids = scores.topk(topk, 1)
        self.weights, self.ids = weights.softmax(1), ids.to(torch.int32)
        self.backend = BatchedPrepareAndFinalize(tokens, local, 1, 0)
        self.quant_config = SCHEMES[scheme]
        self.output = torch.empty_like(self.a1)
        self.rows = torch.empty(0, device=device)

    def prepare(self) -> torch.Tensor:
        """Run prepare and give the batch."""
        arguments = (self.a1, self.weights, self.ids, self.experts, None, False, self.quant_config)
        return self.backend.prepare(*arguments)[0]

    def finalize(self) -> torch.Tensor:
        """Run finalize on ``rows``, and give the output."""
        self.backend.finalize(
            self.output, self.rows, self.weights, self.ids, False, TopKWeightAndReduceDelegate()
        )
        return self.output


def median_us(calls: list[Callable[[], object]], repeats: int) -> float:
    """Median device time of single calls, in turn, on an idle device: what a caller waits."""
    times = []
    for number in range(repeats):
        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls[number % len(calls)]()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def replayed_us(calls: list[Callable[[], object]], repeats: int) -> float:
    """Time of one call when a graph holds all of them, each on its own tensors, and is replayed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    graph.replay()
    median = median_us([graph.replay], repeats)
    del results
    return median / len(calls)


def copy_rate(device: str) -> float:
    """Bytes a second, read and written together, of a copy many times larger than the cache."""
    source = torch.randn(2**29, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_us([lambda: target.copy_(source)], 20) * 1e6


def floor_bytes(inputs: Inputs, local: int, scheme: str) -> tuple[int, int]:
    """Bytes that prepare and finalize cannot but move: each row in once, each row out once."""
    here = inputs.ids < local
    pairs, tokens_here = int(here.sum()), int(here.any(1).sum())
    hidden = inputs.a1.size(1)
    row = 2 * hidden
    written = row if scheme == "none" else hidden + 4 * math.ceil(hidden / 128)
    return tokens_here * row + pairs * written, pairs * row + inputs.a1.size(0) * row


def measure(shape: tuple[int, int, int, int, int], scheme: str, rate: float, repeats: int) -> list[Row]:
    """Time prepare, and finalize when unquantized (it does not see the quantization)."""
    first = Inputs(shape, scheme, "cuda", 0)
    floors = floor_bytes(first, shape[2], scheme)
    # Enough different tensors that none is still in the cache when its turn comes again.
    sets = max(4, min(128, math.ceil(4 * CACHE_BYTES / max(min(floors), 1))))
    inputs = [first, *(Inputs(shape, scheme, "cuda", seed) for seed in range(1, sets))]
    newest = VLLM_NEWEST_US.get(shape) if scheme == "none" else None
    steps = [("prepare", floors[0], newest and newest[0])]
    if scheme == "none":
        steps.append(("finalize", floors[1], newest and newest[1]))
    rows = []
    for step, moved, vllm_us in steps:
        if step == "finalize":
            for item in inputs:
                item.rows = item.prepare()
        calls = [getattr(item, step) for item in inputs]
        for number in range(WARM_UP_CALLS):
            calls[number % len(calls)]()
        eager = median_us(calls, repeats)
        graph = replayed_us(calls, max(repeats // 4, 10))
        floor = moved / rate * 1e6
        rows.append(Row(step, scheme, *shape, eager, graph, floor, graph / floor, vllm_us))
    return rows


def loop_over_experts(inputs: Inputs, local: int, *, zeroed: bool) -> torch.Tensor:
    """Prepare and finalize one expert after the other, as a reader would first write it."""
    tokens, hidden = inputs.a1.shape
    make = torch.zeros if zeroed else torch.empty
    batch = make((local, tokens, hidden), dtype=inputs.a1.dtype)
    for expert in range(local):
        rows = (inputs.ids == expert).any(1)
        batch[expert, : int(rows.sum())] = inputs.a1[rows]
    output = torch.zeros_like(inputs.a1)
    for expert in range(local):
        hits = inputs.ids == expert
        rows = hits.any(1)
        part = batch[expert, : int(rows.sum())]
        output[rows] += part * (inputs.weights * hits).sum(1)[rows, None].to(part.dtype)
    return output


def processor_ms(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of processor time of each, taken in turn: a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append((time.process_time() - start) * 1e3)
    return {name: statistics.median(of_one) for name, of_one in times.items()}


def measure_cpu(repeats: int) -> dict[str, float | int]:
    """Prepare, finalize, and both against the two loops, in milliseconds."""
    inputs = Inputs(CPU_SHAPE, "none", "cpu", 0)

    def prepare() -> None:
        inputs.rows = inputs.prepare()

    prepare()
    reference = loop_over_experts(inputs, CPU_SHAPE[2], zeroed=True).double()
    error = ((inputs.finalize().double() - reference).norm() / reference.norm()).item()
    if not error < 1e-2:
        raise SystemExit(f"The two ways disagree by {error:.2e}, expected under 1e-2: nothing was timed.")
    times = processor_ms(
        {
            "prepare_ms": prepare,
            "finalize_ms": inputs.finalize,
            "loop_ms": lambda: loop_over_experts(inputs, CPU_SHAPE[2], zeroed=True),
            "loop_unzeroed_ms": lambda: loop_over_experts(inputs, CPU_SHAPE[2], zeroed=False),
        },
        repeats,
    )
    ours = times["prepare_ms"] + times["finalize_ms"]
    return {
        **times,
        "threads": torch.get_num_threads(),
        "faster_than_loop": times["loop_ms"] / ours,
        "faster_than_unzeroed_loop": times["loop_unzeroed_ms"] / ours,
    }


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [
        (
            "| step | quantized | tokens, experts, local, hidden, topk | floor us | graph us | graph/floor | "
            "eager us | vLLM eager us | vLLM/eager |"
        ),
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        vllm = (
            ("", "")
            if row.vllm_newest_us is None
            else (str(row.vllm_newest_us), f"{row.vllm_newest_us / row.eager_us:.1f}")
        )
        shape = f"{row.tokens}, {row.experts}, {row.local}, {row.hidden}, {row.topk}"
        lines.append(
            f"| {row.step} | {row.scheme} | {shape} | {row.floor_us:.2f} | {row.graph_us:.2f} | "
            f"{row.graph_over_floor:.2f} | {row.eager_us:.1f} | {vllm[0]} | {vllm[1]} |"
        )
    return "\n".join(lines)


def goals(rows: list[Row]) -> str:
    """Tell which of the goals for unquantized steps are met, each with its worst number."""
    plain = [row for row in rows if row.scheme == "none" and row.experts == 256 and row.local == 32]
    over_floor = {row.step: row.graph_over_floor for row in plain if row.tokens == 4096}
    few_tokens = {f"{row.step} of {row.tokens}": row.graph_us for row in plain if row.tokens in {64, 256}}
    against_vllm = {
        f"{row.step} of {row.tokens}, {row.local} local experts": row.vllm_newest_us / row.eager_us
        for row in rows
        if row.vllm_newest_us is not None
    }
    slowest_at_4096 = max(over_floor, key=over_floor.__getitem__)
    slowest_of_few = max(few_tokens, key=few_tokens.__getitem__)
    nearest = min(against_vllm, key=against_vllm.__getitem__)
    checked = [
        (
            over_floor[slowest_at_4096] <= 1.5,
            f"4096 tokens, replayed: at most 1.5 x the floor; {over_floor[slowest_at_4096]:.2f} x "
            f"({slowest_at_4096})",
        ),
        (
            few_tokens[slowest_of_few] <= 10,
            f"64 and 256 tokens, replayed: at most 10 us; {few_tokens[slowest_of_few]:.2f} us ({slowest_of_few})",
        ),
        (
            against_vllm[nearest] >= 6,
            f"eager: at most 1/6 of vLLM's newest; 1/{against_vllm[nearest]:.1f} ({nearest})",
        ),
    ]
    return "\n".join(f"- {'met' if met else 'MISSED'}: {text}" for met, text in checked)


def plot(path: Path, rows: list[Row], title: str) -> None:
    """Time against tokens, replayed, with the floor drawn in."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, name in enumerate(dict.fromkeys((row.step, row.scheme) for row in rows)):
        line = sorted((row for row in rows if (row.step, row.scheme) == name), key=lambda row: row.tokens)
        tokens = [row.tokens for row in line]
        label = name[0] if name[1] == "none" else f"{name[0]}, {name[1]}"
        axes.plot(tokens, [row.graph_us for row in line], "o-", color=f"C{number}", label=label)
        axes.plot(
            tokens, [row.floor_us for row in line], "--", color=f"C{number}", label=f"{label}: byte floor"
        )
    axes.set(
        xscale="log", yscale="log", xlabel="tokens", ylabel="microseconds a call, replayed from a CUDA graph"
    )
    axes.set_xticks(PLOTTED_TOKENS, [str(tokens) for tokens in PLOTTED_TOKENS])
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def environment() -> dict[str, str]:
    """Tell what the numbers depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    if torch.cuda.is_available():
        import triton

        found |= {"device": torch.cuda.get_device_name(), "triton": triton.__version__}
        found["cuda"] = str(torch.version.cuda)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.kernels", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--repeats", type=int, default=100, help="calls that each median is taken over")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument(
        "--plot", type=Path, help="measure a sweep over tokens too, and draw it into this PNG (CUDA; needs matplotlib)"
    )
    options = parser.parse_args(arguments)
    report: dict[str, object] = {
        "command": " ".join(["python -m tests.bench.kernels", *(arguments or sys.argv[1:])]),
        "environment": environment(),
    }
    if options.device == "cpu":
        torch.set_num_threads(1)
        report["cpu"] = numbers = measure_cpu(max(options.repeats // 5, 5))
        lines = [
            (
                f"CPU, {numbers['threads']} thread, milliseconds of processor time; {CPU_SHAPE[0]} tokens x "
                f"{CPU_SHAPE[3]}, {CPU_SHAPE[2]} local experts, topk {CPU_SHAPE[4]}, bf16: prepare "
                f"{numbers['prepare_ms']:.1f}, finalize {numbers['finalize_ms']:.1f}"
            ),
            (
                f"loop over experts: {numbers['loop_ms']:.1f} ({numbers['faster_than_loop']:.1f} x); "
                f"without zeroing the padding: {numbers['loop_unzeroed_ms']:.1f} "
                f"({numbers['faster_than_unzeroed_loop']:.1f} x)"
            ),
        ]
    else:
        rate = copy_rate("cuda")
        rows = []
        for scheme in SCHEMES:
            for shape in SHAPES:
                rows += measure(shape, scheme, rate, options.repeats)
                torch.cuda.empty_cache()
        report |= {"copy_bytes_per_s": rate, "rows": [asdict(row) for row in rows]}
        env = environment()
        lines = [
            (
                f"{env['device']}, torch {env['torch']}, Triton {env['triton']}, CUDA {env['cuda']}; "
                f"device copy {rate / 1e12:.2f} TB/s (read + write)"
            ),
            "",
            table(rows),
            "",
            GRAPH_NOTE,
            "",
            "Goals, unquantized, each with the worst of its numbers:",
            "",
            goals(rows),
        ]
    text = "\n".join(lines)
    print(text, flush=True)
    if options.plot and options.device == "cuda":
        swept = []
        for scheme in SCHEMES:
            for tokens in PLOTTED_TOKENS:
                swept += measure((tokens, 256, 32, 7168, 8), scheme, rate, max(options.repeats // 4, 10))
                torch.cuda.empty_cache()
        report["sweep"] = [asdict(row) for row in swept]
        plot(
            options.plot,
            swept,
            f"256 experts, 32 local, hidden 7168, topk 8, bf16; {environment()['device']}",
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(f"`{report['command']}`\n\n{text}\n")


if __name__ == "__main__":
    main()
