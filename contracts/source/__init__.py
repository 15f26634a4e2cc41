"""The index of classes that the contract types read: what is a subclass of what, and where it is defined.

It sees the tree on disk as Python would at run time, and never imports or runs any of it.
"""

from contracts.source._answer import Answer, ClassDefinition, Exports, Problem, UndecidedClass
from contracts.source._cache import Cache
from contracts.source._errors import RootNotFoundError, SourceError, UnknownNameError
from contracts.source._index import Index
from contracts.source._left_out import why_left_out
from contracts.source._tree import module_path, relative_path

__all__ = [
    "Answer",
    "Cache",
    "ClassDefinition",
    "Exports",
    "Index",
    "Problem",
    "RootNotFoundError",
    "SourceError",
    "UndecidedClass",
    "UnknownNameError",
    "module_path",
    "relative_path",
    "why_left_out",
]
