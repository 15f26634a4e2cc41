"""Run one Mixture-of-Experts layer end to end and compare it with a dense float64 reference.

``python -m vllm_moe`` starts its own ranks on this machine; under ``torchrun``, on one machine or several, it
is one of the ranks that torchrun started. Exit codes: 0 right, 1 wrong, 2 could not run.
"""

import os
import sys

import click
import torch
import torch.distributed as dist

from vllm_moe._launch import Settings, launch, run_under_torchrun
from vllm_moe._run import DTYPES, Options
from vllm_moe.fused_moe.all2all_utils import all2all_backends
from vllm_moe.fused_moe.layer import LOCAL_BACKENDS, QUANTIZATIONS
from vllm_moe.transports import TransportChoice

__all__ = ["main"]


def _check(device: str, ranks: int, backend: str, under_torchrun: bool) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter(
            "no CUDA device is visible. Leave --device out to run on the CPU.", param_hint="--device"
        )
    if under_torchrun and ranks != 1:
        raise click.BadParameter(
            "torchrun has started the ranks already. Leave it out.", param_hint="--ranks"
        )
    size = int(os.environ["WORLD_SIZE"]) if under_torchrun else ranks
    if backend in LOCAL_BACKENDS and size > 1:
        raise click.BadParameter(
            f"{backend} moves no tokens between ranks, but there are {size}. Choose another, or one rank.",
            param_hint="--backend",
        )


@click.command(help=__doc__)
@click.option(
    "--backend",
    type=click.Choice([*all2all_backends(), *LOCAL_BACKENDS]),
    help="How tokens reach their experts. Default: no_dp_ep on one rank, else allgather_reducescatter.",
)
@click.option(
    "--ranks", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes to start here."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--transport",
    type=click.Choice(["auto", "torch", "vendor"]),
    default="auto",
    show_default=True,
    help="The vendor's library, torch.distributed, or the first of them that can work.",
)
@click.option("--quantization", type=click.Choice(QUANTIZATIONS), default="none", show_default=True)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens of each rank.")
@click.option("--hidden", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--intermediate", type=click.IntRange(1), default=512, show_default=True)
@click.option("--experts", type=click.IntRange(1), default=16, show_default=True)
@click.option("--topk", type=click.IntRange(1), default=4, show_default=True)
@click.option(
    "--shared", type=click.IntRange(0), default=0, show_default=True, help="Width of a shared expert."
)
@click.option("--redundant", type=click.IntRange(0), default=0, show_default=True, help="Copies of experts.")
@click.option("--micro-batches", type=click.IntRange(1, 8), default=1, show_default=True)
@click.option(
    "--weight-on-input", is_flag=True, help="Apply the router's weight before the experts (topk 1)."
)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Timed calls.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--timeout", type=click.FloatRange(1.0), default=60.0, show_default=True, help="Seconds for an exchange."
)
@click.option("--verbose", is_flag=True, help="Say what every rank builds.")
def main(
    backend: str | None,
    ranks: int,
    device: str,
    transport: TransportChoice,
    quantization: str,
    dtype: str,
    tokens: int,
    hidden: int,
    intermediate: int,
    experts: int,
    topk: int,
    shared: int,
    redundant: int,
    micro_batches: int,
    weight_on_input: bool,
    repeat: int,
    seed: int,
    timeout: float,
    verbose: bool,
) -> None:
    """Run the command line."""
    under_torchrun = dist.is_torchelastic_launched()
    several = ranks > 1 or (under_torchrun and int(os.environ["WORLD_SIZE"]) > 1)
    backend = backend or ("allgather_reducescatter" if several else "no_dp_ep")
    _check(device, ranks, backend, under_torchrun)
    options = Options(
        backend=backend,
        tokens=tokens,
        hidden=hidden,
        intermediate=intermediate,
        experts=experts,
        topk=topk,
        quantization=quantization,
        dtype=dtype,
        shared=shared,
        redundant=redundant,
        micro_batches=micro_batches,
        repeat=repeat,
        seed=seed,
        weight_on_input=weight_on_input,
    )
    settings = Settings(device, timeout, transport, verbose)
    sys.exit(run_under_torchrun(options, settings) if under_torchrun else launch(options, settings, ranks))


if __name__ == "__main__":
    main()
