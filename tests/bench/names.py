"""Bases with a common name: what a search for their subclasses costs, and that it is complete."""

from __future__ import annotations

import ast
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grimp

from contracts.source import Answer, Cache, Index
from contracts.source._bases import resolve_bases
from contracts.source._resolve import ClassValue
from contracts.source._tree import Tree


@dataclass
class Row:
    """What one base costs: numbers of classes and modules, and processor seconds."""

    base: str
    found: int
    seeing: int
    parsed: int
    answer: float
    reading: float
    missed: int
    false: int


def common_names(tree: Path, bases: Sequence[str]) -> Iterator[Row]:
    """A row for each base that the tree holds."""
    before, path = Path.cwd(), [*sys.path]
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    try:
        for base in bases:
            root, _, name = base.partition(".")
            module = tree / root / (name.rpartition(".")[0].replace(".", "/") + ".py")
            if module.exists():
                yield _row(base, root)
    finally:
        os.chdir(before)
        sys.path[:] = path


def _row(base: str, root: str) -> Row:
    graph = grimp.build_graph(root, cache_dir=None)
    index = Index([root], Cache(None, []))
    started = time.process_time()
    answer = index.subclasses([base], graph)
    taken = time.process_time() - started
    parsed = len({module for module, _ in index._summaries})
    seeing = _seeing(base, answer, graph)
    started = time.process_time()
    _read(root, seeing)
    reading = time.process_time() - started
    found = {(item.module, f"{item.name}@{item.line}:{item.column}") for item in answer.found}
    everything = _search_everything(base, root)
    return Row(
        base, len(found), len(seeing), parsed, taken, reading, len(everything - found), len(found - everything)
    )


def _seeing(base: str, answer: Answer, graph: grimp.ImportGraph) -> set[str]:
    carriers = {base.rpartition(".")[0], *(item.module for item in answer.found)}
    return carriers.union(*(graph.find_modules_that_directly_import(module) for module in carriers))


def _read(root: str, modules: set[str]) -> None:
    files = Tree([root]).files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules & files.keys():
            ast.parse(files[module].content)


def _search_everything(base: str, root: str) -> set[tuple[str, str]]:
    index = Index([root], Cache(None, []))
    targets = frozenset(resolve_bases(index, [base]))
    chains: dict[ClassValue, tuple[ClassValue, ...] | None] = {}
    return {
        (module, key)
        for module in index.tree.files
        for key in index.summary(module).classes
        if ClassValue(module, key) not in targets
        and index.hierarchy.chain(ClassValue(module, key), targets, chains) is not None
    }
