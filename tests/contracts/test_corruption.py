"""Whatever the files hold, every contract type gives findings or says what it could not check."""

import importlib
import re
from pathlib import Path

import grimp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts._types import TYPES
from tests.contracts.projects import Project

BASE = "pkg.base.Kernel"
# One contract of each type, on which every type has something to do.
CONTRACTS = {
    "complete_exports": {"base_classes": [BASE], "packages": ["pkg"]},
    "forbidden_definitions": {"modules": ["pkg.*"], "subclasses_of": [BASE], "names": ["*Scale*", "Fast"]},
    "override_signatures": {"base_classes": [BASE]},
    "placement": {"base_classes": [BASE], "allowed_modules": ["pkg.good"]},
    "retired_modules": {"retired": ["pkg.old -> pkg.good", "pkg.gone"]},
    "unmutated_inputs": {"base_classes": [BASE]},
}
FIXTURES = Path(__file__).parent / "fixtures"
SOURCES = sorted(path for folder in TYPES for path in (FIXTURES / folder).rglob("*.py"))
_HEAD = b"""\
from pkg.base import *
from pkg import base, good, helpers
import pkg.old


class Fast(Kernel):
    pass


"""
_PIECES = [
    b"", b"\n", b"    ", b"\t", b"(", b")", b"[", b"]", b"{", b":", b"=", b",", b".", b"*", b"@", b"'",
    b'"""', b"\\", b"#", b"\0", b"\r", b"\x0c", b"\xff", b"\xef\xbb\xbf", "é".encode(), "\u2028".encode(),
    b"# coding: utf-16\n", b"def ", b"class ", b"lambda: ", b"import ", b"from . ", b"async ", b"await ",
    b"yield ", b"return ", b"global x\n", b"nonlocal x\n", b":= ", b"if ", b"else: ", b"match x:\n",
    b"case [", b"del ", b"*x, ", b"**x, ", b"self.", b"Kernel", b"(Kernel)", b"__all__", b"pkg.old",
    b"x.mul_(2)\n", b"super()", b"0", b"-1", b"...", b"f'{", b"}'",
]  # fmt: skip


@st.composite
def corrupted(draw) -> bytes:
    """A file of the fixtures as a module of ``pkg``, with pieces cut out, doubled, moved or overwritten."""
    source = draw(st.sampled_from(SOURCES)).read_bytes().replace(b"moe", b"pkg")
    source = _HEAD + source.replace(b"class Backend", b"class Kernel")
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(source)))
        end = min(len(source), start + draw(st.integers(0, 60)))
        other = draw(st.integers(0, len(source)))
        piece = draw(
            st.one_of(
                st.sampled_from(_PIECES),
                st.binary(max_size=6),
                st.sampled_from([source[start:end] * 2, source[other : other + 80], source[end:start:-1]]),
            )
        )
        source = source[:start] + piece + source[end:]
    return source


_FILES = st.dictionaries(
    st.sampled_from(["pkg/__init__.py", "pkg/base.py", "pkg/fast.py", "pkg/helpers.py", "pkg/good.py"]),
    corrupted(),
    min_size=1,
    max_size=2,
)


@settings(max_examples=150, deadline=None)
@given(files=_FILES)
def test_corrupted_files(tmp_path_factory, files):
    """Nothing crashes."""
    _check(tmp_path_factory.getbasetemp() / "corrupted", files)


@pytest.mark.slow
@pytest.mark.timeout(6000)
@settings(max_examples=10_000, deadline=None)
@given(files=_FILES)
def test_ten_thousand_corrupted_files(tmp_path_factory, files):
    """The same for ten thousand projects."""
    _check(tmp_path_factory.getbasetemp() / "corrupted", files)


def test_there_is_one_contract_of_each_type():
    """None is left out."""
    assert CONTRACTS.keys() == TYPES.keys()


def test_each_contract_checks_something(tmp_path):
    """Where nothing is corrupted, each finds what breaks it and none has a problem."""
    body = "    def apply(self, x, extra):\n        scale(x)\n"
    files = {"pkg/fast.py": _HEAD.replace(b"    pass\n", body.encode())}
    checks = _check(tmp_path, files)
    assert [name for name, check in checks.items() if check.metadata["problems"]] == []
    assert [name for name, check in checks.items() if not check.metadata["findings"]] == []


def _check(folder: Path, files: dict[str, bytes]) -> dict:
    """Check a small package, in which some files are replaced, with a graph of what it was before that."""
    # One folder for all: Python remembers each that it ever looked into.
    project = Project(folder)
    project.write(
        {
            "pkg/__init__.py": "from pkg.base import *\n__all__ = ['Kernel']\n",
            "pkg/base.py": (
                "from pkg.helpers import scale\n\n\n"
                "class Kernel:\n    def apply(self, x): ...\n\n\nclass Box:\n    content = 1\n"
            ),
            "pkg/helpers.py": "def scale(tensor):\n    tensor.mul_(2)\n",
            "pkg/good.py": "from pkg.base import Kernel\n\n\nclass Fine(Kernel): ...\n",
            "pkg/fast.py": "",
            **files,
        }
    )
    graph = grimp.ImportGraph()
    modules = ["pkg", "pkg.base", "pkg.helpers", "pkg.good", "pkg.fast"]
    for module in modules:
        graph.add_module(module)
    for importer in modules:
        for imported in modules:
            if importer != imported:
                graph.add_import(importer=importer, imported=imported)
    session = {"root_packages": ["pkg"], "include_external_packages": None, "exclude_type_checking_imports": None}
    checks = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for name, options in CONTRACTS.items():
            module, _, attribute = TYPES[name].rpartition(".")
            kind = getattr(importlib.import_module(module), attribute)
            contract = kind("Rule", session, options)
            check = checks[name] = contract.check(graph, verbose=False)
            assert check.kept == (not check.metadata["findings"] and not check.metadata["problems"])
            for finding in check.metadata["findings"]:
                assert (folder / finding.path).is_file()
                assert finding.line >= 1
                assert finding.column >= 1
                assert finding.message
            for problem in check.metadata["problems"]:
                assert re.match(r"\S+:\d+ |\w+: |Base class |Nothing to check", problem), problem
    return checks
