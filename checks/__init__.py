"""Run-time contract checks for prepare/finalize backends of a fused_moe package: vLLM's, ours or anybody's.

A backend's author writes one :class:`Backend` row, and gets every check, every world size and every device. Nothing is
imported before it is asked for, so that a package can still be instrumented.
"""

import importlib
from typing import Any

__all__ = ["Backend", "Layer", "Place", "Vendor", "contract_test"]

_MODULE_OF = {
    "Backend": "checks._rows",
    "Layer": "checks._rows",
    "Place": "checks._rows",
    "Vendor": "checks._rows",
    "contract_test": "checks.plugin",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
