"""A module that cannot be imported without its vendor's library, for a wrong backend to belong to."""

import mori

__all__ = ["mori"]
