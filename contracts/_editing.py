"""Editing a list in a configuration file: entries come and go, comments, order and all else stay as they are."""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from contracts._configuration import Configuration
from contracts._layout import STRING, Option
from contracts._writing import CouldNotError

__all__ = ["edit_list", "without_options"]

_COUNT = re.compile(r"\s*# \d+ ignored on \d{4}-\d\d-\d\d\b")


def edit_list(
    configuration: Configuration, contract: int, option: str, removed: Collection[str], added: Sequence[str], day: str
) -> str:
    """The text of a configuration in which a list of a contract has changed, and counts its entries.

    Args:
        configuration: what to change.
        contract: the number of the contract.
        option: the list; it need not be there.
        removed: entries to take out, as they are written.
        added: entries to put in at the end.
        day: today, for the comment that counts.

    Raises:
        CouldNotError: the list is written in a form that cannot be edited line by line.
    """
    layout = configuration.layout
    if layout is None:
        raise CouldNotError(
            f"{configuration.path} writes its contracts in a form that cannot be edited line by line. "
            "Write each as a table of its own: [[tool.importlinter.contracts]]."
        )
    section = layout[contract]
    found = section.options.get(option)
    newline = "\r\n" if "\r\n" in configuration.text else "\n"
    lines = configuration.text.replace("\r\n", "\n").split("\n")
    before = [text for _, text in found.entries] if found else []
    entries = [text for text in before if text not in removed]
    count = f"# {len(entries) + len(added)} ignored on {day}; moe-contracts ignore only ever shortens this list"
    new = [_toml_string(text) + "," if configuration.is_toml else text.replace("%", "%%") for text in added]
    if found is None:
        opening, closing = (f"{option} = [", ["]"]) if configuration.is_toml else (f"{option} =", [])
        block = [opening, f"    {count}", *(f"    {text}" for text in new), *closing]
        lines[section.end : section.end] = block
    elif configuration.is_toml:
        _edit_toml(lines, found, removed, new, count, configuration.path)
    else:
        _edit_ini(lines, found, removed, new, count)
    text = newline.join(lines)
    _verify(configuration, contract, option, [*entries, *added], text)
    return text


def without_options(configuration: Configuration, names: dict[int, Collection[str]]) -> str:
    """The text of a configuration without some options of some contracts, by the contract's number."""
    lines = configuration.text.split("\n")
    layout = configuration.layout or []
    spans = [
        (section.options[name].line, section.options[name].end)
        for number, section in enumerate(layout)
        for name in names.get(number, ())
        if name in section.options
    ]
    for begin, end in sorted(spans, reverse=True):
        del lines[begin - 1 : end]
    return "\n".join(lines)


def _edit_ini(lines: list[str], option: Option, removed: Collection[str], new: list[str], count: str) -> None:
    own = [line for line, _ in option.entries if line != option.line]
    first = lines[own[0] - 1] if own else "    "
    indent = first[: len(first) - len(first.lstrip())]
    end = option.end
    while end < len(lines) and re.match(r"\s+[#;]", lines[end]):
        end += 1  # an indented comment is part of the list
    lines[end:end] = [f"{indent}{text}" for text in new]
    for line, text in reversed(option.entries):
        if line == option.line:
            # Its value begins on the line of the option's name.
            head = lines[line - 1]
            lines[line - 1] = head[: head.rindex(text.replace("%", "%%"))].rstrip()
            if text not in removed:
                lines.insert(line, f"{indent}{text.replace('%', '%%')}")
        elif text in removed:
            del lines[line - 1]
    _put_count(lines, option.line, indent + count)


def _edit_toml(
    lines: list[str], option: Option, removed: Collection[str], new: list[str], count: str, path: str
) -> None:
    if option.line == option.end:
        indent = lines[option.line - 1][: -len(lines[option.line - 1].lstrip())] if lines[option.line - 1] else ""
        name = lines[option.line - 1].partition("=")[0]
        comment = _trailing_comment(lines[option.line - 1])
        kept = [f"{_toml_string(text)}," for _, text in option.entries if text not in removed]
        block = [f"{name}= [", *(f"{indent}    {text}" for text in (count, *kept, *new)), f"{indent}]{comment}"]
        lines[option.line - 1 : option.line] = block
        return
    alone = [re.fullmatch(rf"\s*(?:{STRING.pattern})\s*,?\s*(?:#.*)?", lines[line - 1]) for line, _ in option.entries]
    if not all(alone) or not re.match(r"\s*\]", lines[option.end - 1]):
        raise CouldNotError(
            f"{path}:{option.line} this list cannot be edited line by line. Put each entry, and the closing bracket, "
            "on a line of its own."
        )
    first = lines[option.entries[0][0] - 1] if option.entries else "    "
    indent = first[: len(first) - len(first.lstrip())]
    if new and option.entries:
        last = option.entries[-1][0] - 1
        string = STRING.match(lines[last].lstrip())
        end = len(lines[last]) - len(lines[last].lstrip()) + (string.end() if string else 0)
        if not lines[last][end:].lstrip().startswith(","):
            lines[last] = f"{lines[last][:end]},{lines[last][end:]}"
    lines[option.end - 1 : option.end - 1] = [f"{indent}{text}" for text in new]
    for line, text in reversed(option.entries):
        if text in removed:
            del lines[line - 1]
    _put_count(lines, option.line, indent + count)


def _put_count(lines: list[str], after: int, count: str) -> None:
    """Write the comment that counts below the line of that number, in place of the one that is there."""
    old = after < len(lines) and _COUNT.match(lines[after])
    lines[after : after + bool(old)] = [count]


def _trailing_comment(line: str) -> str:
    """The comment behind the value on a line of TOML."""
    bare = STRING.sub(lambda match: " " * len(match[0]), line)
    return f"  {line[bare.index('#') :]}" if "#" in bare else ""


def _toml_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _verify(configuration: Configuration, contract: int, option: str, entries: list[str], text: str) -> None:
    """Make sure that the new text means what the old one meant, but for the list.

    Raises:
        CouldNotError: it does not.
    """
    old, new = _meaning(configuration, configuration.text), _meaning(configuration, text)
    written = new[contract].pop(option, None)
    old[contract].pop(option, None)
    lines = written.split("\n") if isinstance(written, str) else written or []
    if old != new or [line for line in lines if line.strip()] != entries:
        where = configuration.line(contract, option)
        raise CouldNotError(f"{configuration.path}:{where} this list cannot be edited safely. Edit it by hand.")


def _meaning(configuration: Configuration, text: str) -> list[dict[str, Any]]:
    """What a configuration's text says, the contracts first and all else behind them."""
    if configuration.is_toml:
        import tomllib  # noqa: PLC0415  most configurations are INI

        data = tomllib.loads(text)
        contracts = data["tool"]["importlinter"].pop("contracts")
        return [*contracts, data]
    parser = configparser.ConfigParser()
    parser.read_string(text)
    sections = {name: dict(parser[name]) for name in parser.sections()}
    contracts = [sections.pop(name) for name in parser.sections() if name.startswith("importlinter:")]
    return [*contracts, {"rest": sections}]
