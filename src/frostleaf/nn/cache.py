"""What a language model remembers of the tokens that it has seen, as values: the caches of mlx-lm, of fixed size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal
from weakref import WeakKeyDictionary

import mlx.core as mx

from ..core.fields import buffer, static
from ..core.instance import field_values
from ..module import Module
from ..transforms.stateful import record, recorded, recording
from .checks import size

Mask = mx.array | Literal["causal"] | None
_Pair = tuple[mx.array, mx.array]

UNCOLLECTED = (
    "a {cls} was updated, and nobody collects it: a cache never changes, so the next call would not know of this one. Write "
    "logits, cache = fl.stateful(lambda cache: model(tokens, cache=cache), cache), and go on with the new cache"
)
OVERRUN = (
    "{cls}({max_size}) holds {used} tokens, and has no room for {length} more. Make a larger one: fl.nn.make_cache(model, "
    "max_size)"
)


class Cache(Module):
    """The base of all caches: what an update records, and :func:`frostleaf.stateful` returns."""

    @property
    def nbytes(self) -> int:
        """How many bytes the arrays have."""
        raise NotImplementedError

    def empty(self) -> bool:
        """Return whether nothing has been written."""
        raise NotImplementedError

    def is_trimmable(self) -> bool:
        """Return whether :meth:`trim` can be called."""
        return False

    def _shown_fields(self) -> list[tuple[str, Any]]:
        return [(name.lstrip("_"), value) for name, value in field_values(self).items()]

    def put(self, **values: Any) -> None:
        """Record new values: ``cache.put(keys=...)`` for what is ``cache.keys = ...`` in mlx-lm.

        Raises:
            RuntimeError: If there is no :func:`frostleaf.stateful` around the call.
            TypeError: If the cache has nothing of such a name.
        """
        if not recording():
            raise RuntimeError(UNCOLLECTED.format(cls=type(self).__name__))
        record(self, **{f"_{name}": value for name, value in values.items()})


# What each cache gave in the call that runs, which models whose layers share keys and values ask for again. A cache inside
# fl.stateful is an object of its own, which nobody has once the call is over.
_fetched: WeakKeyDictionary[Cache, _Pair] = WeakKeyDictionary()


class _AttentionCache(Cache):
    """A cache of keys and values: ``[B, H, max_size, D]``, or ``None`` before the first."""

    _keys: mx.array | None = buffer()
    _values: mx.array | None = buffer()
    _offset: mx.array = buffer()
    max_size: int = static()

    def __init__(self, max_size: int) -> None:
        self._keys = None
        self._values = None
        self._offset = mx.array(0)
        self.max_size = size(self, "max_size", max_size)

    @property
    def offset(self) -> mx.array:
        """How many tokens have been seen, int32."""
        return recorded(self)._offset

    @property
    def keys(self) -> mx.array | None:
        """All keys, ``[B, H, max_size, D]``, in no particular order; ``None`` before the first."""
        return recorded(self)._keys

    @property
    def values(self) -> mx.array | None:
        """All values, in the order of the keys."""
        return recorded(self)._values

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self.keys, self.values) if each is not None)

    def empty(self) -> bool:
        return self.keys is None

    def keys_and_values(self) -> tuple[mx.array | None, mx.array | None]:
        """Return what the last :meth:`update_and_fetch` returned in this call, or all keys and values."""
        return _fetched.get(self) or (self.keys, self.values)

    def trim(self, n: int) -> mx.array:
        """Forget the last ``n`` tokens, or all if there are fewer. Return how many these are.

        For use inside :func:`frostleaf.stateful`: ``n, cache = fl.stateful(cache.trim, 2)``.
        """
        trimmed = mx.minimum(self.offset, n)
        self.put(offset=self.offset - trimmed)
        return trimmed

    def _store(self, stored: _Pair, fetched: _Pair, length: int) -> _Pair:
        """Record keys and values of so many more tokens, and return those that attention gets."""
        self.put(keys=stored[0], values=stored[1], offset=self.offset + length)
        _fetched[self] = fetched
        return fetched


class KVCache(_AttentionCache):
    """The keys and values of attention, for at most ``max_size`` tokens: mlx-lm's ``KVCache``, of fixed size.

    Since nothing in it changes its shape, a jitted step is traced once for all tokens. Where mlx-lm's returns as many keys as
    there are tokens, this one returns all ``max_size``, and its mask is an array that hides those that are not there yet. The
    first update, of an empty cache, returns what it was given, as mlx-lm's does.

    The cache is a value. What :meth:`update_and_fetch` writes, :func:`frostleaf.stateful` returns in a new one.

    A write past the end raises a ``ValueError``. Inside :func:`frostleaf.jit`, where the offset has no value yet, what is
    written there is ``nan``, at the end, so that all that is computed from it is ``nan`` as well. :func:`frostleaf.generate`
    looks before it begins.

    Args:
        max_size: For how many tokens there is room.

    Raises:
        ValueError: If ``max_size`` is not a positive int.

    >>> import frostleaf as fl, mlx.core as mx
    >>> cache = fl.nn.KVCache(5)
    >>> key = mx.ones((1, 2, 1, 4))
    >>> for _ in range(3):
    ...     (keys, values), cache = fl.stateful(lambda cache: cache.update_and_fetch(key, key), cache)
    >>> keys.shape, cache.offset.item(), cache.make_mask(1).tolist()
    ((1, 2, 5, 4), 3, [[True, True, True, True, False]])
    """

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size)

    def size(self) -> mx.array:
        """Return how many tokens are in the cache."""
        return self.offset

    def is_trimmable(self) -> bool:
        return True

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values of new tokens, ``[B, H, L, D]``, and return those of all tokens.

        Raises:
            RuntimeError: If there is no :func:`frostleaf.stateful` around the call.
            ValueError: If there is no room for them.
        """
        length, now = keys.shape[2], recorded(self)
        used = 0 if now._keys is None else _number(now._offset)
        if (used or 0) + length > self.max_size:
            said = {"cls": type(self).__name__, "max_size": self.max_size, "length": length}
            raise ValueError(OVERRUN.format(used="some" if used is None else used, **said))
        if now._keys is None or now._values is None:
            return self._store((_padded(keys, self.max_size), _padded(values, self.max_size)), (keys, values), length)
        # MLX does not look whether the place is inside, and writes beside its memory.
        start = mx.minimum(now._offset, self.max_size - length)
        fits = start == now._offset
        stored = _written(now._keys, keys, start, fits), _written(now._values, values, start, fits)
        return self._store(stored, stored, length)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Mask:  # noqa: N803
        """Return the mask for the next ``N`` tokens: of an array ``[N, max_size]``, what each of them may look at.

        Of an empty cache it is that of mlx-lm: ``"causal"``, ``[N, N]`` if an array is wanted, or ``None`` for one token.

        Args:
            N: How many tokens :meth:`update_and_fetch` will be given.
            return_array: Whether ``"causal"`` won't do. Default: ``False``.
            window_size: How many tokens each looks at, with itself. Default: all before it.
        """
        if self.empty():
            if window_size is None and (N == 1 or not return_array):
                return None if N == 1 else "causal"
            return _causal(mx.arange(N), mx.arange(N), window_size)
        return _causal(self.offset + mx.arange(N), mx.arange(self.max_size), window_size)[None, None]


class RotatingKVCache(_AttentionCache):
    """The keys and values of the last ``max_size`` tokens, for attention with a window: mlx-lm's ``RotatingKVCache``.

    As :class:`KVCache`, and new tokens overwrite the oldest, so there is always room. Attention must use the mask, since the
    tokens are not in order.

    Args:
        max_size: How many tokens each looks at, with itself.
        keep: How many of the first tokens are never overwritten. Default: 0.

    Raises:
        ValueError: If ``max_size`` is not a positive int, or ``keep`` is not an int from 0 to less than that.

    >>> import frostleaf as fl, mlx.core as mx
    >>> cache = fl.nn.RotatingKVCache(3)
    >>> for token in range(5):
    ...     key = mx.full((1, 1, 1, 1), token)
    ...     (keys, values), cache = fl.stateful(lambda cache: cache.update_and_fetch(key, key), cache)
    >>> keys.flatten(), cache.offset.item()
    (array([3, 4, 2], dtype=int32), 5)
    """

    keep: int = static()

    def __init__(self, max_size: int, keep: int = 0) -> None:
        super().__init__(max_size)
        self.keep = size(self, "keep", keep, least=0)
        if self.keep >= self.max_size:
            raise ValueError(f"RotatingKVCache takes keep < max_size, and was given keep={keep} and max_size={max_size}")

    def size(self) -> mx.array:
        """Return how many tokens are in the cache."""
        return mx.minimum(self.offset, self.max_size)

    def is_trimmable(self) -> bool:
        """Return whether no token has been overwritten yet, for which the offset is evaluated."""
        return self.offset.item() < self.max_size  # type: ignore[operator]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write keys and values of new tokens, ``[B, H, L, D]``, and return those of all that they may look at.

        These are ``[B, H, max_size, D]`` for one token, and ``[B, H, max_size + L, D]`` for more, the new ones last.

        Raises:
            RuntimeError: If there is no :func:`frostleaf.stateful` around the call.
        """
        length, now = keys.shape[2], recorded(self)
        if now._keys is None or now._values is None:
            before = _padded(keys[:, :, :0], self.max_size), _padded(values[:, :, :0], self.max_size)
            fetched = keys, values
        else:
            before = now._keys, now._values
            fetched = mx.concatenate([before[0], keys], axis=2), mx.concatenate([before[1], values], axis=2)
        if length > 1 or self.empty():
            stored = self._overwritten(before[0], keys), self._overwritten(before[1], values)
            return self._store(stored, fetched, length)
        slot = self.keep + (now._offset - self.keep) % (self.max_size - self.keep)
        slot = mx.where(now._offset < self.keep, now._offset, slot)
        stored = _written(before[0], keys, slot), _written(before[1], values, slot)
        return self._store(stored, stored, length)

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Mask:  # noqa: N803
        """Return the mask for the next ``N`` tokens, an array that fits what :meth:`update_and_fetch` returns for them.

        Of an empty cache it is that of mlx-lm: ``"causal"`` if the window is as long as that, or ``None`` for one token.

        Args:
            N: How many tokens :meth:`update_and_fetch` will be given.
            window_size: How many tokens each looks at, with itself. Default: ``max_size``.
            return_array: Whether ``"causal"`` won't do. Default: ``False``.
        """
        window = window_size or self.max_size
        if self.empty():
            if N == 1 or (window >= N and not return_array):
                return None if N == 1 else "causal"
            return _causal(mx.arange(N), mx.arange(N), window)
        offset, slots = self.offset, mx.arange(self.max_size)
        if N == 1:
            positions, is_there = self._positions(offset + 1)
            return (is_there & (True if window_size is None else offset - positions < window_size))[None, None, None]
        # As if what is before the new tokens stood in a row: those that are kept, and the last of the others.
        positions, is_there = self._positions(offset)
        before = mx.minimum(offset, self.max_size - 1)
        row = mx.where(slots < self.keep, slots, positions - offset + before)
        is_there = is_there & ((slots < self.keep) | (row >= self.keep))
        new = before + mx.arange(N)
        mask = _causal(new, mx.concatenate([row, new]), window)
        return (mask & mx.concatenate([is_there, mx.ones(N, mx.bool_)]))[None, None]

    def trim(self, n: int) -> mx.array:
        """Forget the last ``n`` tokens, as :meth:`KVCache.trim` does.

        Raises:
            ValueError: If tokens have been overwritten, as far as the offset has a value.
        """
        if (_number(self.offset) or 0) > self.max_size:
            raise ValueError("a RotatingKVCache that has overwritten tokens can't be trimmed: ask is_trimmable() before")
        return super().trim(n)

    def _positions(self, offset: mx.array) -> tuple[mx.array, mx.array]:
        """Return which of ``offset`` tokens is in each slot, and whether one is."""
        slots, last = mx.arange(self.max_size), offset - 1
        turned = last - (last - slots) % (self.max_size - self.keep)
        positions = mx.where(slots < self.keep, slots, turned)
        return positions, (positions >= mx.minimum(slots, self.keep)) & (positions <= last)

    def _overwritten(self, before: mx.array, new: mx.array) -> mx.array:
        """Return what is in the slots once the last of the new tokens are there."""
        length = new.shape[2]
        positions, is_there = self._positions(self.offset + length)
        at = positions - self.offset
        taken = mx.take(new, mx.clip(at, 0, length - 1), axis=2)
        return mx.where((is_there & (at >= 0))[:, None], taken, before)


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
    def cache(self) -> list[mx.array | None]:
        """The arrays."""
        return [*recorded(self)._cache]

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
        return self.cache[0] is None

    def __getitem__(self, index: Any) -> Any:
        return self.cache[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        new = self.cache
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
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.caches)

    def empty(self) -> bool:
        return bool(self.caches[0].empty())

    def is_trimmable(self) -> bool:
        return all(each.is_trimmable() for each in self.caches)

    def trim(self, n: int) -> mx.array:
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


_size = size  # which is the name of an argument above


def _number(array: mx.array) -> int | None:
    """Return the value of an array, or ``None`` while a transformation traces it."""
    try:
        return int(array.item())  # type: ignore[arg-type]
    except ValueError:
        return None


def _padded(array: mx.array, length: int) -> mx.array:
    return mx.pad(array, [(0, 0), (0, 0), (0, length - array.shape[2]), (0, 0)])


def _written(array: mx.array, new: mx.array, start: mx.array, fits: mx.array | None = None) -> mx.array:
    """Return an array with others in place of those from ``start`` on, or ``nan`` if they do not fit."""
    if fits is not None:
        new = mx.where(fits, new, mx.nan)
    return mx.slice_update(array, new.astype(array.dtype), start.reshape(1), (2,))


def _causal(queries: mx.array, keys: mx.array, window: int | None) -> mx.array:
    """Return which keys at some positions each query may look at."""
    mask = keys[None] <= queries[:, None]
    return mask if window is None else mask & (queries[:, None] < keys[None] + window)


def caches_in(tree: Any) -> Iterable[Cache]:
    """Yield the caches in a list, a tuple, a dict or a :class:`CacheList`, without those that hold others."""
    if isinstance(tree, CacheList):
        tree = tree.caches
    if isinstance(tree, Cache):
        yield tree
    elif isinstance(tree, list | tuple | dict):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from caches_in(each)
