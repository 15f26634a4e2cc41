"""``moe-contracts preset``: where the ready configurations lie."""

from __future__ import annotations

import click

from contracts.presets import PRESETS, preset_path


@click.command("preset")
@click.argument("name", type=click.Choice(PRESETS))
def command(name: str) -> None:
    """Print the path of a ready configuration, for lint-imports --config."""
    click.echo(preset_path(name))
