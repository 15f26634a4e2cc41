"""The Python files of the root packages, as they lie on disk.

Nothing here imports the linted code: packages are located by the path machinery alone, and files are
read as bytes.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import io
import os
import time
import tokenize
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from contracts.source._errors import RootNotFoundError, SourceError

# A file that changed this recently may change again without its time stamps moving (coarse file systems
# keep time in steps of up to two seconds), so a tree that holds one is never remembered as unchanged.
_SETTLED_AFTER_NS = 2_000_000_000


@dataclass(slots=True)
class SourceFile:
    """A ``.py`` file under a root package.

    ``module`` is the dotted name under which Python would import it (for an oddly named file, the name
    its path spells); ``signature`` is (size, mtime, ctime, inode), times in nanoseconds.
    """

    module: str
    path: str
    is_package: bool
    signature: tuple[int, int, int, int]
    _content: bytes | None = field(default=None, repr=False)
    _searchable: bytes | None = field(default=None, repr=False)
    _digest: str | None = field(default=None, repr=False)

    @property
    def content(self) -> bytes:
        """The file's bytes, read once.

        Raises:
            SourceError: it cannot be read.
        """
        if self._content is None:
            try:
                # Unbuffered: three system calls a file instead of five, on trees of thousands of files.
                descriptor = os.open(self.path, os.O_RDONLY)
                try:
                    chunks = []
                    while chunk := os.read(descriptor, 1 << 24):
                        chunks.append(chunk)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise SourceError(self.path, 1, f"cannot be read: {error.strerror}") from error
            self._content = b"".join(chunks)
        return self._content

    @property
    def searchable(self) -> bytes:
        """The bytes to search for ASCII names: as Python reads names, so NFKC-normalised UTF-8."""
        if self._searchable is None:
            content = self.content
            if b"\r" in content:
                content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if not content.isascii():
                try:
                    text = self.text
                except SourceError:
                    # Its parse will report the same error, if anything in it matters.
                    pass
                else:
                    if not unicodedata.is_normalized("NFKC", text):
                        text = unicodedata.normalize("NFKC", text)
                    content = text.encode("utf-8", "surrogatepass")
            self._searchable = content
        return self._searchable

    @property
    def text(self) -> str:
        """The decoded source, by its byte order mark or coding line.

        Raises:
            SourceError: it cannot be decoded; names the line.
        """
        content = self.content
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            reason = f"byte 0x{content[error.start]:02x} is not {error.encoding}"
            raise SourceError(self.path, line, f"cannot be decoded: {reason}") from error
        except SyntaxError as error:
            raise SourceError(self.path, 1, f"cannot be decoded: {error.msg}") from error
        return text.replace("\r\n", "\n").replace("\r", "\n")

    @property
    def digest(self) -> str:
        """A content hash: what was learned of these bytes holds wherever and whenever they turn up."""
        if self._digest is None:
            self._digest = hashlib.blake2b(self.content, digest_size=16).hexdigest()
        return self._digest


class Tree:
    """All source files of the root packages, found by one walk.

    Args:
        roots: the root packages, dotted names.

    Raises:
        RootNotFoundError: a root package is nowhere on the path.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = tuple(roots)
        started = time.time_ns()
        self.files: dict[str, SourceFile] = {}
        self.shadowed: list[tuple[SourceFile, SourceFile]] = []
        for root in self.roots:
            for directory in _package_directories(root):
                for file in _walk(root, directory):
                    self._add(file)
        newest = max((max(file.signature[1:3]) for file in self.files.values()), default=0)
        self.settled = started - newest > _SETTLED_AFTER_NS

    def _add(self, file: SourceFile) -> None:
        other = self.files.get(file.module)
        if other is None or other.path == file.path:
            self.files[file.module] = file
            return
        # Python imports the package where a module of the same name lies beside it.
        winner, loser = (file, other) if file.is_package and not other.is_package else (other, file)
        self.files[file.module] = winner
        self.shadowed.append((loser, winner))

    def fingerprint(self) -> str:
        """A hash of every file's path and signature: equal only while no file changed."""
        lines = [f"{file.path}\0{file.signature}" for file in self.files.values()]
        lines += [f"{file.path}\0{file.signature}" for file, _ in self.shadowed]
        return hashlib.blake2b("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def relative_path(path: str) -> str:
    """``path`` as a reader in the current folder would type it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def is_importable(name: str) -> bool:
    """Whether Python would find the top-level package ``name``, found without importing anything."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:
        return False


def _package_directories(root: str) -> list[str]:
    top, *rest = root.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError as error:
        raise RootNotFoundError(root) from error
    name = top
    for part in rest:
        # importlib.util.find_spec would import the parent of a dotted name; the path finder does not.
        if spec is None or spec.submodule_search_locations is None:
            break
        name = f"{name}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or spec.submodule_search_locations is None:
        raise RootNotFoundError(root)
    return [os.path.realpath(location) for location in spec.submodule_search_locations]


def _walk(package: str, directory: str) -> Iterator[SourceFile]:
    pending = [(package, directory)]
    followed: set[str] = set()
    while pending:
        name, folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".py") and not entry.name.startswith(".") and entry.is_file():
                    stem = entry.name[:-3]
                    is_package = stem == "__init__"
                    stat = entry.stat()
                    yield SourceFile(
                        module=name if is_package else f"{name}.{stem}",
                        path=entry.path,
                        is_package=is_package,
                        signature=(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino),
                    )
                elif "." not in entry.name and entry.name != "__pycache__" and entry.is_dir():
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if target in followed or directory.startswith(target):
                            continue
                        followed.add(target)
                    pending.append((f"{name}.{entry.name}", entry.path))
