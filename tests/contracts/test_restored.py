"""A cache restored into a fresh checkout: answers are found by what the files hold, and by nothing less."""

import ast
import os
import shutil
from pathlib import Path

import pytest

from contracts import retired_modules
from contracts.source import Cache, Index, SourceError, _overrides, _snapshot
from contracts.source._dataflow import question
from contracts.source._snapshot import Found, Snapshot
from contracts.source._tree import SourceFile
from tests.contracts.projects import Project, listing

FILES = {
    "pkg/__init__.py": "",
    "pkg/base.py": """\
        import abc


        class Base(abc.ABC):
            @abc.abstractmethod
            def prepare(self, a1: Tensor) -> None: ...
        """,
    "pkg/good/__init__.py": "__all__ = ()\n",
    "pkg/good/fine.py": """\
        from pkg.base import Base


        class Fine(Base):
            def prepare(self, a1: Tensor) -> None: ...
        """,
    "pkg/bad.py": """\
        from .base import Base


        class Bad(Base):
            def prepare(self, x1: Tensor) -> None:
                x1.mul_(2)
        """,
    "t/test_old.py": "import pkg.old\n",
    "t/test_odd.py": "import pkg.new\n",
    "docs/use.md": "```python\nimport pkg.old\n```\n",
}
BASE = {"base_classes": ["pkg.base.Base"]}
CONTRACTS = [
    {"name": "1", "type": "placement", **BASE, "allowed_modules": ["pkg.good"]},
    {"name": "2", "type": "forbidden_definitions", "modules": ["pkg.*"], "names": ["B?d"]},
    {"name": "3", "type": "complete_exports", **BASE, "packages": ["pkg.good"]},
    {"name": "4", "type": "override_signatures", **BASE},
    {"name": "5", "type": "unmutated_inputs", **BASE},
    {"name": "6", "type": "retired_modules", "retired": ["pkg.old"], "also_scan": ["t", "docs"]},
]
# What finds each kind of answer, in the order of the contracts.
SEARCHES = [
    (Index, "_subclasses"),
    (Index, "_defined_in"),
    (Index, "_exports"),
    (_overrides, "overrides"),
    (question, "mutations"),
    (retired_modules, "_look"),
]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Give the list of the searches that run, with "parse" for each parsed source, as it grows."""
    seen = []

    def count(owner, name):
        whole = getattr(owner, name)

        def counted(*arguments, **options):
            seen.append(name)
            return whole(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in [*SEARCHES, (ast, "parse")]:
        count(owner, name)
    monkeypatch.setattr(_snapshot, "SETTLED_AFTER_NS", -(10**18))
    return seen


@pytest.fixture
def linted(empty, calls) -> Project:
    """Give a project whose cache holds the answers of a cold run; each search ran in it."""
    empty.write(FILES)
    empty.configure(CONTRACTS)
    assert empty.lint().text.count("BROKEN") == len(CONTRACTS)
    assert dict.fromkeys(calls).keys() >= {name for _, name in SEARCHES} | {"parse"}
    calls.clear()
    return empty


@pytest.fixture
def fresh(linted, tmp_path_factory) -> Project:
    """Give a copy of that project in another folder, its cache too, in which every file is new."""
    copy = Project(tmp_path_factory.mktemp("fresh"))
    for name in listing(linted.folder):
        copy.write({name: (linted.folder / name).read_bytes()})
    for path in [path for path in copy.folder.rglob("*") if path.is_file()]:
        os.utime(path, (2_000_000_000, 2_000_000_000))
    return copy


def test_nothing_is_searched_or_parsed(linted, fresh, calls):
    """The report is the same, to the letter."""
    assert fresh.lint() == linted.lint()
    assert calls == []


def test_the_next_run_reads_nothing(fresh, calls, monkeypatch):
    """The files are known by their times from then on."""
    restored = fresh.lint()
    monkeypatch.setattr(SourceFile, "content", property(lambda file: pytest.fail(f"{file.path} was read")))
    assert fresh.lint() == restored
    assert calls == []


def test_files_that_have_just_been_written(fresh, calls, monkeypatch):
    """The contents tell that they are the same, even if the times may not be trusted."""
    monkeypatch.setattr(_snapshot, "SETTLED_AFTER_NS", 10**18)
    restored = fresh.lint()
    assert fresh.lint() == restored
    assert calls == []


def swap(one: Path, other: Path) -> None:
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


def replace(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def move_into_a_package(folder: Path) -> None:
    (folder / "pkg/bad").mkdir()
    (folder / "pkg/bad.py").rename(folder / "pkg/bad/__init__.py")
    (folder / "pkg/bad/base.py").write_text("class Base: ...\n")


CHANGES = {
    "a class renamed": lambda top: replace(top / "pkg/bad.py", "Bad", "Bed"),
    "a class grown": lambda top: replace(top / "pkg/bad.py", "Bad", "Worse"),
    "the base": lambda top: replace(top / "pkg/base.py", "a1", "a2"),
    "a test": lambda top: replace(top / "t/test_odd.py", "new", "old"),
    "a document": lambda top: replace(top / "docs/use.md", "old", "new"),
    "a module more": lambda top: shutil.copy(top / "pkg/bad.py", top / "pkg/bed.py"),
    "a module less": lambda top: (top / "pkg/bad.py").unlink(),
    "a test more": lambda top: shutil.copy(top / "t/test_old.py", top / "t/test_new.py"),
    "a test less": lambda top: (top / "t/test_old.py").unlink(),
    "a module of another name": lambda top: (top / "pkg/bad.py").rename(top / "pkg/bed.py"),
    "a test of another name": lambda top: (top / "t/test_old.py").rename(top / "t/test_ald.py"),
    "two modules' contents": lambda top: swap(top / "pkg/bad.py", top / "pkg/good/fine.py"),
    "two tests' contents": lambda top: swap(top / "t/test_old.py", top / "t/test_odd.py"),
    "a module that became a package": move_into_a_package,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_seen(fresh, change):
    """The report is that of a run without any cache, and another than before."""
    before = fresh.lint()
    for path in (fresh.folder / "pkg", fresh.folder / "t"):
        shutil.copytree(path, fresh.folder / "as_it_was" / path.name)
    CHANGES[change](fresh.folder)
    changed = fresh.lint()
    assert changed == fresh.lint("--no-cache")
    assert tuple(changed) != tuple(before)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_on_the_way_is_seen(fresh, change):
    """The same, if the change comes with the checkout."""
    CHANGES[change](fresh.folder)
    assert fresh.lint() == fresh.lint("--no-cache")


def test_swapped_contents_of_equal_size(empty, calls):
    """Neither the names nor the sizes tell."""
    empty.write(FILES | {"pkg/fin.py": FILES["pkg/bad.py"].replace("Bad", "Fin").replace("x1", "a1")})
    empty.configure(CONTRACTS)
    before = empty.lint()
    swap(empty.folder / "pkg/bad.py", empty.folder / "pkg/fin.py")
    after = empty.lint()
    assert after == empty.lint("--no-cache")
    assert after != before


def test_other_contracts_find_nothing(fresh, calls):
    """What is asked belongs to the answer as much as what the files hold."""
    retired = {**CONTRACTS[5], "retired": ["pkg.new"]}
    fresh.configure([{**CONTRACTS[0], "base_classes": ["pkg.bad.Bad"]}, retired])
    assert "t/test_odd.py:1:8 imports pkg.new, which was removed" in fresh.lint("--no-cache").text
    calls.clear()
    assert "t/test_odd.py:1:8 imports pkg.new, which was removed" in fresh.lint().text
    assert {"_subclasses", "_look"} <= {*calls}


def test_another_current_folder(fresh, calls, monkeypatch):
    """Paths are reported as seen from where the linter runs, though the files are the very same."""
    there = Project(fresh.folder / "there")
    for top in ("pkg", "t", "docs"):
        shutil.move(fresh.folder / top, there.folder / top)
    shutil.move(fresh.folder / ".importlinter", there.folder / ".importlinter")
    cache = ["--cache-dir", str(fresh.folder / "cache")]
    assert "\npkg/bad.py:4:7 Bad is" in there.lint(*cache).text
    monkeypatch.syspath_prepend(there.folder)
    monkeypatch.delitem(__import__("sys").modules, "pkg", raising=False)
    above = Project(fresh.folder)
    above.configure(CONTRACTS[:5])
    assert "\nthere/pkg/bad.py:4:7 Bad is" in above.lint(*cache).text


def test_a_file_that_changes_while_it_is_linted(empty, calls, monkeypatch):
    """Its answers hold for what was read, but the import graph may be that of what was there before."""
    empty.write(FILES)
    empty.configure(CONTRACTS)
    find = Index._subclasses

    def change_and_find(index, *arguments):
        replace(empty.folder / "pkg/bad.py", "Bad", "Bed")
        monkeypatch.setattr(Index, "_subclasses", find)
        return find(index, *arguments)

    monkeypatch.setattr(Index, "_subclasses", change_and_find)
    during = empty.lint()
    assert "Bed is a Base" in during.text
    calls.clear()
    assert empty.lint() == during
    assert "_subclasses" in calls


class TestSnapshot:
    """What tells whether files are the same."""

    FOUND = Found(os.path.join(os.getcwd(), "a.py"), "a", False, 3, 50, 60, 1)

    def snapshot(self, found=FOUND, content=b"abc", began=10**18):
        return Snapshot([found], began, lambda: iter([content]))

    def test_by_stamps(self):
        """While nothing moved, the contents do not count."""
        stored = self.snapshot().to_plain()
        assert self.snapshot(content=b"abd").is_that_of(stored)

    @pytest.mark.parametrize("moved", [{"modified_ns": 51}, {"changed_ns": 61}, {"inode": 2}])
    def test_by_contents(self, moved):
        """Where something moved, the contents count."""
        stored = self.snapshot().to_plain()
        found = self.FOUND._replace(**moved)
        assert self.snapshot(found).is_that_of(stored)
        assert not self.snapshot(found, b"abd").is_that_of(stored)

    @pytest.mark.parametrize("other", [{"path": "/a.py"}, {"module": "b"}, {"is_package": True}, {"size": 4}])
    def test_by_name(self, other):
        """The same content under another name is another answer."""
        stored = self.snapshot().to_plain()
        assert not self.snapshot(self.FOUND._replace(**other)).is_that_of(stored)

    def test_what_cannot_be_read(self):
        """It equals nothing, not even itself."""

        def refuse():
            raise SourceError("a.py", 1, "cannot be read")

        stored = Snapshot([self.FOUND], 10**18, refuse).to_plain()
        assert not Snapshot([self.FOUND._replace(inode=2)], 10**18, refuse).is_that_of(stored)

    def test_the_process_of_a_run_began_before_its_graph(self, empty, monkeypatch):
        """Of another index in the same process nothing is known but when it was made."""
        empty.write({"pkg/__init__.py": ""})
        monkeypatch.chdir(empty.folder)
        monkeypatch.syspath_prepend(empty.folder)
        monkeypatch.setattr(_snapshot, "SETTLED_AFTER_NS", 0)
        assert Index(["pkg"], Cache(None, [])).tree.snapshot.is_settled
        assert not Index(["pkg"], Cache(None, []), is_lasting=True).tree.snapshot.is_settled

    @pytest.mark.parametrize("began", [0, 60 + 2_000_000_000])
    def test_files_that_changed_after_the_process_began(self, began):
        """The import graph, which was made before the walk, may hold what they were."""
        assert not self.snapshot(began=began).is_settled
        assert self.snapshot(began=began + 2_000_000_061).is_settled
