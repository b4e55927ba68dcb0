"""Arrays inside values that are not trees, where nothing would train, cast or save them."""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from .instance import Instance, level_of
from .words import describe, keystr

# Values that hold nothing, among the most frequent in fields.
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    mx.Dtype,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    enum.Enum,
)
_PLAIN_TYPES = {*_PLAIN, types.FunctionType}
_DEEPEST = 8


class Hidden(NamedTuple):
    """An array or a module inside a value, and the attributes, variables and keys that lead to it."""

    path: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        kind = f"a {type(self.value).__name__}" if isinstance(self.value, Instance) else describe(self.value)
        return f"{keystr(self.path)}: {kind}" if self.path else kind


def find_hidden(value: Any) -> Hidden | None:
    """Find the first array, or module with arrays, inside a value; return ``None`` if there is none.

    It looks into containers, attributes of objects, closures and defaults of functions, and what methods and partial functions
    are bound to; not into global variables, classes or Python modules. Nothing is called.

    >>> find_hidden(functools.partial(mx.add, mx.zeros(2))), find_hidden(functools.partial(mx.add, 1))
    (Hidden(path=('args', '0'), value=array([0, 0], dtype=float32)), None)
    """
    if isinstance(value, _PLAIN):
        return None
    # Breadth first, to find the shortest path.
    found: list[tuple[tuple[str, ...], Any]] = [((), value)]
    seen: set[int] = set()
    for path, each in found:
        if isinstance(each, mx.array) or is_foreign_array(each) or (isinstance(each, Instance) and _has_arrays(each)):
            return Hidden(path, each)
        if isinstance(each, _PLAIN) or id(each) in seen or len(path) == _DEEPEST:
            continue
        seen.add(id(each))
        found += [((*path, name), inside) for name, inside in _inside(each)]
    return None


def is_foreign_array(value: Any) -> bool:
    """Return whether a value is an array of another library, such as NumPy or PyTorch. Their scalars count as numbers.

    >>> import numpy as np
    >>> is_foreign_array(np.zeros(2)), is_foreign_array(np.float32(1)), is_foreign_array(mx.zeros(2)), is_foreign_array("text")
    (True, False, False, False)
    """
    kind = type(value)
    if kind in _PLAIN_TYPES or isinstance(value, mx.array):
        return False
    return hasattr(kind, "__dlpack__") or (hasattr(kind, "__array__") and kind.__hash__ is None)


def _has_arrays(node: Instance) -> bool:
    try:
        children = level_of(node)[1]
    except TypeError:  # it is still being built, and may get some
        return True
    return any(find_hidden(child) is not None for child in children)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of everything that a value holds directly."""
    if isinstance(value, Instance):
        return
    if isinstance(value, types.FunctionType):
        yield from _variables(value)
    elif isinstance(value, types.MethodType):
        yield "__self__", value.__self__
        yield "__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield from [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    elif isinstance(value, Mapping):
        yield from [(str(key), item) for key, item in _tried(value.items)]
    elif isinstance(value, list | tuple | set | frozenset):
        yield from [(str(index), item) for index, item in enumerate(value)]
    if not isinstance(value, types.MethodType | types.MethodWrapperType):
        yield from _attributes(value)


def _variables(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    count = fn.__code__.co_argcount
    with_default = fn.__code__.co_varnames[:count][count - len(fn.__defaults__ or ()) :]
    yield from zip(with_default, fn.__defaults__ or (), strict=True)
    yield from (fn.__kwdefaults__ or {}).items()


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
