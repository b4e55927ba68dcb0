"""Tying places in copies: one array stands at several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..core.construction import evolve, postpone
from ..core.definition import Node
from ..core.instance import metadata_of, names_above
from ..core.structure import flat_of
from ..core.ties import GONE, MODULE_GONE
from ..core.words import Path, describe, keystr, listed, nearest_paths
from ..tree.selecting import is_path, matches_glob
from ..tree.walk import all_ties, at_path, tied_places

N = TypeVar("N", bound=Node)


def tie(module: N, places: Mapping[str, str]) -> N:
    """Tie places to others. See :meth:`Module.tie`."""
    if postpone(module, lambda finished: tie(finished, places)):
        return module
    if not isinstance(places, Mapping) or not all(isinstance(each, str) for each in [*places, *places.values()]):
        raise TypeError(
            "tie takes a dict from each place to be tied to its source, such as {'head.weight': 'embedding.weight'}, and was "
            f"given {describe(places)}"
        )
    flat, cls = flat_of(module), type(module).__name__
    leaves = zip(flat.structure.leaf_paths(), flat.leaves, strict=True)
    arrays = dict(zip(flat.structure.leaf_names(), leaves, strict=True))
    ties = list(metadata_of(module).ties)
    own = [keystr(target) for target, _ in ties]
    sources = tied_places(module)
    for target, source in places.items():
        if sources.get(target) == source:
            continue
        if target == source:
            raise ValueError(f"{cls}.{target} can't be tied to itself: give the path of another array as its source")
        for path in (target, source):
            if path in sources:
                around = next((name for name in own if path == name or path.startswith(f"{name}.")), None)
                untie = f".untie({around!r})" if around else ".untie() of the module inside that has the tie"
                advice = f"tie {target} to that" if path == source else f"take that tie away first, with {untie}"
                raise ValueError(f"{cls}.{path} is tied to {sources[path]} already: {advice}")
            if path not in arrays:
                advice = _arrays_inside(path, target, source, arrays) or nearest_paths(path, arrays)
                raise LookupError(f"{cls} has no array at {path!r}{advice}")
        (place, given), (origin, expected) = arrays[target], arrays[source]
        if given.shape != expected.shape:
            shapes = f"{describe(given)} and {describe(expected)}"
            raise ValueError(f"{cls}.{target} can't be tied to {source}: they are {shapes}, and must be of one shape")
        ties.append((place, origin))
    _refuse_chains(cls, ties)
    return evolve(module, ties=tuple(sorted(ties, key=str)))


def _arrays_inside(path: str, target: str, source: str, arrays: Mapping[str, tuple[Path, Any]]) -> str:
    """Return advice for a path that leads to a module or a container: which arrays in there may be tied."""
    inside = [name for name in arrays if name.startswith(f"{path}.")]
    if not inside:
        return ""
    pairs = [(target + name[len(path) :], source + name[len(path) :]) for name in inside]
    fit = [each for each in pairs if all(one in arrays for one in each) and _same_shape(*[arrays[one][1] for one in each])]
    if not fit:
        return f", but {listed(map(repr, inside))} inside. Tie each array to one of its shape"
    return f". Tie each array inside: {{{listed(f'{one!r}: {other!r}' for one, other in fit)}}}"


def _same_shape(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape)


def untie(module: N, places: Sequence[str]) -> N:
    """Take ties away. See :meth:`Module.untie`."""
    ties, untied = metadata_of(module).ties, set()
    for place in places:
        found = {target for target, _ in ties if _is_at(target, place)}
        if not found:
            tied = f"tied are {listed(repr(keystr(target)) for target, _ in ties)}" if ties else "nothing in it is tied"
            raise LookupError(f"{type(module).__name__} has no tie at {describe(place)}; {tied}")
        untied |= found
    return evolve(module, ties=tuple([tie for tie in ties if places and tie[0] not in untied]))


def require_places(tree: Any, new: Mapping[Path, Any]) -> None:
    """Require that no tied place is given ``None``, which stands there in the tree and so would change nothing.

    Raises:
        ValueError: If one is.
    """
    emptied = [path for path, value in new.items() if value is None]
    ties = all_ties(tree) if emptied else {}
    for path in emptied:
        if path in ties:
            message = MODULE_GONE if isinstance(at_path(tree, path), Node) else GONE
            target, source = keystr(path), keystr(ties[path])
            raise ValueError(message.format(cls=type(tree).__name__, target=target, source=source, missing=target))


def _is_at(target: Path, place: Any) -> bool:
    """Return whether a place, by its path or a glob, is a tied one or holds it."""
    if isinstance(place, str) and not is_path(place):
        return any(map(matches_glob(place), [target[:length] for length in range(1, len(target) + 1)]))
    return place in names_above(target)


def _refuse_chains(cls: str, ties: Sequence[tuple[Path, Path]]) -> None:
    sources = dict(ties)
    for target, source in ties:
        if source in sources:
            path, origin, place = keystr(source), keystr(sources[source]), keystr(target)
            tied = f"{cls}.{path} is tied to {origin}"
            raise ValueError(f"{tied}, so it can't be the source of {place}: tie {place} to {origin} too")
