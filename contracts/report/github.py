"""Workflow commands of GitHub Actions, which show each finding at its line of a pull request."""

from __future__ import annotations

from contracts.report._workspace import from_repository
from contracts.report.run import Run

__all__ = ["render"]

_COMMAND = {"finding": "error", "problem": "error", "warning": "warning"}


def render(run: Run) -> str:
    """One line for each finding, problem and warning, then one that counts them."""
    lines = [f"::error title=moe-contracts::{_data(failure)}" for failure in run.failures]
    for verdict in run.verdicts:
        for item in verdict.items:
            column = f",col={item.column}" if item.column else ""
            guidance = f"\n{verdict.guidance}" if verdict.guidance and item.kind == "finding" else ""
            place = f"file={_property(from_repository(item.path))},line={item.line}{column}"
            title = _property(verdict.name)
            lines.append(f"::{_COMMAND[item.kind]} {place},title={title}::{_data(item.message + guidance)}")
        if verdict.ignored:
            path = from_repository(run.configuration.path) if run.configuration else ""
            place = f"file={_property(path)},line={verdict.line},title={_property(verdict.name)}"
            lines.append(f"::notice {place}::{verdict.ignored} ignored")
    lines.append(run.summary)
    return "\n".join(lines) + "\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
