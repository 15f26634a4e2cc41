"""Files beside the root packages that a contract also reads: tests, scripts, documentation."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from contracts.source._errors import UnknownNameError
from contracts.source._snapshot import Found, Snapshot
from contracts.source._tree import SourceFile, Tree, relative_path

SUFFIXES = (".py", ".pyi", ".ipynb", ".md", ".rst")

_SKIPPED = frozenset({"__pycache__", "node_modules"})


class OutsideFiles:
    """The files that some patterns match, without those of the root packages.

    Folders are searched at any depth for Python files, stubs, notebooks, Markdown and reStructuredText;
    hidden folders and virtual environments are left out. A file that is named is read whatever its name,
    as Python if it has no suffix.

    Args:
        option: what the patterns are called in a message.
        patterns: files, folders and globs, relative to the current folder.
        tree: the root packages.

    Raises:
        UnknownNameError: a pattern matches nothing that can be read.
    """

    def __init__(self, option: str, patterns: Sequence[str], tree: Tree) -> None:
        began = time.time_ns()
        found: dict[str, Found] = {}
        for pattern in patterns:
            matches = {item.path: item for item in _matches(option, pattern)}
            if not matches:
                raise UnknownNameError(
                    f"{option}: '{pattern}' matches no file of a kind that can be read "
                    f"({', '.join(SUFFIXES)}). Correct it, or remove it."
                )
            found |= matches
        for path in found.keys() & tree.paths:
            del found[path]
        self._found = [found[path] for path in sorted(found)]
        self.snapshot = Snapshot(self._found, began, lambda: (file.content for file in self.files))

    @cached_property
    def files(self) -> list[SourceFile]:
        """The files, by path; ``module`` is empty."""
        return [SourceFile(item.path, "", is_package=False, size=item.size) for item in self._found]


def _matches(option: str, pattern: str) -> Iterable[Found]:
    is_glob = glob.has_magic(pattern)
    for path in glob.iglob(pattern, recursive=True) if is_glob else [pattern]:
        if os.path.isdir(path):
            if is_glob and os.path.basename(path) in _SKIPPED:
                continue
            yield from _walk(os.path.realpath(path))
        elif os.path.isfile(path):
            suffix = os.path.splitext(path)[1]
            if suffix in SUFFIXES or (not suffix and not is_glob):
                yield _describe(os.path.realpath(path), os.stat(path))
            elif not is_glob:
                raise UnknownNameError(
                    f"{option}: '{relative_path(path)}' cannot be read: it is none of {', '.join(SUFFIXES)}."
                )


def _walk(directory: str) -> Iterator[Found]:
    pending = [directory]
    while pending:
        folders = []
        files = []
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                name = entry.name
                if name == "pyvenv.cfg":
                    break
                if name.startswith("."):
                    continue
                if name.endswith(SUFFIXES):
                    if entry.is_file():
                        files.append(_describe(entry.path, entry.stat()))
                elif name not in _SKIPPED and entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
            else:
                yield from files
                pending += folders


def _describe(path: str, stat: os.stat_result) -> Found:
    return Found(path, "", False, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
