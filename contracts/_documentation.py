"""What the docstring of a contract type says, by its parts."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from dataclasses import dataclass

from importlinter import fields

from contracts._base import DefinitionContract
from contracts._types import TYPES

__all__ = ["Documentation", "document", "shared_options", "table"]


# A paragraph that says "breaks it" and ends in "::", and the indented block behind it.
_EXAMPLE = re.compile(
    r"^[^\n]*(?:\n[^\n]+)*breaks it(?:[^\n]|\n(?!\n))*::\n\n(?:[ ]+[^\n]+\n?|\n)+",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Documentation:
    """The parts of a type's docstring.

    ``holds`` is its first line, ``text`` why that matters and how it is meant, ``options`` what each option is
    for, ``example`` what breaks it, with its introduction.
    """

    name: str
    path: str
    holds: str
    text: str
    options: dict[str, str]
    example: str


def document(name: str) -> Documentation:
    """The documentation of a contract type.

    Raises:
        ValueError: its docstring lacks one of the parts.
    """
    module, _, attribute = TYPES[name].rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    docstring = inspect.cleandoc(kind.__doc__ or "")
    holds, _, rest = docstring.partition("\n\n")
    example = _EXAMPLE.search(rest)
    if example is not None:
        rest = rest[: example.start()] + rest[example.end() :]
    before, found, after = rest.partition("Options:\n\n")
    options, text_after = _options(after)
    text = "\n\n".join(part.strip() for part in (before, text_after) if part.strip())
    documentation = Documentation(name, TYPES[name], holds, text, options, example[0].strip() if example else "")
    lacking = [
        part
        for part, there in (
            ("a first line that says what it holds, of one sentence", holds.endswith(".") and "\n" not in holds),
            ("why that matters", before.strip()),
            ("'Options:'", found),
            ("an example, in a block behind a sentence with 'breaks it::'", example),
            *((f"the option '{option}'", option in options) for option in _own_options(kind)),
        )
        if not there
    ]
    if lacking:
        raise ValueError(f"The docstring of {TYPES[name]} lacks {', '.join(lacking)}.")
    return documentation


def shared_options() -> dict[str, str]:
    """The options that every type has."""
    return _options(inspect.cleandoc(DefinitionContract.__doc__ or "").partition(":\n\n")[2])[0]


def table() -> str:
    """The types as a table in Markdown, from the first lines of their docstrings."""
    rows = [f"| `{name}` | {_cell(document(name).holds)} |" for name in sorted(TYPES)]
    return "\n".join(["| type | holds when |", "|---|---|", *rows]) + "\n"


def _own_options(kind: type[DefinitionContract]) -> list[str]:
    shared = {name for name in dir(DefinitionContract) if isinstance(getattr(DefinitionContract, name), fields.Field)}
    return [name for name in dir(kind) if isinstance(getattr(kind, name), fields.Field) and name not in shared]


def _options(text: str) -> tuple[dict[str, str], str]:
    """The items of a list of options, and what comes after it."""
    listing = re.match(r"(?:- [^\n]*\n?(?:[ ]+[^\n]*\n?)*)+", text)
    if listing is None:
        return {}, text
    items = re.split(r"^- ", listing[0], flags=re.MULTILINE)[1:]
    options = {}
    for item in items:
        name, _, said = textwrap.dedent(item).partition(":")
        options[name.strip("`")] = " ".join(said.split())
    return options, text[listing.end() :]


def _cell(text: str) -> str:
    text = text.removesuffix(".").replace("``", "`")
    return text[:1].lower() + text[1:]
