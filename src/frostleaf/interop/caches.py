"""Caches as the original code of a model expects them: of the classes of mlx-lm, and open to assignment."""

from __future__ import annotations

import functools
import sys
from operator import is_not
from typing import Any

import mlx.core as mx

from ..nn.cache import Cache

_MODULE = "mlx_lm.models.cache"


class LentCache:
    """Stands for a cache while a call runs. What is assigned to it is recorded, as what the cache's own methods write.

    It is of the class of the original, or of that in mlx-lm that has the name of the cache's, if that has been imported.
    """

    def __init__(self, cache: Cache) -> None:
        object.__setattr__(self, "_cache", cache)

    def given(self) -> Cache:
        """Return the cache. To be called on the class: an attribute of the object is one of the cache."""
        return object.__getattribute__(self, "_cache")  # type: ignore[no-any-return]

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        return lent_caches(LentCache.given(self).lend(name))

    def __setattr__(self, name: str, value: Any) -> None:
        LentCache.given(self).put(**{name: value})

    def __getitem__(self, index: Any) -> Any:
        cache: Any = LentCache.given(self)
        return lent_caches(cache[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        cache: Any = LentCache.given(self)
        cache[index] = value


def lent_caches(value: Any) -> Any:
    """Return a value with caches lent, those in tuples, lists and dicts too; itself if there are none."""
    kind: Any = type(value)
    if kind is mx.array:
        return value
    if kind is tuple or kind is list:
        inside = [*map(lent_caches, value)]
        return kind(inside) if any(map(is_not, inside, value)) else value
    if kind is dict:
        values = {key: lent_caches(each) for key, each in value.items()}
        return values if any(map(is_not, values.values(), value.values())) else value
    return _class_for(kind, value.original)(value) if isinstance(value, Cache) else value


@functools.cache
def _class_for(kind: Any, original: type | None) -> type[LentCache]:
    theirs = sys.modules.get(_MODULE)
    twins = [getattr(theirs, base.__name__) for base in kind.__mro__ if hasattr(theirs, base.__name__)]
    twin = original or next(iter(twins), None)
    return type(kind.__name__ if original is None else original.__name__, (LentCache, *([twin] if twin else [])), {})
