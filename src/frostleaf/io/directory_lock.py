"""Let the processes that save into one directory know of one another."""

from __future__ import annotations

import fcntl
import os
import weakref

LOCK = ".frostleaf-lock"


class DirectoryLock:
    """Hold a directory's shared lock for as long as this object or its process lives.

    Everyone who saves shares the lock. Whoever gets it exclusively for a moment knows that nobody else is saving, and that the
    files in the directory are from processes that have ended. The kernel releases the lock of a process that dies.

    Attributes:
        exclusive: Whether nobody else has the lock. Until :meth:`share` is called, nobody else can get it.
    """

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, LOCK)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # somebody else has made it; on most file systems it can be locked all the same
            self._handle = os.open(path, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, self._handle)
        self.exclusive = self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        _locks.add(self)

    def share(self) -> None:
        """Keep the lock, and let others have it too."""
        self._flock(fcntl.LOCK_SH)

    def _flock(self, operation: int) -> bool:
        try:
            fcntl.flock(self._handle, operation)
        except OSError:  # somebody else has it, or the file system has no locks
            return False
        return True


_locks: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _release_all() -> None:
    for lock in _locks:
        lock.release()


# A forked child inherits the parent's handles, and would keep the lock after the parent has died.
os.register_at_fork(after_in_child=_release_all)
