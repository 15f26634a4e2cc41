"""What decorators make of a method, as far as reading can tell."""

from __future__ import annotations

import ast
import enum

from contracts.source._names import Alias, Lost, Meaning, Names
from contracts.source._resolve import ClassValue, External, FunctionValue
from contracts.source._syntax import Syntax, own_statements


class Effect(enum.Enum):
    """What a decorator does to what it decorates."""

    STATIC = "static"
    CLASS = "class"
    PROPERTY = "property"
    CACHED_PROPERTY = "cached property"
    SETTER = "setter"
    DELETER = "deleter"
    OVERLOAD = "overload"
    CONTEXT_MANAGER = "context manager"
    NOTHING = "nothing"
    UNKNOWN = "unknown"


_KNOWN = {
    "builtins.staticmethod": Effect.STATIC,
    "abc.abstractstaticmethod": Effect.STATIC,
    "builtins.classmethod": Effect.CLASS,
    "abc.abstractclassmethod": Effect.CLASS,
    "builtins.property": Effect.PROPERTY,
    "abc.abstractproperty": Effect.PROPERTY,
    "enum.property": Effect.PROPERTY,
    "types.DynamicClassAttribute": Effect.PROPERTY,
    "functools.cached_property": Effect.CACHED_PROPERTY,
    "contextlib.contextmanager": Effect.CONTEXT_MANAGER,
    "contextlib.asynccontextmanager": Effect.CONTEXT_MANAGER,
    "typing.overload": Effect.OVERLOAD,
}
# Calls go through with the arguments that they were given.
_TRANSPARENT = frozenset(
    """
    abc.abstractmethod functools.cache functools.lru_cache functools.singledispatchmethod functools.wraps
    torch.compile torch.enable_grad torch.fx.wrap torch.inference_mode torch.no_grad torch.set_grad_enabled
    torch.profiler.record_function torch.autograd.profiler.record_function torch.cuda.nvtx.range
    typing.final typing.no_type_check typing.override typing.type_check_only warnings.deprecated
    typing.deprecated
    """.split()
)
_TRANSPARENT_MODULES = ("torch.compiler", "torch.jit", "torch._dynamo")


class Decorators:
    """Reads decorators.

    Args:
        syntax: the trees.
        names: follows the names in them.
    """

    def __init__(self, syntax: Syntax, names: Names) -> None:
        self._syntax = syntax
        self._names = names

    def effect(
        self, decorator: ast.expr, function: ast.FunctionDef | ast.AsyncFunctionDef, scope: ClassValue
    ) -> Effect:
        """What a decorator of a method of the class ``scope`` does."""
        if isinstance(decorator, ast.Attribute) and _last(decorator.value) == function.name:
            accessor = {"setter": Effect.SETTER, "deleter": Effect.DELETER, "getter": Effect.PROPERTY}
            if decorator.attr in accessor:
                return accessor[decorator.attr]
        called = isinstance(decorator, ast.Call)
        head = decorator.func if isinstance(decorator, ast.Call) else decorator
        meaning = self._names.expression(scope.module, head, scope)
        return self._of(meaning, called, isinstance(function, ast.AsyncFunctionDef), 0)

    def same(self, one: ast.expr, one_scope: ClassValue, other: ast.expr, other_scope: ClassValue) -> bool:
        """Whether two decorators are the same one, with the same arguments as they are written."""
        heads = [node.func if isinstance(node, ast.Call) else node for node in (one, other)]
        first = self._names.expression(one_scope.module, heads[0], one_scope)
        second = self._names.expression(other_scope.module, heads[1], other_scope)
        if isinstance(first, Lost) or type(first) is not type(second) or first != second:
            return False
        arguments = [
            [ast.dump(a) for a in (*node.args, *node.keywords)] if isinstance(node, ast.Call) else None
            for node in (one, other)
        ]
        return arguments[0] == arguments[1]

    def _of(self, meaning: Meaning, called: bool, is_async: bool, depth: int) -> Effect:
        if isinstance(meaning, External):
            name = meaning.name.replace("typing_extensions.", "typing.")
            if name in _KNOWN:
                return _KNOWN[name]
            if name in _TRANSPARENT or name.startswith(_TRANSPARENT_MODULES):
                return Effect.NOTHING
        elif isinstance(meaning, FunctionValue):
            function = self._syntax.function(meaning)
            if isinstance(function, ast.FunctionDef) and _passes_on(function, called, is_async):
                return Effect.NOTHING
        elif isinstance(meaning, Alias) and depth < 5:
            effects = {
                self._of(
                    self._names.expression(meaning.module, node.func if isinstance(node, ast.Call) else node),
                    called or isinstance(node, ast.Call),
                    is_async,
                    depth + 1,
                )
                for node in self._names.assigned(meaning)
            }
            if len(effects) == 1:
                return effects.pop()
        return Effect.UNKNOWN


def _passes_on(decorator: ast.FunctionDef, called: bool, is_async: bool) -> bool:
    """Whether a decorator of the tree returns what it decorates, or a wrapper that takes whatever it takes."""
    inner = {
        statement.name: statement
        for statement in own_statements(decorator.body)
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    returned = [s.value for s in own_statements(decorator.body) if isinstance(s, ast.Return)]
    positional = [*decorator.args.posonlyargs, *decorator.args.args]
    if not returned or (not called and not positional):
        return False
    for value in returned:
        name = _last(_uncast(value))
        nested = inner.get(name)
        if called:
            if not isinstance(nested, ast.FunctionDef) or not _passes_on(nested, False, is_async):
                return False
        elif name != positional[0].arg and (
            nested is None or not _hands_on(nested, positional[0].arg, is_async)
        ):
            return False
    return True


def _hands_on(wrapper: ast.FunctionDef | ast.AsyncFunctionDef, wrapped: str, is_async: bool) -> bool:
    """Whether a wrapper takes whatever there is, and calls what it wraps with just that."""
    arguments = wrapper.args
    if arguments.vararg is None or arguments.kwarg is None or arguments.kwonlyargs:
        return False
    if isinstance(wrapper, ast.AsyncFunctionDef) and not is_async:
        return False
    taken = [item.arg for item in (*arguments.posonlyargs, *arguments.args)]
    call = f"{wrapped}({', '.join([*taken, f'*{arguments.vararg.arg}', f'**{arguments.kwarg.arg}'])})"
    return any(isinstance(node, ast.Call) and ast.unparse(node) == call for node in ast.walk(wrapper))


def _uncast(node: ast.expr | None) -> ast.expr:
    """A returned expression, without ``cast(...)`` around it; attributes stand for nothing."""
    if isinstance(node, ast.Call) and _last(node.func) == "cast" and len(node.args) == 2:
        node = node.args[1]
    return node if isinstance(node, ast.Name) else ast.Constant(None)


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
