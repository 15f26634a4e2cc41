"""``moe-contracts ignore``: a burn-down list in the configuration."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from importlinter.application.sentinels import NotSupplied

from contracts import presets, report
from contracts._burn_down import Change, changes
from contracts._configuration import Configuration, identify, read_configuration
from contracts._editing import edit_list
from contracts._ignores import Detail, is_date, today
from contracts._writing import CouldNotError, write_whole


@click.command("ignore")
@click.option("--config", default=None, help="The config file to use.")
@click.option("--contract", "contracts", multiple=True, help="Only this contract. May be passed multiple times.")
@click.option("--grow", multiple=True, metavar="CONTRACT", help="Let this contract's list grow by what it lacks.")
@click.option("--until", default=None, metavar="YYYY-MM-DD", help="The last day on which new entries count.")
@click.option("--reason", default=None, help="Why new entries are there.")
@click.option("--cache-dir", default=None, help="The directory to use for caching.")
@click.option("--no-cache", is_flag=True, help="Disable caching.")
def command(config: str | None, contracts: tuple[str, ...], grow: tuple[str, ...], **options: Any) -> None:
    """Write today's findings into the configuration, as a list of what does not count yet.

    A contract without a list gets one. A list that is there only shrinks, by the entries that match nothing any
    more, unless --grow names its contract. Comments and order are kept. Exits with 0 if nothing is left that
    counts, 1 if findings are, and 2 if they could not be told.
    """
    sys.path.insert(0, os.getcwd())
    try:
        configuration = read_configuration(config)
    except FileNotFoundError as error:
        raise CouldNotError(str(error)) from error
    if presets.contains(configuration.path):
        raise CouldNotError(
            f"{configuration.path} is a preset, and no file of yours. Make a copy first: "
            f"moe-contracts init --preset {os.path.basename(configuration.path).removesuffix('.ini')}"
        )
    _know("--grow", grow, configuration)
    comment, details = _comment(options["until"], options["reason"])
    cache_dir = None if options["no_cache"] else options["cache_dir"] or NotSupplied
    try:
        with report.quiet():
            planned = changes(configuration, contracts, grow, comment=comment, details=details, cache_dir=cache_dir)
    except CouldNotError:
        raise
    except Exception as error:  # whatever import-linter raises of a configuration that it cannot use
        raise CouldNotError(report.reason(error)) from error
    _write(configuration, [change for change in planned if change.added or change.removed])
    for change in planned:
        if change.before or change.added or change.left:
            click.echo(str(change))
            if change.fit:
                click.echo(f"  A list only shrinks. To let this one grow: moe-contracts ignore --grow {change.id}")
    sys.exit(int(any(change.left for change in planned)))


def _write(configuration: Configuration, planned: list[Change]) -> None:
    # From the last contract to the first, so that the lines of those still to come stay where they were.
    text = configuration.text
    for change in sorted(planned, key=lambda change: change.contract, reverse=True):
        text = edit_list(configuration, change.contract, change.option, change.removed, change.added, today())
        configuration = configuration.with_text(text)
    if planned:
        write_whole(configuration.path, text)


def _know(option: str, names: tuple[str, ...], configuration: Configuration) -> None:
    known = [identify(options) for options in configuration.options.contracts_options]
    for name in names:
        if name not in known:
            raise CouldNotError(f"{option} {name}: there is no such contract. There are: {', '.join(known)}.")


def _comment(until: str | None, reason: str | None) -> tuple[str, set[Detail]]:
    """What to write behind an entry, and what that says."""
    if until is not None and not is_date(until):
        raise CouldNotError(f"--until {until} is no date. Write it as 2027-03-01.")
    details = {detail for detail, text in ((Detail.UNTIL, until), (Detail.REASON, reason)) if text}
    if not details:
        return "", details
    return "  # " + ": ".join(([f"until {until}"] if until else []) + ([reason] if reason else [])), details
