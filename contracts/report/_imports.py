"""The findings of import-linter's own contract types: forbidden or cyclic imports, with file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grimp import ImportGraph
from importlinter.domain.contract import Contract, ContractCheck
from importlinter.domain.helpers import module_expressions_to_modules

from contracts._findings import Finding
from contracts.source import module_path, relative_path

__all__ = ["findings_of_imports", "first_imports", "put_in_order"]

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
    places: dict[str, tuple[str, list[bytes]] | None] = {}
    findings = []
    for link, message in reader(check, graph):
        importer = link["importer"]
        if importer not in places:
            places[importer] = _place(importer, roots)
        findings.append(_locate(link, message, places[importer]))
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


def first_imports(contract: Contract, check: ContractCheck, graph: ImportGraph) -> list[str]:
    """The imports that begin a forbidden chain, as ``importer -> imported``: those reported and those hidden by them.

    Contracts of layers and of independent modules report a few of many chains, and do not mind those through a third
    of their modules. Without these imports such a contract is kept, and with any of them it is not. Empty for another
    type. The graph is without the imports that are ignored.
    """
    options: Any = contract
    match _kind(contract):
        case "layers.LayersContract":
            names = [tail.name for layer in options.layers for tail in layer.module_tails]
            within = module_expressions_to_modules(graph, options.containers or ())
            groups = [[f"{container.name}.{name}" for name in names] for container in within] or [names]
            pairs = [(data["importer"], data["imported"]) for data in check.metadata["invalid_dependencies"]]
        case "independence.IndependenceContract":
            groups = [[module.name for module in module_expressions_to_modules(graph, options.modules)]]
            pairs = [(data["downstream_module"], data["upstream_module"]) for data in check.metadata["invalid_chains"]]
        case _:
            return []
    found = []
    for group in groups:
        packages = {name: _package(name, graph) for name in group}
        inside = set().union(*packages.values())
        for importer, imported in pairs:
            if importer in packages and imported in packages:
                reaching = _reaching(packages[imported], inside, graph)
                for module in sorted(packages[importer]):
                    targets = graph.find_modules_directly_imported_by(module) & reaching
                    found += [f"{module} -> {target}" for target in sorted(targets)]
    return list(dict.fromkeys(found))


def _package(name: str, graph: ImportGraph) -> set[str]:
    if name not in graph.modules:  # an optional layer
        return set()
    return {name} if graph.is_module_squashed(name) else {name, *graph.find_descendants(name)}


def _reaching(goal: set[str], barred: set[str], graph: ImportGraph) -> set[str]:
    """The modules that import one of ``goal``, itself or through others that are not ``barred``, and ``goal``."""
    found, todo = set(goal), list(goal)
    while todo:
        new = graph.find_modules_that_directly_import(todo.pop()) - barred - found
        found |= new
        todo += new
    return found


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


def _place(module: str, roots: Sequence[str]) -> tuple[str, list[bytes]] | None:
    """The relative path of a module, and its lines."""
    path = module_path(module, roots)
    if path is None:
        return None
    with open(path, "rb") as file:
        return relative_path(path), file.read().split(b"\n")


def _locate(link: Link, message: str, place: tuple[str, list[bytes]] | None) -> Finding:
    name = f"{link['importer']} -> {link['imported']}"
    if place is None:
        return Finding("", 0, 0, name, message)
    path, lines = place
    number = min((line for line in link["line_numbers"] if line), default=1)
    text = lines[number - 1] if number <= len(lines) else b""
    # How far the statement is indented: an import may stand in a function.
    return Finding(path, number, len(text) - len(text.lstrip(b" \t\f")) + 1, name, message)
