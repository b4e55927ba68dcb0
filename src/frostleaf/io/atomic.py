"""A file is replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_PREFIX, _RANDOM = ".frostleaf-", 16
# A file system allows 255 bytes to a name.
_LONGEST = 255 - len(_PREFIX) - _RANDOM - 1


@contextmanager
def replacing(file: str | os.PathLike[str]) -> Iterator[str]:
    """Return a context whose value is the path of a file to be written, which takes the place of ``file`` when it ends well.

    What is written is in the same directory. It is flushed to disk before it is renamed, and the directory after, so that a
    crash at any instant leaves the old file or the new one, whole. After an exception ``file`` is as it was. Where ``file`` is
    a link, what it points to is replaced. The mode of an old file is kept.
    """
    directory, name = os.path.split(os.path.realpath(file))
    target = os.path.join(directory, name)
    ending = os.fsdecode(os.fsencode(name)[-_LONGEST:])
    written = os.path.join(directory, f"{_PREFIX}{os.urandom(_RANDOM // 2).hex()}-{ending}")
    os.stat(directory)  # whose absence is to be told with its own name
    try:
        yield written
        flush(written)
        if os.path.exists(target):
            shutil.copymode(target, written)
        os.replace(written, target)
        flush(directory)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(written)


def remove_unfinished(directory: str, selects: Callable[[str], Any]) -> None:
    """Remove what is being written in a directory, or was when its process died, where its name to be is selected."""
    for entry in os.listdir(directory):
        if entry.startswith(_PREFIX) and selects(entry[len(_PREFIX) + _RANDOM + 1 :]):
            os.unlink(os.path.join(directory, entry))


def flush(path: str) -> None:
    """Return nothing, once a file or directory is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
