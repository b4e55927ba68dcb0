"""Copies in another dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import mlx.core as mx

from ..core import fields
from ..core.arguments import require_callable
from ..core.sharing import with_leaves
from ..core.structure import Structure, flat_of, leaf_fields
from ..core.words import describe

T = TypeVar("T")

Predicate = Callable[[mx.Dtype], bool]


class _IsFloating:
    def __call__(self, dtype: mx.Dtype) -> bool:
        return mx.issubdtype(dtype, mx.floating)

    def __repr__(self) -> str:
        return "is_floating"


# The default predicate: whether a dtype is a real floating-point one. An object whose repr is a name, for signatures.
is_floating = _IsFloating()


def astype(tree: T, dtype: mx.Dtype, predicate: Predicate | None = is_floating) -> T:
    """Cast the leaves whose dtype the predicate accepts; all leaves if it is ``None``.

    The default, :data:`is_floating`, skips fields declared with ``buffer(cast=False)``. Any other predicate is the caller's
    choice, and decides about those arrays too.
    """
    if not isinstance(dtype, mx.Dtype):
        raise TypeError(f"can't cast to {describe(dtype)}: give an mx.Dtype, such as mx.float16")
    if predicate is not None:
        require_callable("predicate", predicate, "a dtype")

    flat = flat_of(tree)
    by_default = predicate is is_floating
    casts = flat.structure.remember(_cast_by_default) if by_default else (True,) * len(flat.leaves)

    def wanted(leaf: mx.array) -> bool:
        return leaf.dtype != dtype and (predicate is None or bool(predicate(leaf.dtype)))

    new = [leaf.astype(dtype) if cast and wanted(leaf) else leaf for leaf, cast in zip(flat.leaves, casts, strict=True)]
    return with_leaves(tree, new)  # type: ignore[no-any-return]


def _cast_by_default(structure: Structure) -> tuple[bool, ...]:
    """Return for each leaf whether no field that holds it was declared with ``cast=False``."""
    return tuple([all(map(fields.cast, above)) for above in structure.remember(leaf_fields)])
