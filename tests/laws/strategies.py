"""Hypothesis strategies for the laws: trees of modules, containers, arrays and static values.

A class that is registered with optree stays registered, so the module classes are a fixed pool, made as this file is
imported; what varies from example to example is which of them are nested how, and what they hold.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import mlx.core as mx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import frostleaf as fl
from frostleaf.core.instance import is_built, metadata_of

#: What every law is checked with. Whoever looks for a counterexample in earnest runs pytest -m long, see conftest.py.
law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
#: The same for a law that is checked of many methods, one after the other.
law_for_each = settings(law, max_examples=law.max_examples * 3 // 8)

DTYPES = [
    mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64,
    mx.float16, mx.bfloat16, mx.float32, mx.complex64,
]  # fmt: skip
if mx.default_device() == mx.cpu:  # No accelerator computes in float64.
    DTYPES.append(mx.float64)

SHAPES = [(), (0,), (1,), (3,), (2, 0), (2, 3), (1, 2, 2)]


# The pool of classes. A module is built from one value per field, given under the field's name.


class Point(NamedTuple):
    """A namedtuple that holds parts of a tree."""

    x: Any
    y: Any


def _module(name: str, fields: dict[str, Any], base: type = fl.Module, **body: Any) -> type[fl.Module]:
    """Make a module class at run time; a field that is ``...`` is a bare annotation."""
    given = {field: value for field, value in fields.items() if value is not ...}
    return type(name, (base,), {"__annotations__": dict.fromkeys(fields, Any), **given, **body, "__module__": __name__})


Empty = _module("Empty", {})
Single = _module("Single", {"weight": ...})
Wide = _module("Wide", {f"part{number}": ... for number in range(5)})
Kinds = _module(
    "Kinds",
    {
        "weight": ...,
        "seen": fl.buffer(),
        "table": fl.buffer(persistent=False),
        "size": fl.static(),
        "_hidden": fl.parameter(),
    },
)
OnlyStatic = _module("OnlyStatic", {"first": fl.static(), "second": fl.static(default=None)})
Interleaved = _module("Interleaved", {"a": ..., "b": fl.static(), "c": fl.buffer(), "d": fl.static(kw_only=True), "e": ...})
Child = _module("Child", {"more": ..., "note": fl.static(default="")}, base=Kinds)
Overriding = _module("Overriding", {"weight": fl.buffer(), "extra": fl.parameter(default=None)}, base=Single)


def _assign(self: Any, weight: Any, bias: Any = None, *, note: Any = "") -> None:
    self.note = note
    self.bias = bias
    self.weight = weight


Handwritten = _module("Handwritten", {"weight": ..., "note": fl.static(default="unset"), "bias": ...}, __init__=_assign)
# Inherits the constructor, which knows nothing of the field that is added here.
HandwrittenChild = _module("HandwrittenChild", {"added": fl.parameter(default=None)}, base=Handwritten)


class CallsSuper(Handwritten):
    """Its own constructor calls that of its base."""

    scale: Any

    def __init__(self, weight: Any, scale: Any, note: Any = None) -> None:
        super().__init__(weight, bias=None, note=note)
        self.scale = scale


class Naming:
    """A mixin that is no module."""

    def shout(self) -> str:
        return type(self).__name__.upper()


Held = TypeVar("Held")


class Box(Naming, fl.Module, Generic[Held]):
    """A generic module with a mixin."""

    content: Held
    label: Any = fl.static(default=None)


# Each class with the arguments of its constructor: those that become parts of the tree, and those that are static.
POOL: dict[type[fl.Module], tuple[list[str], list[str]]] = {
    Empty: ([], []),
    Single: (["weight"], []),
    Wide: ([f"part{number}" for number in range(5)], []),
    Kinds: (["weight", "seen", "table", "hidden"], ["size"]),
    OnlyStatic: ([], ["first", "second"]),
    Interleaved: (["a", "c", "e"], ["b", "d"]),
    Child: (["weight", "seen", "table", "hidden", "more"], ["size", "note"]),
    Overriding: (["weight", "extra"], []),
    Handwritten: (["weight", "bias"], ["note"]),
    HandwrittenChild: (["weight", "bias"], ["note"]),
    CallsSuper: (["weight", "scale"], ["note"]),
    Box: (["content"], ["label"]),
}


# What stands in trees


every_dtype = st.sampled_from(DTYPES)


@st.composite
def arrays(draw: st.DrawFn, dtypes: st.SearchStrategy[mx.Dtype] = every_dtype) -> mx.array:
    """Arrays of every dtype, scalars and arrays without elements included."""
    dtype = draw(dtypes)
    shape = draw(st.sampled_from(SHAPES))
    size = 1
    for length in shape:
        size *= length
    first = draw(st.integers(0, 3))
    return mx.array([float((first + index) % 5) for index in range(size)], mx.float32).reshape(shape).astype(dtype)


def plus(left: float, right: float) -> float:
    """A function to be held as a static value."""
    return left + right


numbers = st.one_of(
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, 0.5, float("nan"), float("inf"), 1 + 0j]),
)
scalars = st.one_of(
    st.none(),
    numbers,
    st.sampled_from(["", "a", "relu", "1"]),
    st.sampled_from([plus, len, mx.tanh, mx.abs, int, functools.partial(plus, 1), functools.partial(plus, right=True)]),
    st.sampled_from([mx.float32, mx.bfloat16, mx.bool_]),
)
KEYS = ["weight", "bias", "_private", "a", "b"]


def statics(leaves: st.SearchStrategy[Any] = scalars) -> st.SearchStrategy[Any]:
    """Static values: scalars, and containers of them."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=2),
            st.lists(inner, max_size=2).map(tuple),
            st.dictionaries(st.sampled_from(KEYS), inner, max_size=2),
            st.builds(Point, inner, inner),
            st.frozensets(st.integers(0, 3), max_size=2),
        ),
        max_leaves=3,
    )


@st.composite
def _modules_of(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> fl.Module:
    cls = draw(st.sampled_from(list(POOL)))
    parts, static = POOL[cls]
    arguments = {name: draw(inner) for name in parts}
    arguments.update({name: draw(statics()) for name in static})
    if len(parts) > 1 and draw(st.booleans()):  # One object at two places.
        arguments[parts[-1]] = arguments[parts[0]]
    return cls(**arguments)


def _containers_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    dicts = st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        dicts,
        dicts.map(MappingProxyType),
        dicts.map(OrderedDict),
        dicts.map(lambda items: defaultdict(list, items)),
        st.lists(inner, max_size=2).map(deque),
        st.builds(Point, inner, inner),
        inner.map(lambda value: (value, value)),  # One object at two places.
    )


def trees(leaves: st.SearchStrategy[Any] | None = None, *, max_leaves: int = 8) -> st.SearchStrategy[Any]:
    """Trees of any kind: modules, containers, arrays and static values, nested."""
    leaves = leaves if leaves is not None else st.one_of(arrays(), arrays(), scalars)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(_modules_of(inner), _modules_of(inner), _containers_of(inner)),
        max_leaves=max_leaves,
    )


def modules(leaves: st.SearchStrategy[Any] | None = None, *, max_leaves: int = 6) -> st.SearchStrategy[fl.Module]:
    """Modules in every state, some of their fields frozen and some of their parts in evaluation mode."""
    return st.builds(
        _with_metadata,
        _modules_of(trees(leaves, max_leaves=max_leaves)),
        st.sampled_from([None, "weight", ["part0", "content"]]),
        st.booleans(),
        st.booleans(),
        st.sampled_from(STATES),
    )


STATES = ["fresh", "taken apart before", "returned by jit and not yet looked into"]


def _with_metadata(module: fl.Module, keys: Any, recurse: bool, evaluating: bool, state: str) -> fl.Module:
    if keys is not None:
        module = module.freeze(keys=keys, recurse=recurse)
    if evaluating:
        module = module.eval()
    if state == STATES[1]:
        fl.tree.flatten(module)
    if state == STATES[2]:
        module = fl.jit(lambda given: given)(module)
        assert not is_built(module)
    return module


# Trees looked at without frostleaf's own traversal, so that it can't hide its mistakes


def parts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return the path and the value of each part of a tree, outer parts first, static fields included."""
    found = [(path, value)]
    if isinstance(value, fl.Module):
        inner = [(name, getattr(value, name)) for name in type(value).__frostleaf__.fields]
    elif isinstance(value, tuple | list | deque):
        inner = list(enumerate(value))
    elif isinstance(value, dict | MappingProxyType):
        inner = list(value.items())
    else:
        inner = []
    for entry, child in inner:
        found.extend(parts(child, (*path, entry)))
    return found


def arrays_of(value: Any) -> list[tuple[tuple[Any, ...], mx.array]]:
    """Return the path and the array for each array of a tree, in order."""
    return [(path, part) for path, part in parts(value) if isinstance(part, mx.array)]


def identical(left: Any, right: Any) -> bool:
    """Return whether two trees are alike in every class, name, mode and container, and hold the very same objects."""
    here, there = parts(left), parts(right)
    if len(here) != len(there):
        return False
    for (path, one), (other_path, other) in zip(here, there, strict=True):
        if path != other_path or type(one) is not type(other):
            return False
        if isinstance(one, fl.Module):
            if (one.training, metadata_of(one).frozen) != (other.training, metadata_of(other).frozen):
                return False
        elif isinstance(one, defaultdict):
            if one.default_factory is not other.default_factory:
                return False
        elif not isinstance(one, tuple | list | deque | dict | MappingProxyType) and one is not other:
            return False
    return True


class Snapshot:
    """A tree as it was: to be compared with what has become of it."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.before = self._look()

    def _look(self) -> list[Any]:
        # The objects themselves are kept as well, so that no other object can take over an id.
        return [
            (path, id(part), part, self._attributes(part) if isinstance(part, fl.Module) else None)
            for path, part in parts(self.tree)
        ]

    @staticmethod
    def _attributes(module: fl.Module) -> dict[str, Any]:
        """Return the module's fields and metadata."""
        metadata = metadata_of(module)  # a module without fields is not looked into by looking for what is in it
        return {**vars(module), "metadata": metadata}

    def assert_unchanged(self) -> None:
        """Fail unless every part of the tree is the same object with the same attributes."""
        after = self._look()
        assert [(path, number) for path, number, _, _ in after] == [(path, number) for path, number, _, _ in self.before]
        for (path, _, _, now), (_, _, _, then) in zip(after, self.before, strict=True):
            if now is None:
                continue
            assert now.keys() == then.keys(), path
            assert all(now[name] is then[name] for name in then), path


def assert_shares(before: Any, after: Any, touched: set[tuple[Any, ...]]) -> None:
    """Fail unless every array and module of ``before`` with nothing touched in it stands in ``after`` as the same object."""
    now = dict(parts(after))
    for path, part in parts(before):
        within = any(each[: len(path)] == path or path[: len(each)] == each for each in touched)
        if isinstance(part, mx.array | fl.Module) and not within:
            assert now[path] is part, path
