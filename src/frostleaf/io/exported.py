"""Files with exported functions: what is in them besides what MLX writes, and functions read from them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import attrs
import mlx.core as mx

from ..core.structure import Flat, Kind, Structure, flat_of, kind_of, require_numbers, unflatten
from .atomic import require_path
from .description import Fact
from .results import Parts
from .safetensors import fail, open_regular, parse_json
from .signatures import Leaf, Signature

_VERSION = "1"
_FORMAT, _METADATA, _FUNCTIONS = "frostleaf", "metadata", "functions"

# After what MLX reads stands a checksum of it.
_SEAL = b"frostleaf-crc32:"
_DIGITS = 8
_CHUNK = 1 << 20


class Part(NamedTuple):
    """One of the functions in a file.

    Attributes:
        signature: What it takes.
        result: The structure of its result in JSON.
    """

    signature: Signature
    result: Any


def header_text(parts: Iterable[Part], metadata: Any) -> str:
    """Return the text that MLX keeps in the file."""
    functions = [
        {"names": each.names, "structure": each.facts, "arrays": each.leaves, "least": each.least, "result": result}
        for each, result in parts
    ]
    return json.dumps({_FORMAT: _VERSION, _METADATA: metadata, _FUNCTIONS: functions}, separators=(",", ":"))


def seal(file: str) -> None:
    """Append a checksum to a file that MLX has written, which MLX does not look at."""
    with open(file, "rb+") as opened:
        checksum = 0
        while chunk := opened.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
        opened.write(_SEAL + f"{checksum:0{_DIGITS}x}".encode())


_NOT_SEALED = (
    "is not a complete file of fl.export_function: it has been cut short, or something else has written it. Files of "
    "mx.export_function are read by mx.import_function"
)


def _require_sealed(path: str | os.PathLike[str]) -> None:
    """Raise a ``CheckpointError`` if a file is not as it was sealed."""
    with open_regular(path) as opened:
        rest = max(0, os.fstat(opened.fileno()).st_size - len(_SEAL) - _DIGITS)
        checksum = 0
        while chunk := opened.read(min(rest, _CHUNK)):
            checksum = zlib.crc32(chunk, checksum)
            rest -= len(chunk)
        sealed = opened.read()
    if not sealed.startswith(_SEAL):
        fail(path, _NOT_SEALED)
    if sealed != _SEAL + f"{checksum:0{_DIGITS}x}".encode():
        fail(path, "is damaged: it doesn't have its checksum")


def import_function(path: str | os.PathLike[str]) -> ImportedFunction:
    """Read a function of trees that :func:`export_function` or :func:`exporter` wrote.

    It takes trees of the structure, shapes and dtypes that it was exported with, and returns what the original returned:
    numbers, tuples, lists, dicts and named tuples as they were, modules as those of the arguments are. It can be
    differentiated, compiled and mapped like any other. MLX computes it in the main thread alone.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or not written by these.
        ValueError: When called, if the arguments are not such trees; the message names the paths where they differ.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.export_function(f"{folder}/f.mlxfn", lambda model, x: model(x), fl.nn.Linear(2, 3), mx.ones((4, 2)))
    ...     imported = fl.import_function(f"{folder}/f.mlxfn")
    >>> imported
    import_function(model: frostleaf.nn.Linear, x: f32[4,2])
    >>> imported(fl.nn.Linear(2, 3), mx.ones((5, 2)))
    Traceback (most recent call last):
        ...
    ValueError: the function was exported for other arguments:
    x: array f32[4,2] in the file, array f32[5,2] in the arguments
    """
    require_path(path, "fl.import_function(path)")
    _require_sealed(path)
    name = os.fsdecode(path)
    try:
        function, text = mx.import_function(name, return_metadata=True)  # type: ignore[misc]  # their stub has no overload
    except RuntimeError as error:  # as of a version of MLX that writes other files
        fail(name, f"can't be read by this version of MLX: {error}")
    header = parse_json(text, name, constants=True)
    if header[_FORMAT] != _VERSION:
        fail(name, f"has version {header[_FORMAT]!r} of the format, and this version of frostleaf reads {_VERSION!r}")
    return ImportedFunction(function, [_part(each) for each in header[_FUNCTIONS]], header[_METADATA])


def _part(code: Any) -> Part:
    leaves = [Leaf(path, name, dtype, tuple(shape), axis) for path, name, dtype, shape, axis in code["arrays"]]
    facts = [Fact(*fact) for fact in code["structure"]]
    return Part(Signature(code["names"], facts, leaves, {}, code["least"]), code["result"])


_OTHER = "the function was exported for other arguments:\n{differences}"
_NEAREST = (
    "the function was exported for {count} kinds of arguments, and not for these. The nearest is number {number}:\n"
    "{differences}"
)


@attrs.frozen(eq=False, repr=False)
class ImportedFunction:
    """A function of trees from a file. :func:`import_function` makes it.

    Attributes:
        metadata: What :func:`export_function` was given, as JSON has it.
    """

    _function: Any
    _parts: list[Part]
    metadata: Any
    # For each of the parts, the latest structures that were found to be those of its arguments, the spec of the result for
    # them, and the shapes and dtypes that they came with.
    _known: dict[int, tuple[list[Structure], Any, list[Kind]]] = attrs.field(init=False, factory=dict)

    def __call__(self, *trees: Any) -> Any:
        """Call the function.

        Raises:
            TypeError: If an argument is not a tree of arrays.
            ValueError: If the arguments are not such as the function was exported for; the message names the paths.
            LookupError: If the result holds a named tuple whose module has not been imported.
        """
        given = [flat_of(tree) for tree in trees]
        number = next((number for number in range(len(self._parts)) if self._takes(number, given)), None)
        if number is None:
            raise ValueError(self._refusal(given))
        positional, named = self._parts[number].signature.split([leaf for flat in given for leaf in flat.leaves])
        found = self._function(positional, named)
        return unflatten(self._known[number][1], iter(found))

    def _takes(self, number: int, given: Sequence[Flat]) -> bool:
        """Return whether a part is for such arguments."""
        signature, code = self._parts[number]
        structures = [flat.structure for flat in given]
        kinds = [kind_of(leaf) for flat in given for leaf in flat.leaves]
        if number in self._known and self._known[number][0] == structures:
            return self._known[number][2] == kinds or signature.fits(given)
        for flat in given:
            require_numbers(flat)
        if signature.differences(given):
            return False
        self._known[number] = structures, Parts(structures).decode(code), kinds
        return True

    def _refusal(self, given: Sequence[Flat]) -> str:
        differing = [part.signature.differences(given) for part in self._parts]
        nearest = min(differing, key=len)
        said = {"count": len(differing), "number": differing.index(nearest) + 1, "differences": "\n".join(nearest)}
        return (_OTHER if len(differing) == 1 else _NEAREST).format(**said)

    def __repr__(self) -> str:
        return f"import_function({' | '.join(str(signature) for signature, _ in self._parts)})"
