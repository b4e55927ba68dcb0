"""The GGUF format: a file's header, checked before MLX reads the file."""

from __future__ import annotations

import math
import mmap
import os
import struct
from typing import Any

import mlx.core as mx

from .safetensors import fail, opened

# MLX's reader ends the process on a header that lies, so everything it goes by is looked at here first.

NOT_GGUF = "isn't a GGUF file"
VERSION = "is GGUF of version {version}, and MLX reads versions 2 and 3"
CUT_OFF = "the header is cut off, or is damaged"
BAD_KIND = "the metadata {name!r:.80} is of the GGUF kind {kind}, which MLX can't read"
BAD_ALIGNMENT = "the metadata general.alignment is {value!r}, which isn't a positive whole number"
SAME_NAME = "the name {name!r:.80} is there twice"
TOO_MANY_AXES = "array {name!r:.80} has {count} axes, and GGUF allows 8"
BAD_AXIS = "array {name!r:.80} has the shape {shape}, in which a length is out of range"
BAD_TYPE = "array {name!r:.80} is of the GGUF type {kind}, which MLX can't read"
BAD_BLOCKS = "array {name!r:.80} is of a GGUF type in blocks of {block} numbers, which don't divide its last axis in {shape}"
OUTSIDE = "array {name!r:.80} lies in bytes {start} to {stop}, and the file has {size}"
UNREADABLE = "can't be read as GGUF: {error}"

MAX_AXES = 8

# Of each type of array that MLX reads: how many numbers are in a block, and how many bytes a block takes. The others abort the
# process or are left out without a word.
TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 10: (256, 84), 12: (256, 144), 14: (256, 210),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 30: (1, 2),
}  # fmt: skip
# Of each kind of metadata that is a number: how it is read. After one of kind 12, a float64, MLX goes on at the wrong place.
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q"}
_STRING, _ARRAY = 8, 9


def read_gguf(path: str) -> dict[str, mx.array]:
    """Return the arrays of a GGUF file, as ``mx.load`` does.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it isn't a whole GGUF file of arrays that MLX can read.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 24 or file.read(4) != b"GGUF":
            fail(path, NOT_GGUF)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _check(data, size)
            except (struct.error, IndexError):
                fail(path, CUT_OFF)
            except ValueError as error:
                fail(path, str(error))
    try:
        return mx.load(path, format="gguf")  # type: ignore[return-value]
    except (RuntimeError, ValueError) as error:
        fail(path, UNREADABLE.format(error=error))


class _Cursor:
    """A place in a file's header that moves on as values are read."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data = data
        self.size = size
        self.at = 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.skip(struct.calcsize(form))
        return value

    def string(self) -> bytes:
        length = self.number("<Q")
        start = self.at
        self.skip(length)
        return self.data[start : self.at]

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > self.size:
            raise IndexError


def _check(data: mmap.mmap, size: int) -> None:
    """Raise an error unless everything that the header says can be true of a file of this size."""
    cursor = _Cursor(data, size)
    cursor.skip(4)
    if (version := cursor.number("<I")) not in (2, 3):
        raise ValueError(VERSION.format(version=version))
    tensors, keys = cursor.number("<Q"), cursor.number("<Q")
    alignment: Any = 32
    for _ in range(keys):
        name, kind = cursor.string(), cursor.number("<I")
        value = _value(cursor, name, kind)
        if name == b"general.alignment":
            alignment = value if kind == 4 and value else None
            if alignment is None:
                raise ValueError(BAD_ALIGNMENT.format(value=value))
    found = [_array(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    names = set()
    for name, offset, length in found:
        if name in names:
            raise ValueError(SAME_NAME.format(name=_text(name)))
        names.add(name)
        if start + offset + length > size:
            raise ValueError(OUTSIDE.format(name=_text(name), start=start + offset, stop=start + offset + length, size=size))


def _value(cursor: _Cursor, name: bytes, kind: int) -> Any:
    """Go past a metadata value, and return it if it is a number."""
    if kind in _NUMBERS:
        return cursor.number(_NUMBERS[kind])
    if kind == _STRING:
        cursor.string()
    elif kind == _ARRAY:
        inner, count = cursor.number("<I"), cursor.number("<Q")
        if inner in _NUMBERS:
            cursor.skip(count * struct.calcsize(_NUMBERS[inner]))
        elif inner == _STRING:
            for _ in range(count):
                cursor.string()
        else:
            raise ValueError(BAD_KIND.format(name=_text(name), kind=f"array of {inner}"))
    else:
        raise ValueError(BAD_KIND.format(name=_text(name), kind=kind))
    return None


def _array(cursor: _Cursor) -> tuple[bytes, int, int]:
    """Return the name of an array, where in the data it begins, and how many bytes it takes."""
    name, axes = cursor.string(), cursor.number("<I")
    if axes > MAX_AXES:
        raise ValueError(TOO_MANY_AXES.format(name=_text(name), count=axes))
    shape = [cursor.number("<Q") for _ in range(axes)][::-1]
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if any(axis >= 2**31 for axis in shape):
        raise ValueError(BAD_AXIS.format(name=_text(name), shape=shape))
    if kind not in TYPES:
        raise ValueError(BAD_TYPE.format(name=_text(name), kind=kind))
    block, bytes_each = TYPES[kind]
    if (shape[-1] if shape else 1) % block:
        raise ValueError(BAD_BLOCKS.format(name=_text(name), block=block, shape=shape))
    return name, offset, math.prod(shape) // block * bytes_each


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
