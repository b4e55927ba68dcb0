"""Copies in another dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx

from ..tree.structure import Path
from ..tree.walk import Descend, rewrite

T = TypeVar("T")

Predicate = Callable[[mx.Dtype], bool]

NOT_A_DTYPE = "can't cast to {dtype!r}: give an mx.Dtype, such as mx.float16"


def floating(dtype: mx.Dtype) -> bool:
    """Return whether the dtype is a real floating-point one."""
    return mx.issubdtype(dtype, mx.floating)


def astype(tree: T, dtype: mx.Dtype, predicate: Predicate | None = floating) -> T:
    """Return the tree with those leaves cast whose dtype the predicate selects; all of them where it is ``None``."""
    if not isinstance(dtype, mx.Dtype):
        raise TypeError(NOT_A_DTYPE.format(dtype=dtype))

    def enter(path: Path, value: Any) -> Any:
        if not isinstance(value, mx.array):
            return Descend
        wanted = value.dtype != dtype and (predicate is None or predicate(value.dtype))
        return value.astype(dtype) if wanted else value

    return rewrite(tree, enter)  # type: ignore[no-any-return]
