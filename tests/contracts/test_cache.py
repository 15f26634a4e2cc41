"""The cache: used wherever it holds, never where it does not, and no harm when it is damaged."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import ClassVar

import pytest

from contracts.source import Cache, _cache, _interpreter, _snapshot, _tree
from contracts.source._snapshot import Snapshot
from tests.contracts.conftest import SMALL
from tests.contracts.projects import REPOSITORY, Outcome, Project, listing, report, script

BAD = "pkg/bad.py:4:7 Bad is a Base and lives in pkg.bad: it belongs in pkg.good"
BROKEN = (1, report({"Rule": [BAD]}))
RULE = {"type": "placement", "base_classes": ["pkg.base.Base"], "allowed_modules": ["pkg.good"]}
DEFAULT = ".import_linter_cache"
READ = ["pkg/bad.py", "pkg/base.py", "pkg/good/fine.py"]


@pytest.fixture
def parsed(monkeypatch) -> list[str]:
    """Give the list of the files that are parsed, as it grows."""
    seen = []
    parse = _interpreter.parse

    def counted(file, *options):
        seen.append(os.path.relpath(file.path))
        return parse(file, *options)

    monkeypatch.setattr(_interpreter, "parse", counted)
    return seen


@pytest.fixture
def settled(monkeypatch) -> None:
    """Let every tree count as settled: as if its files had changed long ago."""
    monkeypatch.setattr(_snapshot, "SETTLED_AFTER_NS", -(10**18))


def ours(project: Project, kind: str = "*", folder: str = DEFAULT) -> list[Path]:
    return sorted((project.folder / folder).glob(f"moe-contracts-{kind}-*"))


class TestWhatIsUsed:
    """What needs no second reading."""

    def test_a_second_run_parses_nothing(self, small, parsed, settled):
        """Answers are remembered while no file changes; the report is the same, to the letter."""
        small.write({"pkg/a.b.py": SMALL["pkg/bad.py"]})
        small.write({"pkg/open.py": "from pkg.base import Base\n\n\nclass Open(*eval('(Base,)')): ...\n"})
        cold = small.lint()
        assert cold.code == 1
        assert "pkg/bad.py" in parsed
        assert "pkg/a.b.py:4" in cold.text
        assert "pkg/open.py:4:7" in cold.text
        parsed.clear()
        assert small.lint() == cold
        assert parsed == []

    def test_a_second_run_reads_nothing(self, small, settled, monkeypatch):
        """Not even the bytes of the files."""
        assert tuple(small.lint()) == BROKEN
        content = property(lambda file: pytest.fail(f"{file.path} was read"))
        monkeypatch.setattr(_tree.SourceFile, "content", content)
        assert tuple(small.lint()) == BROKEN

    def test_a_tree_that_has_just_changed_is_not_remembered(self, small, parsed):
        """A file may change again without its time stamps moving, so only what was read of it is kept."""
        assert tuple(small.lint()) == BROKEN
        assert sorted(parsed) == READ
        assert ours(small, "answers") == []
        assert len(ours(small, "summaries")) == 1
        parsed.clear()
        assert tuple(small.lint()) == BROKEN
        assert parsed == []

    @pytest.mark.parametrize("is_settled", [True, False])
    def test_one_edited_file_is_one_parse(self, small, parsed, is_settled, request):
        """The other files are not parsed again."""
        if is_settled:
            request.getfixturevalue("settled")
        assert tuple(small.lint()) == BROKEN
        parsed.clear()
        small.write({"pkg/bad.py": SMALL["pkg/bad.py"].replace("Bad", "Worse")})
        line = "pkg/bad.py:4:7 Worse is a Base and lives in pkg.bad: it belongs in pkg.good"
        assert tuple(small.lint()) == (1, report({"Rule": [line]}))
        assert parsed == ["pkg/bad.py"]

    @pytest.mark.parametrize("is_settled", [True, False])
    def test_a_cache_restored_into_a_fresh_checkout(self, small, tmp_path_factory, parsed, is_settled, request):
        """Another folder, where every file is new: nothing is parsed, and the report is the same."""
        if is_settled:
            request.getfixturevalue("settled")
        assert tuple(small.lint()) == BROKEN
        parsed.clear()
        fresh = Project(tmp_path_factory.mktemp("fresh"))
        for name in listing(small.folder):
            fresh.write({name: (small.folder / name).read_bytes()})
        for path in fresh.folder.rglob("*.py"):
            os.utime(path, (2_000_000_000, 2_000_000_000))
        assert tuple(fresh.lint()) == BROKEN
        assert parsed == []

    def test_a_file_of_the_same_content_elsewhere_is_read_for_itself(self, small, parsed):
        """Where a module lies is part of what it says: its relative imports mean something else there."""
        small.write({"pkg/bad.py": "from .base import Base\n\n\nclass Bad(Base):\n    def run(self): ...\n"})
        assert tuple(small.lint()) == BROKEN
        small.write({"pkg/good/base.py": "class Base: ...\n"})
        shutil.copy(small.folder / "pkg/bad.py", small.folder / "pkg/good/bad.py")
        shutil.copy(small.folder / "pkg/bad.py", small.folder / "pkg/zbad.py")
        line = "pkg/zbad.py:4:7 Bad is a Base and lives in pkg.zbad: it belongs in pkg.good"
        assert tuple(small.lint()) == (1, report({"Rule": [BAD, line]}))

    def test_other_contracts_have_their_own_answers(self, small, settled):
        """An answer is for its base classes, its names and its modules."""
        small.write({"pkg/other.py": "class Other: ...\n\n\nclass Own(Other): ...\n"})
        own = "pkg/other.py:4:7 Own is an Other and lives in pkg.other: it belongs in pkg.good"
        by_name = "pkg/other.py:1:7 Other matches Ot* and is defined in pkg.other: pkg.other may define none"
        names = {"type": "forbidden_definitions", "modules": ["pkg.other"], "names": ["Ot*"]}
        for _ in range(2):
            for contract, line in [
                (RULE, BAD),
                ({**RULE, "base_classes": ["pkg.other.Other"]}, own),
                (names, by_name),
                ({**names, "names": ["Own"]}, own.split(" is ", maxsplit=1)[0] + by_name[by_name.index(" matches") :]),
            ]:
                small.configure([contract])
                expected = line.replace("Ot*", "Own") if contract.get("names") == ["Own"] else line
                assert tuple(small.lint()) == (1, report({"Rule": [expected]}))


class TestWhatIsNoticed:
    """Every change of the tree, with a cache that took the tree for settled."""

    def lints(self, project, *lines):
        assert tuple(project.lint()) == ((1, report({"Rule": lines})) if lines else (0, report(kept=["Rule"])))

    def test_an_edit_within_the_same_second_of_the_same_size(self, small, settled):
        """Twice: neither the size nor the second tells that anything changed."""
        self.lints(small, BAD)
        for name in ("Mad", "Sad"):
            small.write({"pkg/bad.py": SMALL["pkg/bad.py"].replace("Bad", name)})
            self.lints(small, BAD.replace("Bad", name))

    def test_an_edit_that_keeps_the_time(self, small, settled):
        """As ``cp -p``, ``rsync -t`` and ``touch -r`` leave it."""
        self.lints(small, BAD)
        path = small.folder / "pkg/bad.py"
        stat = path.stat()
        small.write({"pkg/bad.py": SMALL["pkg/bad.py"].replace("Bad", "Mad")})
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        self.lints(small, BAD.replace("Bad", "Mad"))

    def test_a_file_moved_removed_and_added(self, small, settled):
        """The report follows the file."""
        self.lints(small, BAD)
        (small.folder / "pkg/bad.py").rename(small.folder / "pkg/moved.py")
        self.lints(small, BAD.replace("bad", "moved"))
        (small.folder / "pkg/moved.py").unlink()
        self.lints(small)
        small.write({"pkg/bad.py": SMALL["pkg/bad.py"]})
        self.lints(small, BAD)

    def test_an_edit_of_the_base(self, small, settled):
        """What other files say of a class matters to it: the base's abstract methods, here."""
        self.lints(small, BAD)
        walk = "    @abc.abstractmethod\n    def walk(self): ...\n"
        small.write({"pkg/base.py": dedent(SMALL["pkg/base.py"]) + walk})
        small.write({"pkg/good/fine.py": dedent(SMALL["pkg/good/fine.py"]) + "    walk = None\n"})
        self.lints(small)

    def test_a_folder_that_becomes_a_package(self, small, settled):
        """An empty ``__init__.py`` brings a folder into the graph."""
        small.write({"pkg/bad.py": "", "pkg/sub/mod.py": SMALL["pkg/bad.py"]})
        out = "defines Bad, but the import graph leaves it out: pkg/sub has no __init__.py. Add pkg/sub/__init__.py"
        self.lints(small, f"pkg/sub/mod.py:4 {out}")
        small.write({"pkg/sub/__init__.py": ""})
        self.lints(small, "pkg/sub/mod.py:4:7 Bad is a Base and lives in pkg.sub.mod: it belongs in pkg.good")

    def test_a_file_of_an_odd_name(self, small, settled):
        """Its name separates no keys of the cache."""
        small.write({"pkg/bad.py": "", "pkg/:a:b:.py": SMALL["pkg/bad.py"]})
        self.lints(small, "pkg/:a:b:.py:4:7 Bad is a Base and lives in pkg.:a:b:: it belongs in pkg.good")
        small.write({"pkg/:a:b:.py": SMALL["pkg/bad.py"].replace("Bad", "Sad")})
        self.lints(small, "pkg/:a:b:.py:4:7 Sad is a Base and lives in pkg.:a:b:: it belongs in pkg.good")


class TestDamage:
    """A cache that is no good is as good as none."""

    DAMAGES: ClassVar = {
        "empty": lambda content: b"",
        "garbage": lambda content: b"\xff" * len(content),
        "truncated": lambda content: content[:-1],
        "half": lambda content: content[: len(content) // 2],
        "check sum only": lambda content: content.partition(b"\n")[0],
        "no check sum": lambda content: content.partition(b"\n")[2],
        "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "longer": lambda content: content + b"\0",
    }

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_files(self, small, parsed, settled, damage):
        """The run is as if there were no cache, and leaves a whole one behind."""
        assert tuple(small.lint()) == BROKEN
        assert len(ours(small)) == 2
        for path in ours(small):
            path.write_bytes(self.DAMAGES[damage](path.read_bytes()))
        parsed.clear()
        assert tuple(small.lint()) == BROKEN
        assert sorted(parsed) == READ
        parsed.clear()
        assert tuple(small.lint()) == BROKEN
        assert parsed == []

    def test_files_exchanged(self, small, settled):
        """The answers where the summaries should be, and the other way round."""
        assert tuple(small.lint()) == BROKEN
        answers, summaries = (path.read_bytes() for path in ours(small))
        for path, content in zip(ours(small), (summaries, answers), strict=True):
            path.write_bytes(content)
        assert tuple(small.lint()) == BROKEN
        small.write({"pkg/bad.py": SMALL["pkg/bad.py"].replace("Bad", "Sad")})
        assert tuple(small.lint()) == (1, report({"Rule": [BAD.replace("Bad", "Sad")]}))

    def test_folders_in_place_of_the_files(self, small, settled):
        """What cannot be replaced is left, and no temporary file with it."""
        assert tuple(small.lint()) == BROKEN
        for path in ours(small):
            path.unlink()
            path.mkdir()
            (path / "kept").touch()
        before = listing(small.folder)
        assert tuple(small.lint()) == BROKEN
        assert listing(small.folder) == before

    def test_another_version(self, small, parsed, settled, monkeypatch):
        """What another version of the code, or another Python, has read is read anew; its cache is left to it."""
        assert tuple(small.lint()) == BROKEN
        before = {path.name: path.read_bytes() for path in ours(small)}
        parsed.clear()
        monkeypatch.setattr(_cache, "_reader_version", lambda: "another")
        assert tuple(small.lint()) == BROKEN
        assert sorted(parsed) == READ
        assert before.items() < {path.name: path.read_bytes() for path in ours(small)}.items()

    def test_the_version_is_the_text_of_the_code(self, small, tmp_path_factory):
        """Installed anew it is the same version; changed in any place, even without a release, it is another."""
        code = tmp_path_factory.mktemp("code")
        shutil.copytree(REPOSITORY / "contracts", code / "contracts")
        path = {"env": {"PYTHONPATH": str(code)}}
        assert tuple(small.lint_as_process(**path)) == BROKEN
        first = ours(small, "summaries")
        assert len(first) == 1
        for file in code.rglob("*.py"):
            os.utime(file, (2_000_000_000, 2_000_000_000))
        assert tuple(small.lint_as_process(**path)) == BROKEN
        assert ours(small, "summaries") == first
        for count, name in enumerate(["placement.py", "source/_summary.py", "source/_dataflow/flow.py"], 2):
            file = code / "contracts" / name
            file.write_text(file.read_text() + "# changed\n")
            assert tuple(small.lint_as_process(**path)) == BROKEN
            assert len(ours(small, "summaries")) == count


class TestPlace:
    """Where the cache lies, and what happens where it cannot lie."""

    def test_no_cache(self, small, parsed, settled):
        """With ``--no-cache`` nothing is written, and nothing that was written before is used."""
        before = listing(small.folder)
        assert tuple(small.lint("--no-cache")) == BROKEN
        assert listing(small.folder) == before
        assert tuple(small.lint()) == BROKEN
        parsed.clear()
        assert tuple(small.lint("--no-cache")) == BROKEN
        assert sorted(parsed) == READ

    def test_cache_dir(self, small, parsed, settled):
        """With ``--cache-dir`` the cache lies there and nowhere else."""
        assert tuple(small.lint("--cache-dir", "deep/er")) == BROKEN
        assert len(ours(small, folder="deep/er")) == 2
        assert not (small.folder / DEFAULT).exists()
        parsed.clear()
        assert tuple(small.lint("--cache-dir", "deep/er")) == BROKEN
        assert parsed == []
        assert tuple(small.lint()) == BROKEN
        assert sorted(parsed) == READ

    @pytest.mark.parametrize("flag", ["--no-cache", "--cache-dir=elsewhere"])
    def test_a_cache_that_cannot_be_written(self, small, flag):
        """import-linter itself stops at a cache folder that it cannot write; with these flags it runs."""
        assert tuple(small.lint()) == BROKEN
        (small.folder / DEFAULT).chmod(0o555)
        for path in (small.folder / DEFAULT).iterdir():
            path.chmod(0o444)
        stopped = small.lint_as_process(obeys_modes=True)
        assert (stopped.code, stopped.text) == (1, "Permission denied (os error 13)\n")
        assert tuple(small.lint_as_process(flag, obeys_modes=True)) == BROKEN
        (small.folder / DEFAULT).chmod(0o755)

    def test_a_file_in_place_of_the_folder(self, small):
        """import-linter itself stops there; without the cache it runs."""
        small.write({DEFAULT: ""})
        assert small.lint().text == "File exists (os error 17)\n"
        assert tuple(small.lint("--no-cache")) == BROKEN

    def test_a_folder_that_cannot_be_made_costs_no_result(self, tmp_path):
        """Our part of the cache never stops a run: what cannot be written is not remembered."""
        (tmp_path / "file").touch()
        tree = SimpleNamespace(roots=["pkg"], snapshot=Snapshot([], 10**18, list))
        cache = Cache(str(tmp_path / "file"), [])
        cache.open(tree)
        cache.store(["question"], [1, 2])
        assert cache.answer(["question"]) == [1, 2]
        again = Cache(str(tmp_path / "file"), [])
        again.open(tree)
        assert again.answer(["question"]) is None
        assert listing(tmp_path) == ["file"]

    def test_others_may_read_it(self, small, settled):
        """The files' permissions are those of any new file, so that users of one machine can share them."""
        assert tuple(small.lint()) == BROKEN
        (small.folder / "new").touch()
        expected = (small.folder / "new").stat().st_mode
        assert [path.stat().st_mode for path in ours(small)] == [expected, expected]

    def test_it_does_not_grow_with_every_edit(self, small, settled):
        """What a file said before it was edited is forgotten."""
        assert tuple(small.lint()) == BROKEN
        (path,) = ours(small, "summaries")
        size = path.stat().st_size
        for name in ("Bae", "Bag", "Bah", "Bar", "Bat"):
            small.write({"pkg/bad.py": SMALL["pkg/bad.py"].replace("Bad", name)})
            assert small.lint().code == 1
        assert ours(small, "summaries") == [path]
        assert path.stat().st_size == size


class TestAtOnce:
    """Several processes, one cache."""

    def test_linters(self, small, parsed):
        """Four that start together on an empty cache all report the same, and leave one that is whole."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [script("lint-imports"), "--no-logo"]
        options = {"cwd": small.folder, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        running = [subprocess.Popen(command, text=True, **options) for _ in range(4)]
        texts = [process.communicate(timeout=120)[0] for process in running]
        assert [process.returncode for process in running] == [1] * 4
        # grimp may meet its own cache half written, says so, and goes on.
        texts = [re.sub(r"Could not use corrupt cache file [^\n]*\n", "", text) for text in texts]
        assert [tuple(Outcome(1, text)) for text in texts] == [BROKEN] * 4
        assert all(path.suffix == ".cache" for path in ours(small))
        assert tuple(small.lint()) == BROKEN
        assert parsed == []

    def test_writers(self, tmp_path, monkeypatch):
        """Two that write without pause: whoever reads meanwhile finds a whole answer, the one's or the other's."""
        monkeypatch.chdir(tmp_path)
        tree = SimpleNamespace(roots=["pkg"], snapshot=Snapshot([], 10**18, list))
        write = (
            "import os, sys; from types import SimpleNamespace\n"
            "from contracts.source import Cache; from contracts.source._snapshot import Snapshot\n"
            "tree = SimpleNamespace(roots=['pkg'], snapshot=Snapshot([], 10**18, list))\n"
            "cache = Cache(sys.argv[1], []); cache.open(tree)\n"
            "cache.store(['question'], [int(sys.argv[2])] * 100_000)\n"
            "print('started', flush=True)\n"
            "while not os.path.exists(sys.argv[3]):\n"
            "    cache.store(['question'], [int(sys.argv[2])] * 100_000)\n"
        )
        folder, stop = str(tmp_path / "cache"), str(tmp_path / "stop")
        options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}, "stdout": subprocess.PIPE}
        writers = [
            subprocess.Popen([sys.executable, "-c", write, folder, number, stop], text=True, **options)
            for number in ("1", "2")
        ]
        try:
            assert [writer.stdout.readline() for writer in writers] == ["started\n"] * 2
            found = []
            for _ in range(200):
                cache = Cache(folder, [])
                cache.open(tree)
                answer = cache.answer(["question"])
                assert answer in ([1] * 100_000, [2] * 100_000)
                found.append(answer[0])
        finally:
            Path(stop).touch()
            codes = [writer.wait(timeout=60) for writer in writers]
            for writer in writers:
                writer.stdout.close()
        assert codes == [0, 0]
        assert set(found) == {1, 2}
        assert [path.suffix for path in Path(folder).iterdir()] == [".cache"]
