"""What moves where, as dotted paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Moves:
    """Old paths and new ones.

    ``modules`` are modules that move whole, with all in them; ``names`` are dotted names of classes, functions and
    variables. ``copied`` are names that a module imported for a class that left it and now are imported where that
    class is: what patches them there by a string means that place; None where both places import them, so that
    reading cannot tell which is meant.
    """

    modules: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    copied: dict[str, str | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.modules or self.names)

    @property
    def paths(self) -> set[str]:
        """All old paths."""
        return {*self.modules, *self.names, *self.copied}

    def old(self, name: str) -> str | None:
        """The old path that a dotted name is, or lies in."""
        for path in upwards(name):
            if path in self.modules or path in self.names:
                return path
        return None

    def new(self, name: str) -> str:
        """Where something is now; unmoved names are where they were."""
        old = self.old(name)
        if old is None:
            return name
        return (self.names.get(old) or self.modules[old]) + name[len(old) :]

    def leaving(self, module: str) -> dict[str, str]:
        """The names that leave a module that stays, and their new paths."""
        found = {}
        for old, new in self.names.items():
            parent, _, name = old.rpartition(".")
            if parent == module:
                found[name] = new
        return found


def upwards(name: str) -> Iterator[str]:
    """A dotted name, and all in which it lies, from the longest to the shortest."""
    while name:
        yield name
        name = name.rpartition(".")[0]
