"""``moe-contracts explain``: what a contract type holds, and why."""

from __future__ import annotations

import textwrap

import click

from contracts._documentation import document, shared_options
from contracts._types import TYPES


@click.command("explain")
@click.argument("name", metavar="TYPE", type=click.Choice(sorted(TYPES)))
def command(name: str) -> None:
    """Say what a contract type holds, why, what breaks it, and its options."""
    documentation = document(name)
    click.echo(f"{name}: {_plain(documentation.holds)}\n")
    click.echo(f"{_plain(documentation.text)}\n")
    click.echo(f"{_plain(documentation.example)}\n")
    click.echo("Options:\n")
    for option, said in documentation.options.items():
        click.echo(_item(option, said))
    click.echo("\nOptions of every type:\n")
    for option, said in shared_options().items():
        click.echo(_item(option, said))
    click.echo(f"\nTo use it, list it under contract_types: {name}: {documentation.path}")


def _item(option: str, said: str) -> str:
    return textwrap.fill(f"{option}: {_plain(said)}", 100, initial_indent="  ", subsequent_indent="      ")


def _plain(text: str) -> str:
    """Without the marks that are for a renderer of documentation."""
    return text.replace("::\n", ":\n").replace("``", "`")
