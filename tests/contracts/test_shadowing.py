"""A linted repository that has a top-level ``contracts`` of its own."""

import sys

import pytest

from tests.contracts.conftest import SMALL
from tests.contracts.projects import REPOSITORY, Outcome, Project, report, script

BAD = "pkg/bad.py:4:7 Bad is a Base and lives in pkg.bad: it belongs in pkg.good"
SHADOWS = {
    "a package": ({"contracts/__init__.py": ""}, "No module named 'contracts.placement'"),
    "a folder of tests": ({"contracts/test_x.py": ""}, None),
    "a module": ({"contracts.py": ""}, "No module named 'contracts.placement'; 'contracts' is not a package"),
    "a package with a module of that name": (
        {"contracts/__init__.py": "", "contracts/placement.py": ""},
        "module 'contracts.placement' has no attribute 'PlacementContract'",
    ),
}


def moe_contracts(project: Project, *arguments: str) -> Outcome:
    """Run ``moe-contracts`` as its console script does, which keeps the current folder off the path."""
    code = "from contracts.cli import main; main(prog_name='moe-contracts')"
    done = project.run([sys.executable, "-P", "-c", code, *arguments])
    return Outcome(done.returncode, done.stdout)


def _installed_in_editable_mode() -> bool:
    return any(getattr(finder, "__module__", "").startswith("__editable__") for finder in sys.meta_path)


@pytest.mark.parametrize("case", SHADOWS)
def test_lint_imports_fails_loudly(small, case):
    """The plain ``lint-imports`` puts the current folder first: it fails, and never passes by another's contracts.

    A folder without ``__init__.py`` shadows nothing that is installed. Where this package is installed in editable
    mode, setuptools' finder looks in it too for what another ``contracts`` lacks, and then the report is right.
    """
    files, text = SHADOWS[case]
    small.write(files)
    outcome = small.lint_as_process()
    if text is None or (case == "a package" and _installed_in_editable_mode() and "No module" not in outcome.text):
        assert tuple(outcome) == (1, report({"Rule": [BAD]}))
    else:
        assert (outcome.code, outcome.text.replace("\n", " ").strip()) == (1, text)


@pytest.mark.parametrize("case", SHADOWS)
def test_moe_contracts_lint_works(small, case):
    """``moe-contracts lint`` has loaded its own ``contracts`` before, and runs like ``lint-imports``."""
    files, _ = SHADOWS[case]
    small.write(files)
    assert tuple(moe_contracts(small, "lint", "--no-logo")) == (1, report({"Rule": [BAD]}))
    small.write({"pkg/bad.py": ""})
    assert tuple(moe_contracts(small, "lint", "--no-logo")) == (0, report(kept=["Rule"]))


def test_a_linted_package_called_contracts(empty):
    """A root package that this one hides is refused, rather than this one being linted in its place."""
    files = {name.replace("pkg", "contracts"): text.replace("pkg.", "contracts.") for name, text in SMALL.items()}
    empty.write(files)
    rule = {"type": "placement", "base_classes": ["contracts.base.Base"], "allowed_modules": ["contracts"]}
    empty.configure([rule], roots=["contracts"])
    line = (
        f"Root package 'contracts' of the current folder is hidden by {REPOSITORY}/contracts/__init__.py, which is "
        "running. Run plain lint-imports if both are the same package, or else rename yours."
    )
    assert tuple(moe_contracts(empty, "lint", "--no-logo")) == (2, report({"Rule": [line]}))


def test_this_repository_is_linted_by_its_own_contracts(empty):
    """The package that runs may be the package that is linted, where both are the same files."""
    (empty.folder / "contracts").symlink_to(REPOSITORY / "contracts")
    rule = {
        "type": "placement",
        "base_classes": ["contracts._base.DefinitionContract"],
        "allowed_modules": ["contracts.source"],
        "ignore_definitions": ["contracts.forbidden_definitions.ForbiddenDefinitionsContract"],
    }
    empty.configure([rule], roots=["contracts"])
    for outcome in (moe_contracts(empty, "lint", "--no-logo"), empty.lint_as_process()):
        assert outcome.code == 1
        assert " PlacementContract is a DefinitionContract and lives in contracts.placement: " in outcome.text


def test_flags_are_passed_on(small):
    """``moe-contracts lint`` takes what ``lint-imports`` takes, and our cache follows there too."""
    assert moe_contracts(small, "lint", "--no-logo", "--no-cache").code == 1
    assert not (small.folder / ".import_linter_cache").exists()
    assert moe_contracts(small, "lint", "--no-logo", "--cache-dir", "elsewhere").code == 1
    assert not (small.folder / ".import_linter_cache").exists()
    assert [path.name for path in (small.folder / "elsewhere").glob("moe-contracts-*")] != []


def test_the_installed_command(small):
    """The console script, where it is installed, is that command."""
    small.write({"contracts/__init__.py": ""})
    try:
        command = script("moe-contracts")
    except AssertionError:
        pytest.skip("the package is not installed here: no command moe-contracts beside this Python")
    done = small.run([command, "lint", "--no-logo"], env={"PYTHONPATH": ""})
    assert tuple(Outcome(done.returncode, done.stdout)) == (1, report({"Rule": [BAD]}))
