"""The contract type ``unmutated_inputs``."""

import shutil
from textwrap import dedent

import pytest
import torch

from contracts.source._dataflow import operations
from tests.contracts import mutation
from tests.contracts.projects import Project, refused, report

KERNEL = {
    "pkg/kernel.py": """
        from torch import Tensor


        class Kernel:
            def run(self, x: Tensor, output: Tensor) -> None: ...

            def other(self, x: Tensor) -> None: ...
    """,
}


def configure(project: Project, *, roots=("pkg",), **options) -> None:
    given = {"base_classes": ["pkg.kernel.Kernel"], "methods": ["run"], "writable": ["run.output"], **options}
    project.configure([{"type": "unmutated_inputs", **{k: v for k, v in given.items() if v is not None}}], roots=roots)


@pytest.fixture
def moe(empty) -> Project:
    """Give a copy of the fixture."""
    shutil.copytree(mutation.FIXTURE, empty.folder, dirs_exist_ok=True)
    options = {"base_classes": ["moe.base.Kernel"], "methods": ["apply"], "writable": ["apply.output"]}
    configure(empty, roots=["moe"], **options)
    return empty


@pytest.fixture
def lint(empty):
    """Lint the base class, and a module ``pkg.fast`` in which a subclass of it is defined."""

    def lint(body: str, **options):
        empty.write({"pkg/__init__.py": "", **KERNEL, "pkg/fast.py": IMPORTS + dedent(body).lstrip()})
        configure(empty, **options)
        return tuple(empty.lint("--no-cache"))

    return lint


IMPORTS = "import torch\nfrom torch import Tensor\nfrom pkg.kernel import Kernel\n\n\n"
CALLER = "class Fast(Kernel):\n    def run(self, x, output):\n        {function}(x)\n"
RULE = "Write into a copy, or list run.x as writable"


# What is found


def test_findings_stand_where_the_fixture_says(moe):
    """Each statement that writes into an input is reported, with the parameter; no other statement is."""
    assert mutation.reported(moe.lint().text) == mutation.marks().reported


def test_a_remembered_answer_is_the_same(moe):
    """From the cache comes what was computed."""
    assert moe.lint() == moe.lint()


@pytest.mark.parametrize("name", sorted(mutation.cases()))
def test_what_running_the_fixture_says(name):
    """What ``_version`` and the contents of the tensors say, before and after."""
    assert {(name, parameter) for parameter in mutation.written(mutation.cases()[name])} == {
        about for about in mutation.marks().done if about[0] == name
    }


def test_the_fixture_holds_enough_of_both():
    """At least 60 functions that write into an input, and 60 that write into none; precision and recall are known."""
    measured = mutation.measure(mutation.marks().reported)
    assert measured.cases >= 60
    assert measured.clean >= 60
    assert measured.precision > 0.94
    assert measured.recall > 0.97


def test_a_report(lint):
    """One whole report: the statement, the parameter, and each step on the way to it, in other files too."""
    helper = """
        def scale(rows, factor):
            flat = rows.reshape(-1)
            flat *= factor


        class Fast(Kernel):
            def run(self, x, output):
                first, *_ = x.split(2)
                scale(first, 2)
                output.copy_(x)
    """
    line = (
        "pkg/fast.py:8:5 Fast.run changes its parameter 'x' in place: flat *= ... writes into it, through "
        "first = x.split(2) (line 13), then rows of scale() (line 14), then flat = rows.reshape(-1) (line 7, "
        f"unless it copies). {RULE}"
    )
    assert lint(helper) == (1, report({"Rule": [line]}))


def test_a_report_of_what_is_inherited(lint):
    """The class that writes is named, and where it has the method from."""
    code = """
        class Template(Kernel):
            def run(self, x, output):
                self.step(x)

            def step(self, x):
                return x + 1


        class Fast(Template):
            def step(self, x):
                x += 1
    """
    line = (
        "pkg/fast.py:16:9 Fast.run (inherited from Template) changes its parameter 'x' in place: x += ... writes into "
        f"it, through x of self.step() (line 8). {RULE}"
    )
    assert lint(code) == (1, report({"Rule": [line]}))


def test_a_report_of_what_a_parameter_holds(lint):
    """The path from the parameter to the tensor is named."""
    code = """
        class Fast(Kernel):
            def run(self, x: list[Tensor], output):
                for part in x:
                    part.zero_()
    """
    line = (
        "pkg/fast.py:9:13 Fast.run changes x[...] of its parameter 'x' in place: part.zero_() writes into it, through "
        f"part = an element of x (line 8). {RULE}"
    )
    assert lint(code) == (1, report({"Rule": [line]}))


@pytest.mark.parametrize(
    ("annotation", "writes"),
    [
        (": Tensor", True),
        (": torch.Tensor", True),
        (": Tensor | None", True),
        (": 'torch.Tensor'", True),
        (": Tensor | int", True),
        (": object", False),
        (": int", False),
        (": float | None", False),
        (": str", False),
        ("", True),
        ("=None", True),
        ("=0", True),
    ],
)
def test_which_parameters_count(lint, annotation, writes):
    """Tensors, by the annotation, or that of the base, which says Tensor; a number is bound anew by ``x *= 2``."""
    code = f"""
        class Fast(Kernel):
            def run(self, x{annotation}, output=None):
                x *= 2
    """
    assert lint(code)[0] == writes


def test_methods_that_are_not_listed(lint):
    """Only those that are listed count; all public ones if none is."""
    code = """
        class Fast(Kernel):
            def run(self, x, output): ...

            def other(self, x):
                x.zero_()
    """
    assert lint(code) == (0, report(kept=["Rule"]))
    code_, text = lint(code, methods=None)
    assert code_ == 1
    assert "pkg/fast.py:10:9 Fast.other changes its parameter 'x' in place: x.zero_() writes into it." in text


def test_a_method_of_a_mixin(lint):
    """A class that takes the method from elsewhere is reported where that writes."""
    code = """
        class Mixin:
            def run(self, x, output):
                x.zero_()


        class Fast(Mixin, Kernel): ...
    """
    assert "pkg/fast.py:8:9 Mixin.run changes its parameter 'x'" in lint(code)[1]


def test_the_base_class_itself(empty):
    """It is held to the contract too."""
    text = KERNEL["pkg/kernel.py"].replace("output: Tensor) -> None: ...", "output: Tensor):\n                x += 1")
    empty.write({"pkg/__init__.py": "", "pkg/kernel.py": text, "pkg/fast.py": IMPORTS + "class Fast(Kernel): ...\n"})
    configure(empty)
    assert "pkg/kernel.py:7:9 Kernel.run changes its parameter 'x' in place: x += ... writes" in empty.lint().text


def test_triton_kernels_write_through_pointers(lint):
    """A kernel that stores writes into what it was launched on."""
    code = """
        import triton
        import triton.language as tl


        @triton.jit
        def double(source, target, width: tl.constexpr):
            places = tl.arange(0, width)
            tl.store(target + places, tl.load(source + places) * 2)


        class Fast(Kernel):
            def run(self, x, output):
                double[(1,)](x, output, 8)


        class Wrong(Kernel):
            def run(self, x, output):
                double[(1,)](output, x, 8)
    """
    code_, text = lint(code)
    assert code_ == 1
    assert text.count("in place") == 1
    assert "pkg/fast.py:13:5 Wrong.run changes its parameter 'x' in place: tl.store() writes into it, through" in text


def test_a_property_that_a_pattern_reads(lint):
    """It gives what reading it would give."""
    code = """
        class Box:
            def __init__(self, content):
                self.content = content

            @property
            def held(self):
                return self.content


        class Fast(Kernel):
            def run(self, x, output):
                match Box(x):
                    case Box(held=y):
                        y.zero_()
    """
    assert "pkg/fast.py:19:17 Fast.run changes its parameter 'x' in place: y.zero_() writes" in lint(code)[1]


@pytest.mark.parametrize(
    ("one", "other", "rows"),
    [
        pytest.param("*rows, _ = x, x, x", "rows = [output, output]", "rows[:2]", id="slice"),
        pytest.param("rows = Box(x)", "rows = Box(output)", "rows.held", id="property"),
        pytest.param("rows = (x,)", "rows = (output,)", "(rows := rows + (1,))", id="sum"),
        pytest.param("rows = (x,); rows += (1,)", "rows = (output,)", "rows", id="longer"),
    ],
)
def test_what_is_made_of_either_of_two_objects(lint, one, other, rows):
    """It may hold what either holds, whichever comes first."""
    code = f"""
        class Box:
            def __init__(self, content):
                self.content = content

            @property
            def held(self):
                return [self.content]


        class Fast(Kernel):
            def run(self, x, output):
                if output.is_cuda:
                    {one}
                else:
                    {other}
                for row in {rows}:
                    row.zero_()


        class Other(Kernel):
            def run(self, x, output):
                if output.is_cuda:
                    {other}
                else:
                    {one}
                for row in {rows}:
                    row.zero_()
    """
    text = lint(code)[1]
    assert "pkg/fast.py:22:13 Fast.run changes its parameter 'x' in place: row.zero_() writes" in text
    assert "pkg/fast.py:32:13 Other.run changes its parameter 'x' in place: row.zero_() writes" in text


def test_both_tuples_that_grow(lint):
    """Each of them, where a name may hold either."""
    code = """
        class Fast(Kernel):
            def run(self, x, output):
                rows = (x,) if output.is_cuda else (output,)
                rows += (1,)
                for row in rows:
                    row.zero_()
    """
    assert "Fast.run changes its parameter 'x' in place: row.zero_() writes" in lint(code)[1]


def test_calls_that_are_alike(lint):
    """What a function did to one method's tensors is said of another's in its own names, lines and steps."""
    code = """
        def scale(tensors, flag):
            for tensor in tensors:
                if flag:
                    tensor.mul_(2)
            return tensors[0]


        class Fast(Kernel):
            def run(self, x, output):
                scale([x, output], True).add_(1)


        class Other(Kernel):
            def run(self, x, output):
                rows = x.view(-1)
                scale([output, rows], False)
                scale([output, rows], True).add_(1)


        class Right(Kernel):
            def run(self, x, output):
                scale([output, x.clone()], True).add_(1)
    """
    lines = [
        "pkg/fast.py:9:13 Fast.run changes its parameter 'x' in place: tensor.mul_() writes into it, through tensor = "
        f"an element of tensors (line 7). {RULE}",
        "pkg/fast.py:9:13 Other.run changes its parameter 'x' in place: tensor.mul_() writes into it, through rows = "
        f"x.view(-1) (line 20), then tensor = an element of tensors (line 7). {RULE}",
        "pkg/fast.py:15:9 Fast.run changes its parameter 'x' in place: scale([x, output], True).add_() writes into it. "
        f"{RULE}",
    ]
    assert lint(code) == (1, report({"Rule": lines}))


# Ignoring


def test_findings_are_ignored_by_the_parameter(lint):
    """One entry for each statement: a new one is not hidden by those that are known."""
    code = """
        class Fast(Kernel):
            def run(self, x, output):
                x.mul_(2)
                x.add_(1)
    """
    assert lint(code, ignore_definitions=["pkg.fast.Fast.run.x", "pkg.fast.Fast.run.x[2]"]) == (
        0,
        report(kept=["Rule (2 ignored)"]),
    )
    line = (
        f"pkg/fast.py:9:9 Fast.run changes its parameter 'x' in place: x.add_() writes into it. {RULE}"
    )
    expected = report({"Rule (1 ignored)": [line]})
    assert lint(code, ignore_definitions=["pkg.fast.Fast.run.x"]) == (1, expected)


def test_an_entry_that_matches_nothing(lint):
    """It is to be removed."""
    line = "ignore_definitions: 'pkg.fast.Fast.run.x' matches nothing any more. Remove it."
    code = "class Fast(Kernel):\n    def run(self, x, output): ...\n"
    assert lint(code, ignore_definitions=["pkg.fast.Fast.run.x"]) == (1, report({"Rule": [line]}))


# What cannot be checked


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"writable": ["run.out"]},
            "writable: 'run.out' names no parameter of a method that is checked. Closest name: 'run.output'.",
        ),
        (
            {"writable": ["other.x"]},
            "writable: 'other.x' names no parameter of a method that is checked.",
        ),
        ({"methods": ["runs"]}, "methods: no method of pkg.kernel.Kernel matches 'runs'. Closest name: 'run'."),
        (
            {"base_classes": ["pkg.kernel.Kernels"]},
            "Base class 'pkg.kernel.Kernels' does not exist. Closest name: 'Kernel'.",
        ),
        (
            {"base_classes": ["pkg.fast.Fast"]},
            "Nothing to check: pkg.fast.Fast has no subclass in pkg. Correct base_classes, or remove the contract.",
        ),
    ],
)
def test_names_that_do_not_exist(lint, options, line):
    """Each is an error that says what to do."""
    assert lint("class Fast(Kernel):\n    def run(self, x, output): ...\n", **options) == (1, report({"Rule": [line]}))


def test_no_base_class(lint):
    """There is nothing to check."""
    line = "base_classes: Nothing to check: give at least one."
    assert lint("", base_classes=[]) == (1, "\n" + refused("Rule", line))


def test_a_class_of_which_the_bases_cannot_be_told(lint):
    """It is undecided."""
    code = """
        class Fast(Kernel): ...


        class Slow(*eval('(Kernel,)')): ...
    """
    code_, text = lint(code)
    assert code_ == 0
    assert "pkg/fast.py:9:7 Slow may be a Kernel, whose methods leave their tensors alone: one of its bases" in text


def test_calls_that_go_too_deep(lint):
    """What is not followed to its end is said."""
    steps = "\n\n".join(f"def step{n}(x):\n    step{n + 1}(x)" for n in range(20))
    code_, text = lint(f"{steps}\n\n\ndef step20(x):\n    x.zero_()\n\n\n{CALLER.format(function='step0')}")
    assert code_ == 0
    assert "Fast.run may change its parameters in place: calls go too deep at step12(x)" in text


def test_a_file_that_cannot_be_read(empty):
    """A module that a method calls into, and that Python does not parse, is a problem with its place."""
    fast = f"{IMPORTS}from pkg.helper import f\n\n\n{CALLER.format(function='f')}"
    empty.write({"pkg/__init__.py": "", **KERNEL, "pkg/fast.py": fast})
    empty.write({"pkg/helper.py": f"def f(x):\n    x += {'+'.join(['1'] * 20_000)}\n"})
    configure(empty)
    code, text = empty.lint()
    assert code == 1
    assert "pkg/helper.py:1 cannot be parsed: an expression is nested too deeply for Python's parser." in text


# The tables, compared with torch


def _schemas():
    return [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")]


def test_all_views_are_known():
    """Each operator of which torch says that its result may share memory with the tensor is in the table."""
    views = {
        schema.name.removeprefix("aten::")
        for schema in _schemas()
        if schema.arguments
        and schema.arguments[0].alias_info
        and not any(argument.alias_info and argument.alias_info.is_write for argument in schema.arguments)
        and any(result.alias_info for result in schema.returns)
    }
    public = {name for name in views if hasattr(torch.Tensor, name) and not name.startswith("_")}
    assert len(public) > 40
    assert public - operations.VIEWS - operations.VIEW_ATTRIBUTES == {"slice_inverse"}  # of torch's own use


def test_all_methods_that_write_are_known():
    """Each method with an underscore at its end is in one of the tables, and nothing else is."""
    methods = {name for name in dir(torch.Tensor) if name.endswith("_") and not name.startswith("_")}
    assert methods == {f"{name}_" for name in operations.IN_PLACE} | operations.HARMLESS


def test_writes_have_an_underscore_or_out():
    """No other method of a tensor changes its data."""
    others = {
        schema.name.removeprefix("aten::")
        for schema in _schemas()
        if not schema.name.endswith("_")
        and any(a.alias_info and a.alias_info.is_write and not a.is_out for a in schema.arguments)
    }
    methods = {name for name in others if hasattr(torch.Tensor, name) and not name.startswith("_")}
    # A stream, a gradient; and "sort" is that of lists, in TorchScript.
    assert methods == {"record_stream", "retain_grad", "sort"}


@pytest.mark.parametrize("name", sorted(operations.HARMLESS))
def test_harmless_methods_change_no_data(name):
    """Their name ends in an underscore, and the tensor stays as it is."""
    tensor = torch.arange(4.0)
    before, version = tensor.clone(), tensor._version
    getattr(tensor, name)()
    assert tensor._version == version
    assert torch.equal(tensor.detach(), before)
