"""The safetensors format: what a file's header says, believed only after every check, and files with checksums."""

from __future__ import annotations

import json
import math
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from typing import Any, NamedTuple, NoReturn

import mlx.core as mx

DTYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "U16": mx.uint16, "U32": mx.uint32, "U64": mx.uint64, "I8": mx.int8, "I16": mx.int16,
    "I32": mx.int32, "I64": mx.int64, "F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32, "F64": mx.float64,
    "C64": mx.complex64,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
READ = {**DTYPES, "F8_E4M3": mx.uint8, "F8_E8M0": mx.uint8}  # MLX has the bits of these

METADATA = "__metadata__"
CHECKSUMS = "crc32"
HEADER_CHECKSUM = "crc32.header"
MAX_HEADER = 100_000_000  # bytes; other readers of the format refuse more
MAX_AXIS = 2**31 - 1  # MLX counts in int32
MAX_AXES = 100

BAD_FILE = "{file}: {reason}"
NOT_A_FILE = "is not a file"
TOO_SHORT = "has {size} bytes, too few for a safetensors file"
HEADER_LENGTH = (
    "says that its header has {length} bytes, and the file has {size} altogether: it was cut off, or isn't safetensors"
)
HEADER_TOO_LONG = "the header has {length} bytes, where {limit} are allowed"
NOT_JSON = "the header can't be read: {error}"
SAME_KEY = "the name {key!r:.80} is there twice"
NOT_A_NUMBER = "{name} is not a number of JSON"
NOT_AN_OBJECT = "the header isn't a JSON object"
BAD_METADATA = "the header's __metadata__ isn't a mapping of strings to strings"
BAD_ENTRY = "array {name!r:.80} is described by {given!a:.80}, and not by dtype, shape and data_offsets"
BAD_DTYPE = "array {name!r:.80} has the unknown dtype {given!a:.80}"
BAD_SHAPE = "array {name!r:.80} has the shape {given!a:.80}, which isn't a list of at most 100 lengths from 0 to 2147483647"
BAD_OFFSETS = "array {name!r:.80} has the offsets {given!a:.80}, which aren't two positions in the file"
BAD_SIZE = (
    "array {name!r:.80} of dtype {dtype} and shape {shape!a:.80} takes {expected} bytes, and its offsets leave it {given}"
)
OVERLAP = "array {name!r:.80} begins at byte {start} of the data, and the one before it ends at {end}"
BAD_LENGTH = "the arrays end at byte {end} of the data, and the file has {size} bytes of data"
NO_CHECKSUMS = "the header has no valid checksums: the file was damaged, or isn't a checkpoint of frostleaf"
HEADER_DAMAGED = "the header is damaged: it doesn't have the checksum that it was saved with"
ARRAY_DAMAGED = "array {name!r:.80} is damaged: it doesn't have the checksum that it was saved with"
CUT_OFF = "array {name!r:.80} is cut off"


class CheckpointError(ValueError):
    """Raised where a file is not a whole checkpoint, or not of the tree asked for. The message names the file and why."""


class Entry(NamedTuple):
    """What the header says of an array: its dtype, its shape, and where in the file its bytes begin and end."""

    dtype: mx.Dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a file's header says, checked against the length of the file: arrays by name, and the texts beside them."""

    file: str
    entries: dict[str, Entry]
    metadata: dict[str, str]


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BufferedReader]:
    """Return a context whose value is the file, open for reading.

    Raises:
        FileNotFoundError: If there is none.
        CheckpointError: If there is a directory, a pipe or a device in its place.
    """
    with open(path, "rb", opener=_open) as file:
        yield file


def read_header(file: BufferedReader) -> Header:
    """Return what the header of a safetensors file says, having checked that it can be true of a file of this length.

    Arrays lie end to end and fill the file. Nothing larger than the header itself is read or allocated.

    Raises:
        CheckpointError: If anything is wrong; the message names the file and what it is.
    """
    name, size = str(file.name), os.fstat(file.fileno()).st_size
    if size < 8:
        fail(name, TOO_SHORT.format(size=size))
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        fail(name, HEADER_LENGTH.format(length=length, size=size))
    if length > MAX_HEADER:
        fail(name, HEADER_TOO_LONG.format(length=length, limit=MAX_HEADER))
    given = parsed(file.read(length), name)
    if not isinstance(given, dict):
        fail(name, NOT_AN_OBJECT)
    metadata = given.pop(METADATA, None)
    metadata = {} if metadata is None else metadata  # MLX writes null where there are none
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        fail(name, BAD_METADATA)
    entries = {key: _entry(key, value, 8 + length, size, name) for key, value in given.items()}
    end = 8 + length
    for key, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            fail(name, OVERLAP.format(name=key, start=entry.start - 8 - length, end=end - 8 - length))
        end = entry.stop
    if end != size:
        fail(name, BAD_LENGTH.format(end=end - 8 - length, size=size - 8 - length))
    return Header(name, entries, metadata)


def read_checksums(header: Header) -> dict[str, int]:
    """Return the checksum of each array, having checked that of the header itself.

    Raises:
        CheckpointError: If the header is damaged or has no checksums.
    """
    if HEADER_CHECKSUM not in header.metadata:
        fail(header.file, NO_CHECKSUMS)
    if header.metadata[HEADER_CHECKSUM] != _header_checksum(header.entries, header.metadata):
        fail(header.file, HEADER_DAMAGED)
    try:
        checksums = [int(text, 16) for text in header.metadata.get(CHECKSUMS, "").split()]
        return dict(zip(sorted(header.entries), checksums, strict=True))
    except ValueError:
        fail(header.file, NO_CHECKSUMS)


def read_array(file: BufferedReader, header: Header, name: str, checksum: int) -> mx.array:
    """Return an array of the file, read into the memory that it keeps.

    Raises:
        CheckpointError: If its bytes don't have the checksum.
    """
    entry = header.entries[name]
    array = mx.zeros(entry.shape, entry.dtype, stream=mx.cpu)
    mx.eval(array)
    found = 0
    if array.size:  # an array without elements has no memory to look at
        file.seek(entry.start)
        view = memoryview(array).cast("B")  # type: ignore[arg-type]
        if file.readinto(view) != len(view):
            fail(header.file, CUT_OFF.format(name=name))
        found = zlib.crc32(view)
    if found != checksum:
        fail(header.file, ARRAY_DAMAGED.format(name=name))
    return array


def write(path: str, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a checksum of each array and of the header. The arrays have been evaluated.

    Raises:
        ValueError: If the names and texts are longer than a header may be.
    """
    # The largest elements come first, so that each array begins at a multiple of the size of its own.
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.size)
    entries: dict[str, Entry] = {}
    end = 0
    for name in order:
        entries[name] = Entry(arrays[name].dtype, arrays[name].shape, end, end + arrays[name].nbytes)
        end += arrays[name].nbytes
    checksums = dict.fromkeys(arrays, 0)
    header = _header(entries, metadata, checksums)
    if len(header) > MAX_HEADER:
        raise ValueError(BAD_FILE.format(file=path, reason=HEADER_TOO_LONG.format(length=len(header), limit=MAX_HEADER)))
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            if arrays[name].size:
                view = memoryview(arrays[name])  # type: ignore[arg-type]
                data = view.cast("B") if view.c_contiguous else view.tobytes()
                checksums[name] = zlib.crc32(data)
                file.write(data)
        file.seek(8)
        file.write(_header(entries, metadata, checksums))  # as long as the first: the checksums are of one length


def parsed(text: str | bytes, file: str, *, constants: bool = False) -> Any:
    """Return what JSON says, in which no name may be there twice. With ``constants`` it may have infinities and NaN.

    Raises:
        CheckpointError: If it isn't such JSON. ``file`` is named in the message.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_without_twins, parse_constant=float if constants else _no_constant)
    except (ValueError, RecursionError) as error:
        fail(file, NOT_JSON.format(error=error))


def fail(file: str | os.PathLike[str], reason: str) -> NoReturn:
    raise CheckpointError(BAD_FILE.format(file=os.fspath(file), reason=reason)) from None


def _open(path: str, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes to would otherwise never open
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        fail(path, NOT_A_FILE)
    return handle


def _entry(name: str, given: Any, base: int, size: int, file: str) -> Entry:
    if not isinstance(given, dict) or given.keys() != {"dtype", "shape", "data_offsets"}:
        fail(file, BAD_ENTRY.format(name=name, given=given))
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(dtype, str) or dtype not in READ:
        fail(file, BAD_DTYPE.format(name=name, given=dtype))
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(_within(axis, MAX_AXIS) for axis in shape):
        fail(file, BAD_SHAPE.format(name=name, given=shape))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_within(each, size - base) for each in offsets):
        fail(file, BAD_OFFSETS.format(name=name, given=offsets))
    expected = math.prod(shape) * READ[dtype].size
    if offsets[1] - offsets[0] != expected:
        given = offsets[1] - offsets[0]
        fail(file, BAD_SIZE.format(name=name, dtype=dtype, shape=shape, expected=expected, given=given))
    return Entry(READ[dtype], tuple(shape), base + offsets[0], base + offsets[1])


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str], checksums: Mapping[str, int]) -> bytes:
    said = {**metadata, CHECKSUMS: " ".join(f"{checksums[name]:08x}" for name in sorted(checksums))}
    said[HEADER_CHECKSUM] = _header_checksum(entries, said)
    text = json.dumps({METADATA: said, **_as_json(entries)}, separators=(",", ":"))
    return text.encode().ljust(-len(text) % 8 + len(text))


def _header_checksum(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> str:
    said = {key: text for key, text in metadata.items() if key != HEADER_CHECKSUM}
    return f"{zlib.crc32(json.dumps([said, _as_json(entries)], sort_keys=True).encode()):08x}"


def _as_json(entries: Mapping[str, Entry]) -> dict[str, Any]:
    base = min([entry.start for entry in entries.values()], default=0)
    return {
        name: {"dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [entry.start - base, entry.stop - base]}
        for name, entry in entries.items()
    }


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(SAME_KEY.format(key=key))
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(NOT_A_NUMBER.format(name=name))


def _within(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit
