"""Overrides take and give what their bases do."""

from __future__ import annotations

from typing import Any, cast

from grimp import ImportGraph
from importlinter import fields

from contracts._base import DefinitionContract, describe, doubt, listed
from contracts._findings import Examination, Finding
from contracts.source import Index, UnknownNameError


class OverrideSignaturesContract(DefinitionContract):
    """Every override in a subclass of the base classes takes what its base takes, and gives what it gives.

    Whoever holds a base calls its methods by the base's signature: by position, by name, with or without
    what has a default. An override that renames a parameter, drops a default or changes its value, or turns
    a property into a method, works until it is called that way. Type checkers see some of this, in the files
    that they are run on; this sees all subclasses whenever a base changes, and needs nothing installed.

    An override may take more: further parameters with defaults, a default that the base does not have, wider
    parameter types. It may promise more: a narrower return type. Names in annotations are resolved before
    they are compared, so that an alias equals what it names and ``Optional[X]`` equals ``X | None``. Each
    override is compared with every ancestor that defines the method, up to the configured base and its own
    bases; a method that a class takes from a mixin must fit too. What reading cannot tell is listed as
    undecided: what a decorator makes of a method, and whether one class from outside the root packages is
    another's subclass.

    Options:

    - ``base_classes``: dotted names of classes in the root packages.
    - ``methods``: names, with ``*`` and ``?`` as in file names, of which those of private methods match only
      what begins with ``_``. If there are none, all methods and properties of the base classes and of the
      classes between count, but for what makes instances, such as ``__init__``.
    - ``require_annotations``: whether an override annotates what its base annotates; ``True`` by default.

    With ``base_classes = pkg.base.Base`` this breaks it in four ways::

        class Base(ABC):
            @abstractmethod
            def prepare(self, tokens: Tensor, quantize: bool = False) -> Tensor: ...


        class Backend(Base):
            def prepare(self, x, quantize: bool = True):  # renames, changes a default, annotates neither x nor result
                return x
    """

    type_name = "override_signatures"

    base_classes = fields.ListField(subfield=fields.StringField())
    methods = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    require_annotations = fields.BooleanField(required=False, default=True)

    def validate(self) -> None:
        """Refuse a contract that compares nothing."""
        self.require("base_classes")

    def examine(self, index: Index, graph: ImportGraph) -> Examination:
        """Find the overrides that do not keep what their bases promise."""
        bases = cast("list[str]", self.base_classes)
        methods = cast("list[str]", self.methods)
        required = bool(self.require_annotations)
        answer = index.subclasses(bases, graph)
        if not answer.found and not answer.undecided and not answer.problems:
            raise UnknownNameError(
                f"Nothing to check: {listed(bases)} has no subclass in {listed(index.tree.roots)}."
            )

        def compare() -> Any:
            # A warm run remembers the answer, and does without what would compute it.
            from contracts.source._overrides import overrides  # noqa: PLC0415  see above

            return overrides(index, answer, bases, methods, require_annotations=required)

        key = ["override_signatures", *sorted(bases), f"methods {required}", *sorted(methods)]
        compared = index.remembered(key, compare)
        open_ = [doubt(item, bases, "and then its methods must fit") for item in answer.undecided]
        return Examination(
            [Finding(*item) for item in compared["findings"]],
            sorted([*(Finding(*item) for item in compared["undecided"]), *open_]),
            sorted({*compared["problems"], *map(describe, answer.problems)}),
        )
