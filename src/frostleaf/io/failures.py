"""Errors of the background: each is raised once, by who asks next, or said when there is nobody left to ask."""

from __future__ import annotations

import os
import sys
import traceback
import weakref


class Failures:
    """The errors that an object has had in the background and has not raised yet.

    What it has not raised when it is dropped, or when the process ends, Python writes to standard error.

    Args:
        owner: The object. Nothing here refers to it.
    """

    def __init__(self, owner: object) -> None:
        self._waiting: list[Exception] = []
        self._process = os.getpid()
        self._finalizer = weakref.finalize(owner, self._at_the_end)

    def add(self, failure: Exception) -> None:
        """Keep an error until it is raised. What it was raised in is let go."""
        each: BaseException | None = failure
        while each is not None:
            traceback.clear_frames(each.__traceback__)
            each = each.__cause__ or each.__context__
        if self._finalizer.alive:
            self._waiting.append(failure)
        else:  # the process ends, and nobody is told any more
            sys.excepthook(type(failure), failure, failure.__traceback__)

    def raise_next(self) -> None:
        """Raise the error that has waited longest, if there is one."""
        if self._waiting:
            raise self._waiting.pop(0)

    def _at_the_end(self) -> None:
        # A forked child has a copy, of which its parent tells.
        if os.getpid() == self._process:
            self.raise_next()
