"""The contract type ``complete_exports``."""

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

from contracts.source import Cache, ClassDefinition, Index, SourceError
from contracts.source._tree import SourceFile
from tests.contracts.projects import Project, refused, report

TYPES = {"contract_types": ["complete_exports: contracts.complete_exports.CompleteExportsContract"]}
FACTS = {
    "absent": "{package} does not export it: import it there and add it to __all__ at {place}",
    "bound": "{package} imports it but leaves it out of __all__: add it at {place}",
    "another": "the {name} that {package} exports is another one: give them different names",
    "none": "{package} has no __all__: write one into {path}, with the class in it",
}
DANGLING = "{package} exports {name}, which nothing binds: import it there, or take it out of __all__"
DOUBT = (
    "{package} exports {name}, which may not exist: it comes from the module __getattr__ of {package}, "
    "which reading cannot follow"
)


def configure(project: Project, *, roots=("pkg",), syntax="ini", **options) -> None:
    options = {
        "type": "complete_exports",
        "base_classes": ["pkg.base.Base"],
        "packages": ["pkg.good"],
        **options,
    }
    project.configure([options], roots=roots, session=TYPES, syntax=syntax)


@pytest.fixture
def moe(empty, fixtures) -> Project:
    """Give a copy of the fixture, one package for each way to write ``__all__``."""
    shutil.copytree(fixtures / "complete_exports", empty.folder, dirs_exist_ok=True)
    configure(empty, roots=["moe"], base_classes=["moe.bases.Backend"], packages=["moe.*"])
    return empty


@pytest.fixture
def good(small) -> Project:
    """Give the small project, whose ``pkg.good.fine.Fine`` is to be exported by ``pkg.good``."""
    configure(small)
    return small


def marked(folder: Path) -> tuple[list[str], list[str]]:
    """What the comments ``# broken:`` and ``# doubt:`` of a fixture announce, in the order of a report."""
    found, doubts = [], []
    for path in sorted(folder.rglob("*.py")):
        init = path if path.name == "__init__.py" else path.parent / "__init__.py"
        package = ".".join(init.parent.relative_to(folder).parts)
        lines = init.read_text().split("\n")
        first = next((n for n, line in enumerate(lines, 1) if re.match(r"__all__\b", line)), 0)
        where = str(init.relative_to(folder))
        values = {"package": package, "path": where, "place": f"{where}:{first}"}
        for number, line in enumerate(path.read_text().split("\n"), 1):
            mark = re.search(r"# (broken|doubt): (.+)$", line)
            definition = re.match(r"class (\w+)", line)
            if mark and definition:
                status, _, through = mark[2].partition(" through ")
                kin = f"is a Backend{f' (through {through})' if through else ''}"
                fact = FACTS[status].format(name=definition[1], **values)
                found.append((str(path.relative_to(folder)), number, 7, f"{definition[1]} {kin} and {fact}"))
            elif mark:
                for name in mark[2].split():
                    written = line.find(f'"{name}"', 0, mark.start())
                    text = (DANGLING if mark[1] == "broken" else DOUBT).format(name=name, **values)
                    # A name that comes from elsewhere is reported where it is written in that place.
                    place = (number, written + 1) if written >= 0 else _written(lines, name)
                    (found if mark[1] == "broken" else doubts).append(
                        (str(path.relative_to(folder)), *place, text)
                    )
    return tuple(
        [f"{p}:{line}:{column} {text}" for p, line, column, text in sorted(group)]
        for group in (found, doubts)
    )


def _written(lines: list[str], name: str) -> tuple[int, int]:
    return next((n, line.index(f'"{name}"') + 1) for n, line in enumerate(lines, 1) if f'"{name}"' in line)


def broken(*lines: str, warnings=()) -> tuple[int, str]:
    return 1, report({"Rule": lines}, warnings={"Rule": warnings} if warnings else None)


def kept(warnings=()) -> tuple[int, str]:
    return 0, report(kept=["Rule"], warnings={"Rule": warnings} if warnings else None)


# What is found


def test_findings_stand_where_the_fixture_says(moe):
    """Each class that is not exported, and each export that does not exist, is reported; nothing else is."""
    lines, doubts = marked(moe.folder)
    assert (len(lines), len(doubts)) == (23, 1)
    assert tuple(moe.lint()) == broken(*lines, warnings=doubts)


_RUN = """
import importlib, json, sys
from moe.bases import Backend

def get(package, name):
    try:
        return getattr(package, name)
    except (AttributeError, ImportError):
        scope = {}
        try:
            exec(f"from {package.__name__} import {name}", scope)
        except ImportError:
            return None
        return scope[name]

answer = {}
for argument in sys.argv[1:]:
    package = importlib.import_module(f"moe.{argument}")
    values = {name: get(package, name) for name in getattr(package, "__all__", [])}
    missing = [name for name, value in values.items() if value is None and name != "__doc__"]
    exported = [f"{v.__module__}.{v.__qualname__}" for v in values.values() if isinstance(v, type)]
    answer[argument] = missing, exported
print(json.dumps(answer))
"""


def test_what_running_the_fixture_says(moe):
    """Python agrees: an export is reported if and only if it cannot be had, a class if no export is it."""
    lines, doubts = marked(moe.folder)
    text = "\n".join([*lines, *doubts])
    moe.write({"elsewhere.py": "FromElsewhere = 1\n"})
    packages = sorted(path.name for path in (moe.folder / "moe").iterdir() if path.is_dir())
    done = moe.run([sys.executable, "-c", _RUN, *packages])
    assert done.returncode == 0, done.stdout
    for package, (missing, exported) in json.loads(done.stdout).items():
        assert sorted(missing) == sorted(re.findall(rf" moe\.{package} exports (\w+), which", text))
        public = {
            f"moe.{package}.{path.stem}".removesuffix(".__init__") + f".{match[1]}"
            for path in (moe.folder / "moe" / package).glob("*.py")
            for match in re.finditer(r"^class ([A-Z]\w+)\(", path.read_text(), re.MULTILINE)
        }
        reported = {
            f"moe.{package}.{module}".removesuffix(".__init__") + f".{name}"
            for module, name in re.findall(rf"^moe/{package}/(\w+)\.py:\d+:7 (\w+) is a", text, re.MULTILINE)
        }
        # D is exported in the branch that this run does not take; a missing name is one finding, not two.
        known = {"moe.summed.d.D", *(name for name in public if name.rpartition(".")[2] in missing)}
        assert public - set(exported) - known - {"moe.listed.a.Abstract"} == reported


@pytest.mark.parametrize("syntax", ["ini", "toml"])
def test_whole_report(good, syntax):
    """The report, from its first line to its last; the optional is left out, the ignored counted."""
    vendor = "from pkg.base import Base\n\n\nclass Vendor(Base):\n    def run(self): ...\n"
    good.write(
        {
            "pkg/good/__init__.py": "__all__ = ['Gone']\n",
            "pkg/good/vendor.py": vendor,
            "pkg/good/more.py": "from pkg.good.fine import Fine\n\n\nclass More(Fine):\n    pass\n",
        }
    )
    configure(
        good,
        syntax=syntax,
        name="Backends are exported",
        optional_modules=["pkg.good.vendor: needs the vendor's library"],
        ignore_definitions=["pkg.good.more.More"],
        broken_contract_guidance="Export it.",
    )
    text = """\

        ---------
        Contracts
        ---------

        Analyzed 7 files, 4 dependencies.
        ---------------------------------

        Backends are exported (1 ignored) BROKEN

        Contracts: 0 kept, 1 broken.


        ----------------
        Broken contracts
        ----------------

        Backends are exported (1 ignored)
        ---------------------------------

        pkg/good/__init__.py:1:12 pkg.good exports Gone, which nothing binds: import it there, or take it \
out of __all__
        pkg/good/fine.py:4:7 Fine is a Base and pkg.good does not export it: import it there and add it to \
__all__ at pkg/good/__init__.py:1

        Export it.

        """
    outcome = good.lint()
    assert (outcome.code, outcome.text) == (1, dedent(text))


EXPORTED = {"pkg/good/__init__.py": "from pkg.good.fine import Fine\n\n__all__ = ['Fine']\n"}
NOT_EXPORTED = (
    "pkg/good/{}.py:4:7 {} is a Base and pkg.good does not export it: import it there and add it to "
    "__all__ at pkg/good/__init__.py:{}"
)


def test_everything_exported(good):
    """A package that exports its backends keeps the contract."""
    good.write(EXPORTED)
    assert tuple(good.lint()) == kept()


def test_abstract_classes_checked(good):
    """Told so, classes with abstract methods left have to be exported as well."""
    good.write({**EXPORTED, "pkg/good/mid.py": "from pkg.base import Base\n\n\nclass Mid(Base):\n    pass\n"})
    assert tuple(good.lint()) == kept()
    configure(good, abstract_classes="checked")
    assert tuple(good.lint()) == broken(NOT_EXPORTED.format("mid", "Mid", 3))


def test_a_class_belongs_to_the_nearest_package(good):
    """The class of a package's own __init__ is that package's where it is checked, or else its parent's."""
    text = "from pkg.base import Base\n\n\nclass Deep(Base):\n    def run(self): ...\n"
    good.write(
        {**EXPORTED, "pkg/good/deep/__init__.py": text, "pkg/good/deep/er.py": text.replace("Deep", "Deeper")}
    )
    assert tuple(good.lint()) == broken(NOT_EXPORTED.format("deep/__init__", "Deep", 3))
    configure(good, packages=["pkg.good", "pkg.good.deep"])
    assert tuple(good.lint()) == broken(
        "pkg/good/deep/__init__.py:4:7 Deep is a Base and pkg.good.deep has no __all__: write one into "
        "pkg/good/deep/__init__.py, with the class in it",
        "pkg/good/deep/er.py:4:7 Deeper is a Base and pkg.good.deep has no __all__: write one into "
        "pkg/good/deep/__init__.py, with the class in it",
    )


def test_a_class_that_may_be_a_subclass(good):
    """A class of which reading cannot tell is a doubt, unless its module is optional."""
    good.write(
        {
            **EXPORTED,
            "pkg/good/doubtful.py": """\
                from pkg.base import Base


                class Doubtful(*eval('(Base,)')):
                    pass
                """,
        }
    )
    doubt = (
        "pkg/good/doubtful.py:4:7 Doubtful may be a Base, which its package exports: one of its bases comes "
        "from eval(), which reading cannot follow. Write that base out, or add "
        "pkg.good.doubtful.Doubtful to ignore_definitions"
    )
    assert tuple(good.lint()) == kept(warnings=[doubt])
    configure(good, undecided_alerting="error")
    assert tuple(good.lint()) == broken(doubt)
    configure(good, optional_modules=["pkg.good.doubtful: made up at run time"])
    assert tuple(good.lint()) == kept()


def test_many_names(good):
    """An __all__ of thousands of names, appended one by one, is read like any other."""
    names = [f"name_{number}" for number in range(3000)]
    text = "from pkg.good.fine import Fine\n__all__ = ['Fine']\n" + "".join(
        f"{n} = __all__.append('{n}')\n" for n in names
    )
    text = text.replace(" = __all__", " = 1; __all__")
    good.write({"pkg/good/__init__.py": text})
    assert tuple(good.lint()) == kept()


# What reading cannot tell

CANNOT_TELL = {
    "[n for n in dir() if n[0] != '_']": "a comprehension",
    "make()": "no display of strings",
    "['Fine'] + make()": "no display of strings",
    "['Fine', make()]": "an element that is no string",
    "['Fine', 1]": "an element that is no string",
    "[*make()]": "no display of strings",
    "{**make()}": "no display of strings",
    "{make(): 1}": "a dict whose keys are not all written out",
    "json.__all__": "the __all__ of json, which is not among the root packages",
    "fine.__all__": "pkg.good.fine has no __all__",
    "unknown.__all__": "no display of strings",
    "make": "no display of strings",
    "['Fine']; __all__.remove('Fine')": "__all__.remove",
    "['Fine']; __all__.pop()": "__all__.pop",
    "['Fine']; __all__[0] = 'x'": "items are replaced",
    "['Fine']; __all__[:] = ['x']": "items are replaced",
    "['Fine']; del __all__[0]": "items are replaced",
    "['Fine']; del __all__": "it is deleted",
}


@pytest.mark.parametrize("value", CANNOT_TELL)
def test_exports_that_reading_cannot_tell(good, value):
    """An __all__ that is computed is an error that names its line, never a pass."""
    head = "import json\nfrom pkg.good import fine\nfrom pkg.good.fine import Fine\ndef make(): ...\n"
    good.write({"pkg/good/__init__.py": f"{head}__all__ = {value}\n"})
    assert tuple(good.lint()) == broken(
        "pkg/good/__init__.py:5 __all__ of pkg.good is built in a way that reading cannot tell: "
        f"{CANNOT_TELL[value]}. Write its names out"
    )


def test_exports_that_lead_in_circles(good):
    """Two packages that take in each other's names cannot be told either."""
    good.write(
        {
            "pkg/good/__init__.py": "from pkg.good import fine\n__all__ = fine.__all__\n",
            "pkg/good/fine.py": "import pkg.good\n__all__ = pkg.good.__all__\nfrom pkg.base import Base\n"
            "class Fine(Base):\n    def run(self): ...\n",
        }
    )
    assert tuple(good.lint()) == broken(
        "pkg/good/__init__.py:2 __all__ of pkg.good is built in a way that reading cannot tell: it leads "
        "back to the __all__ of pkg.good.fine. Write its names out"
    )


def test_one_package_that_cannot_be_told_hides_no_other(good):
    """The findings in other packages are reported all the same."""
    good.write({"pkg/good/__init__.py": "__all__ = dir()\n", "pkg/__init__.py": "__all__ = []\n"})
    configure(good, packages=["pkg", "pkg.good"])
    assert tuple(good.lint()) == broken(
        "pkg/good/__init__.py:1 __all__ of pkg.good is built in a way that reading cannot tell: no display "
        "of strings. Write its names out",
        "pkg/bad.py:4:7 Bad is a Base and pkg does not export it: import it there and add it to __all__ at "
        "pkg/__init__.py:1",
    )


# The configuration


def test_optional_modules(good):
    """An optional module exempts its classes, and only those."""
    good.write({"pkg/good/__init__.py": "__all__ = []\n"})
    configure(good, optional_modules=["pkg.good.fine: needs: a library"])
    assert tuple(good.lint()) == kept()
    configure(good, optional_modules=["pkg.good: needs a library"])
    assert tuple(good.lint()) == broken(
        "optional_modules: 'pkg.good' has nothing left to exempt. Remove it.",
        NOT_EXPORTED.format("fine", "Fine", 1),
    )


@pytest.mark.parametrize("module", ["pkg.good.fine", "pkg.good.gone", "pkg.base"])
def test_an_optional_module_with_nothing_to_exempt(good, module):
    """An entry for a module that is exported, is gone or was never meant has to leave the list."""
    good.write(EXPORTED)
    line = f"optional_modules: '{module}' has nothing left to exempt. Remove it."
    configure(good, optional_modules=[f"{module}: no reason"])
    assert tuple(good.lint()) == broken(line)
    configure(good, optional_modules=[f"{module}: r"], unmatched_optional_modules_alerting="warn")
    assert tuple(good.lint()) == kept(warnings=[line])
    configure(good, optional_modules=[f"{module}: r"], unmatched_optional_modules_alerting="none")
    assert tuple(good.lint()) == kept()


@pytest.mark.parametrize("line", ["pkg.good.fine", "pkg.good.fine:", ": a reason"])
def test_an_optional_module_without_a_reason(good, line):
    """The reason is required."""
    configure(good, optional_modules=[line])
    outcome = good.lint()
    text = refused("Rule", f"optional_modules: '{line}' gives no reason: write 'module: reason'.")
    assert (outcome.code, outcome.text) == (1, "\n" + text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"packages": ["pkg.god"]},
            "packages: no module of the root packages matches 'pkg.god'. Closest module: 'pkg.good'.",
        ),
        ({"packages": ["pkg.bad"]}, "packages: 'pkg.bad' matches no package with an __init__.py."),
        (
            {"packages": ["pkg.good", "pkg.*.*"]},
            "packages: 'pkg.*.*' matches no package with an __init__.py.",
        ),
        (
            {"base_classes": ["pkg.good.fine.Fine"]},
            "Nothing to check: pkg.good.fine.Fine has no public concrete subclass in pkg.good.",
        ),
        (
            {"base_classes": ["pkg.good.fine.Fine"], "abstract_classes": "checked"},
            "Nothing to check: pkg.good.fine.Fine has no public subclass in pkg.good.",
        ),
        (
            {"base_classes": ["pkg.base.Bas"]},
            "Base class 'pkg.base.Bas' does not exist. Closest name: 'Base'.",
        ),
    ],
)
def test_options_that_mean_nothing(good, options, message):
    """A package that is none, a base that is none, and a contract with nothing to check are errors."""
    configure(good, **options)
    assert tuple(good.lint()) == broken(message)


@pytest.mark.parametrize("option", ["base_classes", "packages"])
def test_empty_options(good, option):
    """A contract that names no base or no package is refused."""
    configure(good, **{option: []})
    outcome = good.lint()
    text = refused("Rule", f"{option}: Nothing to check: give at least one.")
    assert (outcome.code, outcome.text) == (1, "\n" + text)


def test_ignoring(good):
    """A class is ignored by its dotted name, an export by the package's and its own."""
    good.write({"pkg/good/__init__.py": "__all__ = ['Gone']\n"})
    configure(good, ignore_definitions=["pkg.good.fine.Fine", "pkg.good.Gone"])
    assert tuple(good.lint()) == (0, report(kept=["Rule (2 ignored)"]))


# The cache, and what hypothesis writes


def test_a_warm_run_parses_nothing(good, monkeypatch):
    """The second run finds the same without reading or parsing one file."""
    monkeypatch.setattr("contracts.source._snapshot.SETTLED_AFTER_NS", -(10**18))
    good.write({"pkg/good/__init__.py": "__all__ = ['Gone']\n"})
    cold = good.lint()
    assert cold.code == 1

    def refuse(*_):
        raise AssertionError("something was read")

    monkeypatch.setattr(SourceFile, "content", property(refuse))
    monkeypatch.setattr(ast, "parse", refuse)
    assert good.lint() == cold


_STATEMENTS = [
    "__all__ = ['A', 'B']",
    "__all__ = ('A',) + b.__all__",
    "__all__ += ['C']",
    "__all__ = __all__ + __all__",
    "__all__.append('D')",
    "__all__.extend(b.__all__)",
    "__all__.extend(__all__)",
    "__all__ = [*__all__, *LAZY]",
    "__all__ = sorted(set(__all__))",
    "__all__, LAZY = LAZY, __all__",
    "LAZY = {'A': '.b', 'E': ('.b', 'A')}",
    "LAZY['F'] = '.c'",
    "for name in LAZY: __all__.append(name)",
    "if LAZY:\n    __all__ = ['G']\nelse:\n    __all__ += ['H']",
    "try:\n    from .c import *\nexcept ImportError:\n    __all__ = []",
    "from .b import *",
    "from .b import A as H, __all__ as names",
    "from . import b, c",
    "import pkg.b as b",
    "def __getattr__(name):\n    global __all__\n    __all__ += [name]\n    return LAZY[name]",
    "class A: ...",
    "del A",
    "b = __all__",
    "__all__: list",
    "with open('x') as __all__: ...",
    "é = __all__ = ['é']",
]


@settings(max_examples=200, deadline=None)
@given(
    init=st.lists(st.sampled_from(_STATEMENTS), max_size=10),
    other=st.lists(st.sampled_from(_STATEMENTS), max_size=5),
    cut=st.none() | st.tuples(st.integers(0, 400), st.integers(0, 20)),
)
def test_whatever_a_package_says(tmp_path_factory, init, other, cut):
    """Reading exports gives an answer or says why not, whatever the package holds."""
    _read(tmp_path_factory.getbasetemp() / "packages", init, other, cut)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@settings(max_examples=10_000, deadline=None)
@given(
    init=st.lists(st.sampled_from(_STATEMENTS), max_size=14),
    other=st.lists(st.sampled_from(_STATEMENTS), max_size=8),
    cut=st.none() | st.tuples(st.integers(0, 600), st.integers(0, 30)),
)
def test_ten_thousand_packages(tmp_path_factory, init, other, cut):
    """The same for ten thousand packages."""
    _read(tmp_path_factory.getbasetemp() / "packages", init, other, cut)


def _read(folder: Path, init, other, cut) -> None:
    # One folder for all: Python remembers each that it ever looked into.
    text = "\n".join([*init, ""])
    if cut is not None:
        text = text[: cut[0]] + text[cut[0] + cut[1] :]
    Project(folder).write({"pkg/__init__.py": text.encode(), "pkg/b.py": "\n".join([*other, ""]).encode()})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        index = Index(["pkg"], Cache(None, []))
        definition = ClassDefinition("pkg/b.py", 1, 7, "pkg.b", "A")
        error = None
        try:
            exports = index.exports("pkg", [definition])
        except SourceError as raised:
            error = raised
    if error is not None:
        assert error.line >= 1
        pattern = r"__all__ of pkg is built|cannot be (parsed by Python [0-9.]+|parsed|decoded|analysed): "
        assert re.match(pattern, error.reason)
    else:
        assert exports.classes["pkg.b.A"] in {"exported", "bound", "absent", "another"}
        assert all(line >= 1 and column >= 1 for line, column, _, _ in exports.dangling)
