"""Save a model's parameters under their names, in files that MLX and others read, and load them, with other names if asked."""

from __future__ import annotations

import errno
import os
import warnings
from collections import Counter
from collections.abc import ItemsView, Iterable, Mapping, Set
from types import MappingProxyType
from typing import Any, TypeVar

import mlx.core as mx

from ..core.definition import Node
from ..core.shapes import ShapeDtypeStruct
from ..core.sharing import has_ties, with_leaves
from ..core.structure import flat_of
from ..core.words import Path, describe, keystr, level_of_caller, listed, nearest, shape_and_dtype
from ..edits.updating import persistent
from ..transforms import evaluation
from ..tree.comparison import equal
from ..tree.walk import at_path, tied_leaves, tied_places
from . import formats, sharded
from .advice import of_layers, prefixes_of
from .atomic import atomic_write, require_path
from .divided import parts_in, warn_of_parts
from .names import head_of, refusal_of_part, require_there
from .renaming import Rename as Rename
from .renaming import new_names
from .safetensors import fail
from .ties import followed


class UnmatchedWeightsWarning(UserWarning):
    """:meth:`Module.load_weights` with ``strict=False`` has loaded nothing, or what is none for its place.

    Nothing is loaded if no weight has the name of a parameter, or there is none. An array is none for its place if the model
    has another shape there, or integers where it has floating-point numbers, or the reverse.

    >>> import frostleaf as fl, mlx.core as mx, warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     model = fl.nn.Linear(1, 1).load_weights({"w": mx.ones((1, 1))}, strict=False)
    >>> caught[0].category.__name__
    'UnmatchedWeightsWarning'
    """


N = TypeVar("N", bound=Node)

_LINES = 8
_SUGGESTIONS = 5  # each takes as long as comparing one name with all others


def load_weights(module: N, file_or_weights: Any, strict: bool, rename: Rename | None) -> N:
    """Return the module with its parameters read from files or a list of pairs. See :meth:`Module.load_weights`."""
    given = _read(file_or_weights)
    weights, origins = _rename(given, rename)
    current = _named_parameters(module)
    if missing := current.keys() - weights.keys():
        weights = _with_tied(weights, given, origins, current, followed(_ties_in(file_or_weights), missing, rename))
    if weights.keys() - current.keys() and (ties := _tied_names(module)):
        # With strict=False a source that is left out is to stay as it is.
        left_out = set() if strict or rename is None else given.keys() - origins.values()
        weights, origins = _at_sources(weights, origins, current.keys() - left_out, ties)
        weights = _without_tied(weights, ties) if strict else weights
    new = {name: weights[name] for name in current if name in weights}
    for name, value in new.items():
        if not isinstance(value, mx.array):
            raise ValueError(f"Expected mx.array but received {type(value)} for parameter {name}: give mx.array(...)")
    if strict:
        _check_weights(module, weights, current, origins, rename, file_or_weights)
        _check_placeholders(module, current)
    elif current and not new and (weights or not given):
        message = _unmatched(module, weights.keys(), current.keys(), origins, rename) if weights else _NO_WEIGHTS
        warnings.warn(message, UnmatchedWeightsWarning, stacklevel=level_of_caller())
    elif unlike := [name for name in new if _is_unlike(new[name], current[name])]:
        message = _unlike(module, unlike, weights, current, origins)
        warnings.warn(message, UnmatchedWeightsWarning, stacklevel=level_of_caller())

    flat = flat_of(module)
    named = zip(flat.structure.leaf_names(), flat.leaves, flat.structure.remember(persistent), strict=True)
    leaves = [new.get(name, leaf) if saved else leaf for name, leaf, saved in named]
    return with_leaves(module, leaves, convert=True)  # type: ignore[no-any-return]


_UNMATCHED = "nothing was loaded, as none of the {count:,} weights has the name of a parameter of this {kind}: {names}.{advice}"
_NO_WEIGHTS = (
    "nothing was loaded, as there are no weights. Of a checkpoint in several files mx.load reads the head, which has names "
    "alone: give load_weights its path"
)


def _unmatched(module: Node, given: Set[str], wanted: Set[str], origins: Mapping[str, str], rename: Rename | None) -> str:
    names = listed([f"{name!r:.80}{nearest(name, wanted)}" for name in sorted(given)[:_SUGGESTIONS]], _SUGGESTIONS - 2)
    advice = _renaming_advice(given, wanted, origins, rename) or of_layers(given, wanted)
    return _UNMATCHED.format(count=len(given), kind=type(module).__name__, names=names, advice=advice)


_UNLIKE = (
    "the model has another shape, or integers for floats or the reverse, where these were loaded, as strict=False and MLX's "
    "load whatever has the name: {names}.{advice}"
)
_LEFT_OUT = " For {name!r} to stay as it is, let rename give None for {given!r}, as rename={{{given!r}: None}} does"


def _is_unlike(new: mx.array, old: mx.array | ShapeDtypeStruct) -> bool:
    """Return whether an array is none for the place of another: not if both have one number, or the place has none yet."""
    if not old.size or new.size == old.size == 1:
        return False
    return new.shape != old.shape or mx.issubdtype(new.dtype, mx.inexact) != mx.issubdtype(old.dtype, mx.inexact)


def _unlike(
    module: Node, unlike: list[str], weights: Mapping[str, Any], current: Mapping[str, Any], origins: Mapping[str, str]
) -> str:
    kinds = [[shape_and_dtype(arrays[name].shape, arrays[name].dtype) for arrays in (weights, current)] for name in unlike]
    names = [f"{name!r:.80} {new} for {old}" for name, (new, old) in zip(unlike, kinds, strict=True)]
    name = unlike[0]
    advice = _DIVIDED if parts_in(flat_of(module).structure) else of_layers(weights.keys(), current.keys())
    advice = advice or _LEFT_OUT.format(name=name, given=origins.get(name, name))
    return _UNLIKE.format(names=listed(names, _SUGGESTIONS - 2), advice=advice)


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


_NOT_SAVED = (
    "{names} can't come from weights, because arrays of private names and of buffers that aren't persistent are not saved, and "
    "the model has a ShapeDtypeStruct there. Load them into the model itself, without fl.eval_shape: of its arrays none is "
    "computed before it is used. Or put arrays there first, as in model.at({name!r}).set(array). With strict=False the shapes "
    "stay there"
)


def _check_placeholders(module: Node, loaded: Mapping[str, Any]) -> None:
    flat = flat_of(module)
    names = zip(flat.structure.leaf_names(), flat.leaves, strict=True)
    remaining = [name for name, leaf in names if isinstance(leaf, ShapeDtypeStruct) and name not in loaded]
    if remaining:
        raise ValueError(_NOT_SAVED.format(names=listed(remaining), name=remaining[0]))


_TIED = "{name}, which is tied to {source!r}, whose array is used: {leave_out} leaves it out"


_DIVIDED = (
    " Each rank has a part of this model: load whole weights into the whole model, and divide that, such as "
    "fl.distributed.fully_shard(whole.load_weights(file)) with whole = fl.eval_shape(Model), which holds no arrays"
)


def _check_weights(
    module: Node,
    weights: Mapping[str, Any],
    current: Mapping[str, mx.array],
    origins: Mapping[str, str],
    rename: Rename | None,
    source: Any,
) -> None:
    extra, missing = weights.keys() - current.keys(), current.keys() - weights.keys()
    divided = _DIVIDED if parts_in(flat_of(module).structure) else ""
    if extra:
        names = _listed(extra, missing or current, origins, tied_places(module), rename)
        advice = (
            divided
            or _renaming_advice(weights.keys(), current.keys(), origins, rename)
            or of_layers(weights.keys(), current.keys())
        )
        raise ValueError(f"Received {len(extra)} parameters not in model: \n{names}.{advice}")
    if missing:
        renaming = _renaming_advice(weights.keys(), current.keys(), origins, rename)
        advice = divided or f"{renaming}{_tying_advice(module, missing, weights)}" or of_layers(weights.keys(), current.keys())
        index = sharded.missing_in_index(source, missing)
        raise ValueError(f"Missing {len(missing)} parameters: \n{_listed(missing, (), origins)}.{advice}{index}")
    for name, array in current.items():
        new = weights[name]
        if new.shape != array.shape:
            raise ValueError(
                f"Expected shape {array.shape} but received shape {new.shape} for parameter {name}{divided and '.' + divided}"
            )


_UNUSED = (
    "rename has {names}, and no weight has such a name. A dict renames whole names, and a function may rename a part of each"
)


def _renaming_advice(given: Set[str], wanted: Set[str], origins: Mapping[str, str], rename: Rename | None) -> str:
    """Return what to say about ``rename`` to one whose weights have other names than the model's."""
    if isinstance(rename, Mapping):
        # What is left out may well be in other files only.
        unused = [name for name, new in rename.items() if new is not None and name not in origins.values()]
        return f"\n{_UNUSED.format(names=listed(map(repr, unused)))}." if unused else ""
    if rename is None and (prefix := next(iter(prefixes_of(given, wanted - given)), "")):
        is_whole = all(prefix + name in given for name in wanted)
        others = (
            f" if name.startswith({prefix!r}) else None"
            if is_whole and any(not name.startswith(prefix) for name in given)
            else ""
        )
        return f"\nThey begin with {prefix!r}: give rename=lambda name: name.removeprefix({prefix!r}){others}."
    if rename is None and (prefix := next(iter(prefixes_of(wanted, given - wanted)), "")):
        return f"\nThe model's begin with {prefix!r}: give rename=lambda name: {prefix!r} + name."
    return ""


_TIE = (
    "\nIf {targets} is to be the same array as {sources}, which has its shape, tie them first: model = model.tie({{{ties}}})."
)
_TIES = (
    "\nIf {targets} are to be the same arrays as {sources}, which have their shapes, tie them first: "
    "model = model.tie({{{ties}}})."
)


def _tying_advice(module: Node, missing: Set[str], weights: Mapping[str, Any]) -> str:
    """Return what to say where matrices are missing, and such a one in a layer of another class is given, as for words."""
    flat = flat_of(module)
    paths = dict(zip(flat.structure.leaf_names(), flat.structure.leaf_paths(), strict=True))
    ties: dict[str, str] = {}
    for target in sorted(missing)[:_LINES]:
        array = at_path(module, paths[target])
        alike = [name for name in weights if name in paths and array.ndim > 1 and weights[name].shape == array.shape]
        layers = {type(at_path(module, paths[name][:-1])) for name in (target, *alike)}
        if len(alike) == 1 and len(layers) == 2:
            ties[target] = alike[0]
    if not ties:
        return ""
    pairs = ", ".join(f"{target!r}: {source!r}" for target, source in ties.items())
    targets, sources = (" and ".join(map(repr, dict.fromkeys(names))) for names in (ties, ties.values()))
    return (_TIE if len(ties) == 1 else _TIES).format(targets=targets, sources=sources, ties=pairs)


def _listed(
    names: Iterable[str],
    others: Iterable[str],
    origins: Mapping[str, str],
    tied: Mapping[str, str] = MappingProxyType({}),
    rename: Rename | None = None,
) -> str:
    lines = []
    ordered = sorted(names)
    for count, name in enumerate(ordered[:_LINES]):
        if name in tied:
            given = origins.get(name, name)
            # What is printed takes the place of the rename that gives other names.
            names_given = None if callable(rename) else {**(rename or {}), given: None}
            fits = names_given is not None and len(names_given) <= _LINES
            leave_out = f"rename={names_given}" if fits else f"a rename that gives None for {given!r}"
            lines.append(_TIED.format(name=name, source=tied[name], leave_out=leave_out))
            continue
        origin = f" (given as {origins[name]!r})" if origins.get(name, name) != name else ""
        lines.append(f"{name}{origin}{nearest(name, others) if count < _SUGGESTIONS else ''}")
    return ",\n".join(lines) + f"\nand {len(ordered) - _LINES:,} more" * (len(ordered) > _LINES)
