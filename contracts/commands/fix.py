"""``moe-contracts fix``: mends what breaks a contract."""

from __future__ import annotations

import os
import sys

import click

from contracts._writing import CouldNotError


@click.command("fix")
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
@click.option("--shim", is_flag=True, help="Leave at the old path what still works, with a DeprecationWarning.")
@click.option("--allow-dirty", is_flag=True, help="Also change files in a work tree with uncommitted changes.")
@click.option("--config", metavar="FILE", help="The configuration, as lint-imports takes it.")
@click.option("--cache-dir", metavar="FOLDER", help="import-linter's cache folder.")
@click.option("--no-cache", is_flag=True, help="Keep no cache.")
def command(
    contract: str | None,
    mode: str,
    to: str | None,
    shim: bool,
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
        raise CouldNotError(
            "'moe-contracts fix' needs the package 'libcst', which is not installed. "
            "Install the extra that brings it: pip install 'moe-contracts[fix]'"
        ) from error
    from importlinter.application.app_config import settings  # noqa: PLC0415  not loaded to print the help

    from contracts.fix import Options, configured, plan, refuse_unsafe, top_folder  # noqa: PLC0415  as above
    from contracts.source import RootNotFoundError, SourceError, UnknownNameError, relative_path  # noqa: PLC0415  as above

    sys.path.insert(0, os.getcwd())
    try:
        top, with_git = top_folder()
        if mode == "apply" and not allow_dirty:
            refuse_unsafe(top, with_git=with_git)
        cache = None if no_cache else cache_dir or str(settings.DEFAULT_CACHE_DIR)
        planned = plan(configured(config, contract, cache), Options(top, with_git, to, shim))
    except SourceError as error:
        raise CouldNotError(f"{relative_path(error.path)}:{error.line} {error.reason}") from error
    except (RootNotFoundError, UnknownNameError) as error:
        raise CouldNotError(str(error)) from error
    if mode == "apply":
        planned.changes.make(with_git=with_git)
    else:
        sys.stdout.buffer.write(planned.changes.diff())  # as bytes, whatever the files' encodings are
    for line in planned.summary():
        click.echo(line, err=mode == "diff")
    sys.exit(1 if planned.left else 0)
