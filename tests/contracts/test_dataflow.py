"""Whatever a method does to its inputs when it runs, reading it has said: functions that hypothesis writes."""

import contextlib
import linecache
import sys
import textwrap
from pathlib import Path

import grimp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.source import Cache, Index
from contracts.source._dataflow.memory import Naming
from contracts.source._dataflow.question import mutations
from tests.contracts.projects import Project

_HEAD = """\
import contextlib
import torch
from torch import Tensor


class Box:
    def __init__(self, content):
        self.content = content

    def get(self):
        return self.content


def same(one, two=None):
    return one


def second(one, two):
    if two is None:
        return one
    return two.view(4, 4)


def copied(one, two=None):
    return one.clone()


def either(one, two):
    for item in (one, two):
        yield item


class Base:
    def run(self, x: Tensor, y: Tensor, flag: bool, count: int): ...


class Sub(Base):
    def run(self, x: Tensor, y: Tensor, flag: bool, count: int):
        a, b = x.clone(), y.clone()
        l = [a, b]
        d = {"k": a, "m": b}
        o = Box(b)
        self.kept = a
"""

_NAMES = st.sampled_from(["x", "y", "a", "b"])
_ATOMS = st.one_of(
    _NAMES,
    st.sampled_from(["l[0]", "l[-1]", "l[count]", 'd["k"]', 'd["m"]', "o.content", "o.get()", "self.kept", "[*l][1]"]),
)
_FORMS = st.sampled_from(
    [
        "{0}.view(4, 4)", "{0}[:]", "{0}.t()", "{0}.contiguous()", "{0}.clone()", "({0} + 1)", "{0}.detach()",
        "({0} if flag else {1})", "same({0})", "second({0}, {1})", "copied({0})",
        "same(two={0}, one={1})", "(lambda q: q)({0})", "(lambda q={0}: q)()", "[{0}, {1}][count]", "[{0}, {1}][1]",
        "[{0}, {1}][:1][0]", "({0}, {1})[-1]", "{{'k': {0}, 'm': {1}}}['m']", "[q for q in ({0}, {1})][0]",
        "[q.view(4, 4) for q in [{0}]][0]", "next(iter([{0}]))", "list(either({0}, {1}))[1]", "Box({0}).content",
        "Box({0}).get()", "dict(k={0})['k']", "{{**d, 'k': {0}}}['k']", "torch.as_tensor({0})",
        "[{0}, *l][0]", "sorted([{0}], key=id)[0]", "max([{0}], key=id)", "(list(reversed([{0}, {1}])))[0]",
        "{0}.unbind()[0].expand(4, 4).clone()", "torch.atleast_2d({0})", "{0}.data",
    ]
)  # fmt: skip
_TENSORS = st.recursive(
    _ATOMS,
    lambda inner: st.builds(lambda form, one, two: form.format(one, two), _FORMS, inner, inner), max_leaves=3
)
_LINES = st.one_of(
    st.builds(lambda one: f"{one}.mul_(2)", _TENSORS),
    st.builds(lambda one: f"{one}[0] = 0", _TENSORS),
    st.builds(lambda one: f"torch.add({one}, 1, out={one})", _ATOMS),
    st.builds(lambda name: f"{name} += 1", _NAMES),
    st.builds(lambda name: f"{name}[1:] *= 3", _NAMES),
    *[
        st.builds(lambda one, two, name, form=form: form.format(one, two, name), _TENSORS, _TENSORS, _NAMES)
        for form in [
            "{2} = {0}", "{2} = {0}", "a, b = {0}, {1}", "(a, b), y = ({0}, {1}), y", "a, *l = [{0}, {1}, {2}]",
            "*l, b = {0}, {1}, {2}", "a = b = {0}", "l.append({0})", "l = [{0}, {1}]", "l[0] = {0}", "l[count] = {0}",
            "l[-1] = {0}",
            "l.insert(0, {0})", "l.extend([{0}, {1}])", "l += ({0},)", "l[1:] = [{0}, {1}]",
            "l.reverse()",
            "l = l[1:] + [{0}, {1}]", "l.append(l.pop(0))", "del l[0]; l.extend(({0}, {1}))", "l = [{0}] * 3",
            'd["k"] = {0}', 'd["m" if flag else "k"] = {0}', "d = dict(d, k={0})", "d = {{'k': {0}, 'm': {1}}}",
            "d.update(m={0})", "d.setdefault('n', {0}).mul_(2)", "d['m'] = d.pop('k', {0}); d['k'] = {1}",
            "o.content = {0}", "o = Box({0})", "self.kept = {0}", "setattr(o, 'content', {0})",
            "{2} = getattr(o, 'content')",
            "({2} := {0}).mul_(2)", "match ({0}, {1}):\n    case (a, b): ...", "match {0}:\n    case b: ...",
            "def h(q={0}):\n    return q\na = h()", "def h():\n    return {0}\nb = h()",
            "def h():\n    nonlocal a\n    a = {0}\nh()",
            "def h(n, q):\n    return q if not n else h(n - 1, {0})\na = h(2, {1})",
            "for a, b in zip(l, [{0}, {1}]): a = b", "for i, b in enumerate([{0}, {1}]): l[i] = b",
            "for n, b in d.items(): a = b", "with contextlib.nullcontext(): {2} = {0}",
        ]
    ],
)  # fmt: skip


def _block(inner):
    body = st.lists(inner, min_size=1, max_size=3).map(lambda lines: textwrap.indent("\n".join(lines), "    "))
    return st.one_of(
        st.builds("if flag:\n{}\nelse:\n{}".format, body, body),
        st.builds("if count:\n{}".format, body),
        st.builds("for a in l[:2]:\n{}".format, body),
        st.builds("for _ in range(2):\n{}".format, body),
        st.builds("n = 3\nwhile n:\n    n -= 1\n    if flag and n == 1:\n        continue\n{}".format, body),
        st.builds("n = 3\nwhile True:\n    n -= 1\n{}\n    if not n: break\n{}".format, body, body),
        st.builds("try:\n{}\n    raise ValueError\n{}\nexcept ValueError:\n{}".format, body, body, body),
        st.builds("try:\n{}\nfinally:\n{}".format, body, body),
        st.builds("with contextlib.suppress(ValueError):\n{}\n    if flag: raise ValueError\n{}".format, body, body),
        st.builds("def g(a, b=b):\n    nonlocal l\n{}\ng(b)".format, body),
    )


_BODIES = st.lists(st.recursive(_LINES, _block, max_leaves=5), min_size=2, max_size=7)


@settings(max_examples=150, deadline=None)
@given(body=_BODIES)
def test_what_is_done_was_said(tmp_path_factory, body):
    """Each parameter that is written into is reported, whichever way it takes to the statement."""
    _compare(tmp_path_factory.getbasetemp() / "methods", body)


@settings(max_examples=30, deadline=None)
@given(bodies=st.lists(_BODIES, min_size=3, max_size=3))
def test_what_is_remembered_changes_nothing(tmp_path_factory, bodies):
    """Whether calls that are alike are followed once or each time, the same is said of them, word for word."""
    _compare_remembered(tmp_path_factory.getbasetemp() / "methods", bodies)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@settings(max_examples=10_000, deadline=None)
@given(body=_BODIES)
def test_ten_thousand_methods(tmp_path_factory, body):
    """The same for ten thousand methods."""
    _compare(tmp_path_factory.getbasetemp() / "methods", body)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@settings(max_examples=3_000, deadline=None)
@given(bodies=st.lists(_BODIES, min_size=3, max_size=3))
def test_three_thousand_times_what_is_remembered(tmp_path_factory, bodies):
    """And for three thousand classes."""
    _compare_remembered(tmp_path_factory.getbasetemp() / "methods", bodies)


def _compare_remembered(folder: Path, bodies: list[list[str]]) -> None:
    """Compare what is said with memory and without; the methods call a function that has one of the bodies."""
    head, _, begin = _HEAD.partition("class Sub(Base):\n")
    signature, _, names = begin.partition("\n")
    helper = f"def helper(self, x, y, flag=True, count=1):\n{names}" + textwrap.indent("\n".join(bodies[0]), " " * 8)
    text = head + helper + "\n        return a if flag else [b, y]\n\n\n"
    for number, body in enumerate(bodies[1:]):
        text += f"class Sub{number}(Base):\n{signature}\n{names}"
        text += "        a = helper(Box(y), x, b)\n" + textwrap.indent("\n".join(body), " " * 8)
        text += "\n        b = helper(Box(x), y, a)\n        helper(o, b, x, count=count)\n\n\n"
    plain = _said(folder, text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Naming, "key", lambda *_: None)
        assert _said(folder, text) == plain, text


def _compare(folder: Path, body: list[str]) -> None:
    text = _HEAD + textwrap.indent("\n".join(body), " " * 8) + "\n"
    done = _done(text)
    plain = _said(folder, text)
    assert not plain["problems"]
    reported = {finding[3].partition("[")[0].rpartition(".")[2] for finding in plain["findings"]}
    assert done <= reported or plain["undecided"], f"{done - reported} in\n{text}"


def _said(folder: Path, text: str) -> dict:
    # One folder for all: Python remembers each that it ever looked into.
    Project(folder).write({"pkg/__init__.py": "", "pkg/sub.py": text.encode()})
    graph = grimp.ImportGraph()
    for module in ("pkg", "pkg.sub"):
        graph.add_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        index = Index(["pkg"], Cache(None, []))
        return mutations(index, index.subclasses(["pkg.sub.Base"], graph), ["pkg.sub.Base"], ["run"], [])


def _done(text: str) -> set[str]:
    """The parameters that running the method changes, for any of some arguments."""
    scope: dict = {}
    exec(compile(text, "written", "exec"), scope)
    linecache.clearcache()
    found: set[str] = set()
    for flag in (False, True):
        for count in (0, 1):
            given = {"x": torch.rand(4, 4), "y": torch.rand(4, 4)}
            before = {name: tensor.clone() for name, tensor in given.items()}
            with contextlib.suppress(Exception), _limited():
                scope["Sub"]().run(**given, flag=flag, count=count)
            found |= {name for name in given if not torch.equal(given[name], before[name])}
    return found


@contextlib.contextmanager
def _limited():
    """Stop code that runs without end, as loops do that count with one name."""
    lines = 0

    def count(*_):
        nonlocal lines
        lines += 1
        if lines > 100_000:
            raise TimeoutError
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)
