"""Copies in another dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from .. import fields
from ..node import Node, Path
from ..tree.walk import Descend, rewrite

T = TypeVar("T")

Predicate = Callable[[mx.Dtype], bool]

NOT_A_DTYPE = "can't cast to {dtype!r}: give an mx.Dtype, such as mx.float16"


def floating(dtype: mx.Dtype) -> bool:
    """Return whether the dtype is a real floating-point one. This is the default predicate; see :func:`astype`."""
    return mx.issubdtype(dtype, mx.floating)


def astype(tree: T, dtype: mx.Dtype, predicate: Predicate | None = floating) -> T:
    """Return the tree with those leaves cast whose dtype the predicate selects; all of them where it is ``None``.

    The default, :func:`floating` itself, leaves alone what stands in a field declared with ``buffer(cast=False)``. Any other
    predicate is the caller's own word, and is asked about those arrays too.
    """
    if not isinstance(dtype, mx.Dtype):
        raise TypeError(NOT_A_DTYPE.format(dtype=dtype))

    left_alone: set[Path] = set()

    def enter(path: Path, value: Any) -> Any:
        if path in left_alone:
            return value
        if isinstance(value, Node) and predicate is floating:
            left_alone.update((*path, name) for name, field in value.__fields__.items() if not fields.cast(field))
        if not isinstance(value, mx.array):
            return Descend
        wanted = value.dtype != dtype and (predicate is None or predicate(value.dtype))
        return value.astype(dtype) if wanted else value

    return rewrite(tree, enter)  # type: ignore[no-any-return]
