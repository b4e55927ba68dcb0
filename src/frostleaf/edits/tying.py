"""Copies in which one array stands at several places."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..node import Node, Path, edited, metadata_of
from ..tree.compare import describe
from ..tree.functions import dotted, flatten
from ..tree.walk import Descend, rewrite

N = TypeVar("N", bound=Node)

NOT_PLACES = (
    "tie takes a dict from each place to be tied to its source, such as {{'head.weight': 'embedding.weight'}}, and was given "
    "{given!r}"
)
NO_ARRAY = "{cls} has no array at {path!r}{nearest}"
ITSELF = "{cls}.{path} can't be tied to itself: give the path of another array as its source"
ALREADY = "{cls}.{path} is tied to {source} already: {advice}"
CHAIN = "{cls}.{path} can't be both tied, to {source}, and the source of {target}: tie {target} to {source} too"
WRONG_SHAPE = "{cls}.{target}, {given}, can't be tied to {source}, {expected}: tied places have arrays of one shape"
NOT_TIED = "{cls} has no tie at {path!r}; {tied}"


def tie(module: N, places: Mapping[str, str]) -> N:
    """Return the module with places tied to others. See :meth:`Module.tie`."""
    if not isinstance(places, Mapping) or not all(isinstance(each, str) for each in [*places, *places.values()]):
        raise TypeError(NOT_PLACES.format(given=places))
    leaves, structure = flatten(module)
    paths = structure.leaf_paths()
    arrays = dict(zip(map(dotted, paths), zip(paths, leaves, strict=True), strict=True))
    cls = type(module).__name__
    own = {dotted(target) for target, _ in metadata_of(module).ties}
    sources = tied_places(module)
    ties = list(metadata_of(module).ties)
    for target, source in places.items():
        if sources.get(target) == source:
            continue
        if target == source:
            raise ValueError(ITSELF.format(cls=cls, path=target))
        for path in (target, source):
            if path in sources:
                untie = f".untie({path!r})" if path in own else ".untie() of the module inside that has the tie"
                advice = f"tie {target} to that" if path == source else f"take that away first, with {untie}"
                raise ValueError(ALREADY.format(cls=cls, path=path, source=sources[path], advice=advice))
            if path not in arrays:
                close = difflib.get_close_matches(path, arrays, n=3, cutoff=0.4)
                nearest = f". The nearest paths are {', '.join(map(repr, close))}" if close else ""
                raise LookupError(NO_ARRAY.format(cls=cls, path=path, nearest=nearest))
        (place, given), (origin, expected) = arrays[target], arrays[source]
        if given.shape != expected.shape:
            shown = {"given": describe(given), "expected": describe(expected)}
            raise ValueError(WRONG_SHAPE.format(cls=cls, target=target, source=source, **shown))
        ties.append((place, origin))
    _refuse_chains(cls, ties)
    return edited(module, ties=tuple(sorted(ties, key=str)))


def untie(module: N, places: Sequence[str]) -> N:
    """Return the module with ties taken away. See :meth:`Module.untie`."""
    ties = {dotted(target): (target, source) for target, source in metadata_of(module).ties}
    for path in places:
        if path not in ties:
            tied = f"tied are {', '.join(map(repr, ties))}" if ties else "nothing in it is tied"
            raise LookupError(NOT_TIED.format(cls=type(module).__name__, path=path, tied=tied))
    return edited(module, ties=tuple(tie for path, tie in ties.items() if places and path not in places))


def _refuse_chains(cls: str, ties: Sequence[tuple[Path, Path]]) -> None:
    sources = dict(ties)
    for target, source in ties:
        if source in sources:
            names = {"path": dotted(source), "source": dotted(sources[source]), "target": dotted(target)}
            raise ValueError(CHAIN.format(cls=cls, **names))


def tied_places(tree: Any) -> dict[str, str]:
    """Return the source of each tied place in a tree, both as dotted paths."""
    found: dict[str, str] = {}

    def enter(path: Path, value: Any) -> Any:
        if isinstance(value, Node):
            found.update((dotted((*path, *target)), dotted((*path, *source))) for target, source in metadata_of(value).ties)
        return Descend

    rewrite(tree, enter)
    return found
