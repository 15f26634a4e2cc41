"""Outlines: what is left out is function bodies that define nothing, and nothing else ever."""

import ast
import email
import importlib.util
import json
import unittest
from pathlib import Path
from textwrap import dedent

import pytest

from contracts.source import SourceError
from contracts.source._outline import outline, places_of_interest
from contracts.source._summary import parse
from contracts.source._tree import SourceFile

# Each holds the class Kept, and Dropped nowhere but in text that is no code.
TRICKY = {
    "a string that looks like code": '''
        text = """
        def f():
            pass
        class Dropped: ...
        """
        class Kept: ...
        ''',
    "quotes in comments": """
        def f():
            # it's \"\"\" not a string
            return 1
        class Kept: ...
        """,
    "quotes in strings": """
        def f(a='\"\"\"', b="'''"):
            return '\"\"\"'
        class Kept: ...
        """,
    "other quotes in a long string": """
        def f():
            return '''
        \"\"\"
        class Dropped: ...
        '''
        class Kept: ...
        """,
    "an escaped quote": '''
        def f():
            """ \\""" class Dropped: ... """
        class Kept: ...
        ''',
    "a string that goes on behind a backslash": """
        def f():
            return 'a\\
        class Dropped: ...'
        class Kept: ...
        """,
    "lines to the left in brackets": """
        def f():
            return (
        1,
        2,
        )
        class Kept: ...
        """,
    "a comment to the left": """
        def f():
            a = 1
        # a comment
            return a
        class Kept: ...
        """,
    "a line that goes on behind a backslash": """
        def f():
            a = \\
        1
            return a
        class Kept: ...
        """,
    "a body on the line of its header": """
        def f(): return 1
        class Kept: ...
        """,
    "a header over lines, with defaults that hold anything": """
        def f(
            a=(1, (2, (3,))),  # a comment: with a colon
            b={"x": lambda: 1},
            c="):",
        ) -> "dict[str, int]":
            return {}
        class Kept: ...
        """,
    "an annotation that holds a colon": """
        def f() -> {1: 2}[1:2]:
            return {}
        class Kept: ...
        """,
    "a class in a function": """
        def f():
            def g():
                class Kept: ...
            return g
        """,
    "a class in a function that a method calls": """
        class Other:
            async def f(self):
                if self:
                    class Kept: ...
        """,
    "a class behind a function of a branch": """
        if 1:
            def f():
                pass
            class Kept: ...
        """,
    "a class that a call makes": """
        def f(base):
            return type("Kept", (base,), {})
        """,
    "tabs": "\ndef f():\n\treturn 1\nclass Kept: ...\n",
    "form feeds": "\ndef f():\n    a = 1\n\f\n    return a\nclass Kept: ...\n",
    "no newline at the end": "\nclass Kept: ...\ndef f():\n    return 1",
}


def source_file(folder: Path, text: str) -> SourceFile:
    path = folder / "module.py"
    path.write_text(text)
    return SourceFile(str(path), "module", is_package=False)


def definitions(tree: ast.AST) -> list[str]:
    """All classes and module-level or class-level names, with their places; and the calls that may make classes."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            members = [getattr(statement, "name", "") for statement in node.body]
            bases = [ast.dump(base) for base in node.bases]
            found.append(f"{node.lineno}:{node.col_offset} class {node.name} {bases} {members}")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "type" and len(node.args) == 3:
            found.append(f"{node.lineno}:{node.col_offset} {ast.dump(node.args[0])}")
    return sorted(found)


@pytest.mark.parametrize("name", TRICKY)
def test_tricky_sources(tmp_path, name):
    """The classes are those of the whole text, at their places, whatever the text looks like."""
    text = TRICKY[name] if name in {"tabs", "form feeds", "no newline at the end"} else dedent(TRICKY[name])
    whole = definitions(ast.parse(text))
    assert any("Kept" in definition for definition in whole)
    assert not any("Dropped" in definition for definition in whole)
    assert definitions(parse(source_file(tmp_path, text), places_of_interest(text))) == whole


@pytest.mark.parametrize("package", [email, json, unittest, importlib, ast])
def test_installed_packages(package):
    """Every module of a few packages: the same classes, and what is left parses at the first go."""
    folder = Path(package.__file__).parent
    for path in [Path(package.__file__)] if package is ast else sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        shorter = outline(text, places_of_interest(text))
        assert definitions(ast.parse(shorter)) == definitions(ast.parse(text)), path
        assert shorter.count("\n") == text.count("\n")


def test_bodies_are_left_out():
    """Headers, decorators and what a body without interest follows stay; the body goes."""
    text = dedent(
        """
        class C(B):
            x = 1

            @property
            def f(self, a: int = 1) -> int:
                '''Says so.'''
                for i in range(a):
                    a += i
                return a

            y = 2
        """
    )
    shorter = outline(text, places_of_interest(text))
    assert "for" not in shorter
    assert "Says" not in shorter
    assert shorter.splitlines()[5] == "    def f(self, a: int = 1) -> int: ..."
    assert shorter.splitlines()[11] == "    y = 2"


def test_what_cannot_be_parsed_is_told(tmp_path):
    """The message is about the file as it stands."""
    text = "def f():\n    return 1\n\nclass C(:\n"
    with pytest.raises(SourceError, match="cannot be parsed"):
        parse(source_file(tmp_path, text), places_of_interest(text))
