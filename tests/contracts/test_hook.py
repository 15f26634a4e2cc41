"""The pre-commit hooks, with the real pre-commit on a scratch repository: red, mended by hand, green."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.contracts.projects import REPOSITORY, Project, script

HOOKS = yaml.safe_load((REPOSITORY / ".pre-commit-hooks.yaml").read_text())
BAD = "pkg/bad.py:4:7 Bad is a Base and lives in pkg.bad: it belongs in pkg.good"
ANNOTATION = BAD.replace("pkg/bad.py:4:7 ", "::error file=pkg/bad.py,line=4,col=7,title=Rule::")


class Scratch:
    """A repository under git, with pre-commit installed into it."""

    def __init__(self, project: Project, home: Path) -> None:
        self.project = project
        self.home = home
        self.git("init", "-q")

    def git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run git in it; the commands of this Python are on the path, as hooks find them."""
        names = {"name": "Jo", "email": "jo@example.org"}
        roles = ("AUTHOR", "COMMITTER")
        identity = {f"GIT_{role}_{key.upper()}": value for role in roles for key, value in names.items()}
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
        environment = {"PRE_COMMIT_HOME": str(self.home), "PATH": path, "GITHUB_WORKSPACE": "", **identity}
        # Whoever runs these tests from a hook of git has its variables set.
        ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | environment
        command = ["git", "-c", "protocol.file.allow=always", *arguments]
        return subprocess.run(
            command, cwd=self.project.folder, env=ours, text=True, capture_output=True, timeout=280, check=False
        )

    def install(self, config: str) -> None:
        """Write pre-commit's configuration and have it run at each commit."""
        (self.project.folder / ".pre-commit-config.yaml").write_text(config)
        done = self.project.run([script("pre-commit"), "install"], env={"PRE_COMMIT_HOME": str(self.home)})
        assert done.returncode == 0, done.stdout

    def commit(self) -> tuple[bool, str]:
        """Commit everything: whether that worked, and what was said."""
        assert self.git("add", "-A").returncode == 0
        done = self.git("commit", "-qm", "change")
        return done.returncode == 0, done.stdout + done.stderr


def red_then_green(scratch: Scratch, expected: dict[str, str]) -> None:
    """Commit a violation, which each hook of ``expected`` refuses with that line; move the class; commit again."""
    worked, text = scratch.commit()
    assert not worked, text
    for line in expected.values():
        assert line in text.splitlines(), text
    for name in expected:
        assert f"{name}{'.' * (79 - len(name) - len('Failed'))}Failed" in text, text
    folder = scratch.project.folder
    (folder / "pkg/good/bad.py").write_text((folder / "pkg/bad.py").read_text())
    (folder / "pkg/bad.py").unlink()
    worked, text = scratch.commit()
    assert worked, text
    assert text.count("Passed") == len(expected)
    # A change of nothing that a contract reads runs none of them.
    (folder / "notes.txt").write_text("x")
    worked, text = scratch.commit()
    assert worked, text
    assert text.count("Skipped") == len(expected)
    # The configuration is something that a contract reads.
    config = folder / ".importlinter"
    config.write_text(config.read_text().replace("pkg.good", "pkg.base"))
    worked, text = scratch.commit()
    assert not worked, text
    assert text.count("Failed") == len(expected)


LINES = {
    "lint-imports": BAD,
    "moe-contracts lint": BAD,
    "moe-contracts lint --format github": ANNOTATION,
}


def test_each_hook_is_tried():
    """Those below are all that there are."""
    assert [hook["name"] for hook in HOOKS] == list(LINES)


def test_hooks_where_everything_is_installed(small, tmp_path):
    """The entries of the hooks, with the commands of this environment: pre-commit need install nothing."""
    hooks = [{**hook, "language": "system"} for hook in HOOKS]
    scratch = Scratch(small, tmp_path / ".home")
    (small.folder / ".gitignore").write_text(".home/\n.import_linter_cache/\n")
    scratch.install(yaml.safe_dump({"repos": [{"repo": "local", "hooks": hooks}]}))
    red_then_green(scratch, LINES)


def copy_of_this_repository(folder: Path, home: Path) -> Scratch:
    """What is packaged or linted, and the configurations, under git."""
    for name in ("pyproject.toml", "README.md", "LICENSE", *(path.name for path in REPOSITORY.glob(".*[a-z]"))):
        if (REPOSITORY / name).is_file() and name != ".git":
            shutil.copy(REPOSITORY / name, folder)
    for name in ("contracts", "checks", "vllm_moe", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    scratch = Scratch(Project(folder), home)
    worked, text = scratch.commit()
    assert worked, text
    return scratch


@pytest.mark.slow
def test_this_repository_itself(tmp_path_factory):
    """Its own configuration of pre-commit passes, and runs the hook."""
    scratch = copy_of_this_repository(tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("home"))
    done = scratch.project.run([script("pre-commit"), "run", "-a"], env={"PRE_COMMIT_HOME": str(scratch.home)})
    assert done.returncode == 0, done.stdout
    assert "lint-imports.............................................................Passed" in done.stdout


@pytest.mark.slow
def test_hooks_of_this_repository(small, tmp_path_factory):
    """As another repository uses them: pre-commit clones this one, at a commit, and installs it with pip."""
    home = tmp_path_factory.mktemp("home")
    source = copy_of_this_repository(tmp_path_factory.mktemp("hooks"), home)
    revision = source.git("rev-parse", "HEAD").stdout.strip()
    ids = "".join(f"      - id: {hook['id']}\n" for hook in HOOKS)
    scratch = Scratch(small, home)
    (small.folder / ".gitignore").write_text(".import_linter_cache/\n")
    scratch.install(f"repos:\n  - repo: {source.project.folder}\n    rev: {revision}\n    hooks:\n{ids}")
    red_then_green(scratch, LINES)
