"""Sums, maxima and minima over all ranks, of each array in a tree."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

import mlx.core as mx

from ..transforms import collectives
from ..transforms.agreement import Apart, Said, agreed, require_arrays, taken_apart
from ..transforms.collectives import BUCKET, AnyGroup, Stream, buckets
from ..transforms.group import as_group
from ..tree.functions import unflatten

T = TypeVar("T")
Reduction = Callable[[mx.array], mx.array]


def all_sum(tree: T, group: AnyGroup = None, stream: Stream = None) -> T:
    r"""Sum each array of a tree over all ranks: :math:`y = \sum_r x_r`.

    The exchange takes place when a result is evaluated, or that of a later one. It depends on all exchanges of this thread
    before it, so that the order of the program is the order of the exchanges on every rank, inside :func:`jit` as well. Small
    arrays are sent together.

    Args:
        tree: Any tree of arrays, with the same shapes and dtypes on all ranks.
        group: The ranks. Default: those of the whole job.
        stream: MLX's stream or device for the exchange. Default: MLX's choice.

    Returns:
        The tree of the sums, the same on all ranks, in the dtypes of the arrays. The gradient is the cotangent of this rank, as
        in MLX.

    Raises:
        ValueError: On every rank, if trees are unlike, or hold numbers that are no arrays, outside modules; the message names
            the paths. Inside :func:`jit` and other functions that trace, ranks are not compared.
        TypeError: If there is one process, or a function is traced, and there is such a number, or a shape without values.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.distributed.all_sum({"loss": mx.array(2.0), "name": "run"})
    {'loss': array(2, dtype=float32), 'name': 'run'}
    """
    return _reduced("all_sum", tree, group, functools.partial(collectives.all_sum, stream=stream))


def all_max(tree: T, group: AnyGroup = None, stream: Stream = None) -> T:
    r"""Compute the maximum over all ranks of each number in a tree: :math:`y_i = \max_r x_{r,i}`.

    As :func:`all_sum`, with the same arguments and errors. It is a constant for derivatives, and nan where one of them is nan.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.distributed.all_max({"norm": mx.array([2.0, 3.0])})
    {'norm': array([2, 3], dtype=float32)}
    """
    return _reduced("all_max", tree, group, functools.partial(collectives.all_max, stream=stream))


def all_min(tree: T, group: AnyGroup = None, stream: Stream = None) -> T:
    r"""Compute the minimum over all ranks of each number in a tree: :math:`y_i = \min_r x_{r,i}`.

    As :func:`all_sum`, with the same arguments and errors. It is a constant for derivatives, and nan where one of them is nan.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.distributed.all_min({"norm": mx.array([2.0, 3.0])})
    {'norm': array([2, 3], dtype=float32)}
    """
    return _reduced("all_min", tree, group, functools.partial(collectives.all_min, stream=stream))


def in_buckets(arrays: Sequence[mx.array], nbytes: float, reduce: Reduction) -> list[mx.array]:
    """Reduce arrays, of which those of one dtype that follow each other are sent together, until they have so many bytes."""
    results = [*arrays]
    for places in buckets(arrays, nbytes):
        if len(places) == 1:
            results[places[0]] = reduce(arrays[places[0]])
            continue
        reduced = reduce(mx.concatenate([arrays[place].reshape(-1) for place in places]))
        ends = [*accumulate(arrays[place].size for place in places)]
        for place, part in zip(places, mx.split(reduced, ends[:-1]), strict=True):
            results[place] = part.reshape(arrays[place].shape)
    return results


def _reduced(name: str, tree: T, group: AnyGroup, reduce: Callable[..., mx.array]) -> T:
    group = as_group(group)

    def prepare() -> tuple[Apart, Said]:
        apart, said = taken_apart(name, tree)
        require_arrays(name, apart.structure)
        return apart, said

    leaves, structure, _ = agreed(name, group, prepare)
    if group.size() == 1:
        return tree
    reduced: T = unflatten(structure, in_buckets(leaves, BUCKET, functools.partial(reduce, group=group)))
    return reduced
