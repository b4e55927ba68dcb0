"""Caches that grow with each token, as values: those of mlx-lm and of single models, by their own code."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from ..core.fields import buffer, static
from ..core.hidden import PLAIN
from ..core.kept import Kept, attributes_of, parts_of
from ..core.words import Path, describe, keystr
from ..transforms.jit.passing import Inputs
from ..transforms.stateful import record_edit, recorded, recording
from .cache import UNCOLLECTED, Cache

# Its value in a memo has the arrays that slots stand for.
_ARRAYS = "<arrays>"


class _Slot(NamedTuple):
    """Stands for an array inside an object."""

    name: str

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        return memo[_ARRAYS][self.name] if _ARRAYS in memo else self


class GrowingCache(Cache):
    """A cache of mlx-lm, or one of a model's own class, as a value: it holds what that holds, and grows as that does.

    Its arrays are leaves. All else is structure, such as how many tokens have been seen, an int: for models that work out
    shapes and positions from it. So a function under :func:`frostleaf.jit` is traced for each token, where it is traced once
    with caches of fixed size.

    It has the attributes and methods of the original. What these change, :func:`frostleaf.stateful` returns in a new cache, and
    the original stays as it is.

    ``cache.original.from_state(cache.state)`` is a cache of mlx-lm with what this one holds. ``save_prompt_cache`` of mlx-lm
    needs that, since it writes the names of classes: from a file with this class, ``load_prompt_cache`` raises a ``KeyError``.
    :func:`frostleaf.save` writes one for this package.

    Args:
        cache: The original, empty or not.

    Raises:
        TypeError: If that is a cache of this package, or what no cache can be: a number, a string, an array, a class.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Rows:
    ...     def __init__(self):
    ...         self.rows, self.count = None, 0
    ...     def add(self, rows):
    ...         self.rows = rows if self.rows is None else mx.concatenate([self.rows, rows])
    ...         self.count += len(rows)
    ...         return self.rows
    >>> cache = fl.nn.GrowingCache(Rows())
    >>> for _ in range(3):
    ...     rows, cache = fl.stateful(lambda cache: cache.add(mx.ones((2, 1))), cache)
    >>> rows.shape, cache.count, fl.tree.paths(cache)
    ((6, 1), 6, ['_arrays.rows'])
    """

    _arrays: Mapping[str, mx.array] = buffer()
    _form: Any = static()

    def __init__(self, cache: Any) -> None:
        if isinstance(cache, Cache | mx.array | type) or type(cache) in PLAIN:
            raise TypeError(f"GrowingCache takes a cache of mlx-lm or of a model's own class, and was given {describe(cache)}")
        arrays, self._form = _taken(cache)
        self._arrays = {name: _handle(array) for name, array in arrays.items()}

    @property
    def original(self) -> type:
        """The class of the original."""
        return type(self._form.value)

    @property
    def state(self) -> Any:
        """What the original has as its state, by which ``from_state`` of its class makes another one."""
        return self.lend("state")

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in recorded(self)._arrays.values())

    def empty(self) -> bool:
        return bool(self.lend("empty")())

    def is_trimmable(self) -> bool:
        return bool(self.lend("is_trimmable")())

    def put(self, **values: Any) -> None:
        def assign(original: Any) -> None:
            for name, value in values.items():
                setattr(original, name, value)

        self._run(assign)

    def _shown_fields(self) -> list[tuple[str, Any]]:
        plain = [(name, value) for name, value in attributes_of(self._form.value) if type(value) in PLAIN]
        return [("original", self.original), *self._arrays.items(), *plain]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return self.lend(name)

    def __getitem__(self, index: Any) -> Any:
        return self._run(lambda original: original[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._run(lambda original: original.__setitem__(index, value))

    def lend(self, name: str) -> Any:
        now = recorded(self)
        value = dict(attributes_of(now._form.value)).get(name)
        if isinstance(value, _Slot):
            return _handle(now._arrays[value.name])
        if value is not None and type(value) in PLAIN:
            return value
        if isinstance(getattr(self.original, name, None), types.FunctionType):
            return types.MethodType(functools.partial(_called, name), self)
        return self._run(lambda original: getattr(original, name))

    def _run(self, act: Callable[[Any], Any]) -> Any:
        """Return what a function returns for the original, and record what it changes there."""
        now = recorded(self)
        handles = {name: _handle(array) for name, array in now._arrays.items()}
        original = now._form.copy({_ARRAYS: handles})
        begun = None if recording() else Inputs([*handles.values()])
        out = act(original)
        if begun is None:
            record_edit(self, GrowingCache(original))
            return out
        arrays, form = _taken(original)
        same = form == now._form and all(arrays[name] is handle for name, handle in handles.items())
        if not same or begun.assigned([*handles.values()]):
            raise RuntimeError(UNCOLLECTED.format(cls=type(self).__name__))
        return out


_handle: Any = mx.array.__copy__


def _called(name: str, cache: GrowingCache, /, *args: Any, **kwargs: Any) -> Any:
    return cache._run(lambda original: getattr(original, name)(*args, **kwargs))


def _taken(original: Any) -> tuple[dict[str, mx.array], Kept]:
    """Return the arrays in an object by name, and a copy of it with slots in their places."""
    arrays = {keystr(path): array for path, array in _arrays_in(original)}
    memo = {id(array): _Slot(name) for name, array in arrays.items()}
    return arrays, Kept(copy.deepcopy(original, memo))


def _arrays_in(value: Any) -> Iterator[tuple[Path, mx.array]]:
    waiting: list[tuple[Path, Any]] = [((), value)]
    seen: set[int] = set()
    for path, each in waiting:
        if type(each) in PLAIN or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, mx.array):
            yield path, each
        elif not isinstance(each, type | types.ModuleType | types.FunctionType):
            waiting += [((*path, name), part) for name, part in parts_of(each)]
