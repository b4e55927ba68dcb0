"""Checkpoints of a run in one directory: saved in the background, pruned, and found again."""

from __future__ import annotations

import operator
import os
import re
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, TypeGuard, TypeVar

from .atomic import remove_unfinished
from .directory_lock import DirectoryLock
from .safetensors import CheckpointError
from .trees import OtherStructureError, Ready, load, load_metadata, ready, write

T = TypeVar("T")

BAD_COUNT = "{name} is a whole number, {least} or more, and was given as {given!r}"
BAD_MODE = "mode is 'min' or 'max', and was given as {given!r}"
BAD_METRICS = "metrics is a mapping of names to numbers, and was given as {given!r}"
NO_METRIC = "best_step() needs the name of the metric that says which is best: fl.Checkpointer(directory, best='loss')"
NO_CHECKPOINT = "{directory} has no checkpoint{step}; it has {steps}"
ALL_BROKEN = "{directory} has no checkpoint that can be restored:\n{reasons}"
PASSED_OVER = "the checkpoint of step {step} is passed over: {reason}"
FAILED = "the checkpoint of step {step} could not be saved in {directory}: {error}"
GOES_BACK = (
    "step {step} comes before step {last}, which is in {directory} already, and going on would in time remove what was saved. "
    "Call restore(like) to go on from the last, or restore(like, step=...) to go back, or save into another directory"
)
OTHER_PROCESS = "this Checkpointer was made in another process: make one after the fork"
NOT_PICKLED = "a Checkpointer has a lock and a thread, which can't be copied or pickled: make one with the same arguments"

_NAME = re.compile(r"step-(\d{8,})\.safetensors")
# What the metadata of a checkpoint file are called.
STEP, SAVED, METRICS = "step", "saved", "metrics"


class NoCheckpointError(CheckpointError, FileNotFoundError):
    """Raised where there is no checkpoint, or none of that step."""


class _Record(NamedTuple):
    """What is known of a checkpoint without its arrays: when it was saved, in nanoseconds, and how good it is."""

    saved: int
    metrics: dict[str, Any]


class Checkpointer:
    """Checkpoints of a training run in a directory.

    Each is a file ``step-00000010.safetensors`` that :func:`frostleaf.load` reads as well. It is written by a thread in the
    background while training goes on: the arrays can't change under it. One is written at a time; the next :meth:`save` waits
    for it, so that besides the trees in use at most one is held in memory. What fails in the background is raised by the next
    call of any method, once. A process that ends waits for what it is saving; so does a ``with`` block, which also raises what
    failed.

    The newest checkpoint is the one that was saved last. Steps go up: saving an earlier step than the last is an error, unless
    :meth:`restore` went back before it.

    Several processes may save into one directory. Each removes only what it saved itself, and what was there when it saved
    first if nobody else was saving then, so that a run that is started again goes on pruning.

    Args:
        directory: Where the files are. It is made if it is not there.
        keep: How many of the newest to keep, 1 or more, or ``None`` for all. The best one is kept besides. Default: ``3``.
        every: Only multiples of this are saved, so that :meth:`save` can be called at each step. Default: ``1``.
        best: The name of the metric by which the best checkpoint is found. Default: there is no best one.
        mode: Whether the best is that with the smallest metric, ``"min"``, or the largest, ``"max"``. Default: ``"min"``.

    Raises:
        ValueError: If ``keep``, ``every`` or ``mode`` is none of these.
        FileExistsError: If there is a file in the place of the directory.
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
            raise ValueError(BAD_MODE.format(given=mode))
        self._best, self._mode = best, mode
        # The directory itself, wherever a link to it may point later, and wherever the process may go.
        self._directory = os.path.realpath(directory)
        os.makedirs(self._directory, exist_ok=True)
        self._process = os.getpid()
        self._mutex = threading.RLock()
        self._lock: DirectoryLock | None = None
        # The checkpoints that this one may remove.
        self._own: dict[int, _Record] = {}
        self._last_step: int | None = None
        self._thread: threading.Thread | None = None
        self._written = threading.Event()
        self._failure: CheckpointError | None = None

    def save(self, step: int, tree: Any, metrics: Mapping[str, Any] | None = None) -> bool:
        """Return whether the step is one that is saved; if so, saving has begun, and goes on in the background.

        The arrays are computed first, if they were not. A checkpoint of the same step is replaced.

        Args:
            step: The number of the step, 0 or more.
            tree: Any tree that :func:`frostleaf.save` takes.
            metrics: Numbers by name, such as ``{"loss": 0.25}``; an array of one element counts as a number. Default: none.

        Raises:
            CheckpointError: If the checkpoint before this one failed, or the step comes before the last.
            TypeError: If something in the tree can't be saved, or ``metrics`` are not numbers.
            ValueError: If ``step`` is not a step, or two arrays of the tree have the same dotted name.
        """
        step = _whole("step", step, 0)
        with self._mine():
            if step % self._every:
                if self._thread is None or not self._thread.is_alive():
                    self.wait()
                return False
            numbers = _numbers(metrics)
            self.wait()
            if self._lock is None:
                self._begin()
            if self._last_step is not None and step < self._last_step:
                raise CheckpointError(GOES_BACK.format(step=step, last=self._last_step, directory=self._directory))
            record = _Record(max([time.time_ns(), *(each.saved + 1 for each in self._own.values())]), numbers)
            given = ready(tree, {STEP: step, SAVED: record.saved, METRICS: numbers})
            self._last_step = step
            if threading.main_thread().is_alive():
                self._written.clear()
                # Not a daemon, as a thread is by default that a daemon makes: the process would end without it.
                name = f"saving step {step}"
                thread = threading.Thread(target=self._write, args=(step, given, record), name=name, daemon=False)
                thread.start()
                self._thread = thread
            else:  # the interpreter is shutting down, and waits for no more threads
                self._write(step, given, record)
        return True

    def wait(self) -> None:
        """Return nothing, once nothing is being saved any more.

        Raises:
            CheckpointError: If what was being saved could not be.
        """
        with self._mine():
            if self._thread is not None:
                # Before Python 3.13 a thread counts as dead when Ctrl-C has broken off a join of it, and it writes on.
                self._written.wait()
                self._thread.join()
                self._thread = None
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, in order. Those that other processes save are among them.

        Raises:
            CheckpointError: If what was being saved could not be.
        """
        self.wait()
        return self._steps()

    def restore(self, like: T, step: int | None = None) -> tuple[int, T]:
        """Return a step and the tree that was saved then. Saving goes on from there.

        Args:
            like: A tree of the same structure, as for :func:`frostleaf.load`.
            step: Which step. Default: the one that was saved last. If that can't be read, it is passed over with a
                ``RuntimeWarning``, and the one saved before it is taken.

        Raises:
            FileNotFoundError: If there is no checkpoint, or none of this step. It is a ``CheckpointError`` too.
            CheckpointError: If the checkpoint of this step is broken, or all are; if it is of another structure than ``like``;
                or if what was being saved could not be.
        """
        self.wait()
        if step is None:
            found = self._newest(like)
        else:
            step = _whole("step", step, 0)
            found = step, self._load(step, like)
        self._last_step = found[0]
        return found

    def best_step(self) -> int | None:
        """Return the step with the best metric, or ``None`` if none has it. Of equals it is the one that was saved first.

        ``nan`` is never the best.

        Raises:
            ValueError: If the name of the metric was not given as ``best=``.
            CheckpointError: If what was being saved could not be.
        """
        if self._best is None:
            raise ValueError(NO_METRIC)
        self.wait()
        return self._best_of(self._records())

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the metrics that were given when a step was saved.

        Raises:
            ValueError: If ``step`` is not a step.
            FileNotFoundError: If there is no checkpoint of this step. It is a ``CheckpointError`` too.
            CheckpointError: If its header is broken, or if what was being saved could not be.
        """
        self.wait()
        step = _whole("step", step, 0)
        try:
            metrics = load_metadata(self._file(step)).get(METRICS)
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
        raise TypeError(NOT_PICKLED)

    def _mine(self) -> threading.RLock:
        if os.getpid() != self._process:
            raise RuntimeError(OTHER_PROCESS)
        return self._mutex

    def _begin(self) -> None:
        """Take the directory's lock, and what was left there by others who no longer live."""
        try:
            lock = DirectoryLock(self._directory)
            try:
                if lock.alone:
                    self._own = self._records()
                    remove_unfinished(self._directory, _NAME.fullmatch)
            finally:
                lock.share()
        except OSError as error:
            raise CheckpointError(f"{self._directory}: {error}") from error
        self._lock = lock
        if self._last_step is None:
            self._last_step = max(self._own, default=None)

    def _write(self, step: int, given: Ready, record: _Record) -> None:
        try:
            write(self._file(step), given)
            self._own[step] = record
            self._prune()
        except Exception as error:
            self._failure = CheckpointError(FAILED.format(step=step, directory=self._directory, error=error))
            self._failure.__cause__ = error
        finally:
            self._written.set()

    def _prune(self) -> None:
        if self._keep is None:
            return
        for step in self._own.keys() - {*self._steps()}:  # what somebody has removed is not one of those that are kept
            del self._own[step]
        newest = sorted(self._own, key=lambda step: self._own[step].saved)[-self._keep :]
        for step in self._own.keys() - {*newest, self._best_of(self._own)}:
            known, there = self._own.pop(step), self._record(step)
            # Another process may have put a checkpoint of that step in its place, or removed it.
            if there is not None and there.saved == known.saved:
                with suppress(FileNotFoundError):
                    os.unlink(self._file(step))

    def _newest(self, like: T) -> tuple[int, T]:
        reasons: dict[int, str] = {}
        while True:
            # Looked at anew each time: others may save and prune in the meantime.
            records = {step: record for step, record in self._records().items() if step not in reasons}
            if not records:
                break
            step = max(records, key=lambda step: (records[step].saved, step))
            try:
                return step, load(self._file(step), like)
            except FileNotFoundError:
                reasons[step] = "it was removed while it was to be read"
            except OtherStructureError:
                raise
            except (CheckpointError, OSError) as error:
                reasons[step] = str(error)
                warnings.warn(PASSED_OVER.format(step=step, reason=error), RuntimeWarning, stacklevel=3)
        if reasons:
            raise CheckpointError(ALL_BROKEN.format(directory=self._directory, reasons="\n".join(reasons.values())))
        self._no_checkpoint(None)

    def _load(self, step: int, like: T) -> T:
        try:
            return load(self._file(step), like)
        except FileNotFoundError:
            self._no_checkpoint(step)

    def _no_checkpoint(self, step: int | None) -> NoReturn:
        said = "" if step is None else f" of step {step}"
        steps = ", ".join(map(str, self._steps())) or "none at all"
        raise NoCheckpointError(NO_CHECKPOINT.format(directory=self._directory, step=said, steps=steps)) from None

    def _best_of(self, records: Mapping[int, _Record]) -> int | None:
        sign = 1 if self._mode == "min" else -1
        numbers = {step: record.metrics.get(self._best) for step, record in records.items()} if self._best else {}
        ranked = [(sign * number, records[step].saved, step) for step, number in numbers.items() if _is_number(number)]
        return min(ranked)[-1] if ranked else None

    def _steps(self) -> list[int]:
        names = os.listdir(self._directory) if os.path.isdir(self._directory) else []
        steps = [int(found[1]) for found in map(_NAME.fullmatch, names) if found]
        return sorted(step for step in steps if os.path.basename(self._file(step)) in names)

    def _records(self) -> dict[int, _Record]:
        found = {step: self._record(step) for step in self._steps()}
        return {step: record for step, record in found.items() if record is not None}

    def _record(self, step: int) -> _Record | None:
        """Return what a checkpoint's header says, or ``None`` if there is no checkpoint."""
        with suppress(FileNotFoundError):
            try:
                said = load_metadata(self._file(step))
                return _Record(operator.index(said[SAVED]), dict(said[METRICS]))
            except (OSError, ValueError, KeyError, TypeError):  # broken, written by somebody else, or not there
                return _Record(os.lstat(self._file(step)).st_mtime_ns, {})
        return None

    def _file(self, step: int) -> str:
        return os.path.join(self._directory, f"step-{step:08d}.safetensors")


def _whole(name: str, given: Any, least: int) -> int:
    try:
        number = int(operator.index(given))  # of True, index gives True
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(BAD_COUNT.format(name=name, least=least, given=given))
    return number


def _numbers(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, Mapping | None):
        raise TypeError(BAD_METRICS.format(given=metrics))
    # Arrays of MLX and NumPy have a size; Python's numbers have none.
    numbers = {name: value.item() if getattr(value, "size", 0) == 1 else value for name, value in (metrics or {}).items()}
    if not all(isinstance(name, str) and isinstance(value, int | float) for name, value in numbers.items()):
        raise TypeError(BAD_METRICS.format(given=metrics))
    return numbers


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and value == value  # which nan is not, and an int too long for a float is
