"""Read and write named arrays in one file, in the format that its ending names, or its first bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from .description import STRUCTURE, TIED, name_in_file, read_facts
from .first_bytes import identify
from .gguf import GGUF_DTYPES, MAX_AXES, read_gguf
from .npz import fits_npz, read_npz, write_npz
from .parts import PARTS, Opened, read_opened
from .safetensors import fail
from .sharing import read_sharing
from .ties import tied_names

ENDINGS = (".npz", ".safetensors", ".gguf")

_UNKNOWN_ENDING = (
    "Unsupported file extension for {file}. Use '.npz', '.safetensors' or '.gguf', or the path of a directory{advice}."
)


def ending_of(file: str, advice: str = "") -> str:
    """Return the ending of a file's name, which says its format.

    Raises:
        ValueError: If it is none of ``ENDINGS``. ``advice`` goes into the message.
    """
    for ending in ENDINGS:
        if file.endswith(ending):
            return ending
    raise ValueError(_UNKNOWN_ENDING.format(file=file, advice=advice))


def read_file(file: str) -> dict[str, mx.array]:
    """Return the arrays of a file. Those of a safetensors file are read when they are first used.

    Of a file of :func:`frostleaf.save` they include what is stored under another name, or in a file beside it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If neither the ending of its name nor its first bytes are those of a format.
        CheckpointError: If it is not a complete file of its format.
    """
    ending = _format_to_read(file)
    if ending == ".npz":
        return read_npz(file)
    if ending == ".gguf":
        return read_gguf(file)
    return read_opened(file, _read_safetensors)


_OF_ANOTHER = "is a {found} file by its first bytes, and a {named} file by its name: give it the ending {found}"


def _format_to_read(file: str) -> str:
    named = next((ending for ending in ENDINGS if file.endswith(ending)), "")
    if not named and not os.path.exists(file):
        return ending_of(file)
    found, reason = identify(file)
    if reason:
        fail(file, reason)
    if found == ".safetensors":  # fl.save writes one, whatever its name
        return found
    if named and found and named != found:
        fail(file, _OF_ANOTHER.format(found=found, named=named))
    return found or named or ending_of(file)


def _read_safetensors(opened: Opened) -> dict[str, mx.array]:
    files = dict.fromkeys(opened.header.entries, opened.header.file)
    if PARTS in opened.header.metadata:
        opened.complete()
        files = {name: part.file for name, (_, part) in opened.places.items()}
    try:
        loaded: dict[str, Any] = {each: mx.load(each, format="safetensors") for each in {*files.values()}}
    except RuntimeError as error:
        opened.require_not_replaced()
        fail(opened.header.file, f"can't be read by MLX: {error}")
    arrays: dict[str, mx.array] = {name: loaded[each][name] for name, each in files.items()}
    return read_sharing(opened.header.file, arrays.keys(), opened.header.metadata).spread(arrays)


def tied_names_in(file: str) -> dict[str, str]:
    """Return for each tied place of the tree in a file of :func:`frostleaf.save` the name under which its array is read.

    Of any other file there are none.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is not a complete file of its format.
    """
    return read_opened(file, _tied_names) if identify(file)[0] == ".safetensors" else {}


def _tied_names(opened: Opened) -> dict[str, str]:
    if PARTS in opened.header.metadata:
        opened.complete()
    if f'"{TIED}"' not in opened.header.metadata.get(STRUCTURE, ""):
        return {}
    names = tied_names(read_facts(opened.header))
    return {name_in_file(name): name_in_file(source) for name, source in names.items()}


def check_arrays(arrays: Mapping[str, mx.array], ending: str, file: str) -> None:
    """Raise an error if a file with this ending can't hold the arrays and their names.

    Raises:
        ValueError: In that case; the message names the first such array.
    """
    for name, array in arrays.items():
        cant_hold = f"can't save to {file}: a {ending} file can't hold"
        if not _fits_name(ending, name):
            raise ValueError(f"{cant_hold} an array under the name {name!r:.80}")
        if ending == ".gguf" and array.dtype not in GGUF_DTYPES:
            advice = "Use .safetensors, or cast it to float16, float32, int8, int16 or int32"
            raise ValueError(f"{cant_hold} {name!r:.80}, which is {array.dtype}. {advice}")
        if ending == ".gguf" and array.ndim > MAX_AXES:
            limit = f"a .gguf file holds arrays of at most {MAX_AXES} axes"
            raise ValueError(f"can't save to {file}: {limit}, and {name!r:.80} has {array.ndim}")
        if ending == ".safetensors" and array.dtype == mx.float64:
            raise ValueError(f"{cant_hold} {name!r:.80}, which is {array.dtype}. MLX reads and writes it in .npz")


def write_file(file: str, arrays: Mapping[str, mx.array], ending: str) -> None:
    """Write arrays that :func:`check_arrays` accepts to a file."""
    if ending == ".npz":
        write_npz(file, arrays)
    elif ending == ".safetensors":
        with open(file, "wb") as handle:
            # Hugging Face's readers ask who wrote a file.
            mx.save_safetensors(handle, dict(arrays), {"format": "mlx"})
    else:
        # MLX writes the memory of an array that isn't contiguous as if it were.
        mx.save_gguf(file, {name: mx.contiguous(array) for name, array in arrays.items()}, {})


def _fits_name(ending: str, name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return ending != ".npz" or fits_npz(name)
