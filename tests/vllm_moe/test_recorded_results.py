"""What is written about recorded measurements is what was recorded."""

import json
import re
from pathlib import Path

from tests.bench.kernels import Row, goals, table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "bench" / "results"


def recorded() -> list[Row]:
    return [Row(**row) for row in json.loads((RESULTS / "kernels-h200.json").read_text())["rows"]]


def test_the_page_shows_the_recorded_numbers():
    """Table and goals are those that the benchmark prints for the recorded rows."""
    page = (RESULTS / "kernels-h200.md").read_text()
    assert table(recorded()) in page
    assert goals(recorded()) in page


def test_the_readme_shows_the_recorded_numbers():
    """Each row of the README's table of the kernels is the recorded one, rounded."""
    steps = {(row.step, row.tokens, row.experts, row.local): row for row in recorded() if row.scheme == "none"}
    rows = re.findall(r"^\| (\d+), (\d+), (\d+), 7168, 8 \|(.*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows
    for tokens, experts, local, cells in rows:
        both = [steps[step, int(tokens), int(experts), int(local)] for step in ("prepare", "finalize")]
        for cell, name in zip(cells.split("|"), ("floor_us", "graph_us", "eager_us"), strict=True):
            for written, row in zip(cell.split("/"), both, strict=True):
                decimals = len(written.strip().partition(".")[2])
                assert f"{getattr(row, name):.{decimals}f}" == written.strip()


def test_missed_goals_are_said():
    """A step that is too slow is not reported as met."""
    rows = recorded()
    assert goals(rows).count("- met: ") == 3
    for row in rows:
        if row.tokens in {64, 4096}:
            row.graph_us, row.graph_over_floor, row.eager_us = 10.1, 1.51, 1000.0
    assert goals(rows).count("- MISSED: ") == 3
