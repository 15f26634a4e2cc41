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
    folders = relative_path(file.path).replace("\\", "/").split("/")[:-1]
    levels = (file.module if file.is_package else file.module.rpartition(".")[0]).split(".")
    for depth in range(1, len(levels) + 1):
        folder = "/".join(folders[: len(folders) - len(levels) + depth])
        if not levels[depth - 1].isidentifier():
            return f"the import graph leaves it out: the name of {folder} is no Python identifier. Rename it"
        if ".".join(levels[:depth]) not in modules:
            break
    return f"the import graph leaves it out: {folder} has no __init__.py. Add {folder}/__init__.py"
