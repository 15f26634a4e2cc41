"""``moe-contracts fix``: mends what breaks a contract."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click


@click.command()
@click.argument("contract", required=False)
@click.option(
    "--diff",
    "mode",
    flag_value="diff",
    default="diff",
    help="Print the changes as a diff that git apply takes (default).",
)
@click.option("--apply", "mode", flag_value="apply", help="Make the changes: all of them, or none.")
@click.option("--to", metavar="MODULE", help="Where to move the class: a package, or the new module's dotted name.")
@click.option("--allow-dirty", is_flag=True, help="Also change files in a work tree with uncommitted changes.")
@click.option("--config", metavar="FILE", help="The configuration, as lint-imports takes it.")
@click.option("--cache-dir", metavar="FOLDER", help="import-linter's cache folder.")
@click.option("--no-cache", is_flag=True, help="Keep no cache.")
def command(
    contract: str | None,
    mode: str,
    to: str | None,
    allow_dirty: bool,
    config: str | None,
    cache_dir: str | None,
    no_cache: bool,
) -> None:
    """Mend what breaks CONTRACT (its identifier or its name), or all contracts.

    A class that breaks a placement contract moves where it belongs, and every reference to it is changed.
    """
    try:
        import libcst  # noqa: F401, PLC0415  an extra
    except ModuleNotFoundError as error:
        raise click.ClickException(
            "'moe-contracts fix' needs the package 'libcst', which is not installed. "
            "Install the extra that brings it: pip install 'moe-contracts[fix]'"
        ) from error
    from importlinter import configuration  # noqa: PLC0415  not loaded to print the help
    from importlinter.application.app_config import settings  # noqa: PLC0415  as above

    from contracts.fix import RefusedError, refuse_unsafe, top_folder  # noqa: PLC0415  as above
    from contracts.fix._configured import configured  # noqa: PLC0415  as above
    from contracts.fix._plan import Planner  # noqa: PLC0415  as above
    from contracts.source import (  # noqa: PLC0415  as above
        RootNotFoundError,
        SourceError,
        UnknownNameError,
        relative_path,
    )

    configuration.configure()
    sys.path.insert(0, os.getcwd())
    cache = None if no_cache else cache_dir or str(settings.DEFAULT_CACHE_DIR)
    try:
        top, with_git = top_folder()
        if mode == "apply" and not allow_dirty:
            refuse_unsafe(top, with_git=with_git)
        plan = Planner(configured(config, contract, cache), top, to).run()
        if mode == "apply":
            plan.changes.make(with_git=with_git)
    except SourceError as error:
        _refuse(f"{relative_path(error.path)}:{error.line} {error.reason}")
    except (RefusedError, RootNotFoundError, UnknownNameError) as error:
        _refuse(str(error))
    if mode == "diff":
        sys.stdout.buffer.write(plan.changes.diff())  # as bytes, whatever the files' encodings are
    for line in plan.summary():
        click.echo(line, err=mode == "diff")


def _refuse(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(2)
