"""Compares override_signatures with type checkers on the fixture of its tests: what each reports of which override.

``python -m tests.bench.signatures [--bin FOLDER]`` runs whichever of mypy, pyright, pyrefly and ty are on the path, or
in the folder, with what they have for overrides and missing annotations turned on, and prints a Markdown page. Each
difference between a checker and the contract has its reason in ``SILENT`` or ``MORE``; one that has none, and a reason
that explains nothing, is an error.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.contracts.projects import Project

FIXTURE = Path(__file__).parents[1] / "contracts" / "fixtures" / "override_signatures"
CONTRACT = "the contract"

SETTINGS = {
    "mypy.ini": "[mypy]\nstrict = True\npackages = moe\n",
    "pyrightconfig.json": '{"include": ["moe"], "typeCheckingMode": "standard", "reportMissingParameterType": "error"}',
    "pyrefly.toml": 'preset = "strict"\nproject-includes = ["moe"]\n[errors]\nmissing-override-decorator = false\n'
    "unannotated-return = true\nimplicit-any-lambda = false\n",
}
COMMANDS = {
    "mypy": ["mypy", "--no-error-summary", "--no-pretty"],
    "pyright": ["pyright", "--outputjson"],
    "pyrefly": ["pyrefly", "check", "--output-format", "json"],
    "ty": ["ty", "check", "--output-format", "concise", "moe"],
}
_ERROR = re.compile(r"^(moe/[\w/]+\.py):(\d+)(?::\d+)?: error")
_FINDING = re.compile(r"^(- )?(moe/[\w/]+\.py):(\d+):\d+ ")

# What the checkers are often asked about: one override of each kind.
KINDS = {
    "parameter renamed": "parameters.Renamed.prepare",
    "keyword-only parameter made required": "defaults.DroppedByName.prepare",
    "static to instance method": "kinds.StaticToInstance.static",
    "method made a coroutine": "kinds.SyncToAsync.instance",
    "property to method": "kinds.PropertyToMethod.width",
    "default dropped": "defaults.Dropped.prepare",
    "default changed": "defaults.Changed.prepare",
    "override not annotated": "annotations.NothingAnnotated.take",
}


class Reason(NamedTuple):
    """Why some checkers differ from the contract in some cases: names, with ``*``, apart by spaces."""

    tools: str
    cases: str
    text: str


# What the contract reports and a checker does not.
SILENT = [
    Reason(
        "mypy pyright pyrefly ty",
        "defaults.AnotherFromOutside.outside defaults.AnotherMember.kind defaults.AnotherMember.mode "
        "defaults.AnotherName.limited defaults.Changed.prepare defaults.Display.several defaults.NoMember.kind "
        "defaults.NoneChanged.optional defaults.NumberForBool.several",
        "A changed default has the same type. Who leaves the argument out gets another behaviour all the same.",
    ),
    Reason(
        "mypy",
        "parameters.Renamed.prepare parameters.RenamedWithUnderscore.prepare parameters.Private.prepare "
        "parameters.Internal._private parameters.ByPositionOnly.prepare kinds.StaticRenamed.static "
        "decorators.Passing.run decorators.Registered.run decorators.Wrapping.run decorators.Understood.run "
        "decorators.HandingOn.run inheritance.Both inheritance.Conditional.run inheritance.DefinedBetween.late "
        "inheritance.FromMixin inheritance.Local.run "
        "inheritance.Outer.Nested.run",
        "mypy lets an override rename a parameter, or take it by position only. A call by name then fails.",
    ),
    Reason(
        "mypy",
        "parameters.AnyPosition.prepare",
        "mypy lets `*args` stand for parameters that can be passed by name. A call by name then fails.",
    ),
    Reason(
        "pyright ty",
        "annotations.NothingNotAnnotated.nothing annotations.ResultNotAnnotated.take",
        "They infer the return type, and have no rule that asks for one.",
    ),
    Reason(
        "ty",
        "annotations.NothingAnnotated.take annotations.ParameterNotAnnotated.take annotations.RestNotAnnotated.take",
        "ty has no rule that asks for annotations.",
    ),
    Reason(
        "pyrefly ty",
        "kinds.StaticToInstance.static kinds.ClassToInstance.of_class",
        "They compare what a call through an instance takes. A call through the class then lacks its `self`.",
    ),
    Reason(
        "mypy pyrefly ty",
        "kinds.InstanceToStatic.instance kinds.InstanceToClass.instance",
        "They compare what a call through an instance takes. A call through the class, with the instance as first "
        "argument, then passes one argument too many; pyright says so too.",
    ),
    Reason(
        "ty",
        "kinds.InstanceToAttribute.instance kinds.InstanceToLambda.instance kinds.PropertyToAnotherAttribute.width",
        "ty gives an attribute without annotation the type that the base declares, and then does not check its value.",
    ),
    Reason(
        "pyright ty",
        "kinds.AttributeToMethod.is_fast",
        "They let anything take the place of an attribute that the base does not annotate. Who reads it gets a method.",
    ),
    Reason(
        "ty",
        "decorators.Understood.run decorators.HeldAgain.held",
        "ty does not compare what `lru_cache` and `contextmanager` make of two methods.",
    ),
    Reason(
        "mypy pyright pyrefly ty",
        "decorators.Alike.added",
        "The decorator gives `Callable[..., Any]`. The contract compares what is under it, where both have the same.",
    ),
]
# What a checker reports and the contract does not.
MORE = [
    Reason(
        "mypy pyright pyrefly",
        "annotations.Base.unannotated",
        "The base itself, which is no override.",
    ),
    Reason(
        "pyright",
        "kinds.StaticToClass.static kinds.ClassToStatic.of_class",
        "Static and class methods are called with the same arguments, through an instance and through the class.",
    ),
    Reason(
        "pyright",
        "kinds.PropertyToAttribute.width kinds.PropertyToCached.width kinds.PropertyByCall.width",
        "Reading gives the same type. pyright wants a property to stay a `property` in a decorator's form.",
    ),
    Reason(
        "mypy pyrefly",
        "kinds.AttributeToProperty.is_fast",
        "A property cannot be set, an attribute can. The contract lets what is read be either: that a class's constant "
        "becomes a property is common, and nothing sets it.",
    ),
    Reason(
        "pyright pyrefly ty",
        "kinds.HookFilledIn.hook",
        "An attribute may be set to None again, a method may not. The contract takes None for a place to fill in.",
    ),
    Reason(
        "pyright ty",
        "kinds.AsyncToCoroutine.waited",
        "`async def` gives a `CoroutineType`, which has more attributes than a `Coroutine`. It is awaited alike.",
    ),
    Reason(
        "pyright",
        "parameters.ByPositionToo.prepare",
        "Further ways to pass what the base takes by name. Every call of the base's is one of the override's.",
    ),
    Reason(
        "pyrefly",
        "parameters.AnythingNarrowed.anything",
        "A base that takes `*args: Any, **kwargs: Any` leaves it to its overrides; the others say so too.",
    ),
    Reason(
        "pyright pyrefly ty",
        "inheritance.FromMixinBehind",
        "The class takes the method from the base's side. What it is as a Mixin is no matter of this contract's bases.",
    ),
    Reason(
        "pyright pyrefly ty",
        "inheritance.ForCheckersOnly.stop",
        "The override stands under `if TYPE_CHECKING:`, and does not exist when the code runs.",
    ),
]


def main() -> int:
    """Print the page; 1 if a difference has no reason, or a reason no difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", default="", help="folder of the checkers; the path unless given")
    folder = parser.parse_args().bin
    tools = {name: found for name in COMMANDS if (found := shutil.which(name, path=folder or None))}
    with tempfile.TemporaryDirectory() as temporary:
        project = Project(Path(temporary))
        shutil.copytree(FIXTURE, project.folder, dirs_exist_ok=True)
        places = dict(cases(project.folder))
        reported = {CONTRACT: contract(project, places, open_=False)}
        undecided = contract(project, places, open_=True)
        project.write(SETTINGS)
        for name, path in tools.items():
            reported[name] = {places.get(place, f"{place[0]}:{place[1]}") for place in run(name, path, project.folder)}
    return page(tools, reported, undecided, sorted(set(places.values())))


def cases(folder: Path) -> Iterator[tuple[tuple[str, int], str]]:
    """Each line of a class header, method or attribute, as (path, line), and its name: ``module.Class.method``."""
    for path in sorted(folder.rglob("*.py")):
        relative = str(path.relative_to(folder))
        yield from _cases(ast.parse(path.read_text()).body, relative, path.stem)


def _cases(body: Sequence[ast.stmt], path: str, above: str) -> Iterator[tuple[tuple[str, int], str]]:
    for node in body:
        first, last, inner = node.lineno, node.end_lineno or node.lineno, []
        match node:
            case ast.ClassDef():
                name, last, inner = f"{above}.{node.name}", first, node.body
                yield from _cases(inner, path, name)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                name = f"{above}.{node.name}"
                first = min([first, *(item.lineno for item in node.decorator_list)])
                yield from _cases(node.body, path, above)
            case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)):
                name = f"{above}.{target}"
            case ast.If():
                yield from _cases([*node.body, *node.orelse], path, above)
                continue
            case _:
                continue
        if not any(isinstance(item, ast.ClassDef) for item in getattr(node, "body", ())):
            yield from (((path, line), name) for line in range(first, last + 1))


def contract(project: Project, places: dict[tuple[str, int], str], *, open_: bool) -> set[str]:
    """What the contract reports, or leaves undecided."""
    bases = sorted({f"moe.{name}" for name in places.values() if re.fullmatch(r"\w+\.\w*Base", name)})
    project.configure([{"type": "override_signatures", "base_classes": bases}], roots=["moe"])
    found = [_FINDING.match(line) for line in project.lint("--no-cache").text.splitlines()]
    return {places[match[2], int(match[3])] for match in found if match and bool(match[1]) == open_}


def run(name: str, path: str, folder: Path) -> set[tuple[str, int]]:
    """Where a checker reports an error."""
    command = [path, *COMMANDS[name][1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if name == "pyright":
        errors = json.loads(done.stdout)["generalDiagnostics"]
        kept = [error for error in errors if error.get("rule") != "reportRedeclaration"]
        found = {(error["file"], error["range"]["start"]["line"] + 1) for error in kept}
    elif name == "pyrefly":
        found = {(error["path"], error["line"]) for error in json.loads(done.stdout)["errors"]}
    else:
        matches = [_ERROR.match(line) for line in done.stdout.splitlines()]
        found = {(match[1], int(match[2])) for match in matches if match}
    if not found:
        raise SystemExit(f"{name} reports nothing at all: {done.stdout[-500:]}{done.stderr[-500:]}")
    return {(os.path.relpath(os.path.join(folder, file), folder), line) for file, line in found}


def page(
    tools: dict[str, str], reported: dict[str, set[str]], undecided: set[str], everything: Sequence[str]
) -> int:
    """Print what was found; 1 if a difference has no reason, or a reason no difference."""
    ours, code = reported[CONTRACT], 0
    print("# override_signatures and type checkers\n")
    print("The page that `python -m tests.bench.signatures --bin FOLDER` prints, where FOLDER holds the checkers; the")
    print("overrides are those of `tests/contracts/fixtures/override_signatures`.\n")
    versions = ", ".join(version(path) for path in tools.values()) or "no checker"
    print(f"CPython {platform.python_version()}; {versions}.\n")
    _table("override", KINDS, reported)
    wrong = set().union(*reported.values()) - undecided
    others = len(wrong - ours)
    print(f"\nOf the {len(ours)} overrides that the contract reports, and the {others} others that a checker does:\n")
    print("| | of those | of the others |\n|---|---|---|")
    for name, found in reported.items():
        print(f"| {name} | {len(found & ours)} | {len(found - ours - undecided)} |")
    for title, reasons, more in (
        ("What the contract reports and a checker does not", SILENT, False),
        ("What a checker reports and the contract does not", MORE, True),
    ):
        print(f"\n## {title}\n\n| checkers | overrides | why |\n|---|---|---|")
        differences = {
            (tool, case)
            for tool in tools
            for case in (reported[tool] - ours - undecided if more else ours - reported[tool])
        }
        for reason in reasons:
            explained = {
                (tool, case)
                for tool, case in differences
                if tool in reason.tools.split() and any(fnmatch.fnmatchcase(case, one) for one in reason.cases.split())
            }
            differences -= explained
            asked = {(tool, one) for tool in reason.tools.split() if tool in tools for one in reason.cases.split()}
            if asked - explained:
                print(f"no difference any more: {sorted(asked - explained)}", file=sys.stderr)
                code = 1
            names = ", ".join(f"`{one}`" for one in reason.cases.split())
            print(f"| {', '.join(reason.tools.split())} | {names} | {reason.text} |")
        if differences:
            print(f"without a reason: {sorted(differences)}", file=sys.stderr)
            code = 1
    open_ = ", ".join(f"`{one}`" for one in sorted(undecided))
    print(f"\nThe contract lists as undecided, which the tables leave out: {open_}.")
    print("\n## All\n")
    rows = [case for case in everything if any(case in found for found in reported.values())]
    _table("override", {f"`{case}`": case for case in rows}, reported)
    return code


def _table(head: str, rows: dict[str, str], reported: dict[str, set[str]]) -> None:
    print(f"| {head} | {' | '.join(reported)} |\n|---|{'---|' * len(reported)}")
    for label, case in rows.items():
        print(f"| {label} | {' | '.join('x' if case in found else '' for found in reported.values())} |")


def version(path: str) -> str:
    """A checker's name and version."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip().splitlines()[-1].partition(" (")[0]


if __name__ == "__main__":
    sys.exit(main())
