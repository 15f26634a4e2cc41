"""The mutation run: what is wrong is found, what only reads differently is not, and nothing is left behind."""

import ast
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.bench import mutants
from tests.bench.mutations import mutated, mutations

SOURCE = '''
"""Docstring."""
from a import b
__all__ = ["f"]
LIMIT = 3

def f(x: int, ids, topk_ids=None) -> None:
    """Docstring."""
    if x < 1 and ids is None:
        raise ValueError(f"x is {x + 1}")
    y = x.clone() + -LIMIT
    b(y, ids, at=True)
    y[:2] = 0
'''


def changes(source):
    return [(one.lines.start, one.operator, one.text) for one in mutations("m", source)]


def test_what_is_changed():
    """Each kind of change, with its line; docstrings, imports, annotations and messages are left alone."""
    assert changes(SOURCE) == [
        (5, "constant", "3 -> 4"),
        (9, "early return", "if x < 1 and ids is None: raise ValueError(f'x is {x + 1}') -> return"),
        (9, "statement deleted", "if x < 1 and ids is None: raise ValueError(f'x is {x + 1}') -> pass"),
        (9, "condition negated", "x < 1 and ids is None -> not (x < 1 and ids is None)"),
        (9, "and/or", "x < 1 and ids is None -> x < 1 or ids is None"),
        (9, "comparison", "x < 1 -> x <= 1"),
        (9, "constant", "1 -> 0"),
        (9, "constant", "1 -> 2"),
        (9, "comparison", "ids is None -> ids is not None"),
        (9, "another name", "ids -> topk_ids"),
        (11, "arithmetic", "x.clone() + -LIMIT -> x.clone() - -LIMIT"),
        (11, "method call dropped", "x.clone() -> x"),
        (11, "sign or negation dropped", "-LIMIT -> LIMIT"),
        (12, "statement deleted", "b(y, ids, at=True) -> pass"),
        (12, "argument dropped", "b(y, ids, at=True) -> b(y, at=True)"),
        (12, "arguments swapped", "b(y, ids, at=True) -> b(ids, y, at=True)"),
        (12, "keyword dropped", "b(y, ids, at=True) -> b(y, ids)"),
        (12, "another name", "ids -> topk_ids"),
        (12, "constant", "True -> False"),
        (13, "statement deleted", "y[:2] = 0 -> pass"),
        (13, "constant", "0 -> 1"),
    ]


@pytest.mark.parametrize("module", mutants.MODULES)
def test_each_changes_something_and_compiles(module):
    """A mutation that changes nothing would survive for no reason."""
    source = mutants.path_of(module).read_text()
    before = ast.dump(ast.parse(source))
    for one in mutations(module, source)[::7]:
        tree = mutated(source, one)
        assert ast.dump(tree) != before, one.label
        compile(tree, module, "exec")


def ends_its_process(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def hunted(module, text, *, mutate=None):
    """Run one mutation as a run does, and give its result.

    In a new process, since a run forks from one that has started no threads, and others' tests start some in this one.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(hunt, module, text, mutate).result()


def hunt(module, text, mutate):
    mutants.mutate = mutate or mutants.mutate
    source = mutants.path_of(module).read_text()
    (mutation,) = [one for one in mutations(module, source) if f"{one.operator}: {one.text}" == text]
    cells = [
        mutants.Cell("no_dp_ep", name, 1)
        for name in ("router_weights_are_applied_once", "overrides_match_the_base")
    ]
    run = mutants.Run(1, (1,), time.monotonic() + 60)
    run.cells = lambda _: cells
    run.hunt([mutation])
    assert mutants.path_of(module).read_text() == source
    (result,) = run.results
    return result


def test_what_is_wrong_is_found():
    """The weight is applied, or not, against what was asked for: the check of that is named, and its message kept."""
    change = "apply_router_weight_on_input -> not apply_router_weight_on_input"
    result = hunted(mutants.MODULES[-2], f"condition negated: {change}")
    assert result.killer == "router_weights_are_applied_once on no_dp_ep, 1 ranks"
    assert result.message.startswith("no_dp_ep: router_weights_are_applied_once: rank 0 of 1")


def test_what_is_equivalent_survives():
    """Copying what would not have to be copied is slower, and nothing else."""
    change = "fused_expert_output.clone() if overlapping else fused_expert_output -> fused_expert_output.clone()"
    assert not hunted(mutants.MODULES[-1], f"only this arm: {change}").killer


def test_what_ends_its_process_is_found():
    """A mutation may do anything to the process that it is made in: that is found too."""
    change = "fused_expert_output.clone() if overlapping else fused_expert_output -> fused_expert_output.clone()"
    result = hunted(mutants.MODULES[-1], f"only this arm: {change}", mutate=ends_its_process)
    assert result.killer == "ended"
