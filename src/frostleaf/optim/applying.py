"""Updates of a model that were computed without an optimizer."""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx

from ..core.dropped import returns_copy
from ..core.words import describe
from ..tree.functions import flatten, unflatten
from ..tree.prefixes import flatten_up_to

T = TypeVar("T")


@returns_copy("model = fl.optim.{name}(model, updates)")
def apply_updates(model: T, updates: Any) -> T:
    r"""Return the model with updates added to its arrays: :math:`w \leftarrow w + u`.

    This is for rules written with :mod:`frostleaf.tree`, as with Optax. Whatever there is an update for is changed, be it
    frozen or not.

    Args:
        model: A module, or any tree of arrays.
        updates: A tree of the same structure, such as is computed from gradients, with an array of the same shape for each
            that changes, and ``None`` for what stays as it is.

    Returns:
        The model, with the dtypes it had; the sum is computed in the wider of the two dtypes and rounded. It shares every array
        that stays.

    Raises:
        ValueError: If an update is not an array of the shape, or is floating-point where the model has integers; the message
            names the path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.Linear(2, 2).freeze(keys="weight")
    >>> grads = fl.grad(lambda layer: layer(mx.ones((1, 2))).sum())(layer)
    >>> after = fl.optim.apply_updates(layer, fl.tree.map(lambda g: -0.1 * g, grads))
    >>> after.weight is layer.weight, (after.bias - layer.bias).round(3)
    (True, array([-0.1, -0.1], dtype=float32))
    """
    leaves, structure = flatten(model)
    new = list(leaves)
    for index, (leaf, update) in enumerate(zip(leaves, flatten_up_to(model, updates, "the update"), strict=True)):
        if update is not None:
            _check_update(structure.leaf_names()[index], leaf, update)
            new[index] = (leaf + update).astype(leaf.dtype)
    return unflatten(structure, new)  # type: ignore[no-any-return]


def _check_update(name: str, leaf: mx.array, update: Any) -> None:
    if not isinstance(update, mx.array) or update.shape != leaf.shape:
        raise ValueError(f"the update for {name!r}, {describe(leaf)}, is an array of its shape or None, not {describe(update)}")
    if mx.issubdtype(update.dtype, mx.inexact) and not mx.issubdtype(leaf.dtype, mx.inexact):
        raise ValueError(f"the update for {name!r}, {describe(leaf)}, would be rounded to integers: it is {describe(update)}")
