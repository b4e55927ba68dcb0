"""Values of any kind as structure: helper objects, lists and functions of code that was not written for frozen trees."""

from __future__ import annotations

import copy
import copyreg
import enum
import functools
import gc
import hashlib
import inspect
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx

from .containers import is_hashable, static_key
from .pickling import from_picklable, is_importable, to_picklable
from .words import Path, describe


class Kept:
    """A value that is part of a structure, whatever it is: equal to another by type and content, never by identity.

    Args:
        value: The value, which nobody else may have.

    >>> Kept([1, {"a": 2}]) == Kept([1, {"a": 2}]), Kept([1]) == Kept([1.0])
    (True, False)
    """

    __slots__ = ("_content", "_hash", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self._content: Any = None
        self._hash: int | None = None

    @property
    def content(self) -> Any:
        """What is in the value, in tuples of what can be hashed."""
        if self._content is None:
            self._content = _content(self.value, {})
        return self._content

    def copy(self, memo: dict[Any, Any]) -> Any:
        """Return a copy of the value that may be changed. What can't be copied, such as a lock, is the same object in it."""
        count = len(memo)
        try:
            return copy.deepcopy(self.value, memo)
        except Exception:
            while len(memo) > count:  # copies that are not finished
                memo.popitem()
        memo |= {id(each): each for each in _not_copied(self.value)}
        try:
            return copy.deepcopy(self.value, memo)
        except Exception:
            return self.value

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Kept) and hash(self) == hash(other) and self.content == other.content)

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self.content)
        return self._hash

    def __repr__(self) -> str:
        return describe(self.value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Kept:
        return self

    def __reduce__(self) -> Any:
        if isinstance(self.value, types.MethodType):  # which pickle would look up in what it is bound to
            return _kept_method, (self.value.__func__, self.value.__self__)
        return _kept, (to_picklable(self.value),)


def let_out(value: Any) -> Any:
    """Return a copy of what is kept, and any other value as it is."""
    return value.copy({}) if type(value) is Kept else value


def _kept(value: Any) -> Kept:
    return Kept(from_picklable(value))


def _kept_method(function: Any, owner: Any) -> Kept:
    return Kept(types.MethodType(function, owner))


@describe.register
def _(value: Kept, depth: int = 2) -> str:
    return describe(value.value, depth)


class Place:
    """Stands in a kept value for a module: the one that has the value, or one below it.

    Args:
        path: The path from there.
    """

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        return memo[AT](self.path) if AT in memo else self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # so that a partial function takes it
        raise NotImplementedError


# Its value in a memo returns what a place stands for.
AT = "<at>"

_COMPILED = type(mx.compile(mx.tanh))
_SEQUENCES = (tuple, list, deque)


def _name(function: Any) -> str:
    if is_importable(function):
        return function.__qualname__  # type: ignore[no-any-return]
    raise TypeError(f"cannot pickle 'function' object {describe(function)}, which MLX made of another")


# A copy of what mx.compile, mx.vmap and others return ends the process when it is used.
copyreg.pickle(_COMPILED, _name)


def _content(value: Any, around: dict[int, int]) -> Any:
    """Return what two values share if they are of one type and content.

    Args:
        value: The value.
        around: How deep the values that this one is in are, by their ids.
    """
    kind: Any = type(value)
    if id(value) in around:  # it holds itself
        return "<above>", around[id(value)]
    if isinstance(value, mx.array):
        return mx.array, value.shape, value.dtype, _digest(value)
    if hasattr(kind, "__dlpack__") and hasattr(value, "tobytes"):
        return kind, value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()
    around = {**around, id(value): len(around)}
    if kind in _SEQUENCES or hasattr(value, "_fields"):
        return kind, tuple([_content(each, around) for each in value])
    if kind in (set, frozenset):
        return kind, frozenset([_content(each, around) for each in value])
    if isinstance(value, types.FunctionType) and not is_importable(value):
        return kind, tuple([_content(each, around) for each in _parts(value)])
    if isinstance(value, _COMPILED) and not is_importable(value):
        return kind, tuple([_content(each, around) for each in gc.get_referents(value) if each is not kind])
    if isinstance(value, types.CodeType):
        return value.co_name, value.co_code.hex(), value.co_names, tuple([_content(each, around) for each in value.co_consts])
    if isinstance(value, types.MethodType):
        return kind, _content(value.__func__, around), _content(value.__self__, around)
    if isinstance(value, functools.partial):
        return kind, tuple([_content(each, around) for each in (value.func, value.args, value.keywords)])
    if isinstance(value, slice):
        return kind, tuple([_content(each, around) for each in (value.start, value.stop, value.step)])
    if isinstance(value, Mapping):
        items = dict.items(value) if isinstance(value, dict) else value.items()
        inside = tuple([(_content(key, around), _content(item, around)) for key, item in items])
        return kind, inside, _attributes_content(value, around)
    if isinstance(value, type | types.ModuleType | types.FunctionType | enum.Enum):
        return value
    attributes = _attributes_content(value, around)
    if attributes or (kind.__flags__ & _HEAP_TYPE and kind.__eq__ is object.__eq__ and hasattr(value, "__dict__")):
        return kind, attributes
    return static_key(value) if is_hashable(static_key(value)) else (kind, id(value))


_HEAP_TYPE = 1 << 9  # Python's flag for classes that are not built in


def _attributes_content(value: Any, around: dict[int, int]) -> Any:
    return tuple([(name, _content(each, around)) for name, each in sorted(attributes_of(value))])


def attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in the ``__dict__`` and the slots of an object."""
    yield from getattr(value, "__dict__", {}).items()
    for cls in type(value).__mro__:
        for name, member in vars(cls).items() if "__slots__" in vars(cls) else ():
            if inspect.ismemberdescriptor(member) and hasattr(value, name):
                yield name, member.__get__(value)


def _not_copied(value: Any) -> Iterator[Any]:
    """Yield what can't be copied inside a value."""
    waiting, seen = [value], {id(value)}
    for each in waiting:
        try:
            copy.copy(each)
        except Exception:
            yield each
            continue
        inside = [*_inside(each), *[part for _, part in attributes_of(each)]]
        waiting += [part for part in inside if id(part) not in seen]
        seen.update(map(id, inside))


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return *value, *dict.values(value)
    if isinstance(value, (*_SEQUENCES, set, frozenset)):
        return value
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    return (value.__self__,) if isinstance(value, types.MethodType) else ()


def _parts(function: types.FunctionType) -> Iterator[Any]:
    """Yield what tells a function from others: its code, its defaults, and the values of its closure."""
    yield from (function.__qualname__, function.__code__, function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            yield None


def _digest(array: mx.array) -> str:
    return hashlib.sha256(bytes(array.flatten().view(mx.uint8)) if array.size else b"").hexdigest()
