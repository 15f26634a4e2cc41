"""The contract types: one row each."""

from __future__ import annotations

__all__ = ["TYPES"]

# A configuration says under contract_types which of these it uses.
TYPES = {
    "complete_exports": "contracts.complete_exports.CompleteExportsContract",
    "forbidden_definitions": "contracts.forbidden_definitions.ForbiddenDefinitionsContract",
    "override_signatures": "contracts.override_signatures.OverrideSignaturesContract",
    "placement": "contracts.placement.PlacementContract",
    "retired_modules": "contracts.retired_modules.RetiredModulesContract",
    "unmutated_inputs": "contracts.unmutated_inputs.UnmutatedInputsContract",
}
