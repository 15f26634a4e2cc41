"""SARIF 2.1.0, as GitHub code scanning and editors read it."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.parse
from collections import Counter
from importlib import metadata
from typing import Any

from contracts.report._workspace import from_repository
from contracts.report.run import Item, Run, Verdict

__all__ = ["MOST_RESULTS", "render"]

# GitHub refuses a run with more:
# https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
MOST_RESULTS = 25_000
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVEL = {"finding": "error", "problem": "error", "warning": "warning"}


def render(run: Run) -> str:
    """The run as a SARIF log: each contract is a rule, each finding, problem and warning a result."""
    rules = _rule_ids(run.verdicts)
    results: list[dict[str, Any]] = []
    for number, verdict in enumerate(run.verdicts):
        seen: Counter[str] = Counter()
        results += [_result(rules[number], number, item, seen) for item in verdict.items]
    notifications = [_notification(failure, "error") for failure in run.failures]
    if len(results) > MOST_RESULTS:
        rest = len(results) - MOST_RESULTS
        notifications.append(_notification(f"{rest} more results are left out: GitHub takes {MOST_RESULTS}", "warning"))
    invocation: dict[str, Any] = {"executionSuccessful": run.exit_code < 2, "exitCode": run.exit_code}
    if notifications:
        invocation["toolExecutionNotifications"] = notifications
    log = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "moe-contracts",
                        "version": metadata.version("moe-contracts"),
                        "rules": [_rule(rules[number], verdict) for number, verdict in enumerate(run.verdicts)],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "originalUriBaseIds": {
                    "SRCROOT": {"description": {"text": "The root of the checkout, or else the folder of the run."}}
                },
                "invocations": [invocation],
                "results": results[:MOST_RESULTS],
                "properties": {"ignored": sum(verdict.ignored for verdict in run.verdicts)},
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _rule_ids(verdicts: list[Verdict]) -> list[str]:
    """The contracts' ids, each once: TOML allows two contracts of one name."""
    seen: Counter[str] = Counter()
    ids = []
    for verdict in verdicts:
        seen[verdict.id] += 1
        ids.append(verdict.id if seen[verdict.id] == 1 else f"{verdict.id} ({seen[verdict.id]})")
    return ids


def _rule(rule_id: str, verdict: Verdict) -> dict[str, Any]:
    text = f"{verdict.name}. A contract of type {verdict.type}."
    if verdict.guidance:
        text += f"\n\n{verdict.guidance}"
    return {
        "id": rule_id,
        "shortDescription": {"text": verdict.name},
        "fullDescription": {"text": text},
        "help": {"text": f"{text}\n\nWhat the type holds: moe-contracts explain {verdict.type}"},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["architecture", verdict.type], "ignored": verdict.ignored},
    }


def _result(rule_id: str, rule: int, item: Item, seen: Counter[str]) -> dict[str, Any]:
    # What it is about, not where: a finding that moves with the lines around it is still the same one.
    about = f"{rule_id}\n{item.kind}\n{item.name or item.message}"
    seen[about] += 1
    digest = hashlib.sha256(about.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    region: dict[str, Any] = {"startLine": item.line}
    if item.column:
        region["startColumn"] = item.column
    return {
        "ruleId": rule_id,
        "ruleIndex": rule,
        "level": _LEVEL[item.kind],
        "message": {"text": item.message},
        "locations": [{"physicalLocation": {"artifactLocation": _artifact(item.path), "region": region}}],
        "partialFingerprints": {"primaryLocationLineHash": f"{digest}:{seen[about]}"},
        "properties": {"kind": item.kind},
    }


def _artifact(path: str) -> dict[str, str]:
    relative = from_repository(path)
    quoted = urllib.parse.quote(relative, errors="surrogateescape")
    if os.path.isabs(path) and relative == path.replace(os.sep, "/"):
        return {"uri": f"file://{quoted}"}
    return {"uri": quoted, "uriBaseId": "SRCROOT"}


def _notification(text: str, level: str) -> dict[str, Any]:
    return {"level": level, "message": {"text": text}}
