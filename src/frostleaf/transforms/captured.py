"""Arrays that a function reads from outside its arguments, which a trace takes for constants."""

from __future__ import annotations

import dis
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlx.core as mx

from ..containers import arrays_in
from ..tree.compare import describe
from .explanation import with_article

CAPTURED = (
    "{fn} reads {variables} from outside its arguments. fl.jit compiles what is there at the first call in as a constant, and "
    "does not see later values. Pass it as an argument."
)

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class CapturedArrayWarning(UserWarning):
    """A jitted function reads arrays from outside its arguments, whose values would be compiled in and go stale."""


def warn_of_captured(fn: Callable[..., Any]) -> None:
    """Warn if the function reads arrays, or trees of arrays, from its closure, its globals or its defaults.

    The warning is shown at the line that called into this package. No array is evaluated.
    """
    found = []
    for name, value in _outside(fn):
        try:
            count = sum(1 for _ in _arrays(value))
        except Exception:  # of a class that somebody else registered, or of a list that holds itself
            continue
        if count:
            found.append(f"{name} ({_described(value, count)})")
    if found:
        name = getattr(fn, "__name__", type(fn).__name__)
        message = CAPTURED.format(fn=name, variables=", ".join(dict.fromkeys(found)))
        warnings.warn(message, CapturedArrayWarning, stacklevel=_level_of_caller())


def _outside(fn: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each variable that a function reads and that is not an argument or its own."""
    yield "self", fn  # arguments are bound to a method, and an object that can be called may be a tree
    fn = getattr(fn, "__func__", fn)
    while isinstance(fn, types.FunctionType):
        names = set(_names_read(fn.__code__))
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            if ("closure", name) in names:
                try:
                    yield name, cell.cell_contents
                except ValueError:  # not assigned yet
                    continue
        yield from [(name, fn.__globals__.get(name)) for kind, name in sorted(names) if kind == "global"]
        count = fn.__code__.co_argcount
        with_default = fn.__code__.co_varnames[:count][count - len(fn.__defaults__ or ()) :]
        yield from zip(with_default, fn.__defaults__ or (), strict=True)
        yield from (fn.__kwdefaults__ or {}).items()
        # Of a function with a decorator, or of a gradient, the function that somebody wrote.
        fn = getattr(fn, "__wrapped__", None)


def _names_read(code: types.CodeType) -> Iterator[tuple[str, str]]:
    """Yield each variable that the code, or code nested in it, reads: whether from the closure or the globals, and its name."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield "global", instruction.argval
        elif instruction.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"):
            yield "closure", instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_read(constant)


def _arrays(value: Any) -> Iterable[mx.array]:
    return () if value is mx.random.state else arrays_in(value)  # the random state is what jit threads through


def _described(value: Any, count: int) -> str:
    if isinstance(value, mx.array):
        return describe(value)
    return f"{with_article(type(value).__name__)} with {count} array{'s' * (count > 1)}"


def _level_of_caller() -> int:
    """Return the level of the caller of this package, as :func:`warnings.warn` counts it in the function that calls this."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
