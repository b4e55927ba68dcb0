"""Trees that are to be the same on all ranks."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import mlx.core as mx

from ..core.words import describe, keystr
from ..nn.shards import groups_of
from ..transforms import collectives
from ..transforms.agreement import Apart, Said, agreed, taken_apart
from ..transforms.collectives import AnyGroup
from ..transforms.group import as_group
from ..tree.functions import unflatten

T = TypeVar("T")

GIVE_ALIKE = (
    ". Ranks that have no arrays of their own give shapes, fl.eval_shape(Model); a number is sent as an array, mx.array(n)"
)


def broadcast(tree: T, src: int = 0, group: AnyGroup = None) -> T:
    """Return the arrays of one rank on all of them, bit for bit.

    ``model = fl.distributed.broadcast(model)`` has all ranks begin with the same model, whatever they have drawn. What
    is sent is a constant for derivatives.

    Args:
        tree: A tree of arrays, with the same shapes and dtypes on all ranks. Ranks other than ``src`` may give shapes,
            ``fl.eval_shape(Model)``, and so need not make arrays of their own.
        src: The rank whose arrays are sent. Default: ``0``.
        group: The ranks. Default: those of the whole job.

    Raises:
        ValueError: On every rank, if ``src`` is no rank or not the same on all, or trees are unlike, in the numbers and strings
            in them too, or hold shards of larger arrays; the message names the paths.
        TypeError: If there is one process, and a leaf is a shape without values.

    >>> import frostleaf as fl, mlx.core as mx
    >>> fl.distributed.broadcast([mx.array([1, 2]), None])
    [array([1, 2], dtype=int32), None]
    """
    group = as_group(group)

    def prepare() -> tuple[Apart, Said]:
        if type(src) is not int or not 0 <= src < group.size():
            raise ValueError(f"src is the rank that sends, from 0 to {group.size() - 1}, and was given as {describe(src)}")
        apart, said = taken_apart("broadcast", tree, shapes=group.rank() != src)
        shard = next((path for path, groups in zip(apart.names, groups_of(tree), strict=True) if group in (groups or ())), None)
        if shard is not None:
            raise ValueError(f"{shard} is a shard, of which each rank has its own: broadcast the whole model, then divide it")
        return apart, {"src": str(src), **said}

    leaves, structure, _ = agreed("broadcast", group, prepare, GIVE_ALIKE)
    if group.size() == 1:
        return tree
    sent: T = unflatten(structure, [collectives.broadcast(leaf, src, group) for leaf in leaves])
    return sent


def require_same(tree: Any, group: AnyGroup = None) -> None:
    """Require that a tree is the same on all ranks, bit for bit, but for shards of larger arrays. All others are evaluated.

    Args:
        tree: Any tree, such as a model and the state of its optimizer.
        group: The ranks. Default: those of the whole job.

    Raises:
        ValueError: On every rank, if it is not; the message names the paths that differ.
        TypeError: If there is one process, and a leaf is a shape without values.

    >>> import frostleaf as fl
    >>> fl.distributed.require_same(fl.nn.Linear(2, 3))
    """
    group = as_group(group)

    def prepare() -> tuple[None, Said]:
        (leaves, structure, names), said = taken_apart("require_same", tree)
        if group.size() == 1:
            return None, {}
        static = {keystr(path): describe(value) for path, value in structure.static_values()}
        arrays = zip(names, leaves, groups_of(tree), strict=True)
        same = {path: f"{said[path]} with hash {_hash(leaf)}" for path, leaf, groups in arrays if group not in (groups or ())}
        return None, {**static, **same}

    agreed("require_same", group, prepare)


def _hash(array: mx.array) -> str:
    return hashlib.blake2b(memoryview(array.reshape(-1).view(mx.uint8)), digest_size=8).hexdigest()  # type: ignore[arg-type]
