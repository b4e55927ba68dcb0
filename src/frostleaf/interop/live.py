"""Modules of MLX made from frozen trees: the real classes, in which original code runs, and twins of native layers."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from operator import is_, setitem
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule

from ..core.containers import static_key
from ..core.definition import Node
from ..core.hidden import PLAIN
from ..core.instance import Metadata, children_in_fields, level_of, metadata_of
from ..core.kept import AT, COMPILED, Kept, is_watched, parts_of, state_of
from ..core.levels import one_level
from ..core.shapes import ShapeDtypeStruct
from ..core.structure import Structure, flat_of, unflatten
from ..core.words import Path, class_name, keystr
from ..transforms import wrapping as function_trees
from ..transforms.checkpoint import Checkpointed
from ..transforms.jit.passing import Inputs, graph_of
from ..tree.walk import source_of
from .checkpointed import WRAPPED, computed_again, held, is_computed_again
from .freezing import handle_of
from .holders import put, put_back, saved, target, values_in
from .layout import HIDDEN, STATIC, Layout, Wrapped, at
from .running import Running, Trees, running_class
from .twins import frozen_names, has_none, mlx_class, static_of_twin
from .uncollected import FROZEN, Change, renewed

# Makes what stands at one place, of what is inside.
Make = Callable[[], Any]

NO_PLACE = "{place} is a {kind}, and a module of mlx.nn has arrays in itself, in lists and in dicts only"
CALLED_ANOTHER_WAY = (
    "{place} is what fl.{verb} made of a layer, and the code of the class of MLX around it needs the layer. Write "
    "fl.{verb} around the whole model, or around a function that calls it"
)


class Slot:
    """Stands for the leaf of a number."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


# Where a module of MLX has the names of what is frozen in it.
_NO_GRAD = "_no_grad"
# Runs an iterator to its end.
_exhaust: Any = deque(maxlen=0).extend

# Comes after all that is expected, so that there is neither more nor less.
_END = object()


class Live:
    """A module of MLX for the trees of one structure. It has their arrays while a call runs, and nothing of them after.

    Args:
        structure: The structure, of a module.
        class_for: Returns the class of a layout.

    Attributes:
        root: The module.
        paths: The path of each module in it, by its id.
        nodes: By its id, the module of the tree that each stands for, with slots in the place of arrays.
        helpers: The ids of objects in its attributes, but for lists and dicts.
        own: The ids of all modules, objects, lists and dicts in it.
    """

    def __init__(self, structure: Structure, class_for: Callable[[Layout], Any]) -> None:
        self._structure = structure
        self._class_for = class_for
        self.paths: dict[int, Path] = {}
        self.nodes: dict[int, Node] = {}
        self.helpers: set[int] = set()
        self._puts: list[tuple[Any, Any, int]] = []
        self._makes: list[tuple[Any, Any, Make]] = []
        self._holders: list[Any] = []
        self._where: list[Path] = []
        self._watched: list[Any] = []
        self._watched_where: list[Path] = []
        self._arrays: list[mx.array] = []
        self._memo: dict[Any, Any] = {}
        self._made: dict[Any, Any] = {}
        self._ties: dict[Path, Path] = {}
        tree = unflatten(structure.spec, iter([Slot(number) for number in range(structure.num_leaves)]))
        self.root = self._module(tree, (), False)
        self.paths = {number: source_of(path, self._ties) for number, path in self.paths.items()} if self._ties else self.paths
        self._saved = [*map(saved, self._holders)]
        # All that is in dicts and lists is looked through in one go, sets are compared.
        ordered = [each for each in self._holders if not isinstance(each, set)]
        self._ordered = [
            each for each in zip(self._holders, self._saved, self._where, strict=True) if not isinstance(each[0], set)
        ]
        self._views = [*map(values_in, ordered), (_END,)]
        self._sets = [each for each in self._holders if isinstance(each, set)]
        self._saved_sets = [each for each in self._saved if isinstance(each, set)]
        self._are_sets_empty = not any(self._saved_sets)
        self._numbers = {key: number for number, key in enumerate(self.paths)}
        self._states = self._states_now()
        self._begun = Inputs(self._arrays)
        self._looks_inside = bool(self._watched or self._arrays)
        self.own = {*self.paths, *self.helpers, *map(id, self._holders)}
        self._may_be_written = [
            each for each in self._puts if isinstance(each[0], MLXModule) and each[1] in renewed("written", type(each[0]))
        ]
        self._note_places()

    def _note_places(self) -> None:
        """Note in columns what :meth:`fill` puts where, and where it stands in all that is in the views.

        What is in none of them has a place of its own after these.
        """
        self._puts.sort(key=lambda put: put[2])
        filled = [*self._puts, *self._makes]
        marks = [object() for _ in filled]
        for (holder, key, _), mark in zip(filled, marks, strict=True):
            put(holder, key, mark)
        found = {id(each): place for place, each in enumerate(chain.from_iterable(self._views))}
        for holder, key, _ in filled:
            put(holder, key, None)
        self._expected: list[Any] = [*chain.from_iterable(self._views)]
        self._places = [found.get(id(mark), len(self._expected) + number) for number, mark in enumerate(marks)]
        self._expected += [None] * len(filled)
        self._targets, self._keys = [target(holder) for holder, *_ in filled], [key for _, key, _ in filled]
        numbers = [number for *_, number in self._puts]
        places = dict(zip(reversed(numbers), reversed(self._places[: len(numbers)]), strict=True))
        self._places_of_leaves = [places[number] for number in range(self._structure.num_leaves)]
        self._again = [
            (place, places[number]) for place, number in zip(self._places, numbers, strict=False) if place != places[number]
        ]

    def fill(self, leaves: Sequence[mx.array]) -> None:
        """Put handles of a tree's arrays in their places."""
        expected = self._expected
        # Into the list that is there: memory for a new long one makes malloc tidy up after the last call.
        _exhaust(map(setitem, repeat(expected), self._places_of_leaves, map(handle_of, leaves)))
        for place, source in self._again:
            expected[place] = expected[source]
        count = len(self._puts)
        _exhaust(map(setitem, self._targets, self._keys, map(expected.__getitem__, islice(self._places, count))))
        for (holder, key, make), place in zip(self._makes, islice(self._places, count, None), strict=True):
            value = expected[place] = make()
            put(holder, key, value)

    def handles(self) -> list[mx.array]:
        """Return the handles that were put in their places, in the order of the arrays."""
        return [*map(self._expected.__getitem__, self._places_of_leaves)]

    def is_unchanged(self) -> bool:
        """Return whether everything is the object that it was when it was filled."""
        if not all(map(is_, chain.from_iterable(self._views), self._expected)):
            return False
        if any(self._sets) if self._are_sets_empty else self._sets != self._saved_sets:
            return False
        return not self._looks_inside or self._is_inside_unchanged()

    def _is_inside_unchanged(self) -> bool:
        """Return whether the objects are as they were that may change and stay the same."""
        if self._arrays and self._begun.assigned(self._arrays):
            return False
        return self._states_now() == self._states

    def _states_now(self) -> list[Any]:
        return [state_of(each, self._numbers) for each in self._watched]

    def empty(self) -> None:
        """Take out what :meth:`fill` put in."""
        _exhaust(map(setitem, self._targets, self._keys, repeat(None)))
        _exhaust(map(setitem, repeat(self._expected), self._places, repeat(None)))

    def restore(self) -> bool:
        """Undo what a call changed. Return whether that could be done.

        Where it gave a module another array to train, as code that computes a function again for its gradient does, that code
        may still be using the module. Where it changed what is inside an object, that is not undone.
        """
        if any(True for _ in self.retrained()) or not self._is_inside_unchanged():
            return False
        for holder, before in zip(self._holders, self._saved, strict=True):
            put_back(holder, before)
        return True

    def changed(self) -> Iterator[Change]:
        """Yield each thing that a call changed.

        An array that is trained and became another of its shape may be made again in each call: code that computes a function
        again for its gradient leaves such copies, and code that casts weights or keeps them in bounds does so in each call.
        """
        expected = iter(self._expected)
        for holder, keys, place in self._ordered:
            before = [*islice(expected, len(keys))]
            if isinstance(holder, dict):
                was = dict(zip(keys, before, strict=True))
                for key in {**was, **dict(dict.items(holder))}:
                    old, new = was.get(key), dict.get(holder, key)
                    if old is not new:
                        yield Change((*place, key), old, new, self._trains(holder, key) and _is_other_array(new, old))
            elif len(holder) != len(before) or not all(map(is_, holder, before)):
                yield Change(place, before, holder)
        for each, now, state, place in zip(self._watched, self._states_now(), self._states, self._watched_where, strict=True):
            if now != state:
                yield Change(place, each, each)
        for holder, before, place in zip(self._holders, self._saved, self._where, strict=True):
            if isinstance(holder, set) and holder != before:
                is_of_module = place[-1:] == (_NO_GRAD,)
                yield Change(place[:-1], FROZEN, FROZEN) if is_of_module else Change(place, before, holder)

    def written(self, leaves: Sequence[mx.array]) -> list[Change]:
        """Return the arrays that a call assigned into, as far as the code of their modules tells that it may have.

        Args:
            leaves: The arrays whose handles were put in their places.
        """
        found = []
        for module, key, number in self._may_be_written:
            old, new = leaves[number], dict.get(module, key)
            if new is self._expected[self._places_of_leaves[number]] and graph_of([new], begun=old) != graph_of(
                [old], begun=old
            ):
                found.append(Change((*self.paths[id(module)], key), old, new, self._trains(module, key)))
        return found

    def retrained(self) -> Iterator[tuple[mx.array, int]]:
        """Yield the arrays to train that a call put in the place of others, and the numbers of those."""
        for (holder, key, number), place in zip(self._puts, self._places, strict=False):
            if self._trains(holder, key) and dict.get(holder, key) is not self._expected[place]:
                yield dict.__getitem__(holder, key), number

    def _trains(self, module: Any, key: str) -> bool:
        if not isinstance(module, MLXModule) or not isinstance(dict.get(module, key), mx.array):
            return False
        return key[:1] != "_" and key not in vars(module).get(_NO_GRAD, ())

    def _module(self, node: Any, path: Path, tied: bool) -> MLXModule:
        return self._original(node, path, tied) if isinstance(node, Wrapped) else self._twin(node, path, tied)

    def _original(self, node: Wrapped, path: Path, tied: bool) -> MLXModule:
        layout: Layout = type(node).__layout__
        metadata, _ = level_of(node)
        tied = self._note_ties(metadata, path, tied)
        live, is_known = self._new(layout.kind, node, path, tied)
        if is_known:
            return live  # type: ignore[no-any-return]
        own = vars(live)
        kinds = dict(layout.containers)
        kept: list[tuple[Any, str, Kept]] = []
        for name, place in layout.places:
            value = node.__dict__[name]
            inner = value.value if type(value) is Kept else value
            is_item = isinstance(inner, Slot | Node | Checkpointed | tuple | list | dict | MappingProxyType) and place != HIDDEN
            holder = live if is_item else own
            if inner is not value:
                kept.append((holder, name, value))
            if place == STATIC:
                put(holder, name, inner)
            else:
                self._fill_in(holder, name, value, path, (name,), kinds, tied)
        own[_NO_GRAD] = set(metadata.frozen)
        own["_training"] = metadata.training
        self._hold_module(live, path)
        for holder, name, value in kept:
            self._memo[AT] = functools.partial(_below, live)
            copy = value.copy(self._memo)
            put(holder, name, copy)
            self._track(copy, (*path, name))
        return live  # type: ignore[no-any-return]

    def _twin(self, node: Any, path: Path, tied: bool) -> MLXModule:
        """Return the module for one that is not of MLX: of its twin's class, or one that runs its code."""
        metadata = metadata_of(node)
        tied = self._note_ties(metadata, path, tied)
        kind: Any = type(node)
        twin = mlx_class(kind)
        made, is_known = self._new(twin or running_class(kind), node, path, tied)
        if is_known:
            return made  # type: ignore[no-any-return]
        own = vars(made)
        own[_NO_GRAD], own["_training"] = frozen_names(node), metadata.training
        if twin is None:
            self._keep(made, path)
        self._hold_module(made, path)
        for name, value in zip(node.__frostleaf__.children, children_in_fields(node), strict=True):
            if value is None and twin and not has_none(node):
                continue
            is_item = isinstance(value, Slot | Node | Checkpointed | tuple | Mapping)
            self._fill_in(made if is_item else own, name, value, path, (name,), {}, tied)
        for name, value in (static_of_twin(node) if twin else metadata.static).items():
            is_item = isinstance(value, list | tuple | dict) and twin
            put(made if is_item else own, name, value)
        return made  # type: ignore[no-any-return]

    @functools.cached_property
    def _whole(self) -> Any:
        shapes = [ShapeDtypeStruct((), mx.float32)] * self._structure.num_leaves  # of which nobody asks
        return unflatten(self._structure.spec, iter(shapes))

    def _keep(self, running: Running, path: Path) -> None:
        structure = flat_of(at(self._whole, path)).structure
        running.keep(structure, Trees(self._class_for), functools.partial(module_of, class_for=self._class_for))

    def _hold(self, holder: Any, place: Path) -> None:
        self._holders.append(holder)
        self._where.append(place)

    def _hold_module(self, module: Any, path: Path) -> None:
        own = vars(module)
        self._hold(module, path)
        self._hold(own, path)
        self._hold(own[_NO_GRAD], (*path, _NO_GRAD))

    def _note_ties(self, metadata: Metadata, path: Path, tied: bool) -> bool:
        """Note the ties of a node at a path, and return whether it or what is around it has any."""
        self._ties.update(((*path, *target), (*path, *source)) for target, source in metadata.ties)
        return tied or bool(metadata.ties)

    def _new(self, kind: type, node: Any, path: Path, tied: bool) -> tuple[Any, bool]:
        """Return the module for a node, and whether it has been made for another place.

        A module at two places has the same arrays at both, and the same of everything else.
        """
        keys = (id(node), _key(node)) if tied and _has_arrays(node) else (id(node),)
        live = next((self._made[key] for key in keys if key in self._made), None)
        is_known = live is not None
        if not is_known:
            live = dict.__new__(kind)
            self._made.update(dict.fromkeys(keys, live))
            self.paths[id(live)] = path
            self.nodes[id(live)] = node
        return live, is_known

    def _fill_in(
        self, holder: Any, key: Any, value: Any, path: Path, inside: Path, kinds: Mapping[Path, type], tied: bool
    ) -> None:
        """Put a value at its place, below a path in a module at another path."""
        put(holder, key, None)
        if type(value) is Slot:
            self._puts.append((holder, key, value.number))
        elif isinstance(value, Node):
            put(holder, key, self._module(value, (*path, *inside), tied))
        elif isinstance(held(value), Node):
            module = self._module(held(value), (*path, *inside, WRAPPED), tied)
            if not is_computed_again(module):
                computed_again(module, Trees(self._class_for, self.nodes.get(id(module))))
            put(holder, key, module)
        elif type(value) is MappingProxyType:
            kind: Any = kinds.get(inside, dict)
            new = kind.__new__(kind)
            self._hold(new, (*path, *inside))
            for name, each in value.items():
                self._fill_in(new, name, each, path, (*inside, name), kinds, tied)
            put(holder, key, new)
        elif isinstance(value, tuple):
            self._fill_sequence(holder, key, value, path, inside, kinds, tied)
        elif isinstance(value, function_trees.Wrapped) and isinstance(value.__wrapped__, Node):
            raise TypeError(CALLED_ANOTHER_WAY.format(place=keystr((*path, *inside)), verb=value.verb))
        elif one_level(value) is not None:
            raise TypeError(NO_PLACE.format(place=keystr((*path, *inside)), kind=class_name(value)))
        else:
            put(holder, key, value.copy(self._memo) if type(value) is Kept else value)

    def _fill_sequence(
        self, holder: Any, key: Any, value: Any, path: Path, inside: Path, kinds: Mapping[Path, type], tied: bool
    ) -> None:
        kind: Any = kinds.get(inside, list)
        items: Any = kind.__new__(kind) if issubclass(kind, list) else []
        list.extend(items, [None] * len(value))
        for index, each in enumerate(value):
            self._fill_in(items, index, each, path, (*inside, index), kinds, tied)
        if issubclass(kind, list):
            self._hold(items, (*path, *inside))
            put(holder, key, items)
        else:
            make = kind if kind is tuple else lambda values: kind(*values)
            self._makes.append((holder, key, lambda: make(items)))
            put(holder, key, make(items))

    def _track(self, value: Any, place: Path) -> None:
        """Look after what is inside a copy that original code may change."""
        waiting, seen = [(place, value)], {id(each) for each in self._holders}
        for path, each in waiting:
            kind: Any = type(each)
            if kind in PLAIN or issubclass(kind, _NOT_TRACKED) or id(each) in seen:
                continue
            seen.add(id(each))
            known = len(self._holders) + len(self._watched)
            if kind is mx.array:
                self._arrays.append(each)
            elif kind in (list, set, deque) or isinstance(each, dict):
                self._hold(each, path)
            elif is_watched(each):
                self._watched.append(each)
                self._watched_where.append(path)
            if kind is not types.MethodType and hasattr(each, "__dict__") and id(vars(each)) not in seen:
                self._hold(vars(each), path)
            if len(self._holders) + len(self._watched) > known and kind not in (list, dict):
                self.helpers.add(id(each))
            waiting += [((*path, name), part) for name, part in parts_of(each)]


_NOT_TRACKED = (type, types.ModuleType, types.FunctionType, COMPILED, MLXModule)


def _is_other_array(new: Any, old: Any) -> bool:
    return isinstance(new, mx.array) and isinstance(old, mx.array) and new.shape == old.shape


def _has_arrays(value: Any) -> bool:
    value = value if held(value) is None else held(value)
    if isinstance(value, Node):
        value = children_in_fields(value)
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ()
    return type(value) is Slot or any(map(_has_arrays, inside))


def _key(value: Any) -> Any:
    """Return what tells a tree from others of which the leaves have other numbers, or anything else is different."""
    if type(value) is Slot:
        return Slot, value.number
    if isinstance(held(value), Node):
        return Checkpointed, _key(held(value))
    if isinstance(value, Node):
        return type(value), metadata_of(value), _key(children_in_fields(value))
    if isinstance(value, tuple | Mapping):
        inside = value.values() if isinstance(value, Mapping) else value
        return type(value), tuple(value) if isinstance(value, Mapping) else (), tuple(map(_key, inside))
    return static_key(value)


def module_of(tree: Node, class_for: Callable[[Layout], Any]) -> Any:
    """Return a module of MLX with the arrays of a tree, which nothing else has."""
    flat = flat_of(tree)
    live = Live(flat.structure, class_for)
    live.fill(flat.leaves)
    return live.root


def _below(live: Any, path: Path) -> Any:
    for name in path:
        live = dict.__getitem__(live, name) if isinstance(live, dict) else live[name]
    return live
