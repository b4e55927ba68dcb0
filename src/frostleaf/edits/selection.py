"""``model.at(where)``: a selection as an object, to read or to edit in a copy."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any, Generic, TypeVar

import mlx.core as mx

from ..core.arguments import require_callable
from ..core.definition import Node
from ..core.dropped import returns_copy
from ..core.fields import is_array
from ..core.instance import Instance
from ..core.kept import let_out
from ..core.shapes import LEAF
from ..core.sharing import with_values
from ..core.shown import ShownTree
from ..core.words import Path, describe, in_a_line, keystr, listed
from ..tree.selecting import Found, Where, is_path, matcher, paths_in, require_found, search
from ..tree.walk import field_level
from .casting import Predicate, astype, is_floating
from .freezing import require_no_static, with_frozen
from .tying import require_places

T = TypeVar("T")

_SHOWN = 8

CONTAINER_FOR_ARRAY = (
    "{place} holds one array, {held}, and set was given {given}. Give one array, or for an array at each place a list of the "
    "paths and one of the arrays: at([{paths}]).set([...])"
)


class Selection(Generic[T], ShownTree):
    """Some values in a tree, and the edits that can be made to them. :meth:`Module.at` makes it.

    It has a length, and iterating over it gives the dotted path and the value of each. They never overlap: a selected value
    inside another selected one is left out. Each edit returns a tree that shares every array and module in which nothing was
    selected.

    >>> import frostleaf as fl, mlx.core as mx, mlx.nn as nn
    >>> class Net(fl.Module):
    ...     w: mx.array
    ...     b: mx.array
    >>> net = Net(mx.ones(2), mx.zeros(2))
    >>> net.at("w").apply(lambda w: w + 1).w
    array([2, 2], dtype=float32)
    >>> net.at("*")
    Selection of 2 in Net: w f32[2], b f32[2]
    >>> len(net.at("*")), [path for path, _ in net.at("*")]
    (2, ['w', 'b'])
    """

    _instead_of_a_tree = "Give what an edit of the selection returns, such as .set(...), or what .get() returns."

    def __init__(self, tree: T, where: Where) -> None:
        matcher(where)
        self._tree = tree
        self._where = where

    def paths(self) -> list[str]:
        """Return the dotted path of each selected value.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths.

        >>> import frostleaf as fl
        >>> fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.relu).at("layers.*.weight").paths()
        ['layers.0.weight']
        """
        return [keystr(path) for path in self._required()]

    def get(self) -> Any:
        """Return the selected value if the selection is one path, otherwise a dict from path to value.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths. If one dotted path leads to two places.

        >>> import frostleaf as fl
        >>> layer = fl.nn.Linear(2, 2)
        >>> layer.at("bias").get() is layer.bias, list(layer.at("b*").get())
        (True, ['bias'])
        """
        found = self._required()
        values = {keystr(path): let_out(value) for path, value in found.items()}
        if len(values) < len(found):
            self._require_distinct(found, values)
        return values[str(self._where)] if is_path(self._where) else values

    @returns_copy("model = model.at(...).{name}(...)")
    def set(self, value: Any) -> T:
        """Replace each selected value by ``value``; if the selection is a list of paths, by the values in a list.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths. If one dotted path leads to two places.
            TypeError: If a container would take the place of an array that was not selected by its own path, in a field that is
                declared to hold one.
            ValueError: If selection and value are lists or tuples, and there are not as many paths as values.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.Linear(2, 2).at("bias").set(None)
        Linear(weight=f32[2,2], bias=None)
        >>> fl.nn.Linear(2, 2).at(["weight", "bias"]).set([mx.ones((3, 2)), mx.zeros(3)])
        Linear(weight=f32[3,2], bias=f32[3])
        """
        where = self._where
        if not isinstance(value, list | tuple) or not isinstance(where, list | tuple):
            new = dict.fromkeys(self._edited(), value)
            if isinstance(value, list | tuple | Mapping) and not is_path(where):
                self._require_no_array(value)
            return self._with(new)
        values = self._edited()
        if not all(map(is_path, where)) or not len(where) == len(values) == len(value):
            given = f"{len(value)} values and the selection is {describe(where)}, which selects {len(values)}"
            raise ValueError(f"set was given {given}. Give as many values as paths, or use apply to put a list at each place")
        paths = {keystr(path): path for path in values}
        new = {paths[name]: each for name, each in zip(where, value, strict=True)}
        return self._with(new)

    @returns_copy("model = model.at(...).{name}(...)")
    def apply(self, function: Callable[[Any], Any]) -> T:
        """Replace each selected value by ``function(value)``.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths. If one dotted path leads to two places.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).at("weight").apply(lambda weight: weight[:1])
        Linear(weight=f32[1,2], bias=f32[2])
        """
        require_callable("function", function, "a selected value")
        new = {path: function(let_out(value)) for path, value in self._edited().items()}
        return self._with(new)

    @returns_copy("model = model.at(...).{name}(...)")
    def astype(self, dtype: mx.Dtype, predicate: Predicate | None = is_floating) -> T:
        """Cast the arrays in the selected values, as :meth:`Module.astype` does.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths. If one dotted path leads to two places.

        >>> import frostleaf as fl, mlx.core as mx
        >>> fl.nn.Linear(2, 2).at("weight").astype(mx.float16)
        Linear(weight=f16[2,2], bias=f32[2])
        """
        new = {path: astype(value, dtype, predicate) for path, value in self._edited().items()}
        return with_values(self._tree, new, convert=False)  # type: ignore[no-any-return]

    @returns_copy("model = model.at(...).{name}(...)")
    def freeze(self) -> T:
        """Freeze the selected parameters, and those in selected modules and containers.

        A selected module whose class has a method ``freeze`` of its own is frozen by that.

        Raises:
            LookupError: If nothing is selected; the message suggests the nearest paths. If a path leads to a static field. If
                all arrays of a selected value are tied to ones that are not selected.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).at("weight").freeze()
        Linear(weight=❄f32[2,2], bias=f32[2])
        """
        return self._with_frozen(True)

    @returns_copy("model = model.at(...).{name}(...)")
    def unfreeze(self) -> T:
        """Make the selected parameters trainable, and those in selected modules and containers.

        A selected module whose class has a method ``unfreeze`` of its own is unfrozen by that: a wrapped ``mlx.nn.BatchNorm``
        keeps its statistics frozen.

        Raises:
            LookupError: As from :meth:`freeze`.

        >>> import frostleaf as fl
        >>> fl.nn.Linear(2, 2).freeze().at("bias").unfreeze()
        Linear(weight=❄f32[2,2], bias=f32[2])
        """
        return self._with_frozen(False)

    def __len__(self) -> int:
        return len(self._found.values)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter([(keystr(path), let_out(value)) for path, value in self._found.values.items()])

    def __repr__(self) -> str:
        first = islice(self._found.values.items(), _SHOWN)
        shown = [f"{in_a_line(keystr(path)) or '(root)'} {describe(value)}" for path, value in first]
        more = ["..."] * (len(self) > _SHOWN)
        values = ": " * bool(shown) + ", ".join(shown + more)
        return f"Selection of {len(self) or 'nothing'} in {type(self._tree).__name__}{values}"

    @cached_property
    def _found(self) -> Found:
        return search(self._tree, self._where)

    def _require_no_array(self, value: Any) -> None:
        """Require that a container takes the place of no array in a field that holds one array."""
        for path, old in self._required().items():
            if path and isinstance(old, LEAF) and _holds_one_array(_holder(self._tree, path), path[-1]):
                place, given = f"{type(self._tree).__name__}.{keystr(path)}", f"{describe(value)}, a {type(value).__name__}"
                paths = listed([repr(keystr(each)) for each in self._required()])
                raise TypeError(CONTAINER_FOR_ARRAY.format(place=place, held=describe(old), given=given, paths=paths))

    def _with_frozen(self, frozen: bool) -> T:
        selected = self._required()
        named = {*paths_in(self._where)}
        require_no_static(self._tree, [path for path in selected if keystr(path) in named])
        after, method = with_frozen(self._tree, selected, frozen), "freeze" if frozen else "unfreeze"
        own = {path: getattr(value, method)() for path, value in selected.items() if _has_own(value, method)}
        return with_values(after, own, convert=False) if own else after

    def _with(self, new: Mapping[Path, Any]) -> T:
        require_places(self._tree, new)
        return with_values(self._tree, new)  # type: ignore[no-any-return]

    def _edited(self) -> dict[Path, Any]:
        found = self._required()
        if len(found) > 1:
            self._require_distinct(found, {*paths_in(self._where)})
        return found

    def _require_distinct(self, found: Iterable[Path], names: Container[str]) -> None:
        """Require that each of some dotted names leads to one place."""
        first: dict[str, Path] = {}
        for path in found:
            name = keystr(path)
            if name in names and first.setdefault(name, path) is not path:
                places = f"{describe(first[name])} and {describe(path)}"
                raise LookupError(
                    f"{name!r} leads to two places in this {type(self._tree).__name__}: {places}. Rename a key, or select what "
                    "holds one of them"
                )

    def _required(self) -> dict[Path, Any]:
        require_found(self._tree, self._found)
        return self._found.values


def _has_own(value: Any, method: str) -> bool:
    """Return whether the class of a module has a method of its own in the place of the one that all modules have."""
    return isinstance(value, Node) and sum(method in vars(base) for base in type(value).__mro__) > 1


def _holder(tree: Any, path: Path) -> Any:
    """Return what holds the value at a path."""
    for entry in path[:-1]:
        level = field_level(tree)
        tree = level.children[level.entries.index(entry)] if level else None
    return tree


def _holds_one_array(holder: Any, name: Any) -> bool:
    """Return whether an array in a field may only be followed by another: it is declared, or found in a wrapped module."""
    field = holder.__frostleaf__.fields.get(name) if isinstance(holder, Instance) else None
    return field is not None and field.converter is None and (field.type is None or is_array(field))
