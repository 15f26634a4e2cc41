"""``moe-contracts fix``: exports, what is left at old paths, and contracts about these."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts.fixing import Repository

BASE = {
    "pkg/__init__.py": "",
    "pkg/base.py": "class Backend:\n    pass\n",
    "pkg/backends/__init__.py": "",
    "pkg/fast_backend.py": "from pkg.base import Backend\n\n\nclass FastBackend(Backend):\n    pass\n",
}
PLACEMENT = {"type": "placement", "base_classes": ["pkg.base.Backend"], "allowed_modules": ["pkg.backends"]}
EXPORTS = {
    "name": "Exports",
    "type": "complete_exports",
    "base_classes": ["pkg.base.Backend"],
    "packages": ["pkg.backends"],
}
TYPES = [
    "placement: contracts.placement.PlacementContract",
    "complete_exports: contracts.complete_exports.CompleteExportsContract",
    "retired_modules: contracts.retired_modules.RetiredModulesContract",
    "forbidden_definitions: contracts.forbidden_definitions.ForbiddenDefinitionsContract",
]
SESSION = {"contract_types": TYPES}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Give a repository with the misplaced ``pkg.fast_backend.FastBackend``."""
    found = Repository(tmp_path)
    found.write(BASE)
    found.configure([PLACEMENT], session=SESSION)
    return found


INITS = {
    "absolute": (
        "from pkg.backends.a import A\nfrom pkg.backends.z import Z\n\n__all__ = ['A', 'Z']\n",
        "from pkg.backends.a import A\nfrom pkg.backends.fast import FastBackend\nfrom pkg.backends.z import Z\n\n"
        "__all__ = ['A', 'FastBackend', 'Z']\n",
    ),
    "relative": (
        '"""Doc."""\n\nfrom .a import A\n\n__all__ = (\n    "A",\n)\n',
        '"""Doc."""\n\nfrom .a import A\nfrom .fast import FastBackend\n\n__all__ = (\n    "A",\n    "FastBackend",\n)\n',  # noqa: E501  as the file says it
    ),
    "as-itself": (
        "from .z import Z as Z\n",
        "from .z import Z as Z\nfrom .fast import FastBackend as FastBackend\n",
    ),
    "not-sorted": (
        'from pkg.backends.z import Z\nfrom pkg.backends.a import A\n\n__all__ = [\n    "Z",\n    "A"\n    # and more\n]\n',  # noqa: E501  as the file says it
        "from pkg.backends.z import Z\nfrom pkg.backends.a import A\nfrom pkg.backends.fast import FastBackend\n\n"
        '__all__ = [\n    "FastBackend",\n    "Z",\n    "A"\n    # and more\n]\n',
    ),
    "empty-list": ("__all__ = []\n", 'from pkg.backends.fast import FastBackend\n\n__all__ = ["FastBackend"]\n'),
}


@pytest.mark.parametrize("case", INITS)
def test_a_package_exports_the_class_in_its_own_style(repository, case):
    """Where it exports others: an import, and a name in ``__all__``."""
    before, after = INITS[case]
    repository.write(
        {
            "pkg/backends/__init__.py": before.encode(),
            "pkg/backends/a.py": "class A: ...\n",
            "pkg/backends/z.py": "class Z: ...\n",
        }
    )
    repository.commit()
    repository.apply()
    assert repository.files()["pkg/backends/__init__.py"] == after
    repository.python("from pkg.backends import FastBackend; from pkg.backends import *")


def test_a_package_that_exports_nothing_goes_on_so(repository):
    """And the summary says so."""
    repository.commit()
    assert "pkg/backends/__init__.py exports nothing, so it does not export FastBackend either." in repository.apply()
    assert repository.files()["pkg/backends/__init__.py"] == ""


def test_an_optional_class_is_exported_lazily(repository):
    """Its module is imported under a condition only, so not everyone can import it."""
    repository.write(
        {
            "pkg/backends/__init__.py": "from .a import A\n\n__all__ = ['A']\n",
            "pkg/backends/a.py": "class A: ...\n",
            "pkg/user.py": "try:\n    from pkg.fast_backend import FastBackend\nexcept ImportError:\n    FastBackend = None\n",  # noqa: E501  as the file says it
        }
    )
    repository.commit()
    repository.apply()
    assert repository.files()["pkg/backends/__init__.py"] == (
        "import importlib\nfrom typing import Any\n\nfrom .a import A\n\n__all__ = ['A']\n\n"
        "# Imported when they are first asked for: not everyone can.\n"
        '_LAZY = {"FastBackend": "pkg.backends.fast"}\n\n\n'
        "def __getattr__(name: str) -> Any:\n    if name in _LAZY:\n"
        "        return getattr(importlib.import_module(_LAZY[name]), name)\n"
        '    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")\n'
    )
    assert (
        repository.python(
            "import sys, pkg.backends as b; print('pkg.backends.fast' in sys.modules, b.FastBackend.__module__)"
        )
        == "False pkg.backends.fast\n"
    )


def test_a_table_of_lazy_exports_grows(repository):
    """In the form in which it names others."""
    lazy = (
        "import importlib\n\n__all__ = ['A']\n\n_WHERE = {\n    'A': '.a',\n}\n\n\ndef __getattr__(name):\n    if name in _WHERE:\n"  # noqa: E501  as the file says it
        "        return getattr(importlib.import_module(_WHERE[name], __name__), name)\n    raise AttributeError(name)\n"  # noqa: E501  as the file says it
    )
    repository.write(
        {
            "pkg/backends/__init__.py": lazy.encode(),
            "pkg/backends/a.py": "class A: ...\n",
            "pkg/user.py": "def f():\n    from pkg.fast_backend import FastBackend\n",
        }
    )
    repository.configure([PLACEMENT, EXPORTS], session=SESSION)
    repository.commit()
    repository.apply()
    assert repository.files()["pkg/backends/__init__.py"] == lazy.replace("['A']", "['A', 'FastBackend']").replace(
        "    'A': '.a',\n", "    'A': '.a',\n    'FastBackend': '.fast',\n"
    )
    repository.python("from pkg.backends import *; FastBackend")
    assert repository.lint().code == 0


def test_an_export_that_would_close_a_circle_is_lazy(repository):
    """The new module imports what imports the package."""
    repository.write(
        {
            "pkg/backends/__init__.py": "from .a import A\n\n__all__ = ['A']\n",
            "pkg/backends/a.py": "class A: ...\n",
            "pkg/helper.py": "from pkg.backends import A\n",
            "pkg/fast_backend.py": "from pkg.base import Backend\nfrom pkg.helper import A\n\n\nclass FastBackend(Backend):\n    a = A\n",  # noqa: E501  as the file says it
            "pkg/user.py": "import pkg.fast_backend\n",
        }
    )
    repository.commit()
    repository.apply()
    assert "from .fast" not in repository.files()["pkg/backends/__init__.py"]
    for module in ("pkg.helper", "pkg.user", "pkg.backends", "pkg.backends.fast"):
        repository.python(f"import {module}; from pkg.backends import FastBackend")


def test_exports_what_a_contract_misses(repository):
    """Imported but not listed, not imported, and a package without ``__all__``."""
    repository.write(
        {
            "pkg/backends/__init__.py": "from pkg.backends.a import A\n\n__all__ = []\n",
            "pkg/backends/a.py": "from pkg.base import Backend\n\n\nclass A(Backend): ...\n\n\nclass B(Backend): ...\n",
            "pkg/more/__init__.py": "from pkg.more.c import helper\n",
            "pkg/more/c.py": "from pkg.base import Backend\n\n\nclass C(Backend): ...\n\n\ndef helper(): ...\n",
        }
    )
    (repository.folder / "pkg/fast_backend.py").unlink()
    repository.configure([{**EXPORTS, "packages": ["pkg.backends", "pkg.more"]}], session=SESSION)
    repository.commit()
    assert repository.lint().code == 1
    assert repository.apply() == (
        "pkg/backends/__init__.py: exports A\npkg/backends/__init__.py: exports B\npkg/more/__init__.py: exports C\n"
    )
    files = repository.files()
    assert files["pkg/backends/__init__.py"] == 'from pkg.backends.a import A, B\n\n__all__ = ["A", "B"]\n'
    assert files["pkg/more/__init__.py"] == ('from pkg.more.c import C, helper\n\n__all__ = ["C", "helper"]\n')
    assert repository.lint().code == 0


def test_a_shim_of_a_module_works_and_warns(repository):
    """Names, ``*`` and attributes; the warning names the new path and the line that used the old one."""
    repository.write(
        {
            "pkg/fast_backend.py": "# Licence\n\nfrom pkg.base import Backend\n\n_SIZE = 3\n\n\nclass FastBackend(Backend):\n    size = _SIZE\n"  # noqa: E501  as the file says it
        }
    )
    repository.commit()
    repository.apply("--shim")
    assert repository.files()["pkg/fast_backend.py"].startswith('# Licence\n"""Moved to pkg.backends.fast.')
    out = repository.python(
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from pkg.fast_backend import FastBackend, _SIZE\n"
        "    from pkg.fast_backend import *\n"
        "    import pkg.fast_backend as old\n"
        "    old.FastBackend\n"
        "import pkg.backends.fast as new\n"
        "assert FastBackend is new.FastBackend and _SIZE == 3\n"
        "print({(w.category.__name__, str(w.message), w.filename) for w in caught}, len(caught))\n"
        "try:\n    old.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    warning = "('DeprecationWarning', 'pkg.fast_backend moved to pkg.backends.fast: import it from there', '<string>')"
    assert out == f"{{{warning}}} 5\nmodule 'pkg.backends.fast' has no attribute 'nothing'\n"
    assert repository.lint().code == 0
    repository.commit()
    assert repository.apply() == "Nothing to mend.\n"


def test_a_shim_of_a_class_works_and_warns(repository):
    """The rest of the old module is as it was."""
    repository.write(
        {
            "pkg/many.py": "from pkg.base import Backend\n\n\nclass SlowBackend(Backend): ...\n\n\ndef other():\n    return 1\n",  # noqa: E501  as the file says it
        }
    )
    repository.commit()
    repository.apply("--shim")
    out = repository.python(
        "import warnings, pkg.many\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from pkg.many import SlowBackend, other\n"
        "import pkg.backends.slow as new\n"
        "assert SlowBackend is new.SlowBackend and other() == 1\n"
        "print([(w.category.__name__, str(w.message), w.filename) for w in caught])\n"
        "assert not hasattr(pkg.many, 'nothing')\n"
    )
    assert out == (
        "[('DeprecationWarning', 'pkg.many.SlowBackend moved to pkg.backends.slow: import it from there', '<string>')]\n"  # noqa: E501  as the file says it
    )


def test_offers_rows_that_hold(repository):
    """The rows of the summary, in a contract, find nothing, and find who uses the old path again."""
    repository.commit()
    summary = repository.apply()
    rows = [line.strip() for line in summary.splitlines() if line.startswith("    ")]
    assert rows == ["pkg.fast_backend -> pkg.backends.fast"]
    repository.configure([PLACEMENT, {"name": "Old", "type": "retired_modules", "retired": rows}], session=SESSION)
    assert repository.lint().code == 0
    repository.write({"pkg/late.py": "import pkg.fast_backend\n"})
    assert repository.lint().code == 1


def test_rewrites_what_uses_retired_paths(repository):
    """In the packages, in other files, in documents; what is ignored stays, and what has no new place is told."""
    repository.write(
        {
            "pkg/backends/fast.py": "class FastBackend: ...\n\n\ndef new_name(): ...\n",
            "pkg/user.py": "from pkg.old import FastBackend\nimport pkg.gone\n",
            "pkg/kept.py": "import pkg.old\n\nimport pkg.old as again\n",
            "tests/test_it.py": "from pkg.backends.fast import old_name as f\n\nf()\n",
            "README.md": "# Use\n\n```python\n>>> from pkg.old import FastBackend  # so\n```\n\nAs pkg.old says.\n",
        }
    )
    (repository.folder / "pkg/fast_backend.py").unlink()
    retired = {
        "name": "Old",
        "type": "retired_modules",
        "retired": [
            "pkg.old -> pkg.backends.fast",
            "pkg.backends.fast.old_name -> pkg.backends.fast.new_name",
            "pkg.gone",
        ],
        "also_scan": ["tests", "README.md"],
        "ignore_definitions": ["pkg.kept -> pkg.old"],
    }
    repository.configure([retired], session=SESSION)
    repository.commit()
    result = repository.fix("--apply")
    assert result.code == 1
    assert result.out == (
        "pkg/kept.py: 1 use of retired paths\npkg/user.py: 1 use of retired paths\nREADME.md: 1 use of retired paths\n"
        "tests/test_it.py: 1 use of retired paths\n"
        "Not mended (1):\n"
        "pkg/user.py:2:8 imports pkg.gone, which was removed. The contract does not say what is used instead\n"
    )
    files = repository.files()
    assert files["pkg/user.py"] == "from pkg.backends.fast import FastBackend\nimport pkg.gone\n"
    assert files["pkg/kept.py"] == "import pkg.old\n\nimport pkg.backends.fast as again\n"
    assert files["tests/test_it.py"] == "from pkg.backends.fast import new_name as f\n\nf()\n"
    assert files["README.md"] == (
        "# Use\n\n```python\n>>> from pkg.backends.fast import FastBackend  # so\n```\n\nAs pkg.old says.\n"
    )


def test_documents_and_packages_that_name_what_moves(repository):
    """Code in documents is changed; tables and lists of modules in a package still work; the rest is told."""
    repository.write(
        {
            "pkg/__init__.py": (
                "import importlib\n\nfrom pkg import base\n\n__all__ = ['base', 'fast_backend']\n"
                "_WHERE = {'FastBackend': 'fast_backend'}\n\n\ndef __getattr__(name):\n    if name in _WHERE:\n"
                "        return getattr(importlib.import_module(f'pkg.{_WHERE[name]}'), name)\n    raise AttributeError(name)\n"  # noqa: E501  as the file says it
            ),
            "docs/use.rst": "Use\n===\n\n.. code-block:: python\n\n   from pkg.fast_backend import FastBackend\n",
            "docs/use.ipynb": (
                '{"cells": [{"cell_type": "code", "source": ["from pkg.fast_backend import FastBackend\\n", "FastBackend()"]}]}\n'  # noqa: E501  as the file says it
            ),
            "CODEOWNERS": "/pkg/fast_backend.py @me\n",
        }
    )
    repository.commit()
    check = "import pkg; from pkg import *; assert pkg.FastBackend is fast_backend.FastBackend"
    repository.python(check)
    summary = repository.apply()
    repository.python(check)
    files = repository.files()
    assert "from pkg.backends.fast import FastBackend\n" in files["docs/use.rst"]
    assert '"from pkg.backends.fast import FastBackend\\n"' in files["docs/use.ipynb"]
    assert "_WHERE = {'FastBackend': 'backends.fast'}" in files["pkg/__init__.py"]
    assert (
        "Left as they are, for you to look at (2):\n"
        "CODEOWNERS:1 says pkg/fast_backend.py: pkg.fast_backend is now pkg.backends.fast\n"
        "pkg/__init__.py:12 imports a computed name, which may be pkg.fast_backend: it is now pkg.backends.fast\n"
    ) in summary


def test_a_forbidden_definition_goes_where_the_placement_contract_says(repository):
    """Or where the user says."""
    forbidden = {"name": "Not here", "type": "forbidden_definitions", "modules": ["pkg.*"], "names": ["Fast*"]}
    repository.configure([PLACEMENT, forbidden], session=SESSION)
    repository.commit()
    repository.apply("Not here")
    assert "pkg/backends/fast.py" in repository.files()


def test_without_libcst_the_extra_is_named():
    """It is not needed to lint."""
    code = "import sys; sys.modules['libcst'] = None\nfrom contracts.cli import main\nmain(['fix'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'moe-contracts[fix]'" in done.stderr
