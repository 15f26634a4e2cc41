"""Classes above classes: chains of bases, the method resolution order, abstractness."""

from __future__ import annotations

from collections.abc import Collection

from contracts.source._resolve import ClassValue, External, FunctionValue, Resolver, Unknown, Value


class Hierarchy:
    """What a resolver knows, seen as a hierarchy of classes."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def chain(
        self,
        value: ClassValue,
        targets: frozenset[ClassValue],
        seen: dict[ClassValue, tuple[ClassValue, ...] | None],
    ) -> tuple[ClassValue, ...] | None:
        """The bases from the nearest of ``value``'s up to one of ``targets``; None if it is no subclass.

        ``seen`` keeps what was found for these targets before.
        """
        if value not in seen:
            seen[value] = self._shortest(value, targets)
        return seen[value]

    def _shortest(self, value: ClassValue, targets: frozenset[ClassValue]) -> tuple[ClassValue, ...] | None:
        below: dict[ClassValue, ClassValue] = {}
        level = [value]
        while level:
            above: list[ClassValue] = []
            for item in level:
                for options in self._resolver.bases(item):
                    for base in sorted(option for option in options if isinstance(option, ClassValue)):
                        if base in targets:
                            chain = [base]
                            while item != value:
                                chain.append(item)
                                item = below[item]  # noqa: PLW2901  back down to the class
                            return tuple(reversed(chain))
                        if base != value and base not in below:
                            below[base] = item
                            above.append(base)
            level = above
        return None

    def unknowns(self, value: ClassValue) -> set[Unknown]:
        """What is not known about the bases of a class, at any depth."""
        found: set[Unknown] = set()
        stack, seen = [value], {value}
        while stack:
            options = [option for each in self._resolver.bases(stack.pop()) for option in each]
            found |= unknown_among(options)
            for option in options:
                if isinstance(option, ClassValue) and option not in seen:
                    seen.add(option)
                    stack.append(option)
        return found

    def is_abstract(self, value: ClassValue) -> bool:
        """Whether an abstract method is left without implementation, or the class is a Protocol."""
        if any(
            getattr(option, "name", "") in {"typing.Protocol", "typing_extensions.Protocol"}
            for options in self._resolver.bases(value)
            for option in options
        ):
            return True
        order = self._linearize(value, set())
        if not any(self._may_be_abc(ancestor) for ancestor in order):
            return False  # the decorators alone keep nobody from making objects
        settled: set[str] = set()
        for ancestor in order:
            if ancestor is None:
                # A class from elsewhere may implement anything that is abstract further on.
                return False
            record = self._resolver.record(ancestor)
            if any(name not in settled for name in record.abstract):
                return True
            settled |= record.attributes.keys()
        return False

    def _may_be_abc(self, value: ClassValue | None) -> bool:
        """Whether a class has, of its own or from elsewhere, a metaclass that may heed abstract methods."""
        if value is None:
            return True
        record = self._resolver.record(value)
        if record.metaclass is not None:
            metaclasses = self._resolver.values(record.metaclass, value.module, value.frame)
            return any(self._heeds_abstract(metaclass) for metaclass in metaclasses)
        return any(
            isinstance(option, External) and not option.name.startswith("builtins.") and option.name != "typing.Generic"
            for options in self._resolver.bases(value)
            for option in options
        )

    def _heeds_abstract(self, metaclass: Value) -> bool:
        if not isinstance(metaclass, ClassValue):
            return metaclass != External("builtins.type")
        bases = [option for options in self._resolver.bases(metaclass) for option in options]
        return any(self._heeds_abstract(base) for base in bases if base != metaclass)

    def order(self, value: ClassValue) -> list[ClassValue | None]:
        """The method resolution order; None stands for a class that is not known."""
        return self._linearize(value, set())

    def _linearize(self, value: ClassValue, seen: set[ClassValue]) -> list[ClassValue | None]:
        """The method resolution order (C3); None stands for a class that is not known."""
        seen = seen | {value}
        sequences: list[list[ClassValue | None]] = []
        direct: list[ClassValue | None] = []
        for options in self._resolver.bases(value):
            classes = sorted(o for o in options if isinstance(o, ClassValue) and o not in seen)
            if classes:
                sequences.append(self._linearize(classes[0], seen))
                direct.append(classes[0])
            elif any(getattr(o, "name", "") not in _HARMLESS_BASES for o in options):
                sequences.append([None])
                direct.append(None)
        return [value, *_merge_orders([*sequences, direct])]


def unknown_among(bases: Collection[Value]) -> set[Unknown]:
    """What is not known of what may be a base."""
    functions = [base for base in bases if isinstance(base, FunctionValue)]
    made = {Unknown("a function", frozenset({function.module})) for function in functions}
    return made | {base for base in bases if isinstance(base, Unknown)}


_HARMLESS_BASES = frozenset(
    {"abc.ABC", "builtins.object", "typing.Generic", "typing.Protocol", "typing_extensions.Protocol"}
)


def _merge_orders(sequences: list[list[ClassValue | None]]) -> list[ClassValue | None]:
    result: list[ClassValue | None] = []
    remaining = [list(sequence) for sequence in sequences if sequence]
    while remaining:
        for sequence in remaining:
            head = sequence[0]
            if head is None or not any(head in other[1:] for other in remaining):
                break
        else:
            head = remaining[0][0]  # an inconsistent hierarchy, which Python refuses; any order will do
        result.append(head)
        if head is None:
            remaining = [s[1:] if s is sequence else s for s in remaining]
        else:
            remaining = [[item for item in s if item != head] for s in remaining]
        remaining = [sequence for sequence in remaining if sequence]
    return result
