"""What ``moe-contracts fix`` refuses leaves every file, and what git has staged, as it was."""

import errno
import os
from pathlib import Path

import pytest

from contracts.fix import _changes
from tests.contracts.fixing import Repository, git

BASE = {
    "pkg/__init__.py": "",
    "pkg/base.py": "class Backend:\n    pass\n",
    "pkg/backends/__init__.py": "from pkg.backends.a import A\n\n__all__ = ['A']\n",
    "pkg/backends/a.py": "class A: ...\n",
    "pkg/fast_backend.py": "from pkg.base import Backend\n\n\nclass FastBackend(Backend):\n    pass\n",
    "pkg/user.py": "from pkg.fast_backend import FastBackend\n",
}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Give a repository with the misplaced ``pkg.fast_backend.FastBackend``."""
    found = Repository(tmp_path)
    found.write(BASE)
    found.contract(type="placement", base_classes=["pkg.base.Backend"], allowed_modules=["pkg.backends"])
    return found


def refused(repository: Repository, *arguments: str) -> str:
    """The message of a run that must change nothing."""
    state = repository.state()
    result = repository.fix("--apply", *arguments)
    assert result.code == 2, result.out
    assert not result.out
    assert repository.state() == state
    return result.err.removeprefix("Error: ").rstrip("\n")


SHARED = "def shared(): ...\n\n\n"
MANY = "from pkg.base import Backend\n\n\n"
OTHER = "\n\ndef other(): ...\n"
# What is written beside the base, and what is said.
CASES = {
    "target-exists": (
        {"pkg/backends/fast.py": ""},
        "pkg/fast_backend.py:4 FastBackend would go to pkg.backends.fast, which exists already. "
        "Name another module with --to.",
    ),
    "target-is-no-python": (
        {"pkg/backends/fast.py/data.txt": ""},
        "pkg/fast_backend.py:4 FastBackend would go to pkg.backends.fast, which exists already. "
        "Name another module with --to.",
    ),
    "two-of-one-name": (
        {"pkg/backend_fast.py": MANY + "class FastBackend(Backend): ...\n"},
        "pkg/fast_backend.py:4 FastBackend would go to pkg.backends.fast, and so would another. "
        "Move one of them first, with --to.",
    ),
    "name-taken": (
        {"pkg/backends/__init__.py": "from pkg.backends.a import A as FastBackend\n"},
        "pkg/backends/__init__.py:1 pkg.backends has another FastBackend. Rename one of them first.",
    ),
    "syntax-error-in-a-user": (
        {"tests/test_it.py": "from pkg.fast_backend import FastBackend\nif True print(1)\n"},
        "tests/test_it.py:2 cannot be parsed",
    ),
    "undecodable-user": (
        {"tests/test_it.py": b"from pkg.fast_backend import FastBackend  # \xff\n"},
        "tests/test_it.py:1 cannot be decoded: byte 0xff is not utf-8.",
    ),
    "cycle": (
        {
            "pkg/fast_backend.py": MANY + SHARED + "class FastBackend(Backend):\n    x = shared\n\n\n"
            "class Other:\n    y = FastBackend, shared\n"
        },
        "The move would make an import cycle: pkg.backends.fast -> pkg.fast_backend -> pkg.backends.fast. "
        "Break it first: move what both ends need to a module of its own.",
    ),
    "cycle-through-the-package": (
        {
            "pkg/backends/__init__.py": "from pkg.user import FastBackend as _\n",
            "pkg/user.py": "from pkg.fast_backend import FastBackend\n",
        },
        "The move would make an import cycle: pkg.user -> pkg.backends -> pkg.user.",
    ),
    "defined-in-a-branch": (
        {"pkg/fast_backend.py": MANY + "if True:\n    class FastBackend(Backend): ...\n" + OTHER},
        "pkg/fast_backend.py:4 FastBackend is defined inside another statement. "
        "Move it to the top level of pkg.fast_backend first.",
    ),
    "defined-twice": (
        {"pkg/fast_backend.py": MANY + "class FastBackend(Backend): ...\n\n\nFastBackend = FastBackend\n" + OTHER},
        "pkg/fast_backend.py:4 FastBackend is bound 2 times in pkg.fast_backend. Give each its own name first.",
    ),
    "two-statements-in-a-line": (
        {"pkg/fast_backend.py": MANY + "class FastBackend(Backend): ...; x = 1\n" + "y = 1; z = 2\n" + OTHER},
        "pkg/fast_backend.py:5 holds two statements. Write each on a line of its own first.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses(repository, case):
    """With a message that says where, why, and what to do."""
    files, message = CASES[case]
    repository.write(files)
    repository.commit()
    assert refused(repository).startswith(message)


def test_refuses_a_place_that_is_no_package(repository):
    """The place of the contract, and the one that the user names."""
    repository.commit()
    assert refused(repository, "--to", "pkg.nowhere.fast") == (
        "pkg/fast_backend.py:4 FastBackend would go to pkg.nowhere.fast, but there is no package pkg.nowhere. "
        "Make it first."
    )
    repository.contract(type="placement", base_classes=["pkg.base.Backend"], allowed_modules=["pkg.user"])
    repository.commit()
    assert refused(repository) == (
        "pkg/fast_backend.py:4 FastBackend belongs in pkg.user, which is no package with an __init__.py. "
        "Say where with --to."
    )


def test_asks_where_two_places_are_as_near(repository):
    """And takes the one that the user names."""
    repository.write({"pkg/more/__init__.py": ""})
    repository.contract(
        type="placement", base_classes=["pkg.base.Backend"], allowed_modules=["pkg.backends", "pkg.more"]
    )
    repository.commit()
    assert refused(repository) == (
        "pkg/fast_backend.py:4 FastBackend may live in pkg.backends or pkg.more. Say where with --to."
    )
    repository.apply("--to", "pkg.more.quick")
    assert "pkg/more/quick.py" in repository.files()


def test_names_the_contracts_where_the_wanted_one_is_none_of_them(repository):
    """By their identifiers."""
    repository.commit()
    assert refused(repository, "Rul") == "There is no contract 'Rul'. There are: 0."


def test_refuses_a_work_tree_with_changes(repository):
    """Unless it is told that they do not matter; files that git does not know do not."""
    repository.commit()
    repository.write({"pkg/base.py": BASE["pkg/base.py"] + "\n", "new.py": ""})
    assert refused(repository) == (
        "The work tree has uncommitted changes (pkg/base.py, 1 in all). Commit them, or pass --allow-dirty."
    )
    repository.apply("--allow-dirty")
    assert "pkg/backends/fast.py" in repository.files()


def test_refuses_where_git_does_not_look_after_the_files(repository):
    """Unless it is told that this does not matter; then the file is moved all the same."""
    assert refused(repository) == (
        f"{repository.folder} is no git repository, so nothing could bring back what is changed. "
        "Pass --allow-dirty to change it all the same."
    )
    repository.apply("--allow-dirty")
    assert "pkg/fast_backend.py" not in repository.files()
    repository.python("from pkg.user import FastBackend; assert FastBackend.__module__ == 'pkg.backends.fast'")


def test_refuses_a_file_that_is_read_only(repository):
    """It was made so on purpose."""
    repository.commit()
    (repository.folder / "pkg/user.py").chmod(0o444)
    assert refused(repository) == "pkg/user.py is read-only. Make it writable."


@pytest.mark.parametrize("left", range(4))
def test_a_full_disk_changes_nothing(repository, monkeypatch, left):
    """Whichever of the files it is that does not fit any more."""
    repository.commit()
    files = 0

    def sync(descriptor):
        nonlocal files
        files += 1
        if files > left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_changes.os, "fsync", sync)
    if left < 3:
        message = refused(repository, "--shim")
        assert message.endswith("cannot be written: No space left on device. Nothing was changed.")
    else:
        repository.apply("--shim")


@pytest.mark.parametrize("name", ["replace", "rename", "chmod", "fsync"])
@pytest.mark.parametrize("left", range(3))
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_whatever_fails_on_the_way_is_undone(repository, monkeypatch, name, left, error):
    """A system call that fails once, or the user who interrupts."""
    repository.write({"pkg/many.py": MANY + "class SlowBackend(Backend): ...\n" + OTHER})
    repository.commit()
    state = repository.state()
    real = getattr(os, name)
    calls = 0

    def fails_once(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == left + 1:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(_changes.os, name, fails_once)
    code = repository.fix("--apply", "--shim").code
    monkeypatch.undo()
    assert calls > left  # or this tests nothing
    assert (code, repository.state()) == (2 if isinstance(error, OSError) else 1, state)


def test_a_git_that_fails_changes_nothing(repository):
    """Another git process holds the index."""
    repository.commit()
    (repository.folder / ".git/index.lock").touch()
    before = repository.files()
    result = repository.fix("--apply", "--allow-dirty")
    assert result.code == 2
    assert "git mv failed: fatal: Unable to create" in result.err
    (repository.folder / ".git/index.lock").unlink()
    assert repository.files() == before
    assert git(repository.folder, "status", "--porcelain") == ""


def test_what_git_ignores_is_not_touched(repository):
    """Such as the copy of the package that a build made."""
    repository.write({".gitignore": "build\n", "build/user.py": BASE["pkg/user.py"]})
    repository.commit()
    repository.apply()
    assert repository.files()["build/user.py"] == BASE["pkg/user.py"]


def test_modes_and_links_stay(repository):
    """An executable stays one, and a link leads where it did."""
    repository.write({"run.py": "#!/usr/bin/env python\nfrom pkg.fast_backend import FastBackend\n"})
    (repository.folder / "run.py").chmod(0o755)
    (repository.folder / "link.py").symlink_to("run.py")
    repository.commit()
    repository.apply()
    assert (repository.folder / "run.py").stat().st_mode & 0o777 == 0o755
    assert (repository.folder / "link.py").is_symlink()
    assert "pkg.backends.fast" in (repository.folder / "run.py").read_text()
    assert sorted(repository.files()) == sorted(
        {*BASE, "run.py", "link.py", "pkg/backends/fast.py"} - {"pkg/fast_backend.py"}
    )
