"""Evaluating whole trees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx

from ..core.words import describe
from ..tree.functions import leaves
from .peers import noticing, waiting
from .without_values import explained

# Waiting between pieces of this size costs next to nothing. A GPU is idle meanwhile, so that there it takes more.
_AT_ONCE_ON_CPU, _AT_ONCE_ON_GPU = 2 * 2**20, 256 * 2**20


def eval(*trees: Any, at_once: float | None = None) -> None:
    """Evaluate every array in the trees.

    Piece by piece this takes less memory: between one ``mx.eval`` and the next, MLX frees what only the computation still
    held, such as the old parameters and moments that ``model, state = step(model, state, x)`` has replaced, or the random bits
    from which a new model is drawn. But MLX can't compute two pieces at the same time.

    ``mx.eval(model)`` can't look into a module: it does nothing, and does not say so. ``mx.eval(fl.tree.leaves(model))`` does.

    Args:
        *trees: Any trees, computed in the order given.
        at_once: The most bytes of results to compute in one go (a larger array goes by itself). ``0`` is one array at a time,
            ``float("inf")`` all in one go. Default: 2 MiB if MLX computes on the CPU, else 256 MiB.

    Raises:
        ValueError: If ``at_once`` is not a number of bytes.
        frostleaf.distributed.PeerLostError: If another process is lost with which arrays are exchanged.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.eval({"a": mx.ones(2) + 1, "n": 3}, None)
    >>> fl.eval([mx.ones(2), mx.zeros(3)], at_once=0)
    >>> model = fl.nn.Linear(2, 2)
    >>> fl.eval(model)
    >>> mx.eval(fl.tree.leaves(model))
    """
    if at_once is None:
        at_once = _at_once()
    elif not isinstance(at_once, int | float) or not at_once >= 0:
        raise ValueError(f"at_once is a number of bytes, 0 or more, and was {describe(at_once)}")
    _evaluate([], trees, at_once)


def eval_after(stages: Iterable[mx.array], *trees: Any) -> None:
    """Evaluate trees, as :func:`eval` does, and on the CPU one stage after the other before, which takes less memory."""
    _evaluate(stages if _is_on_cpu() else [], trees, _at_once())


def async_eval(*trees: Any) -> None:
    """Start to evaluate every array in the trees, and return at once.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.async_eval([mx.ones(2) + 1, "text"])
    """
    with explained():
        mx.async_eval(leaves(trees))  # type: ignore[no-untyped-call]


def _at_once() -> float:
    return _AT_ONCE_ON_CPU if _is_on_cpu() else _AT_ONCE_ON_GPU


def _is_on_cpu() -> bool:
    return mx.default_device().type == mx.cpu


def _evaluate(stages: Iterable[mx.array], trees: Any, at_once: float) -> None:
    with explained(), noticing(), waiting():
        for stage in stages:
            mx.eval(stage)
        for piece in _pieces(leaves(trees), at_once):
            mx.eval(piece)


def _pieces(arrays: Iterable[mx.array], nbytes: float) -> Iterator[list[mx.array]]:
    piece: list[mx.array] = []
    room = nbytes
    for array in arrays:
        if piece and array.nbytes > room:
            yield piece
            piece, room = [], nbytes
        piece.append(array)
        room -= array.nbytes
    yield piece
