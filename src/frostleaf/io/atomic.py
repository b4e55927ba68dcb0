"""Write a file so that the old one or the new one is there at any instant, whole."""

from __future__ import annotations

import errno
import os
import shutil
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
    is replaced. The mode of the old file is kept. That a temporary file can't be removed is no error.

    Args:
        file: The file.
        flush: Whether the directory is flushed. A later write to it has to do that otherwise. Default: ``True``.

    Raises:
        FileNotFoundError: If the directory doesn't exist; the error names it.
        OSError: If there is something of that name that is no file.
    """
    target = os.path.realpath(os.fsdecode(file))
    directory, name = os.path.split(target)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", os.fsdecode(file))
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(f"{os.fsdecode(file)} is not a file, but a device or the like, which a file would replace")
    suffix = os.fsdecode(os.fsencode(name)[-_LONGEST:])
    temporary = os.path.join(directory, f"{_PREFIX}{os.urandom(_RANDOM // 2).hex()}-{suffix}")
    os.stat(directory)
    try:
        yield temporary
        fsync(temporary)
        with suppress(FileNotFoundError):  # there is none, or no longer
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        if flush:
            fsync(directory)
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def remove_temporaries(directory: str, selects: Callable[[str], Any]) -> None:
    """Remove the temporary files in a directory that :func:`atomic_write` would rename to a selected name, if it can."""
    for entry in os.listdir(directory):
        if entry.startswith(_PREFIX) and selects(entry[len(_PREFIX) + _RANDOM + 1 :]):
            with suppress(OSError):
                os.unlink(os.path.join(directory, entry))


def remove(path: str) -> bool:
    """Remove a file, or a directory with all that is in it, and return whether nothing is there any more."""
    with suppress(OSError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    return not os.path.lexists(path)


def fsync(path: str) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
