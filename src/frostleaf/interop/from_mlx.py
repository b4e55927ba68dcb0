"""Bringing a model of ``mlx.nn`` into a tree."""

from __future__ import annotations

import warnings
from typing import Any

from mlx.nn.layers.base import Module as MLXModule
from mlx.utils import tree_flatten

from ..core.instance import Instance
from ..core.kept import COMPILED
from ..core.words import describe, level_of_caller, listed
from .convert import in_order
from .freezing import Freezer, handle_of
from .layout import is_module
from .surface import class_for

NO_MODULE = "fl.from_mlx takes a module of mlx.nn, and was given {given}"
OTHERS_TRAINED = (
    "{cls} has a trainable_parameters() of its own, without {left}, by which nn.value_and_grad goes. fl.grad trains all that "
    "is not frozen: freeze the others before fl.from_mlx, as in module.body.freeze(), or after, as in model.at(...).freeze()"
)


def from_mlx(module: MLXModule) -> Any:
    """Make a frozen tree of a module of ``mlx.nn``, whatever its class.

    The tree has the module's names as paths, the memory of its arrays, and its modes and frozen parameters. It is called like
    the module, and has its methods and attributes: the original code runs, in the original class. What code changes in a call
    is dropped, or comes back from :func:`frostleaf.stateful`. Neither the tree nor the module sees what is done to the other.

    A call that changes what is dropped warns with an :class:`UncollectedStateWarning`. Of attributes whose names begin with
    ``_``, which are mostly tables and memos that the next call makes again, it does so only for what goes on from one call to
    the next: arrays computed from what was there and from the arguments, and numbers that the code of the class adds to
    (``self._n += 1``, ``self._n["seen"] += 1``, ``setattr(self, name, getattr(self, name) + 1)``). Not told from a memo, and
    dropped without a word, are private values that are only assigned (``self._done = True``), what is put in a private list,
    dict or set without being such an array or number, and numbers counted through another name (``n = self._n; n[0] += 1``)
    or by code that is not of the class. :func:`frostleaf.stateful` returns all of these.

    What a call leaves in an attribute for its caller, such as an auxiliary loss, is in the model that :func:`stateful` returns,
    and not in the one that was called. While a function of the model runs in :func:`stateful`, :func:`recorded` returns the
    model with it. Where such an attribute is read from the tree that was called, a warning says so.

    >>> import frostleaf as fl, mlx.core as mx, mlx.nn as nn
    >>> class Routed(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner, self.aux_loss = nn.Linear(2, 2), 0.0
    ...     def __call__(self, x):
    ...         y = self.inner(x)
    ...         self.aux_loss = y.square().mean()
    ...         return y
    >>> def loss_fn(model, x):
    ...     y, model = fl.stateful(model, x)
    ...     return y.mean() + model.aux_loss
    >>> loss, gradients = fl.value_and_grad(loss_fn)(fl.from_mlx(Routed()), mx.ones((3, 2)))
    >>> def same_loss_fn(model, x):
    ...     return model(x).mean() + fl.recorded(model).aux_loss
    >>> loss, model = fl.stateful(same_loss_fn, fl.from_mlx(Routed()), mx.ones((3, 2)))

    A module at two places is one: the other place is tied to the one whose arrays are trained, and an edit of either is made at
    both. An array that is at two places by itself has two leaves, since MLX trains them apart from the first step on; to train
    them as one, :meth:`Module.tie` them. Arrays whose names begin with ``_`` are leaves, and neither trained, cast nor saved.
    What hides behind one of the names of :class:`frostleaf.Module` is in ``.mlx``.

    A layer of the tree is no instance of its class in MLX, which is its ``__mlx__``: select by that class
    (``model.at(nn.Linear)``), or ask ``issubclass(layer.__mlx__, nn.Linear)``.

    Layers that MLX's ``shard_linear`` or mlx-lm's ``model.shard(group)`` divided come as those of ``frostleaf.nn``, such as
    :class:`frostleaf.nn.AllToShardedLinear`: MLX's exchange whenever their results are computed, these in the order of the
    program, and they tell that their arrays are shards. What ``shard_inplace`` divided doesn't tell, nor what was divided in
    segments in which: take the whole model over, then divide it.

    Since arrays with ``_`` are not cast, a float32 mask in one (``self._mask``) is too wide for attention in half precision,
    and MLX says "Mask type must promote": after :meth:`Module.astype` and in a :class:`frostleaf.Policy`, as after MLX's
    ``set_dtype``. Cast such an array by its path: ``model.at("_mask").apply(lambda mask: mask.astype(mx.float16))``.

    Args:
        module: An instance of ``mlx.nn.Module``.

    Warns:
        UserWarning: If its class has a ``trainable_parameters`` of its own that leaves out what is not frozen.

    Raises:
        TypeError: If it is something else.
        ValueError: If a module holds itself or what is above it, or a function with a module in its closure, or arrays in a
            dict or list of a class of its own that has attributes beside its items.

    >>> import frostleaf as fl, mlx.core as mx, mlx.nn as nn
    >>> model = fl.from_mlx(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    >>> model
    Sequential(layers=(Linear(weight=f32[3,2], bias=f32[3]), Linear(weight=f32[1,3], bias=f32[1])))
    >>> model(mx.ones((4, 2))).shape, model.at(nn.Linear).paths()
    ((4, 1), ['layers.0', 'layers.1'])
    >>> [path for path, layer in model.named_modules() if issubclass(layer.__mlx__, nn.Linear)]
    ['layers.1', 'layers.0']
    >>> half = model.at("layers.0").astype(mx.float16)
    >>> half.layers[0].weight.dtype, model.layers[0].weight.dtype
    (mlx.core.float16, mlx.core.float32)
    """
    if not is_module(module):
        raise TypeError(NO_MODULE.format(given=_given(module)))
    tree = in_order(Freezer(class_for, handle_of).tree(module))
    base, kind = MLXModule.trainable_parameters, type(module).trainable_parameters
    if kind is not base:
        own, others = (_names(method, module) for method in (kind, base))
        if left := [name for name in others if name not in own]:
            message = OTHERS_TRAINED.format(cls=type(module).__name__, left=listed(left, 3))
            warnings.warn(message, stacklevel=level_of_caller())
    return tree


def _names(method: Any, module: MLXModule) -> dict[str, Any]:
    return dict(tree_flatten(method(module)))


def _given(value: Any) -> str:
    if isinstance(value, type) and issubclass(value, MLXModule):
        return f"the class {value.__name__}: give it an instance"
    if isinstance(value, Instance):
        return f"a {type(value).__name__}, which is a frozen tree already"
    if isinstance(value, COMPILED):
        return "a function that MLX made of another: give it the module itself"
    return describe(value)
