"""Settings that a traced function reads from outside its arguments, such as an optimizer: each call looks what they are now."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from ...core.containers import compared_fields, is_hashable
from ...core.hidden import find_hidden
from ...core.instance import Instance
from ...core.structure import Flat, flat_of
from .captured import Outside, is_of_library, outside_of
from .weak import Lent, weakened


class Setting:
    """A setting that a function reads from outside.

    Args:
        read: Returns what it is now.
    """

    __slots__ = ("_latest", "_read")

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._latest: tuple[Any, Flat] = None, flat_of(None)

    def now(self) -> Flat:
        """Return what it is now, taken apart."""
        value = self._read()
        if isinstance(value, Instance):  # which keeps it
            return flat_of(value)
        latest, flat = self._latest
        if value is latest:
            return flat
        flat, lent = flat_of(value, hidden=True), Lent()
        weakened(flat.structure, lent.argument)
        if not flat.leaves and not lent.references:  # nothing but data, which may be kept until the next call
            self._latest = value, flat
        return flat


# By the name that each has in messages.
Settings = dict[str, Setting]


def settings_of(fn: Any, static: Iterable[tuple[str, Any]], classes: Iterable[type]) -> Settings:
    """Return the settings that a function, or one that it calls, reads from its closure and its globals.

    A setting is a value that never changes and is told from others by what is in it, which are no arrays: an optimizer, a layer
    without parameters, a policy. But the name of one may be given to another. Arrays are warned of, and a default is always the
    same. Numbers, functions and objects of the user's own are taken to be what they are.

    Args:
        fn: The function.
        static: The names and the values of what is static in its arguments.
        classes: Those of the modules in its arguments.
    """
    found: Settings = {}
    paths: set[tuple[int, str]] = set()
    for each in outside_of(fn, static, classes, in_jitted=True):
        if each.fn is not None and _is_setting(each.value):
            root, read = _reader(each, each.fn)
            above = each.path.rpartition(".")[0]
            if read is not None and paths.isdisjoint({(root, each.path), (root, above)}):
                paths.add((root, each.path))
                found[each.name] = Setting(read)
    return found


def _is_setting(value: Any) -> bool:
    if isinstance(value, Instance):
        return not flat_of(value).leaves
    is_record = compared_fields(type(value)) and is_of_library(type(value))
    return bool(is_record) and is_hashable(value) and find_hidden(value) is None


def _reader(read: Outside, fn: types.FunctionType) -> tuple[int, Callable[[], Any] | None]:
    """Return the identity of what has the variable, and what reads it now; ``None`` if nobody can give its name to another."""
    variable, *attributes = read.path.split(".")
    if variable in fn.__code__.co_varnames:  # it has a default
        return 0, None
    if variable in fn.__code__.co_freevars:
        at = fn.__code__.co_freevars.index(variable)
        root = functools.partial(_in_cell, weakref.ref(fn), at)
        return id((fn.__closure__ or ())[at]), functools.partial(_inside, root, attributes) if attributes else root
    if variable in fn.__globals__:
        named = functools.partial(fn.__globals__.get, variable)
        return id(fn.__globals__), functools.partial(_inside, named, attributes) if attributes else named
    return 0, None


def _in_cell(fn: Callable[[], types.FunctionType | None], at: int) -> Any:
    """Return what a variable of a function's closure is; ``None`` if the function is gone, or the variable not assigned."""
    function = fn()
    try:
        return function and (function.__closure__ or ())[at].cell_contents
    except ValueError:
        return None


def _inside(read: Callable[[], Any], attributes: Iterable[str]) -> Any:
    value = read()
    for name in attributes:
        value = getattr(value, name, None)
    return value
