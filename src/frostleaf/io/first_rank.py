"""What rank 0 does for all ranks of a group, which need no disk in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

import mlx.core as mx

from ..core.structure import Structure, flat_of
from ..transforms import collectives
from ..transforms.agreement import Said, agreed
from ..transforms.group import Group
from ..transforms.peers import noticing, waiting
from ..transforms.shards import shards_in
from .description import describe_tree
from .directory import NoCheckpointError
from .partial import LoadReport
from .placing import Read
from .safetensors import CheckpointError
from .scalars import decode_value, encode_value
from .trees import OtherStructureError

J = TypeVar("J")

# The errors that other ranks raise as rank 0 does; another counts as the first of its bases.
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        NoCheckpointError, OtherStructureError, CheckpointError, FileExistsError, FileNotFoundError, PermissionError, OSError,
        LookupError, TypeError, ValueError, RuntimeError, Exception,
    )
}  # fmt: skip


def by_first(group: Group | None, fn: Callable[[], J]) -> J:
    """Return what a function returns on rank 0, or raise what it raises, on all ranks; without a group, call it.

    It returns what JSON can hold, which is what others get.
    """
    if group is None:
        return fn()
    done, kind, said = None, "", ""
    failed: Exception | None = None
    if group.rank() == 0:
        try:
            done = fn()
        except Exception as error:
            failed, said = error, str(error)
            kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in _KINDS)
    kind, said, result = json.loads(_sent(json.dumps([kind, said, done]), group))
    if failed is not None:
        raise failed
    if kind:
        raise _KINDS[kind](said)
    return cast(J, result)


def read_by_first(group: Group | None, like: Any, read: Callable[[], tuple[int, Read]]) -> tuple[int, Read]:
    """Return a step and what rank 0 has read of its checkpoint for a tree, on all ranks. Arrays are sent one by one."""
    if group is None:
        return read()
    own: list[mx.array] = []

    def told() -> Any:
        step, found = read()
        own.extend(found.arrays)
        objects = [*dict.fromkeys(map(id, own))]
        places = [objects.index(id(array)) for array in own] if len(objects) < len(own) else [*range(len(own))]
        return step, places, [*map(encode_value, found.values)], found.names, found.report

    step, places, values, names, report = by_first(group, told)
    flat = flat_of(like)
    by_name = dict(zip(flat.structure.leaf_names(), flat.leaves, strict=True)) if names is not None else {}
    likes = flat.leaves if names is None else [by_name[name] for name in names[: len(places)]]
    arrays: dict[int, mx.array] = {}
    for number, (place, kind) in enumerate(zip(places, likes, strict=True)):
        if place not in arrays:
            mine = own[number] if own else mx.zeros(kind.shape, kind.dtype)
            arrays[place] = _received(mine, group)
    given = None if report is None else LoadReport(*map(tuple, report))
    return step, Read(own or [arrays[place] for place in places], [decode_value(*each) for each in values], names, given)


def require_alike(name: str, group: Group | None, said: Callable[[], Said], advice: str = "") -> None:
    """Require that all ranks of a group call a method with the same arguments.

    Raises:
        ValueError: On every rank, if they don't, or what says the arguments fails.
    """
    if group is not None:
        agreed(f"Checkpointer.{name}", group, lambda: (None, {**said(), "the method": name}), advice)


_A_SHARD = (
    "{path} is a shard of a larger array, {shard}, of which rank 0 would save its own alone: save "
    "fl.distributed.gather(tree), which all ranks call"
)


def said_of(tree: Any, whole: bool = False) -> Said:
    """Return what a tree is, by path.

    Raises:
        TypeError: If it can't be saved.
        ValueError: If it is to be whole, and has shards.
    """
    flat = flat_of(tree)
    if whole:
        _require_whole(flat.structure)
    facts = describe_tree(flat.structure, flat.leaves).facts
    return {f"{fact.path or '(root)'}{fact.aspect and f' ({fact.aspect})'}": fact.text for fact in facts}


def _require_whole(structure: Structure) -> None:
    for path, shards in zip(structure.leaf_names(), shards_in(structure), strict=True):
        for shard in shards:
            if shard.group.size() > 1:
                raise ValueError(_A_SHARD.format(path=path or "the array", shard=shard))


def _sent(text: str, group: Group) -> str:
    """Return the text of rank 0."""
    data = text.encode()
    length = _received(mx.array(len(data), mx.uint64), group).item()
    sent = data if group.rank() == 0 else bytes(cast(int, length))
    return bytes(_received(mx.array([*sent], mx.uint8), group).tolist()).decode()  # type: ignore[arg-type]


def _received(array: mx.array, group: Group) -> mx.array:
    if not array.size:
        return array
    received = collectives.broadcast(array, 0, group)
    with noticing(), waiting():
        mx.eval(received)
    return received
