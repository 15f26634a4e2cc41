"""What a map shows: of each placement contract the implementations, by package and module."""

from __future__ import annotations

import enum
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from importlinter.application.ports.reporting import Report
from importlinter.domain.contract import ContractCheck
from importlinter.domain.imports import ModuleExpression

from contracts._base import index_of, is_under, listed, matching_modules
from contracts.placement import PlacementContract

__all__ = ["Atlas", "Chart", "Implementation", "State", "draw_up"]


class State(enum.Enum):
    """How an implementation stands to its contract: the sign and the words for it."""

    PLACED = ("\N{CHECK MARK}", "in place")
    MISPLACED = ("\N{BALLOT X}", "misplaced")
    IGNORED = ("\N{HORIZONTAL ELLIPSIS}", "misplaced, ignored for now")
    ABSTRACT = ("\N{WHITE DIAMOND}", "abstract: may live anywhere")
    UNDECIDED = ("?", "undecided: reading cannot tell whether it is one")

    @property
    def sign(self) -> str:
        """One character."""
        return self.value[0]

    @property
    def words(self) -> str:
        """What the legend says."""
        return self.value[1]

    @property
    def in_short(self) -> str:
        """The words without what explains them."""
        return {State.IGNORED: "ignored for now"}.get(self) or re.split("[:,]", self.words)[0]

    @property
    def key(self) -> str:
        """The name that style sheets use."""
        return self.name.lower()


@dataclass(frozen=True, order=True)
class Implementation:
    """A class, and where it is."""

    module: str
    line: int
    name: str
    path: str
    state: State

    @property
    def place(self) -> str:
        """``path:line``."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Chart:
    """One placement contract. ``home`` and ``elsewhere`` are packages, their modules, and what these hold."""

    name: str
    bases: str
    allowed: str
    prefix: str
    home: dict[str, dict[str, list[Implementation]]]
    elsewhere: dict[str, dict[str, list[Implementation]]]

    @property
    def counts(self) -> dict[State, int]:
        """How many implementations are in each state, of those states that occur."""
        states = [
            item.state
            for zone in (self.home, self.elsewhere)
            for modules in zone.values()
            for items in modules.values()
            for item in items
        ]
        count = Counter(states)
        return {state: count[state] for state in State if count[state]}

    def short(self, module: str) -> str:
        """A module's name without what all of the chart have in common."""
        return module.removeprefix(f"{self.prefix}.") if self.prefix else module


@dataclass(frozen=True)
class Atlas:
    """All charts of a configuration, and the root packages that they show."""

    roots: str
    charts: list[Chart]

    @property
    def title(self) -> str:
        """What a browser's tab says."""
        return f"What lives where in {self.roots}"

    @property
    def summary(self) -> str:
        """One sentence."""
        total: Counter[State] = Counter()
        for chart in self.charts:
            total.update(chart.counts)
        shown = [f"{total[state]} {state.in_short}" for state in State if total[state]]
        return f"{_count(total.total(), 'implementation')}: {', '.join(shown)}."


def draw_up(report: Report) -> Atlas:
    """The charts of a report's placement contracts; those that could not be checked at all are not among them."""
    charts = []
    roots: list[str] = []
    for contract, check in report.get_contracts_and_checks():
        roots = contract.session_options["root_packages"]
        if isinstance(contract, PlacementContract):
            charts.append(_chart(contract, check, report))
    return Atlas(listed(roots, "and") if roots else "", charts)


def _chart(contract: PlacementContract, check: ContractCheck, report: Report) -> Chart:
    bases = cast("list[str]", contract.base_classes)
    expressions = cast("list[ModuleExpression]", contract.allowed_modules)
    allowed = matching_modules("allowed_modules", expressions, report.graph)
    answer = index_of(contract.session_options).subclasses(bases, report.graph)
    states = {
        (finding.path, finding.line, finding.column): state
        for key, state in (("findings", State.MISPLACED), ("ignored", State.IGNORED))
        for finding in check.metadata[key]
    }
    items = [
        Implementation(
            found.module,
            found.line,
            found.name,
            found.path.replace(os.sep, "/"),
            states.get((found.path, found.line, found.column))
            or (State.ABSTRACT if found.is_abstract and not is_under(found.module, allowed) else State.PLACED),
        )
        for found in answer.found
    ]
    items += [
        Implementation(open_.module, open_.line, open_.name, open_.path.replace(os.sep, "/"), State.UNDECIDED)
        for open_ in answer.undecided
        if not is_under(open_.module, allowed)
    ]
    home = [item for item in items if is_under(item.module, allowed)]
    elsewhere = [item for item in items if not is_under(item.module, allowed)]
    return Chart(
        str(contract.contract_options["name"]),
        listed(bases),
        listed([str(expression) for expression in expressions]),
        _common([item.module.rpartition(".")[0] or item.module for item in items]),
        _by_package(home),
        _by_package(elsewhere),
    )


def _by_package(items: Iterable[Implementation]) -> dict[str, dict[str, list[Implementation]]]:
    packages: dict[str, dict[str, list[Implementation]]] = {}
    for item in sorted(items, key=lambda item: (item.module.rpartition(".")[0], item.module, item.line)):
        package = item.module.rpartition(".")[0] or item.module
        packages.setdefault(package, {}).setdefault(item.module, []).append(item)
    return packages


def _common(packages: list[str]) -> str:
    """The package that holds all of some packages; empty if there is none."""
    parts: list[str] = packages[0].split(".") if packages else []
    for package in packages:
        other = package.split(".")
        length = next((n for n, (a, b) in enumerate(zip(parts, other, strict=False)) if a != b), len(other))
        parts = parts[:length]
    return ".".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
