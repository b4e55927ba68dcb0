"""What each rank has for itself: its part of a batch, and its own random numbers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

import mlx.core as mx

from ..core.structure import Static, specs_in
from ..core.words import describe, keystr
from ..transforms import collectives
from ..transforms.agreement import Apart, Said, agreed, require_arrays, taken_apart
from ..transforms.collectives import AnyGroup
from ..transforms.group import as_group
from ..tree.functions import unflatten

T = TypeVar("T")

_NOT_DIVISIBLE = (
    "{path} is {array}, whose first axis can't be divided among {ranks} ranks: give a batch whose length they divide"
)
_NO_ARRAY = (
    "{path} is a {kind} of {count}, as long as the batch, but of no arrays, so that it would stay whole: divide it yourself, "
    "as n = len(batch) // group.size() and batch[group.rank() * n :][:n], or give an array of its numbers"
)


def shard_batch(tree: T, group: AnyGroup = None) -> T:
    """Return this rank's part of each array of a batch: an equal part along the first axis, in the order of the ranks.

    What is computed of the parts, such as predictions, is put together again by :func:`all_gather`.

    Args:
        tree: A tree of arrays, the same on all ranks. Numbers and strings in it are no part of the batch, and stay.
        group: The ranks. Default: those of the whole job.

    Raises:
        ValueError: On every rank, if the first axis of an array can't be divided, if a list is as long as the batch, but has
            numbers or strings in it, or trees are unlike; the message names the paths.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.distributed.shard_batch({"x": mx.zeros((8, 3)), "y": mx.zeros(8)})["x"].shape
    (8, 3)
    """
    group = as_group(group)
    rank, ranks = group.rank(), group.size()

    def prepare() -> tuple[Apart, Said]:
        apart, said = taken_apart("shard_batch", tree)
        for path, leaf in zip(apart.names, apart.leaves, strict=True):
            if not leaf.ndim or leaf.shape[0] % ranks:
                raise ValueError(_NOT_DIVISIBLE.format(path=path, array=describe(leaf), ranks=ranks))
        lengths = {leaf.shape[0] for leaf in apart.leaves}
        for place, spec in specs_in(apart.structure):
            if isinstance(spec, tuple) and issubclass(spec[0], list | tuple) and _are_plain(spec[2], lengths):
                raise ValueError(_NO_ARRAY.format(path=keystr(place), count=len(spec[2]), kind=spec[0].__name__))
        return apart, said

    leaves, structure, _ = agreed("shard_batch", group, prepare)
    if ranks == 1:
        return tree
    lengths = [leaf.shape[0] // ranks for leaf in leaves]
    part: T = unflatten(
        structure, [leaf[rank * length : (rank + 1) * length] for leaf, length in zip(leaves, lengths, strict=True)]
    )
    return part


def _are_plain(specs: Any, lengths: Collection[int]) -> bool:
    """Return whether the items of a list are numbers or strings, of which there are as many as in an axis."""
    return not isinstance(specs, int) and len(specs) in lengths and all(isinstance(spec, Static) for spec in specs)


def all_gather(tree: T, group: AnyGroup = None) -> T:
    """Return the arrays of all ranks one after the other, along the first axis: the opposite of :func:`shard_batch`.

    As ``mx.distributed.all_gather``, for each array of a tree. One of shape ``(n, ...)`` becomes one of shape
    ``(ranks * n, ...)``, and ``()`` becomes ``(ranks,)``, in the dtype that it has, on all ranks. The gradient is this rank's
    part of the cotangent. Shards of larger arrays are put together by :func:`gather`.

    Args:
        tree: A tree of arrays, with the same shapes and dtypes on all ranks.
        group: The ranks. Default: those of the whole job.

    Raises:
        ValueError: On every rank, as from :func:`all_sum`.
        TypeError: As from :func:`all_sum`.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.distributed.all_gather({"rows": mx.zeros(2), "loss": mx.array(1.0)})  # on one rank here
    {'rows': array([0, 0], dtype=float32), 'loss': array([1], dtype=float32)}
    """
    group = as_group(group)

    def prepare() -> tuple[Apart, Said]:
        apart, said = taken_apart("all_gather", tree)
        require_arrays("all_gather", apart.structure)
        return apart, said

    leaves, structure, _ = agreed("all_gather", group, prepare)
    gathered: T = unflatten(structure, [collectives.all_gather(leaf, group) for leaf in leaves])
    return gathered


def local_key(key: mx.array, group: AnyGroup = None) -> mx.array:
    """Return a key of this rank's own, made from one that all ranks have, so that each draws other dropout masks.

    Nothing is exchanged. With one process it is the key given.

    Args:
        key: A key from :func:`mlx.core.random.key` or :func:`mlx.core.random.split`: uint32 of shape (2,).
        group: The ranks. Default: those of the whole job.

    Raises:
        TypeError: If ``key`` is not such a key.

    >>> import frostleaf as fl, mlx.core as mx
    >>> key = mx.random.key(0)
    >>> fl.distributed.local_key(key) is key
    True
    """
    group = as_group(group)
    if not isinstance(key, mx.array) or key.shape != (2,) or key.dtype != mx.uint32:
        raise TypeError(f"local_key takes one key, u32[2], as from mx.random.key(seed), and was given {describe(key)}")
    return key if group.size() == 1 else mx.random.split(key, group.size())[group.rank()]
