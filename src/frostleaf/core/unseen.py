"""Models that are kept in a form in which their layers and names are not seen: the class says what to write for the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .leaves import kinds_below
from .structure import flat_of

_UNSEEN = "{function} needs the model itself, and not a {kind}, {advice}"


def require_seen(function: str, tree: Any) -> None:
    """Require that a function which looks for layers is given a tree that shows them.

    Raises:
        TypeError: If a model in it is kept without; the message says what to write.
    """
    for kind in _unseen_in(tree):
        raise TypeError(_UNSEEN.format(function=function, kind=kind.__name__, advice=kind._unseen))


def advice_for_unseen(tree: Any) -> str:
    """Return what to write if a model in a tree is kept without its layers; an empty string if none is."""
    return next((kind._unseen for kind in _unseen_in(tree)), "")


def _unseen_in(tree: Any) -> Iterator[Any]:
    return (kind for kind in (type(tree), *kinds_below(flat_of(tree).structure)) if getattr(kind, "_unseen", None))
