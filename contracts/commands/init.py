"""``moe-contracts init``: a configuration to begin with."""

from __future__ import annotations

import os
from collections.abc import Collection

import click

from contracts._configuration import Configuration, read_configuration
from contracts._editing import without_options
from contracts._writing import CouldNotError, write_whole
from contracts.presets import PRESETS, preset_path

_TARGET = ".importlinter"


@click.command("init")
@click.option("--preset", type=click.Choice(PRESETS), required=True, help="What to begin with.")
@click.option("--force", is_flag=True, help=f"Write {_TARGET} over the one that is there.")
def command(preset: str, *, force: bool) -> None:
    """Write a configuration into the current folder: a preset, its lists of what to ignore left out."""
    configured = _configured()
    if configured == _TARGET and not force:
        raise CouldNotError(f"{_TARGET} is there already. Give --force to write over it.")
    if configured not in {None, _TARGET}:
        # import-linter would never read ours, or read it in place of theirs.
        raise CouldNotError(f"{configured} configures import-linter already. Take its section out first.")
    path = str(preset_path(preset))
    write_whole(_TARGET, _without_lists(read_configuration(path)))
    click.echo(f"Wrote {_TARGET}. Next:")
    click.echo("  moe-contracts lint      says what breaks these contracts today")
    click.echo("  moe-contracts ignore    has it not count yet, as a list that only shrinks")


def _configured() -> str | None:
    """The file from which import-linter would take its configuration; a broken one counts."""
    if os.path.exists(_TARGET):
        return _TARGET
    try:
        return read_configuration(None).path
    except FileNotFoundError:
        return None


def _without_lists(configuration: Configuration) -> str:
    """A preset's text without what serves several releases at once, or its use from where it lies."""
    lists: dict[int, Collection[str]] = {
        number: ("ignore_definitions", "unmatched_ignore_definitions_alerting")
        for number, options in enumerate(configuration.options.contracts_options)
        if options.get("unmatched_ignore_definitions_alerting") == "none"
    }
    text = without_options(configuration, lists)
    return text[text.index("[importlinter]") :]
