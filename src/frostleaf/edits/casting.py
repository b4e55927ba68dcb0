"""Copies in another dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import mlx.core as mx

from ..core import fields
from ..core.arguments import require_callable
from ..core.leaves import leaf_flags
from ..core.sharing import with_leaves
from ..core.structure import Structure, flat_of
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
    dtypes = [leaf.dtype for leaf in flat.leaves]
    if predicate is is_floating:
        cast = {each for each in {*dtypes} if each != dtype and is_floating(each)}
        wanted = [
            one in cast and by_default for one, by_default in zip(dtypes, flat.structure.remember(_by_default), strict=True)
        ]
    else:
        wanted = [one != dtype and (predicate is None or bool(predicate(one))) for one in dtypes]
    new = [leaf.astype(dtype) if casts else leaf for leaf, casts in zip(flat.leaves, wanted, strict=True)]
    return with_leaves(tree, new) if any(wanted) else tree


def _by_default(structure: Structure) -> tuple[bool, ...]:
    """Return for each leaf whether no field that holds it was declared with ``cast=False``."""
    return tuple(leaf_flags(structure, fields.cast))
