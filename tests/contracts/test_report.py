"""``moe-contracts lint`` in each of its formats: the same findings in the same order, as their readers want them."""

import json
import os
import re
import sys
from pathlib import Path

import jsonschema
import pytest

import contracts.report.json as report_json
from contracts.report import sarif
from tests.contracts.projects import Outcome, Project, report

FORMATS = ("json", "sarif", "github")
BAD = "Bad is a Base and lives in pkg.bad: it belongs in pkg.good"
CYCLE = "The children of pkg import each other in a cycle, which would be broken without pkg.b -> pkg.a (l.1)"
STRAY = "pkg.spy is not listed as a layer, and the contract is exhaustive: every child of a container is"
CHAIN = "pkg.low is not allowed to import pkg.high: pkg.low -> pkg.middle (l.3), pkg.middle -> pkg.high (l.1)"

# Every type that import-linter has, and one that it does not know: all are broken.
FILES = {
    "pkg/high.py": "",
    "pkg/middle.py": "import pkg.high\n",
    "pkg/low.py": "def f():\n    from pkg import high\n    from pkg import middle\n",
    "pkg/secret.py": "",
    "pkg/spy.py": "import pkg.secret\n\nimport pkg.secret\n",
    "pkg/a.py": "from pkg import b\n",
    "pkg/b.py": "from pkg import a\n",
    "pkg/net.py": "import socket\n",
    "third.py": """\
        from importlinter import Contract, ContractCheck, output


        class Third(Contract):
            def check(self, graph, verbose):
                return ContractCheck(kept=False, metadata={"findings": "of a shape of its own"})

            def render_broken_contract(self, check):
                output.print_error("It is broken,")
                output.print_error("says the third party.")
        """,
}
CONTRACTS = [
    {"name": "Place, 100%%: all", "type": "placement", "base_classes": "pkg.base.Base", "allowed_modules": "pkg.good"}
    | {"broken_contract_guidance": "Move it."},
    {"name": "Layers", "type": "layers", "containers": "pkg", "layers": ["high", "middle", "low"], "exhaustive": "True"}
    | {"exhaustive_ignores": ["a", "b", "bad", "base", "good", "net", "secret"]},
    {"name": "Independent", "type": "independence", "modules": ["pkg.low", "pkg.high"]},
    {"name": "Protected", "type": "protected", "protected_modules": "pkg.secret", "allowed_importers": "pkg.good"},
    {"name": "Acyclic", "type": "acyclic_siblings", "ancestors": "pkg"},
    {"name": "Forbidden", "type": "forbidden", "source_modules": "pkg.net", "forbidden_modules": "socket"},
    {"name": "Third", "type": "third"},
]
EXPECTED = [  # contract, path, line, column, message
    ("Place, 100%: all", "pkg/bad.py", 4, 7, BAD),
    ("Layers", "pkg/low.py", 2, 5, "pkg.low is not allowed to import pkg.high: pkg.low -> pkg.high (l.2)"),
    ("Layers", "pkg/low.py", 3, 5, "pkg.low is not allowed to import pkg.middle: pkg.low -> pkg.middle (l.3)"),
    ("Layers", "pkg/middle.py", 1, 1, "pkg.middle is not allowed to import pkg.high: pkg.middle -> pkg.high (l.1)"),
    ("Layers", "pkg/spy.py", 1, 1, STRAY),
    ("Independent", "pkg/low.py", 2, 5, "pkg.low is not allowed to import pkg.high: pkg.low -> pkg.high (l.2)"),
    ("Independent", "pkg/low.py", 3, 5, CHAIN),
    ("Protected", "pkg/spy.py", 1, 1, "pkg.secret is protected: pkg.spy -> pkg.secret (l.1, l.3)"),
    ("Acyclic", "pkg/b.py", 1, 1, CYCLE),
    ("Forbidden", "pkg/net.py", 1, 1, "pkg.net is not allowed to import socket: pkg.net -> socket (l.1)"),
    ("Third", ".importlinter", 0, None, "It is broken,\nsays the third party."),
]


def moe_contracts(project: Project, *arguments: str, **environment: str) -> Outcome:
    """Run ``moe-contracts`` in a process of its own, standard error apart from what is returned."""
    code = "import sys; sys.stderr = open('stderr.txt', 'w'); from contracts.cli import main; main()"
    done = project.run([sys.executable, "-P", "-c", code, *arguments], env={"GITHUB_WORKSPACE": "", **environment})
    return Outcome(done.returncode, done.stdout)


@pytest.fixture
def broken(small) -> Project:
    """Give a project that breaks a contract of every type."""
    small.write(FILES)
    small.configure(CONTRACTS, session={"include_external_packages": "True"})
    config = small.folder / ".importlinter"
    config.write_text(config.read_text().replace("contract_types =", "contract_types =\n    third: third.Third"))
    return small


def line_of(project: Project, text: str) -> int:
    """The line of the configuration that says ``text``."""
    return (project.folder / ".importlinter").read_text().splitlines().index(text) + 1


def told(form: str, text: str) -> list[tuple[str, str, int, int | None, str]]:
    """The findings that an output in a format tells: contract, path, line, column, message."""
    if form == "json":
        return [
            (contract["name"], found["path"], found["line"], found["column"], found["message"])
            for contract in json.loads(text)["contracts"]
            for found in contract["findings"]
        ]
    if form == "sarif":
        run = json.loads(text)["runs"][0]
        found = []
        for result in run["results"]:
            place = result["locations"][0]["physicalLocation"]
            region, path = place["region"], place["artifactLocation"]["uri"]
            rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
            assert rule["id"] == result["ruleId"]
            name = rule["shortDescription"]["text"]
            found.append((name, path, region["startLine"], region.get("startColumn"), result["message"]["text"]))
        return found
    found = []
    for line in text.splitlines()[:-1]:
        match = re.fullmatch(r"::error file=(.*?),line=(\d+)(?:,col=(\d+))?,title=(.*?)::(.*)", line)
        assert match, line
        path, number, column, title, message = (unescaped(part) if part else None for part in match.groups())
        found.append((title, path, int(number), column and int(column), message.removesuffix("\nMove it.")))
    return found


def unescaped(text: str) -> str:
    """What GitHub's runner makes of a property or a message."""
    for code, character in (("%2C", ","), ("%3A", ":"), ("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        text = text.replace(code, character)
    return text


@pytest.mark.parametrize("form", FORMATS)
def test_all_contracts_in_all_formats(broken, form):
    """Findings of every contract type, import-linter's own and unknown ones included, with file, line and column."""
    outcome = moe_contracts(broken, "lint", "--format", form)
    third = line_of(broken, "[importlinter:contract:6]")
    expected = [*EXPECTED[:-1], (*EXPECTED[-1][:2], third, *EXPECTED[-1][3:])]
    assert told(form, outcome.text) == expected
    assert outcome.code == 1
    assert (broken.folder / "stderr.txt").read_text() == ""


def test_text_is_what_lint_imports_prints(broken):
    """To the letter, for every type, but for the order of chains, which is a matter of chance there."""
    theirs = broken.lint_as_process(path=[broken.folder])
    ours = moe_contracts(broken, "lint", "--no-logo")
    assert sorted(ours.text.splitlines()) == sorted(theirs.text.splitlines())
    assert ours.code == theirs.code == 1


def test_chains_come_in_one_order(broken):
    """import-linter's layers and independence come in another order in every process; here they do not."""
    texts = {moe_contracts(broken, "lint", "--no-logo", PYTHONHASHSEED=str(seed)).text for seed in range(4)}
    assert len(texts) == 1


def test_sarif_satisfies_its_schema(broken, fixtures):
    """The schema is OASIS's, of SARIF 2.1.0; the rest is what GitHub asks of code scanning."""
    log = json.loads(moe_contracts(broken, "lint", "--format", "sarif").text)
    jsonschema.validate(log, json.loads((fixtures / "sarif-schema-2.1.0.json").read_text()))
    (run,) = log["runs"]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(ids) == len(set(ids)) == len(CONTRACTS)
    fingerprints = [result["partialFingerprints"]["primaryLocationLineHash"] for result in run["results"]]
    assert len(set(fingerprints)) == len(fingerprints)
    for result in run["results"]:
        artifact = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert artifact["uriBaseId"] in run["originalUriBaseIds"]
        assert not artifact["uri"].startswith("/")


def test_json_satisfies_its_schema(broken):
    """The schema lies beside the module that writes it."""
    content = json.loads(moe_contracts(broken, "lint", "--format", "json").text)
    schema = json.loads(Path(report_json.__file__).with_name("schema.json").read_text())
    jsonschema.validate(content, schema)
    assert content["schema_version"] == report_json.SCHEMA_VERSION == schema["properties"]["schema_version"]["const"]
    assert (content["kept"], content["broken"], content["unchecked"]) == (0, 7, 0)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "contracts": [{}]}, schema)


def test_fingerprints_survive_a_moved_line(broken):
    """An alert on GitHub stays the same one when lines are put in above it."""

    def fingerprints() -> list[str]:
        log = json.loads(moe_contracts(broken, "lint", "--format", "sarif").text)
        return [result["partialFingerprints"]["primaryLocationLineHash"] for result in log["runs"][0]["results"]]

    before = fingerprints()
    for path in broken.folder.glob("pkg/*.py"):
        path.write_text("# moved\n" + path.read_text())
    assert fingerprints() == before


def test_paths_are_relative_to_the_checkout(broken):
    """A workflow may lint in a folder of the checkout; GitHub wants paths from its root."""
    workspace = str(broken.folder.parent)
    prefix = broken.folder.name
    for form in ("sarif", "github"):
        outcome = moe_contracts(broken, "lint", "--format", form, GITHUB_WORKSPACE=workspace)
        assert told(form, outcome.text)[0][1] == f"{prefix}/pkg/bad.py"


@pytest.fixture
def doubtful(small) -> Project:
    """Give a project with a finding, an ignored one, a warning with a place, and a problem with the configuration."""
    small.write({
        "pkg/old.py": "from pkg.base import Base\n\n\nclass Old(Base):\n    def run(self): ...\n",
        "pkg/open.py": "from pkg.base import Base\n\n\nclass Open(*eval('(Base,)')):\n    def run(self): ...\n",
    })  # fmt: skip
    small.contract(
        type="placement",
        base_classes=["pkg.base.Base"],
        allowed_modules=["pkg.good"],
        ignore_definitions=["pkg.old.Old", "pkg.gone.Gone"],
    )
    return small


DOUBT = (
    "Open may be a Base, which belongs in pkg.good: one of its bases comes from eval(), which reading cannot "
    "follow. Write that base out, or add pkg.open.Open to ignore_definitions"
)
STALE = "ignore_definitions: 'pkg.gone.Gone' matches nothing any more. Remove it."


def test_warnings_problems_and_ignored_in_text(doubtful):
    """What could not be checked makes the exit code 2, and what is ignored is counted."""
    broken = [STALE, f"pkg/bad.py:4:7 {BAD}"]
    expected = report({"Rule (1 ignored)": broken}, warnings={"Rule (1 ignored)": [f"pkg/open.py:4:7 {DOUBT}"]})
    assert tuple(moe_contracts(doubtful, "lint", "--no-logo")) == (2, expected)


def test_warnings_problems_and_ignored_in_json(doubtful):
    """Each has its place: a stale entry, its line of the configuration."""
    content = json.loads(moe_contracts(doubtful, "lint", "--format", "json").text)
    (contract,) = content["contracts"]
    line = line_of(doubtful, "    pkg.gone.Gone")
    place = {"column": None, "name": None}
    assert contract["problems"] == [{"path": ".importlinter", "line": line, "message": STALE, **place}]
    assert contract["warnings"] == [
        {"path": "pkg/open.py", "line": 4, "column": 7, "name": "pkg.open.Open", "message": DOUBT},
    ]
    assert (contract["name"], contract["status"], contract["ignored"]) == ("Rule", "broken", 1)
    assert (content["exit_code"], content["broken"]) == (2, 1)


def test_warnings_problems_and_ignored_on_github(doubtful):
    """The whole text."""
    line, section = line_of(doubtful, "    pkg.gone.Gone"), line_of(doubtful, "[importlinter:contract:0]")
    expected = [
        f"::error file=pkg/bad.py,line=4,col=7,title=Rule::{BAD}",
        f"::error file=.importlinter,line={line},title=Rule::{STALE}",
        f"::warning file=pkg/open.py,line=4,col=7,title=Rule::{DOUBT}",
        f"::notice file=.importlinter,line={section},title=Rule::1 ignored",
        "Contracts: 0 kept, 1 broken. Findings: 1, and 1 ignored.",
    ]
    assert moe_contracts(doubtful, "lint", "--format", "github") == Outcome(2, "\n".join(expected) + "\n")


def test_warnings_problems_and_ignored_in_sarif(doubtful, fixtures):
    """Results all of them, since results are what code scanning shows."""
    log = json.loads(moe_contracts(doubtful, "lint", "--format", "sarif").text)
    jsonschema.validate(log, json.loads((fixtures / "sarif-schema-2.1.0.json").read_text()))
    (run,) = log["runs"]
    told = [(result["level"], result["properties"]["kind"], result["message"]["text"]) for result in run["results"]]
    assert told == [("error", "finding", BAD), ("error", "problem", STALE), ("warning", "warning", DOUBT)]
    assert run["properties"] == {"ignored": 1}
    assert run["invocations"] == [{"executionSuccessful": False, "exitCode": 2}]


@pytest.mark.parametrize("form", ["text", *FORMATS])
def test_a_configuration_that_cannot_be_used(small, form, fixtures):
    """No configuration, no contract of that id, a misspelt type, a misspelt option: exit code 2, and the reason."""
    cases = {
        "Could not find other.ini.": ["--config", "other.ini"],
        "Could not find contract 'none'.": ["--contract", "none"],
    }
    for reason, arguments in cases.items():
        outcome = moe_contracts(small, "lint", "--no-logo", "--format", form, *arguments)
        assert outcome.code == 2
        assert reason in unescaped(outcome.text)
    small.contract(type="placment", base_classes=["pkg.base.Base"], allowed_modules=["pkg.good"])
    outcome = moe_contracts(small, "lint", "--no-logo", "--format", form)
    assert outcome.code == 2
    known = "There is no contract type 'placment'. Name its class under contract_types: 'placment: module.Class'."
    assert known in " ".join(unescaped(outcome.text).split())
    small.contract(type="placement", base_classes=["pkg.base.Base"], allowed_modules=["pkg.good"], ignored="x")
    outcome = moe_contracts(small, "lint", "--no-logo", "--format", form)
    assert outcome.code == 2
    assert "ignored: Unrecognized option." in unescaped(outcome.text)
    if form == "sarif":
        jsonschema.validate(json.loads(outcome.text), json.loads((fixtures / "sarif-schema-2.1.0.json").read_text()))


def test_debug_shows_where_it_failed(small):
    """As lint-imports --debug does."""
    moe_contracts(small, "lint", "--debug", "--format", "json", "--config", "other.ini")
    assert "Traceback" in (small.folder / "stderr.txt").read_text()


@pytest.mark.parametrize("form", ["text", *FORMATS])
def test_output_to_a_file(small, form):
    """The file holds what would have been printed, and has the mode that any new file has."""
    printed = moe_contracts(small, "lint", "--no-logo", "--format", form)
    written = moe_contracts(small, "lint", "--no-logo", "--format", form, "--output", "out")
    assert written == Outcome(printed.code, "")
    out = small.folder / "out"
    assert out.read_text() == printed.text
    (small.folder / "other").write_text("")
    assert out.stat().st_mode == (small.folder / "other").stat().st_mode


def test_output_is_written_whole_or_not_at_all(small):
    """Where it cannot be written it says so; what was there is left, and nothing lies about."""
    before = sorted(os.listdir(small.folder))
    outcome = moe_contracts(small, "lint", "--output", "missing/out")
    assert outcome == Outcome(2, "")
    folder = small.folder / "missing"
    text = (small.folder / "stderr.txt").read_text()
    assert text == f"Error: --output missing/out: there is no folder {folder}. Create it first.\n"
    assert moe_contracts(small, "lint", "--output", "pkg").code == 2
    assert "--output pkg is a folder. Name a file." in (small.folder / "stderr.txt").read_text()
    assert sorted({*os.listdir(small.folder)} - {"stderr.txt", ".import_linter_cache"}) == before


def test_output_survives_a_failure(tmp_path, monkeypatch):
    """A disk that is full leaves the old file."""
    from contracts import _writing

    path = tmp_path / "out"
    path.write_text("old")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_writing.os, "replace", full)
    with pytest.raises(_writing.CouldNotError, match="cannot be written: No space left on device"):
        _writing.write_whole(str(path), "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_more_results_than_github_takes(monkeypatch, doubtful):
    """The rest is counted, never dropped in silence."""
    from contracts.report.run import Item, Run, Verdict

    item = Item("finding", "a.py", 1, 1, "x", "text")
    run = Run(verdicts=[Verdict("r", "Rule", "placement", [item] * 5, 0, "", 1)])
    monkeypatch.setattr(sarif, "MOST_RESULTS", 3)
    (log,) = json.loads(sarif.render(run))["runs"]
    assert len(log["results"]) == 3
    (said,) = log["invocations"][0]["toolExecutionNotifications"]
    assert said["message"]["text"] == "2 more results are left out: GitHub takes 3"


def test_a_run_without_findings_loads_no_more_than_it_needs(small):
    """``moe-contracts lint`` is no slower than lint-imports: what tells findings is not loaded where there are none."""
    small.write({"pkg/bad.py": ""})
    code = (
        "import atexit, sys; from contracts.cli import main; "
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr)); main()"
    )
    done = small.run([sys.executable, "-P", "-c", code, "lint", "--no-logo"])
    assert done.returncode == 0
    loaded = {*done.stdout.split()}
    assert "contracts.report" in loaded
    needless = {"contracts.report.run", "contracts.report._imports", "contracts._layout", "tempfile"}
    assert loaded & needless == set()
