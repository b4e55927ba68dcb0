"""Evaluation of whole trees."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..tree.functions import leaves


def eval(*trees: Any) -> None:
    """Return nothing, once every array in the trees has been computed. Static values are passed over.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.eval({"a": mx.ones(2) + 1, "n": 3}, None)
    """
    mx.eval(leaves(trees))


def async_eval(*trees: Any) -> None:
    """Return nothing, at once, having started to compute every array in the trees. Static values are passed over.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.async_eval([mx.ones(2) + 1, "text"])
    """
    mx.async_eval(leaves(trees))  # type: ignore[no-untyped-call]
