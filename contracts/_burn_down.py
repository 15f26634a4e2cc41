"""Today's findings as a list in the configuration, that gets shorter as they are dealt with."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, cast

from grimp import ImportGraph
from importlinter import fields
from importlinter.application.contract_utils import AlertLevel
from importlinter.domain.contract import Contract, ContractCheck

from contracts import report
from contracts._base import DefinitionContract, listed
from contracts._configuration import Configuration, identify
from contracts._ignores import Detail, IgnoreField
from contracts._writing import CouldNotError
from contracts.report._imports import first_imports
from contracts.report.run import failures, findings

__all__ = ["Change", "changes", "prepare"]

_DEFINITIONS, _IMPORTS = "ignore_definitions", "ignore_imports"


@dataclass(frozen=True)
class Change:
    """What becomes of a contract's list.

    Entries are as they are or will be written. ``left`` names the findings that no entry hides, and ``fit`` those
    of them that one could.
    """

    contract: int
    id: str
    option: str
    before: int
    removed: list[str]
    added: list[str]
    left: list[str]
    fit: list[str]

    def __str__(self) -> str:
        """One line for the reader."""
        if not self.option:
            return f"{self.id}: {_findings(len(self.left))}, and its type has no list for them"
        news = [f"{len(texts)} {verb}" for verb, texts in (("added", self.added), ("removed", self.removed)) if texts]
        ignored = self.before - len(self.removed) + len(self.added)
        text = f"{self.id}: {ignored} ignored" + (f" ({', '.join(news)})" if news else "")
        if self.left:
            text += f", {_findings(len(self.left))} not: {', '.join(self.left)}"
        return text


def _findings(count: int) -> str:
    return f"{count} finding{'s' if count != 1 else ''}"


def prepare(configuration: Configuration) -> None:
    """Have the contracts report what they find, and not what their lists lack or hold in vain."""
    for options in configuration.options.contracts_options:
        kind = report.contract_class(options["type"])
        for option in (_DEFINITIONS, _IMPORTS):
            if _has(kind, option):
                options[f"unmatched_{option}_alerting"] = "none"
        if _has(kind, "required_in_ignore_definitions"):
            options.pop("required_in_ignore_definitions", None)


def changes(
    configuration: Configuration,
    limit_to: tuple[str, ...],
    grow: Collection[str],
    *,
    comment: str,
    details: Collection[Detail],
    **session: Any,
) -> list[Change]:
    """What to change, so that each list holds no more than what it needs, and new lists hold today's findings.

    Args:
        configuration: as it was read; it is changed.
        limit_to: the ids of the contracts; all if there are none.
        grow: the ids of the contracts whose lists may grow; that of a contract without one always may.
        comment: what to write behind each new entry.
        details: what ``comment`` gives.
        session: how to check, as for ``report.lint``.

    Raises:
        CouldNotError: the findings of today cannot be told, or not be ignored.
    """
    everything = configuration.options.contracts_options
    required = [_required(options) for options in everything]
    started = [any(option in options for option in (_DEFINITIONS, _IMPORTS)) for options in everything]
    numbers = {id(options): number for number, options in enumerate(everything)}
    report.register(configuration)
    prepare(configuration)
    done = report.lint(configuration, limit_to, **session)
    if failed := failures(done):
        raise CouldNotError("\n".join(failed))
    planned = []
    for contract, check in done.get_contracts_and_checks():
        number = numbers[id(contract.contract_options)]
        may_grow = not started[number] or identify(contract.contract_options) in grow
        change = _plan(number, contract, check, done.graph, may_grow=may_grow)
        if change.added and change.option == _DEFINITIONS:
            if lacking := required[number] - set(details):
                wanted = listed([f"--{detail.value}" for detail in Detail if detail in lacking], "and")
                raise CouldNotError(f"'{change.id}' wants more of each entry: give {wanted}.")
            change = replace(change, added=[f"{name}{comment}" for name in change.added])
        planned.append(_as_written(change, configuration))
    return planned


def _plan(number: int, contract: Contract, check: ContractCheck, graph: ImportGraph, *, may_grow: bool) -> Change:
    kind = type(contract)
    entries = _written(contract.contract_options)
    listed_already = {IgnoreField().parse(entry).name for entry in entries}
    if isinstance(contract, DefinitionContract):
        option, found, known = _DEFINITIONS, *_definitions(contract, check)
        fit = [name for name in dict.fromkeys(found) if name not in listed_already]
    else:
        option = _IMPORTS if _has(kind, _IMPORTS) else ""
        found = [finding.name for finding in findings(contract, check, graph)]
        hidden = _matching(entries, graph)
        known = {entry for entry, links in hidden.items() if links}
        fit = [name for name in dict.fromkeys(found) if option and " -> " in name]
    removed = [entry for entry in entries if IgnoreField().parse(entry).name not in known]
    added = fit if may_grow else []
    if added and option == _IMPORTS:
        added, found = _all_imports(contract, check, graph, {link for links in hidden.values() for link in links})
    left = [name or "(unnamed)" for name in dict.fromkeys(found) if name not in added]
    fit = [] if may_grow else fit
    return Change(number, identify(contract.contract_options), option, len(entries), removed, added, left, fit)


def _all_imports(
    contract: Contract, check: ContractCheck, graph: ImportGraph, hidden: set[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """The imports to ignore, and the names of what is found nevertheless.

    A chain of imports may hide another, that comes out when the first is ignored.
    """
    options = {name: value for name, value in contract.contract_options.items() if name != _IMPORTS}
    rest = copy.deepcopy(graph)
    for importer, imported in hidden:
        rest.remove_import(importer=importer, imported=imported)
    added: list[str] = []
    while True:
        found = [finding.name for finding in findings(contract, check, rest)]
        more = first_imports(contract, check, rest) or [name for name in found if " -> " in name]
        more = [name for name in dict.fromkeys(more) if name not in added]
        if not more:
            return added, found
        added += more
        for name in more:
            importer, _, imported = name.partition(" -> ")
            rest.remove_import(importer=importer, imported=imported)
        contract = type(contract)(contract.name, contract.session_options, options)
        check = contract.check(copy.deepcopy(rest), verbose=False)


def _matching(entries: list[str], graph: ImportGraph) -> dict[str, list[tuple[str, str]]]:
    """The imports that each entry hides."""
    modules = graph.modules
    found = {}
    for entry in entries:
        importer, _, imported = (name.strip() for name in entry.partition("->"))
        if "*" in entry:
            links = graph.find_matching_direct_imports(import_expression=entry)
            found[entry] = [(link["importer"], link["imported"]) for link in links]
        elif {importer, imported} <= modules and graph.direct_import_exists(importer=importer, imported=imported):
            found[entry] = [(importer, imported)]
        else:
            found[entry] = []
    return found


def _definitions(contract: DefinitionContract, check: ContractCheck) -> tuple[list[str], set[str]]:
    """The names to ignore, and those that entries may have.

    Raises:
        CouldNotError: not all could be checked, or one name stands for several definitions.
    """
    data = check.metadata
    open_ = data["undecided"] if cast("AlertLevel", contract.undecided_alerting) is AlertLevel.ERROR else []
    problems = [problem for problem in data["problems"] if problem not in {str(finding) for finding in open_}]
    found = [*data["findings"], *open_]
    places = Counter(name for name, *_ in {(f.name, f.path, f.line, f.column) for f in found})
    problems += [
        f"'{name}' names {count} definitions, and one entry may hide only one. Give them different names."
        for name, count in sorted(places.items())
        if count > 1
    ]
    if problems:
        raise CouldNotError(f"'{identify(contract.contract_options)}' could not be checked:\n" + "\n".join(problems))
    return [f.name for f in found], {f.name for f in (*data["ignored"], *data["findings"], *data["undecided"])}


def _as_written(change: Change, configuration: Configuration) -> Change:
    """The change against what the file says."""
    layout = configuration.layout[change.contract] if configuration.layout else None
    option = layout.options.get(change.option) if layout else None
    before = [text for _, text in option.entries] if option else []
    added = [entry for entry in change.added if entry not in before]
    return replace(change, before=len(before), added=added, removed=[e for e in change.removed if e in before])


def _written(options: dict[str, Any]) -> list[str]:
    raw = options.get(_DEFINITIONS) or options.get(_IMPORTS) or []
    return [text.strip() for text in ([raw] if isinstance(raw, str) else raw) if text.strip()]


def _required(options: dict[str, Any]) -> set[Detail]:
    raw = options.get("required_in_ignore_definitions") or []
    values = [raw] if isinstance(raw, str) else raw
    return {detail for detail in Detail if detail.value in {value.strip() for value in values}}


def _has(kind: type[Contract], option: str) -> bool:
    return isinstance(getattr(kind, option, None), fields.Field)
