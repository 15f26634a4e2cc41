"""``moe-contracts fix`` changes every reference to what moved, and nothing else."""

from pathlib import Path

import pytest

from tests.contracts.fixing import Repository

BASE = {
    "pkg/__init__.py": "",
    "pkg/base.py": "class Backend:\n    pass\n",
    "pkg/backends/__init__.py": "",
    "pkg/fast_backend.py": """\
        from pkg.base import Backend

        SIZE = 8


        class FastBackend(Backend):
            size = SIZE
        """,
    "pkg/many.py": """\
        from pkg.base import Backend


        class SlowBackend(Backend):
            size = 9


        def other():
            return 1
        """,
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Give a repository with the misplaced ``pkg.fast_backend.FastBackend`` and ``pkg.many.SlowBackend``."""
    found = Repository(tmp_path)
    found.write(BASE)
    found.contract(type="placement", base_classes=["pkg.base.Backend"], allowed_modules=["pkg.backends"])
    return found


# Each is a module that runs before and after, and what it is after.
CASES = {
    "absolute": (
        "import pkg.fast_backend\n\nassert pkg.fast_backend.SIZE == pkg.fast_backend.FastBackend.size\n",
        "import pkg.backends.fast\n\nassert pkg.backends.fast.SIZE == pkg.backends.fast.FastBackend.size\n",
    ),
    "absolute-with-name": (
        "import pkg.fast_backend as fb\n\nassert fb.SIZE == 8\n",
        "import pkg.backends.fast as fb\n\nassert fb.SIZE == 8\n",
    ),
    "class-through-module": (
        "import pkg.many\n\nassert pkg.many.SlowBackend.size == 9\n",
        "import pkg.backends.slow\n\nassert pkg.backends.slow.SlowBackend.size == 9\n",
    ),
    "class-through-module-that-is-used-otherwise": (
        "import pkg.many\n\nassert pkg.many.SlowBackend.size == 9\nassert pkg.many.other()\n",
        "import pkg.many\nimport pkg.backends.slow\n\nassert pkg.backends.slow.SlowBackend.size == 9\n"
        "assert pkg.many.other()\n",
    ),
    "class-through-name-of-module": (
        "import pkg.many as m\n\nassert m.SlowBackend.size == 9\nassert m.other()\n",
        "import pkg.many as m\nfrom pkg.backends.slow import SlowBackend\n\nassert SlowBackend.size == 9\n"
        "assert m.other()\n",
    ),
    "class-through-imported-module": (
        "from pkg import many\n\nassert many.SlowBackend.size == 9\n",
        "from pkg.backends.slow import SlowBackend\n\nassert SlowBackend.size == 9\n",
    ),
    "class-whose-name-is-taken": (
        "from pkg import many\n\nSlowBackend = 3\nassert many.SlowBackend.size == 9\nassert SlowBackend == 3\n",
        "from pkg.backends.slow import SlowBackend as many_SlowBackend\n\nSlowBackend = 3\n"
        "assert many_SlowBackend.size == 9\nassert SlowBackend == 3\n",
    ),
    "from": (
        "from pkg.fast_backend import SIZE, FastBackend as F\n\nassert F.size == SIZE\n",
        "from pkg.backends.fast import SIZE, FastBackend as F\n\nassert F.size == SIZE\n",
    ),
    "from-package": (
        "from pkg import fast_backend, many\n\nassert fast_backend.SIZE == 8\nassert many.other()\n",
        "from pkg import many\nfrom pkg.backends import fast as fast_backend\n\nassert fast_backend.SIZE == 8\n"
        "assert many.other()\n",
    ),
    "parentheses-and-comments": (
        "from pkg.many import (  # all of it\n    SlowBackend,  # slow\n    other,  # and other\n)\n\nother(), SlowBackend\n",  # noqa: E501  as the file says it
        "from pkg.backends.slow import (\n    SlowBackend,\n)\nfrom pkg.many import (  # all of it\n"
        "    other,  # and other\n)\n\nother(), SlowBackend\n",
    ),
    "last-of-parentheses": (
        "from pkg.many import (\n    other,  # and other\n    SlowBackend,  # slow\n)\n\nother(), SlowBackend\n",
        "from pkg.backends.slow import (\n    SlowBackend,\n)\nfrom pkg.many import (\n"
        "    other,  # and other\n)\n\nother(), SlowBackend\n",
    ),
    "in-function": (
        "def f():\n    from pkg.many import SlowBackend, other\n    return SlowBackend.size + other()\n\n\nassert f() == 10\n",  # noqa: E501  as the file says it
        "def f():\n    from pkg.backends.slow import SlowBackend\n    from pkg.many import other\n"
        "    return SlowBackend.size + other()\n\n\nassert f() == 10\n",
    ),
    "in-branches": (
        "try:\n    from pkg.many import SlowBackend\nexcept ImportError:\n    SlowBackend = None\n"
        "if SlowBackend:\n    import pkg.fast_backend as fb\nassert fb.SIZE\n",
        "try:\n    from pkg.backends.slow import SlowBackend\nexcept ImportError:\n    SlowBackend = None\n"
        "if SlowBackend:\n    import pkg.backends.fast as fb\nassert fb.SIZE\n",
    ),
    "only-statement-of-a-block": (
        "if True:\n    from pkg import many\n\n    assert many.SlowBackend.size\n",
        "if True:\n    from pkg.backends.slow import SlowBackend\n\n    assert SlowBackend.size\n",
    ),
    "type-checking": (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        "    from pkg.many import SlowBackend\n    import pkg.many as m\n\n\n"
        'def f(a: "SlowBackend", b: "list[m.SlowBackend]", c: "m.other") -> SlowBackend: ...\n',
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        "    from pkg.backends.slow import SlowBackend\n    import pkg.many as m\n\n\n"
        'def f(a: "SlowBackend", b: "list[SlowBackend]", c: "m.other") -> SlowBackend: ...\n',
    ),
    "dotted-annotation-in-quotes": (
        "import pkg.fast_backend\n\n\ndef f(a: 'pkg.fast_backend.FastBackend | None'): ...\n",
        "import pkg.backends.fast\n\n\ndef f(a: 'pkg.backends.fast.FastBackend | None'): ...\n",
    ),
    "strings": (
        "import importlib\nfrom unittest import mock\n\n"
        "assert importlib.import_module('pkg.fast_backend').SIZE == 8\n"
        'assert importlib.import_module("pkg.many").SlowBackend.size == 9\n'
        'with mock.patch("pkg.many.SlowBackend.size", 1), mock.patch("pkg.fast_backend.SIZE", 2):\n    pass\n'
        "entry = 'pkg.many:SlowBackend'\n",
        "import importlib\nfrom unittest import mock\n\n"
        "assert importlib.import_module('pkg.backends.fast').SIZE == 8\n"
        'assert importlib.import_module("pkg.backends.slow").SlowBackend.size == 9\n'
        'with mock.patch("pkg.backends.slow.SlowBackend.size", 1), mock.patch("pkg.backends.fast.SIZE", 2):\n    pass\n'
        "entry = 'pkg.backends.slow:SlowBackend'\n",
    ),
    "string-in-parts": (
        "from unittest import mock\n\nname = (\n    'pkg.'  # so\n    \"fast_backend.\"\n    'SIZE'\n)\nmock.patch(name)\n",  # noqa: E501  as the file says it
        "from unittest import mock\n\nname = (\n    'pkg.'  # so\n    \"backends.fast.\"\n    'SIZE'\n)\nmock.patch(name)\n",  # noqa: E501  as the file says it
    ),
    "f-string": (
        "import pkg.fast_backend\n\nassert f'{pkg.fast_backend.SIZE}' == '8'\n",
        "import pkg.backends.fast\n\nassert f'{pkg.backends.fast.SIZE}' == '8'\n",
    ),
    "star": (
        "from pkg.fast_backend import *\n\nassert FastBackend.size == SIZE\n",
        "from pkg.backends.fast import *\n\nassert FastBackend.size == SIZE\n",
    ),
    "star-of-what-stays": (
        "from pkg.many import *\n\nassert SlowBackend.size + other() == 10\n",
        "from pkg.backends.slow import SlowBackend\nfrom pkg.many import *\n\nassert SlowBackend.size + other() == 10\n",  # noqa: E501  as the file says it
    ),
    "one-line": (
        "import sys; from pkg.many import SlowBackend\nif sys: import pkg.fast_backend as fb\nassert fb, SlowBackend\n",
        "import sys; from pkg.backends.slow import SlowBackend\nif sys: import pkg.backends.fast as fb\n"
        "assert fb, SlowBackend\n",
    ),
    "continued-line": (
        "from pkg.many \\\n    import SlowBackend\n\nassert SlowBackend\n",
        "from pkg.backends.slow \\\n    import SlowBackend\n\nassert SlowBackend\n",
    ),
    "line-too-long-by-then": (
        "from pkg.many import SlowBackend as a_very_long_name_that_fills_the_line_almost_wholly\n",
        "from pkg.backends.slow import (\n    SlowBackend as a_very_long_name_that_fills_the_line_almost_wholly,\n)\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_changes_each_form_of_reference(repository, case):
    """In a script beside the package; it runs before and after."""
    before, after = CASES[case]
    repository.write({"scripts/run.py": before.encode()})
    repository.commit()
    repository.python("import scripts.run")
    repository.apply()
    assert repository.files()["scripts/run.py"] == after
    repository.python("import scripts.run")


def test_changes_relative_imports_and_keeps_them_relative(repository):
    """From modules beside, above and below."""
    repository.write(
        {
            "pkg/beside.py": "from . import fast_backend, many\nfrom .many import SlowBackend, other\nmany, fast_backend\n",  # noqa: E501  as the file says it
            "pkg/deep/__init__.py": "from ..fast_backend import FastBackend as FastBackend\n",
            "pkg/backends/own.py": "from ..many import SlowBackend\n",
        }
    )
    repository.commit()
    repository.python("import pkg.beside, pkg.deep, pkg.backends.own")
    repository.apply()
    files = repository.files()
    assert files["pkg/beside.py"] == (
        "from . import many\nfrom .backends import fast as fast_backend\nfrom .many import other\n"
        "from .backends.slow import SlowBackend\nmany, fast_backend\n"
    )
    assert files["pkg/deep/__init__.py"] == "from ..backends.fast import FastBackend as FastBackend\n"
    assert files["pkg/backends/own.py"] == "from .slow import SlowBackend\n"
    repository.python("import pkg.beside, pkg.deep, pkg.backends.own")


def test_keeps_bytes_that_are_no_reference(repository):
    """Line ends, byte order mark, encoding, spaces and the order of imports stay; other files stay wholly."""
    text = "\ufeffimport  os\r\nfrom pkg.many import  other ,SlowBackend\r\n\r\nx = ( 1,)\t\r\nother, SlowBackend, os"
    latin = "# -*- coding: latin-1 -*-\nfrom pkg.many import SlowBackend  # \xe9\n".encode("latin-1")
    other = b"import pkg.base\r\nfast_backend = 'many'\n\x0c\n"
    repository.write({"a.py": text.encode(), "b.py": latin, "c.py": other})
    repository.commit()
    repository.apply()
    folder = repository.folder
    assert (folder / "a.py").read_bytes().decode() == text.replace(
        "from pkg.many import  other ,SlowBackend",
        "from pkg.backends.slow import SlowBackend\r\nfrom pkg.many import  other",
    )
    assert (folder / "b.py").read_bytes() == latin.replace(b"pkg.many", b"pkg.backends.slow")
    assert (folder / "c.py").read_bytes() == other
    repository.python("import a, b, c")


def test_lists_what_reading_cannot_decide(repository):
    """Each use with its line, once, and what is no use at all but names the old path."""
    repository.write(
        {
            "use.py": """\
                import importlib

                from pkg import many

                getattr(many, "SlowBackend")
                name = "fast"
                importlib.import_module(f"pkg.{name}_backend")
                module = importlib.import_module("pkg.many")
                module.SlowBackend  # of pkg.many.SlowBackend
                """,
            "pkg/fast_backend.py": "from pkg.base import Backend\n\n\nclass FastBackend(Backend):\n    at = __file__\n",
            "notes.txt": "See pkg/fast_backend.py.\n",
        }
    )
    repository.commit()
    said = repository.apply().partition("Left as they are, for you to look at (5):\n")[2].splitlines()[:5]
    assert said == [
        "notes.txt:1 says pkg/fast_backend.py: pkg.fast_backend is now pkg.backends.fast",
        "pkg/backends/fast.py:5 uses __file__, which is another one in the new place",
        "use.py:5 names pkg.many.SlowBackend, which is now pkg.backends.slow.SlowBackend",
        "use.py:7 imports a computed name, which may be pkg.fast_backend: it is now pkg.backends.fast",
        "use.py:9 names pkg.many.SlowBackend, which is now pkg.backends.slow.SlowBackend, through module",
    ]


def test_a_stub_moves_with_its_module(repository):
    """And what it imports by relative paths is found from there."""
    stub = "from .base import Backend\n\nSIZE: int\n\nclass FastBackend(Backend): ...\n"
    repository.write({"pkg/fast_backend.pyi": stub.encode(), "pkg/many.pyi": "def other() -> int: ...\n"})
    repository.commit()
    assert "pkg/many.pyi:1 is the stub of pkg.many, of which classes left" in repository.apply()
    files = repository.files()
    assert "pkg/fast_backend.pyi" not in files
    assert files["pkg/backends/fast.pyi"] == stub.replace("from .base", "from ..base")
