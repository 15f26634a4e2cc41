"""Why a refactoring is not made."""

from __future__ import annotations


class RefusedError(Exception):
    """The refactoring would go wrong, or might; says where, why, and what to do. Nothing was changed."""
