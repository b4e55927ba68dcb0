"""What an optimizer is given of a model: its trainable arrays and their gradients by name."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import compress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import attrs
import mlx.core as mx

from ..core.instance import Instance, flat_kept
from ..core.leaves import kinds_below
from ..core.sharing import with_leaves, with_leaves_late
from ..core.structure import Flat, Kind, Signature, Structure, flat_of
from ..core.words import describe
from ..edits.freezing import gradient_structure, trainable_leaves, trained_of
from ..nn.shards import Groups, groups_by_name, told
from ..transforms.context import setting
from ..tree.functions import flatten
from ..tree.prefixes import flatten_up_to
from ..tree.selecting import Where, mask
from ..tree.vectors import concatenate
from .contents import are_arrays, are_of_kinds, kinds_of
from .last import Last
from .packing import LARGE, REST, Packed

PACKED_GRADIENTS = (
    "the gradient is with respect to the Packed model, where there is {inside} to be differentiated: "
    "loss, grads = fl.value_and_grad(loss_fn)(packed.unpack())"
)
PACKED_NAMES = "parts of a packed model can't be selected, since its arrays are laid end to end. Train the model unpacked"

_OF_THE_MODEL = "Take the gradient of the model that is updated: grads = fl.grad(loss_fn)(model, ...)"


@attrs.frozen
class Parameters:
    """The trainable arrays of a model.

    Attributes:
        arrays: By dotted path, in the order of the model's leaves. Of a packed model they are its vectors and large arrays.
        model: The model.
        flat: The model taken apart, if these are all of its trainable arrays.
        alike: The gradients that were found to have the shapes and dtypes of the arrays, if there are such.
    """

    arrays: Mapping[str, mx.array]
    model: Any
    flat: Flat | None = attrs.field(default=None, repr=False, eq=False)
    alike: Mapping[str, mx.array] | None = attrs.field(default=None, repr=False, eq=False)

    @functools.cached_property
    def kinds(self) -> Sequence[Kind]:
        """The shape and the dtype of each array."""
        signature = self.flat.signature if self.flat else None
        return signature.remember(_trained).kinds if signature else kinds_of(self.arrays.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each array."""
        signature = self.flat.signature if self.flat else None
        return signature.remember(_trained).names if signature else tuple(self.arrays)

    @property
    def is_packed(self) -> bool:
        return isinstance(self.model, Packed)

    def select(self, where: Where) -> Parameters:
        """Return the selected parameters.

        Raises:
            ValueError: If the model is packed.
        """
        if self.is_packed:
            raise ValueError(PACKED_NAMES)
        chosen = dict(zip(_names(self.model), _mask(self.model, where), strict=True))
        return Parameters({name: array for name, array in self.arrays.items() if chosen[name]}, self.model)


SAME_NAME = "two parameters have the name {name!r}, so that an optimizer can't tell them apart: rename a key of a dict"


def parameters_of(model: Any, last: Last | None = None) -> Parameters:
    """Return the trainable arrays of a model.

    Args:
        model: The model.
        last: What is known of the last one.

    Raises:
        ValueError: If two have the same name, or there is a packed tree inside the model.
    """
    flat = flat_of(model) if last is None else last.recognised(flat_of(model))
    if flat.signature is None and not are_arrays(flat.leaves):
        names = flat.structure.remember(_distinct_names)
        return Parameters(dict(compress(zip(names, flat.leaves, strict=True), trainable_leaves(flat))), model, flat)
    trained = flat.signed().remember(_trained)
    return Parameters(dict(zip(trained.names, compress(flat.leaves, trained.mask), strict=True)), model, flat)


class _Trained(NamedTuple):
    """Which leaves of a model of some signature are trained, and the names, shapes and dtypes of those."""

    mask: list[bool]
    names: tuple[str, ...]
    kinds: tuple[Kind, ...]


def _trained(signature: Signature) -> _Trained:
    names, mask = signature.structure.remember(_distinct_names), signature.remember(trained_of)
    return _Trained(mask, tuple(compress(names, mask)), tuple(compress(signature.leaves, mask)))


def _gradients(signature: Signature) -> Signature:
    """Return the signature of the gradients of a module of some signature."""
    mask, _, kinds = signature.remember(_trained)
    return Signature(gradient_structure(signature.structure, mask), kinds)


def _distinct_names(structure: Structure) -> tuple[str, ...]:
    names = structure.leaf_names()
    if len(set(names)) < len(names):
        raise ValueError(SAME_NAME.format(name=Counter(names).most_common(1)[0][0]))
    if Packed in kinds_below(structure):
        raise ValueError("there is a packed tree in what is to be trained. Pack the whole of it: fl.optim.pack(tree)")
    return names


def with_gradients(parameters: Parameters, grads: Any) -> tuple[Parameters, dict[str, mx.array]]:
    """Return the parameters and the gradients by their names, packed if the model is.

    Raises:
        ValueError: If they don't belong to the model; the message names the path.
    """
    model, arrays = parameters.model, parameters.arrays
    if isinstance(model, Packed):
        tree = model.unpack()
        if isinstance(grads, Packed):
            raise ValueError(PACKED_GRADIENTS.format(inside=describe(tree)))
        found = flatten_up_to(tree, grads, "the gradient", _OF_THE_MODEL)
        for name, leaf, place, gradient in zip(_names(tree), flatten(tree)[0], model.layout.places, found, strict=True):
            if place != REST:
                _check_gradient(name, leaf, gradient)
        packed = pack_gradients(model, found)
        return parameters, {name: packed[name] for name in arrays}
    flat = _expected_gradients(parameters, grads)
    if flat is not None:
        gradients = dict(zip(arrays, flat.leaves, strict=True))
        return with_alike(parameters, gradients), gradients
    names = parameters.flat.structure.leaf_names() if parameters.flat else _names(model)
    named = zip(names, flatten_up_to(model, grads, "the gradient", _OF_THE_MODEL), strict=True)
    gradients = {name: gradient for name, gradient in named if name in arrays}
    if are_of_kinds(gradients, tuple(arrays), parameters.kinds):
        return with_alike(parameters, gradients), gradients
    for name, array in arrays.items():
        _check_gradient(name, array, gradients[name])
    return parameters, gradients


def _expected_gradients(parameters: Parameters, grads: Any) -> Flat | None:
    """Return gradients taken apart, if they have the structure, shapes and dtypes of those of the module."""
    flat = flat_kept(grads) if isinstance(grads, Instance) else None
    signature = parameters.flat.signature if parameters.flat else None
    if flat is None or signature is None:
        return None
    expected = signature.remember(_gradients)
    if flat.signature is None and flat.structure == expected.structure and are_arrays(flat.leaves):
        flat.signature = expected.if_of(flat.leaves)
    return flat if flat.signature == expected else None


def with_alike(parameters: Parameters, gradients: Mapping[str, mx.array]) -> Parameters:
    """Return parameters with gradients that were found to have their shapes and dtypes."""
    return Parameters(parameters.arrays, parameters.model, parameters.flat, gradients)


MIXED = "the gradients for the packed {dtype} parameters must be of one dtype, and {first!r} is {one} while {path!r} is {other}"


def pack_gradients(packed: Packed[Any], gradients: Sequence[Any]) -> dict[str, mx.array]:
    """Lay gradients end to end as the leaves of the packed tree are, by the names of its arrays.

    Raises:
        ValueError: If gradients in one vector would be of several dtypes.
    """
    layout = packed.layout
    names = layout.by_place(layout.structure.leaf_names())
    arrays = layout.by_place(gradients)
    for place in packed.vectors:
        for name, array in zip(names[place], arrays[place], strict=True):
            if array.dtype != arrays[place][0].dtype:
                first = {"first": names[place][0], "one": arrays[place][0].dtype}
                raise ValueError(MIXED.format(dtype=place, **first, path=name, other=array.dtype))
    vectors = {f"vectors.{place}": concatenate(arrays[place]) for place in packed.vectors}
    return {**vectors, **{f"{LARGE}.{number}": array for number, array in enumerate(arrays[LARGE])}}


def telling(parameters: Parameters) -> AbstractContextManager[Any]:
    """Tell what is called inside a ``with`` block which of the arrays of these names are shards of larger ones."""
    groups = groups_in(parameters)
    return setting(told, groups) if groups else nullcontext()


def groups_in(parameters: Parameters) -> Mapping[str, Groups]:
    """Return the groups among which the arrays of these names are divided, or nothing if none is."""
    model = parameters.model
    if not isinstance(model, Packed):
        return groups_by_name((parameters.flat or flat_of(model)).structure)
    groups = groups_by_name(model.layout.structure)
    if not groups:
        return groups
    large = enumerate(model.layout.by_place(groups.values())[LARGE])  # shards among them
    return {
        **dict.fromkeys([f"vectors.{place}" for place in model.vectors], ()),
        **{f"{LARGE}.{at}": each for at, each in large},
    }


def with_parameters(parameters: Parameters, new: Mapping[str, mx.array], last: Last | None = None, state: Any = None) -> Any:
    """Return the model with new arrays under the names given. It shares what has none.

    Args:
        parameters: The arrays of the model before.
        new: The new ones.
        last: What is known of the last step of the optimizer that made them,
        state: which was given this state.
    """
    model, flat = parameters.model, parameters.flat or flat_of(parameters.model)
    names = flat.structure.leaf_names()
    if tuple(new) == names:
        leaves = [*new.values()]
    else:
        leaves = [new.get(name, leaf) for name, leaf in zip(names, flat.leaves, strict=True)]
    if not are_arrays(leaves):
        return with_leaves(model, leaves)
    signature = None
    if last is not None and flat.signature is not None and parameters.alike is not None:
        signature = last.signature_after(flat.signature, state, leaves)
    return with_leaves_late(model, flat, leaves, signature)


# What a selection selects depends on the structure alone, unless it is a predicate, which is shown the arrays.
_masks: WeakKeyDictionary[Structure, dict[Any, list[bool]]] = WeakKeyDictionary()


def _mask(model: Any, where: Any) -> list[bool]:
    if not _is_structural(where):
        return mask(model, where)
    masks = _masks.setdefault(flat_of(model).structure, {})
    if where not in masks:
        masks[where] = mask(model, where)
    return masks[where]


def _is_structural(where: Any) -> bool:
    return isinstance(where, str | type) or (isinstance(where, tuple | frozenset) and all(map(_is_structural, where)))


def _names(model: Any) -> tuple[str, ...]:
    return flat_of(model).structure.leaf_names()


NO_GRADIENT = "there is no gradient for {path!r}, which is trainable ({array}); the gradients have {given} there"


def _check_gradient(name: str, leaf: mx.array, gradient: Any) -> None:
    if not isinstance(gradient, mx.array):
        raise ValueError(NO_GRADIENT.format(path=name, array=describe(leaf), given=describe(gradient)))
    exact = gradient.dtype != leaf.dtype and not mx.issubdtype(gradient.dtype, mx.floating)
    if gradient.shape != leaf.shape or exact:
        raise ValueError(f"the gradient for {name!r} is {describe(gradient)}, and the parameter is {describe(leaf)}")
