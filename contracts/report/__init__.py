"""What a run found, and the formats in which it can be told."""

from contracts.report._run import Item, Run, Verdict, account, exit_code, lint, quiet

__all__ = ["Item", "Run", "Verdict", "account", "exit_code", "lint", "quiet"]
