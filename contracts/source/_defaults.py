"""Whether two defaults are the same value."""

from __future__ import annotations

import ast

from contracts.source._names import Alias, Lost, Meaning, Names
from contracts.source._resolve import ClassValue, External
from contracts.source._subtypes import Verdict

_DTYPES = {
    "bool": "bool", "byte": "uint8", "cdouble": "complex128", "cfloat": "complex64", "chalf": "complex32",
    "double": "float64", "float": "float32", "half": "float16", "int": "int32", "long": "int64", "short": "int16",
}  # fmt: skip
_MOST_ALIASES = 10


class Defaults:
    """Compares defaults.

    Args:
        names: follows the names in them.
    """

    def __init__(self, names: Names) -> None:
        self._names = names

    def same(self, one: ast.expr, one_scope: ClassValue, other: ast.expr, other_scope: ClassValue) -> Verdict:
        """Whether two defaults, each in its class body, are the same; None where reading cannot tell.

        ``...`` is what stubs write for any default.
        """
        if any(isinstance(node, ast.Constant) and node.value is ... for node in (one, other)):
            return True
        first = self._form(one, one_scope.module, one_scope, 0)
        second = self._form(other, other_scope.module, other_scope, 0)
        if first == second:
            return True
        # Code that is written otherwise may come to the same.
        return None if "code" in {first[0], second[0]} else False

    def _form(self, node: ast.expr, module: str, scope: ClassValue | None, depth: int) -> tuple[str, str]:
        """``("value", repr)``, ``("name", what it stands for)``, or ``("code", text and what its names stand for)``."""
        try:
            return "value", repr(ast.literal_eval(node))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            pass  # no literal
        if isinstance(node, ast.Name | ast.Attribute):
            return self._named(node, module, scope, depth)
        names = [item for item in ast.walk(node) if isinstance(item, ast.Name)]
        meant = [self._named(item, module, scope, depth)[1] for item in names]
        return "code", f"{ast.dump(node)} {meant}"

    def _named(
        self, node: ast.Name | ast.Attribute, module: str, scope: ClassValue | None, depth: int
    ) -> tuple[str, str]:
        meaning: Meaning = self._names.expression(module, node, scope)
        match meaning:
            case External(name):
                owner, _, last = name.rpartition(".")
                return "name", f"torch.{_DTYPES.get(last, last)}" if owner == "torch" else name
            case Alias() if depth < _MOST_ALIASES:
                forms = {
                    self._form(value, meaning.module, None, depth + 1)
                    for value in self._names.assigned(meaning)
                }
                if len(forms) == 1:
                    return forms.pop()
                return "code", f"{meaning.module}.{meaning.name}"
            case Lost() | Alias():
                if isinstance(node, ast.Attribute):
                    owner_meaning = self._names.expression(module, node.value, scope)
                    if isinstance(owner_meaning, ClassValue):
                        return "name", f"{owner_meaning.module}.{owner_meaning.key}.{node.attr}"
                return "code", f"{module}: {ast.dump(node)}"
            case _:
                return "name", repr(meaning)
