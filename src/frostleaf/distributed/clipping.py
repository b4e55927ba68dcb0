"""Gradients made smaller by a norm that no rank can tell alone."""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx

from ..core.dropped import returns_copy
from ..core.sharing import with_leaves
from ..core.structure import flat_of
from ..nn.shards import in_modules, shards_in
from ..optim.clipping import require_limit
from ..transforms.collectives import all_sum
from ..transforms.group import Group, as_group

T = TypeVar("T")


@returns_copy("grads, norm = fl.distributed.{name}(grads, ...)")
def clip_grad_norm_sharded(gradients: T, max_norm: float, group: Any = None) -> tuple[T, mx.array]:
    r"""Return gradients of which each rank has its part, scaled down to a norm, and the norm that all together had.

    As :func:`frostleaf.optim.clip_grad_norm`, with the squares of shards added up over the ranks. On all ranks the norm and the
    scale are the same.

    Args:
        gradients: Gradients of a model that :func:`fully_shard` or :func:`shard_linear` divided; those of arrays that every
            rank has whole count once. Arrays outside modules are taken for shards, as MLX takes all.
        max_norm: The norm.
        group: The ranks among which arrays outside modules are divided. Default: all.

    Returns:
        The gradients, in the dtypes they had, and the norm, of shape ().

    Raises:
        ValueError: If ``max_norm`` is not a number, or negative.

    >>> import frostleaf as fl, mlx.core as mx
    >>> grads, norm = fl.distributed.clip_grad_norm_sharded({"w": mx.array([3.0, 4.0])}, 1.0)  # on one rank here
    >>> grads["w"].round(4), norm
    (array([0.6, 0.8], dtype=float32), array(5, dtype=float32))
    """
    limit = require_limit(max_norm, "max_norm", "clip_grad_norm_sharded")
    flat, everyone = flat_of(gradients), as_group(group)
    sums: dict[tuple[Group, ...], Any] = {}
    inside = flat.structure.remember(in_modules)
    for leaf, shards, is_inside in zip(flat.leaves, shards_in(flat.structure), inside, strict=True):
        groups = tuple([shard.group for shard in shards]) if is_inside else (everyone,)
        wide = leaf.astype(mx.float32) if leaf.dtype == mx.float16 else leaf  # as the squares may overflow
        sums[groups] = sums.get(groups, 0.0) + wide.square().sum()
    squares = mx.array(0.0)
    for groups, local in sums.items():
        for each in groups:
            local = all_sum(local, each)
        squares = local if len(sums) == 1 else squares + local
    norm = mx.sqrt(squares)
    scale = mx.minimum(limit / (norm + 1e-6), 1.0)
    return with_leaves(gradients, [(leaf * scale).astype(leaf.dtype) for leaf in flat.leaves]), norm
