"""One of two trees, as an array says. A branch would not do: a compiled step computes the condition when it runs."""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx

from ..tree.functions import map as tree_map

T = TypeVar("T")


def either(condition: mx.array, first: T, second: T) -> T:
    """Return the first of two trees of one structure where a boolean scalar is true, else the second."""
    return tree_map(lambda one, other: mx.where(condition, one, other), first, second)
