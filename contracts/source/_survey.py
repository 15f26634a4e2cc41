"""What a look at the bytes of every file tells, taken once for all questions."""

from __future__ import annotations

import re
from functools import cached_property

from contracts.source._candidates import Text
from contracts.source._errors import SourceError
from contracts.source._tree import SourceFile, Tree

_COMPUTED_IMPORTS = (b"import_module", b"__import__", b"sys.modules")


class Survey:
    """The text of a tree.

    ``errors`` are the files, by module, that could not be read; they count as empty.
    """

    def __init__(self, tree: Tree) -> None:
        self._files = tree.files
        self.tops = frozenset(root.partition(".")[0] for root in tree.roots)
        # `import a.b` binds a, and through it everything that anyone imported under it.
        self._binding_top = [
            re.compile(rb"import " + re.escape(top.encode()) + rb"\.[\w.]+[ \t]*(?:[,;#\n]|$)") for top in sorted(self.tops)
        ]
        self._texts: dict[str, Text] = {}
        self._named: dict[tuple[str, bytes], bool] = {}
        self.errors: dict[str, SourceError] = {}

    def text_of(self, file: SourceFile) -> Text:
        """A file's text."""
        if file.path not in self._texts:
            try:
                source = file.searchable
            except SourceError as error:
                self.errors[file.path] = error
                source = b""
            self._texts[file.path] = Text(source)
        return self._texts[file.path]

    def text(self, module: str) -> Text:
        """A module's text."""
        return self.text_of(self._files[module])

    def names(self, module: str, name: bytes) -> bool:
        """Whether a module's text holds the name."""
        key = (module, name)
        if key not in self._named:
            self._named[key] = self.text(module).has_word(name)
        return self._named[key]

    @cached_property
    def roaming(self) -> frozenset[str]:
        """The modules that may reach others that the import graph does not connect them to."""
        return frozenset(module for module in self._files if self._roams(self.text(module).source))

    @cached_property
    def star_importers(self) -> frozenset[str]:
        """The modules that import everything of some other."""
        return frozenset(module for module in self._files if self.text(module).has_star_import())

    @cached_property
    def with_dynamic_bases(self) -> tuple[str, ...]:
        """The modules with a class whose bases are starred or made by a call."""
        return tuple(module for module in self._files if self.text(module).has_dynamic_bases())

    def _roams(self, source: bytes) -> bool:
        if any(word in source for word in _COMPUTED_IMPORTS):
            return True
        return any(pattern.search(source) for pattern in self._binding_top)
