"""Dividing a model among ranks, and making it whole again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from ..core.arguments import require_callable
from ..core.dropped import returns_copy
from ..core.fields import persistent
from ..core.instance import Metadata
from ..core.leaves import leaf_flags
from ..core.sharing import change_modules, remade, with_leaves
from ..core.structure import flat_of
from ..core.words import describe, keystr, listed
from ..interop.convert import convert
from ..module import Module
from ..nn.distributed import (
    AllToShardedLinear,
    QuantizedAllToShardedLinear,
    QuantizedShardedToAllLinear,
    ShardedToAllLinear,
)
from ..nn.dora import DoRALinear
from ..nn.fully_sharded import FullyShardedModule
from ..nn.linear import Linear
from ..nn.lora import LoRALinear
from ..nn.quantized import QuantizedLinear
from ..nn.shards import segments_of, shard_of, whole_of, with_shards
from ..transforms.eval_shape import eval_shape
from ..transforms.group import Group, as_group, in_use
from ..transforms.shards import Segments, Shard, shards_in
from .states import OF_A_MODEL, changed, has_state, places

T = TypeVar("T")
M = TypeVar("M", bound=Module)
# Of the path and the array: the axis along which it is divided, or a pair of it and the segments, or None.
Sharding = Callable[[str, mx.array], Any]

_ADAPTED = (
    ". To divide it, make one layer of it and its adapter: model = fl.fuse(model); to train adapters of a divided model, "
    "write fl.distributed.fully_shard(model)"
)
_WAYS = ("all-to-sharded", "sharded-to-all")


@returns_copy("layer = fl.distributed.{name}(layer, ...)")
def shard_linear(module: Module, sharding: str, segments: Any = 1, group: Any = None) -> Any:
    """Return a linear layer with this rank's part of a layer, which exchanges what the ranks need of each other.

    Two of them in a row, one of each kind, exchange once in the forward pass and once in the backward pass. The layer that was
    given is as it was; as a part of a model: ``model.at("layers.*.q_proj").apply(lambda layer: shard_linear(layer, ...))``.

    Args:
        module: A :class:`~frostleaf.nn.Linear` or :class:`~frostleaf.nn.QuantizedLinear`, or one of MLX's that
            :func:`frostleaf.from_mlx` took over.
        sharding: ``"all-to-sharded"``: the input is the same on all ranks, and each has a part of the output. Or
            ``"sharded-to-all"``: each has a part of the input, and the output is the same on all.
        segments: Of what the divided axis consists, each of which is divided: a number of equal parts, such as ``3`` for
            queries, keys and values in one, or where it is cut, in parts of its length, such as ``[0.5, 0.75]``. Default:
            ``1``.
        group: The ranks. Default: all.

    Returns:
        A :class:`~frostleaf.nn.AllToShardedLinear` or :class:`~frostleaf.nn.ShardedToAllLinear`, or the like of one that is
        quantized. What was frozen is.

    Raises:
        ValueError: If the layer is of another class, if there is no such way, or the layer can't be divided.

    >>> import frostleaf as fl
    >>> type(fl.distributed.shard_linear(fl.nn.Linear(2, 4), "all-to-sharded")).__name__
    'AllToShardedLinear'
    """
    _require_way(sharding)
    layer: Any = convert(module)
    outputs = sharding == "all-to-sharded"
    if type(layer) is Linear:
        kind: Any = AllToShardedLinear if outputs else ShardedToAllLinear
        return kind.from_linear(layer, segments=segments, group=group)
    if type(layer) is QuantizedLinear:
        kind = QuantizedAllToShardedLinear if outputs else QuantizedShardedToAllLinear
        return kind.from_quantized_linear(layer, segments=segments, group=group)
    advice = _ADAPTED if isinstance(layer, LoRALinear | DoRALinear) else ""
    raise ValueError(f"shard_linear takes a Linear or a QuantizedLinear, and was given {describe(module)}{advice}")


@returns_copy("tree = fl.distributed.{name}(tree, ...)")
def shard(tree: T, sharding: str | Sharding | Module, segments: Any = 1, group: Any = None) -> T:
    """Return a tree with this rank's part of each array, as MLX's ``shard_inplace`` makes of a module.

    Nothing is exchanged in a call: the code around must know that it has parts. :func:`shard_linear` and :func:`fully_shard`
    make modules that do. Modules note how their arrays are divided, for :func:`gather` and :func:`average_gradients`, and can't
    be quantized any more: divide after that.

    Args:
        tree: Any tree. Of a module, the arrays that are saved.
        sharding: ``"all-to-sharded"``, as for :func:`shard_linear`: the axis before the last, of a bias the last. Or
            ``"sharded-to-all"``: the last axis, of a bias none. Or a function of the path of each array and the array, which
            returns the axis, or a pair of the axis and the segments, or ``None`` for an array that stays whole. Or, of the
            state of an optimizer that is whole, the divided model that the result is to be for, as ``gather(state, model)``
            takes.
        segments: Of what the divided axes consist, as for :func:`shard_linear`, where ``sharding`` is no function. Default:
            ``1``.
        group: The ranks. Default: all.

    Raises:
        ValueError: If there is no such way, the function returns something else, or an array can't be divided so; the message
            has its path.

    >>> import frostleaf as fl, mlx.core as mx
    >>> tree = {"experts": mx.ones((4, 6, 2)), "step": mx.array(0)}
    >>> fl.distributed.shard(tree, lambda path, array: 0 if array.ndim else None)["experts"].shape  # on one rank here
    (4, 6, 2)
    """
    ranks, given = as_group(group), segments_of(segments)
    if isinstance(sharding, Module) and has_state(tree):
        return changed(tree, places(sharding, _shapes_of_whole(sharding))[1], _part_of_array)  # type: ignore[no-any-return]
    if in_use and has_state(tree):
        raise ValueError(OF_A_MODEL)
    if isinstance(sharding, str):
        _require_way(sharding)
        divides: Sharding = _all_to_sharded if sharding == "all-to-sharded" else _sharded_to_all
    else:
        require_callable("sharding", sharding, "a path and an array")
        divides = sharding
    flat = flat_of(tree)
    saved, before = leaf_flags(flat.structure, persistent), shards_in(flat.structure)
    new, noted = [*flat.leaves], {}
    for number, (path, is_saved, divided) in enumerate(zip(flat.structure.leaf_paths(), saved, before, strict=True)):
        shard = _shard_for(keystr(path), new[number], divides, ranks, given) if is_saved else None
        if shard is not None:
            if divided:
                raise ValueError(_DIVIDED.format(name=keystr(path), shard=listed(map(str, divided))))
            new[number], noted[path] = shard_of(new[number], shard, keystr(path)), shard
    return with_shards(with_leaves(tree, new), noted)  # type: ignore[no-any-return]


_DIVIDED = "{name} is a shard already, {shard}: gather it first, or return None for it"
_OTHER_ANSWER = (
    "sharding returns the axis of each array, or a pair of it and the segments, or None, and returned {answer} for {name!r}"
)


def _shard_for(name: str, array: mx.array, divides: Sharding, group: Group, segments: Segments) -> Shard | None:
    """Return how an array is to be divided."""
    answer = divides(name, array)
    if answer is None:
        return None
    axis, inside = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, segments)
    if type(axis) is not int:
        raise ValueError(_OTHER_ANSWER.format(answer=describe(answer), name=name))
    return Shard(group, axis, segments_of(inside), array.ndim)


def _require_way(sharding: Any) -> None:
    if sharding not in _WAYS:
        raise ValueError(f"sharding is {' or '.join(map(repr, _WAYS))}, and was given as {describe(sharding)}")


def _all_to_sharded(name: str, array: mx.array) -> int:
    return -1 if name.endswith("bias") else max(array.ndim - 2, 0)


def _sharded_to_all(name: str, array: mx.array) -> int | None:
    return None if name.endswith("bias") else -1


def fully_shard(module: M, compute_dtype: mx.Dtype | None = None, group: Any = None) -> M:
    """Return a module of which each rank keeps a part of every array: a :class:`~frostleaf.nn.FullyShardedModule` around it.

    Where there is only one rank, or the module is one or has no arrays of its own, it is returned as it is.

    Args:
        module: The module.
        compute_dtype: The dtype in which it computes. Default: that of its arrays.
        group: The ranks. Default: all.

    Raises:
        TypeError, ValueError: As ``FullyShardedModule`` does.

    >>> import frostleaf as fl
    >>> fl.distributed.fully_shard(fl.nn.Linear(2, 4))  # on one rank here
    Linear(weight=f32[4,2], bias=f32[4])
    """
    ranks = as_group(group)
    if isinstance(module, FullyShardedModule) or (ranks.size() == 1 and isinstance(module, Module)):
        return module
    wrapped: Any = FullyShardedModule(module, ranks, compute_dtype)
    return wrapped if wrapped.divides else module


_WHOLE: dict[type, type] = {
    AllToShardedLinear: Linear,
    ShardedToAllLinear: Linear,
    QuantizedAllToShardedLinear: QuantizedLinear,
    QuantizedShardedToAllLinear: QuantizedLinear,
}


def gather(tree: T, model: Any = None) -> T:
    """Return a tree with whole arrays and whole layers again, on all ranks.

    The opposite of :func:`shard_linear`, :func:`shard` and :func:`fully_shard`, segments included, for models, gradients and
    whatever else has the structure of a model. Arrays that :func:`shard` divided outside any module stay as they are. All ranks
    must call it with trees of the same structure. What each rank has computed of its own is put together by :func:`all_gather`.

    Args:
        tree: Any tree. Arrays that are no shards stay the same objects.
        model: If ``tree`` is the state of an optimizer, or has such states in it: the divided model that it is for. The result
            is one for ``gather(model)``, and is divided again by ``shard(state, model)``.

    Raises:
        ValueError: If there is a state without a model, on several ranks, or it is not one for that model, or one of
            :func:`frostleaf.optim.shard`, which has its own ``gather``; or of a stack of divided models, whose arrays have an
            axis more than was divided: ``fl.vmap(fl.distributed.gather)(stack)`` gathers each.

    >>> import frostleaf as fl
    >>> fl.distributed.gather(fl.nn.AllToShardedLinear(2, 4))
    Linear(weight=f32[4,2], bias=f32[4])
    """
    flat = flat_of(tree)
    if model is not None:
        return changed(tree, places(model, _shapes_of_whole(model))[0], _whole_array)  # type: ignore[no-any-return]
    if in_use and has_state(tree):
        raise ValueError(OF_A_MODEL)
    divided = shards_in(flat.structure)
    leaves = [*flat.leaves]
    for number, (name, shards) in enumerate(zip(flat.structure.leaf_names(), divided, strict=True)):
        leaves[number] = _whole_array(leaves[number], shards, name)
    at = zip(flat.structure.leaf_paths(), divided, strict=True)
    whole = with_shards(with_leaves(tree, leaves), {path: None for path, shards in at if shards})
    return change_modules(whole, _whole)  # type: ignore[no-any-return]


def _shapes_of_whole(model: Any) -> Any:
    return gather(eval_shape(lambda: model))


_A_STACK = (
    "can't gather {name}, {array}: each rank has its part of an array of {ndim} axes. Of a stack of divided models, as "
    "fl.tree.stack makes it, gather each: write fl.vmap(fl.distributed.gather)(stack)"
)


def _whole_array(array: Any, shards: Sequence[Shard], name: str) -> Any:
    for shard in shards:
        if shard.ndim not in (None, array.ndim):
            raise ValueError(_A_STACK.format(name=name or "the array", array=describe(array), ndim=shard.ndim))
        array = whole_of(array, shard)
    return array


def _part_of_array(array: Any, shards: Sequence[Shard], name: str) -> Any:
    for shard in reversed(shards):
        array = shard_of(array, shard, name)
    return array


def _whole(module: Any, metadata: Metadata, children: Sequence[Any]) -> Any:
    if isinstance(module, FullyShardedModule):
        _require_no_stack(children[0], metadata.static["ndims_inside"])
        return children[0]
    kind: Any = _WHOLE.get(type(module))
    if kind is None:
        return remade(module, metadata, children)
    definition = kind.__frostleaf__
    static = {name: metadata.static[name] for name in definition.static}
    by_name = dict(zip(module.__frostleaf__.children, children, strict=True))
    whole = Metadata(static, metadata.training, metadata.frozen, metadata.ties)
    return definition.assemble(whole, [by_name[name] for name in definition.children])


def _require_no_stack(module: Any, ndims: Sequence[int]) -> None:
    if FullyShardedModule.stacked_axes(module, ndims):
        flat = flat_of(module)
        raise ValueError(_A_STACK.format(name=flat.structure.leaf_names()[0], array=describe(flat.leaves[0]), ndim=ndims[0]))
