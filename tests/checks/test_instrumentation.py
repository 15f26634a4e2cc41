"""What instrumentation sees: every method of every backend, and what typeguard on its own lets pass."""

import contextlib
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock, NonCallableMock

import pytest
import torch

from checks.harness import World

PACKAGE = "vllm_moe.fused_moe.prepare_finalize"


@pytest.fixture(scope="module")
def instrumented():
    """A rank in whose process the backends and typed_loosely are instrumented."""
    with World(1, "processes", instrumented=(PACKAGE, "typed_loosely")) as world:
        yield world


class Anything:
    """An object that has every attribute, each as wrong as itself."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *arguments, **named):
        return Anything()


def _is_checked(annotation):
    return annotation not in {inspect.Parameter.empty, Any, object}


def _members(kind):
    for name, member in vars(kind).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        # What a dataclass generates is not source, so no hook sees it.
        if inspect.isfunction(function) and function.__code__.co_filename == inspect.getfile(kind):
            yield name, function


def _classes():
    package = importlib.import_module(PACKAGE)
    for info in pkgutil.iter_modules(package.__path__, f"{PACKAGE}."):
        module = importlib.import_module(info.name)
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                yield kind


def _wrong_instance(kind):
    wrong = type("Wrong", (Anything, kind), {"__init__": lambda self: None})
    wrong.__abstractmethods__ = frozenset()
    return wrong()


def call_every_method_wrongly(place, gather):
    """By method: how many parameters it checks, the wrong ones not reported, if it checks, if its result was bad."""
    import typeguard

    from checks._instrument import instrumented_functions

    seen = {}
    for kind in _classes():
        checking = set(instrumented_functions(kind))
        for name, function in _members(kind):
            reported = []
            typeguard.config.typecheck_fail_callback = lambda error, memo, to=reported: to.append(str(error))
            parameters = list(inspect.signature(function).parameters.values())
            subject = [] if isinstance(vars(kind)[name], staticmethod) else [_wrong_instance(kind)]
            given = [one for one in parameters[len(subject) :] if one.kind is not one.VAR_KEYWORD]
            with contextlib.suppress(Exception):  # what a method makes of wrong arguments is its own business
                function(*subject, **{one.name: object() for one in given})
            typeguard.config.typecheck_fail_callback = None
            expected = [one.name for one in given if _is_checked(one.annotation)]
            seen[f"{kind.__module__}.{function.__qualname__}"] = (
                len(expected),
                [one for one in expected if not any(f'argument "{one}"' in text for text in reported)],
                function.__qualname__ in checking,
                any("the return value" in text for text in reported),
            )
    return seen


def test_a_wrong_type_in_each_argument_of_each_method_is_caught(instrumented):
    """Public and private, properties and static methods; what only returns something is checked as well."""
    (seen,) = instrumented.run(call_every_method_wrongly)
    assert len(seen) >= 80
    assert sum(count for count, *_ in seen.values()) >= 200
    assert {name: missed for name, (_, missed, *_) in seen.items() if missed} == {}
    assert [name for name, (_, _, checking, _) in seen.items() if not checking] == []
    returned = {name for name, (*_, result) in seen.items() if result}
    assert f"{PACKAGE}.mori.MoriPrepareAndFinalize.num_dispatchers" in returned, sorted(returned)


def call(place, gather, name, arguments):
    """Call a function of typed_loosely, and say what it raised."""
    import typed_loosely

    try:
        getattr(typed_loosely, name)(*(one() if inspect.isclass(one) else one for one in arguments))
    except Exception as error:  # noqa: BLE001 -- it is looked at by the test
        return f"{type(error).__name__}: {error}"
    return "nothing"


class SendsSomethingElse:
    """Has the method, with more that it needs."""

    def send(self, rows, to):
        """Not what was promised."""


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("rows_of", [torch.ones(2)], "nothing"),
        ("rows_of", [Mock], "is a Mock, where the real thing is needed"),
        ("rows_of", [MagicMock], "is a MagicMock, where the real thing is needed"),
        ("total", [NonCallableMock], "is a NonCallableMock, where the real thing is needed"),
        ("total", [[1, 2, "3"]], 'item 2 of argument "numbers" (list) is not an instance of builtins.int'),
        ("total", [[1] * 1000 + [None]], "item 1000 of argument"),
        ("through", [SendsSomethingElse], "'send' method has too many mandatory positional arguments"),
        ("sized", [torch.ones(1)], "the return value (str) is not an instance of builtins.int"),
    ],
)
def test_what_typeguard_alone_lets_pass_is_refused(instrumented, name, arguments, text):
    """Mocks, later items of collections, names that do not resolve."""
    (raised,) = instrumented.run(call, name, arguments)
    assert text in raised


def call_with_a_mock_that_says_it_is_a_tensor(place, gather):
    """A mock with a spec passes isinstance."""
    import typed_loosely

    with pytest.raises(Exception, match="is a MagicMock, where the real thing is needed"):
        typed_loosely.rows_of(MagicMock(spec=torch.Tensor))


def test_a_mock_with_a_spec_is_refused(instrumented):
    """It says that it is a tensor, and is none."""
    instrumented.run(call_with_a_mock_that_says_it_is_a_tensor)


def methods_that_are_not_all_checked(place, gather):
    """What is found of a class with an annotation that does not resolve."""
    import typed_loosely

    from checks._instrument import instrumented_functions, uninstrumented_functions

    kind = typed_loosely.Takes
    return instrumented_functions(kind), uninstrumented_functions(kind)


def test_annotations_that_do_not_resolve_are_named(instrumented):
    """Typeguard passes over names that exist for type checkers only; the suite says so."""
    (found,) = instrumented.run(methods_that_are_not_all_checked)
    assert found == (["Takes.given", "Takes.rows"], ["Takes.given"])


class Echo:
    """Gives what it is told to, in the standard format."""

    def __init__(self, *result):
        self.result = result

    def prepare(self, *arguments, **named):
        return self.result


@pytest.mark.parametrize(
    ("ids", "result", "text"),
    [
        ((4, 2), ((4, 8), (4, 2), (4, 2)), None),
        ((4, 3), ((4, 8), (4, 2), (4, 2)), "topk is 3, but 2 elsewhere in the call"),
        ((5, 2), ((4, 8), (4, 2), (4, 2)), "tokens is 5, but 4 elsewhere in the call"),
        ((4, 2), ((4, 6), (4, 2), (4, 2)), "hidden is 6, but 8 elsewhere in the call"),
        ((4, 2), ((9, 8), (9, 2), (8, 2)), "rows is 8, but 9 elsewhere in the call"),
        ((4, 2), ((9, 8), (9, 1), (9, 1)), "topk is 1, but 2 elsewhere in the call"),
        ((4, 2), ((8,), (4, 2), (4, 2)), "has 1 dimensions [8], expected [rows, hidden]"),
    ],
)
def test_shapes_are_tied_across_a_call(ids, result, text):
    """A size that has one name has one value, in arguments and results."""
    import typeguard

    from checks._instrument import tie

    rows, got_ids, got_weights = (torch.ones(shape) for shape in result)
    tied = tie(Echo(rows, None, None, got_ids, got_weights))
    arguments = (torch.ones(4, 8), torch.ones(4, 2), torch.ones(ids), 8, None, False, None)
    if text is None:
        tied.prepare(*arguments)
        return
    with pytest.raises(typeguard.TypeCheckError) as caught:
        tied.prepare(*arguments)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "counts", "text"),
    [
        (torch.float32, torch.int32, None),
        (torch.float64, torch.int32, "is of torch.float64, where torch.float32 weights are elsewhere in the call"),
        (torch.float32, torch.int64, "is of torch.int64, where torch.int32 is promised"),
    ],
)
def test_dtypes_are_tied_across_a_call(weights, counts, text):
    """Weights come back in the dtype that they were given in, and counts are int32."""
    import typeguard

    from checks._instrument import tie
    from vllm_moe.fused_moe.modular_kernel import ExpertTokensMetadata

    meta = ExpertTokensMetadata(torch.ones(8, dtype=counts), None)
    tied = tie(Echo(torch.ones(4, 8), None, meta, torch.ones(4, 2), torch.ones(4, 2, dtype=weights)))
    arguments = (torch.ones(4, 8), torch.ones(4, 2), torch.ones(4, 2), 8, None, False, None)
    if text is None:
        tied.prepare(*arguments)
        return
    with pytest.raises(typeguard.TypeCheckError) as caught:
        tied.prepare(*arguments)
    assert text in str(caught.value)


def test_it_costs_nothing_when_it_is_off():
    """A run without instrumentation does not even import typeguard, and no function is other than it is written."""
    program = (
        "import sys\n"
        "from checks.report import first_broken\n"
        "assert first_broken('no_dp_ep', sizes=(1,)) is None\n"
        "assert 'typeguard' not in sys.modules\n"
        "from vllm_moe.fused_moe.prepare_finalize.batched import BatchedPrepareAndFinalize as kind\n"
        "assert not [n for n in kind.prepare.__code__.co_names if n.startswith('check_')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_it_is_installed_before_the_package_is_imported():
    """Later it would check a part, or nothing."""
    from checks._instrument import install

    with pytest.raises(RuntimeError, match=r"checks\.harness.* imported already. Install it before that"):
        install(("checks",))
