"""Arrays that a function reads from objects that are not trees, where no transformation finds them."""

from __future__ import annotations

import types
from collections.abc import MappingView
from typing import Any

from ..core.hidden import Hidden, advice_for, find_hidden, is_opaque
from ..core.levels import one_level
from ..core.words import function_name, with_article
from .jit.captured import attributes_of, names_read_by
from .wrapping import Wrapped

OPAQUE = "{place} is {kind}, an iterator, in which {transformation} can't find arrays: {lost}. {advice}"
HIDDEN = "{place} is {kind} that holds arrays ({hidden}), which {transformation} can't find there: {lost}. {advice}"


def require_reached(transformation: str, lost: str, place: str, value: Any, reader: Any = None) -> None:
    """Raise an error if an object hides arrays, or is an iterator. Arrays of other libraries are constants to MLX.

    Args:
        transformation: The name of what looks for arrays.
        lost: What would happen to them.
        place: What to call the object.
        value: The object, which is not a tree.
        reader: The function that is bound to the object, or has it in its closure. Only attributes of names that it reads
            count, since it may have a trainer there that holds much else. Default: none, and all count.

    Raises:
        TypeError: If it does.
    """
    if type(value) is types.FunctionType:
        return
    hidden = Hidden((), value) if is_opaque(value) else _found(value, reader)
    if hidden is not None:
        said = {"place": place, "kind": with_article(type(value).__name__), "hidden": hidden, "lost": lost}
        message = OPAQUE if hidden.value is value else HIDDEN
        raise TypeError(message.format(transformation=transformation, advice=advice_for(value), **said))


def require_reached_by(transformation: str, lost: str, fn: Any) -> None:
    """As :func:`require_reached`, for the object that a function is, or is a method of."""
    owner = fn.__self__ if isinstance(fn, types.MethodType) else fn
    if not isinstance(owner, types.FunctionType | Wrapped) and one_level(owner) is None:
        require_reached(transformation, lost, function_name(fn), owner, reader_of(fn))


def reader_of(fn: Any) -> Any:
    """Return the function that runs when another is called."""
    return fn if isinstance(fn, types.FunctionType | types.MethodType) else type(fn).__call__


def _found(value: Any, reader: Any) -> Hidden | None:
    whole = reader is None or isinstance(value, type | types.ModuleType | MappingView)
    attributes = {} if whole else attributes_of(value)
    if not attributes:
        return find_hidden(value, foreign=False)
    for name in names_read_by(reader, (type(value),), called=False) & attributes.keys():
        if hidden := find_hidden(attributes[name], foreign=False):
            return Hidden((name, *hidden.path), hidden.value)
    return None
