"""Who can name a class: modules that pass on the module itself, and how few files that makes worth parsing."""

import grimp
import pytest

from contracts.source import Cache, Index, _interpreter

BASE = {"pkg/__init__.py": "", "pkg/kernel.py": "class Base: ...\n"}
WAYS = {
    "an alias of the module": ("import pkg.kernel as mk\n", "from pkg.compat import mk\n\n\nclass C(mk.Base): ...\n"),
    "the module's own name": (
        "from pkg import kernel\n",
        "from pkg.compat import kernel\n\n\nclass C(kernel.Base): ...\n",
    ),
    "an attribute of what passes it on": (
        "from . import kernel\n",
        "import pkg.compat as c\n\n\nclass C(c.kernel.Base): ...\n",
    ),
    "another alias": (
        "import pkg.kernel as mk\n",
        "from pkg.compat import mk as other\n\n\nclass C(other.Base): ...\n",
    ),
    "a star": ("import pkg.kernel as mk\n", "from pkg.compat import *\n\n\nclass C(mk.Base): ...\n"),
    "a statement over lines, with a comment that ends in a bracket": (
        "from pkg import (  # this one :)\n    kernel as mk,\n)\n",
        "from pkg.compat \\\n    import mk\n\n\nclass C(mk.Base): ...\n",
    ),
}


@pytest.fixture
def search(empty, monkeypatch):
    """Give a function that writes files and says which subclasses of ``pkg.kernel.Base`` the index finds."""

    def found(files: dict[str, str]) -> list[str]:
        empty.write(BASE | files)
        monkeypatch.chdir(empty.folder)
        monkeypatch.syspath_prepend(empty.folder)
        graph = grimp.build_graph("pkg", cache_dir=None)
        answer = Index(["pkg"], Cache(None, [])).subclasses(["pkg.kernel.Base"], graph)
        assert not answer.problems
        return [definition.dotted_name for definition in answer.found]

    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_module_itself_passed_on(search, way):
    """A class whose base is an attribute of a module that comes from a third one is found."""
    compat, user = WAYS[way]
    assert search({"pkg/compat.py": compat, "pkg/user.py": user}) == ["pkg.user.C"]


def test_passed_on_twice(search):
    """However many modules are in between."""
    files = {
        "pkg/compat.py": "import pkg.kernel as mk\n",
        "pkg/more.py": "from pkg.compat import mk as kernels\n",
        "pkg/user.py": "from pkg.more import kernels\n\n\nclass C(kernels.Base): ...\n",
    }
    assert search(files) == ["pkg.user.C"]


def test_a_common_name_makes_no_file_worth_parsing(search, monkeypatch):
    """Only what can see the base is parsed: a namesake's subclasses, however many, are not."""
    parsed = []
    parse = _interpreter.parse

    def counted(file, *options):
        parsed.append(file.module)
        return parse(file, *options)

    monkeypatch.setattr(_interpreter, "parse", counted)
    others = {f"pkg/other{n}.py": "class Base: ...\n\n\nclass Other(Base): ...\n" for n in range(50)}
    user = {"pkg/user.py": "from pkg.kernel import Base\n\n\nclass C(Base): ...\n"}
    assert search(others | user) == ["pkg.user.C"]
    assert sorted(set(parsed)) == ["pkg.kernel", "pkg.user"]
