"""What a run found, and the formats in which it can be told."""

from contracts.report._run import (
    Item,
    Run,
    Verdict,
    account,
    contract_class,
    exit_code,
    findings,
    lint,
    quiet,
    reason,
    register,
)

__all__ = [
    "Item",
    "Run",
    "Verdict",
    "account",
    "contract_class",
    "exit_code",
    "findings",
    "lint",
    "quiet",
    "reason",
    "register",
]
