"""Which refs of a module hold a name: looked through once for all names, since a search asks for hundreds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from contracts.source._summary import Ref, Summary

# Refs that stand for something only running could tell, or that hold it.
_DYNAMIC_REFS = frozenset({"k", "x", "p", "i", "e", "w", "l"})


class Occurrences:
    """Where the names in a module's refs stand.

    Each table is by name: ``classes`` holds the keys of the classes with it in their bases, ``exports`` the
    names that are bound to something with it, ``attributes`` such attributes of classes as (key, name), and
    ``patches`` and ``calls`` the places in the summary's lists.

    Args:
        summary: what the module says.
    """

    def __init__(self, summary: Summary) -> None:
        self.classes = _by_name((key, record.bases) for key, record in summary.classes.items())
        self.exports = _by_name((name, ref) for name, ref in summary.exports.items() if ref[0] != "d")
        self.attributes = _by_name(
            ((key, name), ref)
            for key, record in summary.classes.items()
            for name, ref in record.attributes.items()
            if ref[0] != "d"
        )
        self.patches = _by_name((place, patch[2]) for place, patch in enumerate(summary.patches))
        self.calls = _by_name((place, [*call[2], *call[3].values()]) for place, call in enumerate(summary.calls))


def _by_name(items: Iterable[tuple[Any, Ref]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for item, ref in items:
        for name in {*names_in(ref)}:
            found[name].append(item)
    return dict(found)


def names_in(ref: object) -> Iterator[str]:
    """The strings in a ref, names among them; of a class, its own name."""
    pending = [ref]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            if len(item) == 2 and item[0] == "c":
                yield str(item[1]).partition("@")[0].rpartition(".")[2]
            else:
                pending += item
        elif isinstance(item, dict):
            pending += item.values()


def all_of(table: dict[str, list[Any]], names: Iterable[str]) -> list[Any]:
    """What a table holds for any of some names, once each."""
    return [*dict.fromkeys(item for name in names for item in table.get(name, ()))]


def is_dynamic(ref: Ref | list[Ref]) -> bool:
    """Whether a ref, or one of several, stands for something that no name tells."""
    if isinstance(ref, list):
        if ref and isinstance(ref[0], str) and (ref[0] in _DYNAMIC_REFS or (ref[0] == "s" and isinstance(ref[2], str))):
            return True
        return any(is_dynamic(item) for item in ref)
    return ref == "__class__"
