"""The configuration in use: which file it is, and on which lines its contracts and their options stand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from importlinter import configuration as importlinter_configuration
from importlinter.application import use_cases
from importlinter.application.app_config import settings
from importlinter.application.user_options import UserOptions

if TYPE_CHECKING:
    from contracts._layout import Layout

__all__ = ["Configuration", "identify", "read_configuration"]

importlinter_configuration.configure()  # as importlinter.cli and importlinter.api do


class Configuration:
    """A configuration as it was read.

    Args:
        filename: the file that was named; None if import-linter looked for one.
        options: what the file says.
    """

    def __init__(self, filename: str | None, options: UserOptions) -> None:
        self._filename = filename
        self.options = options

    @cached_property
    def path(self) -> str:
        """The file, relative to the current folder if it was not named otherwise."""
        return self._filename or _default()

    @cached_property
    def text(self) -> str:
        """What the file says, its line ends as they are."""
        with open(self.path, encoding="utf-8", newline="") as file:
            return file.read()

    @cached_property
    def layout(self) -> Layout | None:
        """Where the contracts stand; None where that is a form that is read but not located (an inline table)."""
        from contracts._layout import ini_layout, toml_layout  # noqa: PLC0415  most runs find nothing to locate

        found = toml_layout(self.text) if self.is_toml else ini_layout(self.text)
        return found if len(found) == len(self.options.contracts_options) else None

    def with_text(self, text: str) -> Configuration:
        """The same configuration, of a file that says something else."""
        other = Configuration(self.path, self.options)
        other.text = text
        return other

    @property
    def is_toml(self) -> bool:
        """Whether it is TOML, rather than INI."""
        return self.path.endswith(".toml")

    def line(self, contract: int, option: str = "", entry: str = "") -> int:
        """The line of the contract of that number, or of an option of it, or of an entry of that option."""
        if self.layout is None:
            return 1
        section = self.layout[contract]
        found = section.options.get(option)
        if found is None:
            return section.line
        lines = (line for line, text in found.entries if text == entry or text.startswith(f"{entry} "))
        return next(lines, found.line)


def identify(options: Mapping[str, Any]) -> str:
    """What a contract is called on the command line: its id; in TOML that may be missing, and then its name."""
    return str(options.get("id") or options["name"])


def read_configuration(filename: str | None) -> Configuration:
    """Read the configuration that ``lint-imports`` would, given the same ``--config``.

    Raises:
        FileNotFoundError: there is none.
    """
    options = use_cases.read_user_options(config_filename=filename)
    return Configuration(filename, options)


def _default() -> str:
    """The file that import-linter takes when it is told none: of its candidates, the first that has options."""
    for reader in settings.USER_OPTION_READERS.values():
        for name in reader.potential_config_filenames:
            if os.path.isfile(name) and reader.read_options(config_filename=name):
                return str(name)
    raise FileNotFoundError("Could not read any configuration.")
