"""Arrays cut into equal parts, one for each rank of a group, and made whole again."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import attrs
import mlx.core as mx

from ..transforms.collectives import BUCKET, add_stages, all_average, all_gather, buckets
from ..transforms.group import Group

Shape = tuple[int, ...]

# Parts of so many bytes are gathered alone: laying them end to end with others takes more time, and memory, than it saves.
_ALONE = 2**18
# Other parts are gathered together, until the wholes have so many bytes.
_TOGETHER = 2**22


@attrs.frozen
class Division:
    """Which rank's parts the arrays of a state are, and what they are parts of.

    Attributes:
        rank: The rank that has the parts.
        ranks: How many ranks there are.
        shapes: For each array of the inner state the shape of the whole; ``None`` for an array that is whole.

    >>> import frostleaf as fl
    >>> fl.optim.shard(fl.optim.Adam(0.1)).init(fl.nn.Linear(2, 1)).division
    (part 0 of 1)
    """

    rank: int
    ranks: int
    shapes: tuple[Shape | None, ...]

    def __repr__(self) -> str:
        return f"(part {self.rank} of {self.ranks})"


def part_shape(shape: Shape, ranks: int) -> Shape:
    """Return the shape of each part of an array. One with fewer elements than there are ranks stays whole.

    >>> part_shape((3, 5), 2), part_shape((), 2)
    ((8,), ())
    """
    size = math.prod(shape)
    return shape if ranks == 1 or size < ranks else (-(-size // ranks),)


def part_of(array: mx.array, group: Group) -> mx.array:
    """Return this rank's part of an array, which is a view where it can be. The last parts end in zeros if there is a rest."""
    (length,) = part_shape(array.shape, group.size())
    part = array.reshape(-1)[group.rank() * length : (group.rank() + 1) * length]
    return part if part.size == length else mx.pad(part, (0, length - part.size))


def wholes_of(parts: Sequence[mx.array], shapes: Sequence[Shape], group: Group) -> list[mx.array]:
    """Return the arrays of some shapes of which each rank gives its parts. Small ones of a dtype are sent together."""
    wholes = [*parts]
    add_stages()
    for places in _together(parts, group.size()):
        together = [parts[place] for place in places]
        rows = all_gather(_end_to_end(together), group).reshape(group.size(), -1)
        for place, columns in zip(places, _cut(rows, [part.size for part in together]), strict=True):
            size = math.prod(shapes[place])
            wholes[place] = columns.reshape(-1)[:size].reshape(shapes[place])
    return wholes


def parts_of_averages(arrays: Sequence[mx.array], divides: Sequence[bool], group: Group) -> list[mx.array]:
    """Return this rank's part of the average over all ranks of each array that is to be divided, the whole of the others.

    The averages are those of :func:`frostleaf.distributed.average_gradients`, bit for bit: they are sent in the same order.
    """
    results = [*arrays]
    for places in buckets(arrays, BUCKET):
        sent = [arrays[place].reshape(-1) for place in places]
        divided = [divides[place] for place in places]
        take = functools.partial(_taken, lengths=[each.size for each in sent], divided=divided, group=group)
        row = all_average(_end_to_end(sent), group, take=take)
        shapes = [part_shape(arrays[at].shape, group.size()) if divides[at] else arrays[at].shape for at in places]
        for place, part, shape in zip(places, _cut(row, [*map(math.prod, shapes)]), shapes, strict=True):
            results[place] = part.reshape(shape)
    return results


def _taken(total: mx.array, lengths: Sequence[int], divided: Sequence[bool], group: Group) -> mx.array:
    """Return this rank's part of each divided array of those that lie end to end, and the others."""
    arrays = zip(_cut(total, lengths), divided, strict=True)
    return _end_to_end([part_of(array, group) if divides else array for array, divides in arrays])


def _end_to_end(vectors: Sequence[mx.array]) -> mx.array:
    return mx.concatenate([*vectors]) if len(vectors) > 1 else vectors[0]


def _cut(array: mx.array, lengths: Sequence[int]) -> list[mx.array]:
    """Return the pieces, of some lengths, of the last axis."""
    return [*mx.split(array, [*accumulate(lengths)][:-1], axis=-1)] if len(lengths) > 1 else [array]


def _together(parts: Sequence[mx.array], ranks: int) -> Iterator[list[int]]:
    """Yield the places of parts that are gathered in one exchange."""
    small: dict[mx.Dtype, list[int]] = {}
    nbytes: dict[mx.Dtype, int] = {}
    for place, part in enumerate(parts):
        if part.nbytes >= _ALONE:
            yield [place]
            continue
        dtype = part.dtype
        small.setdefault(dtype, []).append(place)
        nbytes[dtype] = nbytes.get(dtype, 0) + part.nbytes * ranks
        if nbytes[dtype] >= _TOGETHER:
            yield small.pop(dtype)
            nbytes[dtype] = 0
    yield from small.values()
