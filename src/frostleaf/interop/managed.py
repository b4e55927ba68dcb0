"""Context managers of original code, which change the module that they are a method of until their block has run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from typing import Any


def is_generated(value: Any) -> bool:
    """Return whether a value is what a function returns that :func:`contextlib.contextmanager` decorates."""
    return isinstance(value, AbstractContextManager) and isinstance(value, ContextDecorator)


class Managed(AbstractContextManager[Any]):
    """A context manager that says what its block will not see.

    Args:
        manager: That of the original code.
        entered: Called with what it gives when it is entered; returns what the block is given.
    """

    def __init__(self, manager: Any, entered: Callable[[Any], Any]) -> None:
        self._manager = manager
        self._entered = entered

    def __enter__(self) -> Any:
        given = self._manager.__enter__()
        try:
            return self._entered(given)
        except BaseException:  # where a warning is an error
            self._manager.__exit__(None, None, None)
            raise

    def __exit__(self, *raised: Any) -> Any:
        return self._manager.__exit__(*raised)
