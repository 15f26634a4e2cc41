"""Paths as GitHub knows them."""

from __future__ import annotations

import os


def from_repository(path: str) -> str:
    """A path relative to the root of the checkout in which a workflow runs; elsewhere, to the current folder.

    Separated by slashes, whatever the system.
    """
    root = os.environ.get("GITHUB_WORKSPACE")
    inside = root and os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)
    relative = os.path.relpath(os.path.realpath(path), os.path.realpath(root)) if root and inside else path
    return relative.replace(os.sep, "/")
