"""What cannot be checked is an error that says so, whole, and never a pass."""

import os
import sys
from typing import ClassVar

import pytest

from tests.contracts.conftest import SMALL
from tests.contracts.projects import listing, refused, report

PLACEMENT = {"type": "placement", "base_classes": ["pkg.base.Base"], "allowed_modules": ["pkg.good"]}
FORBIDDEN = {"type": "forbidden_definitions", "modules": ["pkg.*"], "subclasses_of": ["pkg.base.Base"]}
BAD = "pkg/bad.py:4:7 Bad is a Base and lives in pkg.bad: it belongs in pkg.good"
FORBIDDEN_BAD = "pkg/bad.py:4:7 Bad is a Base and is defined in pkg.bad: pkg.* may define none"
SUBCLASS = SMALL["pkg/bad.py"]
NO_BAD = {"pkg/bad.py": ""}
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
NEWER = "Correct it, or run lint-imports with the Python that it is written for"
before_312 = pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python reads that syntax")


OUTSIDE = "is outside the root packages (pkg)"
BASES = {
    "pkg.base.Bose": "does not exist. Closest name: 'Base'.",
    "pkg.base.Zebra": "does not exist. pkg.base defines: Base.",
    "pkg.values.Zebra": "does not exist. pkg.values defines: no class.",
    "pkg.bose.Base": "does not exist. Closest module: 'pkg.base'.",
    "pkg.good.fone.Fine": "does not exist. Closest module: 'pkg.good.fine'.",
    "pkg.quagga_house.Base": "does not exist. There is no module 'pkg.quagga_house'.",
    "pkg.base.Base.Inner": "does not exist. pkg.base defines: Base.",
    "pkg.base": "is no class that reading can find: it is a module. Name a class in it.",
    "pkg.values.make": "is no class that reading can find: it is a function. Name the class that it makes.",
    "pkg.values.number": "is no class that reading can find: it is another kind of value. Name a class statement.",
    "pkg.values.JSONDecoder": "is no class that reading can find: it is json.JSONDecoder, outside the root packages "
    "(pkg), which are all that is read.",
    "json.JSONDecoder": f"{OUTSIDE}, which are all that is read. Add 'json' to root_packages, or name a class of pkg.",
    "json.decoder.JSONDecoder": f"{OUTSIDE}, which are all that is read. Add 'json' to root_packages, or name a class "
    "of pkg.",
    "pgk.base.Base": f"{OUTSIDE}, and there is no package 'pgk' on the path. Name a class of pkg.",
    "Base": f"{OUTSIDE}, and there is no package 'Base' on the path. Name a class of pkg.",
}


@pytest.mark.parametrize("option", ["base_classes", "subclasses_of"])
@pytest.mark.parametrize(("base", "text"), BASES.items())
def test_a_base_that_cannot_be_found(small, base, text, option):
    """Says what is wrong with the name and gives the closest one that exists."""
    small.write({"pkg/values.py": "from json import JSONDecoder\nnumber = 7\n\n\ndef make(): ...\n"})
    contract = PLACEMENT if option == "base_classes" else FORBIDDEN
    small.configure([{**contract, option: [base]}])
    assert tuple(small.lint()) == (1, report({"Rule": [f"Base class '{base}' {text}"]}))


def test_a_base_in_a_namespace_package_that_cannot_be_found(empty):
    """The closest module is named there too."""
    empty.write({"space/core/__init__.py": "", "space/core/base.py": "class Base: ...\n"})
    contract = {**PLACEMENT, "base_classes": ["space.cure.Base"], "allowed_modules": ["space.core"]}
    empty.configure([contract], roots=["space"])
    line = "Base class 'space.cure.Base' does not exist. Closest module: 'space.core'."
    assert tuple(empty.lint()) == (1, report({"Rule": [line]}))


def test_several_root_packages_are_all_named(small):
    """The message lists the root packages."""
    small.write({"other/__init__.py": ""})
    small.configure([{**PLACEMENT, "base_classes": ["json.JSONDecoder"]}], roots=["pkg", "other"])
    line = (
        "Base class 'json.JSONDecoder' is outside the root packages (pkg, other), which are all that is read. "
        "Add 'json' to root_packages, or name a class of pkg, other."
    )
    assert tuple(small.lint()) == (1, report({"Rule": [line]}))


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("pkg.goood", "no module of the root packages matches 'pkg.goood'. Closest module: 'pkg.good'."),
        ("pkg.goood.*", "no module of the root packages matches 'pkg.goood.*'. Closest module: 'pkg.good'."),
        (
            "pkg.good.fine.*",
            "no module of the root packages matches 'pkg.good.fine.*'. Closest module: 'pkg.good.fine'.",
        ),
        ("zebra", "no module of the root packages matches 'zebra'."),
        ("json", "no module of the root packages matches 'json'."),
        (
            "pkg..good",
            "'pkg..good' is no module expression. Write a module's dotted name, in which * stands for one part and "
            "** for one or more.",
        ),
    ],
)
@pytest.mark.parametrize("option", ["allowed_modules", "modules"])
def test_a_module_that_cannot_be_found(small, option, expression, text):
    """An expression that matches nothing is an error even beside one that matches; other packages' modules do not."""
    small.write({"pkg/uses.py": "import json\n"})
    contract = PLACEMENT if option == "allowed_modules" else FORBIDDEN
    session = {"include_external_packages": "True"}
    small.configure([{**contract, option: ["pkg.good", expression]}], session=session)
    assert tuple(small.lint()) == (1, report({"Rule": [f"{option}: {text}"]}))


@pytest.mark.parametrize(
    ("contract", "line"),
    [
        ({**PLACEMENT, "base_classes": []}, "base_classes: Nothing to check: give at least one."),
        ({**PLACEMENT, "base_classes": ["", " "]}, "base_classes: Nothing to check: give at least one."),
        ({**PLACEMENT, "allowed_modules": []}, "allowed_modules: Nothing to check: give at least one."),
        ({**FORBIDDEN, "modules": []}, "modules: Nothing to check: give at least one."),
        ({**FORBIDDEN, "subclasses_of": []}, "subclasses_of: Nothing to check: give subclasses_of or names."),
        (
            {"type": "forbidden_definitions", "modules": ["pkg.*"]},
            "subclasses_of: Nothing to check: give subclasses_of or names.",
        ),
        (
            {**PLACEMENT, "base_clases": ["pkg.base.Base"]},
            "base_clases: Unrecognized option. Did you mean 'base_classes'?",
        ),
        ({**FORBIDDEN, "name_pattern": "x"}, "name_pattern: Unrecognized option."),
        (
            {**PLACEMENT, "abstract_classes": "maybe"},
            "abstract_classes: Invalid value 'maybe': expected 'exempt' or 'checked'.",
        ),
        (
            {**PLACEMENT, "undecided_alerting": "loud"},
            "undecided_alerting: Invalid value 'loud': expected 'none', 'warn' or 'error'.",
        ),
        (
            {**PLACEMENT, "allowed_modules": ["pkg.good*"]},
            "allowed_modules: A wildcard can only replace a whole module.",
        ),
    ],
)
@pytest.mark.parametrize("syntax", ["ini", "toml"])
def test_options_that_are_refused(small, contract, line, syntax):
    """Empty lists, which would check nothing; misspelt options; values that an option does not have."""
    small.configure([contract], syntax=syntax)
    assert tuple(small.lint()) == (1, "\n" + refused("Rule", line))


def test_options_that_are_missing(small):
    """All of them are named."""
    small.configure([{"type": "placement"}])
    lines = ["base_classes: This is a required field.", "allowed_modules: This is a required field."]
    assert tuple(small.lint()) == (1, "\n" + refused("Rule", *lines))


@pytest.mark.parametrize(
    ("options", "kind"), [({}, "concrete subclass"), ({"abstract_classes": "checked"}, "subclass")]
)
def test_a_base_without_subclasses(small, options, kind):
    """A placement contract that places nothing is no pass."""
    small.write({"pkg/lone.py": "class Lone: ...\n\n\nclass Alone: ...\n"})
    small.configure([{**PLACEMENT, "base_classes": ["pkg.lone.Lone", "pkg.lone.Alone"], **options}])
    line = (
        f"Nothing to check: pkg.lone.Lone or pkg.lone.Alone has no {kind} in pkg. "
        "Correct base_classes, or remove the contract."
    )
    assert tuple(small.lint()) == (1, report({"Rule": [line]}))


def test_a_base_with_abstract_subclasses_only(small):
    """Abstract subclasses are nothing to place unless they are asked for."""
    small.write({**NO_BAD, "pkg/good/fine.py": "from pkg.base import Base\n\n\nclass Mid(Base): ...\n"})
    line = (
        "Nothing to check: pkg.base.Base has no concrete subclass in pkg. "
        "Correct base_classes, or remove the contract."
    )
    assert tuple(small.lint()) == (1, report({"Rule": [line]}))
    small.configure([{**PLACEMENT, "abstract_classes": "checked"}])
    assert tuple(small.lint()) == (0, report(kept=["Rule"]))


class TestWhereImportLinterStopsFirst:
    """Its messages, which name the file or the package, are enough to act on."""

    def stopped(self, project, **options):
        outcome = project.lint_as_process(env={"COLUMNS": "1000"}, **options)  # it wraps, and may do so inside a path
        return outcome.code, outcome.text.strip()

    def test_a_missing_root_package(self, small):
        """Names the package."""
        small.configure([PLACEMENT], roots=["pkg", "nowhere"])
        assert self.stopped(small) == (1, "Could not find package 'nowhere' in your Python path.")

    def test_a_root_package_that_is_a_module(self, small):
        """Names the module, and says what is expected."""
        small.write({"lone.py": ""})
        small.configure([PLACEMENT], roots=["lone"])
        text = (
            "'lone' is a module, not a package. root_packages should only contain packages (directories with "
            "__init__.py), not individual .py files."
        )
        assert self.stopped(small) == (1, text)

    def test_a_syntax_error(self, small):
        """Names the file and the line, wherever in the root packages it is."""
        small.write({"pkg/broken.py": "x = 1\nclass (:\n"})
        assert self.stopped(small) == (1, f"Syntax error in {small.folder}/pkg/broken.py, line 2: class (:")

    def test_a_file_that_cannot_be_decoded(self, small):
        """Names the file and the encoding."""
        small.write({"pkg/broken.py": b"name = '\xff'\n"})
        text = f"Failed to decode file {small.folder}/pkg/broken.py as UTF-8: invalid utf-8 sequence of 1 bytes from"
        code, message = self.stopped(small)
        assert (code, message) == (1, f"{text} index 8")

    def test_an_unknown_encoding(self, small):
        """Names the file and the encoding."""
        small.write({"pkg/broken.py": "# coding: klingon\n"})
        text = f"Failed to decode file {small.folder}/pkg/broken.py (unknown encoding 'klingon')"
        assert self.stopped(small) == (1, text)

    def test_a_file_that_cannot_be_read(self, small):
        """Names the file and the reason."""
        (small.folder / "pkg/bad.py").chmod(0)
        text = f"Failed to read file {small.folder}/pkg/bad.py: Permission denied (os error 13)"
        assert self.stopped(small, obeys_modes=True) == (1, text)

    def test_a_link_that_leads_nowhere(self, small):
        """Names the link and the reason."""
        (small.folder / "pkg/gone.py").symlink_to("nowhere.py")
        text = f"[Errno 2] No such file or directory: '{small.folder}/pkg/gone.py'"
        assert self.stopped(small) == (1, text)

    def test_no_configuration(self, small):
        """Says that there is none."""
        (small.folder / ".importlinter").unlink()
        assert self.stopped(small) == (1, "Could not read any configuration.")


class TestFilesThatCannotBeChecked:
    """Files that import-linter reads, or has read in an earlier run, and the contract cannot."""

    @before_312
    @pytest.mark.parametrize(
        ("source", "line", "message"),
        [
            ("type Number = int\n", 4, "invalid syntax"),
            ("class Generic[T](Base): ...\n", 4, "invalid syntax"),
            ("text = f'{'inner'}'\n", 4, "f-string: expecting '}'"),
            ("text = f'''{\n'x' # a comment\n}'''\n", 6, "f-string expression part cannot include '#'"),
        ],
    )
    @pytest.mark.parametrize("contract", [PLACEMENT, FORBIDDEN])
    def test_syntax_newer_than_the_running_python(self, small, source, line, message, contract):
        """An error with path and line, and a word on the Python version, where the file may hold a subclass."""
        small.write({**NO_BAD, "pkg/new.py": "from pkg.base import Base\n\n\n" + source + "class New(Base): ...\n"})
        small.configure([contract])
        text = f"pkg/new.py:{line} cannot be parsed by Python {RUNNING}: {message}. {NEWER}"
        assert tuple(small.lint()) == (1, report({"Rule": [text]}))

    @before_312
    def test_what_else_is_known_is_reported_beside_it(self, small):
        """One unreadable file hides no finding in another."""
        small.write({"pkg/new.py": "from pkg.base import Base\ntype Number = int\nclass New(Base): ...\n"})
        text = f"pkg/new.py:2 cannot be parsed by Python {RUNNING}: invalid syntax. {NEWER}"
        assert tuple(small.lint()) == (1, report({"Rule": [text, BAD]}))

    @before_312
    def test_newer_syntax_in_the_module_of_the_base(self, small):
        """The path is relative there too."""
        small.write({"pkg/base.py": "type Number = int\n\n\nclass Base: ...\n"})
        text = f"pkg/base.py:1 cannot be parsed by Python {RUNNING}: invalid syntax. {NEWER}"
        assert tuple(small.lint()) == (1, report({"Rule": [text]}))

    @before_312
    @pytest.mark.parametrize(
        "source",
        [
            "type Number = int\nclass Generic[T](object): ...\n",
            "from pkg.base import Base\ntype Number = int\ndef use(base: Base) -> Base: ...\n",
            "from collections import namedtuple\ntype N = int\nclass Point(namedtuple('Point', 'x y')): ...\n",
        ],
        ids=["without the base", "the base in annotations only", "a class of computed bases, unrelated"],
    )
    def test_newer_syntax_where_no_subclass_can_be(self, small, source):
        """A file that has nothing to do with the base does not break the contract."""
        small.write({**NO_BAD, "pkg/new.py": source})
        assert tuple(small.lint()) == (0, report(kept=["Rule"]))

    @before_312
    def test_an_unreadable_file_concerns_the_contracts_that_it_may_break(self, small):
        """A contract on another base is not broken by it, whichever comes first."""
        small.write({**NO_BAD, "pkg/new.py": "from pkg.base import Base\ntype Number = int\nclass New(Base): ...\n"})
        small.write({"pkg/good/own.py": "class Own: ...\n\n\nclass Mine(Own): ...\n"})
        other = {**PLACEMENT, "name": "Other", "base_classes": ["pkg.good.own.Own"]}
        text = f"pkg/new.py:2 cannot be parsed by Python {RUNNING}: invalid syntax. {NEWER}"
        for contracts, order in (([PLACEMENT, other], ["Rule", "Other"]), ([other, PLACEMENT], ["Other", "Rule"])):
            small.configure(contracts)
            expected = report({"Rule": [text]}, kept=["Other"], order=order)
            assert tuple(small.lint("--no-cache")) == (1, expected)

    @pytest.mark.parametrize(
        "expression", ["+".join(["1"] * 20_000), "x" + ".x" * 20_000], ids=["20,000 terms", "20,000 attributes"]
    )
    def test_an_expression_too_deep_to_parse(self, small, expression):
        """An error, not a crash of the parser, and not a pass."""
        small.write({**NO_BAD, "pkg/deep.py": f"from pkg.base import Base\nx = {expression}\nclass Deep(Base): ...\n"})
        text = "pkg/deep.py:1 cannot be parsed: an expression is nested too deeply for Python's parser. Split it"
        assert tuple(small.lint()) == (1, report({"Rule": [text]}))

    def test_an_expression_too_deep_where_no_subclass_can_be(self, small):
        """It is not parsed at all."""
        small.write({**NO_BAD, "pkg/deep.py": "x = " + "+".join(["1"] * 20_000) + "\n"})
        assert tuple(small.lint()) == (0, report(kept=["Rule"]))

    @pytest.mark.parametrize("contract", [PLACEMENT, FORBIDDEN])
    def test_a_file_that_can_no_longer_be_read(self, small, contract):
        """import-linter remembers the file's imports and does not look; the contract does."""
        small.configure([contract])
        assert small.lint().code == 1
        (small.folder / "pkg/bad.py").chmod(0)
        text = "pkg/bad.py:1 cannot be read: Permission denied. Make it readable"
        assert tuple(small.lint_as_process(obeys_modes=True)) == (1, report({"Rule": [text]}))

    def test_a_folder_that_cannot_be_read(self, small):
        """import-linter passes over it in silence; the contract does not."""
        small.write({**NO_BAD, "pkg/sub/mod.py": SUBCLASS, "pkg/sub/__init__.py": ""})
        assert listing(small.folder / "pkg/sub") == ["__init__.py", "mod.py"]
        (small.folder / "pkg/sub").chmod(0)
        text = "pkg/sub:1 cannot be read: Permission denied. Make it readable"
        outcome = small.lint_as_process(obeys_modes=True)
        (small.folder / "pkg/sub").chmod(0o755)
        assert tuple(outcome) == (1, report({"Rule": [text]}))

    def test_a_file_that_import_linter_remembers_and_nobody_can_decode(self, small):
        """Changed without a change of its time, the file is old to import-linter and new to the contract."""
        assert small.lint().code == 1
        path = small.folder / "pkg/bad.py"
        stat = path.stat()
        path.write_bytes(SUBCLASS.encode() + b"\n\n# \xff\n")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        text = (
            "pkg/bad.py:8 cannot be decoded: byte 0xff is not utf-8. Save it as UTF-8, or name its encoding in a "
            "coding comment"
        )
        assert tuple(small.lint()) == (1, report({"Rule": [text]}))


class TestFilesThatTheGraphLeavesOut:
    """Python files below a root package that import-linter does not see."""

    CASES: ClassVar = {
        "no __init__.py": (
            {"pkg/sub/mod.py": SUBCLASS},
            ["pkg/sub/mod.py:4 defines Bad, but {}: pkg/sub has no __init__.py. Add pkg/sub/__init__.py"],
        ),
        "no __init__.py further up": (
            {"pkg/sub/deep/__init__.py": "", "pkg/sub/deep/mod.py": SUBCLASS},
            ["pkg/sub/deep/mod.py:4 defines Bad, but {}: pkg/sub has no __init__.py. Add pkg/sub/__init__.py"],
        ),
        "in the __init__.py of such a folder": (
            {"pkg/sub/deep/__init__.py": SUBCLASS},
            ["pkg/sub/deep/__init__.py:4 defines Bad, but {}: pkg/sub has no __init__.py. Add pkg/sub/__init__.py"],
        ),
        "a dot in the name": (
            {"pkg/a.b.py": SUBCLASS},
            ["pkg/a.b.py:4 defines Bad, but {}: its name is no Python identifier. Rename it"],
        ),
        "a dash in a folder's name": (
            {"pkg/my-dir/__init__.py": SUBCLASS, "pkg/my-dir/mod.py": SUBCLASS},
            [
                "pkg/my-dir/__init__.py:4 defines Bad, but {}: the name of pkg/my-dir is no Python identifier. "
                "Rename it",
                "pkg/my-dir/mod.py:4 defines Bad, but {}: the name of pkg/my-dir is no Python identifier. Rename it",
            ],
        ),
        "a dot in a folder's name": (
            {"pkg/v1.0/mod.py": SUBCLASS},
            ["pkg/v1.0/mod.py:4 defines Bad, but {}: the name of pkg/v1.0 is no Python identifier. Rename it"],
        ),
    }

    @pytest.mark.parametrize("case", CASES)
    def test_one_with_a_subclass(self, small, case):
        """Nobody can say under which module it belongs, so it is an error that says what to mend."""
        files, lines = self.CASES[case]
        small.write({**NO_BAD, **files})
        lines = [line.format("the import graph leaves it out") for line in lines]
        assert tuple(small.lint()) == (1, self.grimp_says(small, files) + report({"Rule": lines}))

    @pytest.mark.parametrize("case", CASES)
    def test_one_without(self, small, case):
        """A file that has nothing to do with the base is left in peace."""
        files, _ = self.CASES[case]
        unrelated = "import json\n\n\nclass Other(json.JSONDecoder): ...\n"
        small.write({**NO_BAD, **dict.fromkeys(files, unrelated)})
        assert tuple(small.lint()) == (0, self.grimp_says(small, files) + report(kept=["Rule"]))

    @staticmethod
    def grimp_says(project, files):
        """Of files with a dot in the name, grimp says that it skips them."""
        dotted = [project.folder / name for name in files if name == "pkg/a.b.py"]
        return "".join(f"Warning: skipping module with too many dots in the name: {path}\n" for path in dotted)

    def test_a_dash_in_the_name_is_no_hindrance(self, small):
        """Such a file is in the import graph, and its classes are found."""
        small.write({**NO_BAD, "pkg/my-file.py": SUBCLASS})
        line = "pkg/my-file.py:4:7 Bad is a Base and lives in pkg.my-file: it belongs in pkg.good"
        assert tuple(small.lint()) == (1, report({"Rule": [line]}))

    def test_a_dot_in_the_name_hides_no_module(self, small):
        """``a.b.py`` is not the module ``a.b``."""
        files = {**NO_BAD, "pkg/a.b.py": "", "pkg/a/__init__.py": "", "pkg/a/b.py": SUBCLASS}
        small.write(files)
        line = "pkg/a/b.py:4:7 Bad is a Base and lives in pkg.a.b: it belongs in pkg.good"
        assert tuple(small.lint()) == (1, self.grimp_says(small, files) + report({"Rule": [line]}))

    def test_one_among_the_forbidden_modules(self, small):
        """By name too a file cannot be checked that the graph does not hold; one line for each file."""
        files = {
            **NO_BAD,
            "pkg/a.b.py": "",
            "pkg/my-file.py": "",
            "pkg/.hidden.py": "class LoneBackend: ...\n",
            "pkg/sub/mod.py": SUBCLASS,
            "pkg/sub/plain.py": "number = 1\n",
        }
        small.write(files)
        small.configure([{**FORBIDDEN, "names": ["*Backend"], "modules": ["pkg.*"]}])
        out = "the import graph leaves it out"
        dotted = f"pkg/a.b.py:1 cannot be checked: {out}: its name is no Python identifier. Rename it"
        mod = f"pkg/sub/mod.py:4 defines Bad, but {out}: pkg/sub has no __init__.py. Add pkg/sub/__init__.py"
        plain = f"pkg/sub/plain.py:1 cannot be checked: {out}: pkg/sub has no __init__.py. Add pkg/sub/__init__.py"
        said = self.grimp_says(small, files)
        assert tuple(small.lint()) == (1, said + report({"Rule": [dotted, mod]}))
        small.configure([{**FORBIDDEN, "modules": ["pkg.*.*"]}])
        fine = "pkg/good/fine.py:4:7 Fine is a Base and is defined in pkg.good.fine: pkg.*.* may define none"
        assert tuple(small.lint()) == (1, said + report({"Rule": [mod, plain, fine]}))

    def test_a_module_beside_a_package_of_the_same_name(self, small):
        """Python imports the package; the module's classes can never come to be."""
        small.write({"pkg/bad/__init__.py": SUBCLASS})
        lines = [
            "pkg/bad.py:4 defines Bad, but Python never imports it: a package of the same name lies beside it. "
            "Remove one of them",
            "pkg/bad/__init__.py:4:7 Bad is a Base and lives in pkg.bad: it belongs in pkg.good",
        ]
        assert tuple(small.lint()) == (1, report({"Rule": lines}))

    def test_a_module_beside_the_allowed_package(self, small):
        """The module does not pass for the package."""
        small.write({"pkg/bad.py": "", "pkg/good.py": SUBCLASS})
        line = (
            "pkg/good.py:4 defines Bad, but Python never imports it: a package of the same name lies beside it. "
            "Remove one of them"
        )
        assert tuple(small.lint()) == (1, report({"Rule": [line]}))


class TestLinks:
    """Symbolic links to folders are followed, as Python and import-linter follow them."""

    @pytest.mark.parametrize("target", ["elsewhere", "pk"])
    def test_a_linked_folder(self, small, target):
        """A folder from outside the package is part of it where it is linked, whatever it is called."""
        small.write({"pkg/bad.py": "", f"{target}/__init__.py": "", f"{target}/mod.py": SUBCLASS})
        (small.folder / "pkg/linked").symlink_to(f"../{target}")
        line = "pkg/linked/mod.py:4:7 Bad is a Base and lives in pkg.linked.mod: it belongs in pkg.good"
        assert tuple(small.lint()) == (1, report({"Rule": [line]}))

    def test_a_folder_linked_twice(self, small):
        """What may live under one link may not live under the other."""
        small.write({"pkg/bad.py": "", "elsewhere/__init__.py": "", "elsewhere/mod.py": SUBCLASS})
        (small.folder / "pkg/good/linked").symlink_to("../../elsewhere")
        for name in ("alias", "zalias"):
            (small.folder / f"pkg/{name}").symlink_to("../elsewhere")
        lines = [
            f"pkg/{name}/mod.py:4:7 Bad is a Base and lives in pkg.{name}.mod: it belongs in pkg.good"
            for name in ("alias", "zalias")
        ]
        assert tuple(small.lint()) == (1, report({"Rule": lines}))

    def test_links_that_lead_back(self, small):
        """Links to a folder above, and two folders that link to each other, end."""
        small.write({"pkg/one/__init__.py": "", "pkg/two/__init__.py": ""})
        (small.folder / "pkg/good/up").symlink_to("..")
        (small.folder / "pkg/one/two").symlink_to("../two")
        (small.folder / "pkg/two/one").symlink_to("../one")
        assert tuple(small.lint()) == (1, report({"Rule": [BAD]}))


def test_linted_code_is_not_run(small):
    """Code that would leave a file behind when it is imported leaves none, whatever the contract looks at."""
    harm = "from pathlib import Path\nPath(__file__).with_suffix('.harm').touch()\n"
    assert "harm" not in str(small.folder)
    for name in ("pkg/__init__.py", "pkg/base.py", "pkg/bad.py", "pkg/good/fine.py"):
        path = small.folder / name
        path.write_text(harm + path.read_text())
    small.write({"pkg/lazy.py": harm + "def __getattr__(name):\n    raise AttributeError(name)\n"})
    small.configure([PLACEMENT, {**FORBIDDEN, "name": "Second", "names": ["*"]}])
    assert small.lint_as_process().code == 1
    assert [name for name in listing(small.folder) if name.endswith(".harm")] == []
    # The same code does leave a file when it is imported.
    small.run([sys.executable, "-c", "import pkg.bad"])
    assert "pkg/bad.harm" in listing(small.folder)


def test_no_warning_from_python(small):
    """``python -W error`` finds nothing to complain of, in the linter or in what it reads of the linted code."""
    small.write({"pkg/escape.py": "from pkg.base import Base\n\npattern = '\\d'\nsame = 1 is 1\nclass E(Base): ...\n"})
    code = "from importlinter.cli import lint_imports_command as command; command()"
    done = small.run([sys.executable, "-W", "error", "-P", "-c", code, "--no-logo"])
    assert (done.returncode, done.stdout.splitlines()[-2]) == (1, BAD)
