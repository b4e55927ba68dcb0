"""NumPy's ``.npz``: a zip archive with one ``.npy`` file for each array."""

from __future__ import annotations

import ast
import math
import os
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import mlx.core as mx

from .safetensors import fail, opened

DTYPES = {
    "|b1": mx.bool_, "|u1": mx.uint8, "<u2": mx.uint16, "<u4": mx.uint32, "<u8": mx.uint64, "|i1": mx.int8, "<i2": mx.int16,
    "<i4": mx.int32, "<i8": mx.int64, "<f2": mx.float16, "|V2": mx.bfloat16, "<V2": mx.bfloat16, "<f4": mx.float32,
    "<f8": mx.float64, "<c8": mx.complex64,
}  # fmt: skip

NOT_NPZ = "can't be read as .npz: {error}"
NOT_NPY = "{name!r:.80} isn't a .npy file"
NO_DTYPE = "array {name!r:.80} has the dtype {given!r:.80}, which MLX doesn't have"
SAME_NAME = "the name {name!r:.80} is there twice"
TOO_LARGE = "array {name!r:.80} is said to take {given} bytes, more than a file of this size can hold"
CUT_OFF = "array {name!r:.80} is cut off"
WRONG_SIZE = "array {name!r:.80} of dtype {dtype} and shape {shape} takes {expected} bytes, and the file has {given}"

_ENDING = ".npy"
_CHUNK = 2**20
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 2**16
# How many times its own size a file can hold, by the method of compression.
_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}


def read_npz(path: str) -> dict[str, mx.array]:
    """Return the arrays of a ``.npz`` file, each read into the memory that it keeps.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it isn't a whole ``.npz`` file of arrays that MLX can hold.
    """
    arrays: dict[str, mx.array] = {}
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    name = info.filename.removesuffix(_ENDING)
                    if name in arrays:
                        raise ValueError(SAME_NAME.format(name=name))
                    if info.file_size > size * _RATIOS.get(info.compress_type, 0):
                        raise ValueError(TOO_LARGE.format(name=name, given=info.file_size))
                    with archive.open(info) as stream:
                        arrays[name] = _read_npy(stream, name, info.file_size)
        except Exception as error:  # whatever the zip archive makes of what it finds
            fail(path, NOT_NPZ.format(error=str(error) or type(error).__name__))
    return arrays


def write_npz(path: str, arrays: Mapping[str, mx.array]) -> None:
    """Write a ``.npz`` file, uncompressed, as ``mx.savez`` does, which can't take every name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(name + _ENDING, "w", force_zip64=True) as stream:
                mx.save(stream, array)  # type: ignore[arg-type]


def fits_npz(name: str) -> bool:
    """Return whether an array can be found again under this name: a zip archive cuts off what follows a zero."""
    return zipfile.ZipInfo(name).filename == name and len(name.encode()) < 2**16 - len(_ENDING)


def _read_npy(stream: IO[bytes], name: str, size: int) -> mx.array:
    start = stream.read(8)
    width = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(stream.read(width), "little")
    if start[:6] != _MAGIC or length > _LONGEST_HEADER:
        raise ValueError(NOT_NPY.format(name=name))
    try:
        header: Any = ast.literal_eval(stream.read(length).decode("latin1").strip())
        descr, transposed, shape = header["descr"], header["fortran_order"], tuple(header["shape"])
        whole = all(type(axis) is int and 0 <= axis < 2**31 for axis in shape)
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):
        whole = False
    if not whole:
        raise ValueError(NOT_NPY.format(name=name))
    dtype = DTYPES.get(descr) if isinstance(descr, str) else None
    if dtype is None:
        raise ValueError(NO_DTYPE.format(name=name, given=descr))
    expected, given = math.prod(shape) * dtype.size, size - 8 - width - length
    if expected != given:
        raise ValueError(WRONG_SIZE.format(name=name, dtype=descr, shape=shape, expected=expected, given=given))
    array = _filled(mx.zeros(shape[::-1] if transposed else shape, dtype, stream=mx.cpu), stream, name)
    return array.transpose() if transposed and array.ndim > 1 else array


def _filled(array: mx.array, stream: IO[bytes], name: str) -> mx.array:
    """Return the array, which nobody else has seen, with its numbers read from the stream.

    ``mx.load`` of an open file reads the whole array twice over, and may abort the process when that ends soon after.
    """
    mx.eval(array)
    if array.size:
        view = memoryview(array).cast("B")  # type: ignore[arg-type]
        done = 0
        while chunk := stream.read(min(_CHUNK, len(view) - done)):
            view[done : done + len(chunk)] = chunk
            done += len(chunk)
        if done < len(view):
            raise ValueError(CUT_OFF.format(name=name))
    stream.read(1)  # at its end, and no sooner, the stream compares its checksum
    return array
