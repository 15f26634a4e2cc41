"""Whether files are those that an earlier run saw: by what the file system says of them, or by what they hold."""

from __future__ import annotations

import hashlib
import marshal
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from contracts.source._errors import SourceError

# A file that changed this recently may change again without its time stamps moving (coarse file systems
# keep time in steps of up to two seconds), so a tree that holds one is never remembered as unchanged.
SETTLED_AFTER_NS = 2_000_000_000
# Before import-linter read the first file, which is before any contract begins.
PROCESS_BEGAN_NS = time.time_ns()


class Found(NamedTuple):
    """A file as the walk finds it; ``size`` to ``inode`` change whenever its content does."""

    path: str
    module: str
    is_package: bool
    size: int
    modified_ns: int
    changed_ns: int
    inode: int


class Snapshot:
    """Some files at one time.

    ``is_settled`` says that all changed long enough ago for ``stamps`` to be trusted, and that none changed
    while the answers about them were being found.

    Args:
        found: the files, in an order that does not depend on the file system.
        began: when their reading began, in ns since the epoch.
        contents: reads them, in that order.
    """

    def __init__(self, found: Sequence[Found], began: int, contents: Callable[[], Iterable[bytes]]) -> None:
        self._found = found
        self._contents = contents
        newest = max((max(item.modified_ns, item.changed_ns) for item in found), default=0)
        self.is_settled = began - newest > SETTLED_AFTER_NS

    @cached_property
    def stamps(self) -> str:
        """A hash of the current folder and every file's path, size, times and inode: equal while none changes."""
        return _hash([os.getcwd(), [tuple(item) for item in self._found]])

    @cached_property
    def sizes(self) -> str:
        """A hash of every file's name and size: where it differs, there is no need to compare the contents.

        The names are those in findings: the module's, and the path as seen from the current folder.
        """
        here = os.path.join(os.getcwd(), "")
        return _hash([(item.path.removeprefix(here), *item[1:4]) for item in self._found])

    @cached_property
    def contents(self) -> str:
        """A hash of every file's content, in order; empty if one cannot be read."""
        digest = hashlib.sha256()
        sizes = []
        try:
            for content in self._contents():
                digest.update(content)
                sizes.append(len(content))
        except SourceError:
            return ""
        digest.update(_plain(sizes))
        return digest.hexdigest()

    def to_plain(self) -> list[str]:
        """What a later run needs in order to recognise the files."""
        return [self.stamps, self.sizes, self.contents]

    def is_unchanged(self) -> bool:
        """Whether the files are now as the walk found them, and so were when their contents were read."""
        for item in self._found:
            try:
                now = os.stat(item.path)
            except OSError:
                return False
            if item[3:] != (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino):
                return False
        return True

    def is_that_of(self, stored: Sequence[str]) -> bool:
        """Whether the files are those of an earlier snapshot, as ``to_plain`` gave it, and where they were."""
        stamps, sizes, contents = stored
        return stamps == self.stamps or (sizes == self.sizes and contents == self.contents != "")


def digest_of(content: bytes) -> str:
    """A hash for the cache: one that processors compute themselves, faster than any other of its strength."""
    return hashlib.sha256(content).hexdigest()


def _hash(described: list[Any]) -> str:
    return digest_of(_plain(described))


def _plain(described: list[Any]) -> bytes:
    # In the last version that writes equal values alike, however often each is in use elsewhere.
    return marshal.dumps(described, 2)
