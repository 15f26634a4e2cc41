"""The recorded signatures are the vendors' own, where a library is at hand; its source is read, not imported."""

import ast
import importlib.util
from pathlib import Path

import pytest

from checks._vendor_calls import VENDORS

# Which class of which file of which library takes the calls that are recorded under a name, and what it calls them.
SOURCES = {
    "nixl_ep": (
        ("nixl_ep_cu13", "nixl_ep"),
        "buffer.py",
        {"dispatch": "low_latency_dispatch", "combine": "low_latency_combine"},
    ),
    "deep_ep": (("deep_ep",), "buffer.py", {}),
}


def _parameters(path):
    """The parameters of each function of a file: ``(name, whether it has a default)``, without self."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            names = [one.arg for one in node.args.args]
            optional = [False] * (len(names) - len(node.args.defaults)) + [True] * len(node.args.defaults)
            both = list(zip(names, optional, strict=True))
            found[node.name] = both[1:] if names[:1] == ["self"] else both
    return found


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_recorded_signatures_are_those_of_the_library(name):
    """Names, order, and which may be left out."""
    modules, file, called = SOURCES[name]
    spec = next((found for module in modules if (found := importlib.util.find_spec(module))), None)
    if spec is None:
        pytest.skip(f"no vendor's library: {' and '.join(modules)} cannot be found")
    real = _parameters(Path(spec.origin).with_name(file))
    for method, signature in VENDORS[name].methods.items():
        recorded = [(one.name, one.default is not one.empty) for one in signature.parameters.values()]
        assert recorded == real[called.get(method, method)], method
