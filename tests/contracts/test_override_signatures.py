"""The contract type ``override_signatures``."""

import ast
import re
import shutil
from pathlib import Path
from textwrap import dedent

import grimp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.source import Cache, Index, SourceError, UnknownNameError
from contracts.source._overrides import overrides
from contracts.source._tree import SourceFile
from tests.contracts.projects import Project, refused, report

_BASES = {
    "annotations": ["Base", "GenericBase", "StandardBase"],
    "decorators": ["Base"],
    "defaults": ["Base"],
    "inheritance": ["Base"],
    "kinds": ["Base"],
    "parameters": ["Base"],
}
_REPORTED = re.compile(r"(?P<path>\S+):(?P<line>\d+):\d+ (?P<what>\S+) (?P<fact>.*?): \S+ \(\S+:\d+\) .*[.]")
_OPEN = re.compile(
    r"(?P<path>\S+):(?P<line>\d+):\d+ (?P<what>\S+) may not fit .*?: reading cannot tell (?P<fact>.*?)[.] "
    r"If it is right, add \S+ to ignore_definitions"
)


def configure(project: Project, *, roots=("pkg",), **options) -> None:
    project.configure([{"type": "override_signatures", "base_classes": ["pkg.base.Base"], **options}], roots=roots)


@pytest.fixture
def moe(empty, fixtures) -> Project:
    """Give a copy of the fixture: overrides of all kinds, with what is said of them on their lines."""
    shutil.copytree(fixtures / "override_signatures", empty.folder, dirs_exist_ok=True)
    bases = [f"moe.{module}.{name}" for module, names in _BASES.items() for name in names]
    configure(empty, roots=["moe"], base_classes=bases)
    return empty


def marked(folder: Path, mark: str) -> list[tuple[str, int, str]]:
    """What the comments of a fixture announce: path, line and fact, in order."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.search(rf"  # {mark}: (.+)$", line)
            if match:
                relative = str(path.relative_to(folder))
                found += [(relative, number, fact) for fact in match[1].split(" & ")]
    return sorted(found)


def read(lines: list[str], form: re.Pattern[str]) -> list[tuple[str, int, str]]:
    """What the lines of a report say, in the same form."""
    found = []
    for line in lines:
        match = form.fullmatch(line)
        assert match, line
        _, inherited, fact = match["fact"].partition("), which ")
        found.append((match["path"], int(match["line"]), fact if inherited else match["fact"]))
    return sorted(found)


def reported(outcome, section: str) -> list[str]:
    body = outcome.text.partition(f"\n{section}\n")[2]
    return [line.removeprefix("- ") for line in body.splitlines() if re.match(r"(?:- )?\S+\.py:", line)]


@pytest.fixture
def small(empty) -> Project:
    """Give a project with one base, one backend that fits and one that does not."""
    empty.write(SMALL)
    configure(empty)
    return empty


SMALL = {
    "pkg/__init__.py": "",
    "pkg/base.py": """\
        import abc


        class Base(abc.ABC):
            @abc.abstractmethod
            def prepare(self, tokens: int, quantize: bool = False) -> int: ...

            @property
            def width(self) -> int:
                return 1
        """,
    "pkg/good.py": """\
        from pkg.base import Base


        class Good(Base):
            def prepare(self, tokens: int, quantize: bool = False, rank: int = 0) -> int: ...
        """,
    "pkg/bad.py": """\
        from pkg.base import Base


        class Bad(Base):
            def prepare(self, x, quantize: bool = True):
                return x

            def width(self) -> int:
                return 1
        """,
}
BAD = [
    "pkg/bad.py:5:9 Bad.prepare does not annotate 'x': Base.prepare (pkg/base.py:6) does. Annotate what the base "
    "annotates.",
    "pkg/bad.py:5:9 Bad.prepare has no return annotation: Base.prepare (pkg/base.py:6) returns int. Annotate it.",
    "pkg/bad.py:5:23 Bad.prepare calls its parameter 1 'x': Base.prepare (pkg/base.py:6) calls it 'tokens'. "
    "Rename it: callers may pass it by name.",
    "pkg/bad.py:5:26 Bad.prepare defaults 'quantize' to True: Base.prepare (pkg/base.py:6) defaults it to False. "
    "Use the base's default.",
    "pkg/bad.py:8:9 Bad.width is an instance method: Base.width (pkg/base.py:9) is a property. Decorate it with "
    "@property.",
]


def broken(*lines: str, name="Rule", warnings=()) -> tuple[int, str]:
    return 1, report({name: lines}, warnings={name: warnings} if warnings else None)


def kept(warnings=()) -> tuple[int, str]:
    return 0, report(kept=["Rule"], warnings={"Rule": warnings} if warnings else None)


# What is found


def test_findings_stand_where_the_fixture_says(moe):
    """Each override that does not fit is reported, and each of which reading cannot tell; nothing else is."""
    outcome = moe.lint()
    broken = reported(outcome, "Broken contracts")
    assert read(broken, _REPORTED) == marked(moe.folder, "broken")
    warnings = [line for line in reported(outcome, "Warnings") if line not in broken]
    assert read(warnings, _OPEN) == marked(moe.folder, "open")


def test_one_whole_report(small):
    """A report as it is printed."""
    small.write({"pkg/maybe.py": "from pkg.base import Base\n\n\nclass Maybe(*eval('(Base,)')):\n    pass\n"})
    configure(small, broken_contract_guidance="Callers hold the base.")
    text = """
        ---------
        Contracts
        ---------

        Analyzed 5 files, 3 dependencies.
        ---------------------------------

        Rule BROKEN (1 warning)

        Contracts: 0 kept, 1 broken.

        --------
        Warnings
        --------

        Rule
        ----

        - pkg/maybe.py:4:7 Maybe may be a Base, and then its methods must fit: one of its bases comes from \
eval(), which reading cannot follow. Write that base out, or add pkg.maybe.Maybe to ignore_definitions


        ----------------
        Broken contracts
        ----------------

        Rule
        ----

        pkg/bad.py:5:9 Bad.prepare does not annotate 'x': Base.prepare (pkg/base.py:6) does. Annotate what the base \
annotates.
        pkg/bad.py:5:9 Bad.prepare has no return annotation: Base.prepare (pkg/base.py:6) returns int. Annotate it.
        pkg/bad.py:5:23 Bad.prepare calls its parameter 1 'x': Base.prepare (pkg/base.py:6) calls it 'tokens'. \
Rename it: callers may pass it by name.
        pkg/bad.py:5:26 Bad.prepare defaults 'quantize' to True: Base.prepare (pkg/base.py:6) defaults it to False. \
Use the base's default.
        pkg/bad.py:8:9 Bad.width is an instance method: Base.width (pkg/base.py:9) is a property. Decorate it with \
@property.

        Callers hold the base.

        """
    outcome = small.lint()
    assert (outcome.code, outcome.text) == (1, dedent(text))


def test_a_base_that_is_a_subclass_of_another(small):
    """It is looked at as any subclass is."""
    configure(small, base_classes=["pkg.base.Base", "pkg.bad.Bad"])
    assert tuple(small.lint()) == broken(*BAD)


def test_a_method_from_a_mixin(small):
    """A method that a class takes from elsewhere is reported where the class is defined."""
    small.write(
        {
            "pkg/bad.py": """\
                from pkg.base import Base


                class Mixin:
                    def prepare(self, tokens: int) -> int: ...


                class Bad(Mixin, Base):
                    pass
                """
        }
    )
    assert tuple(small.lint()) == broken(
        "pkg/bad.py:8:7 Bad takes prepare from Mixin.prepare (pkg/bad.py:5), which takes no 'quantize': Base.prepare "
        "(pkg/base.py:6) does. Add it."
    )


def test_a_method_from_a_base_that_is_not_read(small):
    """What stands before the base and is not read may have anything."""
    small.write({"pkg/bad.py": "import other\nfrom pkg.base import Base\n\n\nclass Bad(other.Other, Base): ...\n"})
    assert tuple(small.lint()) == kept(
        [
            "pkg/bad.py:5:7 Bad may not fit its bases: reading cannot tell whether a base that is not read has its own "
            "'prepare', 'width'. If it is right, add pkg.bad.Bad to ignore_definitions"
        ]
    )


def test_a_base_whose_annotation_means_nothing(small):
    """What no override can be compared with is said once, of the base."""
    small.write(
        {
            "pkg/base.py": "class Base:\n    def prepare(self, x: 'Undefined') -> int: ...\n",
            "pkg/good.py": "from pkg.base import Base\nclass Good(Base):\n    def prepare(self, x: int) -> int: ...\n",
            "pkg/bad.py": "from pkg.base import Base\nclass Bad(Base):\n    def prepare(self, x: str) -> int: ...\n",
        }
    )
    assert tuple(small.lint()) == kept(
        [
            "pkg/base.py:2:9 Overrides of Base.prepare may not fit it: reading cannot tell what Undefined is, in an "
            "annotation of Base.prepare. If it is right, add pkg.base.Base.prepare to ignore_definitions"
        ]
    )


TORCH = """\
    import torch
    from torch import Tensor
    from torch import nn


    class Base:
        def prepare(self, a: Tensor, b: torch.nn.Module, c: torch.dtype = torch.half) -> Tensor: ...
    """


@pytest.mark.parametrize(
    ("signature", "fact"),
    [
        ("self, a: torch.Tensor, b: nn.Module, c: torch.dtype = torch.float16) -> nn.Parameter", ""),
        ("self, a: Tensor | None, b: object, c: torch.dtype = torch.half) -> Tensor", ""),
        ("self, a: Tensor, b: Tensor, c: torch.dtype = torch.half) -> Tensor", "takes 'b' as Tensor"),
        ("self, a: Tensor, b: nn.Module, c: torch.dtype = torch.float32) -> Tensor", "defaults 'c' to torch.float32"),
        ("self, a: Tensor, b: nn.Module, c: torch.dtype = torch.half) -> Tensor | None", "returns Tensor | None"),
        (
            "self, a: Tensor, b: nn.Module, c: torch.dtype = torch.half) -> tuple[Tensor, int]",
            "returns tuple[Tensor, int]",
        ),
        ("self, a: Tensor, b: Layer, c: torch.dtype = torch.half) -> Tensor", "takes 'b' as Layer"),
    ],
)
def test_types_of_torch(small, signature, fact):
    """Classes of torch are compared without torch: its plain classes and the names of its dtypes are known."""
    head = "import torch\nfrom torch import Tensor, nn\nfrom pkg.base import Base\nclass Layer(nn.Module): ...\n"
    bad = f"{head}class Bad(Base):\n    def prepare({signature}: ...\n"
    small.write({"pkg/base.py": TORCH, "pkg/good.py": "", "pkg/bad.py": bad})
    outcome = small.lint()
    assert [found for _, _, found in read(reported(outcome, "Broken contracts"), _REPORTED)] == ([fact] if fact else [])
    assert "Warnings" not in outcome.text


def test_types_from_elsewhere(small):
    """Of two classes that are not read, only the one with the other's name in its package is told to be the same."""
    small.write(
        {
            "pkg/base.py": "import lib\nclass Base:\n    def prepare(self, x: lib.Batch) -> lib.Batch: ...\n",
            "pkg/good.py": "import lib.data\nfrom pkg.base import Base\nclass Good(Base):\n"
            "    def prepare(self, x: lib.data.Batch) -> lib.data.Batch: ...\n",
            "pkg/bad.py": "import lib\nfrom pkg.base import Base\nclass Bad(Base):\n"
            "    def prepare(self, x: lib.Batch) -> lib.Other: ...\n",
        }
    )
    assert tuple(small.lint()) == kept(
        [
            "pkg/bad.py:4:9 Bad.prepare may not fit Base.prepare (pkg/base.py:3): reading cannot tell whether what it "
            "returns, lib.Other, is a lib.Batch. If it is right, add pkg.bad.Bad.prepare to ignore_definitions"
        ]
    )


# Options


def test_methods(small):
    """Only the methods that are named, or match, are looked at."""
    for methods in (["prepare"], ["prep*"], ["p?epare"]):
        configure(small, methods=methods)
        assert tuple(small.lint()) == broken(*BAD[:4])
    configure(small, methods=["width"])
    assert tuple(small.lint()) == broken(BAD[4])
    configure(small, methods=["width", "prepare"])
    assert tuple(small.lint()) == broken(*BAD)


def test_annotations_not_required(small):
    """Told so, annotations may be left out; what is annotated must fit all the same."""
    configure(small, require_annotations="False")
    assert tuple(small.lint()) == broken(*BAD[2:])
    small.write({"pkg/bad.py": SMALL["pkg/bad.py"].replace("x, quantize: bool = True):", "tokens) -> str:")})
    assert tuple(small.lint()) == broken(
        "pkg/bad.py:5:9 Bad.prepare returns str: Base.prepare (pkg/base.py:6) returns int. A return type may be "
        "narrower than the base's, never wider.",
        "pkg/bad.py:5:9 Bad.prepare takes no 'quantize': Base.prepare (pkg/base.py:6) does. Add it.",
        BAD[4],
    )


def test_ignoring(small):
    """A method is ignored by its name, a parameter by its own."""
    names = ["pkg.bad.Bad.prepare", "pkg.bad.Bad.prepare.x", "pkg.bad.Bad.prepare.quantize", "pkg.bad.Bad.width"]
    configure(small, ignore_definitions=names)
    assert tuple(small.lint()) == (0, report(kept=["Rule (5 ignored)"]))
    configure(small, ignore_definitions=["pkg.bad.Bad.prepare.quantize", "pkg.good.Good.prepare"])
    assert tuple(small.lint()) == broken(
        "ignore_definitions: 'pkg.good.Good.prepare' matches nothing any more. Remove it.",
        *BAD[:3],
        BAD[4],
        name="Rule (1 ignored)",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"methods": ["prepare", "prepar"]},
            "methods: no method of pkg.base.Base matches 'prepar'. Closest name: 'prepare'.",
        ),
        ({"methods": ["_*"]}, "methods: no method of pkg.base.Base matches '_*'."),
        ({"base_classes": ["pkg.base.Bas"]}, "Base class 'pkg.base.Bas' does not exist. Closest name: 'Base'."),
        ({"base_classes": ["pkg.good.Good"]}, "Nothing to check: pkg.good.Good has no subclass in pkg."),
        ({"base_classes": ["pkg.empty.Empty"]}, "Nothing to check: pkg.empty.Empty defines no method or property."),
    ],
)
def test_options_that_mean_nothing(small, options, message):
    """A method or base that is none, and a contract with nothing to compare, are errors."""
    small.write({"pkg/empty.py": "class Empty: ...\nclass Sub(Empty): ...\n"})
    configure(small, **options)
    assert tuple(small.lint()) == broken(message)


def test_no_base(small):
    """A contract that names no base is refused."""
    configure(small, base_classes=[])
    outcome = small.lint()
    text = refused("Rule", "base_classes: Nothing to check: give at least one.")
    assert (outcome.code, outcome.text) == (1, "\n" + text)


def test_files_that_cannot_be_read(small):
    """A file with a subclass in it that cannot be parsed is an error, and hides no finding elsewhere."""
    deep = "x = " + "+".join(["1"] * 20_000)
    text = f"from pkg.base import Base\nclass Good(Base):\n    def prepare(self) -> int: ...\n{deep}\n"
    small.write({"pkg/good.py": text})
    outcome = small.lint()
    assert outcome.code == 1
    lines = reported(outcome, "Broken contracts")
    assert lines[1:] == BAD
    assert re.fullmatch(r"pkg/good\.py:\d+ cannot be .*", lines[0])


# The cache


def test_a_change_to_the_base_checks_every_subclass_again(small, monkeypatch):
    """The remembered answer counts for as long as no file changes, and the base's file is one."""
    monkeypatch.setattr("contracts.source._snapshot.SETTLED_AFTER_NS", -(10**18))
    assert tuple(small.lint()) == broken(*BAD)
    assert tuple(small.lint()) == broken(*BAD)
    small.write({"pkg/base.py": SMALL["pkg/base.py"].replace("quantize: bool = False", "quantize: bool = True")})
    assert tuple(small.lint()) == broken(
        *BAD[:3],
        BAD[4],
        "pkg/good.py:5:36 Good.prepare defaults 'quantize' to False: Base.prepare (pkg/base.py:6) defaults it to True. "
        "Use the base's default.",
    )


def test_a_change_to_an_alias_checks_every_subclass_again(small, monkeypatch):
    """So is the file in which a name of an annotation is defined."""
    monkeypatch.setattr("contracts.source._snapshot.SETTLED_AFTER_NS", -(10**18))
    small.write(
        {
            "pkg/types.py": "Number = int\n",
            "pkg/base.py": "class Base:\n    def prepare(self) -> int: ...\n",
            "pkg/bad.py": "",
            "pkg/good.py": "from pkg.base import Base\nfrom pkg.types import Number\n\n\nclass Good(Base):\n"
            "    def prepare(self) -> Number: ...\n",
        }
    )
    assert tuple(small.lint()) == kept()
    small.write({"pkg/types.py": "Number = str\n"})
    assert tuple(small.lint()) == broken(
        "pkg/good.py:6:9 Good.prepare returns Number: Base.prepare (pkg/base.py:2) returns int. A return type may be "
        "narrower than the base's, never wider."
    )


def test_answers_of_other_options_are_kept_apart(small, monkeypatch):
    """A remembered answer is that of its own options."""
    monkeypatch.setattr("contracts.source._snapshot.SETTLED_AFTER_NS", -(10**18))
    rules = [
        {"type": "override_signatures", "base_classes": ["pkg.base.Base"], "name": "A"},
        {"type": "override_signatures", "base_classes": ["pkg.base.Base"], "name": "B", "methods": ["width"]},
        {"type": "override_signatures", "base_classes": ["pkg.base.Base"], "name": "C", "require_annotations": "False"},
    ]
    small.configure(rules)
    expected = 1, report({"A": BAD, "B": BAD[4:], "C": BAD[2:]})
    assert tuple(small.lint()) == expected
    assert tuple(small.lint()) == expected


def test_a_warm_run_parses_nothing(small, monkeypatch):
    """The second run finds the same without reading or parsing one file."""
    monkeypatch.setattr("contracts.source._snapshot.SETTLED_AFTER_NS", -(10**18))
    cold = small.lint()
    assert cold.code == 1

    def refuse(*_):
        raise AssertionError("something was read")

    monkeypatch.setattr(SourceFile, "content", property(refuse))
    monkeypatch.setattr(ast, "parse", refuse)
    assert small.lint() == cold


# What hypothesis writes

_MEMBERS = [
    "def run({0}) -> {1}: ...",
    "def run({0}): yield",
    "async def run({0}) -> {1}: ...",
    "async def run({0}): yield 1",
    "@staticmethod\ndef run({0}) -> {1}: ...",
    "@classmethod\ndef run({0}): ...",
    "@property\ndef run(self) -> {1}: ...",
    "@run.setter\ndef run(self, value): ...",
    "@Base.run.setter\ndef run(self, value): ...",
    "@overload\ndef run({0}) -> {1}: ...",
    "@contextmanager\ndef run({0}) -> {1}: ...",
    "@unknown(1)\n@run\ndef run({0}): ...",
    "run = lambda {0}: 1",
    "run = property(lambda self: 1, run)",
    "run = staticmethod(help)",
    "run, stop = stop, run",
    "run: {1}",
    "run: {1} = {2}",
    "run = Base.run",
    "run = Base().run",
    "del run",
    "if x:\n    def run({0}): ...\nelse:\n    run = {2}",
    "try:\n    from pkg.base import run\nexcept* ValueError:\n    run = 1",
    "match x:\n    case [run]: ...\n    case _: run = 1",
    "for run in x: ...",
    "class run(Base): ...",
    "def run[U](self, x: U) -> U: ...",
    "from pkg.base import *",
]
_PARAMETERS = ["self", "self, x: {0} = {1}", "*, x: {0}", "x, y={1}, /", "self, *args: {0}, x={1}, **kw: {0}", "*self"]
_TYPES = [
    "int", "'Base'", "'in valid'", "Optional[{0}]", "Union[{0}, None]", "list[{0}]", "Callable[[{0}], {0}]",
    "Callable[{0}, {0}]", "Literal['a', -1, None]", "Self", "T", "A", "B", "Generic", "Generic[T]", "tuple[()]",
    "tuple[{0}, ...]", "1", "Mapping[{0}, {0}]", "Annotated[{0}, 1]", "Unpack[{0}]", "*{0}", "x.y.z", "Base[{0}]",
    "type[{0}]", "[{0}]", "Generator[{0}]", "{0} | {0}", "...",
]  # fmt: skip
_HEAD = """\
from typing import *
from typing_extensions import overload
from contextlib import contextmanager
from collections.abc import *
import pkg.sub as sub, torch.nn as nn
T = TypeVar("T")
A = Optional["B"]
B: TypeAlias = "A | sub.A"
x = y = 1
"""
types = st.recursive(
    st.sampled_from([one for one in _TYPES if "{0}" not in one]),
    lambda inner: st.builds(lambda form, one: form.replace("{0}", one), st.sampled_from(_TYPES), inner),
    max_leaves=4,
)
values = st.sampled_from("1 None ... x sub.x [1,y] f(x) -1 (lambda:1) (yield) A 1<<3".split())
parameters = st.builds(
    lambda form, one, value: form.format(one, value), st.sampled_from(_PARAMETERS), types, values
)
bodies = st.lists(
    st.builds(
        lambda form, given_, one, value: form.replace("{0}", given_).replace("{1}", one).replace("{2}", value),
        st.sampled_from(_MEMBERS), parameters, types, values,
    ),
    max_size=4,
)  # fmt: skip
cuts = st.none() | st.tuples(st.integers(0, 900), st.integers(0, 30))


@settings(max_examples=200, deadline=None)
@given(base=bodies, override=bodies, cut=cuts)
def test_whatever_classes_say(tmp_path_factory, base, override, cut):
    """Comparing gives findings or says why not, whatever the classes hold."""
    _compare(tmp_path_factory.getbasetemp() / "classes", base, override, cut)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@settings(max_examples=10_000, deadline=None)
@given(base=bodies, override=bodies, cut=cuts)
def test_ten_thousand_classes(tmp_path_factory, base, override, cut):
    """The same for ten thousand pairs of classes."""
    _compare(tmp_path_factory.getbasetemp() / "classes", base, override, cut)


def _compare(folder: Path, base: list[str], override: list[str], cut: tuple[int, int] | None) -> None:
    # One folder for all: Python remembers each that it ever looked into.
    text = _HEAD + "class Base(Generic[T]):\n" + _indented(["def run(self, x: T) -> 'Base[T]': ...", *base])
    text = text if cut is None else text[: cut[0]] + text[cut[0] + cut[1] :]
    files = {"pkg/__init__.py": "", "pkg/base.py": text}
    files["pkg/sub.py"] = f"{_HEAD}from pkg.base import Base\nclass Sub(Base[int]):\n{_indented(override)}"
    Project(folder).write({name: content.encode() for name, content in files.items()})
    graph = grimp.ImportGraph()
    for module in ("pkg", "pkg.base", "pkg.sub"):
        graph.add_module(module)
    graph.add_import(importer="pkg.sub", imported="pkg.base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        index = Index(["pkg"], Cache(None, []))
        refused: SourceError | UnknownNameError | None = None
        try:
            answer = index.subclasses(["pkg.base.Base"], graph)
            compared = overrides(index, answer, ["pkg.base.Base"], [], require_annotations=True)
        except (SourceError, UnknownNameError) as error:
            refused = error
    if refused is not None:
        known = r".* cannot be |Base class 'pkg.base.Base' |Nothing to check: pkg.base.Base defines"
        assert re.match(known, str(refused)), refused
        return
    assert set(compared) == {"findings", "undecided", "problems"}
    for path, line, column, name, message in [*compared["findings"], *compared["undecided"]]:
        assert path in files
        assert line >= 1
        assert column >= 1
        assert name.startswith("pkg.")
        assert message


def _indented(statements: list[str]) -> str:
    return "".join(f"    {line}\n" for text in [*statements, "pass"] for line in text.split("\n"))
