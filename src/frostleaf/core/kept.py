"""Values of any kind as structure: helper objects, lists and functions of code that was not written for frozen trees."""

from __future__ import annotations

import copy
import copyreg
import enum
import functools
import gc
import hashlib
import inspect
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from .containers import is_hashable, is_told_by_identity, static_key
from .pickling import from_picklable, is_importable, to_picklable
from .words import Path, describe


class Kept:
    """A value that is part of a structure, whatever it is: equal to another by type and content, never by identity.

    Content is what :mod:`pickle` would write of it. What can be neither copied nor pickled, such as a lock or a generator, and
    what Python never copies, such as a function, is the same object in all copies; of these a function is compared by its code
    and its closure, as they are when it is first compared, and the others by identity.

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

# What mx.compile returns.
COMPILED = type(mx.compile(mx.tanh))
_SEQUENCES = (tuple, list, deque)


def _name(function: Any) -> str:
    if is_importable(function):
        return function.__qualname__  # type: ignore[no-any-return]
    raise TypeError(f"cannot pickle 'function' object {describe(function)}, which MLX made of another")


# A copy of what mx.compile, mx.vmap and others return ends the process when it is used.
copyreg.pickle(COMPILED, _name)


def _content(value: Any, around: Mapping[int, int]) -> Any:
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
    if holds_bytes(value):
        return kind, value.shape, str(value.dtype), hashlib.sha256(value.tobytes()).hexdigest()
    around = {**around, id(value): len(around)}
    if isinstance(value, tuple) or kind is list:
        return kind, tuple([_content(each, around) for each in value]), _attributes_content(value, around)
    if isinstance(value, set | frozenset):
        return kind, frozenset([_content(each, around) for each in value]), _attributes_content(value, around)
    if isinstance(value, types.FunctionType) and not is_importable(value):
        return kind, tuple([_content(each, around) for each in _parts(value)])
    if isinstance(value, COMPILED) and not is_importable(value):
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
    told = not attributes and not is_told_by_identity(value) and is_hashable(value) and is_hashable(static_key(value))
    parts = None if told else _pickled(value)
    if parts is not None:
        return kind, tuple([_content(each, around) for each in parts])
    if attributes:
        return kind, attributes
    return static_key(value) if is_hashable(static_key(value)) else (kind, id(value))


_WATCHED = {*sys.stdlib_module_names, "numpy"}


def is_watched(value: Any) -> bool:
    """Return whether a value may be changed with no attribute, key or item of it being another object.

    Of classes that are not written in Python this knows Python's own and NumPy's. Those of other packages, such as tokenizers,
    may be large, and are taken to stay as they are.
    """
    kind: Any = type(value)
    own = kind.__mro__[:-1]
    if not any(cls.__module__.partition(".")[0] in _WATCHED or "__slots__" in vars(cls) for cls in own):
        return False
    if isinstance(value, enum.Enum) or (not is_told_by_identity(value) and is_hashable(value)):
        return False
    return holds_bytes(value) or not _is_told_by_attributes(value)


def _is_told_by_attributes(value: Any) -> bool:
    parts = _pickled(value)
    if parts is None:
        return True
    make, args, state, items, _ = parts
    is_made_empty = args in ((), (type(value),)) and (make is type(value) or getattr(make, "__name__", "") == "__newobj__")
    return is_made_empty and (state is None or type(state) is dict) and not items


def state_of(value: Any, around: Mapping[int, int]) -> Any:
    """Return what tells whether a watched value has changed. What can't be told, of arrays that are traced, has changed.

    Args:
        value: The value.
        around: Numbers that stand for what others look after, by its id.
    """
    if holds_bytes(value):
        return value.shape, value.tobytes()
    try:
        return _content(value, around)
    except Exception:
        return object()


def holds_bytes(value: Any) -> bool:
    """Return whether a value is an array of another library in which there is nothing but its bytes."""
    kind: Any = type(value)
    is_array = hasattr(kind, "__dlpack__") and hasattr(value, "tobytes")
    return is_array and not getattr(value.dtype, "hasobject", False) and not hasattr(value, "__dict__")


def _pickled(value: Any) -> list[Any] | None:
    """Return what pickle makes an object of, or ``None`` where it can't."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        return None
    if not isinstance(reduced, tuple):
        return None
    make, args, state, items, pairs = (*reduced, None, None, None)[:5]
    return [make, args, state, [*(items or ())], [*(pairs or ())]]


def _attributes_content(value: Any, around: Mapping[int, int]) -> Any:
    return tuple([(name, _content(each, around)) for name, each in sorted(attributes_of(value))])


def attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in the ``__dict__`` and the slots of an object."""
    yield from getattr(value, "__dict__", {}).items()
    yield from slots_of(value)


def slots_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in the slots of an object."""
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
        inside = [part for _, part in parts_of(each)]
        waiting += [part for part in inside if id(part) not in seen]
        seen.update(map(id, inside))


def parts_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the names of what a copy of a value has copies of, and it: items, attributes, and what a function is bound to."""
    if isinstance(value, dict):
        yield from [(key, part) for key, item in dict.items(value) for part in (key, item)]
    elif isinstance(value, (*_SEQUENCES, set, frozenset)):
        yield from enumerate(value)
    elif isinstance(value, functools.partial):
        yield from [(name, getattr(value, name)) for name in ("func", "args", "keywords")]
    elif isinstance(value, types.MethodType):
        yield "__self__", value.__self__
    yield from attributes_of(value)


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
