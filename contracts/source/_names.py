"""What a name in an annotation or a default stands for, as a type checker would read it.

The resolver answers what a name may be when the code runs; a signature also names what only type checkers
see (``if TYPE_CHECKING:``), aliases of types, and type variables. Here a name is followed through imports
and re-exports to the statement that defines it.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from contracts.source._resolve import ClassValue, External, FunctionValue, ModuleValue
from contracts.source._summary import Ref
from contracts.source._syntax import Syntax, own_statements

_MOST_STEPS = 50  # from one re-export to the next; only a circle of imports takes more


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that is assigned: ``X = expression``, or ``type X = expression``."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A name that reading cannot follow."""

    name: str


Meaning = ClassValue | ModuleValue | FunctionValue | External | Alias | Lost


class Names:
    """Follows names through the modules of a tree."""

    def __init__(self, syntax: Syntax) -> None:
        self._syntax = syntax
        self._modules = syntax.index.tree.files
        self._known: dict[tuple[str, str], Meaning] = {}
        self._typing_only: dict[str, dict[str, ModuleValue | External | tuple[str, str]]] = {}

    def follow(self, module: str, name: str) -> Meaning:
        """What a global name of a module stands for."""
        key = (module, name)
        if key not in self._known:
            self._known[key] = Lost(name)  # what only names itself stands for nothing
            self._known[key] = self._follow(module, name)
        return self._known[key]

    def attribute(self, owner: Meaning, name: str) -> Meaning:
        """What ``owner.name`` stands for."""
        match owner:
            case ModuleValue(module):
                return self.follow(module, name)
            case External(outer):
                return External(f"{outer}.{name}")
            case ClassValue():
                ref = self._syntax.index.resolver.record(owner).attributes.get(name)
                if ref is not None and ref[0] == "c":
                    return ClassValue(owner.module, ref[1])
                return Lost(f"{owner.key.partition('@')[0]}.{name}")
            case _:
                return Lost(name)

    def expression(self, module: str, node: ast.expr, scope: ClassValue | None = None) -> Meaning:
        """What a dotted name in a module, or in a class body of it, stands for."""
        if isinstance(node, ast.Attribute):
            return self.attribute(self.expression(module, node.value, scope), node.attr)
        if not isinstance(node, ast.Name):
            return Lost(ast.unparse(node))
        if scope is not None:
            ref = self._syntax.index.resolver.record(scope).attributes.get(node.id)
            if ref is not None and ref[0] == "c":
                return ClassValue(module, ref[1])
        meaning = self.follow(module, node.id)
        if isinstance(meaning, Lost) and hasattr(builtins, node.id):
            return External(f"builtins.{node.id}")
        return meaning

    def assigned(self, alias: Alias) -> list[ast.expr]:
        """The expressions that an alias may have been assigned."""
        found: list[ast.expr] = []
        for statement in own_statements(self._syntax.module(alias.module).body):
            if isinstance(statement, ast.Assign):
                targets: Sequence[ast.expr] = statement.targets
            elif isinstance(statement, ast.AnnAssign):
                targets = [statement.target]
            elif hasattr(ast, "TypeAlias") and isinstance(statement, ast.TypeAlias):
                targets = [statement.name]
            else:
                continue
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if alias.name in names and statement.value is not None:
                found.append(statement.value)
        return found

    def _follow(self, module: str, name: str) -> Meaning:
        for _ in range(_MOST_STEPS):
            if module not in self._modules:
                full = f"{module}.{name}"
                return ModuleValue(full) if self._inside(full) else External(full)
            summary = self._syntax.summary(module)
            ref = summary.exports.get(name)
            if ref is None or ref[0] not in {"f", "m", "c"}:
                hinted = self._only_for_type_checkers(module, name)
                if hinted is not None:
                    return hinted
            if ref is None:
                resolver = self._syntax.index.resolver
                star = next((s for s in reversed(summary.stars) if resolver.star_has(s, name)), None)
                if star is not None:
                    module = star
                    continue
                return self._unbound(module, name)
            if ref == ["f", module, name]:
                return self._unbound(module, name)  # a package that imports a submodule of itself
            if ref[0] == "f":
                module, name = ref[1], ref[2]
                continue
            return self._meaning(ref, module, name)
        return Lost(name)

    def _meaning(self, ref: Ref, module: str, name: str) -> Meaning:
        match ref:
            case ["m", target]:
                return ModuleValue(target) if self._inside(target) else External(target)
            case ["f", source, original]:
                return self.follow(source, original)
            case ["c", key]:
                return ClassValue(module, key)
            case ["d", key]:
                return FunctionValue(module, key)
            case ["a", inner, attribute]:
                owner = self._meaning(inner, module, name)
                return (
                    Alias(module, name)
                    if isinstance(owner, Lost | Alias)
                    else self.attribute(owner, attribute)
                )
            case ["g", other] if other != name:
                return self.follow(module, other)
            case ["u", refs]:
                options = {_common(self._meaning(item, module, name)) for item in refs}
                return options.pop() if len(options) == 1 else Alias(module, name)
            case _:
                return Alias(module, name)

    def _unbound(self, module: str, name: str) -> Meaning:
        full = f"{module}.{name}"
        if self._inside(full):
            return ModuleValue(full)
        values = self._syntax.index.resolver.export(module, name)  # a module __getattr__
        classes = [value for value in values if isinstance(value, ClassValue)]
        return classes[0] if len(classes) == 1 else Lost(name)

    def _inside(self, module: str) -> bool:
        return module in self._modules or module in self._packages

    @cached_property
    def _packages(self) -> frozenset[str]:
        """Whatever has modules below it: packages, with an ``__init__`` or without."""
        found: set[str] = set()
        for module in self._modules:
            while (module := module.rpartition(".")[0]) and module not in found:
                found.add(module)
        return frozenset(found)

    def _only_for_type_checkers(self, module: str, name: str) -> Meaning | None:
        """What an import under ``if TYPE_CHECKING:`` binds a name to; None where none does."""
        if module not in self._typing_only:
            self._typing_only[module] = self._imports_for_type_checkers(module)
        hinted = self._typing_only[module].get(name)
        return hinted if hinted is None or isinstance(hinted, ModuleValue | External) else self.follow(*hinted)

    def _imports_for_type_checkers(self, module: str) -> dict[str, ModuleValue | External | tuple[str, str]]:
        """The names that imports under ``if TYPE_CHECKING:`` bind: to modules, or to names of modules."""
        names: dict[str, ModuleValue | External | tuple[str, str]] = {}
        if b"TYPE_CHECKING" not in self._syntax.file(module).searchable:
            return names
        package = module
        if not self._syntax.file(module).is_package:
            package = module.rpartition(".")[0]
        blocks = self._syntax.typing_blocks(module)
        for statement in (inner for block in blocks for inner in own_statements(block.body)):
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    target = alias.name if alias.asname else bound
                    names[bound] = ModuleValue(target) if self._inside(target) else External(target)
            elif isinstance(statement, ast.ImportFrom):
                source = absolute(statement, package)
                for alias in statement.names:
                    if (source, alias.name) != (module, alias.asname or alias.name):
                        names[alias.asname or alias.name] = (source, alias.name)
        return names


def absolute(statement: ast.ImportFrom, package: str) -> str:
    """The module that ``from ... import`` means in a package."""
    target = statement.module or ""
    if not statement.level:
        return target
    parts = package.split(".")
    kept = parts[: len(parts) - statement.level + 1]
    return ".".join([*kept, target] if target else kept)


def _common(meaning: Meaning) -> Meaning:
    """``typing_extensions.X`` and ``typing.X`` are one."""
    if isinstance(meaning, External) and meaning.name.startswith("typing_extensions."):
        return External(meaning.name.replace("typing_extensions.", "typing."))
    return meaning
