"""What the README says of the suite is so."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from checks.cli import check
from checks.engine import all_checks
from checks.report import defects

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if "moe-contracts check" in line
]
(EXAMPLE,) = [block for kind, block in BLOCKS if kind == "python"]


def test_the_table_is_what_the_wrong_backends_say():
    """``python -m tests.checks.readme`` writes it."""
    assert defects() in README, "The README's table of real defects is stale: run python -m tests.checks.readme"


def test_it_counts_the_checks():
    """By how many there are."""
    assert f"runs {len(all_checks())} checks on each" in README


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_are_understood(line):
    """Each option is one that there is."""
    words = shlex.split(line)
    check.make_context("check", words[words.index("check") + 1 :])


def _run_example(folder, text, *options):
    (folder / "test_my_backend.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_backend_of_ones_own_gets_every_check(tmp_path):
    """The example as it stands: all that applies is kept, types included, and the rest says why not."""
    code, output = _run_example(tmp_path, EXAMPLE, "--world-size", "2")
    assert code == 0, output
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped)", output.splitlines()[-1])}
    assert counts == {"passed": 22, "skipped": 7}, output
    assert "my_backend declares replicated True: every rank has all tokens" in output


def test_a_wrong_backend_of_ones_own_is_caught(tmp_path):
    """The same with room for every rank's experts: a check says so, for this name."""
    wrong = EXAMPLE.replace("layer.num_local_experts", "layer.num_experts")
    code, output = _run_example(tmp_path, wrong, "--world-size", "2", "-k", "shapes", "--worlds", "processes")
    assert code == 1, output
    assert "my_backend: results_have_the_promised_shapes: rank" in output
    assert "Reproduce: pytest test_my_backend.py --backend my_backend --world-size 2 --seed 0" in output
