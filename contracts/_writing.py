"""Files that are written whole or not at all."""

from __future__ import annotations

import os

import click

__all__ = ["CouldNotError", "check_folder", "write_whole"]


class CouldNotError(click.ClickException):
    """Something that was asked could not be done."""

    exit_code = 2


def check_folder(option: str, path: str) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        CouldNotError: its folder is missing, or it is a folder.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise CouldNotError(f"{option} {path}: there is no folder {folder}. Create it first.")
    if os.path.isdir(path):
        raise CouldNotError(f"{option} {path} is a folder. Name a file.")


def write_whole(path: str, text: str) -> None:
    """Write a file in one step, so that nobody ever reads half of it; a link stays one, and the mode as it is.

    Raises:
        CouldNotError: the folder or the file cannot be written.
    """
    import tempfile  # noqa: PLC0415  most runs write nothing

    path = os.path.realpath(path)
    try:
        mode = os.stat(path).st_mode if os.path.exists(path) else 0o666 & ~_umask()
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}.")
        try:
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.write(text)
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CouldNotError(f"{path} cannot be written: {error.strerror}.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
