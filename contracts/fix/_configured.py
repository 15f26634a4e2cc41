"""The contracts of a configuration, and what breaks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import grimp
from grimp import ImportGraph
from importlinter.application import use_cases
from importlinter.domain.contract import InvalidContractOptions, registry

from contracts._base import DefinitionContract, _index
from contracts._findings import Finding
from contracts.fix._errors import RefusedError
from contracts.source import Index


@dataclass
class Configured:
    """The contracts that are to be mended, with the index and the import graph of their root packages."""

    contracts: list[DefinitionContract]
    every: list[DefinitionContract]
    index: Index
    graph: ImportGraph

    def findings(self, contract: DefinitionContract) -> list[Finding]:
        """What breaks a contract, without what it ignores.

        Raises:
            RefusedError: the contract could not be checked.
        """
        examination = contract.examine(self.index, self.graph)
        if examination.problems:
            raise RefusedError("\n".join(examination.problems))
        ignored = cast("set[str]", contract.ignore_definitions)
        return [finding for finding in examination.findings if finding.name not in ignored]


def configured(config: str | None, wanted: str | None, cache_folder: str | None) -> Configured:
    """Read a configuration, and the packages that it is about.

    Args:
        config: the configuration's path; None for the usual places.
        wanted: the identifier or the name of the one contract to mend; None for all.
        cache_folder: where import-linter's cache lies.

    Raises:
        RefusedError: there is no such contract, or the configuration is wrong.
    """
    try:
        options = use_cases.read_user_options(config_filename=config)
    except FileNotFoundError as error:
        raise RefusedError(f"{error} Name it with --config.") from error
    use_cases._register_contract_types(options)  # noqa: SLF001  there is no public way
    session: dict[str, Any] = options.session_options
    graph = grimp.build_graph(
        *session["root_packages"],
        include_external_packages=str(session.get("include_external_packages")).lower() == "true",
        exclude_type_checking_imports=str(session.get("exclude_type_checking_imports")).lower() == "true",
        cache_dir=cache_folder,
    )
    every: list[DefinitionContract] = []
    chosen: list[DefinitionContract] = []
    for contract_options in options.contracts_options:
        kind = registry.get_contract_class(contract_options["type"])
        is_chosen = wanted is None or wanted in {contract_options.get("id"), contract_options["name"]}
        if not issubclass(kind, DefinitionContract):
            if is_chosen and wanted is not None:
                raise RefusedError(f"'{wanted}' is of type {contract_options['type']}, which this cannot mend.")
            continue
        try:
            contract = kind(contract_options["name"], session, contract_options)
        except InvalidContractOptions as error:
            raise RefusedError(
                f"Contract '{contract_options['name']}' is not configured correctly: {error.errors}."
            ) from error
        every.append(contract)
        if is_chosen:
            chosen.append(contract)
    if not chosen:
        known = ", ".join(str(o.get("id") or o["name"]) for o in options.contracts_options)
        raise RefusedError(f"There is no contract '{wanted}'. There are: {known}.")
    return Configured(chosen, every, _index(session), graph)
