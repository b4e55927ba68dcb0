"""Dicts and lists of any class, changed as Python's own are, without what a class has in the place of their methods."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any


def base_of(holder: Any) -> Any:
    """Return the class of Python's own by which a dict or a list is changed. An ordered dict has its order beside its items."""
    return OrderedDict if isinstance(holder, OrderedDict) else dict if isinstance(holder, dict) else list


def put(holder: Any, key: Any, value: Any) -> None:
    """Put a value in a dict or a list."""
    base_of(holder).__setitem__(holder, key, value)


def values_in(holder: Any) -> Iterable[Any]:
    """Return what is in a dict or a list, or will be."""
    return base_of(holder).values(holder) if isinstance(holder, dict) else holder  # type: ignore[no-any-return]


def saved(holder: Any) -> Any:
    """Return what is in a dict, a list or another container, as it is now."""
    return dict(base_of(holder).items(holder)) if isinstance(holder, dict) else holder.copy()


def put_back(holder: Any, before: Any) -> None:
    """Let a container have what :func:`saved` returned, and nothing else."""
    if isinstance(holder, dict):
        base_of(holder).clear(holder)
        for key, value in before.items():
            put(holder, key, value)
    else:
        holder.clear()
        (holder.update if isinstance(holder, set) else holder.extend)(before)


class _Plain:
    """Assigns to items of a dict or list whose class has a way of its own."""

    __slots__ = ("_holder",)

    def __init__(self, holder: Any) -> None:
        self._holder = holder

    def __setitem__(self, key: Any, value: Any) -> None:
        put(self._holder, key, value)


def target(holder: Any) -> Any:
    """Return what an assignment ``[key] = value`` does with what :func:`put` does."""
    return holder if type(holder).__setitem__ is base_of(holder).__setitem__ else _Plain(holder)
