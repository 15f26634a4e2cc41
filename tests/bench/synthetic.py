"""Generated packages of any size."""

from __future__ import annotations

from pathlib import Path

_BASE = """\
from abc import ABC, abstractmethod


class Base(ABC):
    @abstractmethod
    def run(self): ...
"""
_SUBCLASS = """\
from synthetic.base import Base


class Implementation(Base):
    def run(self):
        return helper(1)
"""
_NAMESAKE = """\
class Base:
    pass


class Other(Base):
    pass
"""
_CONFIGURATION = """\
[importlinter]
root_package = synthetic
contract_types =
    placement: contracts.placement.PlacementContract

[importlinter:contract:placement]
name = placement
type = placement
base_classes = synthetic.base.Base
allowed_modules = synthetic.*
"""


def synthesize(folder: Path, modules: int) -> Path:
    """Write a package of that many modules: one base with a common name, a hundred scattered subclasses.

    Each module imports ten others, and each but the hundred defines a class whose base is a ``Base`` of its own.

    Returns:
        The configuration of a contract about it.
    """
    package = folder / "synthetic"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text(_BASE)
    step = max(modules // 100, 1)
    for number in range(modules):
        group = package / f"group{number // 100}"
        if number % 100 == 0:
            group.mkdir()
            (group / "__init__.py").write_text("")
        parts = [
            f"from synthetic.group{other // 100}.module{other} import helper as helper{other}\n"
            for other in sorted({(number * 7 + k * 13) % modules for k in range(10)})
        ]
        parts.append("\n\ndef helper(value):\n    return value + 1\n\n\n")
        parts.append(_SUBCLASS if number % step == 0 else _NAMESAKE)
        parts += [f"\n\ndef work{k}(a, b):\n    return [a * b + {k} for _ in range({k})]\n" for k in range(20)]
        (group / f"module{number}.py").write_text("".join(parts))
    config = folder / ".importlinter"
    config.write_text(_CONFIGURATION)
    return config
