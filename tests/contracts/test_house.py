"""Nothing of a contract type is forgotten: the folders are walked, and what is missing is named."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from contracts import _documentation, presets
from contracts._base import DefinitionContract
from contracts._types import TYPES
from contracts.cli import _COMMANDS
from tests.contracts.projects import REPOSITORY

CONTRACTS = REPOSITORY / "contracts"
HERE = Path(__file__).parent


def types_in(folder: Path) -> dict[str, str]:
    """The contract types that the modules of a folder define, by name, and their classes."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                for statement in node.body:
                    if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "type_name":
                        found[ast.literal_eval(statement.value)] = f"contracts.{path.stem}.{node.name}"
    return found


def missing(types: dict[str, str]) -> list[str]:
    """What is missing of some contract types: rows, tests, fixtures, documentation."""
    lacks = [f"contracts/_types.py has no row '{name}': '{path}'" for name, path in types.items() if name not in TYPES]
    lacks += [f"contracts/_types.py names {TYPES[n]}, which is {p}" for n, p in types.items() if TYPES.get(n, p) != p]
    lacks += [f"contracts/_types.py has a row {name}, which no module defines" for name in TYPES.keys() - types.keys()]
    for name in types:
        for path in (f"test_{name}.py", f"fixtures/{name}"):
            if not (HERE / path).exists():
                lacks.append(f"tests/contracts/{path} is missing")
    return lacks


def test_each_type_has_a_row_a_test_and_a_fixture():
    """A new type that forgets one of them is named here."""
    types = types_in(CONTRACTS)
    assert {"placement", "forbidden_definitions"} <= types.keys()
    assert missing(types) == []


def test_what_is_forgotten_is_named(tmp_path):
    """The test above can fail."""
    (tmp_path / "shiny.py").write_text("class ShinyContract:\n    type_name = 'shiny'\n")
    types = types_in(CONTRACTS)
    assert [line for line in missing(types | types_in(tmp_path)) if line not in missing(types)] == [
        "contracts/_types.py has no row 'shiny': 'contracts.shiny.ShinyContract'",
        "tests/contracts/test_shiny.py is missing",
        "tests/contracts/fixtures/shiny is missing",
    ]


@pytest.mark.parametrize("name", sorted(TYPES))
def test_each_type_is_what_its_row_says(name):
    """The class is a contract about definitions, and goes by that name."""
    module, _, attribute = TYPES[name].rpartition(".")
    kind = getattr(importlib.import_module(module), attribute)
    assert issubclass(kind, DefinitionContract)
    assert kind.type_name == name


@pytest.mark.parametrize("name", sorted(TYPES))
def test_each_type_is_documented(name):
    """What it holds, why, an example that breaks it and every option; the example is Python."""
    documentation = _documentation.document(name)
    code = documentation.example.partition("::\n")[2]
    ast.parse(re.sub(r"^    ", "", code, flags=re.MULTILINE).strip())


def test_a_type_that_is_not_documented(monkeypatch):
    """It is named, with all that its docstring lacks."""
    monkeypatch.setitem(TYPES, "bare", "contracts._base.DefinitionContract")
    with pytest.raises(ValueError, match=r"The docstring of contracts._base.DefinitionContract lacks") as failure:
        _documentation.document("bare")
    assert "an example, in a block behind a sentence with 'breaks it::'" in str(failure.value)


@pytest.mark.parametrize("name", sorted(TYPES))
def test_explain(empty, name):
    """All of it, and how to use it."""
    code, text = empty.moe_contracts("explain", name)
    documentation = _documentation.document(name)
    assert code == 0
    assert text.startswith(f"{name}: ")
    for option in [*documentation.options, *_documentation.shared_options()]:
        assert f"\n  {option}: " in text
    assert text.endswith(f"To use it, list it under contract_types: {name}: {TYPES[name]}\n")
    assert "``" not in text


def test_explain_placement(empty):
    """The beginning of the text, as it is read."""
    text = empty.moe_contracts("explain", "placement").text
    assert text.startswith(
        "placement: Every concrete subclass of the base classes is defined under the allowed modules.\n\n"
        "Who looks for the implementations of a base looks where they all are;"
    )
    assert "\n    class FastBackend(base.Backend):\n" in text


def test_explain_of_what_is_no_type(empty):
    """The types are listed."""
    outcome = empty.moe_contracts("explain", "placements")
    assert outcome.code == 2
    assert all(f"'{name}'" in outcome.text for name in TYPES)


def test_the_shared_options_are_documented():
    """Each field of the base class stands in its docstring."""
    from importlinter import fields

    shared = {n for n in dir(DefinitionContract) if isinstance(getattr(DefinitionContract, n), fields.Field)}
    assert _documentation.shared_options().keys() == shared


def test_the_readme_lists_the_types():
    """Its table is the docstrings' first lines: ``python -m tests.contracts.readme`` writes it."""
    assert _documentation.table() in (REPOSITORY / "README.md").read_text()


def test_each_command_is_a_module():
    """And each module of commands a command."""
    modules = {path.stem for path in (CONTRACTS / "commands").glob("*.py")} - {"__init__"}
    assert modules == {*_COMMANDS}
    assert list(_COMMANDS) == sorted(_COMMANDS)


def test_presets_use_known_types_only():
    """And name them as they are registered."""
    for name in presets.PRESETS:
        text = presets.preset_path(name).read_text()
        used = dict(re.findall(r"^    (\w+): (contracts\.[\w.]+)$", text, re.MULTILINE))
        assert used
        assert used.items() <= TYPES.items()
