"""Which parameter of an override takes what a parameter of its base takes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from contracts.source._methods import BY_POSITION, EITHER, NAME, NAMED_REST, POSITION, REST, Parameter

# Is told of a difference: the parameter that it is about, the fact, what the base does, and what to do.
Differ = Callable[[Parameter | None, str, str, str], None]


def match(
    theirs: Sequence[Parameter], ours: Sequence[Parameter], differ: Differ
) -> list[tuple[Parameter, Parameter]]:
    """Pair each of the base's parameters with those of the override that take it.

    ``differ`` is told of those that nothing takes, or that are to be passed in another way, and of what the
    override requires on top.
    """
    _order(theirs, ours, differ)
    pairs = list(_pairs(theirs, ours, differ))
    taken = {item for _, item in pairs}
    for item in ours:
        required = item.default is None and item.kind not in {REST, NAMED_REST}
        if required and item not in taken and not _take_anything(theirs):
            fact, rule = f"requires '{item.name}'", f"takes no '{item.name}'"
            differ(item, fact, rule, "Give it a default, or leave it out.")
    return pairs


def _pairs(
    theirs: Sequence[Parameter], ours: Sequence[Parameter], differ: Differ
) -> Iterator[tuple[Parameter, Parameter]]:
    positional = [item for item in ours if item.kind in BY_POSITION]
    by_name = {item.name: item for item in ours if item.kind in {EITHER, NAME}}
    rest = [item for item in ours if item.kind == REST]
    named_rest = [item for item in ours if item.kind == NAMED_REST]
    place = 0
    for parameter in theirs:
        name = parameter.name
        takers: list[Parameter] = []
        at_place = positional[place : place + 1]
        match parameter.kind:
            case "position":
                place += 1
                takers = at_place or rest
            case "either":
                place += 1
                others = {other.name for other in theirs} - {name}
                elsewhere = any(item.name in others for item in at_place)
                if name in by_name:
                    takers = [by_name[name]]
                elif at_place and not elsewhere:
                    takers = at_place
                elif rest and named_rest:
                    takers = [*rest, *named_rest]
                _how_passed(differ, parameter, takers, place, bool(rest), bool(named_rest))
            case "name":
                takers = [by_name[name]] if name in by_name else named_rest
            case "rest":
                takers = rest
            case _:
                takers = named_rest
        if not takers and not (parameter.kind in {REST, NAMED_REST} and _take_anything(theirs)):
            differ(None, f"takes no '{parameter.written}'", "does", "Add it.")
        yield from ((parameter, taker) for taker in takers)


def _how_passed(
    differ: Differ,
    parameter: Parameter,
    takers: list[Parameter],
    place: int,
    has_rest: bool,
    has_named_rest: bool,
) -> None:
    """Report what can no longer be passed by position, or by name, as the base lets it be."""
    name = parameter.name
    for item in takers:
        must = item.default is None
        if item.kind == NAME and (must or not has_rest):
            fact = f"takes '{name}' by name only"
            differ(item, fact, "takes it by position too", "Let it be passed by position.")
        elif item.kind == POSITION and item.name == name and (must or not has_named_rest):
            fact = f"takes '{name}' by position only"
            differ(item, fact, "takes it by name too", "Let it be passed by name.")
        elif item.kind in BY_POSITION and item.name != name and (
            item.kind == EITHER or must or not has_named_rest
        ):
            fact = f"calls its parameter {place} '{item.name}'"
            differ(item, fact, f"calls it '{name}'", "Rename it: callers may pass it by name.")


def _order(base: Sequence[Parameter], override: Sequence[Parameter], differ: Differ) -> None:
    """Report a changed order of the parameters that both take, or one that is put before them."""
    theirs = [p.name for p in base if p.kind == EITHER]
    ours = [p.name for p in override if p.kind in BY_POSITION]
    common = [name for name in theirs if name in ours]
    kept = [name for name in ours if name in theirs]
    if common != kept:
        fact = f"takes its parameters in the order {', '.join(kept)}"
        differ(None, fact, f"takes them in the order {', '.join(common)}", "Keep the order.")
        return
    extra = len(ours) - len(kept)
    gone = len([p for p in base if p.kind in BY_POSITION]) - len(common)
    for name in ours if extra > gone else ():
        item = next(p for p in override if p.name == name)
        after = [other for other in ours[ours.index(name) + 1 :] if other in theirs]
        if name not in theirs and after and item.default is not None:
            fact, rule = f"takes '{name}' before '{after[0]}'", f"takes no '{name}'"
            differ(item, fact, rule, "Put it behind what the base takes.")


def _take_anything(parameters: Sequence[Parameter]) -> bool:
    """Whether parameters end in ``*args, **kwargs`` of any type, which says that overrides may choose."""
    rest = [p for p in parameters if p.kind in {REST, NAMED_REST}]
    return len(rest) == 2 and all(
        p.annotation is None or ast.unparse(p.annotation).rpartition(".")[2] == "Any" for p in rest
    )
