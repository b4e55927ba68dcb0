"""Arguments of public functions that are checked where they are given."""

from __future__ import annotations

from typing import Any

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
