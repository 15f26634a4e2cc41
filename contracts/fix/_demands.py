"""Which exports contracts demand, and which modules not everyone can import."""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from typing import cast

from importlinter.domain.imports import ModuleExpression

from contracts._base import matching_modules
from contracts.complete_exports import CompleteExportsContract, OptionalModule
from contracts.fix._configured import Configured
from contracts.fix._document import Document
from contracts.source import Index


def demands(configured: Configured, package: str, module: str) -> bool:
    """Whether a contract demands that a package export what a module of it defines."""
    for contract in configured.every:
        if isinstance(contract, CompleteExportsContract):
            expressions = cast("list[ModuleExpression]", contract.packages)
            optional = {item.module for item in cast("list[OptionalModule]", contract.optional_modules)}
            if package in matching_modules("packages", expressions, configured.graph) and module not in optional:
                return True
    return False


def is_listed_as_optional(configured: Configured, module: str) -> bool:
    """Whether a contract says that importing a module needs what not everyone has."""
    return any(
        item.module == module
        for contract in configured.every
        if isinstance(contract, CompleteExportsContract)
        for item in cast("list[OptionalModule]", contract.optional_modules)
    )


def is_vendors(document: Document, index: Index, top: str) -> bool:
    """Whether a module needs, as it is imported, a library that nothing else needs and the project does not require."""
    required = _required(top)
    tops = {root.partition(".")[0] for root in index.tree.roots}
    for statement in document.tree.body:
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            names = [statement.module or ""]
        else:
            continue
        for name in names:
            library = name.partition(".")[0]
            if library in sys.stdlib_module_names or library in tops or library.lower() in required:
                continue
            pattern = re.compile(rb"^(?:import|from)[ \t]+" + re.escape(library.encode()) + rb"\b", re.MULTILINE)
            others = (module for module in index.tree.files if module != document.module)
            if not any(pattern.search(index.survey.text(module).source) for module in others):
                return True
    return False


def _required(top: str) -> set[str]:
    """The packages that a project's own metadata requires, as they are imported, mostly."""
    try:
        with open(os.path.join(top, "pyproject.toml"), "rb") as file:
            listed = tomllib.load(file).get("project", {}).get("dependencies", [])
    except (FileNotFoundError, tomllib.TOMLDecodeError):
        return set()
    return {re.split(r"[^\w.-]", str(text), maxsplit=1)[0].lower().replace("-", "_") for text in listed}
