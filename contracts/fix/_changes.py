"""What a refactoring does to files, and how it is shown and made: a unified diff, or all of it at once."""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from contracts._writing import CouldNotError
from contracts.fix._git import git


@dataclass
class Changes:
    """The files that change, by absolute path.

    ``written`` holds the new content of each file that is changed or made; ``renamed`` leads from old paths to new
    ones, whose content, if it changes too, is in ``written`` under the new path; a path that was renamed may be
    written anew. ``before`` is what the files held that were read.
    """

    top: str
    written: dict[str, bytes] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    before: dict[str, bytes] = field(default_factory=dict)
    _kept: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.written or self.renamed)

    def show(self, path: str) -> str:
        """A path as it stands in the diff."""
        return os.path.relpath(path, self.top).replace(os.sep, "/")

    # The diff

    def diff(self) -> bytes:
        """A diff that ``git apply`` takes."""
        origins = {new: old for old, new in self.renamed.items()}
        paths = sorted({*self.written, *origins}, key=self.show)
        return b"".join(part for path in paths for part in self._file(path, origins.get(path)))

    def _file(self, path: str, origin: str | None) -> Iterator[bytes]:
        new = self.written.get(path)
        source = origin or path
        old = self.before.get(source)
        if origin is None and path in self.renamed:
            old = None  # what was there went elsewhere
        if new is None:
            new = old or b""
        if old == new and origin is None:
            return
        a, b = _quoted(f"a/{self.show(source)}"), _quoted(f"b/{self.show(path)}")
        yield b"diff --git %b %b\n" % (a, b)
        if old is None:
            yield b"new file mode 100644\n"
            a = b"/dev/null"
        elif origin is not None:
            ratio = _similarity(old, new)
            yield b"similarity index %d%%\nrename from %b\nrename to %b\n" % (
                ratio,
                _quoted(self.show(source)),
                _quoted(self.show(path)),
            )
        if old != new:
            yield b"--- %b\n+++ %b\n" % (a, b)
            yield from _hunks(old or b"", new)

    # Making the changes

    def make(self, *, with_git: bool) -> None:
        """Make all changes, or none.

        Raises:
            CouldNotError: they cannot be made; all is as it was.
        """
        self._refuse()
        undo = contextlib.ExitStack()
        try:
            temporary = {path: self._stage(path, content, undo) for path, content in self.written.items()}
            for old, new in self.renamed.items():
                self._rename(old, new, with_git=with_git)
                undo.callback(self._rename, new, old, with_git=with_git)
            for path, stored in temporary.items():
                self._put(path, stored, undo)
            added = [path for path in self.written if path not in self.before and path not in self.renamed.values()]
            if with_git and added:
                git(self.top, "add", "--intent-to-add", "--", *added)  # so that `git diff` shows them
        except BaseException as error:
            undo.close()
            if isinstance(error, OSError):
                where = self.show(error.filename) if isinstance(error.filename, str) else self.top
                raise CouldNotError(f"{where} cannot be written: {error.strerror}. Nothing was changed.") from error
            raise
        # All is done; what follows can only leave something behind.
        for kept in self._kept:
            try:
                os.unlink(kept)
            except OSError as error:
                shown = self.show(kept)
                raise CouldNotError(f"All was changed, but {shown} could not be deleted: {error.strerror}.") from error

    def _refuse(self) -> None:
        origins = {*self.renamed.values()}
        for path in sorted({*self.written, *origins}):
            if (path in origins or path not in self.before) and os.path.lexists(path) and path not in self.renamed:
                raise CouldNotError(f"{self.show(path)} exists already. Name another module with --to.")
        for path, content in self.before.items():
            mode = os.stat(path).st_mode
            if not mode & stat.S_IWUSR:
                raise CouldNotError(f"{self.show(path)} is read-only. Make it writable.")
            with open(path, "rb") as file:
                if file.read() != content:
                    raise CouldNotError(f"{self.show(path)} changed meanwhile. Run this again.")

    def _stage(self, path: str, content: bytes, undo: contextlib.ExitStack) -> str:
        """Write what a file will hold beside it, so that all that can fail for want of space fails now."""
        stored = f"{path}.{os.urandom(4).hex()}.tmp"
        undo.callback(_unlink, stored)
        with open(stored, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        source = next((old for old, new in self.renamed.items() if new == path), path)
        if os.path.exists(source):
            os.chmod(stored, stat.S_IMODE(os.stat(source).st_mode))
        return stored

    def _put(self, path: str, stored: str, undo: contextlib.ExitStack) -> None:
        target = os.path.realpath(path)
        if os.path.exists(target):
            kept = f"{stored}.old"
            os.rename(target, kept)
            undo.callback(os.replace, kept, target)
            self._kept.append(kept)
        else:
            undo.callback(_unlink, target)
        os.replace(stored, target)

    def _rename(self, old: str, new: str, *, with_git: bool) -> None:
        if with_git:
            git(self.top, "mv", old, new)
        else:
            os.rename(old, new)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _hunks(old: bytes, new: bytes) -> Iterator[bytes]:
    lines = difflib.unified_diff(_lines(old), _lines(new), n=3)
    for number, line in enumerate(lines):
        if number < 2:
            continue  # the names, which git spells otherwise
        yield line.encode("latin-1")
        if not line.endswith("\n"):
            yield b"\n\\ No newline at end of file\n"


def _lines(content: bytes) -> list[str]:
    # latin-1: each byte is a character, whatever the encoding.
    text = content.decode("latin-1")
    return [f"{line}\n" for line in text.split("\n")[:-1]] + ([text.split("\n")[-1]] if text.split("\n")[-1] else [])


def _similarity(old: bytes, new: bytes) -> int:
    """How alike two contents are, in per cent, by lines, as git counts."""
    if old == new:
        return 100
    lines = _lines(old)
    blocks = difflib.SequenceMatcher(None, lines, _lines(new), autojunk=False).get_matching_blocks()
    same = sum(len(line) for block in blocks for line in lines[block.a : block.a + block.size])
    return min(99, 100 * same // max(len(old), len(new), 1))


def _quoted(path: str) -> bytes:
    """A path as git writes it."""
    raw = path.encode("utf-8", "surrogateescape")
    if all(32 <= byte < 127 and byte not in {34, 92} for byte in raw):
        return raw
    known = {ord('"'): b'\\"', ord("\\"): b"\\\\", 9: b"\\t", 10: b"\\n"}
    return b'"' + b"".join(known.get(c) or (bytes([c]) if 32 <= c < 127 else b"\\%03o" % c) for c in raw) + b'"'
