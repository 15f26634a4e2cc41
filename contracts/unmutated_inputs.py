"""Methods leave the tensors that they are given as they are."""

from __future__ import annotations

from typing import Any, cast

from grimp import ImportGraph
from importlinter import fields

from contracts._base import DefinitionContract, describe, doubt, listed
from contracts._findings import Examination, Finding
from contracts.source import Index, UnknownNameError


class UnmutatedInputsContract(DefinitionContract):
    """No method of a subclass writes into a tensor that it was given.
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
            raise UnknownNameError(f"Nothing to check: {listed(bases)} has no subclass in {listed(index.tree.roots)}.")

        def ask() -> Any:
            # A warm run remembers the answer, and does without what would compute it.
            from contracts.source._dataflow.question import mutations  # noqa: PLC0415  see above

            return mutations(index, answer, bases, methods, writable)

        key = ["unmutated_inputs", *sorted(bases), "methods", *sorted(methods), "writable", *sorted(writable)]
        plain = index.remembered(key, ask)
        rule = "whose methods leave their tensors as they are"
        undecided = [
            *(Finding(*item) for item in plain["undecided"]),
            *(doubt(open_, bases, rule) for open_ in answer.undecided),
        ]
        problems = sorted({*plain["problems"], *map(describe, answer.problems)})
        return Examination([Finding(*item) for item in plain["findings"]], sorted(undecided), problems)
