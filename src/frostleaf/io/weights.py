"""Weights by name: matched with a model's, renamed, and handed to the files that MLX and others read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, ItemsView, Iterable, Mapping
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten

from ..edits.views import parameters
from ..node import Node, nearest
from ..tree.functions import dotted, flatten, paths, unflatten
from ..tree.walk import Descend, rewrite
from . import formats, sharded
from .atomic import replacing

N = TypeVar("N", bound=Node)
Rename = Callable[[str], str | None] | Mapping[str, str | None]

EXTRA = "Received {count} parameters not in model: \n{names}."
MISSING = "Missing {count} parameters: \n{names}."
NOT_AN_ARRAY = "Expected mx.array but received {kind} for parameter {name}"
WRONG_SHAPE = "Expected shape {expected} but received shape {given} for parameter {name}"
SAME_NAME = (
    "two parameters have the name {name!r}, so that a file can't tell them apart: rename a key of the dict that holds them"
)
NOT_WEIGHTS = (
    "load_weights takes the path of a file or directory, or pairs of a dotted name and an array, and was given a {kind}. For "
    "nested dicts of arrays, such as parameters() returns, there is update"
)
NOT_NAMED = "the weights have a name that isn't a string but {given!r}: give pairs of a dotted name and an array"
NOT_A_RENAME = "rename is a function of a name, or a mapping of names, and was given as a {kind}"
NOT_A_NAME = "rename gave {given!r} for {name!r}, where a string or None is needed"
RENAMED_ALIKE = "rename gives {new!r} for {first!r} and for {second!r}"
NO_NUMBERS = "can't save {name}, which is a ShapeDtypeStruct and has no numbers"
NOT_SAVED = (
    "{names} can't come from weights, because arrays of private names and of buffers that aren't persistent are not saved, and "
    "the model has a ShapeDtypeStruct there. Put arrays there first, as in model.at({name!r}).set(array), or give strict=False"
)
FILE_AND_SHARDS = (
    "{file} is the name of one file, and max_shard_bytes asks for a directory of files: give the path of a directory, or leave "
    "max_shard_bytes out"
)

# To look for the nearest names takes longer with each.
_NEAREST_FOR = 5


def load_weights(module: N, file_or_weights: Any, strict: bool, rename: Rename | None) -> N:
    """Return the module with its parameters read from files or a list of pairs. See :meth:`Module.load_weights`."""
    weights, origins = _renamed(_given(file_or_weights), rename)
    filled = _filled(module)
    current = _named_parameters(filled)
    if strict:
        _compare(weights, current, origins)
        _check_the_rest(module, filled, current)
    new = {name: weights[name] for name in current if name in weights}
    places = _array_types()

    def enter(path: tuple[Any, ...], value: Any) -> Any:
        return new.get(dotted(path), value) if isinstance(value, places) else Descend

    return rewrite(module, enter, convert=True)  # type: ignore[no-any-return]


def save_weights(module: Node, file: str | os.PathLike[str], max_shard_bytes: int | None) -> None:
    """Write the module's parameters to a file or a directory of files. See :meth:`Module.save_weights`."""
    name = os.fspath(file)
    one_file = name.endswith(formats.ENDINGS) and not os.path.isdir(name)
    if one_file and max_shard_bytes is not None:
        raise ValueError(FILE_AND_SHARDS.format(file=name))
    in_shards = max_shard_bytes is not None or os.path.isdir(name) or name.endswith(os.sep)
    ending = "" if in_shards else formats.ending_of(name, ", with a slash at the end if it is to be made")
    filled = _filled(module)
    arrays = _named_parameters(filled)
    for blank in _blanks(module, filled):
        if blank in arrays:
            raise ValueError(NO_NUMBERS.format(name=blank))
    if in_shards:
        sharded.write_directory(name, arrays, sharded.MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes)
    else:
        formats.check_arrays(arrays, ending, name)
        with replacing(name) as written:
            formats.write_file(written, arrays, ending)


def _given(source: Any) -> dict[str, Any]:
    """Return the weights by the names under which they were given."""
    if isinstance(source, list | tuple | Mapping | ItemsView):
        weights = dict(source)
        for name in weights:
            if not isinstance(name, str):
                raise TypeError(NOT_NAMED.format(given=name))
        return weights
    if not isinstance(source, str | os.PathLike):
        raise TypeError(NOT_WEIGHTS.format(kind=type(source).__name__))
    name = os.fspath(source)
    if name.endswith(sharded.INDEX_ENDING):
        return sharded.read_index(name)
    if os.path.isdir(name):
        return sharded.read_directory(name)
    if "." not in os.path.basename(name) and not os.path.exists(name):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return formats.read_file(name)


def _renamed(weights: dict[str, Any], rename: Rename | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the weights by our names, and the foreign name of each."""
    if rename is None:
        return weights, {}
    if not callable(rename) and not isinstance(rename, Mapping):
        raise TypeError(NOT_A_RENAME.format(kind=type(rename).__name__))
    origins: dict[str, str] = {}
    for name in weights:
        new = rename.get(name, name) if isinstance(rename, Mapping) else rename(name)
        if new is None:
            continue
        if not isinstance(new, str):
            raise TypeError(NOT_A_NAME.format(given=new, name=name))
        if new in origins:
            raise ValueError(RENAMED_ALIKE.format(new=new, first=origins[new], second=name))
        origins[new] = name
    return {new: weights[name] for new, name in origins.items()}, origins


def _named_parameters(module: Node) -> dict[str, mx.array]:
    pairs: list[tuple[str, Any]] = tree_flatten(parameters(module))  # type: ignore[assignment]
    named: dict[str, mx.array] = {}
    for name, value in pairs:
        if isinstance(value, mx.array):
            if name in named:
                raise ValueError(SAME_NAME.format(name=name))
            named[name] = value
    return named


def _array_types() -> tuple[Any, Any]:
    from ..transforms.shapes import ShapeDtypeStruct  # which is made of modules, and they of this file

    return mx.array, ShapeDtypeStruct


def _filled(module: N) -> N:
    """Return the module with an array, which nobody evaluates, in the place of each ``ShapeDtypeStruct``."""
    _, blank = _array_types()

    def zeros(value: Any) -> Any:
        return mx.zeros(value.shape, value.dtype) if isinstance(value, blank) else value

    leaves, structure = flatten(module)
    return unflatten(structure, leaves, static=zeros)  # type: ignore[no-any-return]


def _blanks(module: Node, filled: Node) -> list[str]:
    """Return the names of the places where the module has a ``ShapeDtypeStruct``."""
    there = set(paths(module))
    return [name for name in paths(filled) if name not in there]


def _check_the_rest(module: Node, filled: Node, loaded: Mapping[str, Any]) -> None:
    rest = [name for name in _blanks(module, filled) if name not in loaded]
    if rest:
        raise ValueError(NOT_SAVED.format(names=", ".join(rest), name=rest[0]))


def _compare(given: Mapping[str, Any], expected: Mapping[str, mx.array], origins: Mapping[str, str]) -> None:
    extra, missing = given.keys() - expected.keys(), expected.keys() - given.keys()
    if extra:
        raise ValueError(EXTRA.format(count=len(extra), names=_listed(extra, missing or expected, origins)))
    if missing:
        raise ValueError(MISSING.format(count=len(missing), names=_listed(missing, (), origins)))
    for name, array in expected.items():
        new = given[name]
        if not isinstance(new, mx.array):
            raise ValueError(NOT_AN_ARRAY.format(kind=type(new), name=name))
        if new.shape != array.shape:
            raise ValueError(WRONG_SHAPE.format(expected=array.shape, given=new.shape, name=name))


def _listed(names: Iterable[str], others: Iterable[str], origins: Mapping[str, str]) -> str:
    lines = []
    for count, name in enumerate(sorted(names)):
        origin = f" (given as {origins[name]!r})" if origins.get(name, name) != name else ""
        lines.append(f"{name}{origin}{nearest(name, others) if count < _NEAREST_FOR else ''}")
    return ",\n".join(lines)
