"""JSON, for programs. ``schema.json`` beside this file describes it."""

from __future__ import annotations

import json
from typing import Any

from contracts.report.run import Item, Run

__all__ = ["SCHEMA_VERSION", "render"]

# Grows when something that was there is gone or means something else; not when something is added.
SCHEMA_VERSION = 1


def render(run: Run) -> str:
    """The run as one JSON object."""
    contracts: list[dict[str, Any]] = [
        {
            "id": verdict.id,
            "name": verdict.name,
            "type": verdict.type,
            "status": verdict.status,
            "configuration_line": verdict.line,
            "findings": [_item(item) for item in verdict.items if item.kind == "finding"],
            "problems": [_item(item) for item in verdict.items if item.kind == "problem"],
            "warnings": [_item(item) for item in verdict.items if item.kind == "warning"],
            "ignored": verdict.ignored,
            "guidance": verdict.guidance,
        }
        for verdict in run.verdicts
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "configuration": run.configuration.path if run.configuration else None,
        "exit_code": run.exit_code,
        "kept": run.count("kept"),
        "broken": run.count("broken"),
        "unchecked": run.count("unchecked"),
        "failures": run.failures,
        "contracts": contracts,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _item(item: Item) -> dict[str, Any]:
    place = {"path": item.path, "line": item.line, "column": item.column or None}
    return place | {"name": item.name or None, "message": item.message}
