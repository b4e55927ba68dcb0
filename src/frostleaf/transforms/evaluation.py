"""Evaluation of whole trees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx

from ..tree.functions import leaves

BAD_SIZE = "at_once is a number of bytes, 0 or more, and was {given!r}"


def eval(*trees: Any, at_once: int | None = None) -> None:
    """Return nothing, once every array in the trees has been computed. Static values are passed over.

    With ``at_once`` a training step needs less memory. What ``model, state = step(model, state, x)`` has replaced is held by
    the computation alone, which can let go of each array as soon as it is used. MLX does so between one ``eval`` and the next:
    piece by piece, old parameters and moments go as new ones come. The price is that MLX can't compute two pieces at the same
    time.

    Args:
        *trees: Any trees, computed in the order in which they are given.
        at_once: Up to how many bytes of the result to compute in one go (an array larger than that goes by itself). ``0``
            is one array at a time. Default: all in one go.

    Raises:
        ValueError: If ``at_once`` is not a number of bytes.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.eval({"a": mx.ones(2) + 1, "n": 3}, None)
    >>> fl.eval([mx.ones(2), mx.zeros(3)], at_once=0)
    """
    arrays = leaves(trees)
    if at_once is None:
        mx.eval(arrays)
        return
    if not isinstance(at_once, int | float) or not at_once >= 0:
        raise ValueError(BAD_SIZE.format(given=at_once))
    for piece in _pieces(arrays, at_once):
        mx.eval(piece)


def async_eval(*trees: Any) -> None:
    """Return nothing, at once, having started to compute every array in the trees. Static values are passed over.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.async_eval([mx.ones(2) + 1, "text"])
    """
    mx.async_eval(leaves(trees))  # type: ignore[no-untyped-call]


def _pieces(arrays: Iterable[mx.array], nbytes: int) -> Iterator[list[mx.array]]:
    piece: list[mx.array] = []
    room = nbytes
    for array in arrays:
        if piece and array.nbytes > room:
            yield piece
            piece, room = [], nbytes
        piece.append(array)
        room -= array.nbytes
    yield piece
