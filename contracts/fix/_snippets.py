"""References in documents: in Python blocks of Markdown and reStructuredText, and in notebooks' cells.

Only changes that stay within one line are made there: a block may be indented, quoted or behind prompts, and a
notebook's lines are strings.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Iterator

from contracts.fix._document import Document, Edit, Unsaved
from contracts.fix._imports import ImportEditor
from contracts.fix._moves import Moves
from contracts.fix._open import Open
from contracts.fix._uses import Rewriter
from contracts.source._mentions import Module
from contracts.source._snippets import Part, parts

_ANY_LENGTH = 10_000


class Text(Document):
    """A document that is no Python; its edits are kept as those of others are."""

    @staticmethod
    def _detect(content: bytes) -> str:
        return "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"


def rewrite(
    text: Text, moves: Moves, star_has: Callable[[str, str], bool], only: Collection[int] | None = None
) -> list[Open]:
    """Change the references in a document; gives the places that stay as they are.

    Raises:
        SourceError: the document cannot be read.
    """
    open_: list[Open] = []
    for part in parts(text.file):
        snippet = Document(Unsaved(text.file.path, "", "\n".join(part.lines).encode()), None, None)
        editor = ImportEditor(snippet, None, _ANY_LENGTH)
        lines = None if only is None else {n for n, (line, _) in enumerate(part.places, 1) if line in only}
        rewriter = Rewriter(editor, moves, Module(None, None), star_has, lines)
        rewriter.run()
        editor.finish()
        edits = [*_transferred(text, part, snippet)]
        if all(edit is not None for _, edit in edits):
            text.edits += [edit for _, edit in edits if edit is not None]
        else:
            open_.append(
                Open(text.path, part.places[edits[0][0] - 1][0], "names what moved, in a block to change by hand")
            )
        open_ += [Open(text.path, part.places[item.line - 1][0], item.reason) for item in rewriter.open]
    return open_


def _transferred(text: Text, part: Part, snippet: Document) -> Iterator[tuple[int, Edit | None]]:
    """The edits of a part as edits of the whole, each with its line; None for one that cannot be made there."""
    for edit in snippet.edits:
        number = snippet.line_of(edit.start)
        line, shift = part.places[number - 1]
        start = text.line_start(line) + shift + edit.start - snippet.line_start(number)
        end = start + edit.end - edit.start
        replaced = snippet.text[edit.start : edit.end]
        fits = "\n" not in edit.text + replaced and text.text[start:end] == replaced
        yield number, Edit(start, end, edit.text) if fits else None
