"""A module's source without the function bodies that define nothing, so that it parses several times faster.

Most of a file is function bodies, and a body in which no class can come to be says nothing about classes. Lines
and columns stay as they are. Only what is certain to be a whole body is left out: where the text leaves doubt it is
kept, and where a bracket or an indent misleads, what remains does not parse, and the caller takes the whole text.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

_DEF = re.compile(r"def[ \t\\]")
_QUOTED = r""""(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+'"""
_PARENTHESES = rf"\((?:[^()#\"']|#[^\n]*+|{_QUOTED})*+\)"
for _ in range(3):  # parentheses in parentheses, as deep as parameters' defaults go
    _PARENTHESES = rf"\((?:[^()#\"']|#[^\n]*+|{_QUOTED}|{_PARENTHESES})*+\)"
# From behind ``def`` to behind the colon, where the body begins on the next line.
_HEADER = re.compile(rf"\s*\w+\s*{_PARENTHESES}(?:[^:#\"']|{_QUOTED})*+:(?=[ \t]*(?:#[^\n]*)?\n)")
# Code of a line up to a comment or a string in triple quotes.
_CODE = re.compile(
    r"""(?:[^#"'\\]|\\.|(?!\"{3})"(?:[^"\\\n]|\\.)*+"|(?!'{3})'(?:[^'\\\n]|\\.)*+')*+""", re.DOTALL
)
_CONTINUED_STRING = re.compile(r"[\"'][^\n]*\\\n")
# What begins a statement, or a call, by which a function may create a class or rebind a name outside it.
_STATEMENTS = tuple(re.compile(rf"{word}\b") for word in ("class", "global", "nonlocal"))
# With one name in the brackets, type() only asks.
_CALLS = (
    *(re.compile(rf"{word}[ \t]*\((?!\s*[\w.]+\s*\))") for word in ("type", "new_class", "make_dataclass")),
    re.compile(r"partial\(\s*(?:\w+\.)?(?:type|new_class|make_dataclass)\b"),
)
_OUTDENTED: dict[int, re.Pattern[str]] = {}


def places_of_interest(text: str) -> list[int]:
    """Where, ascending, a function may create a class or rebind a global; the rest need not be looked into."""
    places = []
    for pattern in _STATEMENTS:
        for match in pattern.finditer(text):
            place = match.start()
            if not text[text.rfind("\n", 0, place) + 1 : place].strip(" \t\f\\"):
                places.append(place)
    for pattern in _CALLS:
        for match in pattern.finditer(text):
            place = match.start()
            if not place or not (text[place - 1].isalnum() or text[place - 1] == "_"):
                places.append(place)
    places.sort()
    return places


def outline(text: str, interest: list[int]) -> str:
    """``text`` with ``...`` for each function body that holds no place of interest.

    Args:
        text: a module's source.
        interest: what ``places_of_interest`` says of it.
    """
    strings = _long_strings(text)
    if strings is None:
        return text
    starts, ends = strings
    pieces: list[str] = []
    done = 0
    for match in _DEF.finditer(text):
        place = match.start()
        if place < done or _is_inside(place, starts, ends):
            continue
        line = text.rfind("\n", 0, place) + 1
        before = text[line:place]
        indent = len(before) - len(before.lstrip(" "))
        if before[indent:].rstrip() not in {"", "async"}:
            continue
        header = _HEADER.match(text, match.end() - 1)
        if header is None:
            continue
        head = header.end()
        end = _end_of_body(text, text.index("\n", head), indent, starts, ends)
        first = bisect_left(interest, head)
        if first < len(interest) and interest[first] < end:
            continue
        pieces += [text[done:head], " ...", "\n" * text.count("\n", head, end)]
        done = end
    pieces.append(text[done:])
    return "".join(pieces)


def _long_strings(text: str) -> tuple[list[int], list[int]] | None:
    """Where strings in triple quotes begin and end; None if that is not certain."""
    starts: list[int] = []
    ends: list[int] = []
    quotes = {'"""': text.find('"""'), "'''": text.find("'''")}
    place = 0
    while True:
        for quote, at in quotes.items():
            if 0 <= at < place:
                quotes[quote] = text.find(quote, place)
        here = min((at for at in quotes.values() if at >= 0), default=-1)
        gap = len(text) if here < 0 else here
        if text.find("\\\n", place, gap) >= 0 and _CONTINUED_STRING.search(text, place, gap):
            return None
        if here < 0:
            return starts, ends
        code = max(text.rfind("\n", 0, here) + 1, place)
        before = _CODE.match(text, code, here + 3)
        reached = before.end() if before else code
        if reached < here:
            if text[reached] != "#":
                return None
            place = text.find("\n", here)
            if place < 0:
                return starts, ends
            continue
        quote = text[here : here + 3]
        end = text.find(quote, here + 3)
        while end >= 0 and _is_escaped(text, end):
            end = text.find(quote, end + 1)
        if end < 0:
            return None
        place = end + 3
        starts.append(here)
        ends.append(place)


def _is_escaped(text: str, place: int) -> bool:
    backslashes = 0
    while text[place - 1 - backslashes] == "\\":
        backslashes += 1
    return backslashes % 2 == 1


def _is_inside(place: int, starts: list[int], ends: list[int]) -> bool:
    position = bisect_right(starts, place) - 1
    return position >= 0 and place < ends[position]


def _end_of_body(text: str, start: int, indent: int, starts: list[int], ends: list[int]) -> int:
    """The start of the first line behind ``start`` that is indented no deeper than ``indent``."""
    pattern = _OUTDENTED.get(indent)
    if pattern is None:
        pattern = _OUTDENTED[indent] = re.compile(rf"\n {{0,{indent}}}[^ \n#)\]}}]")
    while match := pattern.search(text, start):
        if not _is_inside(match.start(), starts, ends):
            return match.start() + 1
        start = ends[bisect_right(starts, match.start()) - 1] - 1
    return len(text)
