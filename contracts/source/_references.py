"""Where sources name given dotted paths: in imports, in attributes of what they imported, and in strings.

Each file's bytes are searched first: a path cannot be named without its last part, nor, from outside its
parent package, without its parent's. Only what may name one is parsed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from contracts.source._answer import Problem
from contracts.source._candidates import Text, source_of
from contracts.source._errors import SourceError
from contracts.source._mentions import Mention, Module, Paths, mentions
from contracts.source._scopes import defined_at
from contracts.source._snippets import Part, parts
from contracts.source._summary import parse
from contracts.source._tree import SourceFile, relative_path

if TYPE_CHECKING:
    from contracts.source._index import Index


_DOCUMENTS = (".ipynb", ".md", ".rst")
_LONG = 12  # so long an end of a word is as rare as the word
_LAST_WORD = re.compile(rb"\w+$")
# A line of a long import, and an import that does not begin its line.
_LISTED = re.compile(rb"[\w \t,()]*(?:#[^\n]*)?\n?")
_MULTIPLE = re.compile(rb"multiple(?:[\s\\]|#[^\n]*\n)*\(")
_INLINE_IMPORT = re.compile(rb"[;:][ \t]*(?:from|import)\b|\bfrom[.\\]")


class Reference(NamedTuple):
    """A place that names a path.

    ``where`` is the module, or the file's path outside the root packages; ``form`` is "import", "attribute"
    or "string"; ``name`` is all that is named there, and ``path`` which of the given paths that is or lies
    in; ``is_other`` says that the package above binds something else under that very name, so that it is
    not the module of that name that is meant.
    """

    file: str
    line: int
    column: int
    where: str
    form: str
    name: str
    path: str
    is_other: bool


def find_references(
    index: Index, paths: Iterable[str], outside: Iterable[SourceFile]
) -> tuple[list[Reference], list[Problem]]:
    """Every place that names one of the paths or something in it, and the files that could not be read."""
    finder = _Finder(index, Paths(paths))
    for file in [*index.tree.files.values(), *index.tree.shadowed]:
        if finder.may_name(index.survey.text_of(file).source, file):
            finder.look_at(file)
    for file in outside:
        try:
            # Of letters that Python reads as others, those of documents matter little.
            content = file.content
            source = content if content.isascii() or file.path.endswith(_DOCUMENTS) else file.searchable
        except SourceError as error:
            finder.problems.append(Problem.of(error))
        else:
            if finder.may_name(source, file):
                finder.look_at(file)
    finder.problems += [Problem.of(error) for error in index.survey.errors.values()]
    return sorted(set(finder.found)), sorted(set(finder.problems))


def exists(index: Index, path: str) -> str | None:
    """What a dotted path stands for: a "module", a "name" in one, or nothing (None)."""
    files = index.tree.files
    if path in files or any(module.startswith(f"{path}.") for module in files):
        return "module"
    module, _, name = path.rpartition(".")
    names = [name]
    while module and module not in files:
        module, _, name = module.rpartition(".")
        names.insert(0, name)
    if not module:
        return None
    summary = index.summary(module)
    known = {record.qualname for record in summary.classes.values()}
    known |= {record.qualname for record in summary.functions.values()}
    if ".".join(names) in known or (len(names) == 1 and (names[0] in summary.exports)):
        return "name"
    return "name" if index.resolver.export(module, names[0]) and len(names) == 1 else None


class Wanted:
    """A path, as the bytes of a source may name it."""

    def __init__(self, path: str) -> None:
        self.parent, _, last = path.rpartition(".")
        self.last = last.encode()
        self.above = self.parent.rpartition(".")[2].encode()

    def may_be_in(self, text: Text, package: str, *, is_python: bool) -> bool:
        """Whether a source of ``package`` may name the path; says no only if it does not."""
        if self.last not in text.source:
            return False
        inside = package == self.parent or package.startswith(f"{self.parent}.")
        if not inside and not text.has_word(self.above):
            return False
        if not is_python:
            return True
        others: set[bytes] = set()
        return any(
            self._may_be_at(start, text, others, inside=inside) for start in text.occurrences(self.last)
        )

    def _may_be_at(self, start: int, text: Text, others: set[bytes], *, inside: bool) -> bool:
        """Whether the last part of the path, where it stands, may be that of the path.

        ``others`` are names, found before, that are not the parent's.
        """
        source = text.source
        before = source[max(start - 200, 0) : start].rstrip(b" \t\n\\")
        if before.endswith(b"."):
            owner = _LAST_WORD.search(before.rstrip(b". \t\n\\"))
            if before.endswith(b"..") or owner is None or owner[0] == self.above:
                return True
            if owner[0] == b"from":
                return inside
            if owner[0] in others:
                return False
            others.add(owner[0])
            return (
                re.search(rb"\bas[ \t\\]+%b\b|\b%b[ \t]*(?::[^=\n]*)?=" % (owner[0], owner[0]), source)
                is not None
            )
        if before.endswith((b'"', b"'")):
            return True
        for low, high in text.imports:
            if low <= start < high:
                statement = source[low:high]
                relative = inside and source_of(statement).startswith(b".")
                return relative or self.above in statement
        line = source[source.rfind(b"\n", 0, start) + 1 : (source.find(b"\n", start) + 1 or len(source))]
        is_called = source.startswith(b"(", start + len(self.last))
        if (not is_called and _LISTED.fullmatch(line)) or _INLINE_IMPORT.search(source):
            return True
        return any(map(text.brings_all, text.import_statements)) or _MULTIPLE.search(source) is not None


class _Finder:
    def __init__(self, index: Index, paths: Paths) -> None:
        self._index = index
        self._paths = paths
        self._wanted = [Wanted(path) for path in paths]
        self._above = {wanted.above for wanted in self._wanted}
        self._parents = {wanted.parent for wanted in self._wanted}
        # Each search of everything costs; paths by the dozen have few parents.
        lasts = _endings(path.rpartition(".")[2] for path in paths)
        self._are_parents = len(lasts) > 2 * len(self._above)
        self._words = sorted(self._above) if self._are_parents else lasts
        self._folders: dict[str, str] | None = None
        self.found: list[Reference] = []
        self.problems: list[Problem] = []

    def may_name(self, source: bytes, file: SourceFile) -> bool:
        """Whether the source of a file may name one of the paths; next to none does."""
        for word in self._words:
            if word in source:
                return True
        return self._are_parents and self._is_inside(self._package_of(file))

    def _is_inside(self, package: str | None) -> bool:
        return any(f"{package}.".startswith(f"{parent}.") for parent in self._parents)

    def look_at(self, file: SourceFile) -> None:
        """Find what a file names."""
        try:
            is_python = not file.path.endswith(_DOCUMENTS)
            module = file.module or None
            if module is not None:
                text = self._index.survey.text_of(file)
            else:
                text = Text(file.searchable if is_python else file.content)
            package = self._package_of(file)
            if not self._is_inside(package) and not any(above in text.source for above in self._above):
                return
            if not any(wanted.may_be_in(text, package or "", is_python=is_python) for wanted in self._wanted):
                return
            for part in self._parts(file):
                for mention in mentions(
                    part.tree, part.lines, self._paths, Module(module, package), self._star_has
                ):
                    self._add(mention, part, file, module)
        except SourceError as error:
            self.problems.append(Problem.of(error))
        except RecursionError:
            reason = "cannot be analysed: an expression is nested too deeply"
            self.problems.append(Problem(relative_path(file.path), 1, reason))

    def _parts(self, file: SourceFile) -> Sequence[Part]:
        if file.path.endswith(_DOCUMENTS):
            return parts(file)
        known = self._index.tree.files.get(file.module) is file
        tree = self._index.syntax_tree(file.module) if known else parse(file)
        return [Part(tree, file.text.split("\n"), [])]

    def _package_of(self, file: SourceFile) -> str | None:
        """The package that a file's relative imports start from; of a stub, the one in whose folder it lies."""
        if file.module:
            return file.module if file.is_package else file.module.rpartition(".")[0]
        if self._folders is None:
            self._folders = {
                _folder(f.path): f.module for f in self._index.tree.files.values() if f.is_package
            }
        return self._folders.get(_folder(file.path))

    def _star_has(self, module: str, name: str) -> bool:
        return module in self._index.tree.files and self._index.resolver.star_has(module, name)

    def _add(self, mention: Mention, part: Part, file: SourceFile, module: str | None) -> None:
        if module is not None and (module == mention.path or module.startswith(f"{mention.path}.")):
            return  # what lives there speaks of itself
        shown = relative_path(file.path)
        line, column = mention.line, mention.column
        if part.places:
            line, shift = part.places[mention.line - 1]
            column += shift
        is_other = mention.name == mention.path and not mention.is_module and self._binds_other(mention.path)
        self.found.append(
            Reference(
                shown,
                line,
                column,
                module or shown.replace("\\", "/"),
                mention.form,
                mention.name,
                mention.path,
                is_other,
            )
        )

    def _binds_other(self, path: str) -> bool:
        package, _, name = path.rpartition(".")
        file = self._index.tree.files.get(package)
        if file is None or not file.is_package:
            return False
        ref = self._index.summary(package).exports.get(name)
        return ref is not None and ref not in (["f", package, name], ["m", path])


def _endings(words: Iterable[str]) -> list[bytes]:
    """What to search for in place of some words: where several end alike, their common end."""
    found: list[str] = []
    for word in sorted({word[::-1] for word in words}):
        common = os.path.commonprefix([*found[-1:], word])  # noqa: RUF071  of words, not of paths
        if found and len(common) >= _LONG:
            found[-1] = common
        else:
            found.append(word)
    return [word[::-1].encode() for word in found]


def _folder(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[0]


def definition(index: Index, path: str) -> list[tuple[str, int, int]]:
    """Where a dotted path is defined, if it is: as a module, or as a class, function or variable in one.

    Raises:
        SourceError: the module cannot be read.
    """
    files = index.tree.files
    below = sorted(file.path for module, file in files.items() if module.startswith(f"{path}."))
    if path in files or below:
        return [(relative_path(files[path].path if path in files else below[0]), 1, 1)]
    module, _, name = path.rpartition(".")
    while module and module not in files:
        module, _, above = module.rpartition(".")
        name = f"{above}.{name}"
    if not module or not index.survey.text(module).has_word(name.rpartition(".")[2].encode()):
        return []
    file = files[module]
    places = defined_at(parse(file), file.text.split("\n"), name.split("."))
    return [(relative_path(file.path), line, column) for line, column in places]
