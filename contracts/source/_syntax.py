"""Syntax trees of the linted modules, each parsed once and only when something in it is asked for."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from contracts.source._answer import Problem
from contracts.source._errors import SourceError
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
        self._lines: dict[str, list[str]] = {}
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
            self._classes[name] = {}
            self._functions[name] = {}
            self._register(name, self._trees[name].body)
        return self._trees[name]

    def function(self, value: FunctionValue) -> Function | None:
        """The definition that a function value stands for; None where its file cannot be read."""
        self.module(value.module)
        qualname, _, place = value.key.partition("@")
        line, _, column = place.partition(":")
        found = self._functions[value.module].get((int(line), int(column)))
        if found is None and qualname.endswith("<lambda>"):
            for node in ast.walk(self._trees[value.module]):
                if isinstance(node, ast.Lambda):
                    self._functions[value.module][node.lineno, node.col_offset] = node
            found = self._functions[value.module].get((int(line), int(column)))
        return found

    def class_(self, value: ClassValue) -> ast.ClassDef | None:
        """The statement that makes a class; None for a class that a call makes."""
        self.module(value.module)
        qualname, _, place = value.key.partition("@")
        line = int(place.partition(":")[0])
        return self._classes[value.module].get((line, qualname.rpartition(".")[2]))

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
        if module not in self._lines:
            self._lines[module] = self.file(module).text.split("\n")
        lines = self._lines[module]
        return lines[number - 1] if number <= len(lines) else ""

    def _register(self, module: str, statements: Sequence[ast.stmt]) -> None:
        for statement in all_statements(statements):
            if isinstance(statement, ast.ClassDef):
                self._classes[module][statement.lineno, statement.name] = statement
            elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                self._functions[module][statement.lineno, statement.col_offset] = statement


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
