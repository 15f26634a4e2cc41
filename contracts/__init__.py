"""Contract types for import-linter that keep implementations in their place."""

from contracts.forbidden_definitions import ForbiddenDefinitionsContract
from contracts.override_signatures import OverrideSignaturesContract
from contracts.placement import PlacementContract
from contracts.unmutated_inputs import UnmutatedInputsContract

__all__ = [
    "ForbiddenDefinitionsContract",
    "OverrideSignaturesContract",
    "PlacementContract",
    "UnmutatedInputsContract",
]
