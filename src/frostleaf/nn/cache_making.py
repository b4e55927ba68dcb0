"""Making the cache that a model asks for, empty or with what another one holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..core.hidden import cache_classes
from ..core.leaves import require_seen
from ..core.words import describe
from .cache import Cache, KVCache, RotatingKVCache, padded
from .cache_growing import GrowingCache
from .cache_lists import ArraysCache, CacheList

NO_CACHE = (
    "fl.nn.make_cache asks a model for make_cache(), or makes a KVCache for each of its layers, and {given} has neither "
    "make_cache nor layers"
)
NO_PROMPT_CACHE = "prompt_cache is the list of caches that a model was called with, and was given as {given}"
NO_TWIN = (
    "{source} a {cls} at {place}, of which there is none of fixed size. max_size=None makes one that grows, with which fl.jit "
    "traces a function for each token"
)
NO_ORIGINALS = (
    "{given} has no make_cache, and mlx-lm, whose caches grow, has not been imported. Give prompt_cache=[...], a cache for "
    "each layer, or a max_size"
)
TOO_MANY = "prompt_cache holds {offset} tokens at {place}, and a cache of max_size={max_size} has no room for them"
# Models that take the number of keys for that of the tokens, or need the latter in Python.
_COUNTING = ("mlx_lm.models.afm7", "mlx_lm.models.gpt_bigcode")
COUNTING = (
    "{model} of {module} works out positions from the number of keys or tokens, in Python, where a cache of fixed size has "
    "none. max_size=None makes one that grows, with which fl.jit traces a function for each token"
)


class NoFixedSizeError(TypeError):
    """A model can't use a cache of fixed size."""


def make_cache(model: Any, max_size: int | None, prompt_cache: Any = None) -> list[Any]:
    """Make a cache for a language model, to be given as ``cache=``: mlx-lm's ``make_prompt_cache``, as values.

    A model with a method ``make_cache()`` is asked, and its caches of mlx-lm become those of this package. Another gets a
    :class:`KVCache` for each of ``model.layers``. A window of ``max_size`` tokens or more can't be left, so it needs no
    :class:`RotatingKVCache` and gets a :class:`KVCache`.

    Args:
        model: A native model, or one that :func:`frostleaf.from_mlx` made.
        max_size: How many tokens at most the model will see, of prompt and answer. Each step looks at as many keys, so that one
            of far more than are needed costs time. ``None`` makes caches that grow (:class:`GrowingCache`), by the code of
            mlx-lm or of the model: for models that need the number of tokens in Python, or have a kind of cache of their own.
        prompt_cache: The caches of mlx-lm with which a model was called, or those of this package: what they hold, the new ones
            hold too, and they stay as they are. Default: the cache is empty.

    Returns:
        A list with a cache for each layer, as the model's own.

    Raises:
        TypeError: If the model has neither ``make_cache`` nor ``layers``, or asks for a cache of which there is no kind here;
            if ``prompt_cache`` is no list, or has such a cache. The message says for which of these ``max_size=None`` will do.
        ValueError: If ``max_size`` is not a positive int, or less than ``prompt_cache`` holds.

    >>> import frostleaf as fl, mlx.core as mx
    >>> class Model(fl.Module):
    ...     layers: list = fl.parameter(factory=lambda: [fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)])
    >>> cache = fl.nn.make_cache(Model(), 8)
    >>> len(cache)
    2
    >>> _, first = fl.stateful(lambda cache: cache.update_and_fetch(*[mx.ones((1, 1, 3, 2))] * 2), cache[0])
    >>> fl.nn.make_cache(Model(), 16, [first, cache[1]])[0].offset
    array(3, dtype=int32)
    """
    require_seen("fl.nn.make_cache", model)
    name = type(model).__name__
    if max_size is not None and type(model).__module__ in _COUNTING:
        raise NoFixedSizeError(COUNTING.format(model=name, module=type(model).__module__))
    if prompt_cache is not None:
        if not isinstance(prompt_cache, list | tuple):
            raise TypeError(NO_PROMPT_CACHE.format(given=describe(prompt_cache)))
        return [*_twins(prompt_cache, max_size, "", "prompt_cache has", _SIZED)]
    if hasattr(model, "make_cache"):
        return [*_twins(model.make_cache(), max_size, "", f"{name}.make_cache() wants", (Cache,))]
    if not hasattr(model, "layers"):
        raise TypeError(NO_CACHE.format(given=describe(model)))
    if max_size is not None:
        return [KVCache(max_size) for _ in model.layers]
    if _ORIGINALS not in sys.modules:
        raise TypeError(NO_ORIGINALS.format(given=describe(model)))
    return [GrowingCache(sys.modules[_ORIGINALS].KVCache()) for _ in model.layers]


def made_for(model: Any, max_size: int) -> list[Any]:
    """Make a cache of fixed size, or one that grows if the model can't use that."""
    try:
        return make_cache(model, max_size)
    except NoFixedSizeError:
        return make_cache(model, None)


_ORIGINALS = "mlx_lm.models.cache"

# Caches whose size has nothing to do with how many tokens the model will see.
_SIZED = (ArraysCache, RotatingKVCache)


def _twins(caches: Any, max_size: int | None, place: str, source: str, kept: tuple[type, ...]) -> Any:
    twins = [_twin(each, max_size, f"{place}[{index}]", source, kept) for index, each in enumerate(caches)]
    return tuple(twins) if isinstance(caches, tuple) else twins


def _twin(cache: Any, max_size: int | None, place: str, source: str, kept: tuple[type, ...]) -> Any:
    if cache is None or isinstance(cache, (*kept, GrowingCache)):
        return cache
    if isinstance(cache, list | tuple):
        return _twins(cache, max_size, place, source, kept)
    names = [type(cache).__name__] if isinstance(cache, Cache) else cache_classes(cache)
    if "CacheList" in names:
        return CacheList(*_twins(cache.caches, max_size, place, source, kept))
    if max_size is None and not isinstance(cache, Cache):
        return GrowingCache(cache)
    make = next((_MAKERS[name] for name in names if name in _MAKERS), None)
    if max_size is None:
        raise TypeError(f"{source} a {type(cache).__name__} at {place}, which does not grow: give the max_size of a new one")
    if make is None:
        raise NoFixedSizeError(NO_TWIN.format(source=source, cls=type(cache).__name__, place=place))
    return make(cache, max_size, place)


def _growing(cache: Any, max_size: int, place: str) -> Cache:
    made, offset = KVCache(max_size), int(cache.offset)
    if offset > made.max_size:
        raise ValueError(TOO_MANY.format(offset=offset, place=place, max_size=max_size))
    if cache.keys is None:
        return made
    keys, values = (padded(each[:, :, :offset], made.max_size) for each in (cache.keys, cache.values))
    return made.replace(_keys=keys, _values=values, _offset=mx.array(offset))


def _rotating(cache: Any, max_size: int, place: str) -> Cache:
    if cache.max_size >= max_size:
        return _growing(cache, max_size, place)
    made = RotatingKVCache(cache.max_size, cache.keep)
    if cache.keys is None:
        return made
    offset = mx.array(cache.offset)
    keys, values = (_in_slots(cache._temporal_order(each), offset, made) for each in (cache.keys, cache.values))
    return made.replace(_keys=keys, _values=values, _offset=offset)


def _in_slots(row: mx.array, offset: mx.array, cache: RotatingKVCache) -> mx.array:
    """Return where a cache has what stands in a row: the tokens that are kept, and the last of the others."""
    positions, _ = cache.positions(offset)
    place = mx.where(positions < cache.keep, positions, positions - offset + row.shape[2])
    return mx.take(row, mx.clip(place, 0, row.shape[2] - 1), axis=2)


def _arrays(cache: Any, _: int, __: str) -> Cache:
    made = ArraysCache(len(cache.cache), cache.left_padding)
    # What is assigned to a part of an array changes the array object.
    arrays = tuple(None if each is None else each[...] for each in cache.cache)
    return made.replace(_cache=arrays, _lengths=None if cache.lengths is None else cache.lengths[...])


_MAKERS: dict[str, Callable[[Any, int, str], Cache]] = {
    "ArraysCache": _arrays,
    "KVCache": _growing,
    "RotatingKVCache": _rotating,
}
