"""The pytest plugin: options, and a test for each backend, check and world size.

``pytest --pyargs checks`` runs the suite on the backends of ``--fused-moe``. For a backend of one's own a test file has
one row and ``test_mine = contract_test(row)``. Nothing heavy is imported unless such a test is collected.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from checks._rows import Backend
    from checks.harness import World, Worlds

__all__ = ["contract_test"]

_FIXTURE = "moe_contract"
_ROWS = "moe_contract_rows"


def contract_test(*rows: "Backend") -> Callable[..., None]:
    """A test function that runs every check on every row, in every world size that it declares."""

    def test(moe_contract: "Contract") -> None:
        """A check holds for a backend, in a world of so many ranks."""
        moe_contract.hold()

    setattr(test, _ROWS, rows)
    return test


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("moe-contracts", "contract checks of prepare/finalize backends")
    group.addoption("--backend", action="append", metavar="NAME", help="run on this backend only (repeatable)")
    group.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="where tensors are (default cpu)")
    group.addoption(
        "--world-size", action="append", type=int, metavar="N", help="ranks (repeatable; default 1, 2 and 4)"
    )
    group.addoption(
        "--transport",
        default="torch",
        choices=["torch", "vendor"],
        help="what carries tokens: torch.distributed (default) or the vendor's library, in processes",
    )
    group.addoption("--seed", type=int, default=0, help="seed of all inputs (default 0)")
    group.addoption("--fused-moe", metavar="PACKAGE", help="the package whose backends are run")
    group.addoption(
        "--worlds",
        choices=["threads", "processes"],
        help="what ranks run in (default threads; processes with --transport vendor)",
    )


class Contract:
    """A backend, a check, and the world to run it in."""

    def __init__(self, row: "Backend", check: str, world: "World", seed: int, command: str) -> None:
        self.row, self.check, self.world, self.seed, self.command = row, check, world, seed, command

    def hold(self) -> None:
        """Fail or skip as the check comes out."""
        from checks.engine import all_checks, judge  # noqa: PLC0415 -- see the module

        outcome = judge(self.world, self.row, all_checks()[self.check], self.seed, self.command)
        if outcome.status == "skipped":
            pytest.skip(outcome.message)
        if outcome.status == "broken":
            pytest.fail(f"{outcome.message}\n{outcome.detail}", pytrace=False)


def _selected(config: pytest.Config, rows: "tuple[Backend, ...]") -> "list[Backend]":
    """The rows of a test, or of the package under test; raises UsageError for a backend that is in none."""
    from checks.report import select  # noqa: PLC0415

    names = config.getoption("--backend") or []
    if rows:
        return [row for row in rows if not names or row.name in names]
    try:
        return select(names, config.getoption("--fused-moe"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for it every backend, world size and check."""
    if _FIXTURE not in metafunc.fixturenames:
        return
    from checks.engine import all_checks  # noqa: PLC0415

    config = metafunc.config
    sizes = config.getoption("--world-size") or [1, 2, 4]
    if min(sizes) < 1:
        raise pytest.UsageError(f"--world-size is {min(sizes)}, expected at least 1")
    rows = _selected(config, getattr(metafunc.function, _ROWS, ()))
    cells = [(row, name, size) for size in sizes for row in rows for name in all_checks()]
    metafunc.parametrize(_FIXTURE, cells, ids=[f"{row.name}-{size}-{name}" for row, name, size in cells], indirect=True)


@pytest.fixture(scope="session")
def _moe_worlds(request: pytest.FixtureRequest) -> "Iterator[Worlds]":
    from checks.report import make_worlds  # noqa: PLC0415

    option = request.config.getoption
    kind = option("--worlds") or ("processes" if option("--transport") == "vendor" else "threads")
    made = make_worlds(kind, option("--fused-moe"), device=option("--device"), transport=option("--transport"))
    yield made
    made.close()


@pytest.fixture
def moe_contract(request: pytest.FixtureRequest, _moe_worlds: "Worlds") -> Contract:
    """A backend, a check and a world of ranks."""
    from checks.engine import all_checks  # noqa: PLC0415

    row, name, size = request.param
    world = _moe_worlds.get(size, all_checks()[name].packages(row))
    own = bool(getattr(request.function, _ROWS, ()))
    command = f"pytest {request.path.name}" if own else "pytest --pyargs checks"
    return Contract(row, name, world, request.config.getoption("--seed"), command)
