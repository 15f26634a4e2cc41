"""Definitions that are parsed alone."""

import ast
from pathlib import Path
from textwrap import dedent

import pytest

import contracts
from contracts.source._excerpt import definition, typing_blocks

OWN = sorted(Path(contracts.__file__).parent.rglob("*.py"))


def same(text: str) -> tuple[int, int]:
    """Compare each definition with that in the whole tree; how many there are, and how many could be parsed alone."""
    lines = text.split("\n")
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    alone = 0
    for node in found:
        read = definition(lines, node.lineno)
        if read is not None:
            alone += 1
            assert ast.dump(read, include_attributes=True) == ast.dump(node, include_attributes=True)
    return len(found), alone


def test_the_definitions_of_this_package():
    """Each is what it is in the whole tree, lines and columns too; nearly all of them can be parsed alone."""
    counts = [same(path.read_text(encoding="utf-8")) for path in OWN]
    assert sum(alone for _, alone in counts) > 0.9 * sum(found for found, _ in counts) > 500


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        pytest.param("@one\n@two(\n    1,\n)\ndef f(\n    a,\n) -> int:\n    return a\nx = 1\n", 1, id="decorators"),
        pytest.param('def f():\n    """\nleft\n"""\n    return 1\ny = f()\n', 1, id="outdented string"),
        pytest.param("def f():\n    g(\n1,\n    )\n    return 1\ny = f()\n", 1, id="outdented brackets"),
        pytest.param("if a:\n    def f(): pass\nelse:\n    def f():\n        pass\n", 2, id="indented"),
        pytest.param("def f(): return 1\n# about x\nx = 1\n", 1, id="one line"),
        pytest.param("def f():\n    return 1 + \\\n2\nx = 1\n", 1, id="continued"),
        pytest.param('@g("""\nleft\n""")\ndef f():\n    return 1\n', 0, id="decorator with an outdented string"),
        pytest.param("@g([\n# left\n1, (2,\n3), ])\ndef f():\n    return 1\n", 0, id="outdented argument"),
        pytest.param("def f():\n\treturn 1\nx = 1\n", 0, id="tab"),
        pytest.param("if a:\n    def f():\n\t    g()\n\t    return 1\n", 0, id="tabs and spaces"),
        pytest.param("def f():\n    return 1\n\fdef g():\n    return 2\n", 0, id="form feed"),
        pytest.param("@g\nasync  def f():\n    return 1\nx = 1\n", 1, id="async"),
    ],
)
def test_odd_definitions(text, alone):
    """What is parsed alone is what it is in the whole tree; what may not be is not parsed alone."""
    assert same(text)[1] == alone


def test_blocks_for_type_checkers():
    """The blocks of a module, if all of them can be told by their lines."""
    text = """
        from typing import TYPE_CHECKING
        import typing

        if TYPE_CHECKING:  # no circle
            from a import (
                B,
            )
        else:
            B = None
        if typing.TYPE_CHECKING:
            import c
    """
    blocks = typing_blocks(dedent(text).split("\n"))
    assert blocks is not None
    assert [ast.unparse(block.body) for block in blocks] == ["from a import B", "import c"]
    assert typing_blocks(["if not TYPE_CHECKING:", "    import a"]) is None
    assert typing_blocks(["try:", "    if TYPE_CHECKING:", "        import a", "finally: pass"]) is None
    assert typing_blocks(['"""', "if TYPE_CHECKING:", "    import a", '"""']) is None
    assert typing_blocks(["import a"]) == []
