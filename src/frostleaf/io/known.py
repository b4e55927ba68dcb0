"""Which arrays have been written before, and where: found by the object, or by name and content."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from .parts import Opened, read_opened
from .safetensors import HEADER_CHECKSUM, Entry, Header, bytes_of, open_regular

_CHUNK = 2**20
_MOST_NAMES = 32  # of a file, of which the first may be those of the best checkpoints, which are kept for long

Stamp = tuple[int, int, int, int]
File = tuple[Stamp, str]


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what tells a file from all others, whatever its names, and from itself once somebody has written to it."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Shard:
    """A file with arrays. It may have several names, as each checkpoint that needs it has a hard link to it.

    Attributes:
        paths: Some of its names; others may remove them.
        name: The last of them, without the directory.
        stamp: What tells it from other files of these names.
        header: The checksum of its header.
        file: What tells it from other files, also from those that were there before, where times are coarse.
        age: What is larger for a file that was written later.
        names: The names of its arrays.
        nbytes: The bytes of its arrays.
    """

    def __init__(self, header: Header, stamp: Stamp) -> None:
        self.paths = [header.file]
        self.name = os.path.basename(header.file)
        self.stamp = stamp
        self.header = header.metadata[HEADER_CHECKSUM]
        self.file = stamp, self.header
        self.age = stamp[-1], self.name
        self.names = header.entries.keys()
        self.nbytes = sum(entry.stop - entry.start for entry in header.entries.values())

    def link(self, path: str) -> bool:
        """Give the file another name, and return whether it is still there.

        Raises:
            OSError: If the file system can't do so.
        """
        for old in [*reversed(self.paths)]:
            try:
                os.link(old, path)
            except FileNotFoundError:
                self.paths.remove(old)
                continue
            if stamp_of(os.lstat(path)) == self.stamp:
                self.paths.append(path)
                self.name = os.path.basename(path)
                if len(self.paths) > _MOST_NAMES:
                    there = [*filter(os.path.lexists, self.paths)]
                    self.paths = [*there[: _MOST_NAMES // 2], *there[-_MOST_NAMES // 2 :]]
                return True
            os.unlink(path)
            self.paths.remove(old)
        return False

    def has(self, entry: Entry, array: mx.array) -> bool:
        """Return whether an array has the bytes that this file has at a place."""
        for path in reversed(self.paths):
            with suppress(OSError, ValueError), open_regular(path) as file:
                if stamp_of(os.fstat(file.fileno())) == self.stamp:
                    file.seek(entry.start)
                    data = memoryview(bytes_of(array))
                    # In parts, as bytes are compared at once, and those of a memoryview one by one.
                    starts = range(0, len(data), _CHUNK)
                    return all(data[at : at + _CHUNK].tobytes() == file.read(min(_CHUNK, len(data) - at)) for at in starts)
        return False


class Place(NamedTuple):
    """Where an array has been written: the file, its name there, what the header says of it, and its checksum."""

    shard: Shard
    name: str
    entry: Entry
    checksum: int

    @property
    def file(self) -> File:
        """What tells the file from others."""
        return self.shard.file

    @property
    def nbytes(self) -> int:
        """The bytes of the array."""
        return self.entry.stop - self.entry.start

    def at(self, shard: Shard) -> Place:
        """Return the same place, of the file as it is known otherwise."""
        return self if self.shard is shard else self._replace(shard=shard)

    def is_of(self, name: str, array: mx.array, checksum: int) -> bool:
        """Return whether an array of this name and checksum is written here. Its bytes are compared, if all else is equal."""
        entry = self.entry
        if (self.name, self.checksum, entry.dtype, entry.shape) != (name, checksum, array.dtype, array.shape):
            return False
        return self.shard.has(entry, array)


class _Held(NamedTuple):
    """An array that was written or read, the memory that it had then, and its place, once that was looked up."""

    object: weakref.ref[mx.array]
    memory: mx.array
    place: Place | None


# For each name, an array that is not kept alive by this, and one that has the same memory.
Watched = Mapping[str, tuple[weakref.ref[mx.array], mx.array]]


class _Restored(NamedTuple):
    """Arrays that were read from a checkpoint whose headers have not been looked through for their places yet."""

    path: str
    stamp: Stamp
    objects: dict[str, weakref.ref[mx.array]]


class KnownArrays:
    """The arrays that a directory's checkpoints have, as far as they are known.

    An array that was written or read is known for as long as the object lives. Its memory is held until then, so that it is
    not given to another array, nor written to when the object is assigned to.

    Attributes:
        last: The arrays of the checkpoint that was last saved or restored, by name.
    """

    def __init__(self) -> None:
        self.last: dict[str, Place] = {}
        self._held: dict[int, _Held] = {}
        self._restored: _Restored | None = None

    def look_up(self, objects: Mapping[str, mx.array], memories: Mapping[str, mx.array]) -> tuple[dict[str, Place], Watched]:
        """Return where those arrays are that were written before, and what :meth:`know` takes to know them all.

        Args:
            objects: The arrays by name.
            memories: For each an array with the same memory, to which nobody assigns.
        """
        self._look_through()
        found: dict[str, Place] = {}
        known: dict[str, tuple[weakref.ref[mx.array], mx.array]] = {}
        for name, array in objects.items():
            held = self._held.get(id(array))
            if held is not None and held.object() is array and one_memory(held.memory, memories[name]):
                known[name] = held.object, held.memory
                if held.place is not None:
                    found[name] = held.place
        others = {name: array for name, array in objects.items() if name not in known}
        return found, {**known, **self._watch(others, memories)}

    def know(self, places: Mapping[str, Place], watched: Watched) -> None:
        """Know where arrays have been written, each until its object is dropped."""
        self.last = dict(places)
        self._restored = None
        for name, (object, memory) in watched.items():
            self._hold(object, memory, places[name])

    def know_restored(self, path: str, stamp: Stamp, objects: Mapping[str, mx.array]) -> None:
        """Know that arrays are those of a checkpoint, by its names. Its headers are read when something is looked up."""
        watched = self._watch(objects, {name: array[...] for name, array in objects.items()})
        for object, memory in watched.values():
            self._hold(object, memory, None)
        self._restored = _Restored(path, stamp, {name: object for name, (object, _) in watched.items()})

    def forget(self) -> None:
        """Know of no array where it is: what is written next is written whole."""
        self.last, self._restored = {}, None
        self._held.clear()

    def know_file(self, path: str) -> None:
        """Know what is in a checkpoint, if it can be read."""
        with suppress(OSError, ValueError):
            self.know(read_places(path), {})

    def _look_through(self) -> None:
        if self._restored is not None:
            path, stamp, objects = self._restored
            self._restored = None
            with suppress(OSError, ValueError):
                places = read_places(path)
                if stamp_of(os.stat(path)) == stamp:
                    self.last = places
                    for name in objects.keys() & places.keys():
                        held = self._held.get(id(objects[name]()))
                        if held is not None and held.object is objects[name]:
                            self._hold(held.object, held.memory, places[name])

    def _hold(self, object: weakref.ref[mx.array], memory: mx.array, place: Place | None) -> None:
        array = object()  # it lives at least until this ends, and is forgotten when it is dropped
        held = self._held.get(id(array))
        if array is not None and not (held is not None and held.object is object and held.place is place):
            self._held[id(array)] = _Held(object, memory, place)

    def _watch(self, objects: Mapping[str, mx.array], memories: Mapping[str, mx.array]) -> Watched:
        # It is called without a line of Python, in which Ctrl-C would be lost; pop returns the reference by default.
        forget = self._held.pop
        return {name: (weakref.ref(array, partial(forget, id(array))), memories[name]) for name, array in objects.items()}


def one_memory(one: mx.array, other: mx.array) -> bool:
    """Return whether two evaluated arrays are the same elements in the same memory."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and _address(one) == _address(other) is not None


def _address(array: mx.array) -> int | None:
    """Return where an evaluated array's memory begins, if its elements lie there row by row."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # other strides, or no elements
        return None


def read_places(path: str) -> dict[str, Place]:
    """Return where the arrays of a checkpoint are, by the names under which they are stored.

    Raises:
        OSError: If it can't be read.
        CheckpointError: If a header is damaged.
    """

    def places_in(opened: Opened) -> dict[str, Place]:
        opened.complete()
        headers = {header.file: (file, header) for file, header in opened.places.values()}
        shards = {name: Shard(header, stamp_of(os.fstat(file.fileno()))) for name, (file, header) in headers.items()}
        return {
            name: Place(shards[header.file], name, header.entries[name], opened.checksums[name])
            for name, (_, header) in opened.places.items()
        }

    return read_opened(path, places_in)
