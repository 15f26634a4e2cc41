"""``moe-contracts fix`` moves what breaks a placement contract where it belongs."""

import sys
from pathlib import Path

import pytest

from contracts.fix._naming import for_class, renamed
from tests.contracts.fixing import Repository, git

# fast_backend.py holds one backend and its helpers; many.py a backend among others.
PROJECT = {
    "pkg/__init__.py": "",
    "pkg/base.py": """\
        import abc


        class Backend(abc.ABC):
            @abc.abstractmethod
            def run(self): ...
        """,
    "pkg/backends/__init__.py": """\
        from pkg.backends.plain import PlainBackend

        __all__ = ["PlainBackend"]
        """,
    "pkg/backends/plain.py": """\
        from pkg.base import Backend


        class PlainBackend(Backend):
            def run(self):
                return "plain"
        """,
    "pkg/fast_backend.py": """\
        # Licence: yours

        from .base import Backend

        SIZE = 8


        class FastBackend(Backend):
            def run(self):
                return SIZE
        """,
    "pkg/many.py": """\
        # Licence: mine
        \"\"\"Many things.\"\"\"

        import json
        import os

        from pkg.base import (
            Backend,
        )


        def _shorten(text):  # only SlowBackend needs it
            return text[:4]


        # About the slow one.
        class SlowBackend(Backend):
            def run(self):
                return _shorten(json.dumps("slow"))


        def other():
            return os.sep
        """,
    "pkg/user.py": """\
        from pkg.fast_backend import SIZE, FastBackend
        from pkg.many import SlowBackend, other


        def both():
            return FastBackend().run(), SlowBackend().run(), SIZE, other()
        """,
    "tests/test_pkg.py": """\
        from pkg.user import both
        from pkg.many import SlowBackend


        def test_both():
            assert both() == (8, '"slo', 8, "/")
            assert SlowBackend().run() == '"slo'
        """,
    "untouched.py": "import pkg.base\r\nbackend = 'fast'\n",
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Give a repository with the misplaced ``pkg.fast_backend.FastBackend`` and ``pkg.many.SlowBackend``."""
    found = Repository(tmp_path)
    found.write(PROJECT)
    found.contract(type="placement", base_classes=["pkg.base.Backend"], allowed_modules=["pkg.backends"])
    found.commit()
    return found


def test_moves_a_module_whole_and_a_class_out_of_another(repository):
    """One run makes both moves, with every reference, and the package's own tests pass before and after."""
    before = repository.files()
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    assert repository.run(tests, path=[repository.folder]).returncode == 0
    assert repository.apply() == (
        "pkg/fast_backend.py -> pkg/backends/fast.py\n"
        "SlowBackend: pkg/many.py -> pkg/backends/slow.py\n"
        "So that nobody uses the old paths again, add to a retired_modules contract:\n"
        "    pkg.fast_backend -> pkg.backends.fast\n"
        "    pkg.many.SlowBackend -> pkg.backends.slow.SlowBackend\n"
    )
    after = repository.files()
    assert "pkg/fast_backend.py" not in after
    assert after["pkg/backends/fast.py"] == before["pkg/fast_backend.py"].replace("from .base", "from ..base")
    assert after["pkg/backends/slow.py"] == (
        "# Licence: mine\n\nimport json\n\nfrom pkg.base import (\n    Backend,\n)\n\n\n"
        "def _shorten(text):  # only SlowBackend needs it\n    return text[:4]\n\n\n"
        "# About the slow one.\nclass SlowBackend(Backend):\n    def run(self):\n"
        '        return _shorten(json.dumps("slow"))\n'
    )
    assert after["pkg/many.py"] == (
        '# Licence: mine\n"""Many things."""\n\nimport os\n\n\ndef other():\n    return os.sep\n'
    )
    assert after["pkg/user.py"].startswith(
        "from pkg.backends.fast import SIZE, FastBackend\nfrom pkg.backends.slow import SlowBackend\n"
        "from pkg.many import other\n"
    )
    assert after["pkg/backends/__init__.py"] == (
        "from pkg.backends.fast import FastBackend\n"
        "from pkg.backends.plain import PlainBackend\n"
        "from pkg.backends.slow import SlowBackend\n\n"
        '__all__ = ["FastBackend", "PlainBackend", "SlowBackend"]\n'
    )
    assert after["untouched.py"] == before["untouched.py"]
    assert repository.run(tests, path=[repository.folder]).returncode == 0
    assert repository.lint().code == 0
    assert "RM pkg/fast_backend.py -> pkg/backends/fast.py" in git(repository.folder, "status", "--short")


def test_the_second_run_changes_nothing(repository):
    """A mended tree is left alone."""
    repository.apply()
    repository.commit()
    state = repository.state()
    assert repository.apply() == "Nothing to mend.\n"
    assert repository.state() == state


def test_git_applies_the_diff(repository):
    """The diff, which is printed unless told otherwise, makes the very tree that ``--apply`` makes."""
    state = repository.state()
    shown = repository.fix()
    assert shown.code == 0
    assert repository.state() == state
    assert "rename from pkg/fast_backend.py\nrename to pkg/backends/fast.py\n" in shown.out
    (repository.folder / ".git/the.diff").write_bytes(shown.out.encode())
    git(repository.folder, "apply", ".git/the.diff")
    by_diff = repository.files()
    git(repository.folder, "reset", "-q", "--hard")
    git(repository.folder, "clean", "-fdq")
    repository.apply()
    assert repository.files() == by_diff


def test_names_modules_for_what_their_folder_and_bases_do_not_say():
    """A module that moves whole, and one that is made for a class."""
    assert renamed("pkg.mori_prepare_finalize", "pkg.prepare_finalize") == "mori"
    assert renamed("pkg.fast_backend", "pkg.backends") == "fast"
    assert renamed("pkg.backend", "pkg.backends") == "backend"
    base = "pkg.FusedMoEPrepareAndFinalize"
    names = {
        "BatchedPrepareAndFinalize": "batched",
        "NixlEPPrepareAndFinalize": "nixl_ep",
        "MoEPrepareAndFinalizeNoDPEPModular": "no_dpep",
        "PrepareAndFinalize": "prepare_and_finalize",
    }
    assert {name: for_class(name, [f"{base}Modular", base]) for name in names} == names
    assert for_class("TritonWNA16Experts", ["pkg.FusedMoEExperts"]) == "triton_wna16"
    assert for_class("XPUExpertsMXFp4", ["pkg.XPUExperts", "pkg.FusedMoEExperts"]) == "mx_fp4"
    assert for_class("Anything", []) == "anything"
