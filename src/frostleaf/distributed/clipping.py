"""Gradients made smaller by a norm that no rank can tell alone."""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx

from ..core.dropped import returns_copy
from ..optim.clipping import clipped, require_limit
from ..transforms.agreement import Said, agreed, said_of_shards
from ..transforms.group import as_group

T = TypeVar("T")


@returns_copy("grads, norm = fl.distributed.{name}(grads, ...)")
def clip_grad_norm_sharded(gradients: T, max_norm: float, group: Any = None) -> tuple[T, mx.array]:
    r"""Return gradients of which each rank has its part, scaled down to a norm, and the norm that all together had.

    As :func:`frostleaf.optim.clip_grad_norm`, which knows the shards in the gradients of modules, but arrays outside modules
    are taken for shards, as MLX takes all. On all ranks the norm and the scale are the same.

    Args:
        gradients: Gradients of a model that :func:`fully_shard` or :func:`shard_linear` divided; those of arrays that every
            rank has whole count once. Or arrays in dicts and lists.
        max_norm: The norm.
        group: The ranks among which arrays outside modules are divided. Default: all.

    Returns:
        The gradients, in the dtypes they had, and the norm, of shape ().

    Raises:
        ValueError: On every rank, if ``max_norm`` is not a number, negative, or not the same on all, or gradients are unlike;
            the message names paths.

    >>> import frostleaf as fl, mlx.core as mx
    >>> grads, norm = fl.distributed.clip_grad_norm_sharded({"w": mx.array([3.0, 4.0])}, 1.0)  # on one rank here
    >>> grads["w"].round(4), norm
    (array([0.6, 0.8], dtype=float32), array(5, dtype=float32))
    """
    ranks = as_group(group)

    def prepare() -> tuple[float, Said]:
        limit = require_limit(max_norm, "max_norm", "clip_grad_norm_sharded")
        return limit, {"max_norm": str(limit), **said_of_shards(gradients)}

    return clipped(gradients, agreed("clip_grad_norm_sharded", ranks, prepare, own=True), (ranks,))
