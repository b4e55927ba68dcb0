"""Save a model's parameters under their names, in files that MLX and others read, and load them, with other names if asked."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import ItemsView, Iterable, Mapping, Set
from typing import Any, TypeVar

import mlx.core as mx

from ..core.definition import Node
from ..core.shapes import ShapeDtypeStruct
from ..core.sharing import has_ties, with_leaves
from ..core.structure import flat_of
from ..core.words import Path, describe, keystr
from ..edits.updating import persistent
from ..transforms import evaluation
from ..tree.comparison import equal
from ..tree.walk import at_path, tied_leaves
from . import formats, sharded
from .atomic import atomic_write, require_path
from .divided import warn_of_parts
from .names import head_of, refusal_of_part, require_there
from .renaming import Rename as Rename
from .renaming import new_names
from .safetensors import fail
from .ties import followed
from .unmatched import require_matching, require_no_shapes, warn_of_unmatched

N = TypeVar("N", bound=Node)


def load_weights(module: N, file_or_weights: Any, strict: bool, rename: Rename | None) -> N:
    """Return the module with its parameters read from files or a list of pairs. See :meth:`Module.load_weights`."""
    given = _read(file_or_weights)
    weights, origins = _rename(given, rename)
    current = _named_parameters(module)
    missing = current.keys() - weights.keys()
    ties = _ties_in(file_or_weights) if missing else {}
    if missing:
        weights = _with_tied(weights, given, origins, current, followed(ties, missing, rename))
    if weights.keys() - current.keys() and (tied := _tied_names(module)):
        # With strict=False a source that is left out is to stay as it is.
        left_out = set() if strict or rename is None else given.keys() - origins.values()
        weights, origins = _at_sources(weights, origins, current.keys() - left_out, tied)
        weights = _without_tied(weights, tied) if strict else weights
    new = {name: weights[name] for name in current if name in weights}
    for name, value in new.items():
        if not isinstance(value, mx.array):
            raise ValueError(f"Expected mx.array but received {type(value)} for parameter {name}: give mx.array(...)")
    if strict:
        require_matching(module, weights, current, origins, rename, file_or_weights)
        require_no_shapes(module, current)
    warn_of_unmatched(module, weights, current, origins, rename, strict, given.keys() | ties.keys())

    flat = flat_of(module)
    named = zip(flat.structure.leaf_names(), flat.leaves, flat.structure.remember(persistent), strict=True)
    leaves = [new.get(name, leaf) if saved else leaf for name, leaf, saved in named]
    return with_leaves(module, leaves, convert=True)  # type: ignore[no-any-return]


_FILE_AND_SHARDS = (
    "{file} is the name of one file, and max_shard_bytes asks for a directory of files: give the path of a directory, or leave "
    "max_shard_bytes out"
)


def save_weights(module: Node, file: str | os.PathLike[str], max_shard_bytes: int | None) -> None:
    """Write the module's parameters to a file or a directory of files. See :meth:`Module.save_weights`."""
    name = require_path(file, "save_weights(file)")
    one_file = name.endswith(formats.ENDINGS) and not os.path.isdir(name)
    if one_file and max_shard_bytes is not None:
        raise ValueError(_FILE_AND_SHARDS.format(file=name))
    in_shards = max_shard_bytes is not None or os.path.isdir(name) or name.endswith(os.sep)
    ending = "" if in_shards else formats.ending_of(name, ", with a slash at the end if it is to be made")
    arrays = _named_parameters(module)
    arrays |= {target: arrays[source] for target, source in _tied_names(module, of_mlx=True).items() if source in arrays}
    for parameter, array in arrays.items():
        if isinstance(array, ShapeDtypeStruct):
            raise ValueError(f"can't save {parameter}, which is a ShapeDtypeStruct and has no numbers")
    warn_of_parts(flat_of(module).structure, name, "model", "whole.save_weights(file)", arrays)
    evaluation.eval(arrays)  # MLX's writing would wait for other processes without notice
    if in_shards:
        sharded.write_directory(name, arrays, sharded.MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes)
    else:
        formats.check_arrays(arrays, ending, name)
        with atomic_write(name) as temporary:
            formats.write_file(temporary, arrays, ending)


_NOT_WEIGHTS = (
    "load_weights takes the path of a file or directory, a list of files, or a dict or pairs of dotted names and arrays, and "
    "was given a {kind}. For nested dicts of arrays, such as parameters() returns, there is update"
)


def _read(source: Any) -> dict[str, Any]:
    """Return the weights by the names in the file or the pairs."""
    if isinstance(source, Mapping) and any(isinstance(value, Mapping | list | tuple) for value in source.values()):
        raise TypeError(_NOT_WEIGHTS.format(kind="nested dict"))
    if isinstance(source, list | tuple) and source and all(map(_is_file, source)):
        files = [os.fspath(each) for each in source]
        _refuse_parts(files)
        return sharded.read_files(files)
    if isinstance(source, list | tuple | Mapping | ItemsView):
        return _weights_of(source.items() if isinstance(source, Mapping) else source)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(_NOT_WEIGHTS.format(kind=type(source).__name__))
    name = os.fspath(source)
    if name.endswith(sharded.INDEX_ENDING):
        return sharded.read_index(name)
    if os.path.isdir(name):
        return sharded.read_directory(name)
    require_there(name)
    if "." not in os.path.basename(name) and not os.path.exists(name):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    _refuse_parts([name])
    return formats.read_file(name)


def _ties_in(source: Any) -> dict[str, str]:
    """Return for the names of tied places in files the names in these for what is there."""
    several = isinstance(source, list | tuple) and all(map(_is_file, source))
    paths = [os.fspath(each) for each in (source if several else [source]) if isinstance(each, str | os.PathLike)]
    # What is tied in a checkpoint its head says, which stands beside the directory of its weights.
    files = [head_of(path) or (os.path.join(path, sharded.SINGLE) if os.path.isdir(path) else path) for path in paths]
    there = [file for file in files if os.path.exists(file) and not file.endswith(sharded.INDEX_ENDING)]
    return {name: place for file in there for name, place in formats.tied_names_in(file).items()}


def _with_tied(
    weights: dict[str, Any],
    given: Mapping[str, Any],
    origins: Mapping[str, str],
    current: Mapping[str, mx.array],
    ties: Mapping[str, str],
) -> dict[str, Any]:
    """Return the weights with those for other places that are tied to what is given, where that has their shape."""
    pairs = [(name, given[source]) for name, source in ties.items() if source in given]
    tied = {name: array for name, array in pairs if array.shape == current[name].shape}
    read = {ties[name] for name in tied}  # by other names, and may have no place of their own
    return {name: value for name, value in weights.items() if name in current or origins.get(name, name) not in read} | tied


def _refuse_parts(files: Iterable[str]) -> None:
    for file in files:
        if reason := refusal_of_part(file):
            fail(file, reason)


def _is_file(value: Any) -> bool:
    return isinstance(value, os.PathLike) or (
        isinstance(value, str) and (value.endswith(formats.ENDINGS) or os.path.isfile(value))
    )


_PAIRS = "give pairs of a dotted name and an array"


def _weights_of(pairs: Iterable[Any]) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise TypeError(f"the weights have {describe(pair)} where a pair is needed: {_PAIRS}")
        name, value = pair
        if not isinstance(name, str):
            raise TypeError(f"the weights have a name that isn't a string but {describe(name)}: {_PAIRS}")
        weights[name] = value
    return weights


def _rename(weights: dict[str, Any], rename: Rename | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the weights by the model's names, and the original name of each."""
    if rename is None:
        return weights, {}
    origins = new_names(weights, rename)
    return {new: weights[name] for new, name in origins.items()}, origins


_SAME_NAME = (
    "two parameters have the name {name!r}, so that a file can't tell them apart: rename a key of the dict that holds them"
)


def _named_parameters(module: Node) -> dict[str, mx.array]:
    flat = flat_of(module)
    saved = zip(flat.structure.leaf_names(), flat.leaves, flat.structure.remember(persistent), strict=True)
    pairs = [(name, leaf) for name, leaf, is_saved in saved if is_saved]
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError(_SAME_NAME.format(name=Counter(name for name, _ in pairs).most_common(1)[0][0]))
    return named


def _tied_names(module: Node, of_mlx: bool = False) -> dict[str, str]:
    """Map the names of tied places to those that the tree has for what is there.

    With ``of_mlx`` only those in modules that stand for ones of MLX, which has the arrays under both names.
    """
    if not flat_of(module).structure.remember(has_ties):
        return {}
    ties = tied_leaves(module, of_mlx)
    return {keystr(target): keystr(source) for target, source in ties.items() if _is_saved(module, target)}


def _is_saved(tree: Any, path: Path) -> bool:
    """Return whether what is at a path is saved with the parameters."""
    for length, entry in enumerate(path):
        holder = at_path(tree, path[:length])
        if isinstance(holder, Node) and entry not in holder.__frostleaf__.persistent:
            return False
    return True


def _at_sources(
    weights: Mapping[str, Any], origins: Mapping[str, str], wanted: Set[str], ties: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the weights, and their original names, with what is named after a tied place under the name of its source.

    That is so where nothing else has the name of the source, as in a file of a model that is tied the other way round.
    """
    found: dict[str, str] = {}
    for target, source in ties.items():
        if target in weights and source in wanted and source not in weights:
            found.setdefault(source, target)
    moved = {*found.values()}
    rest = {name: value for name, value in weights.items() if name not in moved}
    places = {source: origins.get(target, target) for source, target in found.items()}
    return rest | {source: weights[target] for source, target in found.items()}, {**origins, **places}


def _without_tied(weights: dict[str, Any], ties: Mapping[str, str]) -> dict[str, Any]:
    """Leave out what a file has under a second name, as those of MLX do, where it is the same as under the first."""
    same = {name for name, source in ties.items() if name in weights and source in weights and _is_same(weights, name, source)}
    return {name: value for name, value in weights.items() if name not in same}


def _is_same(weights: Mapping[str, Any], name: str, source: str) -> bool:
    value, other = weights[name], weights[source]
    return value is other or (isinstance(value, mx.array) and isinstance(other, mx.array) and equal(value, other))
