"""An optimizer that updates many small arrays as one."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import attrs
import mlx.core as mx
import mlx.optimizers

from ..display.text import text
from ..edits.freezing import trainable
from ..fields import static
from ..node import Node
from ..tree.compare import describe
from ..tree.functions import aligned, dotted, leaves, map_with_path, paths
from ..tree.vectors import laid_end_to_end
from .optimizer import NOT_A_STATE, NOTHING_TO_TRAIN, OTHER_STATE, Optimizer, OptimizerState, check_gradient
from .packing import LARGE, REST, Packed, check_size, pack

T = TypeVar("T")

ELEMENTWISE = {
    mlx.optimizers.SGD,
    mlx.optimizers.RMSprop,
    mlx.optimizers.Adagrad,
    mlx.optimizers.AdaDelta,
    mlx.optimizers.Adam,
    mlx.optimizers.AdamW,
    mlx.optimizers.Adamax,
    mlx.optimizers.Lion,
}

NOT_AN_OPTIMIZER = "fl.optim.flatten takes an optimizer of fl.optim, and was given {given}"
NOT_ELEMENTWISE = (
    "{rule} can't be flattened: it is not known to update every number by itself, whatever array the number is in, as {known} "
    "do. If yours does, say fl.optim.flatten(opt, elementwise=True)"
)
MIXED = "the gradients for the packed {dtype} parameters must be of one dtype, and {first!r} is {one} while {path!r} is {other}"


@attrs.frozen
class _Trained:
    """Which arrays are trained: of each its dotted path, where it is packed, and its shape."""

    arrays: tuple[tuple[str, str, tuple[int, ...]], ...]

    def __repr__(self) -> str:
        return f"({len(self.arrays)} arrays)"


class FlattenedState(OptimizerState):
    """What a flattened optimizer remembers, and of which arrays: vectors of one length can be made of very different ones.

    Attributes:
        trained: The arrays that the vectors and the large arrays of the packed model are.
    """

    trained: _Trained = static()


class Flattened(Node):
    """An optimizer that works on packed arrays, as made by :func:`flatten`."""

    optimizer: Optimizer
    max_size: int = static()

    def __init__(self, optimizer: Optimizer, max_size: int) -> None:
        self.optimizer, self.max_size = optimizer, max_size

    def init(self, model: Any) -> FlattenedState:
        """Return the state with which to begin training a model, packed or not. The state is for its packed form.

        Raises:
            ValueError: If there is nothing to train.

        >>> import frostleaf as fl
        >>> fl.optim.flatten(fl.optim.Adam(1e-3)).init(fl.nn.Linear(2, 3)).slots["vectors.float32"]["m"].shape
        (9,)
        """
        packed = pack(model, self.max_size)
        arrays = _parameters(packed)
        if not arrays:
            raise ValueError(NOTHING_TO_TRAIN.format(tree=type(model).__name__, optimizer=type(self).__name__))
        state = self.optimizer.init(arrays)
        return FlattenedState(state.step, state.hyperparameters, state.slots, _which(packed))

    def update(self, model: T, grads: Any, state: FlattenedState) -> tuple[T, FlattenedState]:
        """Return the model after one step, packed if it was, and the state after it.

        Args:
            model: The tree that ``state`` was made for, or its packed form.
            grads: The gradients of the tree, not packed.
            state: As returned by :meth:`init`, or by the update before.

        Raises:
            TypeError: If ``state`` is not the state of a flattened optimizer.
            ValueError: If the gradients or the state don't belong to the model; the message names paths.

        >>> import frostleaf as fl, mlx.core as mx
        >>> opt, params = fl.optim.flatten(fl.optim.SGD(0.5)), {"v": mx.array(1.0), "w": mx.array([3.0, 4.0])}
        >>> opt.update(params, {"v": mx.array(2.0), "w": mx.array([0.0, 1.0])}, opt.init(params))[0]
        {'v': array(0, dtype=float32), 'w': array([3, 3.5], dtype=float32)}
        """
        if not isinstance(state, FlattenedState):
            raise TypeError(NOT_A_STATE.format(optimizer=type(self).__name__, given=describe(state)))
        packed: Packed[Any] = pack(model, self.max_size)
        differences = _differences(_which(packed), state.trained)
        if differences:
            raise ValueError(OTHER_STATE.format(optimizer=type(self).__name__, differences=differences))
        arrays, gradients = _parameters(packed), _gradients(packed, grads)
        after, now = self.optimizer.update(arrays, {name: gradients[name] for name in arrays}, state)
        new = map_with_path(lambda name, leaf: after.get(name, leaf), packed)
        new_state = state.replace(step=now.step, hyperparameters=now.hyperparameters, slots=now.slots)
        return cast(T, new if packed is model else new.unpack()), new_state

    def __repr__(self) -> str:
        return text(self)


def flatten(opt: Optimizer, *, max_size: int = 4096, elementwise: bool | None = None) -> Flattened:
    """Return an optimizer that updates the small arrays of a model together, and computes the same.

    They are laid end to end, one vector for each dtype, in its state and while it updates: for many small arrays a step hands
    over less and has fewer kernels to start. A model that stays packed from step to step, see :func:`pack`, saves most.

    Args:
        opt: An optimizer whose rule updates every number by itself: SGD, RMSprop, Adagrad, AdaDelta, Adam, AdamW, Adamax, Lion.
        max_size: Arrays of more elements are left alone, see :func:`pack`, which has to be given the same. Default: ``4096``.
        elementwise: Whether the rule updates every number by itself, for a rule of your own. Default: known for MLX's.

    Raises:
        TypeError: If ``opt`` is something else.
        ValueError: If its rule is not elementwise, or ``max_size`` is not a number of elements.

    >>> import frostleaf as fl
    >>> fl.optim.flatten(fl.optim.SGD(0.1))
    Flattened(optimizer=SGD(rule=SGD, args=(0.1, 0.0, 0.0, 0.0, False), kwargs={}), max_size=4096)
    """
    if not isinstance(opt, Optimizer):
        raise TypeError(NOT_AN_OPTIMIZER.format(given=describe(opt)))
    if not (opt.rule in ELEMENTWISE if elementwise is None else elementwise):
        known = ", ".join(sorted(rule.__name__ for rule in ELEMENTWISE))
        raise ValueError(NOT_ELEMENTWISE.format(rule=opt.rule.__name__, known=known))
    check_size(max_size)
    return Flattened(opt, max_size)


def _parameters(packed: Packed[Any]) -> dict[str, mx.array]:
    """Return the vectors and the large arrays by path, but for those that are frozen."""
    named = zip(paths(packed), leaves(packed), trainable(packed), strict=True)
    return {name: leaf for name, leaf, trains in named if trains}


def _gradients(packed: Packed[Any], grads: Any) -> dict[str, mx.array]:
    """Return the gradients laid end to end as the arrays are, by path."""
    layout, tree = packed.layout, packed.unpack()
    names = [dotted(path) for path in layout.structure.leaf_paths()]
    found = aligned(tree, grads, "the gradient")
    for name, leaf, place, gradient in zip(names, leaves(tree), layout.places, found, strict=True):
        if place != REST:
            check_gradient(name, leaf, gradient)
    named, divided = layout.divided(names), layout.divided(found)
    for place in packed.vectors:
        for name, array in zip(named[place], divided[place], strict=True):
            if array.dtype != divided[place][0].dtype:
                first = {"first": named[place][0], "one": divided[place][0].dtype}
                raise ValueError(MIXED.format(dtype=place, **first, path=name, other=array.dtype))
    vectors = {f"vectors.{place}": laid_end_to_end(divided[place]) for place in packed.vectors}
    return {**vectors, **{f"{LARGE}.{number}": array for number, array in enumerate(divided[LARGE])}}


def _which(packed: Packed[Any]) -> _Trained:
    layout = packed.layout
    arrays = zip(map(dotted, layout.structure.leaf_paths()), layout.places, layout.shapes, strict=True)
    return _Trained(tuple([array for array in arrays if array[1] != REST]))


def _differences(expected: _Trained, given: _Trained) -> str:
    """Return in words how the arrays of a model differ from those that a state is for; nothing if they don't."""
    if expected == given:
        return ""
    here, there = ({name: f"{place} {shape}" for name, place, shape in each.arrays} for each in (expected, given))
    found = [f"{name!r} is not trainable" for name in there.keys() - here.keys()]
    found += [f"{name!r} has no state" for name in here.keys() - there.keys()]
    both = here.keys() & there.keys()
    found += [f"{name!r} is in {here[name]} and was in {there[name]}" for name in both if here[name] != there[name]]
    found = sorted(found) or ["the order of its arrays"]
    return "; ".join(found[:6]) + "; ..." * (len(found) > 6)
