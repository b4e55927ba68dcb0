"""Save whole trees to one safetensors file, with their structure beside the arrays, and load them."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, overload

import mlx.core as mx

from ..core.arguments import refusing, require_bool
from ..core.shapes import ShapeDtypeStruct
from ..core.structure import flat_of
from ..core.words import describe, level_of_caller, shape_and_dtype
from ..edits.freezing import parameter_names
from ..transforms import evaluation
from ..tree.selecting import Where
from . import safetensors
from .advice import of_holder, of_packed_part
from .alignment import are_in_one_order
from .atomic import atomic_write, require_path
from .comparing import compared
from .describing import Describer
from .description import (
    STRUCTURE,
    Fact,
    array_kind,
    describe_tree,
    facts_text,
    is_leaf,
    is_value,
    name_in_file,
    read_facts,
    value_kind,
)
from .divided import warn_of_parts
from .habits import refusal_in_load, refusal_in_save, refusal_without_like
from .names import refusal_of_directory, refusal_of_format, refusal_of_part, require_there
from .partial import LoadReport, report_of, selection
from .parts import Opened, read_opened
from .placing import Read, placed
from .renaming import Rename
from .safetensors import CheckpointError, fail, parse_json
from .scalars import decode_value, encode_value
from .sharing import COPIES, SHARED, Sharing, find_sharing, read_sharing
from .unmatched import UnmatchedWeightsWarning

T = TypeVar("T")

# Version 2 has arrays under other names, and version 3 in other files; what has none is as those write it who don't know them.
# Earlier, version 2 had other files too, each with a list of the arrays that are read from there.
VERSION, WITH_SHARING, WITH_PARTS = "1", "2", "3"
_SHOWN = 3
# The keys of the header's metadata.
_FORMAT, _VALUES, _METADATA = "frostleaf", "frostleaf.values", "frostleaf.metadata"
DESCRIBING = (STRUCTURE, SHARED, COPIES)  # which are the same as long as the tree's structure is


class OtherStructureError(CheckpointError):
    """Raised if the file is undamaged, but holds a tree of another structure than the one asked for.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save(f"{folder}/a.safetensors", [mx.array(0)])
    ...     try:
    ...         fl.load(f"{folder}/a.safetensors", like={"x": mx.array(0)})
    ...     except fl.OtherStructureError:
    ...         print("another structure")
    another structure
    """


class UncomparedValueWarning(UserWarning):
    """A static value was saved that can't be described, so that :func:`load` can't tell it from another of its class.

    >>> import frostleaf as fl, tempfile, warnings
    >>> class Note(fl.Module):
    ...     about: object = fl.static()
    >>> with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
    ...     warnings.simplefilter("always")
    ...     fl.save(f"{folder}/note", Note(object()))
    >>> caught[0].category.__name__
    'UncomparedValueWarning'
    """


class Snapshot(NamedTuple):
    """A tree that any thread can write: its evaluated arrays by their names in the file, and the header's metadata.

    What is one object in the tree is one here.
    """

    arrays: dict[str, mx.array]
    metadata: dict[str, str]


@refusing(refusal_in_save)
def save(path: str | os.PathLike[str], tree: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Save a tree to a file from which :func:`load` restores it, bit for bit.

    Arrays are saved with dtype and shape, and so are the Python numbers, strings and bytes among the leaves, and ``None``.
    Everything else (classes, containers, static fields, modes, what is frozen) is described in the file for :func:`load` to
    compare: static values by what they are, functions by their names. A crash at any instant leaves the old file or the new
    one, whole.

    An array that stands at several places, as in variants of a model, is stored once and is one object again when it is loaded.
    Different arrays that are equal, bit for bit, are stored once if they have 1,024 bytes or more, and are different objects
    again.

    It is a safetensors file with a checksum for each array and one for the header. Other tools read its arrays under the names
    of :func:`frostleaf.tree.paths`, each under the first of its names; the header's metadata ``frostleaf.shared`` and
    ``frostleaf.copies`` have, as JSON, the others and the names that they lead to, and ``frostleaf.structure`` says what is
    tied in a module (:meth:`Module.tie`) and stands there once. :meth:`Module.load_weights` knows them all.

    The random state of ``mx.random`` is an array too: put ``mx.random.state[0]`` in the tree, and write
    ``mx.random.state[0][:] = tree["random"]`` to continue from it.

    Args:
        path: The file, which is replaced if it exists. Any extension will do, with a warning if it is that of another format;
            other tools know ``.safetensors``.
        tree: Any nesting of modules, optimizer states, tuples, lists, dicts and registered classes.
        metadata: A mapping of strings to anything that JSON can hold. :func:`load_metadata` returns it as JSON has it: tuples
            come back as lists. Default: nothing.

    Raises:
        TypeError: If something in the tree can't be saved, or ``metadata`` is not such a mapping.
        ValueError: If two arrays have the same dotted name.
        FileNotFoundError: If the file's directory doesn't exist.

    Warns:
        UncomparedValueWarning: If a static value is of a class that doesn't say when two are equal, such as one without an
            ``__eq__``. Only its class is compared then.
        PartialWeightsWarning: If arrays are parts of larger ones, of which other ranks have the rest.
        UserWarning: If the name ends as those of another format do, such as ``.npz``.

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
    name = require_path(path, "fl.save(path, tree)")
    snapshot = take_snapshot(tree, metadata)
    warn_of_parts(flat_of(tree).structure, name, "tree", "fl.save(path, whole)")
    if name.endswith(_OF_OTHER_FORMATS):
        warnings.warn(_NAMED_OTHERWISE.format(file=name), UserWarning, stacklevel=level_of_caller())
    write_snapshot(name, snapshot)


_OF_OTHER_FORMATS = (".npz", ".npy", ".gguf", ".pkl", ".pickle", ".pt", ".pth", ".h5", ".msgpack")
_NAMED_OTHERWISE = (
    "{file} gets a safetensors file, as fl.save writes no other: fl.load and load_weights read it, mx.load and others don't "
    "under this name. End the name in .safetensors"
)


@overload
def load(
    path: str | os.PathLike[str],
    like: T,
    *,
    where: Where | None = None,
    strict: Literal[True] = True,
    rename: Rename | None = None,
) -> T: ...
@overload
def load(
    path: str | os.PathLike[str], like: T, *, where: Where | None = None, strict: Literal[False], rename: Rename | None = None
) -> tuple[T, LoadReport]: ...
@overload
def load(
    path: str | os.PathLike[str], like: T, *, where: Where | None = None, strict: bool, rename: Rename | None = None
) -> T | tuple[T, LoadReport]: ...


@refusing(refusal_in_load, refusal_without_like)
def load(
    path: str | os.PathLike[str], like: T, *, where: Where | None = None, strict: bool = True, rename: Rename | None = None
) -> T | tuple[T, LoadReport]:
    """Return the tree that :func:`save` wrote to a file, after checking it against its checksums and against ``like``.

    Arrays that were one object are one again, and others are not, whichever of those in ``like`` are.

    Args:
        path: The file.
        like: A tree of the same structure: classes, containers, keys, static fields, modes, frozen names, dtypes and shapes,
            and the types of Python numbers. The keys of a dict may be in another order; what is returned has that of ``like``.
            A class or function of ``__main__`` is the same as one of its name in a module. Its arrays and numbers are not
            used, and it is not changed. From :func:`frostleaf.eval_shape` it takes no memory: ``fl.load(path,
            fl.eval_shape(make_model))``.
        where: What to read, as for :meth:`Module.at`: a path, a glob, a class, a function of a path and an array, or a list of
            these. Only the bytes of that are read, and only that must have the same structure; a glob must fit nothing in the
            file that ``like`` has not. A module all of whose arrays are selected, by whatever, must be the same in everything:
            class, static fields, modes, frozen names. One of which only some are selected is not compared. Everything else is
            that of ``like``, the same objects. Default: everything.
        strict: With ``False``, read what both trees have under one name, whatever else they have, and return a
            :class:`LoadReport` as well, whose ``differs`` has where static values, modes and what is frozen do. The rest is
            that of ``like``, and so is the structure. A place that is tied in the file and not in ``like`` gets the array of
            its source. What an optimizer remembers is read for the same rule alone. Default: ``True``.
        rename: A function from the dotted name of an array or number in the file to that in ``like``, or a mapping, which may
            leave out names that stay; ``None`` for a name leaves it out. What holds them follows: ``rename=lambda name:
            name.replace("encoder.", "backbone.")`` reads a layer of a model and of an optimizer's state. It is asked about what
            is packed (:func:`frostleaf.optim.flatten`) as if it were not. Default: the same.

    Returns:
        The tree; with ``strict=False`` the tree and the report.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, or its tree has another structure; the message says where they differ. With
            ``strict=False``, if something has another dtype, shape or type under the same name, or nothing has the same name.
        LookupError: If ``where`` selects nothing; the message suggests the nearest paths.
        ValueError: If ``where`` selects by the name of a tied place, or names are not unique.

    Warns:
        UnmatchedWeightsWarning: If a mapping ``rename`` has a name for one that the file has not, and not all was found.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save(f"{folder}/a.safetensors", {"weight": mx.array([1.0, 2.0]), "n": 1})
    ...     print(fl.load(f"{folder}/a.safetensors", {"weight": fl.ShapeDtypeStruct((2,)), "n": 0}))
    ...     print(fl.load(f"{folder}/a.safetensors", {"weight": fl.ShapeDtypeStruct((2,)), "n": 0}, where="n"))
    ...     print(fl.load(f"{folder}/a.safetensors", {"weights": mx.zeros(2), "n": 0}, strict=False)[1])
    ...     try:
    ...         fl.load(f"{folder}/a.safetensors", {"weights": mx.zeros(2), "n": 1.0})
    ...     except fl.CheckpointError as error:
    ...         print(error)
    {'weight': array([1, 2], dtype=float32), 'n': 1}
    {'weight': f32[2], 'n': 1}
    LoadReport(1 taken: 'n'; 1 left: 'weight'; 1 new: 'weights')
    /.../a.safetensors: the tree in the file doesn't have the structure of like:
    weight: array f32[2] in the file, nothing in like; the nearest is 'weights'
    n: a Python int in the file, a Python float in like
    weights: nothing in the file, array f32[2] in like; the nearest is 'weight'
    """
    name = require_path(path, "fl.load(path, like)")
    require_bool("strict", strict)
    _require_tree(name)
    return placed(like, read(name, like, where, strict, rename))  # type: ignore[no-any-return]


def _require_tree(path: str) -> None:
    """Raise an error that says what to open if a path is not that of a saved tree."""
    require_there(path)
    reason = refusal_of_directory(path) if os.path.isdir(path) else refusal_of_part(path) or refusal_of_format(path)
    if reason:
        fail(path, reason)


def read(path: str | os.PathLike[str], like: Any, where: Where | None, strict: bool, rename: Rename | None = None) -> Read:
    """Return what :func:`load` puts into a tree, with the same arguments and errors."""
    flat = flat_of(like)
    facts = describe_tree(flat.structure, flat.leaves).facts
    try:
        select = selection(like, where)
    except LookupError as error:
        raise LookupError(_in_vain(path, facts, where, str(error))) from None

    def read_all(opened: Opened) -> Read:
        contents = _read_contents(opened, facts)
        found = compared(contents.facts, facts, flat.structure, select, where, strict, rename)
        if found.reason:
            raise OtherStructureError(f"{contents.header.file}: {found.reason}")
        if strict and where is None and rename is None and are_in_one_order(contents.facts, facts):
            names = flat.structure.leaf_names()
            return Read(_read_arrays(opened, contents, names), contents.values, stored=names)
        parameters = parameter_names(flat.structure)
        report = report_of(contents.header.file, found.in_file, found.selected, found.wanted, where, parameters)
        if found.unused and report.new:
            warnings.warn(found.unused, UnmatchedWeightsWarning, stacklevel=level_of_caller())
        return _read_taken(opened, contents, report, found.origins, strict)

    return read_opened(path, read_all)


def _read_taken(opened: Opened, contents: _Contents, report: LoadReport, origins: Mapping[str, str], strict: bool) -> Read:
    """Return what a report says is taken of a file, which is reported by the names that the file has for what is left."""
    values = dict(zip([fact.path for fact in contents.facts if is_value(fact)], contents.values, strict=True))
    taken = {name: origins.get(name, name) for name in report.taken}
    places = sorted(taken, key=lambda name: taken[name] in values)  # the arrays first
    stored = [old for old in taken.values() if old not in values]
    numbers = [values[old] for old in taken.values() if old in values]
    read = {*taken.values()}
    left = tuple([fact.path for fact in contents.facts if is_leaf(fact) and fact.path not in read])
    return Read(_read_arrays(opened, contents, stored), numbers, places, None if strict else report._replace(left=left), stored)


def _in_vain(path: str | os.PathLike[str], like: Sequence[Fact], where: Where | None, error: str) -> str:
    """Return what is said of a selection that selects nothing in ``like``, with what to give where the file has it."""
    place = where.removesuffix(".**") if isinstance(where, str) else ""
    with suppress(OSError, CheckpointError):
        file = read_opened(path, lambda opened: _read_contents(opened, []).facts)
        if place and (whole := of_packed_part(file, [place])):
            return f"{where!r} selects nothing in like. {whole}"
        return error + of_holder(file, like, where)
    return error


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata that :func:`save` was given. Only the header is read, no array.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file's header is damaged, or the file doesn't have the length that the header says.

    >>> import frostleaf as fl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fl.save(f"{folder}/a.safetensors", [1, 2.5, None], metadata={"epoch": 3})
    ...     fl.load_metadata(f"{folder}/a.safetensors")
    {'epoch': 3}
    """
    name = require_path(path, "fl.load_metadata(path)")
    _require_tree(name)
    header = read_opened(name, lambda opened: opened.header)
    _require_version(header)
    safetensors.read_checksums(header)
    metadata = parse_json(header.metadata.get(_METADATA, ""), header.file, constants=True)
    return metadata if isinstance(metadata, dict) else _fail_at(header, _METADATA)


def saved_arrays(path: str | os.PathLike[str]) -> dict[str, tuple[ShapeDtypeStruct, int]]:
    """Return the shape, dtype and checksum of each array in a file, by its dotted path. Only headers are read.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If a header is damaged.
    """

    def arrays_in(opened: Opened) -> dict[str, tuple[ShapeDtypeStruct, int]]:
        header, sharing, facts, _ = _read_contents(opened, [])
        stored = {fact.path: sharing.stored(name_in_file(fact.path)) for fact in facts if array_kind(fact) is not None}
        entries = {name: header.entries[place] for name, place in stored.items()}
        return {
            name: (ShapeDtypeStruct(entry.shape, entry.dtype), opened.checksums[stored[name]])
            for name, entry in entries.items()
        }

    return read_opened(path, arrays_in)


_UNCOMPARED = (
    "load will not notice if {places}{more} becomes another object of its class, which doesn't say when two are equal. Make it "
    "a frozen dataclass, or give it an __eq__"
)


def take_snapshot(tree: Any, metadata: Mapping[str, Any] | None, describer: Describer | None = None) -> Snapshot:
    """Evaluate a tree's arrays and return them with what else is saved. Later assignments to the arrays don't change it."""
    flat = flat_of(tree)
    text, names, values, unknown = (describer or Describer()).describe(flat)
    if unknown:
        shown = " or ".join(f"{place} ({kind})" for place, kind in [*unknown.items()][:_SHOWN])
        more = f" (and {len(unknown) - _SHOWN} more)" if len(unknown) > _SHOWN else ""
        warnings.warn(_UNCOMPARED.format(places=shown, more=more), UncomparedValueWarning, stacklevel=level_of_caller())
    header_metadata = {
        _FORMAT: VERSION,
        STRUCTURE: text,
        _VALUES: json.dumps([encode_value(value) for value in values]),
        _METADATA: _encode_metadata(metadata),
    }
    evaluation.eval(flat.leaves)
    # An assignment to a part of an array changes the array object, so others with the same memory are kept.
    kept = {id(leaf): leaf[...] for leaf in flat.leaves}
    return Snapshot({name: kept[id(leaf)] for name, leaf in zip(names, flat.leaves, strict=True)}, header_metadata)


def write_snapshot(path: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Write a snapshot to a file, atomically."""
    sharing, checksums = find_sharing(snapshot.arrays)
    metadata = versioned({**snapshot.metadata, **sharing.texts()}, WITH_SHARING if sharing else VERSION)
    with atomic_write(path) as temporary:
        safetensors.write(temporary, {name: snapshot.arrays[name] for name in checksums}, metadata, checksums)


_NOT_A_CHECKPOINT = (
    "is not a checkpoint written by fl.save. If these are weights, model.load_weights(...) or mlx.core.load(...) reads them"
)


class _Contents(NamedTuple):
    """What a file says of itself, which has been checked against the arrays that it has.

    Attributes:
        header: The header.
        sharing: What it has under other names.
        facts: The description of the tree.
        values: Its numbers, strings and bytes, in order.
    """

    header: safetensors.Header
    sharing: Sharing
    facts: list[Fact]
    values: list[Any]


def _read_contents(opened: Opened, likely: list[Fact]) -> _Contents:
    """Return what a file says of itself. No facts are made if they are the likely ones."""
    header, sharing = _read_header(opened)
    facts = likely if header.metadata.get(STRUCTURE) == facts_text(likely) else read_facts(header)
    kind_of = functools.cache(shape_and_dtype)
    entries = {name: header.entries[sharing.stored(name)] for name in (*header.entries, *sharing.copies, *sharing.shared)}
    in_file = {name: kind_of(entry.shape, entry.dtype) for name, entry in entries.items()}
    described = [(name_in_file(fact.path), kind) for fact in facts if (kind := array_kind(fact)) is not None]
    values, kinds = _values(header), [fact.text for fact in facts if is_value(fact)]
    if len(described) != len(in_file) or dict(described) != in_file or [*map(value_kind, values)] != kinds:
        fail(header.file, "the header describes other arrays or values than the file has")
    return _Contents(header, sharing, facts, values)


def _read_arrays(opened: Opened, contents: _Contents, paths: Iterable[str]) -> list[mx.array]:
    """Return the arrays of some dotted names: one object for all that were one."""
    sharing = contents.sharing
    objects = [sharing.shared.get(name, name) for name in map(name_in_file, paths)]
    read = {name: opened.read(sharing.stored(name)) for name in dict.fromkeys(objects)}
    mx.eval([*read.values()])
    return [read[name] for name in objects]


def _read_header(opened: Opened) -> tuple[safetensors.Header, Sharing]:
    """Return a checkpoint's header and what it has under other names, after every check that needs no array."""
    _require_version(opened.header)
    opened.complete()
    header = opened.header
    sharing = read_sharing(header.file, header.entries.keys(), header.metadata)
    for name in (*header.entries, *sharing.copies, *sharing.shared):
        if "/" in name or "\\" in name:
            fail(header.file, f"the array name {name!r:.80} has a path separator in it")
    return header, sharing


def _require_version(header: safetensors.Header) -> None:
    version = header.metadata.get(_FORMAT)
    if version is None:
        fail(header.file, _NOT_A_CHECKPOINT)
    if version not in (VERSION, WITH_SHARING, WITH_PARTS):
        fail(header.file, f"has version {version!r} of the format, and this version of frostleaf reads {WITH_PARTS!r}")


def _fail_at(header: safetensors.Header, key: str) -> NoReturn:
    fail(header.file, f"the header's {key} isn't what it should be")


def versioned(metadata: Mapping[str, str], version: str) -> dict[str, str]:
    """Return a header's metadata with the version that those who read it have to know."""
    return {**metadata, _FORMAT: version}


def _values(header: safetensors.Header) -> list[Any]:
    given = parse_json(header.metadata.get(_VALUES, ""), header.file)
    try:
        return [decode_value(kind, text) for kind, text in given]
    except (TypeError, ValueError, KeyError):
        _fail_at(header, _VALUES)


def _encode_metadata(metadata: Mapping[str, Any] | None) -> str:
    try:
        if not isinstance(metadata, Mapping | None):
            raise TypeError("it isn't a mapping")
        return json.dumps(dict(metadata or {}))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"metadata is a mapping that JSON can hold, and was given as {describe(metadata)}: {error}") from None
