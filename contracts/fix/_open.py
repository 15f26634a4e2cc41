"""What a refactoring leaves as it is, for somebody to look at."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.fix._document import Document
from contracts.source._scopes import last_name


@dataclass(frozen=True, order=True)
class Open:
    """A place that names something that moved and was left as it is, and why."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.reason}"


def fragile(document: Document) -> list[Open]:
    """The places in a file that may mean something else once the file lies elsewhere."""
    found = []
    for node in document.nodes:
        if isinstance(node, ast.Name) and node.id in {"__file__", "__package__", "__path__"}:
            reason = f"uses {node.id}, which is another one in the new place"
        elif isinstance(node, ast.Call) and last_name(node.func) == "import_module" and _is_relative(node.args[:1]):
            reason = "imports by a relative name, which means another module in the new place"
        else:
            continue
        found.append(Open(document.path, node.lineno, reason))
    return found


def _is_relative(arguments: Sequence[ast.expr]) -> bool:
    return any(isinstance(a, ast.Constant) and isinstance(a.value, str) and a.value.startswith(".") for a in arguments)
