"""``moe-contracts map``: a picture of which implementations live where."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click
from importlinter.application.sentinels import NotSupplied

from contracts import report
from contracts._configuration import read_configuration
from contracts._writing import CouldNotError, check_folder, write_whole
from contracts.report.run import account

_FORMATS = {".svg": "svg", ".html": "html", ".htm": "html", ".md": "markdown"}


@click.command("map")
@click.option("--config", default=None, help="The config file to use.")
@click.option("--contract", "contracts", multiple=True, help="Only this contract. May be passed multiple times.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["svg", "html", "markdown"]),
    help="If not given, the name of the file decides, and it is svg without one.",
)
@click.option("--output", default=None, metavar="FILE", help="Write it to a file, whole or not at all.")
@click.option("--cache-dir", default=None, help="The directory to use for caching.")
@click.option("--no-cache", is_flag=True, help="Disable caching.")
def command(contracts: tuple[str, ...], form: str | None, output: str | None, **options: Any) -> None:
    """Draw which implementations live where, the misplaced ones marked.

    Draws each placement contract. Exits with 0 also if contracts are broken, and with 2 if it cannot draw.
    """
    if output is not None:
        check_folder("--output", output)
        form = form or _FORMATS.get(os.path.splitext(output)[1].lower())
    sys.path.insert(0, os.getcwd())
    atlas = importlib.import_module("contracts.map").draw_up(_report(contracts, options))
    if not atlas.charts:
        raise CouldNotError("Nothing to draw: no contract of type placement is among those checked.")
    text = importlib.import_module(f"contracts.map.{form or 'svg'}").render(atlas)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_whole(output, text)
        click.echo(f"{atlas.summary} Drawn in {output}.")


def _report(contracts: tuple[str, ...], options: dict[str, Any]) -> Any:
    cache_dir = None if options["no_cache"] else options["cache_dir"] or NotSupplied
    try:
        with report.quiet():
            configuration = read_configuration(options["config"])
            done = report.lint(configuration, contracts, cache_dir=cache_dir)
            run = account(configuration, done)
    except Exception as error:  # whatever import-linter raises of a configuration that it cannot use
        raise CouldNotError(report.reason(error)) from error
    drawn = {verdict.id for verdict in run.verdicts if verdict.type == "placement"}
    problems = [item for verdict, item in run.items if item.kind == "problem" and verdict.id in drawn]
    if run.failures or problems:
        told = [*run.failures, *(f"{item.path}:{item.line} {item.message}" for item in problems)]
        raise CouldNotError("The picture would not be whole:\n" + "\n".join(told))
    return done
