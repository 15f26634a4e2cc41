"""What a run of the contracts found, as plain data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from grimp import ImportGraph
from importlinter.application import output
from importlinter.application.ports.reporting import Report
from importlinter.domain.contract import Contract, ContractCheck

from contracts._configuration import Configuration, identify
from contracts._findings import Finding
from contracts.report._imports import findings_of_imports
from contracts.report._lint import exit_code

__all__ = ["Item", "Run", "Verdict", "account", "failures", "findings"]

_PLACE = re.compile(r"(?P<path>.+?):(?P<line>\d+)(?::(?P<column>\d+))? (?P<message>.+)", re.DOTALL)
_ENTRY = re.compile(r"(?P<option>\w+): '(?P<entry>.+?)'")


class Item(NamedTuple):
    """One thing to tell. ``kind`` is "finding", "warning" or "problem": a problem is what could not be checked.

    ``name`` is what an ignore list calls a finding; warnings and problems may have none. ``column`` is 0 where
    only the line is known.
    """

    kind: str
    path: str
    line: int
    column: int
    name: str
    message: str


@dataclass
class Verdict:
    """What came of one contract. ``line`` is where the configuration defines it."""

    id: str
    name: str
    type: str
    items: list[Item]
    ignored: int
    guidance: str
    line: int

    @property
    def status(self) -> str:
        """``broken``, ``unchecked`` (not all could be checked, and what could is kept) or ``kept``."""
        kinds = {item.kind for item in self.items}
        return "broken" if "finding" in kinds else "unchecked" if "problem" in kinds else "kept"


@dataclass
class Run:
    """What a run found.

    ``failures`` are reasons why there is no verdict on some or any of the contracts; ``report`` is
    import-linter's own account, None if it did not get that far.
    """

    configuration: Configuration | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    report: Report | None = field(default=None, repr=False)

    @property
    def items(self) -> Iterator[tuple[Verdict, Item]]:
        """Everything that there is to tell, in the order of every format."""
        return ((verdict, item) for verdict in self.verdicts for item in verdict.items)

    @property
    def exit_code(self) -> int:
        """0 if all contracts are kept, 1 if one is broken, 2 if something could not be checked."""
        return exit_code(self.report) if self.report is not None and not self.failures else 2

    def count(self, status: str) -> int:
        """How many contracts have that status."""
        return sum(verdict.status == status for verdict in self.verdicts)

    @property
    def summary(self) -> str:
        """One line on the whole."""
        unchecked = self.count("unchecked")
        more = f", {unchecked} could not be checked" if unchecked else ""
        ignored = sum(verdict.ignored for verdict in self.verdicts)
        findings = sum(item.kind == "finding" for _, item in self.items)
        counts = f"{self.count('kept')} kept, {self.count('broken')} broken{more}"
        return f"Contracts: {counts}. Findings: {findings}, and {ignored} ignored."


def account(configuration: Configuration, report: Report) -> Run:
    """A report as plain data."""
    run = Run(configuration, failures=failures(report), report=report)
    numbers = {id(options): number for number, options in enumerate(configuration.options.contracts_options)}
    for contract, check in report.get_contracts_and_checks():
        number = numbers[id(contract.contract_options)]
        run.verdicts.append(_verdict(configuration, number, contract, check, report))
    return run


def failures(report: Report) -> list[str]:
    """Why there is no verdict on some of the contracts."""
    return [
        f"Contract '{name}' is not configured correctly: {option}: {text}"
        for name, error in report.invalid_contract_options.items()
        for option, text in error.errors.items()
    ]


def _verdict(
    configuration: Configuration, number: int, contract: Contract, check: ContractCheck, report: Report
) -> Verdict:
    line = configuration.line(number)
    items = []
    for finding in findings(contract, check, report.graph):
        if finding.path:
            items.append(Item("finding", *finding))
        else:
            items.append(Item("finding", configuration.path, line, 0, finding.name, finding.message))
    undecided = {str(finding): finding for finding in check.metadata.get("undecided", ())}
    for kind, texts in (("problem", check.metadata.get("problems", ())), ("warning", _warnings(check))):
        for text in texts:
            known = undecided.get(text)
            items.append(Item(kind, *known) if known else _item(kind, text, configuration, number))
    options: dict[str, Any] = contract.contract_options
    return Verdict(
        id=identify(options),
        name=str(options["name"]),
        type=str(options["type"]),
        items=items,
        ignored=len(check.metadata.get("ignored", ())) or check.ignored_import_count,
        guidance=str(getattr(contract, "broken_contract_guidance", None) or ""),
        line=line,
    )


def findings(contract: Contract, check: ContractCheck, graph: ImportGraph) -> Sequence[Finding]:
    """What breaks a contract, of whatever type; ``path`` is empty where only the configuration can be pointed at."""
    if check.kept:
        return ()
    own = check.metadata.get("findings")
    if own is not None and all(isinstance(finding, Finding) for finding in own):
        return own if own or check.metadata.get("problems") else [_as_one(contract, check)]
    return findings_of_imports(contract, check, graph) or [_as_one(contract, check)]


def _as_one(contract: Contract, check: ContractCheck) -> Finding:
    """What a contract of an unknown type prints, as one finding: its data may be of any shape."""
    with output.console.capture() as captured:
        contract.render_broken_contract(check)
    return Finding("", 0, 0, "", captured.get().strip() or "The contract is broken, and its type does not say why")


def _warnings(check: ContractCheck) -> list[str]:
    own = check.metadata.get("warnings")
    if own is not None:
        return list(own)
    from rich.text import Text  # noqa: PLC0415  a warning of import-linter's is markup

    return [Text.from_markup(warning).plain for warning in check.warnings]


def _item(kind: str, text: str, configuration: Configuration, number: int) -> Item:
    placed = _PLACE.fullmatch(text)
    if placed is not None and os.path.exists(placed["path"]):
        return Item(kind, placed["path"], int(placed["line"]), int(placed["column"] or 0), "", placed["message"])
    entry = _ENTRY.match(text)
    line = configuration.line(number, *entry.groups()) if entry else configuration.line(number)
    return Item(kind, configuration.path, line, 0, "", text)
