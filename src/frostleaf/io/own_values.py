"""The bytes of arrays that rank 0 is to save for all ranks, which must be those that the others have."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, NamedTuple, cast

import mlx.core as mx

from ..core.structure import flat_of
from ..transforms.collectives import all_gather
from ..transforms.group import Group
from ..transforms.peers import noticing, waiting
from .known import one_memory
from .safetensors import checksum_of

OTHER_VALUES = (
    "rank 0 would save its own values for all ranks, and others have other values: {found}. What is divided is saved whole: "
    "fl.distributed.gather(model), of its optimizer's state fl.distributed.gather(state, model), and of fl.optim.shard "
    "opt.gather(state), which all ranks call. Where the values of rank 0 are meant, as of statistics that each rank has of its "
    "own, write fl.distributed.broadcast(tree); of random keys save the one of which fl.distributed.local_key made the others"
)
_MOST = 8


class _Seen(NamedTuple):
    """An array that was looked at, the memory that it had then, and the checksum of that."""

    object: weakref.ref[mx.array]
    memory: mx.array
    checksum: int


class Checksums:
    """The checksums of arrays, each worked out once for as long as the object lives and has the same memory.

    That memory is held until then, so that it is not written to when the object is assigned to.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def require_same(self, tree: Any, group: Group | None) -> None:
        """Require that a tree has the same values on all ranks, but for scalars. A rank may give shapes in their place.

        Raises:
            ValueError: On every rank, if it has not; the message names the paths.
            PeerLostError: If another process is lost.
        """
        if group is None:
            return
        flat = flat_of(tree)
        given = [leaf if isinstance(leaf, mx.array) and leaf.ndim else None for leaf in flat.leaves]
        with noticing(), waiting():
            mx.eval([leaf for leaf in given if leaf is not None])
        mine = [[0, 0] if leaf is None else [1, self._of(leaf)] for leaf in given]
        gathered = all_gather(mx.array(mine, mx.uint32).reshape(1, -1, 2), group)
        with noticing(), waiting():
            mx.eval(gathered)
        by_rank = [dict(zip(flat.structure.leaf_names(), row, strict=True)) for row in cast(Any, gathered.tolist())]
        found = [
            f"{name or 'the array'} on rank {rank}"
            for name in by_rank[0]
            for rank, each in enumerate(by_rank)
            if by_rank[0][name][0] and each[name][0] and each[name] != by_rank[0][name]
        ]
        if found:
            shown = ", ".join(found[:_MOST]) + ", ..." * (len(found) > _MOST)
            raise ValueError(OTHER_VALUES.format(found=shown))

    def _of(self, array: mx.array) -> int:
        memory, seen = array[...], self._seen.get(id(array))
        mx.eval(memory)
        if seen is not None and seen.object() is array and one_memory(seen.memory, memory):
            return seen.checksum
        checksum = checksum_of(memory)
        # It is called without a line of Python, in which Ctrl-C would be lost; pop returns the reference by default.
        self._seen[id(array)] = _Seen(weakref.ref(array, partial(self._seen.pop, id(array))), memory, checksum)
        return checksum
