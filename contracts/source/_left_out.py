"""Python files that the import graph does not hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from grimp import ImportGraph

from contracts.source._answer import Problem
from contracts.source._errors import SourceError
from contracts.source._tree import SourceFile, relative_path

if TYPE_CHECKING:
    from contracts.source._index import Index
    from contracts.source._kinds import ClassValue


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


def left_out_subclasses(
    index: Index, graph: ImportGraph, names: Collection[bytes], is_ours: Callable[[ClassValue], bool]
) -> Iterator[Problem]:
    """The subclasses in files that the import graph does not hold, and those of the files that cannot be read.

    Args:
        index: whose files they are.
        graph: the import graph.
        names: by which some class asked about may be named.
        is_ours: whether a class is one asked about, or a subclass.
    """
    from contracts.source._kinds import ClassValue  # noqa: PLC0415  a warm run never gets here
    from contracts.source._occurrences import is_dynamic, names_in  # noqa: PLC0415  see above

    for file in index.left_out(graph):
        text = index.survey.text_of(file)
        held = [name for name in names if text.has_word(name)]
        if not any(text.names_in_header(name) or any(text.uses(name)) for name in held):
            continue
        try:
            summary = index.summarize_file(file)
        except SourceError as error:
            yield Problem.of(error)
            continue
        for key, record in summary.classes.items():
            named = {*names_in(record.bases)} & {name.decode() for name in held}
            is_shadowed = index.tree.files.get(file.module) is not file
            if (named or is_dynamic(record.bases)) and (is_shadowed or is_ours(ClassValue(file.module, key))):
                reason = f"defines {record.qualname}, but {why_left_out(file, graph.modules)}"
                yield Problem(relative_path(file.path), record.line, reason)
