"""What cannot be run is reported for what it is, and the rest of the matrix still completes."""

import json
import os
import re
import sys
import time
import types
from functools import partial
from html.parser import HTMLParser

import pytest

from checks._rows import Backend
from checks.honest import Honest
from checks.honest_formats import row_of
from checks.report import main

FUSED_MOE = "vllm_moe.fused_moe"
ONLY = ("output_is_reduced_tells_the_truth",)


def factory_that_raises(place, layer):
    raise ValueError("no such network card")


def factory_of_a_string(place, layer):
    return "not a backend"


class Hangs(Honest):
    """Never comes back from prepare."""

    def prepare(self, *arguments, **named):
        time.sleep(600)


class KillsItsProcess(Honest):
    """Ends its process in prepare."""

    def prepare(self, *arguments, **named):
        os._exit(7)


class GivesFourItems(Honest):
    """Gives one item less than prepare has to."""

    def prepare(self, *arguments, **named):
        return super().prepare(*arguments, **named)[:4]


# A module that ranks in other processes cannot import.
nowhere = types.ModuleType("nowhere")
exec("def make(place, layer): ...", vars(nowhere))
sys.modules["nowhere"] = nowhere

ROWS = (
    Backend("raising", factory_that_raises),
    Backend("stringy", factory_of_a_string),
    Backend("lambda", lambda place, layer: None),
    Backend("nowhere", nowhere.make),
    row_of(Hangs, FUSED_MOE),
    row_of(KillsItsProcess, FUSED_MOE),
    row_of(GivesFourItems, FUSED_MOE),
    row_of(Honest, FUSED_MOE),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run of the matrix over backends of every bad kind, and one good one."""
    folder = tmp_path_factory.mktemp("report")
    code = main(
        extra_rows=ROWS,
        only=ONLY,
        world_sizes=[2],
        seconds=3.0,
        deadline=10.0,
        json_path=str(folder / "report.json"),
        html_path=str(folder / "report.html"),
    )
    outcomes = json.loads((folder / "report.json").read_text())["outcomes"]
    return code, {one["backend"]: one for one in outcomes}, (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raising", "raised ValueError at"),
        ("raising", "no such network card"),
        ("stringy", "the factory gave 'not a backend' (builtins.str), expected an instance of"),
        ("lambda", "rank 0 of 2: it cannot be sent to the process of a rank (Can't pickle <function <lambda>"),
        ("lambda", "use functions of importable modules"),
        ("nowhere", "raised ModuleNotFoundError at"),
        ("nowhere", "No module named 'nowhere'"),
        ("Hangs", "ranks 0, 1 of 2 did not finish within 10 s."),
        ("KillsItsProcess", "ended with exit code 7"),
        ("GivesFourItems", "prepare gave 4 items, expected a tuple of 5"),
    ],
)
def test_a_bad_backend_is_reported_for_what_it_is(report, name, text):
    """Its cell is broken and says what happened."""
    _, outcomes, _ = report
    assert outcomes[name]["status"] == "broken"
    assert text in outcomes[name]["message"]


def test_a_hang_comes_with_the_stack_of_each_rank(report):
    """It says where each rank was."""
    _, outcomes, _ = report
    detail = outcomes["Hangs"]["detail"]
    assert "rank 0:" in detail
    assert "rank 1:" in detail
    assert len(re.findall(r'test_bad_input.py", line \d+ in prepare', detail)) == 2


def test_the_rest_of_the_matrix_completes(report):
    """The good backend is judged after all those, and the exit code says that something is broken."""
    code, outcomes, _ = report
    assert code == 1
    assert outcomes["Honest"]["status"] == "kept"
    assert set(outcomes) == {row.name for row in ROWS}


def test_the_page_needs_no_script_and_is_well_formed(report):
    """Every tag is closed, and every broken cell leads to its message."""
    *_, page = report
    open_tags, targets, links = [], set(), set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            attributes = dict(attributes)
            assert tag != "script"
            if tag not in {"meta", "wbr"}:
                open_tags.append(tag)
            targets.add(attributes.get("id"))
            if tag == "a":
                links.add(attributes["href"].removeprefix("#"))

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Parser().feed(page)
    assert open_tags == []
    assert links
    assert links <= targets


def test_a_thread_that_hangs_is_given_up():
    """In threads too a hang is an outcome, and the next backend is judged."""
    from checks.engine import all_checks, judge
    from checks.harness import World

    one = all_checks()[ONLY[0]]
    with World(2, "threads", seconds=10.0, deadline=1.5) as world:
        hung = judge(world, row_of(SleepsShortly, FUSED_MOE), one)
        world.deadline = 60.0
        good = judge(world, row_of(Honest, FUSED_MOE), one)
    assert "did not finish within 1.5 s" in hung.message
    assert "in prepare" in hung.detail
    assert good.status == "kept"


class SleepsShortly(Honest):
    """Hangs for longer than the deadline, and then comes back."""

    def prepare(self, *arguments, **named):
        time.sleep(4)
        return super().prepare(*arguments, **named)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"backends": ["no_such"]}, "There is no backend 'no_such'. There are: allgather_reducescatter, "),
        ({"only": ["no_such"]}, "There is no check 'no_such'. There are: async_equals_sync, "),
        ({"world_sizes": [0]}, "World sizes are [0], expected numbers of at least 1."),
        ({"fused_moe": "no.such.package"}, "No module named 'no'"),
        ({"json_path": "no/such/folder.json"}, "no/such/folder.json cannot be written: there is no folder no/such."),
    ],
)
def test_what_does_not_exist_is_named(capsys, arguments, text):
    """Exit code 2, and the alternatives."""
    assert main(**arguments) == 2
    assert text in capsys.readouterr().err


def test_a_world_that_does_not_fit_is_skipped_with_its_reason(tmp_path, capsys):
    """When nothing at all could be shown, that is not a pass."""
    row = row_of(Honest, FUSED_MOE)
    small = Backend("small", row.make, world_sizes=(1,), because={"world_sizes": "it has one wire"})
    path = tmp_path / "report.json"
    assert main(extra_rows=[small], only=ONLY, world_sizes=[2], json_path=str(path)) == 2
    (outcome,) = json.loads(path.read_text())["outcomes"]
    assert outcome["status"] == "skipped"
    assert outcome["message"] == "small declares world_sizes 1: it has one wire"
    assert "Nothing could be shown" in capsys.readouterr().err


def test_rows_can_be_sent_to_processes():
    """A row holds nothing that cannot be pickled."""
    import pickle

    row = row_of(Honest, FUSED_MOE)
    assert isinstance(pickle.loads(pickle.dumps(row)).make, partial)
