"""``python -m vllm_moe``: what it prints, its exit codes, its own ranks and torchrun's."""

import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from click.testing import CliRunner

from vllm_moe import _launch, _run
from vllm_moe.__main__ import main

ROOT = Path(__file__).parents[2]
SMALL = ["--tokens", "4", "--hidden", "64", "--intermediate", "32", "--experts", "8", "--repeat", "1"]


def python(*arguments: str, module: str = "vllm_moe") -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "COLUMNS": "60"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )


def test_one_rank_prints_what_ran():
    """Backend, transport, format, experts, sizes, time and error; lines are not wrapped in a pipe."""
    done = python(*SMALL)
    assert done.returncode == 0, done.stderr
    assert without_numbers(done.stdout) == (
        "backend       no_dp_ep: MoEPrepareAndFinalizeNoDPEPModular (Standard)\n"
        "carried by    none: tokens stay on their rank\n"
        "experts       TorchExperts\n"
        "ranks         1 on cpu\n"
        "quantization  none, bfloat16\n"
        "sizes         4 tokens a rank, hidden 64, intermediate 32, 8 experts, topk 4\n"
        "time          N ms a call (median of 1, the slowest rank's)\n"
        "error         X of the float64 reference's norm, 0.01 allowed\n"
        "result        right\n"
    )


def without_numbers(text: str) -> str:
    """Put letters in the place of measured numbers."""
    return re.sub(r"[\d.]+ ms", "N ms", re.sub(r"\d\.\d\de-\d\d", "X", text))


def test_the_readmes_example_prints_what_the_readme_shows():
    """Two processes, started here, one of which prints; the error is the README's too, not only its shape."""
    readme = (ROOT / "README.md").read_text()
    command, shown = re.search(r"^\$ python -m vllm_moe (.*)\n((?:.+\n)+)```", readme, re.MULTILINE).groups()
    assert "--ranks 2" in command
    done = python(*command.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert without_numbers(done.stdout) == without_numbers(shown)
    errors = [float(re.search(r"^error +(\S+)", text, re.MULTILINE)[1]) for text in (done.stdout, shown)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def test_ranks_that_torchrun_started():
    """Under torchrun it is one of the ranks, and joins the others."""
    done = python(
        "--nnodes=1",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        "--master-port=0",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "-m",
        "vllm_moe",
        *SMALL,
        module="torch.distributed.run",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "carried by    allgather_reducescatter over torch.distributed (gloo)\n" in done.stdout
    assert done.stdout.count("result        right\n") == 1


def test_a_wrong_result_is_exit_code_1():
    """The comparison decides, not the absence of a crash."""
    code = (
        "import sys, torch\n"
        "from vllm_moe import _launch, _run\n"
        "from vllm_moe.fused_moe.layer import FusedMoE\n"
        "forward = FusedMoE.forward\n"
        "FusedMoE.forward = lambda self, *a: forward(self, *a) * 1.1\n"
        "store = _launch._tcp_store('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "options = _run.Options('no_dp_ep', 4, 64, 32, 8, 2, 'none', 'bfloat16', 0, 0, 1, 1, 0, False)\n"
        "settings = _launch.Settings('cpu', 30.0, 'auto', False)\n"
        "_launch._child(0, 1, store.port, options, settings)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == _launch.WRONG, done.stderr
    assert "result        WRONG\n" in done.stdout


BAD_OPTIONS = [
    (
        ["--backend", "nothing"],
        "Invalid value for '--backend': 'nothing' is not one of 'allgather_reducescatter',",
    ),
    (["--ranks", "0"], "Invalid value for '--ranks': 0 is not in the range 1<=x<=64."),
    (
        ["--ranks", "2", "--backend", "no_dp_ep"],
        "Invalid value for --backend: no_dp_ep moves no tokens between ranks, but there are 2. Choose "
        "another, or one "
        "rank.",
    ),
    (
        ["--quantization", "fp4"],
        "Invalid value for '--quantization': 'fp4' is not one of 'none', 'fp8_tensor',",
    ),
]


@pytest.mark.parametrize(("options", "text"), BAD_OPTIONS)
def test_bad_options_are_exit_code_2(options, text):
    """The message says which option, what it was and what it may be."""
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


def test_a_device_that_is_not_there(monkeypatch):
    """--device cuda without one is a bad option, not a traceback."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(main, ["--device", "cuda"])
    assert result.exit_code == 2
    assert (
        "Invalid value for --device: no CUDA device is visible. Leave --device out to run on the CPU."
        in result.output
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--topk", "9"], "Error (rank 0): FusedMoE: top_k is 9, expected 1 to num_experts, which is 8.\n"),
        (
            ["--backend", "mori", "--dtype", "float16"],
            "  mori (torch.distributed): it carries torch.bfloat16 or torch.float32, but activations are "
            "torch.float16\n",
        ),
        (
            ["--backend", "mori", "--transport", "vendor"],
            "  mori (torch.distributed): the group's transport is 'vendor'\n",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_exit_code_2(options, text):
    """What only the layer can know is said without a traceback."""
    result = CliRunner().invoke(main, [*SMALL, *options])
    assert result.exit_code == 2, result.output
    assert result.output.endswith(text)
    assert not dist.is_initialized()


def test_a_mistake_of_every_rank_is_told_once():
    """Rank 0 says it; the others end with the same code in silence."""
    done = python(*SMALL, "--experts", "9", "--ranks", "2")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout == (
        "Error (rank 0): FusedMoE: 9 experts do not divide evenly among 2 ranks. Change num_experts or "
        "num_redundant_experts.\n"
    )


def test_ranks_that_hang_after_another_failed_are_not_waited_for():
    """Those that still run end of themselves within two timeouts, or never."""
    context = multiprocessing.get_context("spawn")
    stuck = context.Process(target=time.sleep, args=(250.0,), daemon=True)
    failed = context.Process(target=os._exit, args=(_launch.COULD_NOT_RUN,), daemon=True)
    try:
        stuck.start()
        failed.start()
        _launch._wait_for([stuck, failed], 0.1)
        assert (stuck.exitcode, failed.exitcode) == (None, _launch.COULD_NOT_RUN)
    finally:
        stuck.kill()


def test_options_of_every_kind_are_named_in_the_help():
    """--help shows each backend and quantization."""
    text = CliRunner().invoke(main, ["--help"]).output
    for name in ("nixl_ep", "batched", "int8_token", "--micro-batches", "--weight-on-input", "--timeout"):
        assert name in text
    assert set(_run.DTYPES) == {"bfloat16", "float16", "float32"}
