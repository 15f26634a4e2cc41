"""git, as far as a refactoring needs it."""

from __future__ import annotations

import os
import subprocess

from contracts._writing import CouldNotError

_SKIPPED = frozenset({"__pycache__", "node_modules"})


def git(top: str, *arguments: str) -> str:
    """What a git command prints.

    Raises:
        CouldNotError: it failed; says what git said.
    """
    done = subprocess.run(  # noqa: S603  git, with paths of our own
        ["git", "-C", top, *arguments],  # noqa: S607  wherever it is installed
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise CouldNotError(f"git {arguments[0]} failed: {said}. Nothing was changed.")
    return done.stdout.decode("utf-8", "surrogateescape")


def top_folder() -> tuple[str, bool]:
    """The folder outside which nothing is changed, and whether git looks after it.

    That is the git work tree in which the current folder lies, or else the current folder.
    """
    here = os.path.realpath(os.getcwd())
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"],  # noqa: S607  wherever it is installed
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return here, False  # git is not installed
    if done.returncode:
        return here, False
    return os.path.realpath(done.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")), True


def refuse_unsafe(top: str, *, with_git: bool) -> None:
    """Refuse to change what git could not bring back.

    Raises:
        CouldNotError: there is no git, or the work tree has changes of its own.
    """
    if not with_git:
        raise CouldNotError(
            f"{top} is no git repository, so nothing could bring back what is changed. "
            "Pass --allow-dirty to change it all the same."
        )
    changed = git(top, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        raise CouldNotError(
            f"The work tree has uncommitted changes ({changed[0][3:]}, {len(changed)} in all). Commit them, or pass "
            "--allow-dirty."
        )


def listed_files(top: str, *, with_git: bool) -> list[str]:
    """The files of a repository by absolute path, without what git ignores; without git, what is not hidden."""
    if with_git:
        names = git(top, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        paths = {os.path.join(top, name) for name in names if name}
        return [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    found = []
    for folder, folders, names in os.walk(top):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in _SKIPPED]
        if "pyvenv.cfg" in names:
            folders.clear()
            continue
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return found
