"""Whole trees in one safetensors file, with their structure beside the arrays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from io import BufferedReader
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx

from ..transforms.shapes import ShapeDtypeStruct
from ..tree.compare import describe
from ..tree.functions import dotted
from ..tree.structure import flat_of, put
from . import safetensors
from .atomic import replacing
from .describing import SCALARS, Fact, described, differences
from .safetensors import CheckpointError, fail, parsed

T = TypeVar("T")

VERSION = "1"
# What the texts of the header are called.
FORMAT, STRUCTURE, VALUES, METADATA = "frostleaf", "frostleaf.structure", "frostleaf.values", "frostleaf.metadata"

NO_NUMBERS = "save writes arrays, and {path} is a ShapeDtypeStruct, which has no numbers"
NOT_JSON = "metadata is a mapping that JSON can hold, and was given as {given}: {error}"
NOT_A_CHECKPOINT = (
    "is not a checkpoint written by fl.save. If these are weights, model.load_weights(...) or mlx.core.load(...) reads them"
)
UNKNOWN_VERSION = "has version {given!r} of the format, and this version of frostleaf reads {known!r}"
SEPARATOR = "the array name {name!r:.80} has a path separator in it"
BAD_TEXT = "the header's {key} isn't what it should be"
CONTRADICTION = "the header describes other arrays or values than the file has"
OTHER_STRUCTURE = "the tree in the file doesn't have the structure of like:\n{differences}"


class OtherStructureError(CheckpointError):
    """Raised where the file is whole, and of another tree than the one asked for."""


class Ready(NamedTuple):
    """A tree ready to be written by any thread: its arrays by their names in the file, and the texts of the header."""

    arrays: dict[str, mx.array]
    texts: dict[str, str]


def save(path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Return nothing, having written a tree to a file from which :func:`load` makes it again, bit for bit.

    Arrays are saved with dtype and shape, and so are Python numbers, strings and bytes in the places of arrays, and ``None``.
    Of everything else (classes, containers, static fields, modes, what is frozen) the file says what it was, for :func:`load`
    to compare. The file is a safetensors file, whose arrays other tools read under the names of :func:`frostleaf.tree.paths`,
    with a checksum for each array and one for the header. A crash at any instant leaves the old file or the new one, whole.

    The random state of ``mx.random`` is an array as well: put ``mx.random.state[0]`` in the tree, and to go on from it write
    ``mx.random.state[0][...] = tree["random"]``.

    Args:
        path: The file, which is replaced if it is there. Its extension does not matter; ``.safetensors`` tells other tools.
        tree: Any nesting of modules, optimizer states, tuples, lists, dicts and registered classes.
        metadata: What else to keep: a mapping of strings to what JSON can hold. :func:`load_metadata` returns it, as JSON has
            it: tuples come back as lists. Default: nothing.

    Raises:
        TypeError: If something in the tree can't be saved, or ``metadata`` is not such a mapping.
        ValueError: If two arrays have the same dotted name.
        FileNotFoundError: If the directory that the file is to be in is not there.

    >>> import frostleaf as fl, tempfile
    >>> model = fl.nn.Linear(2, 3)
    >>> tree = {"model": model, "state": fl.optim.Adam(1e-3).init(model), "epoch": 3, "best": None}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save(f"{folder}/run.safetensors", tree, metadata={"note": "before the holidays"})
    ...     loaded = fl.load(f"{folder}/run.safetensors", like={**tree, "epoch": 0})
    ...     fl.load_metadata(f"{folder}/run.safetensors")
    {'note': 'before the holidays'}
    >>> fl.tree.equal(loaded, tree), loaded["epoch"]
    (True, 3)
    """
    write(path, ready(tree, metadata))


def load(path: str | os.PathLike[str], like: T) -> T:
    """Return the tree that :func:`save` wrote to a file, after checking it against its checksums and against ``like``.

    Args:
        path: The file.
        like: A tree of the same structure: classes, containers, keys, static fields, modes, frozen names, dtypes and shapes,
            and the types of Python numbers. Its arrays and numbers are not used, and it is not changed. Made by
            :func:`frostleaf.eval_shape` it takes no memory: ``fl.load(path, fl.eval_shape(make_model))``.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is broken, or is not of such a tree; the message says where they differ.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save(f"{folder}/a.safetensors", {"weight": mx.array([1.0, 2.0]), "n": 1})
    ...     print(fl.load(f"{folder}/a.safetensors", {"weight": fl.ShapeDtypeStruct((2,)), "n": 0}))
    ...     try:
    ...         fl.load(f"{folder}/a.safetensors", {"weights": mx.zeros(2), "n": 1.0})
    ...     except fl.CheckpointError as error:
    ...         print(error)
    {'weight': array([1, 2], dtype=float32), 'n': 1}
    /.../a.safetensors: the tree in the file doesn't have the structure of like:
    weight: array f32[2] in the file, nothing in like; the nearest is 'weights'
    n: a Python int in the file, a Python float in like
    weights: nothing in the file, array f32[2] in like; the nearest is 'weight'
    """
    flat = flat_of(like)
    facts, arrays, expected = described(flat.structure, flat.leaves)
    with safetensors.opened(path) as file:
        header, checksums = _read_header(file)
        if header.metadata.get(STRUCTURE) != _structure_text(facts):
            reason = OTHER_STRUCTURE.format(differences="\n".join(differences(_facts(header), facts)))
            raise OtherStructureError(safetensors.BAD_FILE.format(file=header.file, reason=reason))
        in_file = {name: repr(ShapeDtypeStruct(entry.shape, entry.dtype)) for name, entry in header.entries.items()}
        values = _values(header)
        if in_file != arrays or list(map(type, values)) != list(map(type, expected)):
            fail(header.file, CONTRADICTION)
        leaves = iter([safetensors.read_array(file, header, name, checksums[name]) for name in arrays])
    rest = iter(values)

    def filled(value: Any) -> Any:
        if isinstance(value, ShapeDtypeStruct):
            return next(leaves)
        return next(rest) if type(value) in SCALARS else value

    return put(flat.structure, leaves, filled)  # type: ignore[no-any-return]


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata that :func:`save` was given, read from the header alone: no array is looked at.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file's header is broken, or its length is not what the header says.

    >>> import frostleaf as fl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save(f"{folder}/a.safetensors", [1, 2.5, None], metadata={"epoch": 3})
    ...     fl.load_metadata(f"{folder}/a.safetensors")
    {'epoch': 3}
    """
    with safetensors.opened(path) as file:
        header, _ = _read_header(file)
    metadata = parsed(header.metadata.get(METADATA, ""), header.file, constants=True)
    return metadata if isinstance(metadata, dict) else fail(path, BAD_TEXT.format(key=METADATA))


def ready(tree: Any, metadata: Mapping[str, Any] | None) -> Ready:
    """Return what :func:`write` needs of a tree, its arrays computed. What is done to the arrays later is not seen."""
    flat = flat_of(tree)
    facts, names, values = described(flat.structure, flat.leaves)
    for path, value in flat.structure.static_values():
        if isinstance(value, ShapeDtypeStruct):
            raise TypeError(NO_NUMBERS.format(path=dotted(path) or "the root"))
    texts = {
        FORMAT: VERSION,
        STRUCTURE: _structure_text(facts),
        VALUES: json.dumps([_coded(value) for value in values]),
        METADATA: _metadata_text(metadata),
    }
    mx.eval(flat.leaves)
    # Other handles of the same arrays: an assignment to a part of an array gives the old handle other contents.
    return Ready({name: leaf[...] for name, leaf in zip(names, flat.leaves, strict=True)}, texts)


def write(path: str | os.PathLike[str], given: Ready) -> None:
    """Write a tree to a file, which is replaced whole or not at all."""
    with replacing(path) as written:
        safetensors.write(written, given.arrays, given.texts)


def _read_header(file: BufferedReader) -> tuple[safetensors.Header, dict[str, int]]:
    """Return the header of a checkpoint and the checksums of its arrays, after every check that needs no array."""
    header = safetensors.read_header(file)
    version = header.metadata.get(FORMAT)
    if version is None:
        fail(header.file, NOT_A_CHECKPOINT)
    if version != VERSION:
        fail(header.file, UNKNOWN_VERSION.format(given=version, known=VERSION))
    for name in header.entries:
        if "/" in name or "\\" in name:
            fail(header.file, SEPARATOR.format(name=name))
    return header, safetensors.read_checksums(header)


def _structure_text(facts: list[Fact]) -> str:
    return json.dumps(facts, separators=(",", ":"))


def _facts(header: safetensors.Header) -> list[Fact]:
    given = parsed(header.metadata.get(STRUCTURE, ""), header.file)
    well_formed = isinstance(given, list) and all(
        isinstance(fact, list) and len(fact) == 3 and all(isinstance(text, str) for text in fact) for fact in given
    )
    return [Fact(*fact) for fact in given] if well_formed else fail(header.file, BAD_TEXT.format(key=STRUCTURE))


def _coded(value: Any) -> tuple[str, str]:
    """Return a number, a string or bytes as its type and a text from which it is made again exactly."""
    kind = type(value).__name__
    if isinstance(value, str):  # which may have halves of surrogate pairs, that JSON can't tell from whole ones
        return kind, value.encode("utf-8", "surrogatepass").hex()
    if isinstance(value, bytes):
        return kind, value.hex()
    if isinstance(value, complex):
        return kind, f"{value.real!r} {value.imag!r}"
    return kind, hex(value) if type(value) is int else repr(value)  # in decimal, an int may be too long for Python to read


_DECODERS: dict[str, Callable[[str], Any]] = {
    "bool": {"True": True, "False": False}.__getitem__,
    "int": lambda text: int(text, 16),
    "float": float,
    "complex": lambda text: complex(*map(float, text.split())),
    "str": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "bytes": bytes.fromhex,
}


def _values(header: safetensors.Header) -> list[Any]:
    given = parsed(header.metadata.get(VALUES, ""), header.file)
    try:
        return [_DECODERS[kind](text) for kind, text in given]
    except (TypeError, ValueError, KeyError):
        fail(header.file, BAD_TEXT.format(key=VALUES))


def _metadata_text(metadata: Mapping[str, Any] | None) -> str:
    try:
        if not isinstance(metadata, Mapping | None):
            raise TypeError("it isn't a mapping")
        return json.dumps(dict(metadata or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(NOT_JSON.format(given=describe(metadata), error=error)) from None
