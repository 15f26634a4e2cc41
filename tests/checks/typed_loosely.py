"""Functions with types that typeguard on its own would not, or not wholly, check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from nowhere import Unknown


class Sends(Protocol):
    """Something that sends rows."""

    def send(self, rows: torch.Tensor) -> None:
        """Send ``rows``."""


def total(numbers: list[int]) -> int:
    """The sum."""
    return len(numbers)


def rows_of(x: torch.Tensor) -> int:
    """How many rows there are."""
    return len(x.shape)


class Takes:
    """Has a method whose annotation has no meaning at run time."""

    def given(self, unknown: Unknown, x: torch.Tensor) -> None:
        """Take what nobody knows."""

    def rows(self, x: torch.Tensor) -> int:
        """How many rows there are."""
        return len(x)


def through(sender: Sends) -> None:
    """Take something that sends."""


def sized(x: torch.Tensor) -> int:
    """Give a text where a number is promised."""
    return str(x)
