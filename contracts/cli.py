"""The command ``moe-contracts``: what ``lint-imports`` has no room for.

It imports ``contracts`` before the current folder comes first on the path, so a linted repository with a
``contracts`` package of its own cannot put itself in this one's place.
"""

from __future__ import annotations

import gc
import importlib
import sys

gc.disable()  # importing makes many objects and no garbage, so that looking for it only costs

import click  # noqa: E402  see above

import contracts  # noqa: E402, F401  before lint puts the current folder first on the path

gc.freeze()
gc.enable()

# Loaded when they are asked for: each is the object ``command`` of the module contracts.commands.<name>.
_COMMANDS = ("explain", "fix", "ignore", "init", "lint", "map", "preset")


class _Group(click.Group):
    """Has, beside its own commands, those that other packages of this distribution register.

    ``contracts`` must import none of them: what needs torch is loaded only when it is asked for.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        from importlib import metadata  # noqa: PLC0415  slow to load, and lint does without

        others = metadata.entry_points(group="moe_contracts.commands").names
        return sorted({*_COMMANDS, *others})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a command.

        Raises:
            ClickException: what it needs is not installed.
        """
        if cmd_name in _COMMANDS:
            command = importlib.import_module(f"contracts.commands.{cmd_name}").command
            return command if isinstance(command, click.Command) else None
        from importlib import metadata  # noqa: PLC0415  see above

        for entry in metadata.entry_points(group="moe_contracts.commands", name=cmd_name):
            try:
                loaded = entry.load()
            except ModuleNotFoundError as error:
                raise click.ClickException(
                    f"'moe-contracts {cmd_name}' needs the package '{error.name}', which is not "
                    "installed. Install the extra that brings it: pip install 'moe-contracts[runtime]'"
                ) from error
            return loaded if isinstance(loaded, click.Command) else None
        return None


@click.group(cls=_Group)
@click.version_option(package_name="moe-contracts", message="%(package)s %(version)s")
def main() -> None:
    """Keep implementations in their place."""


if __name__ == "__main__":
    sys.exit(main())
