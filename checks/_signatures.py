"""Compares a backend's overrides with what their base promises: names, order, kinds, defaults, annotations."""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["override_problems"]


def override_problems(backend: type, base: type) -> Iterator[str]:
    """Each way in which ``backend`` takes less, or promises less, than ``base`` does."""
    for name, promised in _members(base):
        found = inspect.getattr_static(backend, name, None)
        if found is None or found is promised:
            continue
        if isinstance(promised, property) != isinstance(found, property):
            kinds = ("a property", "a method")
            is_property = isinstance(promised, property)
            yield f"{name} is {kinds[is_property]}, expected {kinds[not is_property]}"
            continue
        of = _function(found)
        if of is None:
            yield f"{name} is a {type(found).__name__}, expected a function"
            continue
        wanted = _function(promised)
        assert wanted is not None
        yield from _signature_problems(name, of, wanted)


def _members(base: type) -> Iterator[tuple[str, Any]]:
    seen = set()
    for parent in base.__mro__:
        if parent in {object, typing.Generic} or parent.__module__ == "abc":
            continue
        for name, value in vars(parent).items():
            if not name.startswith("_") and name not in seen and _function(value) is not None:
                seen.add(name)
                yield name, value


def _function(member: Any) -> Callable[..., Any] | None:
    if isinstance(member, property):
        return member.fget
    if isinstance(member, (staticmethod, classmethod)):
        return member.__func__
    return member if inspect.isfunction(member) else None


def _signature_problems(name: str, found: Callable[..., Any], base: Callable[..., Any]) -> Iterator[str]:
    ours, theirs = inspect.signature(found), inspect.signature(base)
    mine, promised = list(ours.parameters.values()), list(theirs.parameters.values())
    for index, parameter in enumerate(promised):
        if index >= len(mine) or mine[index].name != parameter.name:
            got = mine[index].name if index < len(mine) else "nothing"
            yield f"{name}: parameter {index} is {got}, expected {parameter.name}"
            return
        if mine[index].kind is not parameter.kind:
            yield f"{name}: {parameter.name} is {mine[index].kind.description}, expected {parameter.kind.description}"
        if parameter.default is not parameter.empty and mine[index].default is parameter.empty:
            yield f"{name}: {parameter.name} has no default, expected {parameter.default!r}"
        elif parameter.default is not parameter.empty and mine[index].default != parameter.default:
            yield f"{name}: {parameter.name} defaults to {mine[index].default!r}, expected {parameter.default!r}"
    for extra in mine[len(promised) :]:
        if extra.default is extra.empty and extra.kind not in {extra.VAR_POSITIONAL, extra.VAR_KEYWORD}:
            yield f"{name}: {extra.name} is a parameter more, without a default"
    yield from _annotation_problems(name, found, base)


def _annotation_problems(name: str, found: Callable[..., Any], base: Callable[..., Any]) -> Iterator[str]:
    ours, theirs = _hints(found), _hints(base)
    for parameter, promised in theirs.items():
        if parameter not in ours:
            if parameter == "return":
                yield f"{name}: there is no return annotation, expected {_name(promised)}"
            elif parameter in inspect.signature(found).parameters:
                yield f"{name}: {parameter} has no annotation, expected {_name(promised)}"
        elif parameter == "return":
            if not _within(ours[parameter], promised):
                yield f"{name}: returns {_name(ours[parameter])}, expected {_name(promised)} or narrower"
        elif not _within(promised, ours[parameter]):
            yield f"{name}: {parameter} takes {_name(ours[parameter])}, expected {_name(promised)} or wider"


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):
        # Names that exist for type checkers only: the annotations as they are written.
        return dict(inspect.get_annotations(function))


def _within(narrow: Any, wide: Any) -> bool:
    """Whether every value of ``narrow`` is one of ``wide``, as far as this can be told."""
    if narrow == wide or Any in {narrow, wide} or isinstance(narrow, str) or isinstance(wide, str):
        return True
    unions = (typing.Union, types.UnionType)
    if typing.get_origin(narrow) in unions:
        return all(_within(one, wide) for one in typing.get_args(narrow))
    if typing.get_origin(wide) in unions:
        return any(_within(narrow, one) for one in typing.get_args(wide))
    origin, wider = typing.get_origin(narrow) or narrow, typing.get_origin(wide) or wide
    if not (isinstance(origin, type) and isinstance(wider, type) and issubclass(origin, wider)):
        return False
    ours, theirs = typing.get_args(narrow), typing.get_args(wide)
    if not ours or not theirs or origin is not tuple:
        return True
    return len(ours) == len(theirs) and all(_within(one, other) for one, other in zip(ours, theirs, strict=True))


def _name(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) and not typing.get_args(annotation) else str(annotation)
