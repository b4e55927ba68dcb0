"""Running the original code of a wrapped module, in a live module of MLX."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

import mlx.core as mx
import optree
from mlx.nn.layers.base import Module as MLXModule

from ..core.hidden import PLAIN
from ..core.instance import metadata_of
from ..core.kept import Kept
from ..core.levels import one_level
from ..core.registration import NAMESPACE, register_dataclass
from ..core.shapes import LEAF
from ..core.sharing import shared
from ..core.structure import Flat, Structure, flat_of, require_numbers
from ..core.words import Path
from ..display.calls import watching
from ..transforms.context import put_off
from ..transforms.jit.passing import Inputs
from ..transforms.stateful import differences, record_edit, recorded, recording
from .caches import LentCache, lent_caches
from .checkpointed import is_computed_again
from .freezing import NOTHING, Before, Freezer, handle_of, reaches
from .layout import Wrapped, at, is_module
from .left import note_left
from .live import Live
from .managed import Managed, is_generated
from .uncollected import FROZEN, Change, are_copies, is_made_again, warn_of, warn_of_block

# Of the live module: what is to be done.
Run = Callable[[Any], Any]


def call(node: Wrapped, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method of the original class. What it changes is recorded by :func:`frostleaf.stateful`, or else dropped."""
    with _Lent(node, name) as lent:
        live = lent.live.root
        args, kwargs = lent.given = lent_caches(args), lent_caches(kwargs)
        return lent.outward(getattr(type(live), name)(live, *args, **kwargs), given=(*args, *kwargs.values()))


def read(node: Wrapped, name: str) -> Any:
    """Read an attribute of the original class, such as a property."""
    return run(node, name, lambda live: getattr(live, name))


def generate(node: Wrapped, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Call a method that is a generator."""
    with _Lent(node, name) as lent:
        args, kwargs = lent.given = lent_caches((args, kwargs))
        for value in getattr(type(lent.live.root), name)(lent.live.root, *args, **kwargs):
            yield lent.outward(value)


async def wait_for(node: Wrapped, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a method that is a coroutine."""
    with _Lent(node, name) as lent:
        args, kwargs = lent.given = lent_caches((args, kwargs))
        return lent.outward(await getattr(type(lent.live.root), name)(lent.live.root, *args, **kwargs))


def run(node: Wrapped, name: str, function: Run) -> Any:
    """Return what a function returns for the live module."""
    with _Lent(node, name) as lent:
        return lent.outward(function(lent.live.root))


def edited(node: Wrapped, function: Run) -> Any:
    """Return the tree that a function makes of a node by changing the live module."""
    lent = _Lent(node, "")
    lent.fill()
    function(lent.live.root)
    return lent.after()


def made_from(node: Wrapped, function: Run) -> Any:
    """Return the tree of a new module that a function makes of the live module, which it leaves as it is.

    Arrays that both have are the same objects.
    """
    with _Lent(node, "") as lent:
        return lent.tree_of(function(lent.live.root))


class _Pool(list[Live]):
    """The live modules of equal structures that nobody uses."""

    __slots__ = ("__weakref__",)


# For as long as there is one of these structures. The keys are copies, which remember nothing.
_pools: WeakValueDictionary[Structure, _Pool] = WeakValueDictionary()
_looking = threading.Lock()


def _pool(structure: Structure) -> _Pool:
    """Return the pool of a structure, which an equal one may have filled."""
    key = Structure(structure.spec, structure.num_leaves)
    with _looking:
        pool = _pools.get(key)
        if pool is None:
            pool = _pools[key] = _Pool()
        return pool


def _taken(pool: _Pool) -> Live | None:
    try:
        return pool.pop()
    except IndexError:
        return None


class _Lent:
    """A live module with a node's arrays, for as long as a call runs. Nobody else has it, and an error leaves none behind."""

    __slots__ = ("_begun", "_called", "_flat", "_is_kept", "_name", "_node", "_pool", "_recording", "given", "live")

    def __init__(self, node: Wrapped, name: str) -> None:
        self._called = self._node = node
        self._name = name
        self.given: Any = ()
        self._is_kept = False
        self._recording = recording()
        if self._recording:
            self._node = recorded(node)
        self._flat: Flat = flat_of(self._node)
        self._pool = self._flat.structure.remember(_pool)
        self.live = _taken(self._pool) or Live(self._flat.structure, type(node).__class_for__)

    def fill(self) -> None:
        try:
            self.live.fill(self._flat.leaves)
        except TypeError:
            require_numbers(self._flat)
            raise
        if (watched := watching.get()) is not None:
            watched.add_live(self._called, self.live.root, self.live.paths)
        # Only where somebody wants to know: an array that is assigned into is the same object after.
        self._begun = Inputs(self.live.handles()) if self._recording else None

    def __enter__(self) -> _Lent:
        self.fill()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            return
        same = self.live.is_unchanged()
        if self._recording:
            if self._has_changed(same) and (after := self.after()) is not self._node:
                self._note(chain(self.live.changed(), self.live.written(self._flat.leaves)))
                record_edit(self._called, after)
        else:
            written = self.live.written(self._flat.leaves)
            if written or not same:
                self._warn(written)
        if not (self._is_kept or put_off(self._give_back)):
            self._give_back(same)

    def _give_back(self, same: bool | None = None) -> None:
        """Let other calls use the live module, as it was."""
        if same is None:  # it may have run again since
            same = self.live.is_unchanged()
        if same or self.live.restore():
            self.live.empty()
            self._pool.append(self.live)

    def _has_changed(self, same: bool | None = None) -> bool:
        """Return whether anything is another object, or was assigned into."""
        same = self.live.is_unchanged() if same is None else same
        return not same or (self._begun is not None and bool(self._begun.assigned(self.live.handles())))

    def after(self) -> Any:
        """Return the node with what the call changed."""
        return shared(self._node, self.tree_of(self.live.root, self._before))

    def tree_of(self, module: MLXModule, before: Before | None = None) -> Any:
        """Return the tree of a module, in which arrays that nothing was assigned to are those of the node."""
        handles = self.live.handles()
        assigned = self._begun.assigned(handles) if self._begun else set()
        own = {id(handle): leaf for handle, leaf in zip(handles, self._flat.leaves, strict=True)}
        # Code that computes a function again for its gradient writes back what was there.
        new = [(array, self._flat.leaves[number]) for array, number in self.live.retrained()]
        is_copy = are_copies([(leaf, array) for array, leaf in new])
        own.update((id(array), leaf) for (array, leaf), is_same in zip(new, is_copy, strict=True) if is_same)

        def leaf(array: mx.array) -> mx.array:
            before = own.get(id(array))
            return handle_of(array) if before is None or id(array) in assigned else before

        return Freezer(type(self._node).__class_for__, leaf, before, self.live.nodes).tree(module)

    def _before(self, module: Any, name: str) -> Any:
        """Return the static value that a module had under a name when the call began."""
        path = self.live.paths.get(id(module))
        return NOTHING if path is None else metadata_of(at(self._node, path)).static.get(name, NOTHING)

    def outward(self, value: Any, given: Sequence[Any] = ()) -> Any:
        """Return a result with nodes in place of live modules and new ones, but those that were given, and lists of its own."""
        if type(value) is mx.array or type(value) in PLAIN:
            return value
        if is_module(value):
            if id(value) in self.live.paths:
                # A method that changes its module and returns it, as one does in a chain of them, returns what it has become.
                return self._node_of(value, self._recording and self._has_changed())
            if any(each is value for each in given):
                return value
            return Freezer(type(self._node).__class_for__, handle_of).tree(value)
        if isinstance(value, LentCache):
            return LentCache.given(value)
        if id(value) in self.live.helpers:
            return copy.deepcopy(value)
        if type(value) in (list, tuple):
            inside = [self.outward(each, given) for each in value]
            return inside if type(value) is list else tuple(inside)
        if type(value) is dict:
            return {key: self.outward(each, given) for key, each in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _join(value)
        if isinstance(value, types.MethodType) and id(value.__self__) in self.live.paths:
            return getattr(self.outward(value.__self__), value.__name__)
        # What will use the live module later, such as a function with it in its closure, has it for itself.
        self._is_kept = self._is_kept or reaches(value, self.live.own)
        return Managed(value, self._entered) if self._is_kept and is_generated(value) else value

    def _node_of(self, module: MLXModule, has_changed: bool) -> Any:
        """Return the module of the tree that one in the live module stands for, as it is now if it has changed."""
        path = self.live.paths[id(module)]
        node = at(self._node, path[:-1] if is_computed_again(module) else path)
        return shared(node, self.tree_of(module, self._before)) if has_changed else node

    def _entered(self, given: Any) -> Any:
        """Return what a context manager gives its block: a module as it has been changed. Else warn if one has been."""
        if is_module(given) and id(given) in self.live.paths:
            return self._node_of(given, self._has_changed())
        warn_of_block(type(self._called).__name__, self._name, self.live.changed())
        return self.outward(given)

    def _warn(self, written: Sequence[Change]) -> None:
        """Warn of a change that nobody collects, unless it is one that original code makes again in the next call."""
        changes = [*(self.live.changed() if self._name == "__call__" else self._changed()), *written]
        runs_later = inspect.isgeneratorfunction(inspect.getattr_static(type(self.live.root), self._name, None))
        cls = type(self._node).__name__
        self._note(warn_of(cls, self._name, runs_later, changes, self.given, self._class_at))

    def _note(self, changes: Iterable[Change]) -> None:
        """Note which attributes of the tree are not as the call left them."""
        modules = {*self.live.paths.values()}
        for change in changes:
            if change.new is not FROZEN and change.path and not is_made_again(change):
                above = next(path for end in range(len(change.path) - 1, -1, -1) if (path := change.path[:end]) in modules)
                if isinstance(node := _was(self._called, above), Wrapped):
                    method = f"{type(self._called).__name__}.{self._name}"
                    note_left(node, change.path[len(above)], method, self._recording)

    def _class_at(self, path: Path) -> type:
        found = _was(self._node, path)
        return getattr(found, "__mlx__", type(found.value if type(found) is Kept else found))

    def _changed(self) -> Iterator[Change]:
        found: list[tuple[Path, Any]]
        try:
            found = [*differences(self._node, self.after(), ())]
        except ValueError:  # it has become what is no tree
            found = [((), NOTHING)]
        for path, new in found:
            yield Change(path, _was(self._node, path), new)


def _was(node: Any, path: Path) -> Any:
    try:
        return at(node, path)
    except (LookupError, AttributeError):  # it is new, or inside of what is kept as one value
        return NOTHING


def _join(value: Any) -> None:
    """Make the class of a result that holds arrays a node of trees, so that it passes through every transformation."""
    if one_level(value) is None and not isinstance(value, LEAF):
        parts: Any = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
        if any(isinstance(each, mx.array) for each in optree.tree_leaves(parts, namespace=NAMESPACE)):
            register_dataclass(type(value))
