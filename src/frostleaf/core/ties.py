"""Tied places: one array that stands at two places of a module and is one leaf of its tree, or one module at two places.

The fields hold what is tied at both places. The tree has ``None`` at the tied place: the array or the module is taken out when
the module around is taken apart (:func:`taken_out`) and put back when that is put together (:func:`fill`). After an edit of one
place the others follow (:func:`follow`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from .instance import Instance, Ties, level_of, metadata_of
from .levels import replace_at, tree_level
from .shapes import LEAF
from .structure import flat_of
from .words import Path, describe, keystr, listed

_MISSING: Any = object()


def taken_out(cls: type[Instance], children: tuple[Any, ...], ties: Ties) -> tuple[Any, ...]:
    """Return a node's children with ``None`` at each tied place."""
    values = dict(zip(cls.__frostleaf__.children, children, strict=True))
    _put(values, {target: None for target, _ in ties})
    return tuple(values.values())


def fill(node: Instance, ties: Ties) -> None:
    """Put the arrays and the modules at their tied places, in a node that was put together without them.

    They need not be such, since a tree may be mapped to a tree of anything. A missing place is left missing.
    """
    values = node.__dict__
    for some in _in_order(ties):
        found = {target: _get(values, source) for target, source in some if _get(values, target) is not _MISSING}
        _put(values, {target: value for target, value in found.items() if value is not _MISSING})


@functools.lru_cache(maxsize=512)
def _in_order(ties: Ties) -> tuple[Ties, ...]:
    """Return ties in the order in which they are filled: a module that is a source after the tied places inside of it."""
    some: dict[bool, list[tuple[Path, Path]]] = {True: [], False: []}
    above = {target[:length] for target, _ in ties for length in range(1, len(target))}
    for tie in ties:
        some[tie[1] in above].append(tie)
    if not some[True] or not some[False]:  # no module can be inside itself
        return (ties,) if ties else ()
    return tuple(some[False]), *_in_order(tuple(some[True]))


def refilled(name: str, value: Any, ties: Ties, old: Mapping[str, Any]) -> Any:
    """Return a field's new value with the old arrays at tied places where it has ``None``, as a value from the tree has."""
    values = {name: value}
    _put(values, {target: _get(old, target) for target, _ in ties if target[0] == name and _get(values, target) is None})
    return values[name]


CONFLICT = (
    "{cls}.{target} is tied to {source}, and this edit leaves unlike values there: {given} and {expected}. Change both in the "
    "same way, or take the tie away first: .untie({target!r})"
)
OTHERS = ". Likewise {others}; untie takes several, and globs"


def follow(node: Instance, ties: Ties, old: Mapping[str, Any]) -> None:
    """Bring the places of each tie in line after an edit: whichever was changed, the others follow.

    Where several were changed, as by an edit of every layer, shapes and dtypes must be the same, and in modules everything but
    the numbers; what is at the source stands for all. One array alone may change in dtype. The source alone may also change in
    shape, but not into the array of another class: the packed bits of a quantized layer are of no use to one that is not. A
    target of another shape is a new head, not a new embedding, so it must be untied first. One module alone may become any
    other.

    Args:
        node: The node, whose fields have their new values.
        ties: Its ties.
        old: The fields' values before the edit.

    Raises:
        ValueError: If a place is gone or is tied further inside as well, the source holds no array or module any more, or the
            places were given different ones.
    """
    for target, source in ties:
        _check_place(node, target, source, old)
    order = _in_order(ties)
    # What follows may be inside of what something else follows, and the other way round.
    for _ in range(len(order) if len(order) == 1 else len(ties) + 1):
        if not [some for some in order if _follow(node, some, old)]:
            break


def _follow(node: Instance, ties: Ties, old: Mapping[str, Any]) -> bool:
    """Bring the places of some ties in line, and return whether that changed anything."""
    values = node.__dict__
    places: dict[Path, list[Path]] = {}
    for target, source in ties:
        places.setdefault(source, [source]).append(target)
    new: dict[Path, Any] = {}
    unlike: list[tuple[Path, Path, Any, Any]] = []
    for source, paths in places.items():
        before, given = _get(old, source), {path: _get(values, path) for path in paths}
        changed = [path for path in paths if given[path] is not before and (given[path] is not None or path == source)]
        first = changed[0] if changed else source
        for path, value in given.items():
            if value is given[first]:
                continue
            if path in changed:
                fits = _is_like(value, given[first])
            elif isinstance(before, Instance):
                fits = isinstance(given[first], Instance)
            else:
                fits = _shape(before) == _shape(given[first]) or (
                    first == source and all(_holder(old, each) is _holder(values, each) for each in (path, first))
                )
            if not fits:
                targets, expected = (changed, value) if path == source else ([path], given[first])
                unlike += [(target, source, given[target], expected) for target in targets]
            new[path] = given[first]
    if unlike:
        (target, source, here, there), *others = unlike
        names = {"cls": type(node).__name__, "target": keystr(target), "source": keystr(source)}
        more = OTHERS.format(others=listed(repr(keystr(each)) for each, *_ in others)) if others else ""
        raise ValueError(CONFLICT.format(**names, given=describe(here), expected=describe(there)) + more)
    _put(values, new)
    return bool(new)


GONE = (
    "{cls}.{target} is tied to {source}, and after this edit there is no array at {missing}. Take the tie away first: "
    ".untie({target!r})"
)
MODULE_GONE = GONE.replace("no array", "no module")
TIED_INSIDE = (
    "{cls}.{target} is tied to {source}, and after this edit {path} is tied inside {holder} as well. Take one of the two ties "
    "away first: .untie({target!r}), or that of {holder}"
)


def _check_place(node: Instance, target: Path, source: Path, old: Mapping[str, Any]) -> None:
    """Raise a ``ValueError`` unless both places of a tie exist and neither is tied in a module further inside.

    The source must hold an array or a module if it held one; a tree that was mapped to a tree of anything need not have any.
    """
    names = {"cls": type(node).__name__, "target": keystr(target), "source": keystr(source)}
    before = _get(old, source)
    kind: Any = Instance if isinstance(before, Instance) else LEAF
    for path in (target, source):
        given = _get(node.__dict__, path)
        lost = path == source and not isinstance(given, kind) and isinstance(before, kind)
        if given is _MISSING or lost:
            message = MODULE_GONE if kind is Instance else GONE
            raise ValueError(message.format(**names, missing=keystr(path)))
        for length in range(1, len(path)):
            inside = _get(node.__dict__, path[:length])
            tied = dict(metadata_of(inside).ties) if isinstance(inside, Instance) else {}
            if tied and any(path[length:end] in tied for end in range(length + 1, len(path) + 1)):
                raise ValueError(TIED_INSIDE.format(**names, path=keystr(path), holder=keystr(path[:length])))


def _get(values: Mapping[str, Any], path: Path) -> Any:
    """Return what stands at a path below a dict of fields, or ``_MISSING``."""
    first, *rest = path
    value: Any = values.get(first, _MISSING)
    for name in rest:
        if isinstance(value, Instance):
            level_of(value)
            value = value.__dict__.get(name, _MISSING)
        elif type(value) is tuple:  # without looking at the other items, which may be many
            value = value[name] if name in range(len(value)) else _MISSING
        elif isinstance(value, Mapping):
            value = value.get(name, _MISSING)
        else:
            here = tree_level(value)
            value = dict(zip(here.entries, here.children, strict=True)).get(name, _MISSING) if here else _MISSING
    return value


def _put(values: dict[str, Any], new: Mapping[Path, Any]) -> None:
    """Put new values at paths below a dict of fields; a path that leads nowhere is ignored."""
    values.update(replace_at(values, new))


def _holder(values: Mapping[str, Any], path: Path) -> type | None:
    """Return the class of the innermost module that a path leads through."""
    above = [_get(values, path[:length]) for length in range(1, len(path))]
    return next((type(value) for value in reversed(above) if isinstance(value, Instance)), None)


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _is_like(value: Any, other: Any) -> bool:
    """Return whether two values differ in numbers alone."""
    if isinstance(value, Instance) and isinstance(other, Instance):
        one, two = flat_of(value), flat_of(other)
        return one.structure == two.structure and [*map(_kind, one.leaves)] == [*map(_kind, two.leaves)]
    return bool(_kind(value) == _kind(other))


def _kind(value: Any) -> Any:
    return _shape(value), getattr(value, "dtype", None)
