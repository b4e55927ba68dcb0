"""``model.at(where)``: parts of a tree selected, to be read or replaced in a copy."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import mlx.core as mx

from .edits.casting import Predicate, astype, floating
from .edits.freezing import with_frozen
from .edits.tying import tied_places
from .node import Path
from .tree.functions import dotted
from .tree.walk import Descend, rewrite
from .tree.where import Where, matcher

T = TypeVar("T")

TIED = "{where!r} is tied to {source!r}: select that, and what is done there is done at both places"
NOTHING_SELECTED = "{where!r} selects nothing in {tree}{nearest}."


class Selection(Generic[T]):
    """Some parts of a tree, with the edits that can be made to them. Made by :meth:`Module.at`.

    The parts never overlap: where a selected part lies inside another, the outer one stands for both. Each edit returns a
    tree that shares every array and every module in which nothing was selected.

    >>> import frostleaf as fl, mlx.core as mx, mlx.nn as nn
    >>> class Net(fl.Module):
    ...     w: mx.array
    ...     b: mx.array
    >>> net = Net(mx.ones(2), mx.zeros(2))
    >>> net.at("w").apply(lambda w: w + 1).w
    array([2, 2], dtype=float32)
    >>> net.at("*").paths()
    ['w', 'b']
    """

    def __init__(self, tree: T, where: Where) -> None:
        self._tree = tree
        self._where = where
        self._matches = matcher(where)

    def paths(self) -> list[str]:
        """Return the dotted path of each selected part.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths.

        >>> import frostleaf as fl
        >>> fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.relu).at("layers.*.weight").paths()
        ['layers.0.weight']
        """
        return list(self._parts())

    def get(self) -> Any:
        """Return the selected value when the selection is one path, otherwise a dict from path to value.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths.

        >>> import frostleaf as fl
        >>> layer = fl.nn.Linear(2, 2)
        >>> layer.at("bias").get() is layer.bias, list(layer.at("b*").get())
        (True, ['bias'])
        """
        parts = self._parts()
        if isinstance(self._where, str) and not set("*?") & set(self._where):
            return parts[self._where]
        return parts

    def set(self, value: Any) -> T:
        """Return the tree with ``value`` in place of each selected part.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).at("bias").set(None)
        Linear(weight=f32[2,2], bias=None)
        """
        return self.apply(lambda _: value)

    def apply(self, function: Callable[[Any], Any]) -> T:
        """Return the tree with ``function(part)`` in place of each selected part.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).at("weight").apply(lambda weight: weight[:1])
        Linear(weight=f32[1,2], bias=f32[2])
        """
        return self._rewritten(function, convert=True)

    def astype(self, dtype: mx.Dtype, predicate: Predicate | None = floating) -> T:
        """Return the tree with the arrays of the selected parts cast, as :meth:`Module.astype` casts them.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.Linear(2, 2).at("weight").astype(mx.float16)
        Linear(weight=f16[2,2], bias=f32[2])
        """
        return self._rewritten(lambda part: astype(part, dtype, predicate), convert=False)

    def freeze(self) -> T:
        """Return the tree with the parameters of the selected parts frozen.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).at("weight").freeze()
        Linear(weight=❄f32[2,2], bias=f32[2])
        """
        self._parts()
        return with_frozen(self._tree, self._where, True)

    def unfreeze(self) -> T:
        """Return the tree with the parameters of the selected parts trainable.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).freeze().at("bias").unfreeze()
        Linear(weight=❄f32[2,2], bias=f32[2])
        """
        self._parts()
        return with_frozen(self._tree, self._where, False)

    def _rewritten(self, function: Callable[[Any], Any], convert: bool) -> T:
        self._parts()

        def enter(path: Path, value: Any) -> Any:
            return function(value) if self._matches(path, value) else Descend

        return rewrite(self._tree, enter, convert=convert)  # type: ignore[no-any-return]

    def _parts(self) -> dict[str, Any]:
        if isinstance(self._where, list | tuple | set | frozenset):
            for one in self._where:  # each must select something: a misspelt path must not pass among others
                Selection(self._tree, one)._parts()
        parts: dict[str, Any] = {}
        seen: list[str] = []

        def enter(path: Path, value: Any) -> Any:
            seen.append(dotted(path))
            if not self._matches(path, value):
                return Descend
            parts[dotted(path)] = value
            return value

        rewrite(self._tree, enter)
        if not parts:
            tied = tied_places(self._tree)
            if isinstance(self._where, str) and self._where in tied:
                raise LookupError(TIED.format(where=self._where, source=tied[self._where]))
            close = difflib.get_close_matches(str(self._where), seen, n=3, cutoff=0.4) if isinstance(self._where, str) else []
            suggestion = f". The nearest paths are {', '.join(map(repr, close))}" if close else ""
            tree = f"this {type(self._tree).__name__}"
            raise LookupError(NOTHING_SELECTED.format(where=self._where, tree=tree, nearest=suggestion))
        return parts
