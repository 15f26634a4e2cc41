"""What can go wrong while reading the linted tree."""

from __future__ import annotations


class SourceError(Exception):
    """A source file that could not be read, decoded or parsed: ``path``, ``line`` (from 1), ``reason``."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(f"{path}:{line} {reason}")
        self.path = path
        self.line = line
        self.reason = reason


class RootNotFoundError(Exception):
    """A root package that is nowhere on the import path."""

    def __init__(self, root: str) -> None:
        super().__init__(
            f"Root package '{root}' cannot be found. Run lint-imports in the folder that holds it, "
            "or install it."
        )


class UnknownNameError(Exception):
    """A configured name that the tree does not hold."""
