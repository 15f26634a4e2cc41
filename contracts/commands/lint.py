"""``moe-contracts lint``: what ``lint-imports`` does."""

from __future__ import annotations

from importlinter.cli import lint_imports_command

command = lint_imports_command
