"""Mends what breaks a contract: moves classes where they belong, with every reference to them."""

from contracts.fix._errors import RefusedError
from contracts.fix._git import refuse_unsafe, top_folder

__all__ = ["RefusedError", "refuse_unsafe", "top_folder"]
