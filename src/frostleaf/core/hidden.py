"""Arrays inside values that are not trees, where nothing would train, cast or save them."""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, MappingView
from typing import Any, NamedTuple

import attrs
import mlx.core as mx
import optree
from mlx.nn.layers.base import Module as MLXModule

from .instance import Instance, level_of
from .kept import Kept
from .registration import NAMESPACE
from .words import describe, keystr

# Values of these very classes hold nothing, or nothing that is looked at. A subclass may have attributes.
PLAIN = {type(None), bool, int, float, complex, str, bytes, mx.Dtype, Kept}
# An array, and what shows no other way that it holds one.
_ARRAY = (mx.array, type(mx.array(0).at))
# What a function is bound to is at its ``__self__``.
BOUND: tuple[type[Any], ...] = (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType, type(mx.array(0).reshape))
_GETTERS = (operator.attrgetter, operator.itemgetter, operator.methodcaller)
# Wrappers that show by these names what they hold.
_SHOWING: dict[type, tuple[str, ...]] = {
    functools.partial: ("func", "args", "keywords"),
    slice: ("start", "stop", "step"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    BaseException: ("args",),
}
# Of collections.abc there are others, which have the mapping in an attribute.
_EMPTY: tuple[dict[Any, Any], ...] = ({}, OrderedDict())
_VIEWS = frozenset([type(view) for each in _EMPTY for view in (each.keys(), each.values(), each.items())])
_DEEPEST = 8
# Where the classes of iterators are that show nothing of what they will give: a deque's is in another module since Python 3.12.
# Others have attributes, as a data loader has.
_SHOWING_NOTHING = {"builtins", "itertools", "mlx.core", type(iter(deque())).__module__}


class Hidden(NamedTuple):
    """An array or a module inside a value, and the attributes, variables and keys that lead to it."""

    path: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        kind = f"a {type(self.value).__name__}" if isinstance(self.value, Instance) else describe(self.value)
        return f"{keystr(self.path)}: {kind}" if self.path else kind


def find_hidden(value: Any, foreign: bool = True) -> Hidden | None:
    """Find the first array, or module with arrays, inside a value; return ``None`` if there is none.

    With ``foreign``, arrays of other libraries count. It looks into containers and their keys, attributes of objects, closures
    and defaults of functions, and what methods and partial functions are bound to; not into global variables, classes or Python
    modules. No function inside is called.

    >>> find_hidden(functools.partial(mx.add, mx.zeros(2))), find_hidden(functools.partial(mx.add, 1))
    (Hidden(path=('args', '0'), value=array([0, 0], dtype=float32)), None)
    """
    if _is_plain(value):
        return None
    # Breadth first, to find the shortest path.
    found: list[tuple[tuple[str, ...], Any]] = [((), value)]
    seen: set[int] = set()
    for path, each in found:
        if (
            isinstance(each, _ARRAY)
            or (isinstance(each, Instance) and _has_arrays(each))
            or (foreign and is_foreign_array(each))
        ):
            return Hidden(path, each)
        if _is_plain(each) or id(each) in seen or len(path) == _DEEPEST:
            continue
        seen.add(id(each))
        found += [((*path, name), inside) for name, inside in inside_of(each)]
    return None


def advice_for(value: Any) -> str:
    """Say what to write in the place of a value that hides arrays or modules."""
    if isinstance(value, MLXModule):
        return OF_MLX
    if hasattr(type(value), "_instead_of_a_tree"):
        return str(type(value)._instead_of_a_tree)
    if isinstance(value, types.FunctionType | functools.partial):
        return "Make it a method, or a module that holds the arrays in fields."
    if isinstance(value, BOUND):
        return "Give what it is bound to, and call the method where it is needed."
    if isinstance(value, set | frozenset):
        return "Give a list or a tuple."
    if isinstance(value, MappingView) or is_opaque(value):
        return "Pass a list of what is in it."
    if dataclasses.is_dataclass(value) or attrs.has(type(value)):
        return "Register its class with fl.register_dataclass, or make it an fl.Module."
    if cache_classes(value):
        return CACHE
    return "Make its class an fl.Module, or register it with fl.register_pytree_node."


OF_MLX = "It is a module of mlx.nn: fl.from_mlx(module) makes a tree of it."
CACHE = (
    "It is a cache that changes when a model is called: fl.nn.make_cache(model, max_size) makes one that is a tree, and with "
    "prompt_cache=... one with what these caches hold."
)


def cache_classes(value: Any) -> list[str]:
    """Return the names of those classes of a value that are caches of mlx-lm, or of a package with a copy of its module.

    >>> cache_classes(1)
    []
    """
    modules = ((base.__name__, base.__module__) for base in type(value).__mro__)
    return [name for name, module in modules if module.startswith("mlx_") and module.endswith(".models.cache")]


def is_foreign_array(value: Any) -> bool:
    """Return whether a value is an array of another library, such as NumPy or PyTorch. Their scalars count as numbers.

    >>> import numpy as np
    >>> is_foreign_array(np.zeros(2)), is_foreign_array(np.float32(1)), is_foreign_array(mx.zeros(2)), is_foreign_array("text")
    (True, False, False, False)
    """
    kind = type(value)
    if kind in PLAIN or kind is types.FunctionType or isinstance(value, mx.array):
        return False
    return hasattr(kind, "__dlpack__") or (hasattr(kind, "__array__") and kind.__hash__ is None)


def find_iterator(value: Any) -> Any:
    """Return the first iterator or view of a mapping in a tree; ``None`` if there is none.

    >>> find_iterator((1, {"a": 2})), type(find_iterator((1, iter([2])))).__name__
    (None, 'list_iterator')
    """
    if _is_plain(value):
        return None
    leaves = optree.tree_leaves(value, namespace=NAMESPACE)
    return next((each for each in leaves if is_iterator(each) or isinstance(each, MappingView)), None)


def is_iterator(value: Any) -> bool:
    """Return whether a value can be gone through once. A weak proxy only looks as if it could."""
    return isinstance(value, Iterator) and not isinstance(value, weakref.ProxyTypes)


def is_opaque(value: Any) -> bool:
    """Return whether a value is an iterator of which nothing can be seen without using it up.

    >>> is_opaque(zip([mx.zeros(2)])), is_opaque(range(3)), is_opaque({"a": 1}.values())
    (True, False, False)
    """
    return type(value).__module__ in _SHOWING_NOTHING and isinstance(value, Iterator | AsyncIterator)


def _is_plain(value: Any) -> bool:
    return type(value) in PLAIN or isinstance(value, type | types.ModuleType)


def _has_arrays(node: Instance) -> bool:
    try:
        children = level_of(node)[1]
    except TypeError:  # it is still being built, and may get some
        return True
    return any(find_hidden(child) is not None for child in children)


def inside_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of everything that a value holds directly."""
    if isinstance(value, Instance):
        return
    if isinstance(value, types.FunctionType):
        yield from _variables(value)
    elif isinstance(value, BOUND):
        yield "__self__", value.__self__
        yield "__func__", getattr(value, "__func__", None)
        return
    elif isinstance(value, Mapping):
        for key, item in _tried(value.items):
            yield from [(key if isinstance(key, str) else describe(key), item), ("(a key)", key)]
    elif isinstance(value, list | tuple | set | frozenset) or type(value) in _VIEWS:
        yield from [(str(index), item) for index, item in enumerate(value)]
    elif isinstance(value, types.CellType):
        yield from _contents("cell_contents", value)
    elif isinstance(value, _GETTERS):
        yield "args", value.__reduce__()
    for kind, names in _SHOWING.items():
        if isinstance(value, kind):
            yield from [(name, getattr(value, name)) for name in names]
    yield from _attributes(value)


def _variables(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        yield from _contents(name, cell)
    count = fn.__code__.co_argcount
    with_default = fn.__code__.co_varnames[:count][count - len(fn.__defaults__ or ()) :]
    yield from zip(with_default, fn.__defaults__ or (), strict=True)
    yield from (fn.__kwdefaults__ or {}).items()


def _contents(name: str, cell: types.CellType) -> Iterator[tuple[str, Any]]:
    try:
        yield name, cell.cell_contents
    except ValueError:  # not assigned yet
        return


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            member = vars(cls).get(name)
            if isinstance(member, types.MemberDescriptorType):
                try:
                    yield name, member.__get__(value)
                except AttributeError:  # not set
                    continue


def _tried(items: Any) -> Iterable[Any]:
    try:
        return list(items())
    except Exception:  # an unusual mapping
        return ()
