"""Functions on trees of arrays: modules, tuples, lists, dicts and registered classes, nested as you like.

The names are those of ``jax.tree``. Arrays are the leaves; every other value is structure.
"""

from ..core.structure import Structure
from .comparison import allclose, diff, equal
from .differences import Change, ChangeRow, Diff
from .functions import flatten, leaves, map, map_with_path, paths, reduce, structure, unflatten
from .partitioning import combine, filter, partition
from .vectors import nbytes, ravel, size, stack, unstack

__all__ = [
    "Change", "ChangeRow", "Diff", "Structure", "allclose", "combine", "diff", "equal", "filter", "flatten", "leaves", "map",
    "map_with_path", "nbytes", "partition", "paths", "ravel", "reduce", "size", "stack", "structure", "unflatten", "unstack",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted(__all__)
