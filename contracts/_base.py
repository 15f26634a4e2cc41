"""What the contract types share: their common options, the index they read, and the printing."""

from __future__ import annotations

import abc
import importlib.machinery
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import click
from grimp import ImportGraph
from grimp.exceptions import InvalidModuleExpression
from importlinter import Contract, ContractCheck, fields
from importlinter.application import output
from importlinter.application.app_config import settings
from importlinter.application.contract_utils import AlertLevel
from importlinter.domain.contract import InvalidContractOptions
from importlinter.domain.imports import ModuleExpression

from contracts._findings import Examination, Finding
from contracts._ignores import Detail, Ignore, IgnoreField, expired
from contracts.source import (
    Cache,
    ClassDefinition,
    Index,
    Problem,
    RootNotFoundError,
    SourceError,
    UndecidedClass,
    UnknownNameError,
)


class DefinitionContract(Contract):
    """A contract about definitions, rather than imports.

    Every subclass has these options beside its own:

    - ``ignore_definitions``: dotted names whose findings do not count. An entry may say why, and the last day
      on which it counts: ``pkg.old.Class  # until 2027-03-01: moves with the next release``.
    - ``required_in_ignore_definitions``: what each entry must say: ``reason``, ``until`` or both; neither by
      default.
    - ``unmatched_ignore_definitions_alerting``: what to do about an ignored name that matches no finding:
      ``error`` (default), ``warn`` or ``none``.
    - ``undecided_alerting``: what to do about a class whose bases reading cannot tell: ``warn`` (default),
      ``error`` or ``none``.
    - ``broken_contract_guidance``: text printed under the findings.
    """

    type_name: ClassVar[str]

    ignore_definitions = fields.SetField(subfield=IgnoreField(), required=False, default=set())
    required_in_ignore_definitions = fields.SetField(subfield=fields.EnumField(Detail), required=False, default=set())
    unmatched_ignore_definitions_alerting = fields.EnumField(AlertLevel, default=AlertLevel.ERROR)
    undecided_alerting = fields.EnumField(AlertLevel, default=AlertLevel.WARN)
    broken_contract_guidance = fields.TextField(required=False)

    @abc.abstractmethod
    def examine(self, index: Index, graph: ImportGraph) -> Examination:
        """Find what breaks the contract.

        Raises:
            UnknownNameError, SourceError: the contract could not be checked.
        """

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Examine the tree, and set aside what is ignored."""
        del verbose
        try:
            examination = self.examine(index_of(self.session_options), graph)
        except SourceError as error:
            examination = Examination([], [], [describe(Problem.of(error))])
        except (RootNotFoundError, UnknownNameError) as error:
            examination = Examination([], [], [str(error)])
        ignored = self._set_aside(examination)
        warnings = self._alerts(examination, ignored)
        if ignored:
            # import-linter has a count for ignored imports only, and these are none.
            self.name = f"{self.name} ({len(ignored)} ignored)"
        if warnings:
            output.console.soft_wrap = True  # a wrapped path:line cannot be clicked or searched for
        return ContractCheck(
            kept=not examination.findings and not examination.problems,
            metadata={
                "findings": examination.findings,
                "undecided": examination.undecided,
                "problems": examination.problems,
                "ignored": ignored,
                "warnings": warnings,
            },
            warnings=[_escape(warning) for warning in warnings],
        )

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print the findings, one a line."""
        for problem in check.metadata["problems"]:
            _print(problem)
        for finding in check.metadata["findings"]:
            _print(str(finding))
        guidance = cast("str | None", self.broken_contract_guidance)
        if guidance:
            _print("")
            _print(guidance, style=None)
        _print("")

    def _set_aside(self, examination: Examination) -> list[Finding]:
        entries = cast("set[Ignore]", self.ignore_definitions)
        everything = [*examination.findings, *examination.undecided]
        for name in sorted({entry.name for entry in entries}):
            places = sorted({(f.path, f.line, f.column) for f in everything if f.name == name})
            if len(places) > 1:
                where = ", ".join(f"{path}:{line}" for path, line, _ in places)
                examination.problems.append(
                    f"ignore_definitions: '{name}' names {len(places)} definitions ({where}), and one entry "
                    "may hide only one. Give them different names."
                )
        late = {entry.name: entry.until for entry in expired(entries)}
        names = {entry.name for entry in entries} - late.keys()

        def left(findings: list[Finding]) -> list[Finding]:
            return [
                f._replace(message=f"{f.message} (it was ignored until {late[f.name]})") if f.name in late else f
                for f in findings
                if f.name not in names
            ]

        examination.findings = left(examination.findings)
        examination.undecided = left(examination.undecided)
        return [finding for finding in everything if finding.name in names]

    def _alerts(self, examination: Examination, ignored: list[Finding]) -> list[str]:
        warnings: list[str] = []
        complete = not examination.problems
        entries = sorted(cast("set[Ignore]", self.ignore_definitions))
        needed = cast("set[Detail]", self.required_in_ignore_definitions)
        examination.problems += [
            f"ignore_definitions: '{entry.name}' gives no {listed(lacking, 'and')}. "
            f"Write: {entry.name}  # until 2027-03-01: reason"
            for entry in entries
            if (lacking := entry.lacks(needed))
        ]
        found = {f.name for f in (*ignored, *examination.findings, *examination.undecided)}
        self._alert(self.undecided_alerting, [str(f) for f in examination.undecided], warnings, examination)
        if complete:
            unmatched = sorted({entry.name for entry in entries} - found)
            messages = [
                f"ignore_definitions: '{name}' matches nothing any more. Remove it." for name in unmatched
            ]
            self._alert(self.unmatched_ignore_definitions_alerting, messages, warnings, examination)
        return warnings

    @staticmethod
    def _alert(level: Any, messages: list[str], warnings: list[str], examination: Examination) -> None:
        if level is AlertLevel.ERROR:
            examination.problems += messages
        elif level is AlertLevel.WARN:
            warnings += messages

    # For the subclasses

    def require(self, option: str, *others: str) -> None:
        """Refuse a contract in which neither ``option`` nor any of ``others`` says anything."""
        if not any(getattr(self, name) for name in (option, *others)):
            wanted = listed((option, *others)) if others else "at least one"
            raise InvalidContractOptions({option: f"Nothing to check: give {wanted}."})


def matching_modules(option: str, expressions: Iterable[ModuleExpression], graph: ImportGraph) -> set[str]:
    """The modules that the expressions of an option match, without their descendants.

    Modules outside the root packages do not count: the graph holds no more of them than their names.

    Raises:
        UnknownNameError: one matches nothing, or cannot match; names the closest module.
    """
    found: set[str] = set()
    for expression in sorted(expressions, key=str):
        text = str(expression)
        try:
            matches = {m for m in graph.find_matching_modules(text) if not graph.is_module_squashed(m)}
        except InvalidModuleExpression as error:
            raise UnknownNameError(
                f"{option}: '{text}' is no module expression. Write a module's dotted name, in which * "
                "stands for one part and ** for one or more."
            ) from error
        if not matches:
            import difflib  # noqa: PLC0415  for a message only

            inside = sorted(module for module in graph.modules if not graph.is_module_squashed(module))
            close = difflib.get_close_matches(text, inside, n=1)
            hint = f" Closest module: '{close[0]}'." if close else ""
            raise UnknownNameError(f"{option}: no module of the root packages matches '{text}'.{hint}")
        found |= matches
    return found


def is_under(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of the packages or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def kinship(definition: ClassDefinition) -> str:
    """``X is a Base (through Mid)``, in short names, from the nearest base to the farthest."""
    *through, base = [name.rpartition(".")[2] for name in definition.chain]
    middle = f" (through {', '.join(through)})" if through else ""
    return f"{definition.name} is {_article(base)} {base}{middle}"


def doubt(open_: UndecidedClass, bases: Sequence[str], rule: str) -> Finding:
    """What is reported of a class that may be a subclass of ``bases``, for which ``rule`` holds."""
    kind = listed([base.rpartition(".")[2] for base in bases])
    message = (
        f"{open_.name} may be {_article(kind)} {kind}, {rule}: one of its bases comes from {open_.reason}, "
        f"which reading cannot follow. Write that base out, or add {open_.dotted_name} to ignore_definitions"
    )
    return Finding(open_.path, open_.line, open_.column, open_.dotted_name, message)


def describe(problem: Problem) -> str:
    """One line on a file that could not be checked."""
    return f"{problem.path}:{problem.line} {problem.reason}"


def listed(names: Sequence[str], conjunction: str = "or") -> str:
    """``a, b or c``."""
    *first, last = names
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def _article(name: str) -> str:
    return "an" if name[:1] in "AEIOaeio" else "a"


def _escape(text: str) -> str:
    from rich.markup import escape  # noqa: PLC0415  not loaded where nothing warns

    # An empty tag after each colon: rich would print the emoji :100: in place of a class on line 100.
    return escape(text).replace(":", ":[none][/none]")


def _print(text: str, style: str | None = "red") -> None:
    # Not output.print_error: it reads names in brackets as markup, and wraps at 80 columns in a pipe.
    output.console.print(text, style=style, markup=False, soft_wrap=True, emoji=False)


_latest: tuple[dict[str, Any], Index] | None = None


def index_of(session_options: dict[str, Any]) -> Index:
    """The index of this run: all contracts of one run are given the same session options."""
    global _latest  # noqa: PLW0603  the one place where contracts of a run can meet
    if _latest is None or _latest[0] is not session_options:
        dependent = [
            f"{key}={session_options.get(key)}"
            for key in ("exclude_type_checking_imports", "include_external_packages")
        ]
        _refuse_hidden_roots(session_options["root_packages"])
        cache = Cache(_cache_folder(), dependent)
        # The first run is nearly always the only one of its process.
        index = Index(session_options["root_packages"], cache, is_lasting=_latest is None)
        _latest = (session_options, index)
    return _latest[1]


def _refuse_hidden_roots(roots: Sequence[str]) -> None:
    """Refuse to read a loaded package, such as this one, in place of one of its name in the current folder.

    Raises:
        UnknownNameError: a root package is hidden in this way, from import-linter too.
    """
    for top in sorted({root.partition(".")[0] for root in roots} & sys.modules.keys()):
        here = importlib.machinery.PathFinder.find_spec(top, [os.getcwd()])
        loaded = sys.modules[top].__spec__
        if here is None or loaded is None or here.submodule_search_locations is None:
            continue
        if {*map(os.path.realpath, here.submodule_search_locations)} != {
            *map(os.path.realpath, loaded.submodule_search_locations or ())
        }:
            raise UnknownNameError(
                f"Root package '{top}' of the current folder is hidden by {loaded.origin}, which is running. "
                "Run plain lint-imports if both are the same package, or else rename yours."
            )


def _cache_folder() -> str | None:
    """import-linter's cache folder, or the one that its command line names; None with --no-cache."""
    context = click.get_current_context(silent=True)
    given = context.params if context is not None else {}
    if given.get("no_cache"):
        return None
    return str(given.get("cache_dir") or settings.DEFAULT_CACHE_DIR)
