"""Weights by name, in the files that MLX and others read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten

from ..edits.views import parameters
from ..node import Node, nearest
from ..tree.functions import dotted
from ..tree.walk import Descend, rewrite

N = TypeVar("N", bound=Node)

EXTRA = "Received {count} parameters not in model: \n{names}."
MISSING = "Missing {count} parameters: \n{names}."
NOT_AN_ARRAY = "Expected mx.array but received {kind} for parameter {name}"
WRONG_SHAPE = "Expected shape {expected} but received shape {given} for parameter {name}"
SAME_NAME = (
    "two parameters have the name {name!r}, so that a file can't tell them apart: rename a key of the dict that holds them"
)
NOT_WEIGHTS = (
    "load_weights takes the path of a file, or pairs of a dotted name and an array, and was given a {kind}. For nested dicts "
    "of arrays, such as parameters() returns, there is update"
)
UNKNOWN_FORMAT = "Unsupported file extension for {file}. Use '.npz' or '.safetensors'."


def load_weights(module: N, file_or_weights: Any, strict: bool) -> N:
    """Return the module with its parameters read from a file or a list of pairs. See :meth:`Module.load_weights`."""
    if isinstance(file_or_weights, str | os.PathLike):
        weights: dict[str, Any] = mx.load(_checked_name(file_or_weights))  # type: ignore[assignment]
    elif isinstance(file_or_weights, list | tuple | Mapping):
        weights = dict(file_or_weights)
    else:
        raise TypeError(NOT_WEIGHTS.format(kind=type(file_or_weights).__name__))
    current = _named_parameters(module)
    if strict:
        _compare(weights, current)
    new = {name: weights[name] for name in current if name in weights}

    def enter(path: tuple[Any, ...], value: Any) -> Any:
        return new.get(dotted(path), value) if isinstance(value, mx.array) else Descend

    return rewrite(module, enter, convert=True)  # type: ignore[no-any-return]


def save_weights(module: Node, file: str | os.PathLike[str]) -> None:
    """Write the module's parameters to a file. See :meth:`Module.save_weights`."""
    name = os.path.realpath(_checked_name(file))  # what a link points to is written, and the link stays
    arrays = _named_parameters(module)
    # Written whole under another name first: a crash leaves the old file or the new one.
    with tempfile.TemporaryDirectory(dir=Path(name).absolute().parent, prefix=".frostleaf-") as room:
        written = os.path.join(room, os.path.basename(name))
        if name.endswith(".npz"):
            mx.savez(written, **arrays)
        else:
            mx.save_safetensors(written, arrays)
        with open(written, "rb") as handle:
            os.fsync(handle.fileno())
        if os.path.exists(name):
            shutil.copymode(name, written)
        os.replace(written, name)


def _named_parameters(module: Node) -> dict[str, mx.array]:
    pairs: list[tuple[str, Any]] = tree_flatten(parameters(module))  # type: ignore[assignment]
    named: dict[str, mx.array] = {}
    for name, value in pairs:
        if isinstance(value, mx.array):
            if name in named:
                raise ValueError(SAME_NAME.format(name=name))
            named[name] = value
    return named


def _checked_name(file: str | os.PathLike[str]) -> str:
    name = os.fspath(file)
    if not name.endswith((".npz", ".safetensors")):
        raise ValueError(UNKNOWN_FORMAT.format(file=name))
    return name


def _compare(given: Mapping[str, Any], expected: Mapping[str, mx.array]) -> None:
    extra, missing = given.keys() - expected.keys(), expected.keys() - given.keys()
    if extra:
        raise ValueError(EXTRA.format(count=len(extra), names=_listed(extra, missing or expected)))
    if missing:
        raise ValueError(MISSING.format(count=len(missing), names=_listed(missing, ())))
    for name, array in expected.items():
        new = given[name]
        if not isinstance(new, mx.array):
            raise ValueError(NOT_AN_ARRAY.format(kind=type(new), name=name))
        if new.shape != array.shape:
            raise ValueError(WRONG_SHAPE.format(expected=array.shape, given=new.shape, name=name))


def _listed(names: Iterable[str], others: Iterable[str]) -> str:
    return ",\n".join(f"{name}{nearest(name, others)}" for name in sorted(names))
