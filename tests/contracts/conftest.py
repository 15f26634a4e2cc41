"""Fixtures of the tests of contracts."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.contracts.projects import Project

# A busy machine is slow at making cases, which says nothing of them.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

# One base, one class where it belongs, one where it does not.
SMALL = {
    "pkg/__init__.py": "",
    "pkg/base.py": """\
        import abc


        class Base(abc.ABC):
            @abc.abstractmethod
            def run(self): ...
        """,
    "pkg/good/__init__.py": "",
    "pkg/good/fine.py": """\
        from pkg.base import Base


        class Fine(Base):
            def run(self): ...
        """,
    "pkg/bad.py": """\
        from pkg.base import Base


        class Bad(Base):
            def run(self): ...
        """,
}


@pytest.fixture
def empty(tmp_path: Path) -> Project:
    """Give a project without any file."""
    return Project(tmp_path)


@pytest.fixture
def small(empty: Project) -> Project:
    """Give a project with the misplaced class ``pkg.bad.Bad``.

    ``pkg.base.Base`` is abstract, ``pkg.good.fine.Fine`` in place, and the contract "Rule" says that subclasses of
    Base live in ``pkg.good``.
    """
    empty.write(SMALL)
    empty.contract(type="placement", base_classes=["pkg.base.Base"], allowed_modules=["pkg.good"])
    return empty


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Give the folder of fixture packages."""
    return Path(__file__).parent / "fixtures"
