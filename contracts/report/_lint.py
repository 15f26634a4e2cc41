"""Runs of all contracts in a configuration, as import-linter makes them."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging.config
import os
import sys
from collections.abc import Iterator

import importlinter.contracts
from importlinter.application import use_cases
from importlinter.application.ports.reporting import Report
from importlinter.application.sentinels import NotSupplied
from importlinter.application.user_options import InvalidUserOptions
from importlinter.domain.contract import Contract, NoSuchContractType, registry

from contracts._configuration import Configuration

__all__ = ["contract_class", "exit_code", "lint", "quiet", "reason", "register"]


def lint(
    configuration: Configuration,
    limit_to: tuple[str, ...] = (),
    *,
    cache_dir: str | type[NotSupplied] | None = NotSupplied,
    show_timings: bool = False,
    verbose: bool = False,
) -> Report:
    """Check the contracts as ``lint-imports`` does, each contract's findings in an order that is always the same.

    Args:
        configuration: what to check.
        limit_to: the ids of the contracts to check; all if there are none.
        cache_dir: where import-linter keeps its cache; None for nowhere.
        show_timings: whether the report says how long each contract took.
        verbose: whether progress is printed.

    Raises:
        Exception: what import-linter raises of a configuration that it cannot use.
    """
    _log(verbose=verbose)
    register(configuration)
    report = use_cases.create_report(configuration.options, limit_to, cache_dir, show_timings, verbose)
    broken = [(contract, check) for contract, check in report.get_contracts_and_checks() if not check.kept]
    if broken:
        from contracts.report._imports import put_in_order  # noqa: PLC0415  most runs find nothing

        for contract, check in broken:
            put_in_order(contract, check)
    return report


def _log(*, verbose: bool) -> None:
    """Have grimp and import-linter say what lint-imports has them say."""
    names = ("importlinter", "grimp", "_rustgrimp")
    level = "INFO" if verbose else "WARNING"
    handler = {"class": "logging.StreamHandler", "level": level, "stream": "ext://sys.stdout"}
    loggers = {name: {"level": "INFO", "handlers": ["console"]} for name in names}
    logging.config.dictConfig({"version": 1, "handlers": {"console": handler}, "loggers": loggers})


def register(configuration: Configuration) -> None:
    """Make import-linter's contract types and the configuration's own known.

    Raises:
        InvalidUserOptions: there are no contracts.
        Exception: a type of the configuration cannot be loaded.
    """
    if not configuration.options.contracts_options:
        raise InvalidUserOptions(f"No contracts found in {configuration.path}. Write one, or name another file.")
    for name in sorted(os.listdir(importlinter.contracts.__path__[0])):
        if name.endswith(".py") and not name.startswith("_"):
            loaded = importlib.import_module(f"importlinter.contracts.{name.removesuffix('.py')}")
            for kind in vars(loaded).values():
                if isinstance(kind, type) and issubclass(kind, Contract) and kind.__module__ == loaded.__name__:
                    registry.register(kind, getattr(kind, "type_name"))  # noqa: B009  each has one, but not their base
    for row in configuration.options.session_options.get("contract_types", ()):
        name, found, path = row.partition(": ")
        module_name, _, class_name = path.strip().rpartition(".")
        if not found or not module_name:
            raise InvalidUserOptions(f"contract_types: '{row}' is no contract type. Write 'name: module.Class'.")
        kind = getattr(importlib.import_module(module_name), class_name)
        if not issubclass(kind, Contract):
            raise InvalidUserOptions(f"contract_types: {path} is no subclass of importlinter.Contract.")
        registry.register(kind, name)


def contract_class(name: str) -> type[Contract]:
    """The class of a contract type that is known by that name.

    Raises:
        NoSuchContractType: there is none.
    """
    kind: type[Contract] = registry.get_contract_class(name)
    return kind


def reason(error: Exception) -> str:
    """Why import-linter stopped, for a reader to whom the name of an exception says nothing."""
    if isinstance(error, NoSuchContractType):
        return f"There is no contract type '{error}'. Name its class under contract_types: '{error}: module.Class'."
    return str(error) or f"{type(error).__name__}, without a message. Run lint-imports --debug"


def exit_code(report: Report) -> int:
    """0 if all contracts are kept, 1 if one is broken, 2 if something could not be checked."""
    checks = [check for _, check in report.get_contracts_and_checks()]
    if report.could_not_run or any(check.metadata.get("problems") for check in checks):
        return 2
    return int(not all(check.kept for check in checks))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep standard output free of what import-linter prints meanwhile; what it says goes to standard error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        if text := printed.getvalue().strip():
            sys.stderr.write(f"{text}\n")
