"""Arrays by name in one file of each format."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from .gguf import MAX_AXES, read_gguf
from .safetensors import fail, opened, read_header

ENDINGS = (".npz", ".safetensors", ".gguf")

UNKNOWN_FORMAT = (
    "Unsupported file extension for {file}. Use '.npz', '.safetensors' or '.gguf', or the path of a directory{advice}."
)
BAD_NAME = "can't save to {file}: a {ending} file can't hold an array under the name {name!r:.80}"
BAD_DTYPE = "can't save to {file}: a {ending} file can't hold {name!r:.80}, which is {dtype}. {advice}"
BAD_RANK = "can't save to {file}: a .gguf file holds arrays of at most 8 axes, and {name!r:.80} has {count}"
UNREADABLE = "can't be read by MLX: {error}"

_IN_GGUF = {mx.float16, mx.float32, mx.int8, mx.int16, mx.int32}


def ending_of(file: str, advice: str = "") -> str:
    """Return the ending of a file's name, which says its format.

    Raises:
        ValueError: If it is none of ``ENDINGS``. ``advice`` goes into the message.
    """
    for ending in ENDINGS:
        if file.endswith(ending):
            return ending
    raise ValueError(UNKNOWN_FORMAT.format(file=file, advice=advice))


def read_file(file: str) -> dict[str, mx.array]:
    """Return the arrays of a file. Those of a safetensors file are read when they are first used.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its name has another ending.
        CheckpointError: If it is not a whole file of its format.
    """
    ending = ending_of(file)
    if ending == ".npz":
        from .npz import read_npz  # here, as the zip archives that it needs take long to import

        return read_npz(file)
    if ending == ".gguf":
        return read_gguf(file)
    with opened(file) as handle:
        read_header(handle)
    try:
        return mx.load(file, format="safetensors")  # type: ignore[return-value]
    except RuntimeError as error:
        fail(file, UNREADABLE.format(error=error))


def check_arrays(arrays: Mapping[str, mx.array], ending: str, file: str) -> None:
    """Raise an error if a file with this ending can't hold the arrays and their names.

    Raises:
        ValueError: If that is so; the message names the first such array.
    """
    for name, array in arrays.items():
        if not _holds_name(ending, name):
            raise ValueError(BAD_NAME.format(file=file, ending=ending, name=name))
        if ending == ".gguf" and array.dtype not in _IN_GGUF:
            advice = "Use .safetensors, or cast it to float16, float32, int8, int16 or int32"
            raise ValueError(BAD_DTYPE.format(file=file, ending=ending, name=name, dtype=array.dtype, advice=advice))
        if ending == ".gguf" and array.ndim > MAX_AXES:
            raise ValueError(BAD_RANK.format(file=file, name=name, count=array.ndim))
        if ending == ".safetensors" and array.dtype == mx.float64:
            advice = "MLX reads and writes it in .npz"
            raise ValueError(BAD_DTYPE.format(file=file, ending=ending, name=name, dtype=array.dtype, advice=advice))


def write_file(file: str, arrays: Mapping[str, mx.array], ending: str) -> None:
    """Write a file. The arrays are such as :func:`check_arrays` lets pass."""
    if ending == ".npz":
        from .npz import write_npz

        write_npz(file, arrays)
    elif ending == ".safetensors":
        with open(file, "wb") as handle:
            # Hugging Face's readers ask who wrote a file.
            mx.save_safetensors(handle, dict(arrays), {"format": "mlx"})
    else:
        mx.save_gguf(file, {name: mx.contiguous(array) for name, array in arrays.items()}, {})


def _holds_name(ending: str, name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    if ending != ".npz":
        return True
    from .npz import fits_npz

    return fits_npz(name)
