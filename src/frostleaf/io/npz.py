"""Read and write NumPy's ``.npz``: a zip archive with one ``.npy`` file for each array."""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Mapping
from typing import IO, Any

import mlx.core as mx

from .safetensors import fail, open_regular

_DTYPES = {
    "|b1": mx.bool_, "|u1": mx.uint8, "<u2": mx.uint16, "<u4": mx.uint32, "<u8": mx.uint64, "|i1": mx.int8, "<i2": mx.int16,
    "<i4": mx.int32, "<i8": mx.int64, "<f2": mx.float16, "|V2": mx.bfloat16, "<V2": mx.bfloat16, "<f4": mx.float32,
    "<f8": mx.float64, "<c8": mx.complex64,
}  # fmt: skip
_ENDING = ".npy"
_CHUNK = 2**20
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 2**16


def read_npz(path: str) -> dict[str, mx.array]:
    """Return the arrays of a ``.npz`` file, each read directly into its own memory.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it isn't a complete ``.npz`` file of arrays that MLX can hold.
    """
    import zipfile  # takes long to import

    # How many times its own size a file can hold, by the method of compression.
    ratios = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
    arrays: dict[str, mx.array] = {}
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                room: float = size
                for info in archive.infolist():
                    ratio = ratios.get(info.compress_type)
                    if ratio is None:
                        raise ValueError(f"{info.filename!r:.80} is compressed in a way that .npz files are not")
                    room -= info.file_size / ratio
                if room < 0:
                    total = sum(info.file_size for info in archive.infolist())
                    raise ValueError(f"its arrays are said to take {total} bytes, more than a file of this size can hold")
                for info in archive.infolist():
                    name = info.filename.removesuffix(_ENDING)
                    if name in arrays:
                        raise ValueError(f"the name {name!r:.80} is there twice")
                    with archive.open(info) as stream:
                        arrays[name] = _read_npy(stream, name, info.file_size)
        except Exception as error:  # zipfile raises errors of many classes
            fail(path, f"can't be read as .npz: {str(error) or type(error).__name__}")
    return arrays


def write_npz(path: str, arrays: Mapping[str, mx.array]) -> None:
    """Write an uncompressed ``.npz`` file. It is the one ``mx.savez`` would write, which doesn't accept every name."""
    import zipfile  # takes long to import

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(name + _ENDING, "w", force_zip64=True) as stream:
                mx.save(stream, array)  # type: ignore[arg-type]


def fits_npz(name: str) -> bool:
    """Return whether an array can be found again under this name: a zip archive cuts it off at a zero."""
    return "\0" not in name and len(name.encode()) < 2**16 - len(_ENDING)


def _read_npy(stream: IO[bytes], name: str, size: int) -> mx.array:
    start = stream.read(8)
    width = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(stream.read(width), "little")
    valid = start[:6] == _MAGIC and length <= _LONGEST_HEADER
    if valid:
        try:
            header: Any = ast.literal_eval(stream.read(length).decode("latin1").strip())
            descr, transposed, shape = header["descr"], header["fortran_order"], tuple(header["shape"])
            valid = all(type(axis) is int and 0 <= axis < 2**31 for axis in shape)
        except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):
            valid = False
    if not valid:
        raise ValueError(f"{name!r:.80} isn't a .npy file")
    dtype = _DTYPES.get(descr) if isinstance(descr, str) else None
    if dtype is None:
        raise ValueError(f"array {name!r:.80} has the dtype {descr!r:.80}, which MLX doesn't have{_advice(descr)}")
    expected, given = math.prod(shape) * dtype.size, size - 8 - width - length
    if expected != given:
        described = f"array {name!r:.80} of dtype {descr} and shape {shape}"
        raise ValueError(f"{described} takes {expected} bytes, and the file has {given}")
    array = mx.zeros(shape[::-1] if transposed else shape, dtype, stream=mx.cpu)
    _read_into(array, stream, name)
    return array.transpose() if transposed and array.ndim > 1 else array


def _advice(descr: Any) -> str:
    """Return what to do about a dtype that MLX has in the other order of bytes; an empty string for another."""
    little = f"<{descr[1:]}" if isinstance(descr, str) and descr.startswith(">") else ""
    return f": write it with array.astype({little!r}), in the order of bytes that MLX reads" if little in _DTYPES else ""


def _read_into(array: mx.array, stream: IO[bytes], name: str) -> None:
    """Fill an array that nobody else has seen with the numbers of a stream.

    ``mx.load`` of an open file would read the whole array twice, and may end the process if that exits soon after.
    """
    mx.eval(array)
    if array.size:
        view = memoryview(array).cast("B")  # type: ignore[arg-type]
        done = 0
        while chunk := stream.read(min(_CHUNK, len(view) - done)):
            view[done : done + len(chunk)] = chunk
            done += len(chunk)
        if done < len(view):
            raise ValueError(f"array {name!r:.80} is cut off")
    stream.read(1)  # only at its end does the stream compare its checksum
