"""What an optimizer sees of a model: its trainable arrays by name, their gradients, and the model with other arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs
import mlx.core as mx

from ..edits.freezing import trainable
from ..tree.compare import describe
from ..tree.functions import aligned, dotted, flatten, unflatten
from ..tree.parts import selected
from ..tree.structure import parts_of
from ..tree.vectors import laid_end_to_end
from ..tree.where import Where
from .packing import LARGE, REST, Packed

T = TypeVar("T")

SAME_NAME = "two parameters have the name {name!r}, so that an optimizer can't tell them apart: rename a key of a dict"
NO_GRADIENT = "there is no gradient for {path!r}, which is trainable ({array}); the gradients have {given} there"
WRONG_SHAPE = "the gradient for {path!r} is {given}, and the parameter is {array}"
MIXED = "the gradients for the packed {dtype} parameters must be of one dtype, and {first!r} is {one} while {path!r} is {other}"
PACKED_INSIDE = "there is a packed tree in what is to be trained. Pack the whole of it: fl.optim.pack(tree)"
PACKED_NAMES = "parts of a packed model can't be selected, since its arrays are laid end to end. Train the model unpacked"


@attrs.frozen
class Parameters:
    """The arrays of a model that are trained.

    Attributes:
        arrays: By dotted path, in the order of the model's leaves; those of a packed model are its vectors and large arrays.
        model: The model.
    """

    arrays: Mapping[str, mx.array]
    model: Any

    @property
    def packed(self) -> bool:
        return isinstance(self.model, Packed)

    def selected(self, where: Where) -> Parameters:
        """Return those that a selection names.

        Raises:
            ValueError: If the model is packed.
        """
        if self.packed:
            raise ValueError(PACKED_NAMES)
        names = zip(_names(self.model), selected(self.model, where), strict=True)
        chosen = {name for name, pick in names if pick}
        return Parameters({name: array for name, array in self.arrays.items() if name in chosen}, self.model)


def parameters_of(model: Any) -> Parameters:
    """Return the trainable arrays of a model.

    Raises:
        ValueError: If two have the same name, or a part of the model is packed.
    """
    leaves, structure = flatten(model)
    names = _names(model)
    if len(set(names)) < len(names):
        raise ValueError(SAME_NAME.format(name=Counter(names).most_common(1)[0][0]))
    shapes = parts_of(structure.shape, ())
    if any(path and type(shape) is tuple and shape[0] is Packed for path, shape in shapes):
        raise ValueError(PACKED_INSIDE)
    named = zip(names, leaves, trainable(model), strict=True)
    return Parameters({name: leaf for name, leaf, trains in named if trains}, model)


def gradients_of(parameters: Parameters, grads: Any) -> dict[str, mx.array]:
    """Return the gradients by the names of the parameters; those for a packed model are packed.

    Raises:
        ValueError: If they don't belong to the model; the message names the path.
    """
    model, arrays = parameters.model, parameters.arrays
    if isinstance(model, Packed):
        tree = model.unpack()
        found = aligned(tree, grads, "the gradient")
        for name, leaf, place, gradient in zip(_names(tree), flatten(tree)[0], model.layout.places, found, strict=True):
            if place != REST:
                _check_gradient(name, leaf, gradient)
        laid = laid_out(model, found)
        return {name: laid[name] for name in arrays}
    named = zip(_names(model), aligned(model, grads, "the gradient"), strict=True)
    gradients = {name: gradient for name, gradient in named if name in arrays}
    for name, array in arrays.items():
        _check_gradient(name, array, gradients[name])
    return gradients


def laid_out(packed: Packed[Any], gradients: Sequence[Any]) -> dict[str, mx.array]:
    """Return gradients laid end to end as the leaves of the packed tree are, by the names of its arrays.

    Raises:
        ValueError: If gradients in one vector would be of several dtypes.
    """
    layout = packed.layout
    names = [dotted(path) for path in layout.structure.leaf_paths()]
    named, divided = layout.divided(names), layout.divided(gradients)
    for place in packed.vectors:
        for name, array in zip(named[place], divided[place], strict=True):
            if array.dtype != divided[place][0].dtype:
                first = {"first": named[place][0], "one": divided[place][0].dtype}
                raise ValueError(MIXED.format(dtype=place, **first, path=name, other=array.dtype))
    vectors = {f"vectors.{place}": laid_end_to_end(divided[place]) for place in packed.vectors}
    return {**vectors, **{f"{LARGE}.{number}": array for number, array in enumerate(divided[LARGE])}}


def with_parameters(model: T, new: Mapping[str, mx.array]) -> T:
    """Return the model with other arrays at the names given."""
    leaves, structure = flatten(model)
    named = zip(_names(model), leaves, strict=True)
    return unflatten(structure, [new.get(name, leaf) for name, leaf in named])  # type: ignore[no-any-return]


def _names(model: Any) -> list[str]:
    return [dotted(path) for path in flatten(model)[1].leaf_paths()]


def _check_gradient(name: str, leaf: mx.array, gradient: Any) -> None:
    if not isinstance(gradient, mx.array):
        raise ValueError(NO_GRADIENT.format(path=name, array=describe(leaf), given=describe(gradient)))
    if gradient.shape != leaf.shape:
        raise ValueError(WRONG_SHAPE.format(path=name, given=describe(gradient), array=describe(leaf)))
