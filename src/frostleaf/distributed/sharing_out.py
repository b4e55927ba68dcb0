"""What each rank has for itself: its part of a batch, and its own random numbers."""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx

from ..core.words import describe
from ..transforms.agreement import Apart, Said, agreed, taken_apart
from ..transforms.collectives import AnyGroup
from ..transforms.group import as_group
from ..tree.functions import unflatten

T = TypeVar("T")

_NOT_DIVISIBLE = (
    "{path} is {array}, whose first axis can't be divided among {ranks} ranks: give a batch whose length they divide"
)


def shard_batch(tree: T, group: AnyGroup = None) -> T:
    """Return this rank's part of each array of a batch: an equal part along the first axis, in the order of the ranks.

    Args:
        tree: A tree of arrays, the same on all ranks.
        group: The ranks. Default: those of the whole job.

    Raises:
        ValueError: On every rank, if the first axis of an array can't be divided, or trees are unlike; the message
            names the paths.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.distributed.shard_batch({"x": mx.zeros((8, 3)), "y": mx.zeros(8)})["x"].shape
    (8, 3)
    """
    group = as_group(group)
    rank, ranks = group.rank(), group.size()

    def prepare() -> tuple[Apart, Said]:
        apart, said = taken_apart("shard_batch", tree)
        for path, leaf in zip(said, apart.leaves, strict=True):
            if not leaf.ndim or leaf.shape[0] % ranks:
                raise ValueError(_NOT_DIVISIBLE.format(path=path, array=describe(leaf), ranks=ranks))
        return apart, said

    leaves, structure = agreed("shard_batch", group, prepare)
    if ranks == 1:
        return tree
    lengths = [leaf.shape[0] // ranks for leaf in leaves]
    part: T = unflatten(
        structure, [leaf[rank * length : (rank + 1) * length] for leaf, length in zip(leaves, lengths, strict=True)]
    )
    return part


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
