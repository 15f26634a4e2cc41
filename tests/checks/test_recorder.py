"""The recorder of runs on a GPU: what it runs, and what its page says of what was cut off."""

import json

from checks.backends import rows
from checks.engine import all_checks
from tests.bench.conformance import _chosen, _parts, markdown, report, wrong_on_a_gpu


def test_every_backend_meets_every_check():
    """In one, two and four ranks, over all parts; graphs are captured where ranks are processes."""
    met = set()
    for part in _parts().values():
        if part.checks != "wrong" and part.transport == "torch":
            backends = part.backends or tuple(rows())
            met |= {(b, c, size) for b in backends for c in _chosen(part.checks) for size in part.sizes}
    sending = {name for name, row in rows().items() if not row.replicated}
    everything = {(b, c, size) for b in rows() for c in all_checks() for size in (1, 2, 4)}
    assert everything - met == {(b, "graph_replay_equals_eager", size) for b in sending for size in (2, 4)}
    assert not any(row.capturable for name, row in rows().items() if name in sending)


def test_wrong_backends_that_need_a_gpu_are_run_there():
    """Those that are skipped on the CPU."""
    names = {row.name for backends in wrong_on_a_gpu().values() for row in backends}
    assert names == {"FreesWhatAnotherStreamReads", "FillsOnAnotherStream", "WaitsForTheHost"}


def test_the_page_says_what_is_missing(tmp_path):
    """A part that was cut off counts what it had found, and is listed; one that never started, too."""
    found = {"backend": "mori", "check": "async_equals_sync", "world_size": 2, "message": "mori: it is off"}
    outcomes = [{**found, "status": "broken"}, {**found, "status": "kept", "message": ""}]
    (tmp_path / "one-rank.json").write_text(json.dumps({"complete": False, "outcomes": outcomes}))
    ended = {"one-rank": "cut off after 9 s", "two-ranks": "not started"}
    page = markdown(report(tmp_path, ended, "cpu"))
    assert "| one-rank | mori | 2 | 1 | 1 | 0 |" in page
    assert "- one-rank: mori: it is off" in page
    assert "- one-rank: cut off after 9 s\n- two-ranks: not started" in page
