"""Read GGUF files through MLX, after checking everything in the header that MLX relies on."""

from __future__ import annotations

import math
import mmap
import os
import struct
from typing import Any

import mlx.core as mx

from .safetensors import fail, open_regular

GGUF_DTYPES = {mx.float16, mx.float32, mx.int8, mx.int16, mx.int32}
MAX_AXES = 8

# The array types that MLX reads: how many numbers a block has, and how many bytes. MLX ends the process on some of the others,
# and leaves the rest out silently.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 10: (256, 84), 12: (256, 144), 14: (256, 210),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 30: (1, 2),
}  # fmt: skip
# The metadata kinds that are numbers, as struct formats. Without kind 12, float64, after which MLX reads on at the wrong place.
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q"}
_STRING, _ARRAY = 8, 9


def read_gguf(path: str) -> dict[str, mx.array]:
    """Return the arrays of a GGUF file, as ``mx.load`` does.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it isn't a complete GGUF file of arrays that MLX can read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size < 24 or file.read(4) != b"GGUF":
            fail(path, "isn't a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _check(data, size)
            except (struct.error, IndexError):
                fail(path, "the header is cut off, or is damaged")
            except ValueError as error:
                fail(path, str(error))
    try:
        return mx.load(path, format="gguf")  # type: ignore[return-value]
    except (RuntimeError, ValueError) as error:
        fail(path, f"can't be read as GGUF: {error}")


class _Cursor:
    """A position in a file's header that moves on as values are read."""

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
    """Raise an error unless everything in the header can be true of a file of this size: else MLX would end the process."""
    cursor = _Cursor(data, size)
    cursor.skip(4)
    if (version := cursor.number("<I")) not in (2, 3):
        raise ValueError(f"is GGUF of version {version}, and MLX reads versions 2 and 3")
    tensors, keys = cursor.number("<Q"), cursor.number("<Q")
    alignment: Any = 32
    for _ in range(keys):
        name, kind = cursor.string(), cursor.number("<I")
        value = _read_value(cursor, name, kind)
        if name == b"general.alignment":
            alignment = value if kind == 4 and value else None
            if alignment is None:
                raise ValueError(f"the metadata general.alignment is {value!r}, which isn't a positive whole number")
    arrays = [_read_array(cursor) for _ in range(tensors)]
    base = -(-cursor.at // alignment) * alignment
    if (total := sum(length for _, _, length in arrays)) > size:
        raise ValueError(f"the arrays are said to take {total} bytes, and the file has {size}")
    names = set()
    for name, offset, length in arrays:
        if name in names:
            raise ValueError(f"the name {_text(name)!r:.80} is there twice")
        names.add(name)
        start, stop = base + offset, base + offset + length
        if stop > size:
            raise ValueError(f"array {_text(name)!r:.80} lies in bytes {start} to {stop}, and the file has {size}")


def _read_value(cursor: _Cursor, name: bytes, kind: int) -> Any:
    """Read past a metadata value, and return it if it is a number."""
    if kind in _NUMBERS:
        return cursor.number(_NUMBERS[kind])
    if kind == _STRING:
        cursor.string()
        return None
    shown: Any = kind
    if kind == _ARRAY:
        inner, count = cursor.number("<I"), cursor.number("<Q")
        if inner in _NUMBERS:
            cursor.skip(count * struct.calcsize(_NUMBERS[inner]))
            return None
        if inner == _STRING:
            for _ in range(count):
                cursor.string()
            return None
        shown = f"array of {inner}"
    raise ValueError(f"the metadata {_text(name)!r:.80} is of the GGUF kind {shown}, which MLX can't read")


def _read_array(cursor: _Cursor) -> tuple[bytes, int, int]:
    """Return an array's name, its offset in the data and its length in bytes."""
    name, axes = cursor.string(), cursor.number("<I")
    array = f"array {_text(name)!r:.80}"
    if axes > MAX_AXES:
        raise ValueError(f"{array} has {axes} axes, and GGUF allows {MAX_AXES}")
    shape = [cursor.number("<Q") for _ in range(axes)][::-1]
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if any(axis >= 2**31 for axis in shape):
        raise ValueError(f"{array} has the shape {shape}, in which a length is out of range")
    if kind not in _BLOCKS:
        raise ValueError(f"{array} is of the GGUF type {kind}, which MLX can't read")
    block, block_bytes = _BLOCKS[kind]
    if (shape[-1] if shape else 1) % block:
        raise ValueError(f"{array} is of a GGUF type in blocks of {block} numbers, which don't divide its last axis in {shape}")
    return name, offset, math.prod(shape) // block * block_bytes


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
