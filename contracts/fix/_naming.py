"""What a module is called in its new place."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")


def renamed(module: str, package: str) -> str:
    """A module's own name without what its folder says.

    ``mori_prepare_finalize`` is ``mori`` in ``prepare_finalize``, and ``fast_backend`` is ``fast`` in ``backends``.
    """
    name, folder = module.rpartition(".")[2], package.rpartition(".")[2]
    for said in (folder, folder.removesuffix("s")):
        if not said:
            continue
        for shorter in (name.removesuffix(f"_{said}"), name.removeprefix(f"{said}_")):
            if shorter != name and shorter.isidentifier():
                return shorter
    return name


def for_class(name: str, bases: Sequence[str]) -> str:
    """The name of a module for one class: the class's name less what its bases say.

    ``BatchedPrepareAndFinalize``, a ``FusedMoEPrepareAndFinalizeModular``, goes to ``batched``.
    """
    words = _WORD.findall(name)
    # A base between may be named for the very implementation, so that nothing would be left.
    own = _less(words, bases) or _less(words, bases[-1:]) or words
    return "_".join(own).lower() or name.lower()


def _less(words: Sequence[str], bases: Sequence[str]) -> list[str]:
    said = {word for base in bases for word in _WORD.findall(base.rpartition(".")[2])}
    own = list(words)
    while own and own[-1] in said:
        own.pop()
    while own and own[0] in said:
        own.pop(0)
    return own
