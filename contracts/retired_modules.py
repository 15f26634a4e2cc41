"""Paths that were moved or removed stay unused."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from grimp import ImportGraph
from importlinter import fields
from importlinter.domain.contract import InvalidContractOptions

from contracts._base import DefinitionContract, describe, is_under, listed
from contracts._findings import Examination, Finding
from contracts.source import Index, Problem, SourceError, UnknownNameError

if TYPE_CHECKING:
    from contracts.source._outside import OutsideFiles


class Retirement(NamedTuple):
    """A path that is no longer to be used, and where to find what it held; None if nowhere."""

    old: str
    new: str | None


class RetirementField(fields.Field[Retirement]):
    """``old.path -> new.path``, or ``old.path`` alone."""

    def parse(self, raw_data: str | list[str]) -> Retirement:
        """Read one line.

        Raises:
            ValidationError: it is no such line.
        """
        old, arrow, new = (part.strip() for part in str(raw_data).partition("->"))
        for path in (old, new) if arrow else (old,):
            if not path or not all(part.isidentifier() for part in path.split(".")):
                raise fields.ValidationError(
                    f"'{raw_data}' is no retired path: write 'old.path -> new.path', or 'old.path' alone."
                )
        return Retirement(old, new or None)


class RetiredModulesContract(DefinitionContract):
    """Nothing imports a path that was moved or removed, and nothing lives there again.

    A module that moves breaks whoever still imports it by its old path: tests that only some machines run,
    scripts, the examples in the documentation. Often nobody notices before a user does. And a branch that
    was opened before the move may bring the old file back without a conflict.

    Imports count in any form, anywhere: in functions, under ``if`` and ``try``, for type checkers, relative,
    with ``as`` and ``*``. So does a string that is such a path and nothing else, as it stands in
    ``importlib.import_module``, ``mock.patch`` or ``monkeypatch.setattr``, and the use of a retired name as
    an attribute of an imported module. In Markdown and reStructuredText the blocks marked as Python are
    read, and lines after ``>>>``; in notebooks the code cells. Each place is reported once.

    Options:

    - ``retired``: one line for each path, ``old.path -> new.path`` if it moved, ``old.path`` if it is gone; a
      path is that of a module, with all below it, or of a class, a function or a variable in one.
    - ``also_scan``: files, folders and globs beside the root packages, relative to the current folder, in
      which to look, too: tests, scripts, documentation.

    An entry of ``ignore_definitions`` is the retired path for what lives there, and
    ``importer -> retired.path`` for what uses it, where the importer is a module or, outside the root
    packages, a file; the second use by the same importer is ``importer -> retired.path (2)``.

    With ``retired = pkg.mori_prepare_finalize -> pkg.prepare_finalize.mori`` this breaks it::

        from pkg.mori_prepare_finalize import MoriPrepareAndFinalize
    """

    type_name = "retired_modules"

    retired = fields.ListField(subfield=RetirementField())
    also_scan = fields.ListField(subfield=fields.StringField(), required=False, default=[])

    def validate(self) -> None:
        """Refuse rows that contradict each other."""
        rows = cast("list[Retirement]", self.retired)
        if not rows:
            raise InvalidContractOptions({"retired": "Nothing to check: name a path."})
        counts = Counter(row.old for row in rows)
        for row in rows:
            if counts[row.old] > 1:
                wrong = f"'{row.old}' stands there {counts[row.old]} times."
            elif row.new is not None and is_under(row.new, counts):
                wrong = f"'{row.old}' moved to '{row.new}', which is retired, too: name its place of today."
            else:
                continue
            raise InvalidContractOptions({"retired": wrong})

    def examine(self, index: Index, graph: ImportGraph) -> Examination:
        """Find what lives at retired paths, and what still uses them."""
        del graph
        rows = {row.old: row for row in cast("list[Retirement]", self.retired)}
        for old in rows:
            if not is_under(old, index.tree.roots) or old in index.tree.roots:
                raise UnknownNameError(
                    f"retired: '{old}' lies in none of the root packages "
                    f"({listed(index.tree.roots, 'and')}). Correct it, or remove it."
                )
        patterns = cast("list[str]", self.also_scan)
        outside: OutsideFiles | None = None
        if patterns:
            from contracts.source._outside import OutsideFiles  # noqa: PLC0415  most runs scan nothing else

            outside = OutsideFiles("also_scan", patterns, index.tree)
        key = ["retired_modules", *(f"{row.old} {row.new or ''}" for row in rows.values()), "", *patterns]
        living, used, missing, problems = index.remembered(key, lambda: _look(index, rows, outside), outside)
        findings = [Finding(path, line, column, old, _lives(rows[old])) for path, line, column, old in living]
        seen: Counter[str] = Counter()
        for path, line, column, where, form, name, old in used:
            known_as = f"{where} -> {old}"
            seen[known_as] += 1
            number = f" ({seen[known_as]})" if seen[known_as] > 1 else ""
            findings.append(Finding(path, line, column, known_as + number, _uses(form, name, rows[old])))
        return Examination(sorted(findings), [], [*missing, *problems])


def _look(index: Index, rows: dict[str, Retirement], outside: OutsideFiles | None) -> tuple[Any, ...]:
    """What lives at retired paths, what uses them, which new paths are wrong, and what could not be read."""
    from contracts.source._references import definition, exists, find_references  # noqa: PLC0415  parses

    living: list[tuple[str, int, int, str]] = []
    missing: list[str] = []
    problems: list[Problem] = []
    names: set[str] = set()
    for old, new in rows.values():
        try:
            places = definition(index, old)
        except SourceError as error:
            problems.append(Problem.of(error))
            continue
        living += [(*place, old) for place in places]
        kind = exists(index, new) if new is not None and is_under(new, index.tree.roots) else None
        if kind == "name" or old.rpartition(".")[2][:1].isupper():
            names.add(old)
        if new is not None and kind is None and not places and is_under(new, index.tree.roots):
            missing.append(
                f"retired: '{old}' is said to have moved to '{new}', where nothing is. Correct it."
            )
    references, unread = find_references(index, rows, outside.files if outside is not None else ())
    problems += [*unread, *(Problem.of(error) for error in index.errors.values())]
    used = [
        (r.file, r.line, r.column, r.where, r.form, r.name, r.path)
        for r in references
        # A package may well export a function under the name that a module of it had.
        if not r.is_other or r.path in names
    ]
    return living, used, missing, sorted({describe(problem) for problem in problems})


def _lives(row: Retirement) -> str:
    rule = f"it moved to {row.new}" if row.new else "it was removed"
    return f"{row.old} lives here, but that path is retired: {rule}"


def _uses(form: str, name: str, row: Retirement) -> str:
    verb = {"import": "imports", "attribute": "uses", "string": "names in a string"}[form]
    fate = f"moved to {row.new}" if row.new else "was removed"
    return f"{verb} {name}, which {fate}" if name == row.old else f"{verb} {name}, but {row.old} {fate}"
