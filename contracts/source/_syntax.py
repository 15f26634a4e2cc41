"""Syntax trees of the linted modules, each parsed once and only when something in it is asked for."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from contracts.source._answer import Problem
from contracts.source._errors import SourceError
from contracts.source._excerpt import enclosing, typing_blocks
from contracts.source._resolve import ClassValue, FunctionValue
from contracts.source._summary import Summary
from contracts.source._tree import SourceFile, relative_path

if TYPE_CHECKING:
    from contracts.source._index import Index

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Syntax:
    """The trees of an index's files.

    ``problems`` are the files that had to be read and could not be; they count as empty.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._trees: dict[str, ast.Module] = {}
        self._functions: dict[str, dict[tuple[int, int], Function]] = {}
        self._classes: dict[str, dict[tuple[int, str], ast.ClassDef]] = {}
        self.problems: set[Problem] = set()

    def summary(self, module: str) -> Summary:
        """What the index knows of a module."""
        summary = self.index.summary(module)
        if module in self.index.errors:
            self.problems.add(Problem.of(self.index.errors[module]))
        return summary

    def module(self, name: str) -> ast.Module:
        """A module's tree."""
        if name not in self._trees:
            try:
                self._trees[name] = self.index.syntax_tree(name)
            except SourceError as error:
                self.problems.add(Problem.of(error))
                self._trees[name] = ast.Module([], [])
            self._register(name, self._trees[name].body)
        return self._trees[name]

    def function(self, value: FunctionValue) -> Function | None:
        """The definition that a function value stands for; None where its file cannot be read."""
        qualname, _, place = value.key.partition("@")
        line, _, column = place.partition(":")
        key = (int(line), int(column))
        known = self._functions.setdefault(value.module, {})
        if key not in known:
            self._find(value.module, qualname, int(line))
        if key not in known and qualname.endswith("<lambda>"):
            for node in ast.walk(self.module(value.module)):
                if isinstance(node, ast.Lambda):
                    known[node.lineno, node.col_offset] = node
        return known.get(key)

    def class_(self, value: ClassValue) -> ast.ClassDef | None:
        """The statement that makes a class; None for a class that a call makes."""
        qualname, _, place = value.key.partition("@")
        key = (int(place.partition(":")[0]), qualname.rpartition(".")[2])
        known = self._classes.setdefault(value.module, {})
        if key not in known:
            self._find(value.module, qualname, key[0])
        return known.get(key)

    def typing_blocks(self, module: str) -> Sequence[ast.If]:
        """The blocks ``if TYPE_CHECKING:`` of a module, as far as they are not inside functions or classes."""
        if not self.index.has_tree(module) and module not in self._trees:
            with contextlib.suppress(SourceError):  # which the whole tree meets, too
                found = typing_blocks(self.index.lines(module))
                if found is not None:
                    return found
        statements = own_statements(self.module(module).body)
        return [item for item in statements if isinstance(item, ast.If) and is_type_checking(item.test)]

    def _find(self, module: str, qualname: str, line: int) -> None:
        """Read the definition at a line: with what is around it alone, or else with its whole module."""
        if not self.index.has_tree(module) and module not in self._trees:
            with contextlib.suppress(SourceError):  # which the whole tree meets, too
                outer = qualname.partition(".")[0]
                start = line if outer == qualname else enclosing(self.index.lines(module), line, outer)
                definition = self.index.definition(module, start) if start is not None else None
                if definition is not None and definition.name == outer and line <= (definition.end_lineno or 0):
                    self._register(module, [definition])
                    return
        self.module(module)

    def file(self, module: str) -> SourceFile:
        """A module's file."""
        return self.index.tree.files[module]

    def path(self, module: str) -> str:
        """A module's path, as it is reported."""
        return relative_path(self.file(module).path)

    def column(self, module: str, line: int, offset: int) -> int:
        """The column, from 1 and in characters, of a place that a tree gives in bytes of UTF-8."""
        text = self.line(module, line)
        return (offset if text.isascii() else len(text.encode()[:offset].decode(errors="replace"))) + 1

    def line(self, module: str, number: int) -> str:
        """A line of a module's text; numbers count from 1."""
        lines = self.index.lines(module)
        return lines[number - 1] if number <= len(lines) else ""

    def _register(self, module: str, statements: Sequence[ast.stmt]) -> None:
        # What was read alone stays: nodes are told apart by their identity.
        functions = self._functions.setdefault(module, {})
        classes = self._classes.setdefault(module, {})
        for statement in all_statements(statements):
            if isinstance(statement, ast.ClassDef):
                classes.setdefault((statement.lineno, statement.name), statement)
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.setdefault((statement.lineno, statement.col_offset), statement)


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is ``TYPE_CHECKING``."""
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, in no particular order; in half the time of ``ast.walk``."""
    pending = [node]
    while pending:
        node = pending.pop()
        yield node
        for held in node.__dict__.values():
            if isinstance(held, ast.AST):
                pending.append(held)
            elif isinstance(held, list):
                pending += [item for item in held if isinstance(item, ast.AST)]


def blocks(statement: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    """The blocks of statements directly inside one."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if block:
            yield block
    for inner in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield inner.body


def all_statements(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement, at any depth."""
    pending = list(reversed(statements))
    while pending:
        statement = pending.pop()
        yield statement
        for block in blocks(statement):
            pending += reversed(block)


def own_statements(statements: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of one scope: those of functions and classes in it are their own."""
    pending = list(reversed(statements))
    while pending:
        statement = pending.pop()
        yield statement
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for block in blocks(statement):
                pending += reversed(block)
