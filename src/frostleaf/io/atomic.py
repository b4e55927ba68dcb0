"""Write a file so that the old one or the new one is there at any instant, whole."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..core.words import describe

_PREFIX, _RANDOM = ".frostleaf-", 16
# A file system allows 255 bytes to a name.
_LONGEST = 255 - len(_PREFIX) - _RANDOM - 1


def require_path(given: Any, call: str) -> str:
    """Return a path as text. ``call`` is the call as it should be written.

    Raises:
        TypeError: If it is no path.
        ValueError: If it is empty.
    """
    if not isinstance(given, str | bytes | os.PathLike):
        raise TypeError(f"{call} takes a path first, and was given {describe(given)} for it")
    path = os.fsdecode(given)
    if not path:
        raise ValueError(f"{call} takes a path first, and was given an empty one, which leads nowhere")
    return path


@contextmanager
def atomic_write(file: str | os.PathLike[str], *, flush: bool = True) -> Iterator[str]:
    """Yield the path of a temporary file, and rename it to ``file`` when the block ends without an exception.

    The temporary file is in the same directory. It is flushed to disk before it is renamed, and the directory after that, so a
    crash leaves the old file or the new one, whole. After an exception ``file`` is as it was. If ``file`` is a link, its target
    is replaced. The mode of the old file is kept. That a temporary file can't be removed is no error. Those that processes have
    left which were killed as they wrote the same file are removed.

    Args:
        file: The file.
        flush: Whether the directory is flushed. A later write to it has to do that otherwise. Default: ``True``.

    Raises:
        FileNotFoundError: If the directory doesn't exist; the error names it. Or if nothing was written.
        OSError: If there is something of that name that is no file.
    """
    target = os.path.realpath(os.fsdecode(file))
    directory, name = os.path.split(target)
    _require_file(target, os.fsdecode(file))
    suffix = os.fsdecode(os.fsencode(name)[-_LONGEST:])
    os.stat(directory)
    _remove_left(directory, suffix)
    temporary, handle = _new(directory, suffix)
    try:
        yield temporary
        if not os.stat(temporary).st_mtime_ns:
            raise FileNotFoundError(errno.ENOENT, "Nothing was written", os.fsdecode(file))
        fsync(temporary)
        with suppress(FileNotFoundError):  # there is none, or no longer
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        if flush:
            fsync(directory)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
        os.close(handle)


def _require_file(target: str, given: str) -> None:
    with suppress(FileNotFoundError):  # also if another process removes it now
        mode = os.stat(target).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", given)
        if not stat.S_ISREG(mode):
            raise OSError(f"{given} is not a file, but a device or the like, which a file would replace")


def _new(directory: str, suffix: str) -> tuple[str, int]:
    """Make a temporary file, and return its path and a handle that has its lock, for as long as this process lives."""
    while True:
        path = os.path.join(directory, f"{_PREFIX}{os.urandom(_RANDOM // 2).hex()}-{suffix}")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            is_free = _lock(handle) is not False  # else somebody thinks that it is left, and is about to remove it
            os.utime(handle, ns=(0, 0))  # until somebody writes
            os.stat(path)
        except FileNotFoundError:  # somebody has thought so before it was locked
            is_free = False
        except OSError:
            os.close(handle)
            os.unlink(path)
            raise
        if is_free:
            return path, handle
        os.close(handle)


def _remove_left(directory: str, suffix: str) -> None:
    """Remove the temporary files of a name that no process is writing."""
    with suppress(OSError):
        for entry in os.listdir(directory):
            if entry.startswith(_PREFIX) and entry[len(_PREFIX) + _RANDOM + 1 :] == suffix:
                path = os.path.join(directory, entry)
                handle = os.open(path, os.O_RDWR | os.O_NONBLOCK)
                try:
                    if _lock(handle):
                        os.unlink(path)
                finally:
                    os.close(handle)


def _lock(handle: int) -> bool | None:
    """Lock a file, and return whether it could be; ``None`` if the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_temporary(name: str) -> bool:
    """Return whether a file of this name is one that :func:`atomic_write` has not renamed yet, or never will."""
    return name.startswith(_PREFIX)


def remove_temporaries(directory: str, selects: Callable[[str], Any]) -> None:
    """Remove the temporary files in a directory that :func:`atomic_write` would rename to a selected name, if it can."""
    for entry in os.listdir(directory):
        if entry.startswith(_PREFIX) and selects(entry[len(_PREFIX) + _RANDOM + 1 :]):
            with suppress(OSError):
                os.unlink(os.path.join(directory, entry))


def remove(path: str) -> bool:
    """Remove a file, or a directory with all that is in it, and return whether it is known that nothing is there any more."""
    with suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    try:
        os.lstat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def fsync(path: str) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
