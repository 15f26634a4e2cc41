"""Which files are worth parsing: searches in the bytes, each of which may say yes too often but never no.

Parsing is what costs: a byte search over a whole tree takes about as long as parsing ten of its files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_" + bytes(range(128, 256)))
_CLASS = re.compile(rb"^[ \t\f]*class[ \t\f\\\n]+(\w+|[^\s(:\[]+)", re.M)
# A header ends with a line whose colon no comment precedes; one that ends earlier only reads on too far.
_HEADER_END = re.compile(rb"^[^#\n]*:[ \t]*(?:#[^\n]*)?$|^[ \t\f]*class\b[^#\n]*:", re.M)
# Starred bases and bases made by a call. The literal start keeps the search at memory speed.
_DYNAMIC = re.compile(rb"class[ \t\f\\]+\w+[^(\n]*\([^)]*[*(]")
_IMPORT = re.compile(rb"^[ \t\f]*(?:from[ \t][^\n]*?\bimport\b[ \t\\]*(?:\([^)]*\)|[^\n]*)|import[ \t][^\n]*)", re.M)
_STAR_IMPORT = re.compile(rb"import[ \t\\]*\*")
_ANNOTATION = re.compile(rb"(?:^[ \t]*|[(,*][ \t]*)(?:self\.)?\w+[ \t]*:[ \t]*[\"']?(?:[\w.]+\.)?$")
_BINDS_NOTHING = re.compile(
    rb"^[ \t]*#"  # a comment
    rb"|->[ \t]*[\"']?(?:[\w.]+\.)?$"  # a return annotation
    rb"|\b(?:return|raise|except|assert)[ \t(]+(?:[\w.]+\.)?$"  # a call of the function shows as dynamic bases
    rb"|\b(?:isinstance|issubclass)\([^()]*$"
    rb"|^[ \t\f]*class[ \t]"  # a class header is looked at by itself
)


def has_word(source: bytes, word: bytes) -> bool:
    """Whether ``word`` occurs as a whole name."""
    return next(occurrences(source, word), None) is not None


def occurrences(source: bytes, word: bytes) -> Iterator[int]:
    """Where ``word`` occurs as a whole name."""
    start = source.find(word)
    while start >= 0:
        end = start + len(word)
        if (start == 0 or source[start - 1] not in _WORD) and (end == len(source) or source[end] not in _WORD):
            yield start
        start = source.find(word, end)


def class_headers(source: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each class statement's name and the text of its header (or more)."""
    for match in _CLASS.finditer(source):
        line = source.rfind(b"\n", 0, match.end()) + 1
        end = _HEADER_END.search(source, line)
        yield match[1], source[match.start() : end.end() if end else len(source)]


def has_dynamic_bases(source: bytes) -> bool:
    """Whether a class statement has a starred base or one made by a call (keyword values count too)."""
    for match in _DYNAMIC.finditer(source):
        line = source.rfind(b"\n", 0, match.start()) + 1
        if not source[line : match.start()].strip(b" \t\f\\"):
            return True
    return False


def has_star_import(source: bytes) -> bool:
    """Whether the module imports everything of some other."""
    return b"*" in source and _STAR_IMPORT.search(source) is not None


def subclasses_by_name(source: bytes, word: bytes) -> bool:
    """Whether a class header, or a call that may create a class, names ``word``."""
    return any(has_word(header, word) for _, header in class_headers(source))


def import_aliases(source: bytes, word: bytes) -> set[bytes]:
    """The names that ``import ... word as name`` gives it."""
    pattern = re.compile(rb"(?<![\w.])" + re.escape(word) + rb"[ \t\\]+as[ \t\\]+(\w+)")
    return {match[1] for match in pattern.finditer(source)}


def may_rename(source: bytes, word: bytes) -> bool:
    """Whether the module may give ``word`` another name, keep it in a container or hand it to a function.

    Left out are the uses that bind nothing: imports, annotations, ``isinstance`` tests, comments, calls of
    the class itself and attributes of it.
    """
    imports: list[tuple[int, int]] | None = None
    for start in occurrences(source, word):
        end = start + len(word)
        line = source.rfind(b"\n", 0, start) + 1
        before = source[line:start]
        following = source[end : end + 80].lstrip(b" \t")
        if following[:1] in {b"(", b"."} or _BINDS_NOTHING.search(before):
            continue
        if _ANNOTATION.search(before) and _is_annotation(source, start, following):
            continue
        if imports is None:
            imports = [match.span() for match in _IMPORT.finditer(source)]
        if not any(low <= start < high for low, high in imports):
            return True
    return False


def _is_annotation(source: bytes, start: int, following: bytes) -> bool:
    """Whether ``name: word`` annotates, rather than being an item of a dict."""
    head = source[max(source.rfind(b"def ", 0, start), 0) : start]
    if head.count(b"(") > head.count(b")") and head.count(b"{") <= head.count(b"}"):
        return True
    if following[:1] in {b"=", b"|"}:
        return True
    return following[:1] == b"\n" and following.lstrip()[:1] != b"}"


def defines_name(source: bytes, pattern: re.Pattern[bytes]) -> bool:
    """Whether a class statement's name, or a string that may name a created class, matches."""
    if any(pattern.fullmatch(name) for name, _ in class_headers(source)):
        return True
    if b"type(" not in source and b"new_class(" not in source and b"make_dataclass(" not in source:
        return False
    created = re.compile(rb"(?:type|new_class|make_dataclass)\(\s*[rbu]*[\"'](\w+)[\"']")
    return any(pattern.fullmatch(match[1]) for match in created.finditer(source))


def lines_with(source: bytes, words: Iterable[bytes]) -> int:
    """The first line, from 1, that holds one of the words."""
    places = [place for word in words for place in [next(occurrences(source, word), -1)] if place >= 0]
    return source.count(b"\n", 0, min(places)) + 1 if places else 1
