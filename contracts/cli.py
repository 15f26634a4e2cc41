"""The command ``moe-contracts``: what ``lint-imports`` has no room for.

It imports ``contracts`` before the current folder comes first on the path, so a linted repository with a
``contracts`` package of its own cannot put itself in this one's place.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import click
from importlinter import cli as importlinter_cli

import contracts  # noqa: F401  before lint_imports puts the current folder first on the path

_PRESETS = Path(__file__).parent / "presets"


class _Group(click.Group):
    """Has, beside its own commands, those that other packages of this distribution register.

    ``contracts`` must import none of them: what needs torch is loaded only when it is asked for.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *(entry.name for entry in _registered())])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for entry in _registered():
            if entry.name == cmd_name:
                try:
                    loaded = entry.load()
                except ModuleNotFoundError as error:
                    raise click.ClickException(
                        f"'moe-contracts {cmd_name}' needs the package '{error.name}', which is not "
                        "installed. Install the extra that brings it: pip install 'moe-contracts[runtime]'"
                    ) from error
                if isinstance(loaded, click.Command):
                    return loaded
        return None


def _registered() -> metadata.EntryPoints:
    return metadata.entry_points(group="moe_contracts.commands")


@click.group(cls=_Group)
@click.version_option(package_name="moe-contracts", message="%(package)s %(version)s")
def main() -> None:
    """Keep implementations in their place."""


main.add_command(importlinter_cli.lint_imports_command, name="lint")


@main.command()
@click.argument("name", type=click.Choice(sorted(path.stem for path in _PRESETS.glob("*.ini"))))
def preset(name: str) -> None:
    """Print the path of a ready configuration, for lint-imports --config."""
    click.echo(_PRESETS / f"{name}.ini")


if __name__ == "__main__":
    sys.exit(main())
