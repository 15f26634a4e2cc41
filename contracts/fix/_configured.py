"""The contracts of a configuration, and what breaks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grimp
from grimp import ImportGraph
from importlinter.domain.contract import InvalidContractOptions

from contracts import report
from contracts._base import DefinitionContract, index_of
from contracts._burn_down import prepare
from contracts._configuration import identify, read_configuration
from contracts._findings import Finding
from contracts._writing import CouldNotError
from contracts.source import Index


@dataclass
class Configured:
    """The contracts that are to be mended, and all of those types, with the index and the graph that they are about."""

    contracts: list[DefinitionContract]
    every: list[DefinitionContract]
    index: Index
    graph: ImportGraph

    def findings(self, contract: DefinitionContract) -> list[Finding]:
        """What breaks a contract, without what it ignores.

        Raises:
            CouldNotError: the contract could not be checked.
        """
        check = contract.check(self.graph, verbose=False)
        if check.metadata["problems"]:
            raise CouldNotError("\n".join(check.metadata["problems"]))
        found: list[Finding] = check.metadata["findings"]
        return found


def configured(config: str | None, wanted: str | None, cache_folder: str | None) -> Configured:
    """Read a configuration, and the packages that it is about.

    Args:
        config: the configuration's path; None for the usual places.
        wanted: the identifier or the name of the one contract to mend; None for all.
        cache_folder: where import-linter's cache lies.

    Raises:
        CouldNotError: there is no such contract, or the configuration cannot be used.
    """
    try:
        configuration = read_configuration(config)
        report.register(configuration)
        prepare(configuration)
        session: dict[str, Any] = configuration.options.session_options
        graph = grimp.build_graph(
            *session["root_packages"],
            include_external_packages=_is_true(session.get("include_external_packages")),
            exclude_type_checking_imports=_is_true(session.get("exclude_type_checking_imports")),
            cache_dir=cache_folder,
        )
    except Exception as error:  # whatever import-linter raises of what it cannot use
        raise CouldNotError(report.reason(error)) from error
    every: list[DefinitionContract] = []
    chosen: list[DefinitionContract] = []
    known: list[str] = []
    for options in configuration.options.contracts_options:
        kind = report.contract_class(options["type"])
        known.append(identify(options))
        is_wanted = wanted in {known[-1], options["name"]}
        if not issubclass(kind, DefinitionContract):
            if is_wanted:
                raise CouldNotError(f"'{wanted}' is of type {options['type']}, which cannot be mended by moving code.")
            continue
        try:
            contract = kind(options["name"], session, options)
        except InvalidContractOptions as error:
            said = "; ".join(f"{option}: {text}" for option, text in error.errors.items())
            raise CouldNotError(f"Contract '{options['name']}' is not configured correctly: {said}") from error
        every.append(contract)
        if wanted is None or is_wanted:
            chosen.append(contract)
    if not chosen and wanted is not None:
        raise CouldNotError(f"There is no contract '{wanted}'. There are: {', '.join(known)}.")
    return Configured(chosen, every, index_of(session), graph)


def _is_true(option: Any) -> bool:
    return str(option).lower() == "true"
