"""What a look at the bytes of every file tells, taken once for all questions."""

from __future__ import annotations

import re
from functools import cached_property

from contracts.source._candidates import Text, gives_by_function
from contracts.source._errors import SourceError
from contracts.source._tree import SourceFile, Tree

_COMPUTED_IMPORTS = (b"import_module", b"__import__")
_CHANGED = re.compile(rb"s\(\)(?:\[|\.update\()")  # the names below end alike
_NAMESPACES = (b"global", b"local", b"var")


class Survey:
    """The text of a tree.

    ``errors`` are the files, by module, that could not be read; they count as empty.
    """

    def __init__(self, tree: Tree) -> None:
        self._files = tree.files
        # `import a.b` and `import c, a.b` bind a, and through it everything that anyone imported under it.
        self._binding_top = [
            (top, re.compile(re.escape(top) + rb"[\w.]+[ \t]*(?:[,;#\n]|$)"))
            for root in sorted({root.partition(".")[0].encode() for root in tree.roots})
            for top in (b"import %b." % root, b", %b." % root)
        ]
        self._texts: dict[str, Text] = {}
        self._holders: dict[bytes, list[tuple[str, bytes]]] = {}
        self.errors: dict[str, SourceError] = {}

    def text_of(self, file: SourceFile) -> Text:
        """A file's text."""
        text = self._texts.get(file.path)
        if text is None:
            try:
                source = file.searchable
            except SourceError as error:
                self.errors[file.path] = error
                source = b""
            text = self._texts[file.path] = Text(source)
        return text

    def text(self, module: str) -> Text:
        """A module's text."""
        return self.text_of(self._files[module])

    def names(self, module: str, name: bytes) -> bool:
        """Whether a module's text holds the name."""
        return self.text(module).has_word(name)

    @cached_property
    def roaming(self) -> frozenset[str]:
        """The modules that may reach others that the import graph does not connect them to."""
        # Searched for what both have in common first, since few files hold even that.
        computing = [
            module for module, source in self._holding(b"import_") if any(word in source for word in _COMPUTED_IMPORTS)
        ]
        computing += [module for module, _ in self._holding(b"sys.modules")]
        for start, pattern in self._binding_top:
            computing += [module for module, source in self._holding(start) if pattern.search(source)]
        return frozenset(computing)

    @cached_property
    def with_dynamic_bases(self) -> tuple[str, ...]:
        """The modules with a class whose bases are starred or made by a call."""
        return tuple(module for module, _ in self._sources if self.text(module).has_dynamic_bases())

    @cached_property
    def lazy(self) -> frozenset[str]:
        """The modules that may give names by a function: a ``__getattr__``, or that of an object in their place."""
        may_give = [*self._holding(b"__getattr__"), *self._holding(b"sys.modules")]
        return frozenset(module for module, source in may_give if gives_by_function(source))

    @cached_property
    def injecting(self) -> frozenset[str]:
        """The modules that may bind names of their own in a way that reading cannot follow."""
        found = [module for module, source in self._holding(b"exec(") if b"\nexec(" in b"\n" + source]
        found += [
            module
            for module, source in self._sources
            for match in _CHANGED.finditer(source)
            if source.endswith(_NAMESPACES, 0, match.start())
        ]
        found += [module for module, source in self._holding(b"sys.modules") if b"setattr(sys.modules" in source]
        return frozenset(found)

    @cached_property
    def _sources(self) -> list[tuple[str, bytes]]:
        return [(module, self.text_of(file).source) for module, file in self._files.items()]

    def _holding(self, word: bytes) -> list[tuple[str, bytes]]:
        """The modules whose source holds ``word``, and their sources."""
        if word not in self._holders:
            self._holders[word] = [(module, source) for module, source in self._sources if word in source]
        return self._holders[word]
