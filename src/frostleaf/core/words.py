"""How messages name paths and values."""

from __future__ import annotations

import difflib
import functools
import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

import mlx.core as mx

# The names, keys and indices that lead to a value inside a tree.
Path = tuple[Any, ...]

# The folder of this package, with which the names of its files begin.
PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep

# What stands before an array that is frozen.
FROZEN_MARK = "❄"

_LONGEST = 80
_LONGEST_NAME = 200
_FIRST = 8
_MOST = 200
_BRACKETS: dict[type, tuple[str, str]] = {
    tuple: ("(", ")"),
    list: ("[", "]"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("{", "}"),
}
_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def keystr(path: Iterable[Any]) -> str:
    """Return a path as MLX writes it: ``("layers", 0, "weight")`` is ``"layers.0.weight"``."""
    return ".".join([str(entry) for entry in path])


@functools.singledispatch
def describe(value: Any, depth: int = 2) -> str:
    """Describe a value in a few words: an array by its dtype and shape, a function by its name, anything else by a short text.

    Nothing is evaluated, and no memory address is shown. A container shows its first items, to a depth of ``depth`` levels.

    >>> describe(mx.zeros((2, 3), mx.bfloat16)), describe(mx.tanh), describe({"a": [mx.array(1), 3]})
    ('bf16[2,3]', 'tanh', "{'a': [i32[], 3]}")
    """
    if isinstance(value, bool | int | float | str | None):
        try:
            return _shortened(repr(value))
        except ValueError:  # of so many digits that Python doesn't write them
            return f"{type(value).__name__} of {int(value or 0).bit_length():,} bits"
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if isinstance(name, str):
        # Each of MLX's schedules is called "schedule", so a closure goes by the name of the function that made it.
        *makers, own = name.split(".<locals>.")
        return f"{makers[-1]}(...)" if makers and own != "<lambda>" and getattr(value, "__closure__", None) else own
    try:
        text = f"{type(value).__name__}(...)" if _is_large(value) else repr(value)
    except Exception:  # of a class whose way to show itself fails
        text = " at 0x"
    return f"{type(value).__name__}(...)" if " at 0x" in text else _shortened(text)


def _is_large(value: Any) -> bool:
    """Return whether the ``repr`` of a value might print an array, and evaluate it, or print hundreds of things."""
    seen: dict[int, Any] = {}
    waiting = [value]
    for each in waiting:
        if isinstance(each, mx.array) or len(seen) == _MOST:
            return True
        if id(each) not in seen and not isinstance(each, type | ModuleType | FunctionType):
            seen[id(each)] = each
            waiting += gc.get_referents(each)
    return False


@describe.register
def _(value: mx.array, depth: int = 2) -> str:
    return shape_and_dtype(value.shape, value.dtype)


@describe.register
def _(value: type, depth: int = 2) -> str:
    return value.__name__


@describe.register
def _(value: functools.partial, depth: int = 2) -> str:  # type: ignore[type-arg]
    named = [f"{name}={describe(each)}" for name, each in value.keywords.items()]
    return _shortened(f"partial({', '.join([*map(describe, (value.func, *value.args)), *named])})")


@describe.register(tuple)
@describe.register(list)
@describe.register(set)
@describe.register(frozenset)
@describe.register(dict)
@describe.register(MappingProxyType)
def _(value: Any, depth: int = 2) -> str:
    kind = type(value).__name__
    if value and not depth:
        return f"{kind}(...)"
    first = list(itertools.islice(value, _FIRST))
    if isinstance(value, Mapping):
        items = [f"{describe(key, 0)}: {describe(value[key], depth - 1)}" for key in first]
    elif hasattr(value, "_fields"):
        items = [f"{name}={describe(each, depth - 1)}" for name, each in zip(value._fields, first, strict=False)]
    else:
        items = [describe(each, depth - 1) for each in first]
    items = sorted(items) if isinstance(value, set | frozenset) else items
    shown = ", ".join(items + ["..."] * (len(value) > _FIRST))
    left, right = _BRACKETS.get(type(value), (f"{kind}(", ")"))
    return _shortened(f"{left}{shown}{',' * (type(value) is tuple and len(value) == 1)}{right}")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def in_a_line(name: str) -> str:
    """Return a name as a line of text shows it: control characters as Python writes them, and the end of a long one left out.

    >>> in_a_line("a" + chr(27)) == "a" + ascii(chr(27))[1:-1], len(in_a_line("long" * 1_000))
    (True, 200)
    """
    name = printable(name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def printable(text: str) -> str:
    """Return a text in which what can't be seen is as Python writes it: control characters, changes of direction."""
    return text if text.isprintable() else "".join([each if each.isprintable() else repr(each)[1:-1] for each in text])


def shape_and_dtype(shape: Iterable[object], dtype: mx.Dtype) -> str:
    """Return a shape and a dtype in the short form of JAX: ``"f32[2,3]"``."""
    return f"{_short_name(dtype)}[{','.join([str(length) for length in shape])}]"


@functools.cache
def _short_name(dtype: mx.Dtype) -> str:
    name = dtype_name(dtype)
    letters = name.rstrip("0123456789")
    return f"{_SHORT.get(letters, letters)}{name[len(letters) :]}"


def dtype_name(dtype: mx.Dtype) -> str:
    """Return the name of a dtype without its module: ``"float32"``."""
    return str(dtype).removeprefix("mlx.core.")


def function_name(function: Callable[..., Any]) -> str:
    """Return the name of a function, or of the class of another callable."""
    return getattr(function, "__name__", None) or type(function).__name__


def class_name(value: Any) -> str:
    """Return the qualified name of a value's class: ``"numpy.ndarray"``."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


BUILD_AGAIN = (
    "What was built before {name} was defined again is of the old class: build it again, or carry its arrays over with "
    "new.update(old.parameters())"
)


def is_defined_again(kind: type, other: type) -> bool:
    """Return whether two classes are definitions of one name in one module, as when a cell of a notebook was run again."""
    return kind is not other and (kind.__module__, kind.__qualname__) == (other.__module__, other.__qualname__)


def listed(texts: Iterable[str], most: int = _FIRST, separator: str = ", ") -> str:
    """Return the first texts of many for a message, and how many there are beyond them.

    >>> listed(map(str, range(100)), most=3)
    '0, 1, 2 and 97 more'
    """
    every = list(texts)
    shown = separator.join(every[:most])
    return f"{shown} and {len(every) - most:,} more" if len(every) > most else shown


def with_article(noun: str) -> str:
    """Return ``"a Linear"``, ``"an Embedding"``."""
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; the nearest is 'x'"`` for a message, or an empty string if no name is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; the nearest is {close[0]!r}" if close else ""


def by_name(names_by_advice: Mapping[str, str]) -> dict[str, str]:
    """Return the advice for each name, from the names, with blanks between them, by the advice for them.

    >>> by_name({"give a": "x y", "give b": "z"})
    {'x': 'give a', 'y': 'give a', 'z': 'give b'}
    """
    return {name: advice for advice, names in names_by_advice.items() for name in names.split()}


def nearest_paths(path: str, paths: Iterable[str]) -> str:
    """Return ``". The nearest paths are 'x', 'y'"`` for a message, or an empty string if no path is near."""
    close = difflib.get_close_matches(path, list(paths), n=3, cutoff=0.4)
    return f". The nearest paths are {', '.join(map(repr, close))}" if close else ""


def nearest_glob(where: str, paths: Iterable[str]) -> str:
    """Say which glob is meant if a name in it is none of the tree's, but near one; or return an empty string."""
    names = {name for path in paths for name in path.split(".")}
    strange = [name for name in where.split(".") if name not in names and "*" not in name]
    close = {name: difflib.get_close_matches(name, sorted(names), n=1) for name in strange}
    if not any(close.values()):
        return ""
    meant = ".".join([*close.get(name, ()), name][0] for name in where.split("."))
    return f". The nearest glob is {meant!r}"


_NAMESAKE = ", whose layers of that name are {other}: select by that class, not by {cls}"
_KIN = ", which has layers of {others}: select by {such}"


def nearest_class(where: type, kinds: Sequence[type]) -> str:
    """Say which classes of a tree have the name of another or are made of it, like quantized layers; or return an empty string.

    Args:
        where: The other, of which the tree has no instance.
        kinds: The classes of the tree.
    """
    for kind in kinds:
        if kind.__name__ == where.__name__:
            return _NAMESAKE.format(cls=_full_name(where), other=_full_name(kind))
    made = [_full_name(kind) for kind in kinds if kind.__name__.endswith(where.__name__)]
    return _KIN.format(others=listed(made, separator=" and "), such="that" if len(made) == 1 else "these") if made else ""


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def level_of_caller() -> int:
    """Return the ``stacklevel`` for :func:`warnings.warn`, in the function that calls this, of the caller of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
