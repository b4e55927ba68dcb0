"""Files with exported functions: what is in them besides what MLX writes, and functions read from them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
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
        serves_all: Whether what it computes was traced for all lengths, in it or in a function from a file that it calls.
    """

    signature: Signature
    result: Any
    serves_all: bool


def header_text(parts: Iterable[Part], metadata: Any) -> str:
    """Return the text that MLX keeps in the file."""
    functions = [
        {
            "names": each.names,
            "structure": each.facts,
            "arrays": each.leaves,
            "least": [*each.least.items()],
            "result": result,
            "serves_all": serves_all,
        }
        for each, result, serves_all in parts
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
    numbers, tuples, lists, dicts and named tuples as they were, modules as those of the arguments are. It can be compiled like
    any other, and differentiated and mapped if it was exported without ``shapeless``: of what MLX traced for all lengths the
    derivatives are wrong, and are refused. Export what computes them. MLX computes it in the main thread alone.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or not written by these.
        ValueError: When called, if the arguments are not such trees; the message names the paths where they differ. When it is
            differentiated or mapped, if it was exported with ``shapeless``.

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
    With shapeless=True, fl.export_function exports it for every length of the first axis
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
    leaves = [Leaf(path, name, dtype, tuple(shape), tuple(axes)) for path, name, dtype, shape, axes in code["arrays"]]
    facts = [Fact(*fact) for fact in code["structure"]]
    return Part(Signature(code["names"], facts, leaves, {}, dict(code["least"])), code["result"], code["serves_all"])


_DERIVED = (
    "MLX can neither differentiate nor map a function that was exported with shapeless=True: of what it has traced for all "
    "lengths it computes other derivatives. Export what computes them, such as fl.value_and_grad(fn), or export fn without "
    "shapeless, for each shape that is needed, with fl.exporter"
)


@attrs.define
class Exporting:
    """What is found out of a function that is being exported.

    Attributes:
        guards: Whether what it calls is guarded, as it can't be in a file.
        serves_all: Whether it has called a function from a file that was traced for all lengths.
    """

    guards: bool
    serves_all: bool = False


exporting: ContextVar[Exporting | None] = ContextVar("exporting", default=None)


def _refuse(*_: Any) -> Any:
    raise ValueError(_DERIVED)


@mx.custom_function
def _guard(arrays: list[mx.array]) -> list[mx.array]:
    """Return arrays as they are, to be neither differentiated nor mapped."""
    return arrays


_guard.vjp(_refuse)
_guard.jvp(_refuse)
_guard.vmap(_refuse)


_OTHER = "the function was exported for other arguments:\n{differences}"
_SHAPELESS = "\nWith shapeless=True, fl.export_function exports it for every length of the first axis"
_FROZEN = (
    "\nThey differ in what is frozen: pass what .unfreeze() returns, and .freeze(...) where something is frozen in the file"
)
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

    def __call__(self, /, *trees: Any, **named: Any) -> Any:
        """Call the function. Any of its arguments may be given by name.

        Raises:
            TypeError: If an argument is not a tree of arrays, or given by position and by name.
            ValueError: If the arguments are not such as the function was exported for; the message names the paths.
            LookupError: If the result holds a named tuple whose module has not been imported.
        """
        number, (positional, keywords) = self._found(trees, named)
        compute = self._guarded if self._parts[number].serves_all else self._function
        return unflatten(self._known[number][1], iter(compute(positional, keywords)))

    def _guarded(self, positional: Sequence[mx.array], keywords: Mapping[str, mx.array]) -> Sequence[mx.array]:
        """Call MLX's function between guards: backward the last is met first, otherwise the first."""
        around = exporting.get()
        if around is not None:
            around.serves_all = True
            if not around.guards:
                return self._function(positional, keywords)  # type: ignore[no-any-return]
        arrays: Any = _guard([*positional, *keywords.values()])
        named = dict(zip(keywords, arrays[len(positional) :], strict=True))
        found = self._function(arrays[: len(positional)], named)
        return _guard(found) if found else found  # type: ignore[return-value]  # MLX ends the process for no arrays

    def arguments(self, /, *trees: Any, **named: Any) -> tuple[list[mx.array], dict[str, mx.array]]:
        """Return the arrays of trees as MLX's own ``import_function`` takes them: by position, and by name.

        So ``fn(*trees)`` is ``mx.import_function(path)(*positional, **keywords)``, and
        ``mx.save_safetensors(file, keywords)`` writes what a program in C++ or Swift passes by name.

        Raises:
            TypeError, ValueError, LookupError: As when the function is called.

        >>> import frostleaf as fl, mlx.core as mx, tempfile
        >>> model, x = fl.nn.Linear(2, 3), mx.ones((4, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fl.export_function(f"{folder}/f.mlxfn", lambda model, x: model(x), model, x)
        ...     positional, keywords = fl.import_function(f"{folder}/f.mlxfn").arguments(model, x)
        ...     plain = mx.import_function(f"{folder}/f.mlxfn")
        >>> len(positional), [*keywords]
        (1, ['weight', 'bias'])
        >>> plain(*positional, **keywords)[0].shape
        (4, 3)
        """
        positional, keywords = self._found(trees, named)[1]
        return [*positional], keywords

    def _found(
        self, trees: Sequence[Any], named: Mapping[str, Any]
    ) -> tuple[int, tuple[tuple[mx.array, ...], dict[str, mx.array]]]:
        """Return the number of the part that is for such arguments, and their arrays as MLX takes them."""
        positional, keywords = [flat_of(tree) for tree in trees], {name: flat_of(tree) for name, tree in named.items()}
        for number, part in enumerate(self._parts):
            given = part.signature.in_order(positional, keywords)
            if self._takes(number, given):
                return number, part.signature.split([leaf for flat in given.values() for leaf in flat.leaves])
        raise ValueError(self._refusal([part.signature.in_order(positional, keywords) for part in self._parts]))

    def _takes(self, number: int, given: Mapping[str, Flat]) -> bool:
        """Return whether a part is for such arguments."""
        signature, code, _ = self._parts[number]
        structures = [flat.structure for flat in given.values()]
        arrays = [leaf for flat in given.values() for leaf in flat.leaves]
        kinds = [kind_of(leaf) for leaf in arrays]
        if number in self._known and self._known[number][0] == structures and [*given] == signature.names:
            return self._known[number][2] == kinds or signature.fits(arrays)
        for flat in given.values():
            require_numbers(flat)
        if signature.differences(given):
            return False
        self._known[number] = structures, Parts(structures).decode(code), kinds
        return True

    def _refusal(self, calls: Sequence[Mapping[str, Flat]]) -> str:
        pairs = [(part.signature, given) for part, given in zip(self._parts, calls, strict=True)]
        differing = [signature.differences(given) for signature, given in pairs]
        nearest = min(differing, key=len)
        said = {"count": len(differing), "number": differing.index(nearest) + 1, "differences": "\n".join(nearest)}
        message = (_OTHER if len(differing) == 1 else _NEAREST).format(**said)
        message += _FROZEN * any(signature.is_frozen_otherwise(given) for signature, given in pairs)
        return message + _SHAPELESS * any(signature.has_other_lengths(given) for signature, given in pairs)

    def __repr__(self) -> str:
        return f"import_function({' | '.join(str(part.signature) for part in self._parts)})"
