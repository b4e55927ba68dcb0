"""What a language model remembers of the tokens that it has seen, as values: the caches of mlx-lm, of fixed size."""

from __future__ import annotations

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
    "logits, cache = fl.stateful(lambda cache: model(tokens, cache=cache), cache), and go on with the new cache, as "
    "fl.generate does. fl.stateful(cache.trim, n) trims one"
)
OVERRUN = (
    "{cls}({max_size}) holds {used} tokens, and has no room for {length} more. Make a larger one: fl.nn.make_cache(model, "
    "max_size)"
)


class Cache(Module):
    """The base of all caches: what an update records, and :func:`frostleaf.stateful` returns."""

    @classmethod
    def _instead_of_setting(cls, name: str) -> str:
        return f"a cache never changes. Inside fl.stateful, .put({name}=...) is what the cache that this returns has there."

    @property
    def state(self) -> Any:
        """What mlx-lm's cache of this name has as its state, with numbers that are evaluated for it.

        So ``save_prompt_cache`` of mlx-lm writes a file that its ``load_prompt_cache`` reads. :func:`frostleaf.save` writes one
        for this package.
        """
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """How many bytes the arrays have."""
        raise NotImplementedError

    def empty(self) -> bool:
        """Return whether nothing has been written."""
        raise NotImplementedError

    def is_trimmable(self) -> bool:
        """Return whether ``trim`` can be called."""
        return False

    @property
    def original(self) -> type | None:
        """The class of the cache that it holds, if it holds one of another package."""
        return None

    def lend(self, name: str) -> Any:
        """Return an attribute as the original code of a model reads it."""
        return getattr(self, name)

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
        """Return whether nothing has been written."""
        return self.keys is None

    def keys_and_values(self) -> tuple[mx.array | None, mx.array | None]:
        """Return what the last ``update_and_fetch`` returned in this call, or all keys and values."""
        fetched = None if recorded(self) is self else _fetched.get(self)
        return fetched or (self.keys, self.values)

    def trim(self, n: int | mx.array) -> mx.array:
        """Forget the last ``n`` tokens, or all if there are fewer. Return how many these are.

        For use inside :func:`frostleaf.stateful`: ``n, cache = fl.stateful(cache.trim, 2)``.
        """
        trimmed = mx.clip(mx.array(n), 0, self.offset)
        self.put(offset=self.offset - trimmed)
        return trimmed

    def _store(self, stored: _Pair, fetched: _Pair, length: int) -> _Pair:
        """Record keys and values of so many more tokens, and return those that attention gets."""
        self.put(keys=stored[0], values=stored[1], offset=self.offset + length)
        _fetched[self] = fetched
        return fetched


class KVCache(_AttentionCache):
    """The keys and values of attention, for at most ``max_size`` tokens: mlx-lm's ``KVCache``, of fixed size.

    Since nothing in it changes its shape once something has been written, a jitted step is traced once for the empty cache and
    once for all tokens that follow. Where mlx-lm's returns as many keys as there are tokens, this one returns all ``max_size``,
    and its mask is an array that hides those that are not there yet. The first update, of an empty cache, returns what it was
    given, as mlx-lm's does.

    The cache is a value. What :meth:`update_and_fetch` writes, :func:`frostleaf.stateful` returns in a new one. MLX writes in
    place, without a copy of the rest, if nobody has the old one any more: ``out, cache = step(model, token, cache)``.

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
    >>> keys.shape, cache.offset.item(), cache.make_mask(1).flatten().tolist()
    ((1, 2, 5, 4), 3, [True, True, True, True, False])
    """

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size)

    @property
    def state(self) -> Any:
        return self.keys, self.values, int(self.offset.item())  # type: ignore[arg-type]

    def size(self) -> mx.array:
        """Return how many tokens are in the cache."""
        return self.offset

    def is_trimmable(self) -> bool:
        """Return ``True``: the last tokens can always be forgotten."""
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
            return self._store((padded(keys, self.max_size), padded(values, self.max_size)), (keys, values), length)
        # MLX does not look whether the place is inside, and writes beside its memory.
        start = mx.clip(now._offset, 0, self.max_size - length)
        fits = start == now._offset
        stored = _written(now._keys, keys, start, fits), _written(now._values, values, start, fits)
        return self._store(stored, stored, length)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Mask:  # noqa: N803
        """Return the mask for the next ``N`` tokens, ``[1, 1, N, max_size]``: what each of them may look at.

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
    tokens are not in order. Each token sees what is kept, and the last of the others; with a ``window_size`` only what is in
    that window, so that it does not see what is kept once that is farther away. mlx-lm's shows other tokens there: once it has
    turned, its mask for one token takes the slots of what is kept for such as turn, and with ``window_size=max_size`` it hides
    nothing.

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

    @property
    def state(self) -> Any:
        offset = int(self.offset.item())  # type: ignore[arg-type]
        turned = self.max_size - self.keep
        end = offset if offset <= self.max_size else self.keep + (offset - self.keep) % turned or self.max_size
        return self.keys, self.values, offset, self.keep, self.max_size, end

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
            before = padded(keys[:, :, :0], self.max_size), padded(values[:, :, :0], self.max_size)
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
        """Return the mask for the next ``N`` tokens, which fits the keys that :meth:`update_and_fetch` returns for them.

        It is ``[1, 1, 1, max_size]`` for one token, and ``[1, 1, N, max_size + N]`` for more.

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
            positions, is_there = self.positions(offset + 1)
            return (is_there & (True if window_size is None else offset - positions < window_size))[None, None, None]
        # As if what is before the new tokens stood in a row: those that are kept, and the last of the others.
        positions, is_there = self.positions(offset)
        before = mx.minimum(offset, self.max_size - 1)
        row = mx.where(slots < self.keep, slots, positions - offset + before)
        is_there = is_there & ((slots < self.keep) | (row >= self.keep))
        new = before + mx.arange(N)
        mask = _causal(new, mx.concatenate([row, new]), window)
        return (mask & mx.concatenate([is_there, mx.ones(N, mx.bool_)]))[None, None]

    def trim(self, n: int | mx.array) -> mx.array:
        """Forget the last ``n`` tokens, as :meth:`KVCache.trim` does.

        Raises:
            ValueError: If tokens have been overwritten, as far as the offset has a value.
        """
        if (_number(self.offset) or 0) > self.max_size:
            raise ValueError("a RotatingKVCache that has overwritten tokens can't be trimmed: ask is_trimmable() before")
        return super().trim(n)

    def positions(self, offset: mx.array) -> tuple[mx.array, mx.array]:
        """Return which of ``offset`` tokens is in each slot, and whether one is."""
        slots, last = mx.arange(self.max_size), offset - 1
        turned = last - (last - slots) % (self.max_size - self.keep)
        positions = mx.where(slots < self.keep, slots, turned)
        return positions, (positions >= mx.minimum(slots, self.keep)) & (positions <= last)

    def _overwritten(self, before: mx.array, new: mx.array) -> mx.array:
        """Return what is in the slots once the last of the new tokens are there."""
        length = new.shape[2]
        positions, is_there = self.positions(self.offset + length)
        at = positions - self.offset
        taken = mx.take(new, mx.clip(at, 0, length - 1), axis=2)
        return mx.where((is_there & (at >= 0))[:, None], taken, before)


def _number(array: mx.array) -> int | None:
    """Return the value of an array, or ``None`` while a transformation traces it."""
    try:
        return int(array.item())  # type: ignore[arg-type]
    except ValueError:
        return None


def padded(array: mx.array, length: int) -> mx.array:
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
