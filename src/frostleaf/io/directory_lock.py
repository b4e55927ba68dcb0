"""How the processes that save into one directory know of one another."""

from __future__ import annotations

import fcntl
import os
import weakref

LOCK = ".frostleaf-lock"


class DirectoryLock:
    """Says that somebody saves into a directory, for as long as this object or its process lives.

    All who save share the lock. Who could have had it alone for a moment knows that nobody else is saving, and that what is in
    the directory was left by those who no longer live. The kernel releases the lock of a process that dies.

    Attributes:
        alone: Whether nobody else has the lock. Until :meth:`share` is called, nobody else can get it.
    """

    def __init__(self, directory: str) -> None:
        self._handle = os.open(os.path.join(directory, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
        self.release = weakref.finalize(self, os.close, self._handle)
        self.alone = self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        _locks.add(self)

    def share(self) -> None:
        """Let others have the lock too, and keep it."""
        self._flock(fcntl.LOCK_SH)

    def _flock(self, operation: int) -> bool:
        try:
            fcntl.flock(self._handle, operation)
        except OSError:  # somebody else has it, or the file system has no locks
            return False
        return True


_locks: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _forget_locks() -> None:
    for lock in _locks:
        lock.release()


# A forked child has the parent's handles, and would keep the lock when the parent has died.
os.register_at_fork(after_in_child=_forget_locks)
