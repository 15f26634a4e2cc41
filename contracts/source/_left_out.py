"""Python files that the import graph does not hold."""

from __future__ import annotations

from collections.abc import Iterable

from contracts.source._tree import SourceFile, relative_path


def why_left_out(file: SourceFile, modules: Iterable[str]) -> str:
    """Why the import graph does not hold a file, and what to do."""
    stem = file.path.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
    if not stem.isidentifier():
        return "the import graph leaves it out: its name is no Python identifier. Rename it"
    if file.module in modules:
        return "Python never imports it: a package of the same name lies beside it. Remove one of them"
    folder = relative_path(file.path).replace("\\", "/").rpartition("/")[0]
    return f"the import graph leaves it out: a folder above it has no __init__.py. Add {folder}/__init__.py"
