"""Averages of gradients over all ranks."""

from __future__ import annotations

import functools
from itertools import compress
from typing import TypeVar

from ..core.words import describe
from ..nn.shards import groups_of
from ..optim.order import averages
from ..transforms.agreement import Apart, Said, agreed, is_settled, require_arrays, taken_apart
from ..transforms.collectives import BUCKET, AnyGroup, Stream, all_average
from ..transforms.group import as_group
from ..tree.functions import flatten, unflatten
from .reducing import in_buckets

T = TypeVar("T")


@averages
def average_gradients(
    gradients: T, group: AnyGroup = None, all_reduce_size: int = BUCKET, communication_stream: Stream = None
) -> T:
    r"""Average gradients over all ranks: :math:`g = \frac{1}{R} \sum_r g_r`.

    Each rank computes gradients for its part of the batch (:func:`shard_batch`), and all take the same step. It stands in front
    of an optimizer, outermost, so that all ranks clip, skip or accumulate the same gradients:
    ``fl.optim.chain(fl.distributed.average_gradients, optimizer)``.

    Shards of larger arrays, as :func:`fully_shard` and :func:`shard_linear` make, are left as they are: each rank has its own.

    Each number is that of ``mlx.nn.average_gradients``, which takes plain dicts and lists of one dtype.

    Args:
        gradients: Gradients as :func:`frostleaf.grad` returns them, or any tree of arrays. What is ``None`` stays so.
        group: The ranks. Default: those of the whole job.
        all_reduce_size: Small arrays of one dtype are sent together until they have so many bytes; ``0`` sends each by itself.
            Default: 32 MiB.
        communication_stream: MLX's stream for the exchange. Default: MLX's choice.

    Returns:
        The averages, the same on all ranks, in the dtypes of the gradients, if these are floating; of integers in float32, as
        MLX's.

    Raises:
        ValueError: On every rank, as from :func:`all_sum`, and if ``all_reduce_size`` is no number.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.distributed.average_gradients({"weight": mx.array([1.0, 2.0]), "bias": None})
    {'weight': array([1, 2], dtype=float32), 'bias': None}
    """
    group = as_group(group)

    def prepare() -> tuple[Apart, Said]:
        if not isinstance(all_reduce_size, int | float):
            raise ValueError(f"all_reduce_size is a number of bytes, and was given as {describe(all_reduce_size)}")
        apart, said = taken_apart("average_gradients", gradients)
        require_arrays("average_gradients", apart.structure)
        return apart, {"all_reduce_size": str(all_reduce_size), **said}

    if group.size() > 1 and all_reduce_size == BUCKET and is_settled(gradients, group):
        leaves, structure = flatten(gradients)
    else:
        leaves, structure, _ = agreed("average_gradients", group, prepare)
    if group.size() == 1:
        return gradients
    average = functools.partial(all_average, group=group, stream=communication_stream)
    is_whole = [group not in (groups or ()) for groups in groups_of(gradients)]
    averaged = iter(in_buckets([*compress(leaves, is_whole)], all_reduce_size, average))
    new: T = unflatten(structure, [next(averaged) if whole else leaf for leaf, whole in zip(leaves, is_whole, strict=True)])
    return new
