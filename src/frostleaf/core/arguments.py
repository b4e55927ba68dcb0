"""Arguments of public functions that are checked where they are given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import attrs

from .words import describe

# The default of an argument that must be given, so that its message can say what to write.
MISSING: Any = attrs.NOTHING


def require_bool(name: str, value: Any) -> bool:
    """Return an argument that is ``True`` or ``False``.

    Raises:
        TypeError: If it is something else, which would count as one of the two.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, and was given as {describe(value)}")
    return value


P = ParamSpec("P")
R = TypeVar("R")


def refusing(
    reason: Callable[[Sequence[str]], str], without: Callable[[Sequence[str]], str] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: arguments that a function doesn't have, as other libraries have them, are a ``TypeError``.

    Args:
        reason: Returns its message for their names.
        without: Returns the message, for these names, of the ``TypeError`` where an argument is left out that has no default.
            Default: Python's.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        code = function.__code__
        names = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
        needed = code.co_varnames[: code.co_argcount - len(function.__defaults__ or ())]

        @functools.wraps(function)
        def checked(*args: P.args, **given: P.kwargs) -> R:
            others = [name for name in given if name not in names]
            if without is not None and not given.keys() >= {*needed[len(args) :]}:
                raise TypeError(without(others))
            if others:
                raise TypeError(reason(others))
            return function(*args, **given)

        return checked

    return decorate


def require_callable(name: str, value: Any, of: str) -> None:
    """Require that an argument can be called.

    Args:
        name: Its name.
        value: The argument.
        of: What it is called with, for the message.

    Raises:
        TypeError: If it can't be called.
    """
    if not callable(value):
        raise TypeError(f"{name} is a function of {of}, and was given as {describe(value)}, which can't be called")
