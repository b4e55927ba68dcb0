"""Modules of MLX as frozen trees."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module as MLXModule

from ..core.construction import evolve
from ..core.definition import Node
from ..core.hidden import PLAIN, inside_of, is_opaque
from ..core.instance import Metadata, Ties, metadata_of
from ..core.kept import COMPILED, Kept, Place, slots_of
from ..core.pickling import is_importable
from ..core.words import Path, keystr, listed, with_article
from ..transforms.checkpoint import checkpoint
from ..tree.walk import at_path, source_of
from .checkpointed import KEPT, WRAPPED, is_computed_again, plain_class
from .holders import base_of
from .layout import CHILD, HIDDEN, IN_TUPLE, STATIC, Layout, Wrapped, is_atom, is_module
from .natives import native_of
from .twins import native

CYCLE = (
    "{place} is the module {above}, which holds it: a tree has no way back up. Take the attribute away, and give what is "
    "above to the call that needs it"
)
CLOSURE = (
    "{place} is a function with {cls} in its closure, which would go on using that module's weights. Make it a method of the "
    "class"
)
COMPILED_CLOSURE = (
    "{place} is a function with {cls} in its closure, which MLX made of it (mx.compile, mx.vmap), and would go on using that "
    "module's weights. Make the function a method of the class, and give fl.jit or fl.vmap the tree's method"
)
SLOT = "{place} is in a slot of the class {cls}, of which a tree does not know. Take the name out of __slots__"
INSIDE = (
    "{place} has {cls} inside, in the closure of a function or behind a weak reference, and would go on using that module's "
    "weights. Make the function a method of the class"
)
BESIDE = "{place} holds {cls} at {other}, which is not below it: give that module to the call that needs it"
NO_CONTAINER = (
    "{place} is {kind}, which holds arrays or modules, and a tree of it would lose its {lost}. Write {base}(...) there"
)

_OWN = ("_no_grad", "_training", KEPT)
_CONTAINERS = (list, dict)
# What equals another only if it is the same.
_FUNCTIONS = (types.BuiltinFunctionType, type(mx.tanh), types.ModuleType)
NOTHING: Any = object()
handle_of: Any = mx.array.__copy__
Before = Callable[[Any, str], Any]


class Freezer:
    """Makes a frozen tree of a module.

    Args:
        class_for: Returns the class of a layout.
        leaf: Returns the leaf for an array.
        before: Returns the static value that a module had under a name before a call that may have left functions of its own
            there, such as a compiled one: they are left out.
        nodes: By the id of a module that stands for one of a tree, that one, with anything in the place of arrays.
    """

    def __init__(
        self,
        class_for: Callable[[Layout], Any],
        leaf: Callable[[mx.array], mx.array],
        before: Before | None = None,
        nodes: Mapping[int, Any] = MappingProxyType({}),
    ) -> None:
        self._nodes = nodes
        self._before = before
        self._class_for = class_for
        self._leaf = leaf
        self._open: dict[int, Path] = {}
        self._modules: dict[int, tuple[Path, Any]] = {}
        self._arrays: dict[tuple[int, Path], mx.array] = {}
        self._seen: set[int] = set()
        self._declared: dict[Path, Path] = {}
        self._kept: dict[int, tuple[Any, Any]] = {}
        self._memo: dict[Any, Any] = {}
        # Of modules that have been put together: each place of one that is at another, the source, too.
        self._ties: list[tuple[Path, Path]] = []
        # Modules that nothing was known of where a value with them stood, and these places.
        self._others: list[tuple[Path, Any]] = []

    def tree(self, module: MLXModule) -> Any:
        """Return the tree."""
        node = self.node(module, ())
        for place, other in self._others:
            if id(other) in self._modules:
                raise ValueError(
                    BESIDE.format(place=keystr(place), cls=_named(other), other=keystr(self._modules[id(other)][0]))
                )
        return node

    def node(self, module: Any, path: Path, template: Any = None) -> Any:
        """Return the tree of a module at a path.

        Args:
            module: The module.
            path: The path.
            template: The module of a tree that it stood for, if it did, with anything in the place of arrays.
        """
        if is_computed_again(module):
            return checkpoint(self.inside(module, (*path, WRAPPED), template))
        return self.inside(module, path, template)

    def inside(self, module: Any, path: Path, template: Any = None) -> Any:
        """As :meth:`node`, and if a module is computed again for its gradient the tree of the module itself."""
        if id(module) in self._modules:
            first, node = self._modules[id(module)]
            self._ties.append((path, first))
            return node
        if id(module) in self._open:
            raise ValueError(CYCLE.format(place=keystr(path), above=_named(module, self._open[id(module)])))
        if slot := next(slots_of(module), None):
            raise ValueError(SLOT.format(place=keystr((*path, slot[0])), cls=_named(module)))
        self._open[id(module)] = path
        first_tie = len(self._ties)
        if template is None:
            template = self._nodes.get(id(module))
        if hasattr(type(module), "__native_before__"):
            template = module.__native_before__()
        declared = metadata_of(template).ties if template is not None else ()
        self._declared.update(((*path, *target), (*path, *source)) for target, source in declared)
        node = None if template is None else native_of(template, module, self, path)
        was_native = node is None and template is not None and not isinstance(template, Wrapped)
        node = self._wrapped(module, path) if node is None else node
        node = self._tied(node, path, first_tie, declared)
        node = (native(node) or node) if was_native else node
        if template is not None and metadata_of(template).shards:
            node = evolve(node, shards=metadata_of(template).shards)
        del self._open[id(module)]
        self._modules[id(module)] = path, node
        return node

    def _wrapped(self, module: Any, path: Path) -> Any:
        places: list[tuple[str, str]] = []
        others: list[tuple[Path, type]] = []
        children: list[Any] = []
        static: dict[str, Any] = {}
        for name, value in dict.items(module):
            if type(value) is mx.array:
                children.append(self.array(value, (*path, name)))
            elif _is_tree(value):
                children.append(self._child(value, path, (name,), others))
            else:
                static[name] = value
                if isinstance(value, list | dict):  # which may get arrays, in this place
                    places.append((name, STATIC))
                continue
            places.append((name, IN_TUPLE if isinstance(value, tuple) else CHILD))
        own = vars(module)
        for name, value in sorted(own.items()):
            if isinstance(value, Node):
                children.append(value)
                places.append((name, CHILD))
            elif type(value) is mx.array or _is_tree(value):
                children.append(self._child(value, path, (name,), others))
                places.append((name, HIDDEN))
            elif name not in _OWN:
                static[name] = value
        training = own.get("_training", True)
        placed = {name for name, _ in places}
        places += [(name, STATIC) for name in sorted(static) if name not in placed]  # their order tells nothing
        static = {name: static[name] for name, place in places if place == STATIC}
        for name, value in [*static.items()]:
            if type(value) not in PLAIN:
                static[name] = self._static(value, (*path, name), module, path)
                if static[name] is NOTHING:
                    del static[name]
                    places.remove((name, STATIC))
        kind = self._class_for(Layout(plain_class(module), tuple(places), tuple(others)))
        metadata = Metadata(static, bool(training), _frozen_names(own.get("_no_grad"), kind.__frostleaf__.children))
        return kind.__frostleaf__.assemble(metadata, children)

    def _tied(self, node: Any, path: Path, first: int, declared: Ties) -> Any:
        """Tie what is the same at two places in the node at a path: modules, and arrays that were tied before."""
        modules = self._ties_inside(path, first)
        arrays = [tie for tie in declared if type(at_path(node, tie[0])) is mx.array]
        arrays = [(target, source) for target, source in arrays if at_path(node, target) is at_path(node, source)]
        if not (modules or arrays):
            return node
        node = evolve(node, ties=_sorted({*modules, *arrays}))
        return self._with_public_sources(node, path) if modules else node

    def _ties_inside(self, path: Path, first: int) -> Ties:
        """Take out those of the last ties of which the module at a path holds both places."""
        new = self._ties[first:]
        inside = [tie for tie in new if tie[1][: len(path)] == path]
        self._ties[first:] = [tie for tie in new if tie not in inside]
        return _sorted((target[len(path) :], source[len(path) :]) for target, source in inside)

    def _with_public_sources(self, node: Any, path: Path) -> Any:
        """Let a source whose arrays are no parameters be the tied place, where another is one, which MLX trains."""
        ties = metadata_of(node).ties
        for target, source in sorted(ties, key=lambda tie: len(tie[1])):  # outer ones first
            if not _is_public(node, source) and _is_public(node, target):
                before, after = (*path, *source), (*path, *target)
                self._ties = [(_moved(one, before, after), _moved(other, before, after)) for one, other in self._ties]
                self._modules = {key: (_moved(at, before, after), of) for key, (at, of) in self._modules.items()}
                pairs = [(_moved(one, source, target), _moved(other, source, target)) for one, other in ties]
                ties = _sorted((source, target) if pair == (target, target) else pair for pair in pairs)
                return self._with_public_sources(evolve(node, ties=ties), path)
        return node

    def array(self, array: mx.array, path: Path) -> mx.array:
        """Return the leaf for an array at a path: one for each place, as MLX trains them, but for tied ones."""
        key = id(array), source_of(path, self._declared)
        if key not in self._arrays:
            is_first = id(array) not in self._seen
            self._seen.add(id(array))
            self._arrays[key] = self._leaf(array) if is_first else handle_of(array)
        return self._arrays[key]

    def _child(self, value: Any, path: Path, inside: Path, others: list[tuple[Path, type]]) -> Any:
        """Return the child for a value at the path ``inside`` a module."""
        if type(value) is mx.array:
            return self.array(value, (*path, *inside))
        if is_module(value):
            return self.node(value, (*path, *inside))
        if isinstance(value, Node):
            return value
        if not isinstance(value, dict | list | tuple):
            return self._static(value, (*path, *inside), None, path)
        kind = type(value)
        if kind not in _CONTAINERS:
            _require_items_alone(value, (*path, *inside))
            others.append((inside, kind))
        if isinstance(value, dict):
            return MappingProxyType({key: self._child(each, path, (*inside, key), others) for key, each in value.items()})
        return tuple([self._child(each, path, (*inside, index), others) for index, each in enumerate(value)])

    def _static(self, value: Any, place: Path, module: Any, path: Path) -> Any:
        """Return what a static field holds for the value at a place in a module at a path."""
        if is_atom(value) or isinstance(value, _FUNCTIONS) or (isinstance(value, COMPILED) and is_importable(value)):
            return value
        if isinstance(value, types.FunctionType) and is_importable(value):
            return value
        if id(value) in self._kept:
            return self._kept[id(value)][1]
        memo = self._memo
        found = []
        for standing, each in _modules_in(value):
            if id(each) in self._open or id(each) in self._modules:
                found.append((standing, each))
            else:
                self._others.append((place, each))
        if found:
            memo = {id(standing): Place(self._below(each, place, module, path)) for standing, each in found}
        kept = Kept(Kept(value).copy(memo))
        if not found:
            self._kept[id(value)] = value, kept
        elif any(
            each is there for _, there in _modules_in(kept.value) for _, each in found
        ):  # no copy has another in its place
            if self._before is not None and module is not None:
                return self._before(module, place[-1])
            words = COMPILED_CLOSURE if isinstance(value, COMPILED) else INSIDE
            words = CLOSURE if isinstance(value, types.FunctionType) else words
            raise ValueError(words.format(place=keystr(place), cls=_named(found[0][1])))
        return kept

    def _below(self, other: Any, place: Path, module: Any, path: Path) -> Path:
        """Return the path from a module to one that is itself or below it."""
        if other is module:
            return ()
        if id(other) in self._open:
            raise ValueError(CYCLE.format(place=keystr(place), above=_named(other, self._open[id(other)])))
        there = self._modules[id(other)][0]
        if there[: len(path)] != path:
            raise ValueError(BESIDE.format(place=keystr(place), cls=_named(other), other=keystr(there)))
        return there[len(path) :]


def _require_items_alone(value: Any, place: Path) -> None:
    """Raise if a container is not made again of what is in it and its class."""
    kind = type(value)
    is_tuple = isinstance(value, tuple)
    lost = [*getattr(value, "__dict__", ()), *[name for name, _ in slots_of(value)]]
    if is_tuple and kind is not tuple and not hasattr(value, "_fields"):
        lost = ["class"]
    if lost:
        base = tuple if is_tuple else base_of(value)
        words = {"kind": with_article(kind.__name__), "lost": listed(lost, 3), "base": base.__name__}
        raise ValueError(NO_CONTAINER.format(place=keystr(place), **words))


def _frozen_names(names: set[str] | None, children: tuple[str, ...]) -> frozenset[str]:
    """Return the names of what is frozen. MLX notes others too, of which a module has nothing."""
    return frozenset([name for name in names if name.split(".")[0] in children]) if names else frozenset()


def _sorted(ties: Iterable[tuple[Path, Path]]) -> Ties:
    return tuple(sorted(ties, key=str))


def _is_public(node: Any, path: Path) -> bool:
    """Return whether arrays at and below a path in a node are parameters."""
    value, public = node, True
    for entry in path:
        if isinstance(value, Node):
            public = public and entry in value.__frostleaf__.parameters
        value = at_path(value, (entry,))
    return public


def _moved(path: Path, before: Path, after: Path) -> Path:
    return (*after, *path[len(before) :]) if path[: len(before)] == before else path


def _named(module: Any, path: Path = ()) -> str:
    kind = type(module).__name__
    return f"{keystr(path)} ({kind})" if path else kind


def _is_tree(value: Any) -> bool:
    """Return whether a value is a module, or a container with arrays or modules in it."""
    if is_module(value) or isinstance(value, Node):
        return True
    if type(value) in weakref.ProxyTypes or isinstance(value, COMPILED):
        return False
    if isinstance(value, dict):
        return any(type(each) is mx.array or _is_tree(each) for each in value.values())
    return isinstance(value, list | tuple) and any(type(each) is mx.array or _is_tree(each) for each in value)


def _modules_in(value: Any) -> Iterator[tuple[Any, MLXModule]]:
    """Yield the modules inside a value that is none, closures, attributes and weak references included.

    Each after what stands for it: itself, or a weak proxy.
    """
    for each in _through(value):
        if type(each) in weakref.ProxyTypes and isinstance(each, MLXModule):
            method: Any = each.modules
            yield each, method.__self__
        elif is_module(each):
            yield each, each


def reaches(value: Any, ids: Container[int]) -> bool:
    """Return whether something is inside a value, as :func:`_modules_in` looks into it, by the ids of what counts."""
    return any(id(each) in ids for each in _through(value))


def _through(value: Any) -> Iterator[Any]:
    """Yield a value and all that is inside, but not inside modules, classes and Python's modules."""
    waiting, seen = [value], {id(value)}
    for each in waiting:
        yield each
        if is_module(each) or isinstance(each, (type, types.ModuleType, *weakref.ProxyTypes)):
            continue
        for inside in _directly_in(each):
            if id(inside) not in seen and type(inside) not in PLAIN:
                seen.add(id(inside))
                waiting.append(inside)


def _directly_in(value: Any) -> list[Any]:
    if isinstance(value, COMPILED) or is_opaque(value):
        return [*gc.get_referents(value), *_variables(value)]
    if isinstance(value, weakref.ref):
        return [value()]
    of_classes = [each for cls in type(value).__mro__ for each in vars(cls).values() if is_module(each)]
    return [*of_classes, *[inside for _, inside in inside_of(value)]]


def _variables(value: Any) -> Iterable[Any]:
    """Return the local variables of what waits to go on."""
    frames = (getattr(value, name, None) for name in ("gi_frame", "ag_frame", "cr_frame"))
    return [each for frame in frames if frame is not None for each in frame.f_locals.values()]
