"""Caches that hold whole arrays, of layers without attention, or other caches: those of mlx-lm, as values."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..core.fields import buffer
from ..transforms.stateful import recorded
from .cache import Cache
from .checks import size as _size


class ArraysCache(Cache):
    """The state of a layer that needs no more than that, such as a state space model: mlx-lm's ``ArraysCache``.

    ``cache[0] = value`` inside :func:`frostleaf.stateful` is what the cache that this returns has there, and what ``cache[0]``
    is from then on in this call.

    Args:
        size: How many arrays there are. Each is ``None`` before the first.
        left_padding: With how many tokens each sequence of the batch is padded on the left. Default: none is.

    Raises:
        ValueError: If ``size`` is not a positive int.

    >>> import frostleaf as fl, mlx.core as mx
    >>> def step(cache):
    ...     cache[1] = mx.ones(3)
    ...     return cache[1].sum()
    >>> cache = fl.nn.ArraysCache(2)
    >>> out, after = fl.stateful(step, cache)
    >>> after[1], cache[1]
    (array([1, 1, 1], dtype=float32), None)
    """

    _cache: tuple[mx.array | None, ...] = buffer()
    _left_padding: mx.array | None = buffer()
    _lengths: mx.array | None = buffer()

    def __init__(self, size: int, left_padding: list[int] | mx.array | None = None) -> None:
        self._cache = (None,) * _size(self, "size", size)
        self._left_padding = None if left_padding is None else mx.array(left_padding)
        self._lengths = None

    @property
    def state(self) -> Any:
        return [*self.cache], self.left_padding, self.lengths

    @property
    def cache(self) -> tuple[mx.array | None, ...]:
        """The arrays."""
        return recorded(self)._cache

    @property
    def left_padding(self) -> mx.array | None:
        """With how many more tokens each sequence is padded on the left."""
        return recorded(self)._left_padding

    @property
    def lengths(self) -> mx.array | None:
        """How many more tokens each sequence has."""
        return recorded(self)._lengths

    @property
    def batch_size(self) -> int:
        """How many sequences there are; 1 if that is not known."""
        first = next((each for each in (*self.cache, self.left_padding, self.lengths) if each is not None), None)
        return 1 if first is None else first.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.cache if each is not None)

    def empty(self) -> bool:
        """Return whether nothing has been written at the first place."""
        return self.cache[0] is None

    def __getitem__(self, index: Any) -> Any:
        return self.cache[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        new = [*self.cache]
        new[index] = value
        self.put(cache=tuple(new))

    def prepare(self, lengths: list[int] | mx.array | None = None, **_: Any) -> None:
        """Say how many tokens each sequence has, where those of a batch are padded on the right."""
        self.put(lengths=None if lengths is None else mx.array(lengths))

    def finalize(self) -> None:
        """Say that there is no padding any more."""
        self.put(lengths=None, left_padding=None)

    def advance(self, N: int) -> None:  # noqa: N803
        """Say that ``N`` tokens have been seen."""
        counted = {"lengths": self.lengths, "left_padding": self.left_padding}
        new = {name: value - N for name, value in counted.items() if value is not None}
        if new:
            self.put(**new)

    def make_mask(self, N: int) -> mx.array | None:  # noqa: N803
        """Return which of the next ``N`` tokens are no padding, ``[B, N]``; ``None`` if none is."""
        positions = mx.arange(N)
        mask: mx.array | None = None
        if self.left_padding is not None:
            mask = positions >= self.left_padding[:, None]
        if self.lengths is not None:
            inside = positions < self.lengths[:, None]
            mask = inside if mask is None else mask & inside
        return mask


class CacheList(Cache):
    """The caches of a layer that has several: mlx-lm's ``CacheList``.

    Args:
        *caches: The caches. ``cache[0]`` is the first.

    Raises:
        TypeError: If one is no cache.

    >>> import frostleaf as fl
    >>> cache = fl.nn.CacheList(fl.nn.ArraysCache(2), fl.nn.KVCache(8))
    >>> cache[1].max_size, cache.empty()
    (8, True)
    """

    caches: tuple[Any, ...]

    def __init__(self, *caches: Cache) -> None:
        for each in caches:
            if not isinstance(each, Cache):
                raise TypeError(f"CacheList takes caches one by one, and was given a {type(each).__name__}")
        self.caches = caches

    def __getitem__(self, index: Any) -> Any:
        return self.caches[index]

    @property
    def state(self) -> Any:
        return [(each.state, type(each).__name__) for each in self.caches]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.caches)

    def empty(self) -> bool:
        """Return whether nothing has been written in the first cache."""
        return bool(self.caches[0].empty())

    def is_trimmable(self) -> bool:
        """Return whether all caches can forget the last tokens."""
        return all(each.is_trimmable() for each in self.caches)

    def trim(self, n: int | mx.array) -> mx.array:
        """Forget the last ``n`` tokens, as :meth:`KVCache.trim` does."""
        return [each.trim(n) for each in self.caches][-1]  # type: ignore[no-any-return]

    def prepare(self, **kwargs: Any) -> None:
        """Prepare each cache, as :meth:`ArraysCache.prepare` does."""
        for each in self.caches:
            each.prepare(**kwargs)

    def finalize(self) -> None:
        """Finalize each cache, as :meth:`ArraysCache.finalize` does."""
        for each in self.caches:
            each.finalize()
