"""Contract types for import-linter that keep implementations in their place."""

from contracts.forbidden_definitions import ForbiddenDefinitionsContract
from contracts.placement import PlacementContract

__all__ = ["ForbiddenDefinitionsContract", "PlacementContract"]
