"""The small arrays of a model in a few long vectors, so that a training step has few arrays to hand over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import attrs
import mlx.core as mx

from ..core.fields import buffer, static
from ..core.leaves import require_seen
from ..core.structure import Structure
from ..core.words import describe, dtype_name
from ..edits.freezing import trainable
from ..module import Module
from ..transforms.shards import shards_in
from ..tree.functions import flatten, unflatten
from ..tree.vectors import concatenate, split

T = TypeVar("T")

LARGE, REST = "large", "rest"


@attrs.frozen
class _Layout:
    """Where the leaves of a tree are packed: for each, the dtype of a vector, ``"large"`` or ``"rest"``, and its shape."""

    structure: Structure
    places: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def by_place(self, leaves: Iterable[Any]) -> dict[str, list[Any]]:
        """Group the leaves by place."""
        groups: dict[str, list[Any]] = {place: [] for place in (*self.places, LARGE, REST)}
        for place, leaf in zip(self.places, leaves, strict=True):
            groups[place].append(leaf)
        return groups

    def shapes_of(self, place: str) -> list[tuple[int, ...]]:
        return [shape for each, shape in zip(self.places, self.shapes, strict=True) if each == place]


def _require_layout(packed: Any, field: Any, value: Any) -> None:
    if not isinstance(value, _Layout):
        raise TypeError(f"the layout says where each array is, and was given as {describe(value)}: write fl.optim.pack(model)")


KEEPS_MODE = "packed modules keep the mode in which they were packed: write packed.unpack().eval(), not packed.eval()"


def _of_the_model(name: str) -> Any:
    """Return a method that says that it is one of the model, and how to get that."""

    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        require_seen(name, self)

    return refused


class Packed(Module, Generic[T]):
    """A tree whose small trainable arrays are laid end to end, as made by :func:`pack`. It is a tree itself.

    The modules in it keep their mode and what they have frozen. Freezing a vector freezes every array in it. What looks for
    layers or names, and a call, is an error that says to unpack it first.

    Attributes:
        vectors: By the name of a dtype (``"float32"``), a vector of all small trainable arrays of that dtype.
        large: The other trainable arrays, in order.
        rest: Arrays that are not trained: frozen parameters, buffers and integers.

    >>> import frostleaf as fl
    >>> fl.optim.pack(fl.nn.BatchNorm(2))
    Packed(float32=(4,), large=0, rest=2)
    """

    vectors: Mapping[str, mx.array]
    large: tuple[mx.array, ...]
    rest: tuple[mx.array, ...] = buffer(cast=True)  # frozen parameters among them
    layout: _Layout = static(validator=_require_layout)

    __frostleaf_unseen__ = "whose arrays are laid end to end: write packed.unpack() first"
    __call__ = _of_the_model("a call")
    load_weights = _of_the_model("load_weights")
    map_modules = _of_the_model("map_modules")
    save_weights = _of_the_model("save_weights")
    tie = _of_the_model("tie")
    untie = _of_the_model("untie")
    update = _of_the_model("update")
    update_modules = _of_the_model("update_modules")

    def unpack(self) -> T:
        """Return the tree. Its small arrays are views of the vectors, not copies.

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
            arrays[place] = iter(split(vector, self.layout.shapes_of(place)))
        return unflatten(self.layout.structure, [next(arrays[place]) for place in self.layout.places])  # type: ignore[no-any-return]

    @classmethod
    def _instead_of_reading(cls, name: str) -> str | None:
        return super()._instead_of_reading(name) or (None if name.startswith("_") else f"write packed.unpack().{name}")

    def __repr__(self) -> str:
        shown = {place: getattr(vector, "shape", vector) for place, vector in self.vectors.items()}
        vectors = "".join(f"{place}={shape!r}, " for place, shape in shown.items())
        return f"Packed({vectors}large={len(self.large)}, rest={len(self.rest)})"


def pack(tree: T, max_size: int = 4096) -> Packed[T]:
    """Return the tree with its small trainable arrays laid end to end, in one vector for each dtype.

    A compiled step takes and returns each array separately, which for many small arrays takes longer than computing with them.
    Inside the step, and anywhere else, ``packed.unpack()`` is the model. Differentiate with respect to that rather than to the
    packed tree: the gradient of taking a vector apart is slow. :func:`flatten` makes the optimizer for a packed model.

    Shards of larger arrays (see :func:`frostleaf.distributed.shard`) are not packed.

    Args:
        tree: A module, or any tree of arrays; a packed tree is returned as it is.
        max_size: Trainable arrays of more elements are not packed: copying them would take longer than handing them over.
            Default: ``4096``, at which the two cost the same on a CPU.

    Raises:
        ValueError: If ``max_size`` is not a number of elements.
        TypeError: If it is an optimizer.

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
    if hasattr(type(tree), "__state__"):  # it is an optimizer
        raise TypeError(f"fl.optim.pack takes a model, and was given {describe(tree)}: write fl.optim.flatten for an optimizer")
    places = [
        REST if not trains else LARGE if leaf.size > max_size or shards else dtype_name(leaf.dtype)
        for leaf, trains, shards in zip(leaves, trainable(tree), shards_in(structure), strict=True)
    ]
    layout = _Layout(structure, tuple(places), tuple([leaf.shape for leaf in leaves]))
    groups = layout.by_place(leaves)
    large, rest = groups.pop(LARGE), groups.pop(REST)
    vectors = {place: concatenate(arrays) for place, arrays in groups.items()}
    return Packed(vectors, tuple(large), tuple(rest), layout)


def check_size(max_size: Any) -> None:
    """Raise a ``ValueError`` if this is not a number of elements."""
    if type(max_size) is not int or max_size < 0:
        message = "max_size is the number of elements up to which an array is packed, 0 or more, and was"
        raise ValueError(f"{message} {describe(max_size)}")


@attrs.frozen
class TrainedArrays:
    """The arrays that a packed tree trains: for each its dotted path, where it is packed, and its shape.

    >>> import frostleaf as fl
    >>> state = fl.optim.flatten(fl.optim.SGD(0.1)).init(fl.nn.Linear(2, 1))
    >>> state.trained.arrays
    (('weight', 'float32', (1, 2)), ('bias', 'float32', (1,)))
    """

    arrays: tuple[tuple[str, str, tuple[int, ...]], ...]

    def by_vector(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Return, for the name of each array of the packed tree, the names and shapes of the arrays in it."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        large = 0
        for name, place, shape in self.arrays:
            vector = f"vectors.{place}"
            if place == LARGE:
                vector, large = f"{LARGE}.{large}", large + 1
            found.setdefault(vector, {})[name] = shape
        return found

    def __repr__(self) -> str:
        return f"({len(self.arrays)} arrays)"


def trained_arrays_of(packed: Packed[Any]) -> TrainedArrays:
    """Return the arrays that a packed tree trains."""
    layout = packed.layout
    arrays = zip(layout.structure.leaf_names(), layout.places, layout.shapes, strict=True)
    return TrainedArrays(tuple([array for array in arrays if array[1] != REST]))
