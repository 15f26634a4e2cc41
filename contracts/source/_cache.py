"""What was learned in earlier runs: whole answers for an unchanged tree, and summaries by content.

Two files beside import-linter's own cache. Answers hold for a tree in which no file's size, times or inode
changed; summaries hold for a file's bytes, wherever they lie and whatever their times, so that a cache
restored into a fresh checkout still saves the parsing. Both are written whole to a temporary file and then
renamed, so that processes that run at once never see half of one; the last to finish wins. A file that is
damaged, or written by another version, is as good as none. The format is marshal's, for speed; its check sum
is compared first, since marshal trusts what it reads.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
from collections.abc import Sequence
from typing import Any

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
        self._key = ""

    def open(self, tree: Tree) -> None:
        """Read what is stored for ``tree``."""
        self._key = _hash(_reader_version(), *self._settings, *tree.roots, os.getcwd())
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
        if self._new_summaries:
            self._new_summaries = False
            self._save("summaries", self._summaries or {})

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
            self._new_summaries = True

    def _path(self, kind: str) -> str:
        # Summaries do not depend on where the tree lies, so a restored cache finds them in another folder too.
        key = self._key if kind == "answers" else _hash(_reader_version())
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
        import tempfile  # noqa: PLC0415  a warm run never gets here

        body = marshal.dumps(data)
        digest = hashlib.blake2b(body, digest_size=16).hexdigest().encode()
        temporary = None
        try:
            os.makedirs(self._folder, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix="moe-contracts-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(digest + b"\n" + body)
            os.replace(temporary, self._path(kind))
        except OSError:
            # A cache that cannot be written costs time, never a result.
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)


def _summary_key(file: SourceFile, *, deep: bool) -> str:
    # The module's name resolves its relative imports, so it belongs to what was read.
    return f"{file.digest}:{file.module}:{'deep' if deep else 'flat'}"


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _reader_version() -> str:
    """Changes with whatever reads the sources: this package's files, and Python with its grammar."""
    with os.scandir(os.path.dirname(__file__)) as entries:
        stats = [(entry.name, entry.stat()) for entry in entries if entry.name.endswith(".py")]
    return "\n".join([sys.version, *sorted(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)])
