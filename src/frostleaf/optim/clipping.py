"""Gradients made smaller before they are used."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.optimizers

from ..core.definition import Node
from ..core.dropped import returns_copy
from ..core.fields import static
from ..core.words import describe
from ..display.text import text
from ..nn.shards import Groups, groups_of
from ..transforms.agreement import Said, agreed_by_all, groups_among, said_of_shards
from ..transforms.collectives import all_sum
from ..tree.functions import flatten, unflatten

T = TypeVar("T")


class ClipByGlobalNorm(Node):
    """A function that scales gradients down to a norm, as made by :func:`clip_by_global_norm`.

    >>> import frostleaf as fl
    >>> fl.optim.clip_by_global_norm(1.0)
    ClipByGlobalNorm(max_norm=1.0)
    """

    max_norm: float = static()

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def __call__(self, gradients: Mapping[str, mx.array]) -> dict[str, mx.array]:
        return clip_grad_norm(dict(gradients), self.max_norm)[0]

    def written(self) -> str:
        """Return the call that makes it."""
        return f"clip_by_global_norm({self.max_norm})"

    def __repr__(self) -> str:
        return text(self)


class ClipByValue(Node):
    """A function that clips each number of the gradients, as made by :func:`clip_by_value`.

    >>> import frostleaf as fl
    >>> fl.optim.clip_by_value(1.0)
    ClipByValue(max_value=1.0)
    """

    max_value: float = static()

    def __init__(self, max_value: float) -> None:
        self.max_value = max_value

    def __call__(self, gradients: Mapping[str, mx.array]) -> dict[str, mx.array]:
        return {name: mx.clip(array, -self.max_value, self.max_value) for name, array in gradients.items()}

    def written(self) -> str:
        """Return the call that makes it."""
        return f"clip_by_value({self.max_value})"

    def __repr__(self) -> str:
        return text(self)


@returns_copy("grads, norm = fl.optim.{name}(grads, ...)")
def clip_grad_norm(grads: T, max_norm: float) -> tuple[T, mx.array]:
    r"""Return gradients scaled down to a norm, and the norm that they had.

    .. math:: g \leftarrow g \min\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right), \qquad
        \lVert g \rVert = \sqrt{\textstyle\sum_i \lVert g_i \rVert^2}

    over all gradients :math:`g_i` together, as ``mlx.optimizers.clip_grad_norm`` computes it. For a training loop that watches
    the norm; :func:`clip_by_global_norm` is the same as a part of an optimizer. If modules in the gradients hold shards of
    larger arrays, the squares of these are added up over the ranks that hold them, and all ranks have the same norm.

    Args:
        grads: Gradients as :func:`frostleaf.grad` returns them, or any tree of arrays. What is ``None`` stays so.
        max_norm: :math:`c`.

    Returns:
        The gradients, in the dtypes they had, and the norm, of shape (), in float32 unless all of them are of ``mx.bfloat16``.

    Raises:
        ValueError: If ``max_norm`` is not a number, or negative.

    >>> import frostleaf as fl, mlx.core as mx
    >>> grads, norm = fl.optim.clip_grad_norm({"w": mx.array([3.0, 4.0]), "b": None}, 1.0)
    >>> grads["w"].round(4), grads["b"], norm
    (array([0.6, 0.8], dtype=float32), None, array(5, dtype=float32))
    """
    groups = groups_among(grads)

    def prepare() -> tuple[float, Said]:
        limit = require_limit(max_norm, "max_norm", "clip_grad_norm")
        return limit, {"max_norm": str(limit), **said_of_shards(grads)} if groups else {}

    return clipped(grads, agreed_by_all("clip_grad_norm", groups, prepare))


def clipped(grads: T, limit: float, untold: Groups = ()) -> tuple[T, mx.array]:
    """As :func:`clip_grad_norm`.

    Args:
        grads: The gradients.
        limit: The norm.
        untold: The groups among which arrays are divided of which nothing is told.
    """
    leaves, structure = flatten(grads)
    divided = [untold if groups is None else groups for groups in groups_of(grads)]
    if not any(divided):
        new, norm = mlx.optimizers.clip_grad_norm(leaves, limit)  # type: ignore[no-untyped-call]
        return unflatten(structure, new), norm
    sums: dict[Groups, Any] = {}
    for leaf, groups in zip(leaves, divided, strict=True):
        wide = leaf.astype(mx.float32) if leaf.dtype == mx.float16 else leaf  # as MLX does; the squares may overflow
        sums[groups] = sums.get(groups, 0.0) + wide.square().sum()
    norm = mx.sqrt(functools.reduce(operator.add, [_over(groups, squares) for groups, squares in sums.items()]))
    scale = mx.minimum(limit / (norm + 1e-6), 1.0)
    return unflatten(structure, [(leaf * scale).astype(leaf.dtype) for leaf in leaves]), norm


def _over(groups: Groups, squares: mx.array) -> mx.array:
    for group in groups:
        squares = all_sum(squares, group)
    return squares


def clip_by_global_norm(max_norm: float) -> ClipByGlobalNorm:
    r"""Return a function for :func:`chain` that scales gradients down to a norm.

    .. math:: g \leftarrow g \min\left(1, \frac{c}{\lVert g \rVert + 10^{-6}}\right), \qquad
        \lVert g \rVert = \sqrt{\textstyle\sum_i \lVert g_i \rVert^2}

    over all gradients :math:`g_i` together, those of shards on all ranks, as :func:`clip_grad_norm` computes it. Pascanu et
    al., `On the difficulty of training recurrent neural networks <https://arxiv.org/abs/1211.5063>`_.

    Args:
        max_norm: :math:`c`.

    Raises:
        ValueError: If ``max_norm`` is not a number, or negative.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt = fl.optim.chain(fl.optim.clip_by_global_norm(1.0), fl.optim.SGD(1.0))
    >>> w = mx.array([0.0, 0.0])
    >>> opt.update(w, mx.array([3.0, 4.0]), opt.init(w))[0].round(4)
    array([-0.6, -0.8], dtype=float32)
    """
    return ClipByGlobalNorm(require_limit(max_norm, "max_norm", "clip_by_global_norm"))


def clip_by_value(max_value: float) -> ClipByValue:
    r"""Return a function for :func:`chain` that clips each number of the gradients: :math:`g \leftarrow \max(-c, \min(c, g))`.

    Args:
        max_value: :math:`c`.

    Raises:
        ValueError: If ``max_value`` is not a number, or negative.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt = fl.optim.chain(fl.optim.clip_by_value(1.0), fl.optim.SGD(1.0))
    >>> w = mx.array([0.0, 0.0])
    >>> opt.update(w, mx.array([3.0, -0.5]), opt.init(w))[0]
    array([-1, 0.5], dtype=float32)
    """
    return ClipByValue(require_limit(max_value, "max_value", "clip_by_value"))


def require_limit(given: Any, name: str, function: str) -> float:
    """Return a limit as a float.

    Raises:
        ValueError: If it is not a number, or negative.
    """
    if not isinstance(given, int | float) or isinstance(given, bool) or not given >= 0 or math.isnan(given):
        raise ValueError(f"{name} of {function} is a number, 0 or more, and was given as {describe(given)}")
    return float(given)
