"""What was learned in earlier runs: whole answers for an unchanged tree, and summaries by content.

Two files beside import-linter's own cache. Answers hold for a tree in which no file's size, times or inode
changed; summaries hold for a file's bytes, wherever they lie and whatever their times, so that a cache
restored into a fresh checkout still saves the parsing. Both are written whole to a temporary file and then
renamed, so that processes that run at once never see half of one; the last to finish wins. A file that is
damaged, or written by another version, is as good as none. The format is marshal's, for speed; its check sum
is compared first, since marshal trusts what it reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import sys
from collections.abc import Sequence
from typing import Any

import grimp

from contracts.source._tree import SourceFile, Tree


class Cache:
    """The cache of one set of root packages.

    Args:
        folder: where the files lie; None keeps nothing.
        settings: whatever else the answers depend on.
    """

    def __init__(self, folder: str | None, settings: Sequence[str]) -> None:
        self._folder = folder
        self._settings = list(settings)
        self._fingerprint = ""
        self._settled = False
        self._answers: dict[str, Any] = {}
        self._summaries: dict[str, Any] | None = None
        self._new_summaries = False
        self._digests: dict[str, str] = {}
        self._reader = _reader_version() if folder is not None else ""
        self._key = ""

    def open(self, tree: Tree) -> None:
        """Read what is stored for ``tree``."""
        self._key = _hash(self._reader, *self._settings, *tree.roots, os.getcwd())
        self._fingerprint = tree.fingerprint
        self._settled = tree.settled
        stored = self._load("answers")
        if stored.get("fingerprint") == self._fingerprint and isinstance(stored.get("answers"), dict):
            self._answers = stored["answers"]

    def answer(self, key: Sequence[str]) -> Any:
        """What ``store`` was given for this key and this very tree; None if nothing."""
        return self._answers.get("\n".join(key))

    def store(self, key: Sequence[str], answer: Any) -> None:
        """Keep an answer, and the summaries that led to it."""
        self._answers["\n".join(key)] = answer
        if self._settled:
            self._save("answers", {"fingerprint": self._fingerprint, "answers": self._answers})
        if self._new_summaries and self._summaries is not None:
            self._new_summaries = False
            self._drop_outdated(self._summaries)
            self._save("summaries", self._summaries)

    def summary(self, file: SourceFile, *, deep: bool) -> Any:
        """The stored summary of a file's content; None if there is none."""
        if self._folder is None:
            return None
        if self._summaries is None:
            self._summaries = self._load("summaries")
        return self._summaries.get(_summary_key(file, deep=deep))

    def keep_summary(self, file: SourceFile, summary: Any, *, deep: bool) -> None:
        """Keep a summary for the next ``store``."""
        if self._folder is not None and self._summaries is not None:
            self._summaries[_summary_key(file, deep=deep)] = summary
            self._digests[file.module] = file.digest
            self._new_summaries = True

    def _drop_outdated(self, summaries: dict[str, Any]) -> None:
        """Forget what modules said before they were edited, or the file would grow with every edit."""
        for key in [*summaries]:
            digest, _, rest = key.partition(":")
            module = rest.rpartition(":")[0]
            if self._digests.get(module, digest) != digest:
                del summaries[key]

    def _path(self, kind: str) -> str:
        # Summaries do not depend on where the tree lies, so a restored cache finds them in another folder too.
        key = self._key if kind == "answers" else _hash(self._reader)
        return os.path.join(self._folder or "", f"moe-contracts-{kind}-{key}.cache")

    def _load(self, kind: str) -> dict[str, Any]:
        if self._folder is None:
            return {}
        try:
            with open(self._path(kind), "rb") as file:
                digest, _, body = file.read().partition(b"\n")
        except OSError:
            return {}  # none yet, or none that can be read
        if hashlib.blake2b(body, digest_size=16).hexdigest().encode() != digest:
            return {}
        stored = marshal.loads(body)  # noqa: S302  the check sum says that it is what was written
        return stored if isinstance(stored, dict) else {}

    def _save(self, kind: str, data: dict[str, Any]) -> None:
        if self._folder is None:
            return
        body = marshal.dumps(data)
        digest = hashlib.blake2b(body, digest_size=16).hexdigest().encode()
        path = self._path(kind)
        temporary = f"{path}.{os.urandom(8).hex()}"
        try:
            os.makedirs(self._folder, exist_ok=True)
            with open(temporary, "wb") as file:  # not tempfile's, which nobody else may read
                file.write(digest + b"\n" + body)
            os.replace(temporary, path)
        except OSError:
            # A cache that cannot be written costs time, never a result.
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _summary_key(file: SourceFile, *, deep: bool) -> str:
    # The module's name resolves its relative imports, so it belongs to what was read.
    return f"{file.digest}:{file.module}:{'deep' if deep else 'flat'}"


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _reader_version() -> str:
    """Changes with whatever reads the sources: the text of this code, Python with its grammar, and grimp.

    Not the distribution's version, which two commits share, and not the times of these files, which each
    installation makes anew: a cache restored in CI would never be used.
    """
    here = os.path.dirname(__file__)
    parts = [sys.version.encode(), sys.platform.encode(), grimp.__version__.encode()]
    for folder in (os.path.dirname(here), *sorted(folder for folder, _, _ in os.walk(here))):
        for name in sorted(os.listdir(folder)):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as file:
                    parts += [name.encode(), file.read()]
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()
