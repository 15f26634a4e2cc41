"""The contract type ``placement``."""

import shutil
from textwrap import dedent

import pytest

from tests.contracts.projects import Project, marked, report

BASE = {"type": "placement", "base_classes": ["moe.bases.Backend"], "allowed_modules": ["moe.backends"]}
BELONGS = "{path}:{line}:{column} {text} and lives in {module}: it belongs in moe.backends"
BAD = "pkg/bad.py:4:7 Bad is a Base and lives in pkg.bad: it belongs in pkg.good"

# A class whose bases only running the code could tell, in a module that can name Base; the class statement stands on
# line 100 because rich prints ":100:" as an emoji if it is let.
DOUBTFUL = {
    "pkg/bad.py": "",
    "pkg/doubtful.py": "from pkg.base import Base\n"
    + "\n" * 98
    + "class Doubtful(*eval('(Base,)')):\n    def run(self): ...\n",
}
DOUBT = (
    "pkg/doubtful.py:100:7 Doubtful may be a Base, which belongs in pkg.good: one of its bases comes from "
    "eval(), which reading cannot follow. Write that base out, or add pkg.doubtful.Doubtful to "
    "ignore_definitions"
)


@pytest.fixture
def moe(empty, fixtures) -> Project:
    """Give a copy of the fixture package."""
    shutil.copytree(fixtures / "placement", empty.folder, dirs_exist_ok=True)
    empty.configure([BASE], roots=["moe"])
    return empty


def small_contract(**options):
    return {"type": "placement", "base_classes": ["pkg.base.Base"], "allowed_modules": ["pkg.good"], **options}


def test_findings_stand_where_the_fixture_says(moe):
    """Each misplaced concrete subclass is reported once, on its own line, with its bases; nothing else is."""
    lines = marked(moe, BELONGS)
    assert len(lines) == 9
    assert tuple(moe.lint()) == (1, report({"Rule": lines}))


@pytest.mark.parametrize("syntax", ["ini", "toml"])
def test_whole_report_of_a_broken_contract(small, syntax):
    """The report, from its first line to its last, with guidance and a count of what is ignored."""
    small.write({"pkg/old.py": "from pkg.bad import Bad\n\n\nclass Old(Bad):\n    pass\n"})
    small.configure(
        [
            small_contract(
                name="Backends live in good",
                ignore_definitions=["pkg.old.Old"],
                broken_contract_guidance="Move the class to pkg/good/.\nSee docs[1] for how [/x].",
            )
        ],
        syntax=syntax,
    )
    expected = """\

        ---------
        Contracts
        ---------

        Analyzed 6 files, 3 dependencies.
        ---------------------------------

        Backends live in good (1 ignored) BROKEN

        Contracts: 0 kept, 1 broken.


        ----------------
        Broken contracts
        ----------------

        Backends live in good (1 ignored)
        ---------------------------------

        pkg/bad.py:4:7 Bad is a Base and lives in pkg.bad: it belongs in pkg.good

        Move the class to pkg/good/.
        See docs[1] for how [/x].

        """
    outcome = small.lint()
    assert (outcome.code, outcome.text) == (1, dedent(expected))


@pytest.mark.parametrize("syntax", ["ini", "toml"])
def test_whole_report_of_a_kept_contract(small, syntax):
    """Nothing is printed but that the contract is kept."""
    small.write({"pkg/bad.py": ""})
    small.configure([small_contract()], syntax=syntax)
    expected = """\

        ---------
        Contracts
        ---------

        Analyzed 5 files, 1 dependencies.
        ---------------------------------

        Rule KEPT

        Contracts: 1 kept, 0 broken.
        """
    outcome = small.lint()
    assert (outcome.code, outcome.text) == (0, dedent(expected))


def test_the_real_command_prints_the_same(small):
    """What these tests run in process is what ``lint-imports`` prints into a pipe."""
    assert small.lint_as_process() == small.lint()


def test_abstract_classes_checked(moe):
    """With ``abstract_classes = checked`` intermediate bases must live in the allowed modules too."""
    moe.configure([{**BASE, "abstract_classes": "checked"}], roots=["moe"])
    lines = marked(moe, BELONGS, marks=["broken", "abstract"])
    assert len(lines) == 13
    assert tuple(moe.lint()) == (1, report({"Rule": lines}))


def test_allowed_modules_are_listed_as_they_are_written(small):
    """Several allowed modules, among them an expression, each with all below it."""
    small.write(
        {
            "pkg/a/__init__.py": "",
            "pkg/a/kernels/__init__.py": "",
            "pkg/a/kernels/deep/__init__.py": "from pkg.base import Base\nclass A(Base):\n    def run(self): ...\n",
            "pkg/kernels.py": "from pkg.base import Base\nclass K(Base):\n    def run(self): ...\n",
        }
    )
    small.configure([small_contract(allowed_modules=["pkg.good", "pkg.*.kernels", "pkg.a"])])
    where = "it belongs in pkg.good, pkg.*.kernels or pkg.a"
    lines = [
        f"pkg/bad.py:4:7 Bad is a Base and lives in pkg.bad: {where}",
        f"pkg/kernels.py:2:7 K is a Base and lives in pkg.kernels: {where}",
    ]
    assert tuple(small.lint()) == (1, report({"Rule": lines}))


def test_several_base_classes_of_which_one_is_re_exported(small):
    """Each class is named with the nearest base that leads to one of the configured ones, in good English."""
    small.write(
        {
            "pkg/__init__.py": "from pkg.extra import Expert as Renamed",
            "pkg/extra.py": "class Expert: ...\n\n\nclass Mine(Expert): ...\n",
        }
    )
    small.configure([small_contract(base_classes=["pkg.base.Base", "pkg.Renamed"])])
    lines = [BAD, "pkg/extra.py:4:7 Mine is an Expert and lives in pkg.extra: it belongs in pkg.good"]
    assert tuple(small.lint()) == (1, report({"Rule": lines}))


def test_several_root_packages(small):
    """A base in one root package, its subclasses in another, which may come first or last."""
    small.write(
        {
            "plugins/__init__.py": "",
            "plugins/far.py": "import pkg.base as b\n\n\nclass Far(b.Base):\n    def run(self): ...\n",
        }
    )
    lines = [BAD, "plugins/far.py:4:7 Far is a Base and lives in plugins.far: it belongs in pkg.good"]
    for roots in (["pkg", "plugins"], ["plugins", "pkg"]):
        small.configure([small_contract()], roots=roots)
        assert tuple(small.lint()) == (1, report({"Rule": lines}))


def test_namespace_packages(empty):
    """A root package without ``__init__.py``, whose two portions lie in different folders of the path."""
    empty.write(
        {
            "space/core/__init__.py": "",
            "space/core/base.py": "class Base: ...\n",
            "space/core/good.py": "from space.core.base import Base\n\n\nclass Fine(Base): ...\n",
            "elsewhere/space/extra/__init__.py": "",
            "elsewhere/space/extra/bad.py": "from space.core.base import Base\n\n\nclass Bad(Base): ...\n",
        }
    )
    contract = {"base_classes": ["space.core.base.Base"], "allowed_modules": ["space.core.good"], "type": "placement"}
    empty.configure([contract], roots=["space"])
    line = "elsewhere/space/extra/bad.py:4:7 Bad is a Base and lives in space.extra.bad: it belongs in space.core.good"
    outcome = empty.lint_as_process(path=[empty.folder / "elsewhere"])
    assert tuple(outcome) == (1, report({"Rule": [line]}))


def test_a_portion_of_a_namespace_package(empty):
    """A root package below a namespace package."""
    empty.write(
        {
            "space/core/__init__.py": "",
            "space/core/base.py": "class Base: ...\n\n\nclass Bad(Base): ...\n",
            "space/core/good.py": "",
        }
    )
    contract = {"base_classes": ["space.core.base.Base"], "allowed_modules": ["space.core.good"], "type": "placement"}
    empty.configure([contract], roots=["space.core"])
    line = "space/core/base.py:4:7 Bad is a Base and lives in space.core.base: it belongs in space.core.good"
    assert tuple(empty.lint_as_process()) == (1, report({"Rule": [line]}))


def test_only_the_named_contract_is_checked(small):
    """``--contract`` leaves the other one out."""
    small.configure([small_contract(name="First"), small_contract(name="Second", allowed_modules=["pkg"])])
    assert tuple(small.lint()) == (1, report({"First": [BAD]}, kept=["Second"]))
    assert tuple(small.lint("--contract", "1")) == (0, report(kept=["Second"]))


class TestIgnoreDefinitions:
    """The option ``ignore_definitions``, which all contract types share."""

    def test_hides_what_it_names_and_nothing_else(self, moe):
        """An entry hides one class: no subclass of it, no class of that name elsewhere, no nested one."""
        names = ["moe.inner.Outer.Inner", "moe.inner.build.<locals>.Local", "moe.backends_old.Old"]
        moe.configure([{**BASE, "ignore_definitions": names}], roots=["moe"])
        moe.write({"moe/older.py": "from moe.backends_old import Old\n\n\nclass Older(Old): ...\n"})
        lines = [line for line in marked(moe, BELONGS) if not any(n in line for n in ("Inner", "Local", " Old "))]
        older = "moe/older.py:4:7 Older is a Backend (through Old) and lives in moe.older: it belongs in moe.backends"
        assert len(lines) == 6
        assert tuple(moe.lint()) == (1, report({"Rule (3 ignored)": [*lines, older]}))

    def test_all_ignored_is_kept(self, small):
        """Where everything is ignored the contract is kept, and says how much that was."""
        small.configure([small_contract(ignore_definitions="pkg.bad.Bad")])
        assert tuple(small.lint()) == (0, report(kept=["Rule (1 ignored)"]))

    @pytest.mark.parametrize("name", ["pkg.bad.Bod", "pkg.good.fine.Fine", "Bad", "pkg.bad", "pkg.bad.*", "[/x] :100:"])
    def test_an_entry_that_matches_nothing_is_an_error(self, small, name):
        """A misspelt entry, one for a class that lives where it should, and a pattern, which is no name."""
        small.configure([small_contract(ignore_definitions=[name])])
        line = f"ignore_definitions: '{name}' matches nothing any more. Remove it."
        assert tuple(small.lint()) == (1, report({"Rule": [line, BAD]}))

    def test_an_entry_that_matches_nothing_is_an_error_by_itself(self, small):
        """The contract is broken by a stale entry even if no class breaks it."""
        small.write({"pkg/bad.py": ""})
        small.configure([small_contract(ignore_definitions=["pkg.bad.Bad", "pkg.b.B"])])
        lines = [
            "ignore_definitions: 'pkg.b.B' matches nothing any more. Remove it.",
            "ignore_definitions: 'pkg.bad.Bad' matches nothing any more. Remove it.",
        ]
        assert tuple(small.lint()) == (1, report({"Rule": lines}))

    def test_an_entry_that_matches_nothing_can_warn(self, small):
        """With ``warn`` the stale entry is a warning and the contract kept; the text is not read as markup."""
        names = ["[/x] b:100:", "a\\", "pkg.bad.Bad"]
        small.configure([small_contract(ignore_definitions=names, unmatched_ignore_definitions_alerting="warn")])
        lines = [
            "ignore_definitions: '[/x] b:100:' matches nothing any more. Remove it.",
            "ignore_definitions: 'a\\' matches nothing any more. Remove it.",
        ]
        name = "Rule (1 ignored)"
        assert tuple(small.lint()) == (0, report(kept=[name], warnings={name: lines}))

    def test_an_entry_that_matches_nothing_can_be_left_alone(self, small):
        """With ``none`` nothing is said of it."""
        names = ["pkg.bad.Bad", "pkg.bad.Bod"]
        small.configure([small_contract(ignore_definitions=names, unmatched_ignore_definitions_alerting="none")])
        assert tuple(small.lint()) == (0, report(kept=["Rule (1 ignored)"]))

    def test_a_name_of_two_definitions_is_an_error(self, small):
        """One entry would hide two classes, now or when the second is added."""
        small.write(
            {
                "pkg/bad.py": """\
                    import sys
                    from pkg.base import Base

                    if sys.platform == "linux":

                        class Bad(Base):
                            def run(self): ...

                    else:

                        class Bad(Base):
                            def run(self): ...
                    """
            }
        )
        where = "and lives in pkg.bad: it belongs in pkg.good"
        both = [f"pkg/bad.py:6:11 Bad is a Base {where}", f"pkg/bad.py:11:11 Bad is a Base {where}"]
        assert tuple(small.lint()) == (1, report({"Rule": both}))
        small.configure([small_contract(ignore_definitions=["pkg.bad.Bad"])])
        line = (
            "ignore_definitions: 'pkg.bad.Bad' names 2 definitions (pkg/bad.py:6, pkg/bad.py:11), "
            "and one entry may hide only one. Give them different names."
        )
        assert tuple(small.lint()) == (1, report({"Rule (2 ignored)": [line]}))

    def test_stale_entries_are_not_reported_where_the_tree_could_not_be_read(self, small):
        """What matches nothing only because the contract could not be checked is no stale entry."""
        options = small_contract(ignore_definitions=["pkg.bad.Bad"], base_classes=["pkg.base.Bass"])
        small.configure([options])
        line = "Base class 'pkg.base.Bass' does not exist. Closest name: 'Base'."
        assert tuple(small.lint()) == (1, report({"Rule": [line]}))


class TestUndecided:
    """Classes whose bases reading cannot tell, where they could be misplaced."""

    @pytest.mark.parametrize("options", [{}, {"undecided_alerting": "warn"}])
    def test_warn(self, small, options):
        """By default they are warnings, whole on one line, with path, line and what to do."""
        small.write(DOUBTFUL)
        small.configure([small_contract(**options)])
        assert tuple(small.lint()) == (0, report(kept=["Rule"], warnings={"Rule": [DOUBT]}))

    def test_error(self, small):
        """With ``error`` they break the contract."""
        small.write(DOUBTFUL)
        small.configure([small_contract(undecided_alerting="error")])
        assert tuple(small.lint()) == (1, report({"Rule": [DOUBT]}))

    def test_error_beside_findings_and_stale_entries(self, small):
        """Everything that is known is reported in one run."""
        small.write({"pkg/doubtful.py": DOUBTFUL["pkg/doubtful.py"]})
        small.configure([small_contract(undecided_alerting="error", ignore_definitions=["pkg.x.X"])])
        stale = "ignore_definitions: 'pkg.x.X' matches nothing any more. Remove it."
        assert tuple(small.lint()) == (1, report({"Rule": [DOUBT, stale, BAD]}))

    def test_none(self, small):
        """With ``none`` they are not mentioned."""
        small.write(DOUBTFUL)
        small.configure([small_contract(undecided_alerting="none")])
        assert tuple(small.lint()) == (0, report(kept=["Rule"]))

    def test_ignored(self, small):
        """They can be set aside by name, as findings can."""
        small.write(DOUBTFUL)
        small.configure([small_contract(ignore_definitions=["pkg.doubtful.Doubtful"], undecided_alerting="error")])
        assert tuple(small.lint()) == (0, report(kept=["Rule (1 ignored)"]))

    def test_only_where_it_could_matter(self, small):
        """Not in an allowed module, and not where no name can stand for the base."""
        small.write({"pkg/bad.py": "", "pkg/good/doubtful.py": DOUBTFUL["pkg/doubtful.py"]})
        small.write({"pkg/far.py": "def make(*bases):\n    class Made(*bases): ...\n    return Made\n"})
        small.configure([small_contract(undecided_alerting="error")])
        assert tuple(small.lint()) == (0, report(kept=["Rule"]))

    def test_no_subclass_but_a_doubt_is_something_to_check(self, small):
        """Where the only candidate is undecided the contract does not claim that there is nothing to check."""
        small.write({**DOUBTFUL, "pkg/good/fine.py": ""})
        assert tuple(small.lint()) == (0, report(kept=["Rule"], warnings={"Rule": [DOUBT]}))
