"""``moe-contracts lint``: what ``lint-imports`` does, in formats for programs too."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any

import click
from importlinter.application import rendering
from importlinter.application.sentinels import NotSupplied
from importlinter.application.user_options import InvalidUserOptions

from contracts import report
from contracts._configuration import read_configuration
from contracts._writing import check_folder, write_whole

if TYPE_CHECKING:
    from contracts.report.run import Run


@click.command("lint")
@click.argument("config_file", required=False)
@click.option("--config", default=None, help="The config file to use; or name it without this option.")
@click.option("--contract", multiple=True, help="Only the contract of this id. May be passed multiple times.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "sarif", "github"]),
    default="text",
    show_default=True,
    help="What to print: text is what lint-imports prints.",
)
@click.option("--output", default=None, metavar="FILE", help="Write it to a file, whole or not at all.")
@click.option("--cache-dir", default=None, help="The directory to use for caching.")
@click.option("--no-cache", is_flag=True, help="Disable caching.")
@click.option("--no-logo", is_flag=True, help="Hide the logo at startup.")
@click.option("--show-timings", is_flag=True, help="Show how long the graph and each contract took.")
@click.option("--verbose", is_flag=True, help="Say what is going on.")
@click.option("--debug", is_flag=True, help="Show where a failure comes from.")
def command(form: str, output: str | None, **options: Any) -> None:
    """Check that a project adheres to a set of contracts.

    Takes the options of lint-imports, and like that looks for a configuration in setup.cfg, .importlinter and
    pyproject.toml if it is not told a file. Exits with 0 if all contracts are kept, 1 if one is broken, and 2 if
    something could not be checked.
    """
    if output is not None:
        check_folder("--output", output)
    # As lint-imports does; contracts is loaded already, and no package of that name hides it.
    sys.path.insert(0, os.getcwd())
    if form == "text":
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed) if output else contextlib.nullcontext():
            code = _as_text(options)
        text = printed.getvalue()
    else:
        run = _run(options)
        code = run.exit_code
        text = importlib.import_module(f"contracts.report.{form}").render(run)
        if output is None:
            click.echo(text, nl=False)
    if output is not None:
        write_whole(output, text)
    sys.exit(code)


def _as_text(options: dict[str, Any]) -> int:
    """Print what lint-imports prints."""
    if not options["no_logo"]:
        rendering.print_title()
    try:
        done = _lint(options)
    except Exception as error:
        if options["debug"]:
            raise
        # With its reason, where import-linter's own message would be a bare name.
        rendering.render_exception(InvalidUserOptions(report.reason(error)))
        return 2
    rendering.render_report(done[1])
    return report.exit_code(done[1])


def _run(options: dict[str, Any]) -> Run:
    from contracts.report.run import Run, account  # noqa: PLC0415  text does without

    try:
        with report.quiet():
            return account(*_lint(options))
    except Exception as error:
        if options["debug"]:
            raise
        return Run(failures=[report.reason(error)])


def _lint(options: dict[str, Any]) -> tuple[Any, Any]:
    configuration = read_configuration(options["config_file"] or options["config"])
    cache_dir = None if options["no_cache"] else options["cache_dir"] or NotSupplied
    done = report.lint(
        configuration,
        options["contract"],
        cache_dir=cache_dir,
        show_timings=options["show_timings"],
        verbose=options["verbose"],
    )
    return configuration, done
