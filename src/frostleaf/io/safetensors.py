"""Read and write safetensors files: headers checked before they are believed, and checksums."""

from __future__ import annotations

import json
import math
import os
import stat
import zlib
from collections.abc import Iterable, Mapping
from io import BufferedReader
from typing import Any, NamedTuple, NoReturn

import mlx.core as mx

DTYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "U16": mx.uint16, "U32": mx.uint32, "U64": mx.uint64, "I8": mx.int8, "I16": mx.int16,
    "I32": mx.int32, "I64": mx.int64, "F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32, "F64": mx.float64,
    "C64": mx.complex64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_READABLE = {**DTYPES, "F8_E4M3": mx.uint8, "F8_E8M0": mx.uint8}  # MLX keeps the bits of these

METADATA = "__metadata__"
CHECKSUMS = "crc32"
HEADER_CHECKSUM = "crc32.header"
MAX_HEADER = 100_000_000  # bytes; other readers of the format refuse more
_MAX_AXIS = 2**31 - 1  # MLX counts in int32
_MAX_AXES = 100
_PARTS = {"dtype", "shape", "data_offsets"}

# How Python names the elements of some dtypes, and unsigned numbers as large as those of the others.
_FORMATS = {
    mx.uint8: "B", mx.uint16: "H", mx.uint32: "I", mx.uint64: "Q", mx.int8: "b", mx.int16: "h", mx.int32: "i", mx.int64: "q",
    mx.float32: "f",
}  # fmt: skip
_BITS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_SMALL, _FEW_AXES = 2**16, 8  # bytes and axes of the arrays that are read faster through a copy

_HEADER_TOO_LONG = "the header has {length} bytes, where {limit} are allowed"


class CheckpointError(ValueError):
    """Raised if a file is not a complete checkpoint, or not one of the tree asked for. The message names the file and why.

    >>> import frostleaf as fl, mlx.core as mx, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "empty.safetensors").write_bytes(b"")
    ...     try:
    ...         fl.load(f"{folder}/empty.safetensors", like=mx.array(0))
    ...     except fl.CheckpointError:
    ...         print("damaged")
    damaged
    """


class Entry(NamedTuple):
    """What the header says of an array: its dtype, its shape, and where in the file its bytes begin and end."""

    dtype: mx.Dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """A file's header, checked against the length of the file: the arrays by name, and the metadata strings."""

    file: str
    entries: dict[str, Entry]
    metadata: dict[str, str]


def fail(file: str | os.PathLike[str], reason: str) -> NoReturn:
    """Raise a ``CheckpointError`` that names the file."""
    raise CheckpointError(f"{os.fspath(file)}: {reason}") from None


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it is a directory, a pipe or a device.
    """
    return open(path, "rb", opener=_open)


def read_beginning(path: str, length: int) -> bytes:
    """Return the first bytes of a regular file.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If it is a directory, a pipe or a device.
    """
    handle = _open(path, os.O_RDONLY)
    try:
        return os.read(handle, length)
    finally:
        os.close(handle)


def _open(path: str, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes to would otherwise never open
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        fail(path, "is not a file")
    return handle


def read_header(file: BufferedReader) -> Header:
    """Return the header of a safetensors file, after checking that it can be true of a file of this length.

    The arrays must lie end to end and fill the file. Nothing larger than the header itself is read or allocated.

    Raises:
        CheckpointError: If anything is wrong; the message names the file and what it is.
    """
    name, size = str(file.name), os.fstat(file.fileno()).st_size
    if size < 8:
        fail(name, f"has {size} bytes, too few for a safetensors file")
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    base = 8 + length
    if base > size:
        claim = f"says that its header has {length} bytes, and the file has {size} altogether"
        fail(name, f"{claim}: it was cut off, or isn't safetensors")
    if length > MAX_HEADER:
        fail(name, _HEADER_TOO_LONG.format(length=length, limit=MAX_HEADER))
    given = parse_json(file.read(length), name)
    if not isinstance(given, dict):
        fail(name, "the header isn't a JSON object")
    metadata = given.pop(METADATA, None)
    metadata = {} if metadata is None else metadata  # MLX writes null for no metadata
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        fail(name, "the header's __metadata__ isn't a mapping of strings to strings")
    entries = {key: _check_entry(key, value, base, size, name) for key, value in given.items()}
    end = base
    for key, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            begin = f"begins at byte {entry.start - base} of the data"
            fail(name, f"array {key!r:.80} {begin}, and the one before it ends at {end - base}")
        end = entry.stop
    if end != size:
        fail(name, f"the arrays end at byte {end - base} of the data, and the file has {size - base} bytes of data")
    return Header(name, entries, metadata)


def _check_entry(name: str, given: Any, base: int, size: int, file: str) -> Entry:
    if not isinstance(given, dict) or given.keys() != _PARTS:
        fail(file, f"array {name!r:.80} is described by {given!a:.80}, and not by dtype, shape and data_offsets")
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _READABLE:
        fail(file, f"array {name!r:.80} has the unknown dtype {dtype!a:.80}")
    if not _are_counts(shape, _MAX_AXIS) or len(shape) > _MAX_AXES:
        limits = f"at most {_MAX_AXES} lengths from 0 to {_MAX_AXIS}"
        fail(file, f"array {name!r:.80} has the shape {shape!a:.80}, which isn't a list of {limits}")
    if not _are_counts(offsets, size - base) or len(offsets) != 2:
        fail(file, f"array {name!r:.80} has the offsets {offsets!a:.80}, which aren't two positions in the file")
    start, stop = offsets
    expected = math.prod(shape) * _READABLE[dtype].size
    if stop - start != expected:
        described = f"array {name!r:.80} of dtype {dtype} and shape {shape!a:.80}"
        fail(file, f"{described} takes {expected} bytes, and its offsets leave it {stop - start}")
    return Entry(_READABLE[dtype], tuple(shape), base + start, base + stop)


def _are_counts(values: Any, limit: int) -> bool:
    return isinstance(values, list) and not [value for value in values if type(value) is not int or not 0 <= value <= limit]


_DAMAGED_HEADER = (
    "the header is damaged: it doesn't have the checksum that it was saved with. If another program has written the file anew, "
    "with other metadata, model.load_weights reads the arrays"
)
_NO_CHECKSUMS = "the header has no valid checksums: the file was damaged, or isn't a checkpoint of frostleaf"


def read_checksums(header: Header) -> dict[str, int]:
    """Return the checksum of each array, after checking that of the header itself.

    Raises:
        CheckpointError: If the header is damaged or has no checksums.
    """
    if HEADER_CHECKSUM not in header.metadata:
        fail(header.file, _NO_CHECKSUMS)
    given, texts = header.metadata[HEADER_CHECKSUM], header.metadata
    # Another program may have written the arrays in another order. Each still has its own checksum.
    if given != _header_checksum(header.entries, texts) and given != _header_checksum(_laid_out(header.entries), texts):
        fail(header.file, _DAMAGED_HEADER)
    try:
        checksums = [int(text, 16) for text in header.metadata.get(CHECKSUMS, "").split()]
        return dict(zip(sorted(header.entries), checksums, strict=True))
    except ValueError:
        fail(header.file, _NO_CHECKSUMS)


def read_array(file: BufferedReader, header: Header, name: str, checksum: int) -> mx.array:
    """Return an array of the file. A large one is read directly into its own memory.

    What is returned may have to be evaluated, which takes nothing more from the file.

    Raises:
        CheckpointError: If its bytes don't have the checksum.
    """
    entry = header.entries[name]
    length = entry.stop - entry.start
    small = 0 < length <= _SMALL and len(entry.shape) <= _FEW_AXES
    file.seek(entry.start)
    if small:
        data = memoryview(file.read(length))
        found = len(data)
    else:
        array = mx.zeros(entry.shape, entry.dtype, stream=mx.cpu)
        mx.eval(array)
        # An array without elements has no memory to view.
        data = memoryview(array if length else bytearray()).cast("B")  # type: ignore[arg-type]
        found = file.readinto(data)
    if found != length:
        fail(header.file, f"array {name!r:.80} is cut off")
    if zlib.crc32(data) != checksum:
        fail(header.file, f"array {name!r:.80} is damaged: it doesn't have the checksum that it was saved with")
    return _array_of(data, entry) if small else array


def _array_of(data: memoryview, entry: Entry) -> mx.array:
    kind: Any = _FORMATS.get(entry.dtype) or _BITS[entry.dtype.size]
    return mx.array(data.cast(kind, entry.shape)).view(entry.dtype, stream=mx.cpu)  # type: ignore[arg-type]


def write(
    path: str, arrays: Mapping[str, mx.array], metadata: Mapping[str, str], checksums: Mapping[str, int] | None = None
) -> Header:
    """Write evaluated arrays to a safetensors file, with a checksum of each array and of the header, and return its header.

    Args:
        path: The file.
        arrays: The arrays by name.
        metadata: The header's metadata.
        checksums: The checksum of each array, if it is known. Default: they are computed.

    Raises:
        ValueError: If names and metadata are longer than a header may be.
    """
    entries = _laid_out(arrays)
    if checksums is None:
        checksums = {name: checksum_of(array) for name, array in arrays.items()}
    described = _json_entries(entries)
    texts = _with_checksums(described, metadata, [checksums[name] for name in sorted(arrays)])
    header = _encode_header(described, texts, path)
    with open(path, "wb") as file:
        file.write(header)
        for name in entries:
            file.write(bytes_of(arrays[name]))
    base = len(header)
    placed = {name: entries[name]._replace(start=base + entries[name].start, stop=base + entries[name].stop) for name in arrays}
    return Header(path, placed, texts)


def _laid_out(arrays: Mapping[str, mx.array | Entry]) -> dict[str, Entry]:
    """Return where :func:`write` puts arrays, in this order, whatever theirs is."""
    entries: dict[str, Entry] = {}
    end = 0
    # The largest elements come first, so that each array begins at a multiple of its element size.
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.size, name)):
        dtype, shape = arrays[name].dtype, arrays[name].shape
        start, end = end, end + math.prod(shape) * dtype.size
        entries[name] = Entry(dtype, shape, start, end)
    return entries


def without_arrays(metadata: Mapping[str, str], path: str) -> tuple[bytes, Header]:
    """Return what :func:`write` writes to a path if there are no arrays, and what it returns."""
    texts = _with_checksums({}, metadata, [])
    return _encode_header({}, texts, path), Header(path, {}, texts)


def bytes_of(array: mx.array) -> memoryview | bytes:
    """Return the bytes of an evaluated array, row by row: its memory, if that has them so."""
    if not array.size:  # it has no memory to view
        return b""
    view = memoryview(array)  # type: ignore[arg-type]
    return view.cast("B") if view.c_contiguous else view.tobytes()


def checksum_of(array: mx.array) -> int:
    """Return the checksum of an evaluated array's bytes."""
    return zlib.crc32(bytes_of(array))


def _with_checksums(described: Mapping[str, Any], metadata: Mapping[str, str], checksums: Iterable[int]) -> dict[str, str]:
    texts = {**metadata, CHECKSUMS: " ".join([f"{checksum:08x}" for checksum in checksums])}
    return texts | {HEADER_CHECKSUM: _checksum_of(_in_order(described), texts)}


def _encode_header(described: Mapping[str, Any], texts: Mapping[str, str], path: str) -> bytes:
    text = json.dumps({METADATA: texts, **described}, separators=(",", ":"))
    header = text.encode().ljust(-len(text) % 8 + len(text))
    if len(header) > MAX_HEADER:
        raise ValueError(f"{path}: {_HEADER_TOO_LONG.format(length=len(header), limit=MAX_HEADER)}")
    return len(header).to_bytes(8, "little") + header


def _header_checksum(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> str:
    return _checksum_of(_in_order(_json_entries(entries)), metadata)


def _checksum_of(in_order: str, metadata: Mapping[str, str]) -> str:
    texts = {key: text for key, text in metadata.items() if key != HEADER_CHECKSUM}
    return f"{zlib.crc32(f'[{_in_order(texts)}, {in_order}]'.encode()):08x}"


def _in_order(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _json_entries(entries: Mapping[str, Entry]) -> dict[str, Any]:
    base = min([entry.start for entry in entries.values()], default=0)
    return {
        name: {"dtype": _NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [entry.start - base, entry.stop - base]}
        for name, entry in entries.items()
    }


def parse_json(text: str | bytes, file: str, *, constants: bool = False) -> Any:
    """Parse JSON in which no object has a key twice; infinities and NaN are allowed with ``constants``.

    Raises:
        CheckpointError: If it isn't such JSON. The message names ``file``.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return (_LENIENT if constants else _STRICT).decode(decoded)
    except (ValueError, RecursionError) as error:
        fail(file, f"the header can't be read: {error}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice!r:.80} is there twice")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
_LENIENT = json.JSONDecoder(object_pairs_hook=_unique_keys)
