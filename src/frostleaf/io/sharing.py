"""Which arrays of a tree are one object, and which have the bytes of another: what a file stores once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import NamedTuple

import mlx.core as mx

from .safetensors import bytes_of, checksum_of, fail, parse_json

SHARED, COPIES = "frostleaf.shared", "frostleaf.copies"  # keys of the header's metadata

_WORTH = 1024  # bytes from which an array is worth more than finding it under its own name
_CHUNK = 2**20


class Sharing(NamedTuple):
    """What a file has under other names.

    Attributes:
        shared: For each name of an array that is the same object as one of an earlier name, the first of these.
        copies: For each other name of an array whose bytes another array has as well, the name under which they are stored.
    """

    shared: dict[str, str]
    copies: dict[str, str]

    def stored(self, name: str) -> str:
        """Return the name under which the bytes of an array are stored."""
        name = self.shared.get(name, name)
        return self.copies.get(name, name)

    def texts(self) -> dict[str, str]:
        """Return what the header's metadata say of this: nothing of nothing."""
        given = {SHARED: self.shared, COPIES: self.copies}
        return {key: json.dumps(names, separators=(",", ":")) for key, names in given.items() if names}

    def spread(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Return stored arrays under all their names. Equal arrays are different objects."""
        spread = {**arrays, **{name: arrays[place][...] for name, place in self.copies.items()}}
        return spread | {name: spread[place] for name, place in self.shared.items()}

    def __bool__(self) -> bool:
        return bool(self.shared or self.copies)


def one_objects(arrays: Mapping[str, mx.array]) -> dict[str, str]:
    """Return for each name of an array that is the same object as one of an earlier name, the first of these."""
    first: dict[int, str] = {}
    places = {name: first.setdefault(id(array), name) for name, array in arrays.items()}
    return {name: place for name, place in places.items() if name != place}


def find_sharing(
    arrays: Mapping[str, mx.array], checksums: Mapping[str, int] | None = None, first: Set[str] = frozenset()
) -> tuple[Sharing, dict[str, int]]:
    """Return what of some evaluated arrays is to be stored once, and the checksum of each array that is to be stored.

    Args:
        arrays: The arrays by name.
        checksums: The checksum of each array of which it is known. Default: of none.
        first: The names that count as earlier than others. Default: none.
    """
    arrays = {name: arrays[name] for name in sorted(arrays, key=lambda name: name not in first)}
    given = checksums or {}
    shared = one_objects(arrays)
    copies: dict[str, str] = {}
    stored: dict[str, int] = {}
    alike: dict[object, str] = {}
    more: dict[str, list[str]] = {}  # others that have the checksum of the first, as two arrays may well have
    for name, array in arrays.items():
        if name in shared:
            continue
        checksum = given[name] if name in given else checksum_of(array)
        first_of_these = alike.setdefault((array.dtype, array.shape, checksum), name) if array.nbytes >= _WORTH else name
        place = None
        if first_of_these != name:
            others = more.setdefault(first_of_these, [first_of_these])
            place = next((other for other in others if _same_bytes(array, arrays[other])), None)
            if place is None:
                others.append(name)
        if place is None:
            stored[name] = checksum
        else:
            copies[name] = place
    return Sharing(shared, copies), stored


def _same_bytes(one: mx.array, other: mx.array) -> bool:
    first, second = memoryview(bytes_of(one)), memoryview(bytes_of(other))
    # In parts, as bytes are compared at once, and those of a memoryview one by one.
    return all(first[at : at + _CHUNK].tobytes() == second[at : at + _CHUNK].tobytes() for at in range(0, len(first), _CHUNK))


def read_sharing(file: str, names: Set[str], metadata: Mapping[str, str]) -> Sharing:
    """Return what a file has under other names, none of which leads anywhere but to one of the names of its arrays.

    Raises:
        CheckpointError: If one does. The message names the file.
    """
    copies = _names(file, COPIES, metadata, names)
    return Sharing(_names(file, SHARED, metadata, names | copies.keys()), copies)


def _names(file: str, key: str, metadata: Mapping[str, str], there: Set[str]) -> dict[str, str]:
    """Return a mapping of names that are not there to names that are."""
    given = parse_json(metadata.get(key, "{}"), file)
    leads_there = isinstance(given, dict) and all(isinstance(place, str) and place in there for place in given.values())
    if not leads_there or not given.keys().isdisjoint(there):
        fail(file, f"the header's {key} doesn't lead from other names to arrays in the file")
    return given  # type: ignore[no-any-return]
