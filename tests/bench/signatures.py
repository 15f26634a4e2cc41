"""Compares override_signatures with type checkers on the fixture of its tests: what each reports of which override.

``python -m tests.bench.signatures [--bin FOLDER]`` runs whichever of mypy, pyright, pyrefly and ty are on the path or
in the folder, each at its strict settings for overrides, and prints a Markdown table. Every difference between a
checker and the contract is explained in ``REASONS``; one that is not, or a reason that explains none, is an error.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.contracts.projects import Project

FIXTURE = Path(__file__).parents[1] / "contracts" / "fixtures" / "overrides"
TYPES = {"contract_types": ["override_signatures: contracts.override_signatures.OverrideSignaturesContract"]}
CONTRACT = "override_signatures"

SETTINGS = {
    "mypy.ini": "[mypy]\nstrict = True\npackages = moe\n",
    "pyrightconfig.json": '{"include": ["moe"], "typeCheckingMode": "standard", "reportMissingParameterType": "error"}',
    "pyrefly.toml": 'preset = "strict"\nproject-includes = ["moe"]\n[errors]\n'
    "missing-override-decorator = false\nunannotated-return = true\nimplicit-any-lambda = false\n",
    "ty.toml": '[src]\ninclude = ["moe"]\n',
}
COMMANDS = {
    "mypy": ["mypy", "--no-error-summary", "--no-pretty"],
    "pyright": ["pyright", "--outputjson"],
    "pyrefly": ["pyrefly", "check", "--output-format", "json"],
    "ty": ["ty", "check", "--output-format", "concise"],
}
_LINE = re.compile(r"^(?:- )?(?P<path>moe/[\w/]+\.py):(?P<line>\d+)(?::\d+)?:? (?:error)?")


class Reason(NamedTuple):
    """Why checkers and the contract differ on some overrides; ``tools`` are those that differ."""

    tools: str
    cases: str
    text: str


REASONS: list[Reason] = []
