"""The small arrays of a model in a few long ones, so that a training step has little to hand over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import attrs
import mlx.core as mx

from ..edits.freezing import trainable
from ..fields import buffer, static
from ..module import Module
from ..tree.functions import flatten, unflatten
from ..tree.structure import Structure
from ..tree.vectors import dtype_name, laid_end_to_end, taken_apart

T = TypeVar("T")

LARGE, REST = "large", "rest"
BAD_SIZE = "max_size is the number of elements up to which an array is packed, 0 or more, and was {given!r}"
KEEPS_MODE = "packed modules keep the mode in which they were packed: write packed.unpack().eval(), not packed.eval()"


@attrs.frozen
class _Layout:
    """Where the leaves of a tree are: for each, the dtype of a vector, ``"large"`` or ``"rest"``, and its shape."""

    structure: Structure
    places: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def divided(self, leaves: Iterable[Any]) -> dict[str, list[Any]]:
        """Return the leaves by place."""
        divided: dict[str, list[Any]] = {place: [] for place in (*self.places, LARGE, REST)}
        for place, leaf in zip(self.places, leaves, strict=True):
            divided[place].append(leaf)
        return divided

    def shapes_of(self, place: str) -> list[tuple[int, ...]]:
        return [shape for each, shape in zip(self.places, self.shapes, strict=True) if each == place]


class Packed(Module, Generic[T]):
    """A tree whose small trainable arrays are laid end to end, as made by :func:`pack`. It is a tree itself.

    The modules in it keep their mode and what they have frozen. To freeze a vector is to train none of the arrays in it.

    Attributes:
        vectors: For the name of each dtype (``"float32"``) a vector with the small trainable arrays of that dtype.
        large: The other trainable arrays, in order.
        rest: Arrays that are not trained: frozen parameters, buffers and integers.
    """

    vectors: Mapping[str, mx.array]
    large: tuple[mx.array, ...]
    rest: tuple[mx.array, ...] = buffer()
    layout: _Layout = static()

    def unpack(self) -> T:
        """Return the tree. Its small arrays are views of the vectors, which are not copied.

        Raises:
            ValueError: If this was put in evaluation mode, which does not reach the modules in it.

        >>> import frostleaf as fl
        >>> layer = fl.nn.Linear(2, 3)
        >>> fl.tree.equal(fl.optim.pack(layer).unpack(), layer)
        True
        """
        if not self.training:
            raise ValueError(KEEPS_MODE)
        arrays = {LARGE: iter(self.large), REST: iter(self.rest)}
        for place, vector in self.vectors.items():
            arrays[place] = iter(taken_apart(vector, self.layout.shapes_of(place)))
        return unflatten(self.layout.structure, [next(arrays[place]) for place in self.layout.places])  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        shown = {place: getattr(vector, "shape", vector) for place, vector in self.vectors.items()}
        vectors = "".join(f"{place}={shape!r}, " for place, shape in shown.items())
        return f"Packed({vectors}large={len(self.large)}, rest={len(self.rest)})"


def pack(tree: T, max_size: int = 4096) -> Packed[T]:
    """Return the tree with its small trainable arrays laid end to end, in one vector for each dtype.

    A compiled step takes and returns every array by itself, which for many small arrays takes longer than computing with them.
    Packed, the model is there inside the step (and anywhere else) as ``packed.unpack()``. Differentiate with respect to that
    rather than to the packed tree: the gradient of taking a vector apart is slow. :func:`flatten` makes the optimizer for it.

    Args:
        tree: A module, or any tree of arrays; one that is packed is returned as it is.
        max_size: Trainable arrays of more elements are left alone: copying them would take longer than handing them over.
            Default: ``4096``, at which the two cost the same on a CPU.

    Raises:
        ValueError: If ``max_size`` is not a number of elements.

    >>> import frostleaf as fl, mlx.core as mx
    >>> opt = fl.optim.flatten(fl.optim.SGD(0.5))
    >>> model = fl.optim.pack(fl.nn.Linear(2, 3))
    >>> @fl.jit
    ... def step(model, state, x):
    ...     grads = fl.grad(lambda layer: layer(x).sum())(model.unpack())
    ...     return opt.update(model, grads, state)
    >>> model, state = step(model, opt.init(model), mx.ones((1, 2)))
    >>> model, model.unpack().bias.shape
    (Packed(float32=(9,), large=0, rest=0), (3,))
    """
    check_size(max_size)
    if isinstance(tree, Packed):
        return tree
    leaves, structure = flatten(tree)
    places = [
        REST if not trains else LARGE if leaf.size > max_size else dtype_name(leaf)
        for leaf, trains in zip(leaves, trainable(tree), strict=True)
    ]
    layout = _Layout(structure, tuple(places), tuple([leaf.shape for leaf in leaves]))
    divided = layout.divided(leaves)
    large, rest = divided.pop(LARGE), divided.pop(REST)
    vectors = {place: laid_end_to_end(arrays) for place, arrays in divided.items()}
    return Packed(vectors, tuple(large), tuple(rest), layout)


def check_size(max_size: Any) -> None:
    """Raise a ``ValueError`` if this is no number of elements."""
    if type(max_size) is not int or max_size < 0:
        raise ValueError(BAD_SIZE.format(given=max_size))
