"""Arguments of public functions that are checked where they are given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from .words import describe

P = ParamSpec("P")
R = TypeVar("R")


def require_bool(name: str, value: Any) -> bool:
    """Return an argument that is ``True`` or ``False``.

    Raises:
        TypeError: If it is something else, which would count as one of the two.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, and was given as {describe(value)}")
    return value


def refusing(
    unknown: Callable[[Sequence[str]], str], missing: Callable[[Sequence[str]], str] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of a function that says what to write to one who gives it arguments that other libraries have.

    Args:
        unknown: Returns the message of the ``TypeError`` for names that the function has no arguments of.
        missing: Returns that of the ``TypeError`` where an argument without a default is left out, for such names as well, of
            which there may be none. Default: Python's message.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        code = function.__code__
        names = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}
        needed = code.co_varnames[: code.co_argcount - len(function.__defaults__ or ())]

        @functools.wraps(function)
        def checked(*args: P.args, **given: P.kwargs) -> R:
            others = [name for name in given if name not in names]
            if missing is not None and not given.keys() >= {*needed[len(args) :]}:
                raise TypeError(missing(others))
            if others:
                raise TypeError(unknown(others))
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
