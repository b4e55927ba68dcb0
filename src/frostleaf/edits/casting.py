"""Copies in another dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from ..core import fields
from ..core.arguments import require_callable
from ..core.definition import Node
from ..core.shapes import LEAF
from ..core.words import Path, describe
from ..tree.walk import Descend, rewrite

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

    left_alone: set[Path] = set()

    def enter(path: Path, value: Any) -> Any:
        if path in left_alone:
            return value
        if isinstance(value, Node) and predicate is is_floating:
            declared = value.__frostleaf__.fields
            left_alone.update((*path, name) for name, field in declared.items() if not fields.cast(field))
        if not isinstance(value, LEAF):
            return Descend
        wanted = value.dtype != dtype and (predicate is None or predicate(value.dtype))
        return value.astype(dtype) if wanted else value

    return rewrite(tree, enter)  # type: ignore[no-any-return]
