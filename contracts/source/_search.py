"""The search for subclasses: from each carrier of a name to the modules that import it.

A *carrier* is a module in which some name may stand for one of the classes found so far. A module can name
such a class only if it imports a carrier, or a package above one, or if it imports by a computed name; so
from each carrier only those modules are searched, for that one name, and only those in which a class header
or a renaming holds it are parsed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TYPE_CHECKING

from grimp import ImportGraph

from contracts.source._answer import Answer, ClassDefinition, Problem
from contracts.source._doubts import Doubts
from contracts.source._errors import SourceError
from contracts.source._factories import Factories
from contracts.source._hierarchy import unknown_among
from contracts.source._left_out import left_out_subclasses
from contracts.source._occurrences import Occurrences, all_of, is_dynamic
from contracts.source._resolve import ClassValue, Display, Instance, ModuleValue, Unknown, Value
from contracts.source._summary import Summary

if TYPE_CHECKING:
    from contracts.source._index import Index

_ANY_NAME = "<any name>"  # stands for a name that nothing in a module spells


class Search:
    """One question: the subclasses of some classes.

    Args:
        index: whose tree is searched.
        bases: the classes.
        graph: the import graph of the tree.
    """

    def __init__(self, index: Index, bases: Iterable[ClassValue], graph: ImportGraph) -> None:
        self.index = index
        self._files = index.tree.files
        self._survey = index.survey
        self._graph = graph
        self._in_graph = graph.modules
        self.targets = frozenset(bases)
        self._chains: dict[ClassValue, tuple[ClassValue, ...] | None] = {}
        self._found: dict[tuple[str, str], ClassDefinition] = {}
        self._doubts = Doubts(self)
        self._factories = Factories(self)
        self._carried: set[tuple[str, bytes]] = set()
        self._doubtful: set[tuple[str, bytes]] = set()
        self._looked_from: set[tuple[str, bytes, bool]] = set()
        self._aliased: dict[tuple[str, bytes], set[bytes]] = {}
        self._attributes: set[tuple[str, bytes]] = set()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._problems: set[Problem] = set()
        self._dynamic_done: set[str] = set()
        self._told_by_bases: set[ClassValue] = set()
        self._sight = index.sight(graph)
        self._held: set[str] = set()
        self._offered: set[str] = set()
        self._roamed: set[bytes] = set()
        self._known_occurrences: dict[tuple[str, bool], Occurrences] = {}

    def run(self) -> Answer:
        """Search to the fixed point."""
        for target in self.targets:
            self._carry(target.module, _own_name(target))
            self._carry_nested(target)
        self._drain()
        for module in self._survey.with_dynamic_bases:
            if module in self._in_graph and module in self.reaching:
                self._evaluate_dynamic(module)
        self._evaluate_injected()
        self._judge_again()
        self._follow_doubts()
        names = {name for _, name in self._carried}
        self._problems.update(left_out_subclasses(self.index, self._graph, names, self.is_found))
        for error in [*self._relevant_errors(), *self._survey.errors.values()]:
            self._problem(error)
        return Answer(
            tuple(sorted(self._found.values())),
            tuple(self._doubts.reported()),
            tuple(sorted(self._problems)),
        )

    # What its doubts ask

    @property
    def carriers(self) -> set[str]:
        """The modules in which some name may stand for one of the classes."""
        return {module for module, _ in self._carried}

    def is_found(self, value: ClassValue) -> bool:
        """Whether a class is known to be a subclass."""
        return (value.module, value.key) in self._found or self._chain(value) is not None

    def is_ours(self, value: ClassValue) -> bool:
        """Whether it is one of the classes asked about, or a subclass."""
        return value in self.targets or self.is_found(value)

    @cached_property
    def reaching(self) -> AbstractSet[str]:
        """The modules that can reach the classes asked about, by whatever name."""
        found = {*self._survey.roaming, *self._survey.injecting}
        for module in {target.module for target in self.targets}:
            found |= {module} | self._sight.downstream(module)
        return found

    # Where to look

    def _drain(self) -> None:
        while self._queue:
            module, name = self._queue.popleft()
            text = self._survey.text(module)
            binds, callees = text.uses(name)
            passes = any(self._factories.may_create(module, callee) for callee in callees)
            if binds or passes or text.names_in_header(name) or module in self._survey.lazy:
                self._evaluate(module, name, binds=binds, passes=passes)
            is_carried = (module, name) in self._carried
            carry = self._carry if is_carried else self._carry_doubt
            for alias in text.import_aliases(name):
                self._carry_alias(module, alias, name)
                carry(module, alias)
            for attribute in text.kept_as(name):
                for user in {module, *self._sight.downstream(module)} & self._files.keys():
                    if self._survey.names(user, attribute) and self._survey.text(user).names_in_header(attribute):
                        self._carry_doubt(user, attribute)
            package = module
            while package and (package, name, is_carried) not in self._looked_from:
                self._looked_from.add((package, name, is_carried))
                for importer in self._sight.naming(package, name):
                    carry(importer, name)
                package = package.rpartition(".")[0]
            if module not in self._held and is_carried:
                self._held.add(module)
                for user, alias in self._sight.passing(module):
                    self._carry_doubt(user, alias)
                for user in self._sight.computing(module):
                    self._carry_unknown(user)
                self._look_where_offered(module.rpartition(".")[0])
            submodule = f"{module}.{name.decode()}"
            if submodule in self._in_graph:  # `from package import name` looks like an import of the module
                for importer in self._graph.find_modules_that_directly_import(submodule):
                    if self._survey.names(importer, name):
                        carry(importer, name)
            if name not in self._roamed:
                self._roamed.add(name)
                for stray in self._sight.straying(name):
                    carry(stray, name)

    def _carry_unknown(self, module: str) -> None:
        """Look for what is named after something that a module takes of a carrier by a computed name."""
        summary, resolver = self.index.summary(module), self.index.resolver
        for name, ref in summary.exports.items():
            if is_dynamic(ref) and any(isinstance(value, Unknown) for value in resolver.values(ref, module)):
                self._carry_doubt(module, name.encode())
        for record in summary.classes.values():
            for name, ref in record.attributes.items():
                if is_dynamic(ref) and any(isinstance(value, Unknown) for value in resolver.values(ref, module)):
                    self._carry_attribute(module, name.encode())

    def _look_where_offered(self, package: str) -> None:
        """Look at the classes that name a package, or one above it, as another module offers it."""
        while "." in package and package not in self._offered:  # one at the top has its own name everywhere
            self._offered.add(package)
            for user, alias in sorted({*self._sight.passing(package)}):
                if self._survey.text(user).names_in_header(alias):
                    self._evaluate(user, alias, binds=False, passes=False)
            package = package.rpartition(".")[0]

    def _carry(self, module: str, name: bytes) -> None:
        if (module, name) not in self._carried:
            self._carried.add((module, name))
            self._queue.append((module, name))

    def _carry_alias(self, module: str, alias: bytes, name: bytes) -> None:
        """Note that ``alias`` is what ``name`` is called in ``module``, where refs keep the name."""
        names = self._aliased.setdefault((module, alias), set())
        if name not in names:
            names.add(name)
            self._carried.discard((module, alias))
            self._doubtful.discard((module, alias))

    def _carry_doubt(self, module: str, name: bytes) -> None:
        """Look for what is named after an undecided class, too."""
        if (module, name) not in self._doubtful and (module, name) not in self._carried:
            self._doubtful.add((module, name))
            self._queue.append((module, name))

    def _carry_attribute(self, module: str, name: bytes) -> None:
        """Look for what a class in ``module`` holds by a name: a module that has the class may call that anything."""
        if (module, name) not in self._attributes:
            self._attributes.add((module, name))
            for user in sorted(self._sight.downstream(module) & self._files.keys()):
                if self._survey.text(user).has_attribute(name):
                    self._carry_doubt(user, name)

    def _carry_nested(self, value: ClassValue) -> None:
        outer = value.key.partition("@")[0].rpartition(".")[0]
        if outer and not outer.endswith("<locals>"):
            self._carry_attribute(value.module, _own_name(value))

    def _follow_doubts(self) -> None:
        """A subclass of an undecided class is undecided, too."""
        followed: set[ClassValue] = set()
        while fresh := [value for value, _ in self._doubts.that_matter() if value not in followed]:
            for value in fresh:
                followed.add(value)
                self._carry_doubt(value.module, _own_name(value))
                self._carry_nested(value)
            self._drain()

    def _relevant_errors(self) -> Iterable[SourceError]:
        """The files that could not be read, without those that no subclass can have to do with."""
        errors = self.index.errors
        if not errors:
            return []
        related = {module for module, _ in self._carried} | self._survey.roaming
        for module in [*related]:
            if module in self._in_graph:
                related |= self._graph.find_upstream_modules(module)
        for target in self.targets:
            related |= self._sight.downstream(target.module)
        return [error for module, error in errors.items() if module in related]

    def _problem(self, error: SourceError) -> None:
        self._problems.add(Problem.of(error))

    # What is there

    def _evaluate(self, module: str, name: bytes, *, binds: bool, passes: bool) -> None:
        summary = self.index.summary(module, deep=passes)
        tokens = frozenset(n.decode("utf-8", "replace") for n in (name, *self._aliased.get((module, name), ())))
        for key in all_of(self.occurrences(module, deep=passes).classes, tokens):
            self.judge(ClassValue(module, key))
        self._evaluate_dynamic(module)
        if binds or module in self._survey.lazy:
            self._carry_on(module, summary, self.occurrences(module, deep=passes), tokens)
        if passes:
            self._factories.evaluate(module, tokens)

    def occurrences(self, module: str, *, deep: bool) -> Occurrences:
        """Which refs of a module hold a name."""
        if (module, deep) not in self._known_occurrences:
            self._known_occurrences[module, deep] = Occurrences(self.index.summary(module, deep=deep))
        return self._known_occurrences[module, deep]

    def _carry_on(self, module: str, summary: Summary, where: Occurrences, tokens: frozenset[str]) -> None:
        """Carry the other names that a module gives what ``tokens`` stand for."""
        resolver = self.index.resolver
        for exported in all_of(where.exports, tokens):
            if exported not in tokens:
                self._carry_if_held(module, exported, resolver.values(summary.exports[exported], module))
        for key, attribute in all_of(where.attributes, tokens):
            values = resolver.attribute(ClassValue(module, key), attribute)
            if attribute not in tokens:
                self._carry_if_held(module, attribute, values)
            if self.holds(values, 0) or any(value in self._doubts for value in values):
                self._carry_attribute(module, attribute.encode())
        for place in all_of(where.patches, tokens):
            owner, name, ref = summary.patches[place]
            values = resolver.values(ref, module)
            for value in resolver.values(owner, module) if self.holds(values, 0) else ():
                if resolver.patch(value, name, values) and isinstance(value, ModuleValue | ClassValue):
                    self._chains = {of: chain for of, chain in self._chains.items() if chain is not None}
                    self._factories.forget()
                    self._carry(value.name if isinstance(value, ModuleValue) else value.module, name.encode())
                    if name == "__bases__" and isinstance(value, ClassValue):
                        self.judge(value)
                    elif isinstance(value, ClassValue):
                        self._carry_attribute(value.module, name.encode())
        if summary.strings is not None and any(self._renames(module, summary, token) for token in tokens):
            for string in summary.strings:
                if string.isidentifier() and string not in tokens:
                    self._carry_if_held(module, string, resolver.export(module, string))

    def _renames(self, module: str, summary: Summary, token: str) -> bool:
        """Whether a module that gives names by a function may give what ``token`` stands for by another name."""
        if any(token in string and token != string for string in summary.strings or ()):
            return True
        text = self._survey.text(module)
        places = text.occurrences(token.encode())
        return any(text.source[place - 1 : place] not in {b'"', b"'"} for place in places)

    def _carry_if_held(self, module: str, name: str, values: Iterable[Value]) -> None:
        values = [*values]
        if self.holds(values, 0):
            self._carry(module, name.encode())
        elif any(value in self._doubts for value in values):
            self._carry_doubt(module, name.encode())

    def _evaluate_injected(self) -> None:
        """Look at the classes that name what some module binds in a way that reading cannot follow."""
        for module in sorted({*self._survey.injecting, *self._survey.lazy}):
            if module not in self._in_graph or module not in self.reaching:
                continue
            users = self._sight.deriving(module)
            if not (users or module in self._survey.injecting) or not self._binds_unseen(module):
                continue
            for user in sorted({module, *users}):
                summary = self.index.summary(user)
                for key in summary.classes:
                    value = ClassValue(user, key)
                    bases = self.index.resolver.bases(value)
                    if any(isinstance(option, Unknown) for options in bases for option in options):
                        self.judge(value)

    def _binds_unseen(self, module: str) -> bool:
        """Whether a module may have any name at all, and reading cannot tell what it stands for."""
        values = self.index.resolver.export(module, _ANY_NAME)
        return any(isinstance(value, Unknown) for value in values)

    def _evaluate_dynamic(self, module: str) -> None:
        if module in self._dynamic_done:
            return
        self._dynamic_done.add(module)
        summary = self.index.summary(module)
        for key, record in summary.classes.items():
            if is_dynamic(record.bases):
                self._judge_by_bases(ClassValue(module, key))
        for exported, ref in summary.exports.items():
            if ref[0] == "k" and ref[1] == ["b", "type"]:
                self._carry_if_held(module, exported, self.index.resolver.values(ref, module))

    def judge(self, value: ClassValue) -> None:
        """Note a class that is a subclass, or may be one."""
        if value in self.targets:
            return
        chain = self._chain(value)
        if chain is not None:
            for item in (value, *chain):
                self._add(item)
        elif unknowns := self.index.hierarchy.unknowns(value):
            self._doubts.add(value, unknowns)

    def _judge_by_bases(self, value: ClassValue) -> None:
        """Judge a class by its bases that no name tells, now and whenever more classes are found.

        A base told by its name, and what is above any of them, is found by that name if it is one of ours.
        """
        bases = [option for options in self.index.resolver.bases(value, is_dynamic) for option in options]
        if any(isinstance(base, ClassValue) and self._is_known(base) for base in bases):
            self.judge(value)
            return
        self._told_by_bases.add(value)
        unknowns = unknown_among(bases)
        for base in bases:
            if isinstance(base, ClassValue) and base.frame:
                unknowns |= self.index.hierarchy.unknowns(base)
        if unknowns:
            self._doubts.add(value, unknowns)

    def _is_known(self, value: ClassValue) -> bool:
        """Whether a class is ours as far as is known; one that a call makes is judged by what it is made of."""
        place = (value.module, value.key)
        return value in self.targets or place in self._found or bool(value.frame and self._chain(value))

    def _judge_again(self) -> None:
        """Judge the classes that are told by their bases until no more are found."""
        self._drain()
        found = -1
        while found < len(self._found):
            found = len(self._found)
            for value in sorted(self._told_by_bases):
                if (value.module, value.key) not in self._found:
                    self._judge_by_bases(value)
            self._drain()

    def _chain(self, value: ClassValue) -> tuple[ClassValue, ...] | None:
        return self.index.hierarchy.chain(value, self.targets, self._chains)

    def _add(self, value: ClassValue) -> None:
        place = (value.module, value.key)
        if value in self.targets or place in self._found:
            return
        self._found[place] = self.index.define(value, self._chain(value) or ())
        self._carry(value.module, _own_name(value))
        self._carry_nested(value)
        decorators = self.index.resolver.record(value).decorators
        if any(self._factories.may_create(value.module, decorator.encode()) for decorator in decorators):
            for call in self.index.summary(value.module).calls:
                if call[2] == [["c", value.key]]:
                    self._factories.follow(call, value.module, (), 0)

    def holds(self, values: Iterable[Value], depth: int) -> bool:
        """Whether one of our classes is among the values, or in a display among them."""
        held = False
        for value in values:
            if isinstance(value, Instance):
                held |= value.of in self.targets or self._chain(value.of) is not None
            elif isinstance(value, ClassValue):
                if value in self.targets:
                    held = True
                elif self._chain(value) is not None:
                    self._add(value)
                    held = True
            elif isinstance(value, Display) and depth < 5:
                items = self.index.resolver.display_items(value)
                for item in items:  # each, even when one is found: looking adds it
                    held |= self.holds(item, depth + 1)
        return held


def _own_name(value: ClassValue) -> bytes:
    return value.key.partition("@")[0].rpartition(".")[2].encode()
