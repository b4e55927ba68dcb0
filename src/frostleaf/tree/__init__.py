"""Functions on trees of arrays: modules, tuples, lists, dicts and registered classes, nested as you like.

The names are those of ``jax.tree``. Arrays are the leaves; every other value is structure.
"""

from .compare import allclose, diff, equal
from .functions import flatten, leaves, map, map_with_path, paths, reduce, structure, unflatten
from .parts import combine, filter, partition
from .vectors import nbytes, ravel, size, stack, unstack

__all__ = [
    "allclose", "combine", "diff", "equal", "filter", "flatten", "leaves", "map", "map_with_path", "nbytes", "partition",
    "paths", "ravel", "reduce", "size", "stack", "structure", "unflatten", "unstack",
]  # fmt: skip
