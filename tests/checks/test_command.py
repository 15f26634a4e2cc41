"""``moe-contracts check`` and the pytest plugin, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from checks._terminal import Progress
from checks.backends import rows
from checks.cli import check
from checks.engine import Outcome, all_checks
from checks.report import Matrix, first_broken
from contracts.cli import main as moe_contracts

QUICK = ["--worlds", "threads", "--world-size", "1"]
ONE = ["--only", "results_have_the_promised_shapes"]


def test_it_is_a_command_of_moe_contracts():
    """It is found through its entry point."""
    result = CliRunner().invoke(moe_contracts, ["check", "--help"])
    assert result.exit_code == 0
    assert "exit code 0 kept, 1 broken, 2 could not check" in " ".join(result.output.split())


def test_what_is_kept_ends_in_0(tmp_path):
    """A line for each backend while it runs, the table, and the same as JSON and as a page."""
    json_path, html_path = tmp_path / "out.json", tmp_path / "out.html"
    files = ["--json", str(json_path), "--html", str(html_path)]
    result = CliRunner().invoke(check, ["batched", "no_dp_ep", *QUICK, *ONE, *files])
    assert result.exit_code == 0, result.output
    assert "batched, 1 rank: 1 kept in" in result.output
    assert "2 kept, 0 broken, 0 skipped" in result.output
    written = json.loads(json_path.read_text())
    assert written["complete"] is True
    assert [(one["backend"], one["status"]) for one in written["outcomes"]] == [
        ("batched", "kept"),
        ("no_dp_ep", "kept"),
    ]
    assert "Every contract that could be shown is kept." in html_path.read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no_such"], "There is no backend 'no_such'. There are: allgather_reducescatter, "),
        (["--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["batched", "--world-size", "3", *ONE], "Nothing could be shown: every check was skipped."),
        (["batched", "--fused-moe", "json"], "No module named 'json.modular_kernel'"),
    ],
)
def test_what_cannot_be_checked_ends_in_2(arguments, text):
    """It says which, and what there is."""
    result = CliRunner().invoke(check, arguments)
    assert result.exit_code == 2
    assert text in result.output


def test_a_world_that_nothing_is_laid_out_for_is_skipped():
    """The sizes that do fit are judged all the same."""
    sizes = ["--worlds", "threads", "--world-size", "3", "--world-size", "1"]
    result = CliRunner().invoke(check, ["batched", *sizes, *ONE])
    assert result.exit_code == 0
    assert "a world of 3 ranks: the cases are laid out for 1, 2, 4" in result.output


def test_the_table_fits_80_columns(monkeypatch, capsys):
    """With every backend and check there is, whose names are whole; a broken cell says in which worlds."""
    monkeypatch.setenv("COLUMNS", "80")
    broken = ("mori", "expert_counts_are_those_received")
    outcomes = [
        Outcome(name, one, size, "broken" if (name, one) == broken and size > 1 else "kept")
        for name in rows()
        for one in all_checks()
        for size in (1, 2, 4)
    ]
    Progress(1, 1).table(Matrix(outcomes), list(rows()), list(all_checks().values()))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert {line.split()[0] for line in lines} >= set(all_checks())
    assert [line for line in lines if line.startswith(broken[1]) and "2,4" in line]
    assert f"{len(outcomes) - 2} kept, 2 broken, 0 skipped in 0 s" in lines


def test_a_broken_backend_is_found_in_this_process(monkeypatch):
    """What is wrong with a backend is found without starting a process, and nothing when it is right."""
    from vllm_moe.fused_moe.prepare_finalize.batched import BatchedPrepareAndFinalize

    assert first_broken("batched", sizes=(1,)) is None
    monkeypatch.setattr(BatchedPrepareAndFinalize, "num_dispatchers", lambda self: 3)
    broken = first_broken("batched", sizes=(1,))
    assert broken.check == "results_have_the_promised_shapes"
    assert "activations are [8, 8, 256], expected [8, 24, 256]" in broken.message


def _pytest(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


def test_pyargs_runs_the_suite_on_what_is_installed(tmp_path):
    """From any folder, with the plugin's options."""
    options = ["--pyargs", "checks", "--backend", "no_dp_ep", "--world-size", "1", "-k", "shapes or streams", "-rs"]
    code, output = _pytest(tmp_path, *options)
    assert code == 0, output
    assert "1 passed, 1 skipped, 27 deselected" in output
    assert "streams exist on a GPU only: run it with --device cuda" in output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--backend", "no_such"], "There is no backend 'no_such'. There are: allgather_reducescatter, "),
        (["--world-size", "0"], "--world-size is 0, expected at least 1"),
    ],
)
def test_what_pytest_cannot_run_is_a_usage_error(tmp_path, options, text):
    """An unknown name is no empty run."""
    code, output = _pytest(tmp_path, "--pyargs", "checks", *options)
    assert code in {2, 4}, output
    assert text in output
