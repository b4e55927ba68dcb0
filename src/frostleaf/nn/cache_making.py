"""Making the cache that a model asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.words import describe
from .cache import ArraysCache, Cache, CacheList, KVCache, RotatingKVCache

NO_CACHE = (
    "fl.nn.make_cache asks a model for make_cache(), or makes a KVCache for each of its layers, and {given} has neither "
    "make_cache nor layers"
)
NO_TWIN = (
    "{model}.make_cache() wants a {cls} at {place}, of which there is none of fixed size. Give the model a list of caches of "
    "your own, or those of mlx-lm, outside of fl.jit"
)
# Models that take the number of keys for that of the tokens, without a word where there are more.
_COUNTING = ("mlx_lm.models.afm7",)
COUNTING = (
    "{model} of {module} works out positions from the number of keys, which is always max_size in a cache of fixed size. Use "
    "the caches of mlx-lm, outside of fl.jit"
)


def make_cache(model: Any, max_size: int) -> list[Any]:
    """Make an empty cache for a language model, to be given as ``cache=``: mlx-lm's ``make_prompt_cache``, of fixed size.

    A model with a method ``make_cache()`` is asked, and its caches of mlx-lm become those of this package. Another gets a
    :class:`KVCache` for each of ``model.layers``. A window of ``max_size`` tokens or more can't be left, so it needs no
    :class:`RotatingKVCache` and gets a :class:`KVCache`.

    Args:
        model: A native model, or one that :func:`frostleaf.from_mlx` made.
        max_size: How many tokens at most the model will see, of prompt and answer.

    Returns:
        A list with a cache for each layer, as the model's own.

    Raises:
        TypeError: If the model has neither ``make_cache`` nor ``layers``, or asks for a cache of which there is no kind here.
        ValueError: If ``max_size`` is not a positive int.

    >>> import frostleaf as fl
    >>> class Model(fl.Module):
    ...     layers: list = fl.parameter(factory=lambda: [fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)])
    >>> len(fl.nn.make_cache(Model(), 8))
    2
    """
    if type(model).__module__ in _COUNTING:
        raise TypeError(COUNTING.format(model=type(model).__name__, module=type(model).__module__))
    if hasattr(model, "make_cache"):
        made = model.make_cache()
        return [_twin(each, max_size, f"[{place}]", type(model).__name__) for place, each in enumerate(made)]
    if not hasattr(model, "layers"):
        raise TypeError(NO_CACHE.format(given=describe(model)))
    return [KVCache(max_size) for _ in model.layers]


def _twin(cache: Any, max_size: int, place: str, model: str) -> Any:
    if cache is None or isinstance(cache, Cache):
        return cache
    if isinstance(cache, list | tuple):
        return type(cache)([_twin(each, max_size, f"{place}[{index}]", model) for index, each in enumerate(cache)])
    # mlx-lm need not be installed, and other packages have copies of this module.
    names = [base.__name__ for base in type(cache).__mro__ if base.__module__.endswith("models.cache")]
    if "CacheList" in names:
        return CacheList(*_twin(tuple(cache.caches), max_size, place, model))
    make = next((_MAKERS[name] for name in names if name in _MAKERS), None)
    if make is None:
        raise TypeError(NO_TWIN.format(model=model, cls=type(cache).__name__, place=place))
    return make(cache, max_size)


def _growing(_: Any, max_size: int) -> Cache:
    return KVCache(max_size)


def _rotating(cache: Any, max_size: int) -> Cache:
    return RotatingKVCache(cache.max_size, cache.keep) if cache.max_size < max_size else KVCache(max_size)


def _arrays(cache: Any, _: int) -> Cache:
    return ArraysCache(len(cache.cache), cache.left_padding)


_MAKERS: dict[str, Callable[[Any, int], Cache]] = {
    "ArraysCache": _arrays,
    "KVCache": _growing,
    "RotatingKVCache": _rotating,
}
