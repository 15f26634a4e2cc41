"""Runs of the contracts, what they found (``run``), and the formats in which that can be told."""

from contracts.report._lint import contract_class, exit_code, lint, quiet, reason, register

__all__ = ["contract_class", "exit_code", "lint", "quiet", "reason", "register"]
