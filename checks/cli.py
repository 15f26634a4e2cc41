"""``moe-contracts check``: the matrix of backends and checks from the command line."""

import sys

import click

from checks._package import DEFAULT_PACKAGE

__all__ = ["check"]


@click.command()
@click.argument("backend", nargs=-1)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--world-size", type=int, multiple=True, metavar="N", help="Ranks; repeatable.  [default: 1, 2 and 4]")
@click.option(
    "--transport",
    type=click.Choice(["torch", "vendor"]),
    default="torch",
    show_default=True,
    help="What carries tokens: torch.distributed, or the vendor's library.",
)
@click.option(
    "--worlds",
    type=click.Choice(["processes", "threads"]),
    default="processes",
    show_default=True,
    help="What ranks run in. Threads are faster; a backend that ends its process ends the run with it.",
)
@click.option("--only", multiple=True, metavar="CHECK", help="Run this check only; repeatable.")
@click.option("--first", is_flag=True, help="Stop at the first check that is broken.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all inputs.")
@click.option("--fused-moe", metavar="PACKAGE", default=DEFAULT_PACKAGE, show_default=True, help="Whose backends.")
@click.option("--deadline", type=float, default=60.0, show_default=True, help="Seconds that one case may take.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write all that was found to this file.")
@click.option("--html", "html_path", type=click.Path(dir_okay=False), help="Write it as a page.")
def check(
    backend: tuple[str, ...],
    device: str,
    world_size: tuple[int, ...],
    transport: str,
    worlds: str,
    only: tuple[str, ...],
    first: bool,
    seed: int,
    fused_moe: str,
    deadline: float,
    json_path: str | None,
    html_path: str | None,
) -> None:
    """Run the contract checks on each BACKEND, or on all: exit code 0 kept, 1 broken, 2 could not check."""
    from checks.report import main  # noqa: PLC0415 -- torch is not needed for --help

    sys.exit(
        main(
            backend,
            device=device,
            world_sizes=world_size or (1, 2, 4),
            transport=transport,
            worlds=worlds,
            only=only,
            first=first,
            seed=seed,
            fused_moe=fused_moe,
            deadline=deadline,
            json_path=json_path,
            html_path=html_path,
        )
    )
