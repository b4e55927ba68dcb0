"""Save checkpoints of a run to one directory in the background, prune them, and restore them."""

from __future__ import annotations

import operator
import os
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, TypeGuard, TypeVar

from ..core.structure import flat_of
from ..core.words import describe, listed
from ..edits.freezing import frozen_leaves
from .atomic import remove_temporaries, require_path
from .description import name_in_file
from .directory_lock import DirectoryLock
from .known import KnownArrays, Watched, stamp_of
from .safetensors import CheckpointError
from .shards import BESIDE, HEAD, Draft, read_summary, write_checkpoint
from .trees import OtherStructureError, load, load_metadata, take_snapshot

T = TypeVar("T")

# The keys of a checkpoint's metadata.
_STEP, _TIME, _METRICS, _FILES = "step", "saved", "metrics", "files"


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


class _CheckpointInfo(NamedTuple):
    """When a checkpoint was saved, in nanoseconds, its metrics, and its files besides the head, if they are known."""

    time: int
    metrics: dict[str, Any]
    files: tuple[str, ...] | None


_GOES_BACK = (
    "step {step} comes before step {last}, which is in {directory} already, and going on would in time remove what was saved. "
    "Call restore(like) to go on from the last, or restore(like, step=...) to go back, or save into another directory"
)

_NO_BEST = (
    "best={best!r} is not among the metrics {names}. Give it too, as nan where it was not measured, or no metrics for a "
    "checkpoint that can't be the best"
)


class Checkpointer:
    """Save checkpoints of a training run to a directory, and restore them.

    Each is a file ``step-00000010.safetensors`` that :func:`frostleaf.load` reads too. A background thread writes it while
    training goes on; changes made to the tree meanwhile are not saved. One is written at a time: the next :meth:`save` waits
    for it, so at most one tree is held in memory besides those in use. An error in the background is raised by the next call
    of any method, once. A process that ends waits for the checkpoint it is writing; so does a ``with`` block, which also raises
    the error.

    The latest checkpoint is the one that was saved last. Steps must not decrease: saving an earlier one is an error,
    unless :meth:`restore` went back before it.

    Several processes may save to one directory. Each removes only its own checkpoints, and those that existed when it first
    saved if nobody else was saving then, so that a run that is started again goes on pruning.

    Args:
        directory: The directory of the files. It is created if it doesn't exist.
        keep: How many of the latest to keep, 1 or more, or ``None`` for all. The best one is kept as well. Default: ``3``.
        every: Save only multiples of this, so that :meth:`save` can be called at each step. Default: ``1``.
        best: The name of the metric that decides which checkpoint is the best. Default: there is no best one.
        mode: Whether the best has the smallest metric, ``"min"``, or the largest, ``"max"``. Default: ``"min"``.

    Raises:
        ValueError: If ``keep``, ``every`` or ``mode`` is none of these.
        FileExistsError: If ``directory`` is a file.
        RuntimeError: From each method, in a process that was forked after the Checkpointer was made.

    >>> import frostleaf as fl, mlx.core as mx, tempfile
    >>> with tempfile.TemporaryDirectory() as folder, fl.Checkpointer(folder, keep=2, best="loss") as checkpoints:
    ...     for step in range(5):
    ...         saving = checkpoints.save(step, {"w": mx.array(step)}, metrics={"loss": abs(step - 1)})
    ...     print(checkpoints.steps(), checkpoints.best_step())
    ...     print(checkpoints.restore({"w": mx.array(0)}))
    [1, 3, 4] 1
    (4, {'w': array(4, dtype=int32)})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        every: int = 1,
        best: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        self._keep = keep if keep is None else _whole("keep", keep, 1)
        self._every = _whole("every", every, 1)
        if mode not in ("min", "max"):
            raise ValueError(f"mode is 'min' or 'max', and was given as {describe(mode)}")
        self._best, self._mode = best, mode
        require_path(directory, "fl.Checkpointer(directory)")
        # It stays the same when a link to it or the current directory changes.
        self._directory = os.path.realpath(directory)
        os.makedirs(self._directory, exist_ok=True)
        self._process = os.getpid()
        self._mutex = threading.RLock()
        self._lock: DirectoryLock | None = None
        # The checkpoints that this one may remove.
        self._own: dict[int, _CheckpointInfo] = {}
        # Files that belong to none that is there. Removing them is tried until it succeeds.
        self._unneeded: set[str] = set()
        self._arrays = KnownArrays()
        self._last_step: int | None = None
        self._thread: threading.Thread | None = None
        self._written = threading.Event()
        self._failure: CheckpointError | None = None

    def save(self, step: int, tree: Any, metrics: Mapping[str, Any] | None = None) -> bool:
        """Begin to save a tree in the background, and return whether the step is one to be saved.

        The arrays are evaluated first. A checkpoint of the same step is replaced.

        Args:
            step: The number of the step, 0 or more.
            tree: Any tree that :func:`frostleaf.save` takes.
            metrics: Numbers by name, such as ``{"loss": 0.25}``; an array of one element counts as a number. Default: none.

        Raises:
            CheckpointError: If the checkpoint before this one failed, or the step comes before the last.
            TypeError: If something in the tree can't be saved, or ``metrics`` are not numbers.
            ValueError: If ``step`` is not a step, two arrays of the tree have the same dotted name, or there are metrics
                without the one that decides which is the best.
        """
        step = _whole("step", step, 0)
        with self._checked_mutex():
            if step % self._every:
                if self._thread is None or not self._thread.is_alive():
                    self.wait()
                return False
            numbers = _numbers(metrics)
            if numbers and self._best is not None and self._best not in numbers:
                raise ValueError(_NO_BEST.format(best=self._best, names=listed(numbers)))
            self.wait()
            if self._lock is None:
                self._lock_directory()
            if self._last_step is not None and step < self._last_step:
                raise CheckpointError(_GOES_BACK.format(step=step, last=self._last_step, directory=self._directory))
            now = max([time.time_ns(), *(each.time + 1 for each in self._own.values())])
            summary = {_STEP: step, _TIME: now, _METRICS: numbers}
            snapshot, flat = take_snapshot(tree, summary), flat_of(tree)
            names = [*snapshot.arrays]
            known, watched = self._arrays.look_up(dict(zip(names, flat.leaves, strict=True)), snapshot.arrays)
            steady = {name for name, frozen in zip(names, flat.structure.remember(frozen_leaves), strict=True) if frozen}
            draft = Draft(snapshot, summary, steady, known, self._arrays.last)
            self._last_step = step
            if threading.main_thread().is_alive():
                self._written.clear()
                # Explicitly not a daemon, as it would be in a daemon thread: the process would end without it.
                name = f"saving step {step}"
                thread = threading.Thread(target=self._write, args=(step, draft, watched), name=name, daemon=False)
                thread.start()
                self._thread = thread
            else:  # the interpreter is shutting down, and waits for no more threads
                self._write(step, draft, watched)
        return True

    def wait(self) -> None:
        """Wait until nothing is being saved.

        Raises:
            CheckpointError: If saving failed.
        """
        with self._checked_mutex():
            if self._thread is not None:
                # Before Python 3.13 a thread counts as dead when Ctrl-C has interrupted a join of it, and it still writes.
                self._written.wait()
                self._thread.join()
                self._thread = None
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in order, including those that other processes save.

        Raises:
            CheckpointError: If saving failed.
        """
        self.wait()
        return self._steps()

    def restore(self, like: T, step: int | None = None) -> tuple[int, T]:
        """Restore a tree, and return its step and the tree. Saving goes on from there.

        Args:
            like: A tree of the same structure, as for :func:`frostleaf.load`.
            step: Which step. Default: the one that was saved last. If that can't be read, it is passed over with a
                ``RuntimeWarning``, and the one saved before it is restored.

        Raises:
            FileNotFoundError: If there is no checkpoint, or none of this step. It is a ``CheckpointError`` too.
            CheckpointError: If the checkpoint of this step is damaged, or all are; if it is of another structure than ``like``;
                or if saving failed.
        """
        self.wait()
        if step is None:
            step, tree = self._restore_latest(like)
        else:
            step = _whole("step", step, 0)
            try:
                tree = self._load(step, like)
            except FileNotFoundError:
                self._no_checkpoint(step)
        self._last_step = step
        return step, tree

    def best_step(self) -> int | None:
        """Return the step with the best metric, or ``None`` if none has it. Of equal ones it is the one saved first.

        ``nan`` is never the best.

        Raises:
            ValueError: If the name of the metric was not given as ``best=``.
            CheckpointError: If saving failed.
        """
        if self._best is None:
            example = "fl.Checkpointer(directory, best='loss')"
            raise ValueError(f"best_step() needs the name of the metric that says which is best: {example}")
        self.wait()
        return self._best_of(self._infos())

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the metrics that were given when a step was saved.

        Raises:
            ValueError: If ``step`` is not a step.
            FileNotFoundError: If there is no checkpoint of this step. It is a ``CheckpointError`` too.
            CheckpointError: If its header is damaged, or if saving failed.
        """
        self.wait()
        step = _whole("step", step, 0)
        try:
            metrics = load_metadata(self._file(step)).get(_METRICS)
        except FileNotFoundError:
            self._no_checkpoint(step)
        return metrics if isinstance(metrics, dict) else {}

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def __repr__(self) -> str:
        options = f"keep={self._keep}, every={self._every}, best={self._best!r}, mode={self._mode!r}"
        return f"Checkpointer({self._directory!r}, {options})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Checkpointer has a lock and a thread, which can't be copied or pickled: make one with the same arguments"
        )

    def _checked_mutex(self) -> threading.RLock:
        if os.getpid() != self._process:
            raise RuntimeError("this Checkpointer was made in another process: make one after the fork")
        return self._mutex

    def _lock_directory(self) -> None:
        """Lock the directory, and if nobody else has locked it, take over the checkpoints in it."""
        try:
            lock = DirectoryLock(self._directory)
            try:
                if lock.exclusive:
                    self._own = self._infos()
                    self._clean_up()
            finally:
                lock.share()
        except OSError as error:
            raise CheckpointError(f"{self._directory}: {error}") from error
        self._lock = lock
        if self._last_step is None:
            self._last_step = max(self._own, default=None)
            times = {info.time: step for step, info in (self._own or self._infos()).items()}
            if times:
                self._arrays.know_file(self._file(times[max(times)]))

    def _write(self, step: int, draft: Draft, watched: Watched) -> None:
        try:
            replaced = self._info(step)
            written = write_checkpoint(self._file(step), draft)
            self._arrays.know(written.places, watched)
            self._own[step] = _CheckpointInfo(draft.summary[_TIME], draft.summary[_METRICS], (*written.beside,))
            self._unneeded.update((replaced and replaced.files) or ())
            with suppress(OSError):  # the checkpoint is there, whatever becomes of older ones
                self._prune()
        except Exception as error:
            failure = f"the checkpoint of step {step} could not be saved in {self._directory}: {error}"
            self._failure = CheckpointError(failure)
            self._failure.__cause__ = error
        finally:
            self._written.set()

    def _prune(self) -> None:
        self._remove_unneeded()
        if self._keep is None:
            return
        for step in self._own.keys() - {*self._steps()}:  # a checkpoint that somebody removed doesn't count as kept
            del self._own[step]
        latest = sorted(self._own, key=lambda step: self._own[step].time)[-self._keep :]
        for step in self._own.keys() - {*latest, self._best_of(self._own)}:
            current = self._info(step)
            # Another process may have replaced the checkpoint or removed it.
            if current is not None and current.time == self._own[step].time:
                try:
                    os.unlink(self._file(step))
                except FileNotFoundError:
                    pass
                except OSError:
                    continue  # it is tried again after the next save
                self._unneeded.update(current.files or ())
            del self._own[step]
        self._remove_unneeded()

    def _remove_unneeded(self) -> None:
        for name in [*self._unneeded]:
            with suppress(OSError):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._directory, name))
                self._unneeded.discard(name)

    def _clean_up(self) -> None:
        """Remove what those who were killed have left, while nobody is saving."""
        remove_temporaries(self._directory, lambda name: HEAD.fullmatch(name) or BESIDE.fullmatch(name))
        needed = {name for info in self._own.values() for name in info.files or ()}
        damaged = {step for step, info in self._own.items() if info.files is None}
        for name in os.listdir(self._directory):
            found = BESIDE.fullmatch(name)
            if found and name not in needed and int(found[1]) not in damaged:
                with suppress(OSError):
                    os.unlink(os.path.join(self._directory, name))

    def _restore_latest(self, like: T) -> tuple[int, T]:
        reasons: dict[int, str] = {}
        while infos := {step: info for step, info in self._infos().items() if step not in reasons}:
            for _, step in sorted(((info.time, step) for step, info in infos.items()), reverse=True):
                try:
                    return step, self._load(step, like)
                except FileNotFoundError:
                    reasons[step] = "it was removed while it was to be read"
                    break  # others save and prune: what is there now?
                except OtherStructureError:
                    raise
                except (CheckpointError, OSError) as error:
                    reasons[step] = str(error)
                    warnings.warn(f"the checkpoint of step {step} is passed over: {error}", RuntimeWarning, stacklevel=3)
        if reasons:
            lines = listed(reasons.values(), separator="\n")
            raise CheckpointError(f"{self._directory} has no checkpoint that can be restored:\n{lines}")
        self._no_checkpoint()

    def _load(self, step: int, like: T) -> T:
        file = self._file(step)
        stamp = stamp_of(os.stat(file))
        tree = load(file, like)
        given, flat = {*map(id, flat_of(like).leaves)}, flat_of(tree)
        arrays = zip(map(name_in_file, flat.structure.leaf_names()), flat.leaves, strict=True)
        self._arrays.know_restored(file, stamp, {name: array for name, array in arrays if id(array) not in given})
        return tree

    def _no_checkpoint(self, step: int | None = None) -> NoReturn:
        which = "" if step is None else f" of step {step}"
        steps = listed(map(str, self._steps())) or "none at all"
        raise NoCheckpointError(f"{self._directory} has no checkpoint{which}; it has {steps}") from None

    def _best_of(self, infos: Mapping[int, _CheckpointInfo]) -> int | None:
        if self._best is None:
            return None
        sign = 1 if self._mode == "min" else -1
        numbers = {step: info.metrics.get(self._best) for step, info in infos.items()}
        ranked = [(sign * number, infos[step].time, step) for step, number in numbers.items() if _is_number(number)]
        return min(ranked)[-1] if ranked else None

    def _steps(self) -> list[int]:
        names = os.listdir(self._directory) if os.path.isdir(self._directory) else []
        steps = [int(found[1]) for found in map(HEAD.fullmatch, names) if found]
        return sorted(step for step in steps if os.path.basename(self._file(step)) in names)

    def _infos(self) -> dict[int, _CheckpointInfo]:
        return {step: info for step in self._steps() if (info := self._info(step)) is not None}

    def _info(self, step: int) -> _CheckpointInfo | None:
        """Return what a checkpoint's header says, or ``None`` if there is no checkpoint."""
        with suppress(FileNotFoundError):
            try:
                summary = read_summary(self._file(step)) or {_FILES: (), **load_metadata(self._file(step))}
                files = [name for name in summary[_FILES] if (found := BESIDE.fullmatch(name)) and int(found[1]) == step]
                return _CheckpointInfo(operator.index(summary[_TIME]), dict(summary[_METRICS]), (*files,))
            except (OSError, ValueError, KeyError, TypeError):  # damaged, written by somebody else, or missing
                return _CheckpointInfo(os.lstat(self._file(step)).st_mtime_ns, {}, None)
        return None

    def _file(self, step: int) -> str:
        return os.path.join(self._directory, f"step-{step:08d}.safetensors")


def _whole(name: str, given: Any, least: int) -> int:
    try:
        number = int(operator.index(given))  # int, because index(True) is True
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} is a whole number, {least} or more, and was given as {describe(given)}")
    return number


def _numbers(metrics: Any) -> dict[str, Any]:
    if isinstance(metrics, Mapping | None):
        # Arrays of MLX and NumPy have a size; Python's numbers have none.
        numbers = {name: value.item() if getattr(value, "size", 0) == 1 else value for name, value in (metrics or {}).items()}
        if all(isinstance(name, str) and isinstance(value, int | float) for name, value in numbers.items()):
            return numbers
    raise TypeError(f"metrics is a mapping of names to numbers, and was given as {describe(metrics)}")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value  # not nan; math.isnan fails for an int too long for a float
