"""Which checkpoints a directory has, and which files are theirs."""

from __future__ import annotations

import errno
import heapq
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from ..core.words import dtype_name, listed
from .atomic import is_temporary, remove, remove_temporaries
from .known import Stamp, stamp_of
from .names import BESIDE, HEAD
from .safetensors import CheckpointError, fail
from .shards import files_named
from .summary import BEST, FILES, METRICS, STEP, TIME, Best, is_summary, read_summary
from .trees import load_metadata, saved_arrays


class NoCheckpointError(CheckpointError, FileNotFoundError):
    """Raised if there is no checkpoint, or none of the step asked for.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder, fl.Checkpointer(folder) as checkpoints:
    ...     try:
    ...         checkpoints.restore(mx.array(0))
    ...     except fl.NoCheckpointError:
    ...         print("a new run")
    a new run
    """


# For each array its shape, the name of its dtype and its checksum, as JSON can hold them.
SavedArrays = Mapping[str, tuple[list[int], str, int]]


class Entry(NamedTuple):
    """A checkpoint of a directory.

    Attributes:
        time: When it was saved, in nanoseconds.
        metrics: Its metrics.
        beside: The names of what it has beside the head, a directory of files; ``None`` if the head can't be read.
        best: By what the run that saved it chose its best, if it did.
    """

    time: int
    metrics: dict[str, Any]
    beside: tuple[str, ...] | None
    best: Best | None = None


def latest_of(entries: Mapping[int, Entry]) -> int | None:
    """Return the step that was saved last, or ``None`` if there is none."""
    return max(((entry.time, step) for step, entry in entries.items()), default=(0, None))[1]


class Directory:
    """A directory of checkpoints, each a head ``step-00000010.safetensors`` and perhaps a directory of files beside it.

    Earlier versions wrote those files beside the head.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def head(self, step: int) -> str:
        """Return the path of a checkpoint's head."""
        return os.path.join(self.path, _head_name(step))

    def new_beside(self, step: int) -> str:
        """Return a name for the directory of a checkpoint's files, which no other has."""
        # Another process may save the same step, and this one may be replacing it: no two have a name in common.
        return f"{_head_name(step).removesuffix('.safetensors')}-{os.urandom(4).hex()}"

    def require_possible(self) -> None:
        """Raise a ``FileExistsError`` if a file is where the directory is to be."""
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in order."""
        return [*self._heads()]

    def _heads(self) -> dict[int, str]:
        """Return the paths of the heads by step, in order."""
        try:
            names = os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = sorted((int(match[1]), name) for name in names if (match := HEAD.fullmatch(name)))
        return {step: os.path.join(self.path, name) for step, name in found}

    def stamps(self) -> dict[int, Stamp]:
        """Return by step what tells each checkpoint's head from any other."""
        stamps: dict[int, Stamp] = {}
        for step, head in self._heads().items():
            with suppress(FileNotFoundError):
                stamps[step] = stamp_of(os.stat(head))
        return stamps

    def entries(self) -> dict[int, Entry]:
        """Return what there is, by step."""
        return {step: entry for step, head in self._heads().items() if (entry := _entry_of(step, head)) is not None}

    def entry(self, step: int) -> Entry | None:
        """Return what a checkpoint's head says, or ``None`` if there is no checkpoint."""
        return _entry_of(step, self.head(step))

    def latest(self) -> int | None:
        """Return the step that was saved last, or ``None`` if there is none."""
        return next(self.from_the_latest(), (0, None))[1]

    def from_the_latest(self) -> Iterator[tuple[int, int]]:
        """Yield the times and steps of what there is, from the one that was saved last, reading as few heads as that takes.

        What was changed last is read first. No other can have been saved after it was changed, which is when it was written, or
        later, whatever tools have done to it. Only where the clock was set back is one said to be saved later than that, and
        then the last step is, which is why that is read too.
        """
        unread: list[tuple[float, int, str]] = []
        for step, head in self._heads().items():
            with suppress(FileNotFoundError):
                unread.append((os.stat(head).st_ctime_ns, step, head))
        unread.sort()
        if len(unread) > 1:
            unread.append(unread.pop(unread.index(max(unread, key=lambda each: each[1]))))
        found: list[tuple[int, int, bool]] = []  # a heap, of negative numbers and whether it is known when it was saved
        while unread or found:
            if unread and (not found or not found[0][2] or unread[-1][0] >= -found[0][0]):
                changed, step, head = unread.pop()
                entry = _entry_of(step, head)
                if entry is not None:
                    heapq.heappush(found, (-entry.time, -step, entry.beside is not None))
                    if entry.time > changed:  # by another clock, or a coarser one
                        unread = [(math.inf, step, head) for _, step, head in unread]
            else:
                time, step, _ = heapq.heappop(found)
                yield -time, -step

    def files(self) -> dict[int, list[str]]:
        """Return the paths of each checkpoint's files."""
        files = {step: [head] for step, head in self._heads().items()}
        for name in os.listdir(self.path) if files else []:
            found = BESIDE.fullmatch(name)
            if found and int(found["step"]) in files:
                files[int(found["step"])] += _files_at(os.path.join(self.path, name))
        return files

    def remove(self, names: Iterable[str]) -> set[str]:
        """Remove what nothing names, and return the names of what was not removed."""
        given = {*names}
        needed = given & self._named() if given else set()
        return needed | {name for name in given - needed if not remove(os.path.join(self.path, name))}

    def _named(self) -> set[str]:
        """Return the names that the files in the directory have for what is beside them, as copies of a head do too.

        Raises:
            OSError: If a file that may be such a copy can't be read now.
        """
        named: set[str] = set()
        with os.scandir(self.path) as found:
            names = [each.name for each in found if each.is_file() and not BESIDE.fullmatch(each.name)]
        for name in names:
            if not is_temporary(name):
                try:
                    named.update(files_named(os.path.join(self.path, name)))
                except (FileNotFoundError, ValueError, KeyError, TypeError):  # it is no checkpoint
                    pass
                except PermissionError:
                    if HEAD.fullmatch(name):  # and no file that somebody else keeps to himself
                        raise
        return named

    def remove_head(self, step: int, time: int) -> bool:
        """Remove a checkpoint's head, and return whether it isn't there any more.

        Another process may have removed it, or replaced it by one of another time, and left what was beside it.
        """
        current = self.entry(step)
        if current is not None and current.time == time:
            try:
                os.unlink(self.head(step))
            except FileNotFoundError:
                pass
            except OSError:
                return False
        return True

    def clean_up(self) -> dict[int, list[str]]:
        """Remove what those who were killed have left. Nobody may be saving.

        Return by step the names of what is beside each head that can't be read, which may be that checkpoint's.
        """
        remove_temporaries(self.path, lambda name: HEAD.fullmatch(name) or BESIDE.fullmatch(name))
        unclear: dict[int, list[str]] = {step: [] for step, entry in self.entries().items() if entry.beside is None}
        left: list[str] = []
        for found in filter(None, map(BESIDE.fullmatch, os.listdir(self.path))):
            unclear.get(int(found["step"]), left).append(found[0])
        self.remove(left)
        return unclear

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the metrics of a checkpoint, which may not be there."""
        try:
            metrics = load_metadata(self.head(step)).get(METRICS)
        except FileNotFoundError:
            self.no_checkpoint(step)
        return metrics if isinstance(metrics, dict) else {}

    def arrays(self, step: int) -> SavedArrays:
        """Return what the headers of a checkpoint, which may not be there, say of its arrays."""
        try:
            saved = saved_arrays(self.head(step))
        except FileNotFoundError:
            self.no_checkpoint(step)
        return {name: ([*array.shape], dtype_name(array.dtype), checksum) for name, (array, checksum) in saved.items()}

    def require_named_rightly(self, step: int) -> None:
        """Require that a checkpoint, which may not be there, is not the head of another step.

        Raises:
            CheckpointError: If it says so.
            OSError: If it can't be read.
        """
        said = (read_summary(self.head(step)) or {}).get(STEP, step)
        if said != step:
            fail(self.head(step), f"this is the checkpoint of step {said}, and its name says step {step}; fl.load reads it")

    def no_checkpoint(self, step: int | None = None) -> NoReturn:
        """Raise the error that there is no checkpoint of a step, or none at all."""
        which = "" if step is None else f" of step {step}"
        nothing = "none at all" if os.path.isdir(self.path) else "none at all, as there is no such directory"
        steps = listed(map(str, self.steps())) or nothing
        raise NoCheckpointError(f"{self.path} has no checkpoint{which}; it has {steps}") from None


def _head_name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def _entry_of(step: int, head: str) -> Entry | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            summary = read_summary(head)
            if summary is None:  # an earlier version wrote it
                summary = {FILES: files_named(head), **load_metadata(head)}
                summary = summary if is_summary(summary) else None
            if summary is not None:
                found = filter(None, map(BESIDE.fullmatch, summary[FILES]))
                beside = (*[each[0] for each in found if int(each["step"]) == step],)
                best = Best(*summary[BEST]) if BEST in summary else None
                return Entry(summary[TIME], summary[METRICS], beside, best)
        except (OSError, ValueError):  # damaged
            pass
        return Entry(os.lstat(head).st_mtime_ns, {}, None)  # or written by somebody else
    return None


def _files_at(path: str) -> list[str]:
    """Return the paths of the files in a directory, or of what is no directory."""
    with suppress(NotADirectoryError, FileNotFoundError):
        return [os.path.join(path, name) for name in os.listdir(path)]
    return [path]
