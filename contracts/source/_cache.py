"""What was learned in earlier runs: whole answers for an unchanged tree, and summaries by content.

Two files beside import-linter's own cache. Answers hold for files of which none changed, as their sizes, times
and inodes tell, or else what they hold; summaries hold for a file's bytes, wherever they lie. So a cache
restored into a fresh checkout, where every time is new, saves the parsing, and where no content changed the
searching, too. Both are written whole to a temporary file and then renamed, so that processes that run at once
never see half of one; the last to finish wins. A file that is damaged, or written by another version, is as
good as none. The format is marshal's, for speed; its check sum is compared first, since marshal trusts what
it reads.
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

from contracts.source._snapshot import Snapshot, digest_of
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
        self._snapshot: Snapshot | None = None
        self._stored: list[str] = []
        self._answers: dict[str, Any] = {}
        self._summaries: dict[str, bytes] | None = None
        self._new_summaries = False
        self._digests: dict[str, str] = {}
        self._reader = _reader_version() if folder is not None else ""
        self._key = ""

    def open(self, tree: Tree) -> None:
        """Read what is stored for ``tree``."""
        # Not the current folder: a checkout may lie elsewhere today, and what is stored says what it is about.
        self._key = _hash(self._reader, *self._settings, *tree.roots)
        self._snapshot = tree.snapshot
        stored = self._load("answers")
        if "tree" in stored and self._snapshot.is_that_of(stored["tree"]):
            self._stored = stored["tree"]
            self._answers = stored["answers"]
            self._renew(self._stored, self._snapshot)

    def answer(self, key: Sequence[str], outside: Snapshot | None = None) -> Any:
        """What ``store`` was given for this key, this very tree, and these files beside it; None if nothing."""
        answer, beside = self._answers.get("\n".join(key), (None, None))
        if outside is not None and answer is not None:
            if beside is None or not outside.is_that_of(beside):
                return None
            self._renew(beside, outside)
        return answer

    def store(self, key: Sequence[str], answer: Any, outside: Snapshot | None = None) -> None:
        """Keep an answer, and the summaries that led to it."""
        beside = outside.to_plain() if outside is not None and outside.is_settled and self._is_kept else None
        self._answers["\n".join(key)] = (answer, beside)
        self._save_answers()
        if self._new_summaries and self._summaries is not None:
            self._new_summaries = False
            self._drop_outdated(self._summaries)
            self._save("summaries", self._summaries)

    def _renew(self, stored: list[str], snapshot: Snapshot) -> None:
        """Have the next run recognise by their stamps what this one recognised by its contents."""
        if stored[0] != snapshot.stamps and snapshot.is_settled:
            stored[:2] = snapshot.stamps, snapshot.sizes
            self._save_answers()

    def _save_answers(self) -> None:
        if self._is_kept and self._snapshot is not None:
            if not self._stored:
                self._stored = self._snapshot.to_plain()
                if not self._snapshot.is_unchanged():
                    self._stored[2] = ""  # the import graph, from which the answers come, too, may hold other contents
            self._save("answers", {"tree": self._stored, "answers": self._answers})

    @property
    def _is_kept(self) -> bool:
        """Whether there will be answers in the next run."""
        return self._folder is not None and self._snapshot is not None and self._snapshot.is_settled

    def summary(self, file: SourceFile, *, deep: bool) -> Any:
        """The stored summary of a file's content; None if there is none."""
        if self._folder is None:
            return None
        if self._summaries is None:
            self._summaries = self._load("summaries")
        stored = self._summaries.get(_summary_key(file, deep=deep))
        return marshal.loads(stored) if stored is not None else None  # noqa: S302  its check sum was compared

    def keep_summary(self, file: SourceFile, summary: Any, *, deep: bool) -> None:
        """Keep a summary for the next ``store``."""
        if self._folder is not None and self._summaries is not None:
            self._summaries[_summary_key(file, deep=deep)] = marshal.dumps(summary)
            self._digests[file.module] = file.digest
            self._new_summaries = True

    def _drop_outdated(self, summaries: dict[str, bytes]) -> None:
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
        if digest_of(body).encode() != digest:
            return {}
        stored = marshal.loads(body)  # noqa: S302  the check sum says that it is what was written
        return stored if isinstance(stored, dict) else {}

    def _save(self, kind: str, data: dict[str, Any]) -> None:
        if self._folder is None:
            return
        body = marshal.dumps(data)
        digest = digest_of(body).encode()
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
    # The module's name, and whether it is a package, resolve its relative imports, so they belong to what was read.
    kind = "package" if file.is_package else "module"
    return f"{file.digest}:{file.module}:{kind} {'deep' if deep else 'flat'}"


def _hash(*parts: str) -> str:
    return digest_of("\0".join(parts).encode("utf-8", "surrogateescape"))[:16]


def _reader_version() -> str:
    """Changes with whatever reads the sources: the text of this code, Python with its grammar, and grimp.

    Not the distribution's version, which two commits share, and not the times of these files, which each
    installation makes anew: a cache restored in CI would never be used.
    """
    here = os.path.dirname(__file__)
    digest = hashlib.sha256(f"{sys.version} {sys.platform} {grimp.__version__}".encode())
    for folder in (os.path.dirname(here), *sorted(folder for folder, _, _ in os.walk(here))):
        for name in sorted(os.listdir(folder)):
            if name.endswith(".py"):
                descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
                try:
                    digest.update(name.encode())
                    while chunk := os.read(descriptor, 1 << 20):
                        digest.update(chunk)
                finally:
                    os.close(descriptor)
    return digest.hexdigest()
