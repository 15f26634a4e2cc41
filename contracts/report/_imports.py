"""The findings of import-linter's own contract types: forbidden or cyclic imports, with file and line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grimp import ImportGraph
from importlinter.domain.contract import Contract, ContractCheck

from contracts._findings import Finding
from contracts.source import module_path, relative_path

__all__ = ["findings_of_imports", "put_in_order"]

Link = dict[str, Any]  # importer, imported, line_numbers
_Found = Iterator[tuple[Link, str]]  # the import to report, and what to say of it


def findings_of_imports(contract: Contract, check: ContractCheck, graph: ImportGraph) -> list[Finding]:
    """The imports that break a contract of one of import-linter's types; none for another type.

    A finding is called ``importer -> imported``, as an entry of ``ignore_imports`` is. Of a chain of imports
    it is the first; where several modules begin the chain, there is a finding for each.
    """
    reader = _READERS.get(_kind(contract))
    if reader is None:
        return []
    roots = contract.session_options["root_packages"]
    findings = [_locate(link, message, roots) for link, message in reader(check, graph)]
    undeclared = sorted(check.metadata.get("undeclared_modules", ()))
    for module in undeclared:
        path = module_path(module, roots)
        message = f"{module} is not listed as a layer, and the contract is exhaustive: every child of a container is"
        findings.append(Finding(relative_path(path) if path else "", 1, 1, module, message))
    return findings


def _kind(contract: Contract) -> str:
    """Which of import-linter's types checks a contract, and so gives its data its shape; empty if none does.

    By name, since not every version has every type.
    """
    check = type(contract).check
    owner = check.__qualname__.removesuffix(".check")
    within, _, module = check.__module__.rpartition(".")
    return f"{module}.{owner}" if within == "importlinter.contracts" else ""


def put_in_order(contract: Contract, check: ContractCheck) -> None:
    """Sort the chains that some of import-linter's types report in an order that changes from run to run."""
    kind = _kind(contract)
    if kind == "layers.LayersContract":
        check.metadata["invalid_dependencies"].sort(key=lambda data: (data["importer"], data["imported"]))
        for data in check.metadata["invalid_dependencies"]:
            data["routes"].sort(key=_route_key)
    elif kind == "independence.IndependenceContract":
        chains = check.metadata["invalid_chains"]
        chains.sort(key=lambda data: (data["downstream_module"], data["upstream_module"]))
        for data in chains:
            data["chains"].sort(key=_route_key)
    elif kind == "forbidden.ForbiddenContract":
        for data in check.metadata["invalid_chains"]:
            data["chains"].sort(key=lambda chain: [(link["importer"], link["imported"]) for link in chain])


def _route_key(route: dict[str, Any]) -> list[tuple[str, str]]:
    return [(link["importer"], link["imported"]) for link in route["chain"]]


def _layers(check: ContractCheck, graph: ImportGraph) -> _Found:
    for data in check.metadata["invalid_dependencies"]:
        rule = f"{data['importer']} is not allowed to import {data['imported']}"
        for route in data["routes"]:
            yield from _route(rule, route)


def _independence(check: ContractCheck, graph: ImportGraph) -> _Found:
    for data in check.metadata["invalid_chains"]:
        rule = f"{data['downstream_module']} is not allowed to import {data['upstream_module']}"
        for route in data["chains"]:
            yield from _route(rule, route)


def _forbidden(check: ContractCheck, graph: ImportGraph) -> _Found:
    for data in check.metadata["invalid_chains"]:
        rule = f"{data['downstream_module']} is not allowed to import {data['upstream_module']}"
        for chain in data["chains"]:
            yield from _route(rule, {"chain": chain, "extra_firsts": [], "extra_lasts": []})


def _protected(check: ContractCheck, graph: ImportGraph) -> _Found:
    for data in check.metadata["illegal_imports"]:
        origin = f" (through {data.original_expression})" if data.original_expression else ""
        for link in data.illegal_links:
            yield link, f"{data.top_level_module}{origin} is protected: {_say(link)}"


def _acyclic(check: ContractCheck, graph: ImportGraph) -> _Found:
    for package, imports in sorted(check.metadata["cycle_breakers_by_package"].items()):
        for importer, imported in sorted(imports):
            details = graph.get_import_details(importer=importer, imported=imported)
            lines = tuple(sorted({detail["line_number"] for detail in details})) or (None,)
            link = {"importer": importer, "imported": imported, "line_numbers": lines}
            rule = f"The children of {package} import each other in a cycle, which would be broken without"
            yield link, f"{rule} {_say(link)}"


def _private(check: ContractCheck, graph: ImportGraph) -> _Found:
    for link in check.metadata["illegal_imports"]:
        yield link, f"{link['imported']} is private to the package it is in: {_say(link)}"


_READERS: dict[str, Callable[[ContractCheck, ImportGraph], _Found]] = {
    "layers.LayersContract": _layers,
    "independence.IndependenceContract": _independence,
    "forbidden.ForbiddenContract": _forbidden,
    "protected.ProtectedContract": _protected,
    "acyclic_siblings.AcyclicSiblingsContract": _acyclic,
    "private_modules.PrivateModulesContract": _private,
}


def _route(rule: str, route: dict[str, Any]) -> _Found:
    first, *rest = route["chain"]
    for link in (first, *route["extra_firsts"]):
        chain = ", ".join(_say(one) for one in (link, *rest))
        others = [link["imported"] for link in route["extra_lasts"]]
        more = f" (and so {', '.join(others)})" if others else ""
        yield link, f"{rule}: {chain}{more}"


def _say(link: Link) -> str:
    lines = ", ".join("l.?" if line is None else f"l.{line}" for line in link["line_numbers"])
    return f"{link['importer']} -> {link['imported']} ({lines})"


def _locate(link: Link, message: str, roots: Sequence[str]) -> Finding:
    name = f"{link['importer']} -> {link['imported']}"
    path = module_path(link["importer"], roots)
    lines = [line for line in link["line_numbers"] if line]
    if path is None:
        return Finding("", 0, 0, name, message)
    line = min(lines, default=1)
    return Finding(relative_path(path), line, _indentation(path, line) + 1, name, message)


def _indentation(path: str, number: int) -> int:
    """How far a statement is indented: an import may stand in a function."""
    with open(os.fspath(path), "rb") as file:
        line = next((line for n, line in enumerate(file, 1) if n == number), b"")
    return len(line) - len(line.lstrip(b" \t\f"))
