"""Let the processes that save into one directory know of one another."""

from __future__ import annotations

import fcntl
import os
import threading
import weakref

LOCK = ".frostleaf-lock"

_INTERRUPTED = (
    "it is being looked through for the first save, which a signal handler that saves too has interrupted: let the handler "
    "note the signal, and save after the step"
)


class DirectoryLock:
    """Hold a directory's shared lock for as long as this object or its process lives.

    Everyone who saves shares the lock. Whoever gets it exclusively for a moment knows that nobody else is saving, and that the
    files in the directory are from processes that have ended. The kernel releases the lock of a process that dies.

    Attributes:
        exclusive: Whether nobody else has the lock. Until :meth:`share` is called, nobody else can get it.
        shared_here: Whether somebody else in this process has it.

    Raises:
        OSError: If the directory can't be written to, or this thread is looking through it already, in what a signal
            handler has interrupted.
    """

    def __init__(self, directory: str) -> None:
        path = self._path = os.path.join(directory, LOCK)
        self._taking: tuple[str, int] | None = path, threading.get_ident()
        others = [*_locks]
        if any(lock._taking == self._taking for lock in others):
            raise OSError(_INTERRUPTED)  # to wait for it would be to wait for ever
        self.shared_here = any(lock._path == path and lock.is_there() for lock in others)
        _locks.add(self)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # somebody else has made it; on most file systems it can be locked all the same
            self._handle = os.open(path, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, self._handle)
        self.exclusive = self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def share(self) -> None:
        """Keep the lock, and let others have it too."""
        self._flock(fcntl.LOCK_SH)
        self._taking = None

    def is_there(self) -> bool:
        """Return whether this is the lock of the directory that has the name now."""
        try:
            is_open = hasattr(self, "release") and self.release.alive
            return is_open and os.path.samestat(os.stat(self._path), os.fstat(self._handle))
        except OSError:
            return False

    def _flock(self, operation: int) -> bool:
        try:
            fcntl.flock(self._handle, operation)
        except OSError:  # somebody else has it, or the file system has no locks
            return False
        return True


_locks: weakref.WeakSet[DirectoryLock] = weakref.WeakSet()


def _release_all() -> None:
    for lock in [*_locks]:
        if hasattr(lock, "release"):  # it has been opened
            lock.release()


# A forked child inherits the parent's handles, and would keep the lock after the parent has died.
os.register_at_fork(after_in_child=_release_all)
