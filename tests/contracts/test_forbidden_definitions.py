"""The contract type ``forbidden_definitions``."""

import shutil
from textwrap import dedent

import pytest

from tests.contracts.projects import Project, marked, report
from tests.contracts.test_placement import DOUBTFUL

RULE = {
    "type": "forbidden_definitions",
    "modules": ["moe.fused.*"],
    "subclasses_of": ["moe.fused.bases.Prepare"],
    "names": ["*PrepareBackend", "Kernel[0-9]"],
}
DEFINED = "{path}:{line}:{column} {text} and is defined in {module}: moe.fused.* may define none"
BAD = "pkg/bad.py:4:7 Bad is a Base and is defined in pkg.bad: {} may define none"


@pytest.fixture
def moe(empty, fixtures) -> Project:
    """Give a copy of the fixture package."""
    shutil.copytree(fixtures / "forbidden_definitions", empty.folder, dirs_exist_ok=True)
    empty.configure([RULE], roots=["moe"])
    return empty


def small_contract(**options):
    return {"type": "forbidden_definitions", "modules": ["pkg.*"], "subclasses_of": ["pkg.base.Base"], **options}


def test_findings_stand_where_the_fixture_says(moe):
    """Each concrete class that has the base or bears the name is reported once; nothing else is."""
    lines = marked(moe, DEFINED)
    assert len(lines) == 8
    assert tuple(moe.lint()) == (1, report({"Rule": lines}))


def test_abstract_classes_checked(moe):
    """With ``abstract_classes = checked`` abstract classes count too, by base and by name."""
    moe.configure([{**RULE, "abstract_classes": "checked"}], roots=["moe"])
    lines = marked(moe, DEFINED, marks=["broken", "abstract"])
    assert len(lines) == 10
    assert tuple(moe.lint()) == (1, report({"Rule": lines}))


def test_by_base_alone(moe):
    """Without ``names`` a class without the base is not looked at, whatever it is called."""
    moe.configure([{**RULE, "names": []}], roots=["moe"])
    lines = [line for line in marked(moe, DEFINED) if " is a " in line]
    assert len(lines) == 4
    assert tuple(moe.lint()) == (1, report({"Rule": lines}))


def test_by_name_alone(moe):
    """Without ``subclasses_of`` a class is known by its name alone."""
    moe.configure([{**RULE, "subclasses_of": []}], roots=["moe"])
    both = (
        "moe/fused/wrong.py:13:7 BothPrepareBackend matches *PrepareBackend and is defined in moe.fused.wrong: "
        "moe.fused.* may define none"
    )
    lines = [line for line in marked(moe, DEFINED) if " matches " in line]
    assert len(lines) == 4
    assert tuple(moe.lint()) == (1, report({"Rule": [*lines[:-1], both, lines[-1]]}))


def test_a_class_without_its_base_is_a_class_by_name_without_the_file_being_a_candidate_by_base(small):
    """A file that nothing connects with the base is searched for the names all the same."""
    small.write({"pkg/lone.py": "class LoneBase: ...\n"})
    small.configure([small_contract(names=["*Base"], modules=["pkg.lone"])])
    line = "pkg/lone.py:1:7 LoneBase matches *Base and is defined in pkg.lone: pkg.lone may define none"
    assert tuple(small.lint()) == (1, report({"Rule": [line]}))


@pytest.mark.parametrize(
    ("modules", "where"),
    [
        (["pkg"], None),
        (["pkg.bad"], "pkg.bad"),
        (["pkg.base", "pkg.bad"], "pkg.base or pkg.bad"),
        (["pkg.*"], "pkg.*"),
        (["*.bad"], "*.bad"),
    ],
)
def test_modules_are_meant_without_their_descendants(small, modules, where):
    """``pkg`` is the package's ``__init__`` alone, ``pkg.*`` its children alone."""
    small.configure([small_contract(modules=modules)])
    expected = (0, report(kept=["Rule"])) if where is None else (1, report({"Rule": [BAD.format(where)]}))
    assert tuple(small.lint()) == expected


def test_descendants_at_any_depth(small):
    """``**`` reaches all depths."""
    small.configure([small_contract(modules=["pkg.**"])])
    fine = "pkg/good/fine.py:4:7 Fine is a Base and is defined in pkg.good.fine: pkg.** may define none"
    assert tuple(small.lint()) == (1, report({"Rule": [BAD.format("pkg.**"), fine]}))


@pytest.mark.parametrize("syntax", ["ini", "toml"])
def test_whole_report_of_a_broken_contract(small, syntax):
    """The report, from its first line to its last, with guidance and a count of what is ignored."""
    small.write({"pkg/old.py": "class OldBackend: ...\n\n\nclass NewBackend: ...\n"})
    small.configure(
        [
            small_contract(
                name="No backend in the root",
                names=["*Backend"],
                ignore_definitions=["pkg.old.OldBackend"],
                broken_contract_guidance="Move the class to pkg/good/.",
            )
        ],
        syntax=syntax,
    )
    expected = """\

        ---------
        Contracts
        ---------

        Analyzed 6 files, 2 dependencies.
        ---------------------------------

        No backend in the root (1 ignored) BROKEN

        Contracts: 0 kept, 1 broken.


        ----------------
        Broken contracts
        ----------------

        No backend in the root (1 ignored)
        ----------------------------------

        pkg/bad.py:4:7 Bad is a Base and is defined in pkg.bad: pkg.* may define none
        pkg/old.py:4:7 NewBackend matches *Backend and is defined in pkg.old: pkg.* may define none

        Move the class to pkg/good/.

        """
    outcome = small.lint()
    assert (outcome.code, outcome.text) == (1, dedent(expected))


def test_kept(small):
    """Where no class is forbidden the contract is kept."""
    small.configure([small_contract(modules=["pkg.good"])])
    assert tuple(small.lint()) == (0, report(kept=["Rule"]))


def test_a_base_that_a_name_means_too_is_reported_once_for_each_contract(small):
    """Two contracts of one run each report what they forbid."""
    small.configure([small_contract(name="First", names=["Bad"]), small_contract(name="Second", modules=["pkg.bad"])])
    broken = {"First": [BAD.format("pkg.*")], "Second": [BAD.format("pkg.bad")]}
    assert tuple(small.lint()) == (1, report(broken))


def test_names_beyond_ascii(small):
    """A class statement's name is compared as Python reads it: characters, not bytes, and NFKC-normalised."""
    small.write({"pkg/cafe.py": "class Café: ...\n\n\nclass \N{LATIN SMALL LIGATURE FI}x: ...\n"})
    small.configure([small_contract(modules=["pkg.cafe"], names=["Caf?", "[f]ix"])])
    lines = [
        "pkg/cafe.py:1:7 Café matches Caf? and is defined in pkg.cafe: pkg.cafe may define none",
        "pkg/cafe.py:4:7 fix matches [f]ix and is defined in pkg.cafe: pkg.cafe may define none",
    ]
    assert tuple(small.lint()) == (1, report({"Rule": lines}))


def test_undecided_classes(small):
    """A class that may have the base is a warning where it may not be defined, and nowhere else."""
    small.write({**DOUBTFUL, "pkg/good/doubtful.py": DOUBTFUL["pkg/doubtful.py"]})
    small.configure([small_contract()])
    line = (
        "pkg/doubtful.py:100:7 Doubtful may be a Base, of which pkg.* may define none: one of its bases comes from "
        "eval(), which reading cannot follow. Write that base out, or add pkg.doubtful.Doubtful to "
        "ignore_definitions"
    )
    assert tuple(small.lint()) == (0, report(kept=["Rule"], warnings={"Rule": [line]}))
    small.configure([small_contract(undecided_alerting="error")])
    assert tuple(small.lint()) == (1, report({"Rule": [line]}))
    small.configure([small_contract(undecided_alerting="none")])
    assert tuple(small.lint()) == (0, report(kept=["Rule"]))


def test_ignored_names(small):
    """A finding by name is set aside by its dotted name; an entry that matches nothing is an error."""
    small.write({"pkg/old.py": "class OldBackend: ...\n", "pkg/bad.py": ""})
    small.configure([small_contract(names=["*Backend"], ignore_definitions=["pkg.old.OldBackend", "pkg.OldBackend"])])
    line = "ignore_definitions: 'pkg.OldBackend' matches nothing any more. Remove it."
    assert tuple(small.lint()) == (1, report({"Rule (1 ignored)": [line]}))
