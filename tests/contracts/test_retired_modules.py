"""The contract type ``retired_modules``."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.source import Cache, Index, _references
from contracts.source._outside import OutsideFiles
from contracts.source._references import Wanted, find_references
from contracts.source._tree import SourceFile
from tests.contracts.projects import Project, refused, report

TYPES = {"contract_types": ["retired_modules: contracts.retired_modules.RetiredModulesContract"]}
ROWS = [
    "moe.mori_prepare_finalize -> moe.prepare_finalize.mori",
    "moe.fused_batched.BatchedPF -> moe.prepare_finalize.batched.BatchedPF",
    "moe.fused -> moe.experts.fused",
    "moe.legacy",
]
STALE = "imports pkg.old, which moved to pkg.new"


def configure(project: Project, *, roots=("pkg",), **options) -> None:
    project.configure([{"type": "retired_modules", **options}], roots=roots, session=TYPES)


@pytest.fixture
def moe(empty, fixtures) -> Project:
    """Give a copy of the fixture: a package, tests, a script and documentation."""
    shutil.copytree(fixtures / "retired_modules", empty.folder, dirs_exist_ok=True)
    return empty


@pytest.fixture
def pkg(empty) -> Project:
    """Give ``pkg.new``, in which ``Thing`` is, and a contract that says that it was in ``pkg.old``."""
    empty.write({"pkg/__init__.py": "", "pkg/new.py": "class Thing: ...\n"})
    configure(empty, retired=["pkg.old -> pkg.new"])
    return empty


def expected(folder: Path, *parts: str) -> list[str]:
    """What the comments ``# broken: column message`` of a fixture say, in the order of a report.

    ``# below:`` is about the next line. In a notebook a comment ends with its JSON string.
    """
    found = []
    for path in sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file()):
        for number, line in enumerate(path.read_text().split("\n"), 1):
            for mark in re.finditer(r"# (broken|below): (\d+) (.+?)(?= # broken|\\n|\"?,?$)", line):
                number_meant = number + (mark[1] == "below")
                found.append((str(path.relative_to(folder)), number_meant, int(mark[2]), mark[3]))
    return [f"{path}:{line}:{column} {text}" for path, line, column, text in sorted(found)]


def broken(*lines: str) -> tuple[int, str]:
    return 1, report({"Rule": lines})


def kept() -> tuple[int, str]:
    return 0, report(kept=["Rule"])


# What is found


def test_the_package(moe):
    """In the package each use of a retired path is reported once, where the fixture says; nothing else is."""
    configure(moe, roots=["moe"], retired=ROWS)
    lines = expected(moe.folder, "moe")
    assert len(lines) == 55
    assert tuple(moe.lint()) == broken(*lines)


def test_other_files(moe):
    """Folders, files and globs beside the package are read too: Python, stubs, documents, notebooks."""
    scanned = ["suite", "docs/*.md", "docs/guide.*", "docs/tour.ipynb", "scripts/tool"]
    configure(moe, roots=["moe"], retired=ROWS, also_scan=scanned)
    lines = expected(moe.folder, "docs", "moe", "scripts", "suite")
    assert len(lines) == 55 + 21
    assert tuple(moe.lint()) == broken(*lines)


@pytest.mark.parametrize("syntax", ["ini", "toml"])
def test_whole_report(pkg, syntax):
    """The report, from its first line to its last: what lives there, what uses it, what is ignored."""
    pkg.write(
        {
            "pkg/old.py": "",
            "pkg/user.py": "import pkg.old\n",
            "tests/case.py": "def test():\n    from pkg.old import Thing\n    from pkg.gone import more\n",
        }
    )
    rule = {
        "name": "Moved modules stay moved",
        "type": "retired_modules",
        "retired": ["pkg.old -> pkg.new", "pkg.gone"],
        "also_scan": ["tests"],
        "ignore_definitions": ["pkg.user -> pkg.old"],
        "broken_contract_guidance": "See MIGRATION.md.",
    }
    pkg.configure([rule], session=TYPES, syntax=syntax)
    text = """\

        ---------
        Contracts
        ---------

        Analyzed 4 files, 1 dependencies.
        ---------------------------------

        Moved modules stay moved (1 ignored) BROKEN

        Contracts: 0 kept, 1 broken.


        ----------------
        Broken contracts
        ----------------

        Moved modules stay moved (1 ignored)
        ------------------------------------

        pkg/old.py:1:1 pkg.old lives here, but that path is retired: it moved to pkg.new
        tests/case.py:2:5 imports pkg.old, which moved to pkg.new
        tests/case.py:3:5 imports pkg.gone, which was removed

        See MIGRATION.md.

        """
    outcome = pkg.lint()
    assert (outcome.code, outcome.text) == (1, dedent(text))


def test_nothing_stale(pkg):
    """A tree that uses no retired path keeps the contract."""
    assert tuple(pkg.lint()) == kept()


LIVES = {
    "module": (
        "pkg.a",
        {"pkg/a.py": "import os\n"},
        "pkg/a.py:1:1",
    ),
    "package": ("pkg.a", {"pkg/a/__init__.py": "", "pkg/a/b.py": ""}, "pkg/a/__init__.py:1:1"),
    "folder": ("pkg.a", {"pkg/a/b.py": "", "pkg/a/c.py": ""}, "pkg/a/b.py:1:1"),
    "class": ("pkg.m.A", {"pkg/m.py": "import abc\n\n@abc.x\nclass  A:\n    A = 1\n"}, "pkg/m.py:4:8"),
    "class in a branch": (
        "pkg.m.A",
        {"pkg/m.py": "try:\n    pass\nfinally:\n    if 1:\n        class A: ...\n"},
        "pkg/m.py:5:15",
    ),
    "nested class": (
        "pkg.m.A.B",
        {"pkg/m.py": "class A:\n    class B: ...\nclass C:\n    class B: ...\n"},
        "pkg/m.py:2:11",
    ),
    "function": ("pkg.m.a", {"pkg/m.py": "async def a(): ...\n"}, "pkg/m.py:1:11"),
    "variable": ("pkg.m.a", {"pkg/m.py": "é = 1; a, *b = 1, 2\n"}, "pkg/m.py:1:8"),
}


@pytest.mark.parametrize("case", LIVES)
def test_what_lives_there_again(pkg, case):
    """A module, a package, a class, a function or a variable at a retired path is reported where it is."""
    path, files, where = LIVES[case]
    pkg.write(files)
    configure(pkg, retired=[path])
    assert tuple(pkg.lint()) == broken(f"{where} {path} lives here, but that path is retired: it was removed")


def test_a_name_that_is_only_used_does_not_live_there(pkg):
    """Importing a moved class where it used to be, or binding its name elsewhere, does not bring it back."""
    text = "from pkg.new import Thing\n\n\ndef f(Other):\n    Thing = 1\n\n\nclass Holder:\n    Thing = 1\n"
    pkg.write({"pkg/m.py": text})
    configure(pkg, retired=["pkg.m.Thing -> pkg.new.Thing"])
    assert tuple(pkg.lint()) == kept()


def test_what_lives_there_is_not_said_to_use_itself(pkg):
    """A package that came back is one finding, however much its modules import each other."""
    pkg.write(
        {
            "pkg/old/__init__.py": "from pkg.old.a import x\n",
            "pkg/old/a.py": "from . import b\nimport pkg.gone\n",
            "pkg/old/b.py": "",
        }
    )
    configure(pkg, retired=["pkg.old -> pkg.new", "pkg.gone"])
    assert tuple(pkg.lint()) == broken(
        "pkg/old/__init__.py:1:1 pkg.old lives here, but that path is retired: it moved to pkg.new",
        "pkg/old/a.py:2:8 imports pkg.gone, which was removed",
    )


def test_the_nearest_row_counts(pkg):
    """Where the path of one row lies in that of another, the longer one says what happened."""
    pkg.write({"pkg/user.py": "from pkg.old.deep import Thing, Other\nfrom pkg.old import deep, more\n"})
    configure(pkg, retired=["pkg.old", "pkg.old.deep -> pkg.new", "pkg.old.deep.Thing -> pkg.new.Thing"])
    assert tuple(pkg.lint()) == broken(
        "pkg/user.py:1:1 imports pkg.old.deep, which moved to pkg.new",
        "pkg/user.py:1:26 imports pkg.old.deep.Thing, which moved to pkg.new.Thing",
        "pkg/user.py:2:1 imports pkg.old, which was removed",
        "pkg/user.py:2:21 imports pkg.old.deep, which moved to pkg.new",
    )


def test_several_roots(pkg):
    """Paths of every root package count, in all of them."""
    pkg.write({"other/__init__.py": "import pkg.old\n", "pkg/user.py": "import other.gone\n"})
    configure(pkg, roots=["other", "pkg"], retired=["pkg.old -> other.anywhere", "other.gone"])
    assert tuple(pkg.lint()) == broken(
        "retired: 'pkg.old' is said to have moved to 'other.anywhere', where nothing is. Correct it.",
        "other/__init__.py:1:8 imports pkg.old, which moved to other.anywhere",
        "pkg/user.py:1:8 imports other.gone, which was removed",
    )


def test_a_new_place_outside_the_root_packages_is_believed(pkg):
    """What moved to another distribution cannot be looked up."""
    pkg.write({"pkg/user.py": "import pkg.old\n"})
    configure(pkg, retired=["pkg.old -> elsewhere.old"])
    assert tuple(pkg.lint()) == broken("pkg/user.py:1:8 imports pkg.old, which moved to elsewhere.old")


def test_a_re_exported_class_may_be_the_new_place(pkg):
    """The new path is any at which the name can be had: definition, re-export, star, lazy export."""
    pkg.write(
        {
            "pkg/again.py": "from pkg.new import Thing\n",
            "pkg/starred.py": "from pkg.new import *\n",
            "pkg/lazy.py": """\
                def __getattr__(name):
                    if name == "Thing":
                        import pkg.new
                        return pkg.new.Thing
                """,
            "pkg/variable.py": "Thing = 1\n",
        }
    )
    rows = [
        f"pkg.old{n} -> pkg.{m}.Thing" for n, m in enumerate(["new", "again", "starred", "lazy", "variable"])
    ]
    configure(pkg, retired=rows)
    assert tuple(pkg.lint()) == kept()


# The configuration


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "pkg.old -> pkg.nwe",
            "retired: 'pkg.old' is said to have moved to 'pkg.nwe', where nothing is. Correct it.",
        ),
        (
            "pkg.old -> pkg.new.Thnig",
            "retired: 'pkg.old' is said to have moved to 'pkg.new.Thnig', where nothing is. Correct it.",
        ),
        (
            "old -> pkg.new",
            "retired: 'old' lies in none of the root packages (pkg). Correct it, or remove it.",
        ),
        ("pkg", "retired: 'pkg' lies in none of the root packages (pkg). Correct it, or remove it."),
        (
            "pkgs.old",
            "retired: 'pkgs.old' lies in none of the root packages (pkg). Correct it, or remove it.",
        ),
    ],
)
def test_rows_that_cannot_be_right(pkg, row, message):
    """A retired path outside the root packages, or a new one where nothing is, is an error."""
    configure(pkg, retired=[row])
    assert tuple(pkg.lint()) == broken(message)


def test_a_move_that_is_still_to_be_made(pkg):
    """While the old module is there, the new one need not be yet."""
    pkg.write({"pkg/old.py": ""})
    configure(pkg, retired=["pkg.old -> pkg.newest"])
    assert tuple(pkg.lint()) == broken(
        "pkg/old.py:1:1 pkg.old lives here, but that path is retired: it moved to pkg.newest"
    )


NO_ROW = "is no retired path: write 'old.path -> new.path', or 'old.path' alone."


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["pkg.old -> "], f"'pkg.old ->' {NO_ROW}"),
        (["-> pkg.new"], f"'-> pkg.new' {NO_ROW}"),
        (["pkg/old.py -> pkg.new"], f"'pkg/old.py -> pkg.new' {NO_ROW}"),
        (["pkg.old -> pkg.new -> pkg.newer"], f"'pkg.old -> pkg.new -> pkg.newer' {NO_ROW}"),
        (["pkg.*"], f"'pkg.*' {NO_ROW}"),
        (["pkg.old", "pkg.old -> pkg.new"], "'pkg.old' stands there 2 times."),
        (
            ["pkg.old -> pkg.older", "pkg.older -> pkg.new"],
            "'pkg.old' moved to 'pkg.older', which is retired, too: name its place of today.",
        ),
        (
            ["pkg.old -> pkg.old.deep"],
            "'pkg.old' moved to 'pkg.old.deep', which is retired, too: name its place of today.",
        ),
        ([], "Nothing to check: name a path."),
    ],
)
def test_rows_that_say_nothing(pkg, rows, message):
    """A row that is no path, that stands there twice or contradicts another is refused."""
    configure(pkg, retired=rows)
    outcome = pkg.lint()
    # import-linter breaks these lines at 80 columns.
    assert (outcome.code, outcome.text.split()) == (1, refused("Rule", f"retired: {message}").split())


KINDS = ".py, .pyi, .ipynb, .md, .rst"
NO_FILE = f"matches no file of a kind that can be read ({KINDS}). Correct it, or remove it."


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "nowhere",
            f"also_scan: 'nowhere' {NO_FILE}",
        ),
        (
            "data",
            f"also_scan: 'data' {NO_FILE}",
        ),
        (
            "data/*",
            f"also_scan: 'data/*' {NO_FILE}",
        ),
        ("data/x.toml", f"also_scan: 'data/x.toml' cannot be read: it is none of {KINDS}."),
    ],
)
def test_patterns_that_match_nothing(pkg, pattern, message):
    """A pattern under which nothing can be read is an error, never a pass."""
    pkg.write({"data/x.toml": "", "data/.hidden/x.py": "", "data/__pycache__/x.py": "", "tests/x.py": ""})
    configure(pkg, retired=["pkg.old"], also_scan=["tests", pattern])
    assert tuple(pkg.lint()) == broken(message)


def test_what_a_folder_holds(pkg):
    """Hidden folders, virtual environments and caches are left out, and no file is read twice."""
    stale = "import pkg.old\n"
    pkg.write(
        {
            "pkg/user.py": stale,
            "pkg/stub.pyi": "from . import old\nfrom .. import pkg\n",
            ".hidden/x.py": stale,
            "venv/pyvenv.cfg": "",
            "venv/lib/x.py": stale,
            "node_modules/x.py": stale,
            "deep/er/x.py": stale,
            "deep/er/x.txt": stale,
        }
    )
    (pkg.folder / "deep" / "loop").symlink_to(pkg.folder / "deep")
    (pkg.folder / "deep" / "link.py").symlink_to(pkg.folder / "deep" / "er" / "x.py")
    configure(pkg, retired=["pkg.old -> pkg.new"], also_scan=[".", "deep/**/*.py", str(pkg.folder / "deep")])
    assert tuple(pkg.lint()) == broken(
        f"deep/er/x.py:1:8 {STALE}",
        f"deep/link.py:1:8 {STALE}",
        f"pkg/stub.pyi:1:15 {STALE}",
        f"pkg/user.py:1:8 {STALE}",
    )


# What cannot be read

PARSED_BY = f"cannot be parsed by Python {sys.version_info[0]}.{sys.version_info[1]}"
OTHER_PYTHON = "Correct it, or run lint-imports with the Python that it is written for"
UNREADABLE = {
    "syntax": (
        "t/x.py",
        "import pkg.old\nthis is no Python\n",
        f"t/x.py:2 {PARSED_BY}: invalid syntax. {OTHER_PYTHON}",
    ),
    "encoding": (
        "t/x.py",
        b"import pkg.old\n\xff\n",
        "t/x.py:2 cannot be decoded: byte 0xff is not utf-8. Save it as UTF-8, or name its encoding in a coding "
        "comment",
    ),
    "null": (
        "t/x.py",
        b"import pkg.old\n\0\n",
        f"t/x.py:2 {PARSED_BY}: source code string cannot contain null bytes. {OTHER_PYTHON}",
    ),
    "document": (
        "t/x.md",
        b"\n\nimport pkg.old \xff\n",
        "t/x.md:3 cannot be decoded: byte 0xff is not utf-8. Save it as UTF-8",
    ),
    "notebook": (
        "t/x.ipynb",
        '{\n"pkg.old": }',
        "t/x.ipynb:2 cannot be parsed: no notebook: Expecting value: line 2 column 12 (char 13). "
        "Save it with a newer Jupyter, or leave it out of also_scan",
    ),
    "old notebook": (
        "t/x.ipynb",
        '{"worksheets": "pkg.old"}',
        "t/x.ipynb:1 cannot be parsed: a notebook without cells (older than format 4). Save it with a newer "
        "Jupyter, or leave it out of also_scan",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_read(pkg, case):
    """A file that may name a retired path and cannot be read is an error, whatever else is found."""
    path, content, message = UNREADABLE[case]
    pkg.write({path: content, "t/y.py": "import pkg.old\n"})
    configure(pkg, retired=["pkg.old -> pkg.new"], also_scan=["t"])
    assert tuple(pkg.lint()) == broken(message, f"t/y.py:1:8 {STALE}")


def test_a_file_that_does_not_matter_need_not_be_readable(pkg):
    """A file that holds no part of a retired path is not parsed: tests have broken ones on purpose."""
    pkg.write({"t/x.py": "this is no Python\n", "t/x.ipynb": "{", "t/deep.py": "x = " + "(" * 9999})
    configure(pkg, retired=["pkg.old -> pkg.new"], also_scan=["t"])
    assert tuple(pkg.lint()) == kept()


def test_an_expression_that_is_nested_too_deeply(pkg):
    """Neither the parser's limit nor that of the reading brings a traceback."""
    deep = "import pkg.old\nx = " + ".".join(["a"] * 900) + "\ny = old" + ".b" * 900 + "\n"
    pkg.write({"t/attributes.py": deep, "t/sum.py": "import pkg.old\nx = " + "old + " * 30_000 + "1\n"})
    configure(pkg, retired=["pkg.old -> pkg.new"], also_scan=["t"])
    outcome = pkg.lint()
    lines = [line for line in outcome.text.split("\n") if line.startswith("t/")]
    for line in lines:
        assert re.fullmatch(
            rf"t/\w+\.py:1(:8 {STALE}| cannot be (parsed|analysed): .*nested too deeply.*)", line
        )
    assert {line.partition(":")[0] for line in lines} == {"t/attributes.py", "t/sum.py"}


# Ignoring


def test_ignoring(pkg):
    """Each use has a name, importer and path, numbered if there are several; else the path is it."""
    pkg.write(
        {
            "pkg/old.py": "",
            "pkg/user.py": "import pkg.old\n\n\ndef f():\n    from pkg.old import x\n    import pkg.old as y",
            "t/x.py": "import pkg.old\n",
        }
    )
    names = ["pkg.old", "pkg.user -> pkg.old", "pkg.user -> pkg.old (3)", "t/x.py -> pkg.old"]
    configure(pkg, retired=["pkg.old -> pkg.new"], also_scan=["t"], ignore_definitions=names)
    assert tuple(pkg.lint()) == (1, report({"Rule (4 ignored)": [f"pkg/user.py:5:5 {STALE}"]}))


def test_an_entry_that_matches_nothing(pkg):
    """What is mended has to leave the list."""
    configure(pkg, retired=["pkg.old -> pkg.new"], ignore_definitions=["pkg.user -> pkg.old"])
    assert tuple(pkg.lint()) == broken(
        "ignore_definitions: 'pkg.user -> pkg.old' matches nothing any more. Remove it."
    )


# The cache


@pytest.fixture
def settled(monkeypatch):
    """Let files that were written a moment ago count as settled."""
    monkeypatch.setattr("contracts.source._snapshot.SETTLED_AFTER_NS", -(10**18))


def test_a_warm_run_reads_nothing(pkg, settled, monkeypatch):
    """The second run finds the same without reading or parsing one file, outside the root packages either."""
    pkg.write({"t/x.py": "import pkg.old\n", "t/x.md": "```python\nimport pkg.old\n```\n"})
    configure(pkg, retired=["pkg.old -> pkg.new"], also_scan=["t"])
    cold = pkg.lint()
    assert tuple(cold) == broken(f"t/x.md:2:8 {STALE}", f"t/x.py:1:8 {STALE}")

    def refuse(*_):
        raise AssertionError("something was read")

    monkeypatch.setattr(SourceFile, "content", property(refuse))
    monkeypatch.setattr(ast, "parse", refuse)
    assert pkg.lint() == cold


def test_what_changed_is_seen(pkg, settled):
    """A file that changed, came or went, in the package or beside it, is seen in the next run."""
    pkg.write({"t/x.py": "import pkg.old\n"})
    configure(pkg, retired=["pkg.old -> pkg.new"], also_scan=["t"])
    assert tuple(pkg.lint()) == broken(f"t/x.py:1:8 {STALE}")
    pkg.write({"t/x.py": "import pkg.new\n"})
    assert tuple(pkg.lint()) == kept()
    pkg.write({"t/y.py": "import pkg.old\n"})
    assert tuple(pkg.lint()) == broken(f"t/y.py:1:8 {STALE}")
    (pkg.folder / "t/y.py").unlink()
    pkg.write({"pkg/user.py": "import pkg.old\n"})
    assert tuple(pkg.lint()) == broken(f"pkg/user.py:1:8 {STALE}")
    configure(pkg, retired=["pkg.old"], also_scan=["t"])
    assert tuple(pkg.lint()) == broken("pkg/user.py:1:8 imports pkg.old, which was removed")


def test_what_was_written_a_moment_ago_is_not_remembered(pkg):
    """A change that leaves size and times alone is missed by no run, if it comes at once."""
    pkg.write({"t/x.py": "import pkg.old\n"})
    configure(pkg, retired=["pkg.old -> pkg.new"], also_scan=["t"])
    assert tuple(pkg.lint()) == broken(f"t/x.py:1:8 {STALE}")
    with (pkg.folder / "t/x.py").open("r+") as file:
        file.write("import pkg.new\n")
    assert tuple(pkg.lint()) == kept()


# The search in the bytes, and what hypothesis writes

_PLACES = {
    "pkg": "pkg/__init__.py",
    "pkg.sub": "pkg/sub/__init__.py",
    "pkg.sub.a": "pkg/sub/a/__init__.py",
    "other": "t/x.py",
}
_FORMS = [
    "import {pkg}.sub.old",
    "import os, {pkg}.sub.old as q",
    "from {pkg}.sub import old",
    "from {pkg}.sub import (  # a (comment)\n    os,\n    # old\n    old,\n)",
    "from {pkg}.sub import os as q, \\\n    old as r",
    "from {pkg}.sub.old import x",
    "from{s}.{s}old import x",
    "from{s}.{s}import old",
    "from .sub.old import x",
    "from .sub import old",
    "from .. import old",
    "from ..old import x",
    "if 1: from {pkg}.sub import old",
    "x = 1; from {pkg}.sub import (os,\n  old)",
    "import {pkg}.sub as m\nm{s}.{s}old",
    "import {pkg}.sub as m\n(m).old",
    "import {pkg}.sub as m\nn = m\nn.old",
    "import {pkg}.sub\n{pkg}.sub.old.x",
    "from {pkg} import sub as m\nm.old()",
    "from {pkg} import sub\nsub.old",
    "from {pkg}.sub import *\nold.x",
    "import_module('{pkg}.sub').old",
    "import_module('{pkg}.sub.old')",
    "import_module('.old', '{pkg}.sub')",
    "import_module('.sub.old', '{pkg}')",
    "import_module('.old', __package__)",
    "import_module(f'{{__package__}}.old')",
    "patch('{pkg}.sub.old.x')",
    "patch('{pkg}.'\n  'sub.old.x')",
    "P = '{pkg}.sub'\npatch(f'{{P}}.old.x')",
    "P = '{pkg}.sub'\npatch(P + '.old')",
    "import {pkg}.sub as m\npatch.object(m, 'old')",
    'from {pkg} import sub\ngetattr(sub, "old")',
    "patch.multiple('{pkg}.sub', old=1)",
    "x = (patch.multiple  # why\n  ('{pkg}.sub', old=1))",
    "from {pkg}.sub import *\nf(\n    old(\n))",
    "__import__('{pkg}.sub', fromlist=['old'])",
    "L = {{'old': ('.old', 'x')}}",
    "sys.modules['{pkg}.sub.old']",
    "sys.modules['{pkg}.sub'].old",
    "def f(x='{pkg}.sub.old'): ...",
    "import {pkg}.ſub.ºld",  # noqa: RUF001  Python reads it as pkg.sub.old
]


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(_FORMS),
    place=st.sampled_from(sorted(_PLACES)),
    space=st.sampled_from(["", " ", "\t", " \\\n"]),
    around=st.lists(
        st.sampled_from(["x = 1", "# old", "def f():\n    'old'", "class old: ...", ""]), max_size=3
    ),
    indented=st.booleans(),
)
def test_the_search_in_the_bytes_overlooks_nothing(tmp_path_factory, form, place, space, around, indented):
    """What reading the whole file would find, the search that decides whether to read it lets through."""
    text = form.format(pkg="pkg", s=space)
    if indented:
        text = "def g():\n" + "".join(f"    {line}\n" for line in text.split("\n"))
    text = "\n".join([*around, text, ""])
    folder = tmp_path_factory.mktemp("project")
    Project(folder).write({"pkg/__init__.py": "", "pkg/sub/__init__.py": "", _PLACES[place]: text})
    found = _find(folder, ["pkg.sub.old"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wanted, "may_be_in", lambda *_, **__: True)
        patch.setattr(_references._Finder, "may_name", lambda *_: True)
        assert found == _find(folder, ["pkg.sub.old"])


def _find(folder: Path, paths):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        index = Index(["pkg"], Cache(None, []))
        outside = OutsideFiles("also_scan", ["t"], index.tree).files if (folder / "t").exists() else ()
        return find_references(index, paths, outside)


@pytest.mark.parametrize("form", _FORMS)
def test_every_form_is_found_somewhere(tmp_path, form):
    """Each form that the test above writes names the path in at least one of its places."""
    counts = []
    for place, path in _PLACES.items():
        Project(tmp_path / place).write({"pkg/__init__.py": "", "pkg/sub/__init__.py": ""})
        Project(tmp_path / place).write({path: form.format(pkg="pkg", s=" ") + "\n"})
        found, problems = _find(tmp_path / place, ["pkg.sub.old"])
        counts.append(len(found) + len(problems))
    assert sum(counts)


def _corrupted(data, source: bytes) -> bytes:
    """A source with pieces cut out, doubled or overwritten."""
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(source)))
        end = data.draw(st.integers(start, min(start + 40, len(source))))
        piece = data.draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([b"", source[start:end] * 2, *_PIECES]))
        )
        source = source[:start] + piece + source[end:]
    return source


_PIECES = [
    b"\n",
    b"    ",
    b"(",
    b")",
    b'"',
    b"'''",
    b"```",
    b"\\",
    b"\0",
    b"\r",
    b"\xff",
    b"\xef\xbb\xbf",
    b"import ",
    b"from ",
    b">>> ",
]


def _read_corrupted(data, folder: Path, sources: Path, runs: int) -> None:
    files = sorted(path for path in sources.rglob("*") if path.is_file())
    # One folder for all: Python remembers each that it ever looked into.
    shutil.rmtree(folder / "t", ignore_errors=True)
    for run in range(runs):
        path = data.draw(st.sampled_from(files))
        suffix = path.suffix or ".py"
        Project(folder).write({f"t/{run}{suffix}": _corrupted(data, path.read_bytes())})
    Project(folder).write({"pkg/__init__.py": ""})
    found, problems = _find(
        folder, ["pkg.x", "moe.legacy", "moe.mori_prepare_finalize", "moe.fused_batched.BatchedPF"]
    )
    for reference in found:
        assert reference.line >= 1
        assert reference.column >= 1
    for problem in problems:
        assert re.match(r"cannot be (read|decoded|parsed|parsed by Python [0-9.]+|analysed): ", problem.reason)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_corrupted_files(tmp_path_factory, fixtures, data):
    """Whatever a file holds, reading it gives findings or a clear error."""
    _read_corrupted(data, tmp_path_factory.getbasetemp() / "corrupted", fixtures / "retired_modules", runs=8)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@settings(max_examples=1250, deadline=None)
@given(data=st.data())
def test_ten_thousand_corrupted_files(tmp_path_factory, fixtures, data):
    """The same for ten thousand files."""
    _read_corrupted(data, tmp_path_factory.getbasetemp() / "corrupted", fixtures / "retired_modules", runs=8)


def test_json_of_the_notebook(fixtures):
    """The fixture's notebook is one that others can read, too."""
    notebook = json.loads((fixtures / "retired_modules" / "docs" / "tour.ipynb").read_text())
    assert notebook["nbformat"] == 4
