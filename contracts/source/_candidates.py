"""Which files are worth parsing: searches in the bytes, each of which may say yes too often but never no.

Parsing is what costs: a byte search over a whole tree takes about as long as parsing ten of its files.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_" + bytes(range(128, 256)))
NAMES_ONLY = bytes(byte if byte in _WORD else ord(" ") for byte in range(256))
# Of so many names that are looked for in one file, splitting it into names is cheaper than the searches.
_OFTEN = 64
# A pattern that begins with a literal is searched for at memory speed, and one that begins with ^ twenty times
# slower; so what stands before a match is looked at afterwards.
# The line above may end in "class", as in a decorator @dataclass.
_CLASS = re.compile(rb"class[ \t\f\\\n]+(?!class[ \t\f\\\n])([\w\x80-\xff]+|[^\s(:\[]+)")
# A header ends with a line whose colon no comment precedes; one that ends earlier only reads on too far.
_HEADER_END = re.compile(rb"^[^#\n]*:[ \t]*(?:#[^\n]*)?$|^[ \t\f]*class\b[^#\n]*:", re.MULTILINE)
# Starred bases and bases made by a call; brackets in comments do not count.
_DYNAMIC = re.compile(
    rb"class[ \t\f\\\n]+[\w\x80-\xff]+[ \t\f\\\n]*(?:\[.{,300}?\][ \t\f\\\n]*)?"
    rb"\([^)*(#]*(?:#[^\n]*\n[^)*(#]*)*+[*(]", re.DOTALL
)
_ITEM = re.compile(rb"class[ \t]+[\w\x80-\xff]+\([^()\n]*\[[\"']")
# What is not the whole header of a class with names for bases, as nearly all are: only that is looked at closely.
_ODD = re.compile(
    rb"class(?=[ \t\f\\\n])(?![ \t]+[\w\x80-\xff]+(?:\((?:[\w\x80-\xff, \t\n]|\.(?!_)|=[ \t]*(?=\w))*\))?[ \t]*:)"
)
_KIND = re.compile(rb"\n\w+ = type\([\w.]+\)")
# From the keyword to the end of the statement, which goes on in brackets and behind a backslash.
_IMPORT = re.compile(
    rb"import(?![\w\x80-\xff])(?:[ \t\f]|\\\n)*(?:\([^)#]*(?:#[^\n]*\n[^)#]*)*\)|(?:[^\n\\;]|\\.)*+)", re.DOTALL
)
_FROM_CLAUSE = re.compile(rb"(?<![\w\x80-\xff.])from(?![\w\x80-\xff])[\s\w.\\\x80-\xff]*$")
_FROM = re.compile(rb"\s*from(.*?)(?<![\w\x80-\xff])import(?![\w\x80-\xff])", re.DOTALL)
# A call that may make a class inside a function.
_CREATED_LOCALLY = (
    *(re.compile(rb"%b[ \t]*\([^()]*," % function) for function in (b"type", b"new_class", b"make_dataclass")),
    re.compile(rb"partial\(\s*(?:\w+\.)?(?:type|new_class|make_dataclass)\b"),
)
_NO_CALL = re.compile(
    rb"\b(?:isinstance|issubclass|return|raise|in|and|or|not|if|else|yield)$|\b(?:def|class)[ \t]+\w+$"
)
_CREATED = re.compile(rb"(?:type|new_class|make_dataclass)[(,]\s*[rbuRBU]*[\"']([\w\x80-\xff]+)[\"']")
_DOTTED = re.compile(rb"[\w.\x80-\xff]+")
_NAME_BEFORE = re.compile(rb"[\w.]+$")
_WORD_BYTES = frozenset(bytes([byte]) for byte in _WORD)
_CALLABLE_END = _WORD | {ord(")"), ord("]")}
# Brackets; strings and comments, which may hold any, as wholes; what may end a long string that is an argument.
_STRUCTURE = re.compile(
    rb"""[()\[\]{}]|#[^\n]*|(?:"{3}|'{3})(?=[ \t]*[,%.+])|"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+'"""
)
_UNSEEN = -1  # in place of a bracket: there may be one before what looks like a statement, in a long string perhaps
# The bracket that is open innermost, behind those around it.
_Brackets = tuple[()] | tuple["_Brackets", int]
# What begins a line and can only be a statement: no bracket is open before it.
_STATEMENT = re.compile(
    rb"\n(?:[ \t]*(?:assert|async|break|class|continue|def|del|elif|except|finally|global|import|nonlocal|pass|raise"
    rb"|return|try|while)\b|(?<![(\[{,]\n)[^\s#)\]}])"
)
_BLANKS = re.compile(rb"[ \t]*")
_AS = re.compile(rb"[ \t\\\n]+as[ \t\\\n]+([\w\x80-\xff]+)")
_KEPT = re.compile(rb"[ \t]+\w+\.([\w\x80-\xff]+)[ \t]*=[ \t]*(?:[\w.]+\.)?$")
_ABOVE = re.compile(rb"[\w\x80-\xff]+[ \t]*\.[ \t]*")
# A function of one parameter: a method has two.
_GETTER = re.compile(rb"__getattr__\(\s*\w+\s*(?::[^,)]*)?,?\s*\)|__getattr__[ \t]*[,=]")
_TAKING = (
    re.compile(rb"getattr\(\s*(?:[\w.]+\.)?([\w\x80-\xff]+)\s*,"),
    re.compile(rb"vars\(\s*(?:[\w.]+\.)?([\w\x80-\xff]+)\s*\)"),
)
_STAR = re.compile(rb"import[ \t\f\\\n]*\*")
_ANNOTATION = re.compile(rb"(?:^[ \t]*|[(,*][ \t]*)(?:self\.)?\w+[ \t]*:[ \t]*[\"']?(?:[\w.]+\[)*(?:[\w.]+\.)?$")
_BINDS_NOTHING = re.compile(
    rb"^[ \t]*#"  # a comment
    rb"|->[^:=\"']*[\"']?(?:[\w.]+\.)?$"  # a return annotation
    rb"|\b(?:return|raise|except|assert)[ \t(]+(?:[\w.]+\.)?$"  # a call of the function shows as dynamic bases
    rb"|\b(?:isinstance|issubclass)\([^()]*$"
    rb"|^[ \t\f]*class[ \t]"  # a class header is looked at by itself
)


class Import(NamedTuple):
    """Where an import statement begins, where its keyword ``import`` stands, and where it ends."""

    begin: int
    keyword: int
    end: int


class Text:
    """A file's searchable bytes, and what has been found in them."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self._asked = 0
        self._lines_in_functions: dict[int, bool] = {}
        self._open_brackets: dict[int, _Brackets] = {}

    @cached_property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Each class statement's name and the text of its header (or more)."""
        return [(name, header) for name, header, _ in self._headers]

    @cached_property
    def _headers(self) -> list[tuple[bytes, bytes, bool]]:
        """As ``headers``, and whether the statement is indented."""
        source = self.source
        found = []
        for match in _CLASS.finditer(source):
            start = source.rfind(b"\n", 0, match.start()) + 1
            if source[start : match.start()].strip(b" \t\f\\"):
                continue
            line = source.rfind(b"\n", 0, match.end()) + 1
            end = _HEADER_END.search(source, line)
            header = source[match.start() : end.end() if end else len(source)]
            found.append((match[1], header, start < match.start()))
        return found

    @cached_property
    def imports(self) -> list[tuple[int, int]]:
        """Where import statements begin and end."""
        return [(statement.begin, statement.end) for statement in self.import_statements]

    @cached_property
    def import_statements(self) -> list[Import]:
        """All import statements."""
        matches = _IMPORT.finditer(self.source)
        return [found for match in matches if (found := _import_at(self.source, match)) is not None]

    def imports_on(self, line: int, written: bytes) -> list[Import] | None:
        """The import statements that begin on a line, counted from 1, that holds ``written``; None if it does not."""
        source = self.source
        place = source.find(written)
        while place >= 0 and source.count(b"\n", 0, place) != line - 1:
            place = source.find(written, place + 1)
        if place < 0:
            return None
        end = source.find(b"\n", place)
        while end > 0 and source[end - 1] == ord("\\"):
            end = source.find(b"\n", end + 1)
        found = []
        for match in _IMPORT.finditer(source, place):
            if match.start() > end >= 0:
                break
            statement = _import_at(source, match)
            if statement is not None:
                found.append(statement)
        return found

    def names_brought(self, statements: Iterable[Import]) -> set[bytes]:
        """The names that import statements bring, of a dotted one the last part, and their aliases."""
        source = self.source
        brought = [
            source[keyword + 6 : end] if begin < keyword else _ABOVE.sub(b"", source[keyword + 6 : end])
            for begin, keyword, end in statements
        ]
        return {*b" ".join(brought).translate(NAMES_ONLY).split()} - {b"as"}

    def brings_all(self, statement: Import) -> bool:
        """Whether it is ``from ... import *``."""
        return _STAR.match(self.source, statement.keyword) is not None

    def written_modules(self, statement: Import) -> list[str]:
        """The modules, as written, that a statement without ``from`` imports, or that one with it imports from."""
        text = self.source[statement.begin : statement.end]
        words = _DOTTED.findall(text[6:]) if statement.begin == statement.keyword else [source_of(text)]
        return [word.decode("utf-8", "replace") for word in words]

    @cached_property
    def creates_locally(self) -> bool:
        """Whether a class may come to be inside a function."""
        return any(is_indented for _, _, is_indented in self._headers) or any(
            self.source[match.start() - 1 : match.start()] not in _WORD_BYTES
            for pattern in _CREATED_LOCALLY
            for match in pattern.finditer(self.source)
        )

    @cached_property
    def taken_from(self) -> frozenset[bytes]:
        """The last parts of the names of what ``getattr``, ``vars`` or ``__dict__`` takes something from."""
        asked = {match[1] for pattern in _TAKING for match in pattern.finditer(self.source)}
        before = [part[-80:].translate(NAMES_ONLY) for part in self.source.split(b".__dict__")[:-1]]
        return frozenset(asked | {part.split()[-1] for part in before if part.split()})

    def has_word(self, word: bytes) -> bool:
        """Whether ``word`` occurs as a whole name."""
        self._asked += 1
        if self._asked > _OFTEN:
            return word in self.words
        return next(_occurrences(self.source, word), None) is not None

    def has_attribute(self, word: bytes) -> bool:
        """Whether ``word`` occurs behind a dot."""
        befores = (self.source[max(place - 80, 0) : place] for place in self.occurrences(word))
        return any(before.rstrip(b" \t\\\n")[-1:] == b"." for before in befores)

    @cached_property
    def words(self) -> frozenset[bytes]:
        """All names and keywords in it, comments and strings included."""
        return frozenset(self.source.translate(NAMES_ONLY).split())

    def occurrences(self, word: bytes) -> Iterator[int]:
        """Where ``word`` occurs as a whole name."""
        return _occurrences(self.source, word)

    def has_dynamic_bases(self) -> bool:
        """Whether a base may be starred, made by a call (keyword values count too), or an object's class."""
        source = self.source
        for match in _ODD.finditer(source):
            place = match.start()
            line = source.rfind(b"\n", 0, place) + 1
            if source[line:place].strip(b" \t\f\\"):
                continue
            if _DYNAMIC.match(source, place) or _ITEM.match(source, place):
                return True
            end = _HEADER_END.search(source, line)
            if source.find(b".__class__", place, end.end() if end else len(source)) >= 0:
                return True
        return b" = type(" in source and _KIND.search(source) is not None

    def names_in_header(self, word: bytes) -> bool:
        """Whether a class header names ``word``."""
        return any(word in header and next(_occurrences(header, word), None) is not None for _, header in self.headers)

    def import_aliases(self, word: bytes) -> set[bytes]:
        """The names that ``import ... word as name`` gives it."""
        aliases = set()
        for start in _occurrences(self.source, word):
            match = _AS.match(self.source, start + len(word))
            if match and self.in_import(start):
                aliases.add(match[1])
        return aliases

    def kept_as(self, word: bytes) -> set[bytes]:
        """The attributes of some object to which a function assigns it."""
        source = self.source
        found = set()
        for start in _occurrences(source, word):
            match = _KEPT.match(source, source.rfind(b"\n", 0, start) + 1, start)
            if match and source[start + len(word) : start + len(word) + 1] not in {b"(", b"."}:
                found.add(match[1])
        return found

    def in_import(self, place: int) -> bool:
        """Whether an import statement stands at ``place``."""
        position = bisect_right(self.imports, place, key=lambda span: span[0]) - 1
        return position >= 0 and place < self.imports[position][1]

    def defines(self, pattern: re.Pattern[str]) -> bool:
        """Whether a class statement's name, or a string that may name a created class, matches."""
        names = [name for name, _ in self.headers] + [match[1] for match in _CREATED.finditer(self.source)]
        return any(pattern.fullmatch(name.decode("utf-8", "replace")) for name in names)

    def imported_from(self, name: bytes) -> set[str]:
        """The modules, as written, of the import statements that bring ``name``."""
        return {
            module
            for statement in self.import_statements
            if name in self.source[statement.begin : statement.end] and name in self.names_brought([statement])
            for module in self.written_modules(statement)
        }

    def uses(self, word: bytes) -> tuple[bool, set[bytes]]:
        """What the module does with ``word``, at the most, apart from naming it in class headers.

        Returns:
            Whether it gives it another name or keeps it in a container; and the functions, as written,
            to which it is handed (``b"?"`` where a short look does not tell). Imports, annotations,
            ``isinstance`` tests, comments, calls of the class itself and its attributes do not count, nor
            do names local to a function in which no class can come to be.
        """
        source = self.source
        binds = False
        callees: set[bytes] = set()
        for start in _occurrences(source, word):
            end = start + len(word)
            line = source.rfind(b"\n", 0, start) + 1
            before = source[line:start]
            following = source[end : end + 80].lstrip(b" \t")
            if following[:1] in {b"(", b"."} or _BINDS_NOTHING.search(before):
                continue
            if _ANNOTATION.search(before) and _is_annotation(source, start, following):
                continue
            if self.in_import(start):
                continue
            callee = self._callee(line, start)
            if callee is not None:
                callees.add(callee)
            if not binds and (self.creates_locally or not self._in_function(line)):
                binds = True
        return binds, callees

    def _callee(self, line: int, start: int) -> bytes | None:
        """The function in whose call's brackets ``start`` lies, in the line from ``line`` on; None if in none."""
        source = self.source
        begins_statement = line > 0 and _STATEMENT.match(source, line - 1, start)
        around = _brackets(source, line, start, () if begins_statement else self._open_at(line))
        while around:
            around, place = around
            if place == _UNSEEN:
                return b"?"
            head = source[max(place - 80, 0) : place].rstrip(b" \t")
            if source[place] == ord("(") and head and head[-1] in _CALLABLE_END and not _NO_CALL.search(head):
                name = _NAME_BEFORE.search(head)
                return name[0] if name else b"?"
            # A display may itself be an argument.
        return None

    def _open_at(self, line: int) -> _Brackets:
        """The brackets that are open where the line that begins at ``line`` does; looked for once in each line."""
        source, known = self.source, self._open_brackets
        found: _Brackets = ()
        behind = []
        while line > 0 and line not in known:
            end, line = line, source.rfind(b"\n", 0, line - 1) + 1
            behind.append(end)
            if line > 0 and _STATEMENT.match(source, line - 1, end):
                break
        else:
            found = known.get(line, ())
        for end in reversed(behind):
            found = known[end] = _brackets(source, line, end, found)
            line = end
        return found

    def _in_function(self, line: int) -> bool:
        """Whether the line that begins at ``line`` is indented under a ``def``."""
        source, known = self.source, self._lines_in_functions
        indent = _indent(source, line)
        alike = [line]  # what holds for one of them holds for all
        found = False
        while line > 0 and indent > 0:
            line = source.rfind(b"\n", 0, line - 1) + 1
            if source[line : line + 1] == b"\n":
                continue
            here = _indent(source, line)
            if here < indent and source[line + here : line + here + 1] not in {b"#", b")", b"]", b"}", b"\n"}:
                if source.startswith((b"def ", b"async def "), line + here):
                    found = True
                    break
                indent = here
            elif here != indent:
                continue
            if line in known:
                found = known[line]
                break
            alike.append(line)
        known.update(dict.fromkeys(alike, found))
        return found


def _brackets(source: bytes, start: int, end: int, around: _Brackets) -> _Brackets:
    """The brackets that are open at ``end``, given those at ``start``, in the same line or at the end of it."""
    for match in _STRUCTURE.finditer(source, start, end):
        byte = match[0]
        if byte in {b"(", b"[", b"{"}:
            around = (around, match.start())
        elif around and byte in {b")", b"]", b"}"}:
            around = around[0]
        elif byte in {b")", b"]", b"}", b'"""', b"'''"}:
            around = (around, _UNSEEN)
    return around


def gives_by_function(source: bytes) -> bool:
    """Whether a module may give names by a ``__getattr__``, or by that of an object that takes its place."""
    return b"modules[__name__]" in source or (b"__getattr__" in source and _GETTER.search(source) is not None)


def _import_at(source: bytes, match: re.Match[bytes]) -> Import | None:
    """The statement whose keyword is found; None if it is only a word."""
    begin = keyword = match.start()
    line = source.rfind(b"\n", 0, begin) + 1
    while source.endswith(b"\\\n", 0, line):
        line = source.rfind(b"\n", 0, line - 1) + 1
    before = source[line:begin]
    if before[:5] == b"from " and b";" not in before:
        begin = line
    elif before and (clause := _FROM_CLAUSE.search(before)):
        begin = line + clause.start()
    elif before.strip(b" \t\f\\\n")[-1:] not in {b"", b":", b";"}:
        return None
    return Import(begin, keyword, match.end())


def source_of(statement: bytes) -> bytes:
    """What a ``from`` statement imports from, as written and without spaces; empty for another statement."""
    match = _FROM.match(statement)
    return re.sub(rb"[\s\\]+", b"", match[1]) if match else b""


def _occurrences(source: bytes, word: bytes) -> Iterator[int]:
    start = source.find(word)
    while start >= 0:
        end = start + len(word)
        if (start == 0 or source[start - 1] not in _WORD) and (end == len(source) or source[end] not in _WORD):
            yield start
        start = source.find(word, end)


def _indent(source: bytes, line: int) -> int:
    match = _BLANKS.match(source, line)
    return match.end() - line if match else 0


def _is_annotation(source: bytes, start: int, following: bytes) -> bool:
    """Whether ``name: word`` annotates, rather than being an item of a dict."""
    head = source[max(source.rfind(b"def ", 0, start), 0) : start]
    if head.count(b"(") > head.count(b")") and head.count(b"{") <= head.count(b"}"):
        return True
    following = following.lstrip(b"] \t")
    if following[:1] in {b"=", b"|"}:
        return True
    return following[:1] == b"\n" and following.lstrip()[:1] != b"}"
