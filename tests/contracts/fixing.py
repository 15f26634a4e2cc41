"""A project under git, and ``moe-contracts fix`` run on it in this process."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from contracts.commands.fix import command
from tests.contracts.projects import Project

__all__ = ["Fixed", "Repository", "git"]


@dataclass(frozen=True, slots=True)
class Fixed:
    """What a run left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def git(folder: Path, *arguments: str) -> str:
    """Run git, as nobody in particular."""
    identity = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "core.autocrlf=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode()


class Repository(Project):
    """A project whose every file is committed."""

    def commit(self) -> None:
        """Make it a repository, if it is none yet, and commit all."""
        if not (self.folder / ".git").exists():
            git(self.folder, "init", "-q")
            (self.folder / ".git/info/exclude").write_text("__pycache__\n.import_linter_cache\n")
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-q", "--allow-empty", "-m", "all")

    def fix(self, *arguments: str) -> Fixed:
        """Run ``moe-contracts fix --no-cache``."""
        before = list(sys.path), Path.cwd()
        importlib.invalidate_caches()
        os.chdir(self.folder)
        try:
            result = CliRunner().invoke(command, ["--no-cache", *arguments], catch_exceptions=False)
        finally:
            sys.path[:], folder = before
            os.chdir(folder)
        return Fixed(result.exit_code, result.stdout, result.stderr)

    def apply(self, *arguments: str) -> str:
        """Run ``fix --apply``, which must succeed, and give its summary."""
        result = self.fix("--apply", *arguments)
        assert result.code == 0, result.err
        assert not result.err
        return result.out

    def files(self) -> dict[str, str]:
        """The text of every file that is not hidden, by its path."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes().decode()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            and not path.relative_to(self.folder).as_posix().startswith(".")
            and "__pycache__" not in path.parts
        }

    def state(self) -> str:
        """A hash of every file's path, mode and content, git's own aside, and of what git has staged."""
        total = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if ".git" in relative.parts or "__pycache__" in relative.parts:
                continue
            total.update(f"{relative} {path.lstat().st_mode}".encode())
            if path.is_file():
                total.update(path.read_bytes())
        if (self.folder / ".git").exists():
            total.update(git(self.folder, "ls-files", "--stage").encode())
        return total.hexdigest()

    def python(self, code: str) -> str:
        """What a program prints that runs in the project's folder; it must succeed."""
        done = self.run([sys.executable, "-W", "error", "-c", code], path=[self.folder])
        assert done.returncode == 0, done.stdout
        return done.stdout
