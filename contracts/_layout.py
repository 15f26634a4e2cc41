"""Where the contracts of a configuration file stand: sections, options and entries, by line.

Both readers follow the grammar of the format only as far as lines go; what the values mean is import-linter's
business. Nothing here changes a value, so that comments and order are kept when a line is put in or taken out.
"""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass, field

__all__ = ["STRING", "Layout", "Option", "Section", "ini_layout", "toml_layout"]


@dataclass
class Option:
    """An option of a contract. Lines count from 1, ``end`` is the last one; entries are line and text."""

    line: int
    end: int
    entries: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Section:
    """A contract's section; ``end`` is the last line that says something."""

    line: int
    end: int
    options: dict[str, Option] = field(default_factory=dict)


Layout = list[Section]


def ini_layout(text: str) -> Layout:
    """The contracts of an INI file, in its order."""
    sections: Layout = []
    section: Section | None = None
    option: Option | None = None
    indent = 0
    for number, line in enumerate(_lines(text), 1):
        stripped = line.strip()
        if not stripped or stripped[0] in "#;":
            continue
        deeper = len(line) - len(line.lstrip()) > indent
        if option is not None and deeper:
            option.entries.append((number, stripped.replace("%%", "%")))
            option.end = number
        elif header := configparser.RawConfigParser.SECTCRE.match(stripped):
            section, option = None, None
            if header["header"].startswith("importlinter:"):
                section = Section(number, number)
                sections.append(section)
        elif found := configparser.RawConfigParser.OPTCRE.match(stripped):
            indent = len(line) - len(line.lstrip())
            option = Option(number, number)
            if found["value"]:
                option.entries.append((number, found["value"].strip().replace("%%", "%")))
            if section is not None:
                section.options[found["option"].rstrip().lower()] = option
        if section is not None:
            section.end = number
    return sections


_TEXT = re.compile(r"[^ \t\r\n]")
STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'',
    re.DOTALL,
)


def toml_layout(text: str) -> Layout:
    """The contracts of a TOML file, in its order: its tables ``[[tool.importlinter.contracts]]``."""
    import tomllib  # noqa: PLC0415  most configurations are INI

    sections: Layout = []
    section: Section | None = None
    position = 0
    while found := _TEXT.search(text, position):
        position = found.start()
        end, strings = _statement(text, position)
        line, last = text.count("\n", 0, position) + 1, text.count("\n", 0, end) + 1
        statement = text[position:end]
        if statement.startswith("["):
            section = None
            if re.sub(r"[\s\"']", "", statement) == "[[tool.importlinter.contracts]]":
                section = Section(line, line)
                sections.append(section)
        elif not statement.startswith("#") and section is not None:
            key = statement.partition("=")[0].strip().strip("\"'")
            first = statement.index("=") + position
            entries = [
                (text.count("\n", 0, start) + 1, str(tomllib.loads(f"x = {text[start:stop]}")["x"]))
                for start, stop in strings
                if start > first
            ]
            section.options[key] = Option(line, last, entries)
            section.end = last
        position = end
    return sections


def _statement(text: str, position: int) -> tuple[int, list[tuple[int, int]]]:
    """Where the statement at ``position`` ends, and where its strings begin and end."""
    strings: list[tuple[int, int]] = []
    begin, depth = position, 0
    while position < len(text):
        character = text[position]
        if string := STRING.match(text, position):
            strings.append(string.span())
            position = string.end()
        elif character == "#" and not depth and position > begin:
            return position, strings
        elif character == "#":
            end = text.find("\n", position)
            position = len(text) if end < 0 else end
        elif character == "\n" and not depth:
            return position, strings
        else:
            depth += (character in "[{") - (character in "]}")
            position += 1
    return position, strings


def _lines(text: str) -> list[str]:
    # Not str.splitlines, which also ends lines where the formats do not.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
