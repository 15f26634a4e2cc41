"""The Python files of the root packages, as they lie on disk.

Nothing here imports the linted code: packages are located by the path machinery alone, and files are
read as bytes.
"""

from __future__ import annotations

import codecs
import importlib.machinery
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Sequence
from functools import cache, cached_property

from contracts.source._errors import RootNotFoundError, SourceError
from contracts.source._snapshot import Found, Snapshot, digest_of

_ENCODING = "Save it as UTF-8, or name its encoding in a coding comment"
# A coding comment, in either of the two lines where Python heeds one.
_CODING = re.compile(rb"(?:[^\n]*\n)?[ \t\f]*#[^\n]*coding[:=](?![ \t]*[uU][tT][fF]-?8\b)")
_ASCII = bytes(range(128))


class SourceFile:
    """A ``.py`` file under a root package.

    ``module`` is the dotted name under which Python would import it (for an oddly named file, the name
    its path spells); ``size`` is what the file is expected to hold, in bytes.
    """

    __slots__ = ("__dict__", "_content", "is_package", "module", "path", "size")

    def __init__(self, path: str, module: str, is_package: bool, size: int = 1 << 16) -> None:
        self.path = path
        self.module = module
        self.is_package = is_package
        self.size = size
        self._content: bytes | None = None

    @property
    def content(self) -> bytes:
        """The file's bytes, read once.

        Raises:
            SourceError: it cannot be read.
        """
        if self._content is None:  # a cached_property takes a lock, on trees of thousands of files
            self._content = self._read()
        return self._content

    def _read(self) -> bytes:
        try:
            # Unbuffered, and one read where the size is right: open() takes four times as long.
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                content = os.read(descriptor, self.size + 1)
                if len(content) != self.size:
                    chunks = [content]
                    while chunk := os.read(descriptor, 1 << 20):
                        chunks.append(chunk)
                    content = b"".join(chunks)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SourceError(self.path, 1, f"cannot be read: {error.strerror}. Make it readable") from error
        return content

    @cached_property
    def searchable(self) -> bytes:
        """The bytes to search for names: as Python reads names, so NFKC-normalised UTF-8."""
        content = self.content
        if b"\r" in content:
            content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if content.isascii():
            return content
        if _is_plain(content):
            try:
                characters = set(content.translate(None, _ASCII).decode())
            except UnicodeDecodeError:
                return content  # its parse will report the error, if anything in it matters
            if not any(map(_may_respell, characters)):
                return content
        import unicodedata  # noqa: PLC0415  a warm run never gets here

        try:
            text = self.text
        except SourceError:
            return content  # its parse will report the same error, if anything in it matters
        if not unicodedata.is_normalized("NFKC", text):
            text = unicodedata.normalize("NFKC", text)
        return text.encode("utf-8", "surrogatepass")

    @cached_property
    def text(self) -> str:
        """The decoded source, by its byte order mark or coding line.

        Raises:
            SourceError: it cannot be decoded; names the line.
        """
        content = self.content
        try:
            text = content.decode(_encoding(content))
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            reason = f"cannot be decoded: byte 0x{content[error.start]:02x} is not {error.encoding}. {_ENCODING}"
            raise SourceError(self.path, line, reason) from error
        except SyntaxError as error:
            raise SourceError(self.path, 1, f"cannot be decoded: {error.msg}. {_ENCODING}") from error
        return text.replace("\r\n", "\n").replace("\r", "\n")

    @cached_property
    def digest(self) -> str:
        """A content hash: what was learned of these bytes holds wherever and whenever they turn up."""
        return digest_of(self.content)


def _is_plain(content: bytes) -> bool:
    """Whether a source is UTF-8 for want of another word."""
    return not content.startswith(codecs.BOM_UTF8) and _CODING.match(content) is None


def _encoding(content: bytes) -> str:
    """The encoding of a source.

    Raises:
        SyntaxError: it names one that does not exist.
    """
    if _is_plain(content):
        return "utf-8"
    import io  # noqa: PLC0415  most files get here never
    import tokenize  # noqa: PLC0415  see above

    return tokenize.detect_encoding(io.BytesIO(content).readline)[0]


@cache
def _may_respell(character: str) -> bool:
    """Whether Python may read a name that holds this character as one spelled otherwise (NFKC)."""
    import unicodedata  # noqa: PLC0415  a warm run never gets here

    if not f"a{character}".isidentifier():
        return False
    # A mark or a Hangul jamo may merge with what stands before it.
    merges = unicodedata.category(character)[0] == "M" or "\u1100" <= character <= "\u11ff"
    return merges or not unicodedata.is_normalized("NFKC", character)


class Tree:
    """All source files of the root packages, found by one walk.

    Args:
        roots: the root packages, dotted names.

        began: when reading them began, in ns since the epoch; now, unless it is given.

    Raises:
        RootNotFoundError: a root package is nowhere on the path.
    """

    def __init__(self, roots: Sequence[str], began: int | None = None) -> None:
        self.roots = tuple(roots)
        began = began or time.time_ns()
        self._found = [
            found
            for root in self.roots
            for directory in _package_directories(root)
            for found in sorted(_walk(root, directory))
        ]
        self.snapshot = Snapshot(self._found, began, self._contents)

    def _contents(self) -> Iterator[bytes]:
        files = {file.path: file for file in [*self.files.values(), *self.shadowed]}
        return (files[found.path].content for found in self._found)

    @property
    def paths(self) -> frozenset[str]:
        """Where all the files lie."""
        return frozenset(found.path for found in self._found)

    @cached_property
    def files(self) -> dict[str, SourceFile]:
        """The files by module; of two for one module, the one that Python imports."""
        files: dict[str, SourceFile] = {}
        for found in self._found:
            other = files.get(found.module)
            # Python imports the package where a module of the same name lies beside it.
            if other is None or (found.is_package and not other.is_package):
                files[found.module] = SourceFile(found.path, found.module, found.is_package, found.size)
        return files

    @cached_property
    def shadowed(self) -> list[SourceFile]:
        """The files that Python never imports, for a package of the same name."""
        return [
            SourceFile(found.path, found.module, found.is_package, found.size)
            for found in self._found
            if self.files[found.module].path != found.path
        ]


def relative_path(path: str) -> str:
    """``path`` as a reader in the current folder would type it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def module_path(module: str, roots: Sequence[str]) -> str | None:
    """Where the source of a module of the root packages lies; None if it has none."""
    for root in roots:
        if module != root and not module.startswith(f"{root}."):
            continue
        inner = module.removeprefix(root).replace(".", os.sep)
        for directory in _package_directories(root):
            for candidate in (f"{directory}{inner}{os.sep}__init__.py", f"{directory}{inner}.py"):
                if os.path.isfile(candidate):
                    return candidate
    return None


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


def _walk(package: str, directory: str) -> Iterator[Found]:
    pending: list[tuple[str, str, tuple[str, ...]]] = [(package, directory, (directory,))]
    while pending:
        name, folder, above = pending.pop()
        try:
            entries = os.scandir(folder)
        except OSError as error:
            raise SourceError(folder, 1, f"cannot be read: {error.strerror}. Make it readable") from error
        with entries:
            for entry in entries:
                if entry.name.endswith(".py") and not entry.name.startswith(".") and entry.is_file():
                    stem = entry.name[:-3]
                    is_package = stem == "__init__"
                    stat = entry.stat()
                    yield Found(
                        entry.path,
                        name if is_package else f"{name}.{_level(stem)}",
                        is_package,
                        stat.st_size,
                        stat.st_mtime_ns,
                        stat.st_ctime_ns,
                        stat.st_ino,
                    )
                elif not entry.name.startswith(".") and entry.name != "__pycache__" and entry.is_dir():
                    real = above
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if any(f"{one}/".startswith(f"{target}/") for one in above):
                            continue  # it leads back to where it lies
                        real = (*above, target)
                    pending.append((f"{name}.{_level(entry.name)}", entry.path, real))


def _level(name: str) -> str:
    """A file's or folder's name as one level of a dotted name; one with dots is never taken for several."""
    return name.replace(".", "-")
