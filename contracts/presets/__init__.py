"""Ready configurations."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PRESETS", "contains", "preset_path"]

_FOLDER = Path(__file__).parent
PRESETS = sorted(path.stem for path in _FOLDER.glob("*.ini"))


def preset_path(name: str) -> Path:
    """Where the preset called ``name`` lies."""
    return _FOLDER / f"{name}.ini"


def contains(path: str) -> bool:
    """Whether a file is one of the presets themselves."""
    return Path(path).resolve().parent == _FOLDER.resolve()
