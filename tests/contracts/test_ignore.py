"""What does not count yet: entries with dates and reasons, and ``moe-contracts ignore``, which writes them."""

import tomllib

import grimp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from importlinter.contracts.independence import IndependenceContract
from importlinter.contracts.layers import LayersContract

from contracts import _ignores
from contracts.commands import ignore
from contracts.report._imports import first_imports
from tests.contracts.projects import Project, report

OLD = "from pkg.base import Base\n\n\nclass Old(Base):\n    def run(self): ...\n"
BAD = "pkg/bad.py:4:7 Bad is a Base and lives in pkg.bad: it belongs in pkg.good"
RULE = {"name": "Rule", "type": "placement", "base_classes": ["pkg.base.Base"], "allowed_modules": ["pkg.good"]}
COUNT = "ignored on 2026-12-24; moe-contracts ignore only ever shortens this list"


@pytest.fixture(autouse=True)
def _christmas(monkeypatch):
    """Have it be Christmas Eve of 2026."""
    monkeypatch.setattr(_ignores, "today", lambda: "2026-12-24")
    monkeypatch.setattr(ignore, "today", lambda: "2026-12-24")


def config(project: Project, name: str = ".importlinter") -> str:
    """What the configuration says."""
    return (project.folder / name).read_text()


def run(project: Project, *arguments: str) -> tuple[int, str]:
    """Run ``moe-contracts``: its exit code and all that it says."""
    outcome = project.moe_contracts(*arguments)
    return outcome.code, outcome.text


class TestEntries:
    """``name  # until YYYY-MM-DD: reason``."""

    @pytest.mark.parametrize("syntax", ["ini", "toml"])
    @pytest.mark.parametrize(
        "comment", ["", "  # moves soon", "  # until 2026-12-24", " # until 2027-01-01: moves with the next release"]
    )
    def test_an_entry_that_counts(self, small, syntax, comment):
        """With or without a reason and a date; on its last day it still counts, and it is counted."""
        small.configure([{**RULE, "ignore_definitions": [f"pkg.bad.Bad{comment}"]}], syntax=syntax)
        assert tuple(small.lint()) == (0, report(kept=["Rule (1 ignored)"]))

    def test_an_entry_that_ran_out(self, small):
        """The finding counts again, and says what happened; the entry is not called unmatched."""
        small.configure([{**RULE, "ignore_definitions": ["pkg.bad.Bad  # until 2026-12-23: moves soon"]}])
        assert tuple(small.lint()) == (1, report({"Rule": [f"{BAD} (it was ignored until 2026-12-23)"]}))

    def test_an_entry_that_ran_out_and_matches_nothing(self, small):
        """It is to be removed like any other."""
        small.configure([{**RULE, "ignore_definitions": ["pkg.bad.Bad", "pkg.gone.Gone  # until 2026-12-23"]}])
        line = "ignore_definitions: 'pkg.gone.Gone' matches nothing any more. Remove it."
        assert tuple(small.lint()) == (1, report({"Rule (1 ignored)": [line]}))

    def test_a_date_that_is_none(self, small):
        """It is refused."""
        small.configure([{**RULE, "ignore_definitions": ["pkg.bad.Bad  # until 2026-02-30: x"]}])
        outcome = small.lint()
        assert outcome.code == 1
        text = "2026-02-30 is no date. Write 'pkg.bad.Bad  # until 2027-03-01: reason'."
        assert text in outcome.text.replace("\n", " ")

    @pytest.mark.parametrize(
        ("required", "entry", "lacking"),
        [
            (["reason"], "pkg.bad.Bad", "reason"),
            (["reason"], "pkg.bad.Bad  # until 2027-01-01", "reason"),
            (["until"], "pkg.bad.Bad  # moves soon", "until"),
            (["reason", "until"], "pkg.bad.Bad", "reason and until"),
            (["reason", "until"], "pkg.bad.Bad  # until 2027-01-01: moves soon", None),
        ],
    )
    def test_what_a_contract_can_require(self, small, required, entry, lacking):
        """An entry that gives less is an error that says how to write it."""
        small.configure([{**RULE, "ignore_definitions": [entry], "required_in_ignore_definitions": required}])
        name = "Rule (1 ignored)"
        line = f"ignore_definitions: 'pkg.bad.Bad' gives no {lacking}. Write: pkg.bad.Bad  # until 2027-03-01: reason"
        expected = (1, report({name: [line]})) if lacking else (0, report(kept=[name]))
        assert tuple(small.lint()) == expected


class TestIgnore:
    """The command."""

    def test_a_list_is_started(self, small):
        """With today's findings and their count; then nothing counts, and comments and order are as they were."""
        small.write({"pkg/old.py": OLD})
        small.configure([{**RULE, "broken_contract_guidance": "Move it."}, {**RULE, "name": "Other"}])
        before = config(small).replace("name = Rule", "# why\nname = Rule")
        small.write({".importlinter": before})
        assert run(small, "ignore") == (0, "0: 2 ignored (2 added)\n1: 2 ignored (2 added)\n")
        entries = f"ignore_definitions =\n    # 2 {COUNT}\n    pkg.bad.Bad\n    pkg.old.Old\n"
        assert config(small) == before.replace("Move it.\n", f"Move it.\n{entries}") + entries
        assert tuple(small.lint()) == (0, report(kept=["Rule (2 ignored)", "Other (2 ignored)"], order=ORDER))

    def test_a_list_only_shrinks(self, small):
        """What matches nothing any more goes; a new finding stays one, until its contract is named."""
        entries = ["# by hand", "pkg.gone.A  # until 2027-01-01: x", "pkg.gone.B"]
        small.contract(**RULE, ignore_definitions=entries)
        before = config(small)
        outcome = run(small, "ignore")
        assert outcome == (
            1,
            "0: 0 ignored (2 removed), 1 finding not: pkg.bad.Bad\n"
            "  A list only shrinks. To let this one grow: moe-contracts ignore --grow 0\n",
        )
        shorter = before.replace("    pkg.gone.A  # until 2027-01-01: x\n    pkg.gone.B\n", "")
        shorter = shorter.replace("ignore_definitions =\n", f"ignore_definitions =\n    # 0 {COUNT}\n")
        assert config(small) == shorter
        # An empty list is a list.
        assert run(small, "ignore")[0] == 1
        assert config(small) == shorter
        assert run(small, "ignore", "--grow", "0") == (0, "0: 1 ignored (1 added)\n")
        assert config(small) == shorter.replace(f"# 0 {COUNT}", f"# 1 {COUNT}").replace(
            "    # by hand\n", "    # by hand\n    pkg.bad.Bad\n"
        )

    def test_nothing_changes_without_need(self, small):
        """A list that is as it should be is not touched, its count and date neither."""
        small.contract(**RULE, ignore_definitions=["# 7 ignored on 2020-01-01", "pkg.bad.Bad"])
        before = config(small)
        assert run(small, "ignore") == (0, "0: 1 ignored\n")
        assert config(small) == before

    def test_reasons_and_dates(self, small):
        """They are written behind new entries, and asked for where the contract requires them."""
        small.contract(**RULE, required_in_ignore_definitions=["reason", "until"])
        before = config(small)
        refusal = "Error: '0' wants more of each entry: give --until.\n"
        assert run(small, "ignore", "--reason", "x") == (2, refusal)
        assert config(small) == before
        assert run(small, "ignore", "--reason", "100%", "--until", "2027-01-01")[0] == 0
        assert "    pkg.bad.Bad  # until 2027-01-01: 100%%\n" in config(small)
        assert tuple(small.lint()) == (0, report(kept=["Rule (1 ignored)"]))
        assert run(small, "ignore", "--until", "soon") == (
            2,
            "Error: --until soon is no date. Write it as 2027-03-01.\n",
        )

    def test_an_entry_that_ran_out_is_not_renewed(self, small):
        """Not even when its contract is named: that takes a new date, by hand."""
        small.contract(**RULE, ignore_definitions=["pkg.bad.Bad  # until 2026-12-23: x"])
        before = config(small)
        assert run(small, "ignore", "--grow", "0") == (1, "0: 1 ignored, 1 finding not: pkg.bad.Bad\n")
        assert config(small) == before

    def test_a_contract_that_does_not_exist(self, small):
        """The error lists those that do."""
        outcome = run(small, "ignore", "--grow", "rule")
        assert outcome == (2, "Error: --grow rule: there is no such contract. There are: 0.\n")

    def test_what_cannot_be_checked(self, small):
        """Nothing is written, since nobody knows today's findings."""
        small.contract(**{**RULE, "base_classes": ["pkg.base.Bass"]})
        before = config(small)
        code, text = run(small, "ignore")
        assert (code, config(small)) == (2, before)
        assert text.startswith("Error: '0' could not be checked:\nBase class 'pkg.base.Bass' does not exist.")

    def test_two_definitions_of_one_name(self, small):
        """One entry may not hide two, so none is written."""
        twice = 2 * "    class Bad(Base):\n        def run(self): ...\n"
        small.write({"pkg/bad.py": f"from pkg.base import Base\nif 1:\n{twice}"})
        code, text = run(small, "ignore")
        assert code == 2
        assert "'pkg.bad.Bad' names 2 definitions, and one entry may hide only one." in text

    def test_the_presets_are_not_edited(self, small):
        """They belong to the installed package."""
        preset = small.moe_contracts("preset", "vllm").text.strip()
        assert run(small, "ignore", "--config", preset) == (
            2,
            f"Error: {preset} is a preset, and no file of yours. Make a copy first: moe-contracts init --preset vllm\n",
        )

    def test_imports(self, small):
        """import-linter's own contracts have ignore_imports; a chain that another hides is ignored too."""
        small.write({"pkg/a.py": "from pkg import b, c\n", "pkg/b.py": "import pkg.d\n", "pkg/c.py": "import pkg.d\n"})
        small.write({"pkg/d.py": ""})
        forbidden = {"name": "No d", "type": "forbidden", "source_modules": "pkg.a", "forbidden_modules": "pkg.d"}
        layers = {"name": "Layers", "type": "layers", "layers": ["pkg.d", "pkg.a"]}
        stale = {**forbidden, "ignore_imports": ["pkg.a -> pkg.b", "pkg.b -> pkg.d", "pkg.x -> pkg.y"]}
        small.configure([forbidden, layers, stale])
        code, text = run(small, "ignore")
        assert (code, text) == (
            1,
            "0: 2 ignored (2 added)\n1: 2 ignored (2 added)\n2: 2 ignored (1 removed), 1 finding not: pkg.a -> pkg.c\n"
            "  A list only shrinks. To let this one grow: moe-contracts ignore --grow 2\n",
        )
        assert run(small, "ignore", "--grow", "2")[0] == 0
        assert small.lint().code == 0

    def test_a_type_without_a_list(self, small):
        """Its finding is named, and left."""
        source = "from importlinter import Contract, ContractCheck\n\n\nclass Third(Contract):\n"
        source += "    def check(self, graph, verbose):\n        return ContractCheck(kept=False)\n\n"
        source += "    def render_broken_contract(self, check): ...\n"
        small.write({"third_party.py": source})
        small.configure([{"name": "Third", "type": "third"}], session={"contract_types": ["third: third_party.Third"]})
        assert run(small, "ignore") == (1, "0: 1 finding, and its type has no list for them\n")


_MODULES = [f"pkg.{name}" for name in ("a", "a.x", "a.y", "b", "b.x", "c", "c.x", "d", "e", "f")]
_IMPORTS_OF_MODULES = st.sets(st.tuples(*[st.sampled_from(_MODULES)] * 2).filter(lambda pair: pair[0] != pair[1]))
_CONTRACTS = [
    (LayersContract, {"layers": ["pkg.a", "pkg.b", "pkg.c"]}),
    (LayersContract, {"layers": ["a | b", "(z)", "c : d"], "containers": ["pkg"]}),
    (LayersContract, {"layers": ["(x)", "(y)"], "containers": ["pkg.*"]}),
    (IndependenceContract, {"modules": ["pkg.a", "pkg.b.*", "pkg.c"]}),
]


@settings(max_examples=150, deadline=None)
@given(links=_IMPORTS_OF_MODULES, contract=st.sampled_from(_CONTRACTS))
def test_the_imports_that_are_ignored_at_once(links, contract):
    """Without them the contract is kept, and each is needed for that."""
    kind, options = contract

    def check(links):
        graph = grimp.ImportGraph()
        for module in ["pkg", *_MODULES]:
            graph.add_module(module)
        for importer, imported in links:
            graph.add_import(importer=importer, imported=imported)
        rule = kind("Rule", {"root_packages": ["pkg"]}, options)
        return rule, rule.check(graph, verbose=False), graph

    found = first_imports(*check(links))
    needed = {tuple(name.split(" -> ")) for name in found}
    assert needed <= links
    assert check(links - needed)[1].kept
    assert not any(check(links - (needed - {link}))[1].kept for link in needed)


ORDER = ["Rule (2 ignored)", "Other (2 ignored)"]

TOML = """\
[project]  # not ours
name = "x"

[tool.importlinter]
root_package = "pkg"
contract_types = ["placement: contracts.placement.PlacementContract"]

[[tool.importlinter.contracts]]  # the first
name = "Rule # 1"
type = 'placement'
base_classes = ["pkg.base.Base"]
{list}# [[not.a.table]]
allowed_modules = [
    "pkg.good",  # there
]

[tool.other]
text = \"\"\"
[[tool.importlinter.contracts]]
\"\"\"
"""


class TestLayouts:
    """The forms in which a list can be written."""

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("", None),
            ('ignore_definitions = ["pkg.gone.X"]\n', ['    "pkg.bad.Bad",']),
            ('ignore_definitions = "pkg.gone.X"  # why\n', ['    "pkg.bad.Bad",']),
            ("ignore_definitions = []\n", ['    "pkg.bad.Bad",']),
            (
                'ignore_definitions = [\n  # by hand\n  "pkg.gone.X",\n  "pkg.old.Old"  # last\n]\n',
                ["  # by hand", '  "pkg.old.Old",  # last', '  "pkg.bad.Bad",'],
            ),
            (
                "ignore_definitions = [\n\t'pkg.old.Old',\n\t'pkg.gone.X  # until 2027-01-01: x',\n]\n",
                ["\t'pkg.old.Old',", '\t"pkg.bad.Bad",'],
            ),
        ],
    )
    def test_toml(self, small, before, after):
        """Arrays on one line, on several, with and without comments and last commas; all else stays."""
        (small.folder / ".importlinter").unlink()
        if "pkg.old.Old" in before:
            small.write({"pkg/old.py": OLD})
        text = TOML.format(list=before)
        (small.folder / "pyproject.toml").write_text(text)
        assert run(small, "ignore", "--grow", "Rule # 1")[0] == 0
        new = config(small, "pyproject.toml")
        if after is None:
            expected = f'    "pkg.good",  # there\n]\nignore_definitions = [\n    # 1 {COUNT}\n    "pkg.bad.Bad",\n]\n'
            assert new == text.replace('    "pkg.good",  # there\n]\n', expected)
        else:
            indent = after[0][: len(after[0]) - len(after[0].lstrip())]
            comment = "  # why" if "# why" in before else ""
            body = "\n".join([f"{indent}# {len([a for a in after if '# by' not in a])} {COUNT}", *after])
            assert new == TOML.format(list=f"ignore_definitions = [\n{body}\n]{comment}\n")
        assert small.lint().code == 0
        assert tomllib.loads(new)["tool"]["other"] == tomllib.loads(text)["tool"]["other"]

    @pytest.mark.parametrize("text", ['[\n  "pkg.gone.X", "pkg.gone.Y",\n]', '[\n  "pkg.gone.X"]'])
    def test_toml_that_is_left_alone(self, small, text):
        """Comments in such a list could not be kept in their places."""
        (small.folder / ".importlinter").unlink()
        before = TOML.format(list=f"ignore_definitions = {text}\n")
        (small.folder / "pyproject.toml").write_text(before)
        code, said = run(small, "ignore")
        assert code == 2
        assert said == (
            "Error: pyproject.toml:12 this list cannot be edited line by line. Put each entry, and the closing "
            "bracket, on a line of its own.\n"
        )
        assert config(small, "pyproject.toml") == before

    def test_toml_with_inline_tables(self, small):
        """They are read, but not edited."""
        (small.folder / ".importlinter").unlink()
        rule = 'name = "R", type = "placement", base_classes = ["pkg.base.Base"], allowed_modules = ["pkg.good"]'
        types = 'contract_types = ["placement: contracts.placement.PlacementContract"]'
        text = f'[tool.importlinter]\nroot_package = "pkg"\n{types}\ncontracts = [{{{rule}}}]\n'
        (small.folder / "pyproject.toml").write_text(text)
        code, said = run(small, "ignore")
        assert code == 2
        assert said.startswith("Error: pyproject.toml writes its contracts in a form that cannot be edited line by")

    @pytest.mark.parametrize("name", [".importlinter", "setup.cfg"])
    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("ignore_definitions = pkg.gone.X", ["    pkg.bad.Bad"]),
            ("ignore_definitions: pkg.old.Old", ["    pkg.old.Old", "    pkg.bad.Bad"]),
            ("ignore_definitions = pkg.old.Old\n  pkg.gone.X", ["  pkg.old.Old", "  pkg.bad.Bad"]),
            ("Ignore_Definitions =\n\n    pkg.old.Old\n    ; by hand\n\n    pkg.gone.X", None),
        ],
    )
    def test_ini(self, small, name, before, after):
        """Values on the option's line, on their own lines, among comments and empty lines."""
        if "pkg.old.Old" in before:
            small.write({"pkg/old.py": OLD})
        text = config(small).replace("type = placement\n", f"type = placement\n{before}\n# [not:a:section]\n")
        (small.folder / ".importlinter").unlink()
        (small.folder / name).write_text(f"[metadata]\nname = x\n\n{text}\n[last]\na = b\n")
        assert run(small, "ignore", "--grow", "0")[0] == 0
        head = before.partition("\n")[0].replace(" pkg.gone.X", "").replace(" pkg.old.Old", "")
        if after is None:
            body = f"\n    # 2 {COUNT}\n\n    pkg.old.Old\n    ; by hand\n\n    pkg.bad.Bad"
        else:
            body = "\n" + "\n".join([f"{after[0][: -len(after[0].lstrip())]}# {len(after)} {COUNT}", *after])
        assert config(small, name) == f"[metadata]\nname = x\n\n{text}\n[last]\na = b\n".replace(before, head + body)
        assert small.lint().code == 0

    def test_line_ends_are_kept(self, small):
        """A file of Windows stays one."""
        path = small.folder / ".importlinter"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert run(small, "ignore")[0] == 0
        content = path.read_bytes()
        assert content.count(b"\r\n") == content.count(b"\n")
        assert b"    pkg.bad.Bad\r\n" in content
