"""What a structure says of each leaf: where it is, and what the fields that hold it declare. Kept by ``Structure.remember``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
from attrs import Attribute

from .instance import Metadata
from .levels import entries_of, one_level
from .structure import Structure, child_specs
from .words import Path


def leaf_spans(structure: Structure) -> dict[Path, tuple[int, int]]:
    """Return for the path of each node and leaf the numbers of its first leaf and of the one after its last."""
    spans: dict[Path, tuple[int, int]] = {}
    _add_spans(structure.spec, (), 0, spans)
    return spans


def _add_spans(spec: Any, path: Path, start: int, spans: dict[Path, tuple[int, int]]) -> int:
    if isinstance(spec, Structure):
        spec = spec.spec
    stop = start + (spec is mx.array)
    if isinstance(spec, tuple):
        kind, metadata, specs = spec
        for entry, child in zip(entries_of(kind, metadata), child_specs(specs), strict=True):
            stop = _add_spans(child, (*path, entry), stop, spans)
    spans[path] = start, stop
    return stop


def leaf_flags(structure: Structure, flag: Callable[[Attribute[Any]], bool]) -> Iterator[bool]:
    """Yield for each leaf whether ``flag`` holds for each field of a module that holds it."""
    return _flags_below(structure.spec, flag, True)


def _flags_below(spec: Any, flag: Callable[[Attribute[Any]], bool], above: bool) -> Iterator[bool]:
    if isinstance(spec, Structure):
        spec = spec.spec
    if spec is mx.array:
        yield above
    elif isinstance(spec, tuple):
        kind, metadata, specs = spec
        fields = kind.__frostleaf__.fields if type(metadata) is Metadata else {}
        if isinstance(specs, int) and not fields:
            yield from [above] * specs
            return
        for entry, child in zip(entries_of(kind, metadata), child_specs(specs), strict=True):
            yield from _flags_below(child, flag, above and (not fields or flag(fields[entry])))


def kinds_below(spec: Any) -> Iterator[type]:
    """Yield the class of each node below the outermost."""
    if isinstance(spec, Structure):
        spec = spec.spec
    if isinstance(spec, tuple) and not isinstance(spec[2], int):
        for child in spec[2]:
            child = child.spec if isinstance(child, Structure) else child
            if isinstance(child, tuple):
                yield child[0]
                yield from kinds_below(child)


UNSEEN = "{function} needs the model itself, and not a {kind}, {advice}"


def require_seen(function: str, tree: Any) -> None:
    """Raise a ``TypeError`` if a function that looks for layers is given a tree in which a model is kept without them."""
    for kind in _unseen_in(tree):
        raise TypeError(UNSEEN.format(function=function, kind=kind.__name__, advice=kind.__frostleaf_unseen__))


def unseen_in(tree: Any) -> str:
    """Return what to write if a model in a tree is kept without its layers and names, and nothing if none is."""
    return next((kind.__frostleaf_unseen__ for kind in _unseen_in(tree)), "")


def _unseen_in(tree: Any) -> Iterator[Any]:
    # Without asking more of a tree than that: it may hold objects, which those who look for layers pass over.
    level = one_level(tree)
    if level is not None:
        if getattr(type(tree), "__frostleaf_unseen__", None):
            yield type(tree)
        for child in level[1]:
            yield from _unseen_in(child)
