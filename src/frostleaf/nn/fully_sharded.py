"""A module of which each rank has a part of every array, and all of them while it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import mlx.core as mx

from ..core.construction import evolve
from ..core.definition import Node
from ..core.fields import static
from ..core.instance import Metadata
from ..core.sharing import with_leaves
from ..core.structure import Structure, flat_of
from ..core.words import describe
from ..edits.freezing import trainable
from ..module import Module
from ..transforms.collectives import all_gather, sum_scatter
from ..transforms.group import Group, as_group
from ..transforms.shards import Shard
from ..transforms.stateful import record_edit, recorded, recording, stateful
from ..transforms.vmap import mapping
from .shards import Sharded, saved_leaves, shard_of

# Shards of so many bytes are gathered alone: laying them end to end with others takes more time, and memory, than it saves.
_ALONE = 2**18


_INSIDE = (
    "what it divides is in .module, so write .module.{name}, of which each rank has its part if it is an array. Where other "
    "code reads it of this layer, divide what is inside instead: model.at('layers.*.mlp').apply(fl.distributed.fully_shard)"
)
_BY_LAYERS = (
    ". Divide only layers that can be, which also takes less memory: model.at('layers.*').apply(fl.distributed.fully_shard)"
)


_A_STACK = (
    "a FullyShardedModule holds the arrays of a stack, {module}, and can't tell which axis is divided. Of a stack of models, "
    "as fl.tree.stack makes it, divide and call each: stack = fl.vmap(fl.distributed.fully_shard)(stack), then "
    "fl.vmap(call)(stack, x)"
)


class FullyShardedModule(Sharded):
    r"""Hold a part of each array of a module, and put the whole together in each call.

    Each of :math:`N` ranks has :math:`1 / N` of the first axis of each array that :meth:`Module.parameters` returns. A call
    gathers the arrays from all ranks, runs the module with them, and drops them. The backward pass adds up the gradients of all
    ranks, which see different data, and returns this rank's part of the mean: :math:`g = \frac{1}{N} \sum_r g_r`. So each rank
    trains, and keeps optimizer state for, its part only. What MLX calls ``sum_scatter``, which its ring backend lacks, is a sum
    of which a rank takes its part. Rajbhandari et al., `ZeRO <https://arxiv.org/abs/1910.02054>`_ (stage 3).

    Modules of this class inside the module gather their arrays themselves, when they are called: one around each layer keeps
    one layer whole at a time. A backward pass needs all of them again, which are kept for it unless the layers are called by
    :func:`frostleaf.checkpoint`. Arrays of different dtypes are gathered apart, and each comes out in its own.
    :func:`frostleaf.distributed.fully_shard` wraps a module only where there is more than one rank.

    Buffers that the module records in a call (statistics of a batch norm) are each rank's own, of which it keeps its part.

    Args:
        module: The module.
        group: The ranks. Default: all.
        compute_dtype: The floating-point dtype to which floating-point arrays are cast before they are gathered. Default: as
            they are.

    Raises:
        TypeError: If ``module`` is no module of frostleaf, or ``compute_dtype`` no floating-point dtype.
        ValueError: If an array has no axis, or its first can't be divided by the number of ranks. In a call, if its arrays are
            those of a stack.

    >>> import frostleaf as fl, mlx.core as mx
    >>> layer = fl.nn.FullyShardedModule(fl.nn.Linear(3, 2))  # on one rank here
    >>> layer(mx.ones((5, 3))).shape, fl.tree.paths(layer)
    ((5, 2), ['module.weight', 'module.bias'])
    """

    axes: ClassVar[Mapping[str, int]] = {"module": 0}
    records_inside: ClassVar[bool] = True

    module: Any
    group: Group = static()
    compute_dtype: mx.Dtype | None = static()
    # How many axes each array has in a call.
    ndims_inside: tuple[int, ...] = static()

    def __init__(self, module: Module, group: Any = None, compute_dtype: mx.Dtype | None = None) -> None:
        if not isinstance(module, Node):
            raise TypeError(f"FullyShardedModule takes a module of frostleaf, and was given {describe(module)}")
        if compute_dtype is not None and not (
            isinstance(compute_dtype, mx.Dtype) and mx.issubdtype(compute_dtype, mx.floating)
        ):
            raise TypeError(f"compute_dtype is a floating-point mx.Dtype or None, and was given as {describe(compute_dtype)}")
        self.group, self.compute_dtype = as_group(group), compute_dtype
        self.module = self._divided(module)
        self.ndims_inside = tuple([leaf.ndim for leaf in flat_of(module).leaves])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._with_whole(lambda module: module, args, kwargs)

    def as_linear(self, *args: Any, **kwargs: Any) -> Any:
        """Return what ``as_linear`` of the module does, as an :class:`Embedding` has it.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.FullyShardedModule(fl.nn.Embedding(9, 4)).as_linear(mx.ones((5, 4))).shape
        (5, 9)
        """
        return self._with_whole(lambda module: module.as_linear, args, kwargs)

    @classmethod
    def _instead_of_reading(cls, name: str) -> str | None:
        return super()._instead_of_reading(name) or (None if name.startswith("_") else _INSIDE.format(name=name))

    @staticmethod
    def stacked_axes(module: Any, ndims: Sequence[int]) -> int:
        """Return how many axes all arrays of the module inside have more than when it was divided: those of a stack."""
        found = {leaf.ndim - ndim for leaf, ndim in zip(flat_of(module).leaves, ndims, strict=False)}
        return found.pop() if len(found) == 1 else 0  # otherwise something was put in its place

    def _shown_fields(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in ("module", "group", "compute_dtype")]

    @property
    def divides(self) -> bool:
        """Whether there are arrays that this module divides, and not one inside."""
        return any(flat_of(self.module).structure.remember(_divided_leaves))

    @classmethod
    def _shards_below(cls, metadata: Metadata, name: str, around: tuple[Shard, ...]) -> tuple[Shard, ...]:
        # In another of this class, that one leaves the arrays here alone.
        return super()._shards_below(metadata, name, ())

    def _divided(self, module: Any) -> Any:
        """Return a module with this rank's part of each array."""
        flat = flat_of(module)
        places = zip(flat.structure.leaf_names(), flat.leaves, flat.structure.remember(_divided_leaves), strict=True)
        shard = Shard(self.group, 0)
        return with_leaves(module, [shard_of(leaf, shard, name, _BY_LAYERS) if own else leaf for name, leaf, own in places])

    def _whole(self, module: Any, given: Sequence[mx.array]) -> Any:
        """Return the module with whole arrays, which are gathered once the arrays given are there."""
        if self.stacked_axes(module, self.ndims_inside):
            raise ValueError(_A_STACK.format(module=describe(module)))
        flat = flat_of(module)
        leaves, own = [*flat.leaves], flat.structure.remember(_divided_leaves)
        # What is gathered in one exchange: what is trained or not, whose gradients are exchanged or not, in one dtype.
        together: dict[Any, list[int]] = {}
        for number, (leaf, trained) in enumerate(zip(leaves, trainable(module), strict=True)):
            if own[number]:
                alone = number if leaf.nbytes >= _ALONE else None
                together.setdefault((leaf.dtype, trained, alone), []).append(number)
        for (dtype, _, _), numbers in together.items():
            cast = self.compute_dtype if mx.issubdtype(dtype, mx.floating) else None
            shards = [leaves[number] for number in numbers]
            # Otherwise MLX, which follows each exchange back to the one before, gathers the arrays of all layers first.
            waiting = mx.depends(shards, [mx.stop_gradient(each) for each in given]) if given else shards
            wholes = _gathering(self.group, cast or dtype)(waiting)
            for number, whole in zip(numbers, wholes, strict=True):
                leaves[number] = whole
        return with_leaves(module, leaves)

    def _with_whole(self, method: Callable[[Any], Any], args: Any, kwargs: Any) -> Any:
        module = recorded(self).module  # with what it recorded in an earlier call
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, mx.array) and not mapping()]
        whole = self._whole(module, given)
        if not recording():
            return method(whole)(*args, **kwargs)
        out, after = stateful(method(whole), *args, **kwargs)
        if after is not whole:
            record_edit(self, evolve(self, {"module": self._divided_again(module, whole, after)}))
        return out

    def _divided_again(self, module: Any, whole: Any, after: Any) -> Any:
        """Return what the whole module has become, divided, with the arrays of ``module`` where they are the same."""
        same = {id(each): own for each, own in zip(flat_of(whole).leaves, flat_of(module).leaves, strict=True)}
        flat = flat_of(after)
        places = zip(flat.structure.leaf_names(), flat.leaves, flat.structure.remember(_divided_leaves), strict=True)
        new = [
            same[id(leaf)] if id(leaf) in same else shard_of(leaf, Shard(self.group, 0), name) if own else leaf
            for name, leaf, own in places
        ]
        return with_leaves(after, new)


def _divided_leaves(structure: Structure) -> tuple[bool, ...]:
    """Return for each leaf of a module whether it is divided: it is saved, and not in another module that is fully sharded."""
    return tuple(saved_leaves(structure, FullyShardedModule))


@functools.cache
def _gathering(group: Group, dtype: mx.Dtype) -> Callable[..., Any]:
    """Return a function that gathers arrays of one dtype, in a dtype, in one exchange.

    Its gradient is this rank's part of the mean of those of all ranks, in the dtype of the arrays given.
    """
    ranks = group.size()
    if ranks == 1:
        return lambda shards: [shard.astype(dtype) for shard in shards]

    @mx.custom_function
    def gather(shards: Any) -> Any:
        row = mx.concatenate([shard.astype(dtype).reshape(1, -1) for shard in shards], axis=1)
        parts = _split_like(all_gather(row, group), shards)
        return [part.reshape(ranks * len(shard), *shard.shape[1:]) for part, shard in zip(parts, shards, strict=True)]

    @gather.vjp
    def scatter(shards: Any, gradients: Any, _: Any) -> Any:
        rows = mx.concatenate([gradient.reshape(ranks, -1) for gradient in gradients], axis=1)
        mean = sum_scatter(rows, group) / ranks
        parts = _split_like(mean, shards)
        return [part.reshape(shard.shape).astype(shard.dtype) for part, shard in zip(parts, shards, strict=True)]

    @gather.vmap
    def gather_mapped(shards: Any, axes: Any) -> Any:
        # Ranks divide the first axis, so the mapped one goes last.
        moved = [each if axis is None else mx.moveaxis(each, axis, -1) for each, axis in zip(shards, axes, strict=True)]
        wholes: Any = gather(moved)
        return wholes, [None if axis is None else whole.ndim - 1 for whole, axis in zip(wholes, axes, strict=True)]

    return gather


def _split_like(rows: mx.array, shards: Sequence[mx.array]) -> Any:
    """Return the columns of each array in rows of them all."""
    ends = [*accumulate(shard.size for shard in shards)]
    return mx.split(rows, ends[:-1], axis=1)
