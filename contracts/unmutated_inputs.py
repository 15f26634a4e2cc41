"""Methods leave the tensors that they are given as they are."""

from __future__ import annotations

from typing import Any, cast

from grimp import ImportGraph
from importlinter import fields

from contracts._base import DefinitionContract, describe, doubt, listed
from contracts._findings import Examination, Finding
from contracts.source import Index, UnknownNameError


class UnmutatedInputsContract(DefinitionContract):
    """No listed method of the base classes and their subclasses writes into a tensor that it is given.

    Whoever calls such a method may go on using what it passed: a shared expert reads the hidden states that
    ``prepare`` was given. A method that scales them in place is right on its own and wrong in company, and no
    type checker sees it.

    A write is a method of a tensor whose name ends in an underscore (but ``requires_grad_``, ``detach_``
    and ``share_memory_``, which change no data), an augmented assignment, an assignment to an item, a
    slice or ``.data``, ``out=``, ``inplace=True``, a function of torch whose name ends in an underscore, and a
    collective operation of ``torch.distributed`` into its output.

    Values are followed in every order in which the statements may run: through names, views, slices, rows,
    tuples, lists, dicts, attributes of objects, comprehensions, closures, functions that the method leaves
    behind, and every function and method of the root packages that is called; a name bound anew holds
    something else from there on. What may be the tensor itself counts as the tensor: ``reshape``,
    ``contiguous`` and ``to`` copy or not, depending on what they are given, and a write that shows for some
    inputs only is the worse one. A copy (``clone``, arithmetic, indexing with a tensor or a list) does not count.
    Of a parameter, its annotation, its base's or its default says whether it is a tensor, holds tensors, or
    neither; without any it counts as one. Changing a list or dict that was passed is no finding, but what is
    written into the tensors in it is.

    Not followed, and no finding: what a function outside of the root packages does to its arguments; objects
    whose class nothing tells; what one call leaves in ``self`` for another one. That two conditions exclude each
    other is seen only where both are written out in constants, ``None`` or classes. A listed method that is
    called is taken at its word: what it writes against the contract is reported where it is defined.

    Options:

    - ``base_classes``: dotted names of classes in the root packages.
    - ``methods``: names, with ``*`` and ``?`` as in file names; all public methods of the base classes, and of the
      classes between, if there are none.
    - ``writable``: one ``method.parameter`` a line for each parameter that a method is meant to write into.

    Findings are ignored by the name ``pkg.module.Class.method.parameter``; a second statement that writes into the
    same parameter is ``pkg.module.Class.method.parameter[2]``.

    An example that breaks it::

        class Backend(Base):
            def prepare(self, a1: Tensor, weights: Tensor) -> Tensor:
                rows = a1.view(-1, a1.shape[-1])
                rows.mul_(weights)  # writes into a1
                return rows
    """

    type_name = "unmutated_inputs"

    base_classes = fields.ListField(subfield=fields.StringField())
    methods = fields.ListField(subfield=fields.StringField(), required=False, default=[])
    writable = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def validate(self) -> None:
        """Refuse a contract that holds of anything."""
        self.require("base_classes")

    def examine(self, index: Index, graph: ImportGraph) -> Examination:
        """Find the statements that write into parameters."""
        bases = cast("list[str]", self.base_classes)
        methods = cast("list[str]", self.methods)
        writable = cast("list[str]", self.writable)
        answer = index.subclasses(bases, graph)
        if not answer.found and not answer.undecided and not answer.problems:
            raise UnknownNameError(
                f"Nothing to check: {listed(bases)} has no subclass in {listed(index.tree.roots)}. "
                "Correct base_classes, or remove the contract."
            )

        def ask() -> Any:
            # A warm run remembers the answer, and does without what would compute it.
            from contracts.source._dataflow.question import mutations  # noqa: PLC0415  see above

            return mutations(index, answer, bases, methods, writable)

        key = ["unmutated_inputs", *sorted(bases), "methods", *sorted(methods), "writable", *sorted(writable)]
        plain = index.remembered(key, ask)
        return Examination(
            [Finding(*item) for item in plain["findings"]],
            sorted(
                [
                    *(Finding(*item) for item in plain["undecided"]),
                    *(doubt(open_, bases, "whose methods leave their tensors alone") for open_ in answer.undecided),
                ]
            ),
            sorted({*plain["problems"], *map(describe, answer.problems)}),
        )
