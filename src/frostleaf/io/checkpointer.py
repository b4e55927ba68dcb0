"""Save checkpoints of a run to one directory in the background, prune them, and restore them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

from ..core.arguments import refusing
from ..core.structure import flat_of
from ..core.words import describe, listed
from ..transforms.agreement import Said
from ..transforms.collectives import AnyGroup
from ..transforms.group import as_group
from ..tree.differences import Diff
from ..tree.selecting import Where
from .alike import said_of_value
from .description import name_in_file
from .directory import Directory
from .divided import warn_of_parts
from .first_rank import by_first, read_by_first, require_alike, said_of
from .inventory import CheckpointInfo, CheckpointInfos, bytes_of_files, differences_of_arrays
from .known import stamp_of
from .latest import restore_latest
from .metrics import bests_of, numbers_in, whole
from .options import options_of
from .orbax import (
    INSTEAD,
    refusal_in_restore,
    refusal_in_save,
    refusal_of_arguments,
    refusal_without_like,
    refusal_without_tree,
)
from .own_values import Checksums
from .partial import LoadReport
from .placing import Read, placed
from .renaming import Rename
from .safetensors import CheckpointError
from .saving import Saving
from .trees import OtherStructureError, read

T = TypeVar("T")
J = TypeVar("J")


_WHOLE_TREES = (
    ". What is divided among ranks is saved whole: fl.distributed.gather(model), and of sharded = fl.optim.shard(opt) "
    "sharded.gather(state), which all ranks call; in accumulate, ema and the like it is state.inner"
)
_WHOLE_LIKE = (
    ". A checkpoint has whole arrays, and so has like: fl.eval_shape(Model), and of sharded = fl.optim.shard(opt) "
    "sharded.gather(sharded.init(model)); what is restored is divided then, by sharded.scatter(state)"
)

_NO_BEST = (
    "best={best!r} is not among the metrics {names}. Give it too, as nan where it was not measured, or no metrics for a "
    "checkpoint that can't be the best"
)


class Checkpointer:
    """Save checkpoints of a training run to a directory, and restore them.

    Each is a file ``step-00000010.safetensors`` that :func:`frostleaf.load` reads too. A background thread writes it while
    training goes on; changes made to the tree meanwhile are not saved. One is written at a time: the next :meth:`save` waits
    for it, so at most one tree is held in memory besides those in use. An error in the background is raised by the next call of
    any method, once; if there is none, it is written to standard error when the Checkpointer is dropped or the process ends. A
    process that ends waits for the checkpoint it is writing; so does a ``with`` block, which also raises the error.

    An array that has not changed since the last checkpoint is not written again, nor looked at if it is the same object: what
    is frozen costs nothing, and what has changed its bytes and about 100 for its name, dtype and shape. The checkpoint then has
    a directory besides, ``step-00000010-*``, in Hugging Face's layout of a model: files of arrays, and an index of them for
    other programs, whose ``weight_map`` says which file has each. An older file may have an older version of an array, too, and
    comes before in the order of the names. So a program that reads all files in any order, as mlx-lm does, must not be given
    this directory: ``save_weights`` writes one for it. Files in which checkpoints agree are hard links, so that each checkpoint
    has all it needs under its own step, can be removed by itself, and only the file system counts who needs what, whoever
    crashes. Without hard links all is written each time, and a warning says so; a tool that copies them as files makes a larger
    directory.

    A file is shared by a checkpoint that needs three quarters of it or more. What it needs of others is written once more, into
    a file of what has stayed: when other arrays begin to change than before, or when one has another name. So a checkpoint's
    own files have a third more than it needs at most; but an array that was written again is in the files of older checkpoints
    as well, and while one is written, one more than ``keep`` are there: about 2.2 times what the checkpoints need is the most
    that was measured. Less than 16 KiB are written each time. That NumPy has written into an array's memory isn't noticed.

    To take a checkpoint elsewhere, write ``fl.save(path, fl.load(head, like))``, or copy its head and its directory: the head
    alone has no arrays. What a head names stays, under whatever name it was copied beside the others; what else is put into a
    checkpoint's directory goes with it. Copy nothing into a directory while a run begins there, which cleans up.

    The latest checkpoint is the one that was saved last. Steps must not decrease: saving an earlier one is an error,
    unless :meth:`restore` went back before it. It goes back before what was there then, not before what a later run saved.

    Several processes may save to one directory, and what they save is one sequence of steps: a step that two of them save is
    there once, and the latest is that of any. So runs that are to be told apart have a directory each, and one that begins
    after others have saved restores first; only those that begin together, within a minute, need not. Each process removes
    only its own checkpoints, and those that existed when it first saved if nobody else was saving then, so that a run that is
    started again goes on pruning. A process that has saved and lives on keeps its own, though it saves no more. Within one
    process, a step that several save has the metrics of all, and stays as long as one of them keeps it. Whoever restores and
    goes on from there takes over what other Checkpointers of the process saved, so that a cell can be run again. A run keeps
    what an earlier run kept as its best, by whatever metric, and nothing else that it would not keep itself: milestones, with
    ``keep=None`` and their own ``every``, have a directory of their own.

    With a group of several processes, rank 0 writes and reads, and tells the others what it finds or fails with: all see
    the same and no disk is shared. All ranks call each method, alike: what differs, in the values of arrays too, is a
    ``ValueError`` on every rank. A checkpoint has whole arrays, and is restored on any number of ranks::

        tree = fl.distributed.gather(model), opt.gather(state)  # of a sharded model, and of fl.optim.shard(...)
        checkpoints.save(step, tree)
        step, (whole, state) = checkpoints.restore(like)  # like has whole arrays, as fl.eval_shape(make) has
        model, state = divided(whole), opt.scatter(state)

    Args:
        directory: The directory of the files, where ``~`` is the home. The first :meth:`save` creates it if it doesn't exist.
        keep: How many of the latest to keep, 1 or more, or ``None`` for all. The best one is kept as well, and one that could
            not be restored doesn't count. Default: ``3``.
        every: Save only multiples of this, so that :meth:`save` can be called at each step. Default: ``1``.
        best: The name of the metric that decides which checkpoint is the best. Default: there is no best one.
        mode: Whether the best has the smallest metric, ``"min"``, or the largest, ``"max"``. Default: ``"min"``.
        keep_best: How many of the best to keep. Default: ``1``.
        group: The processes for which rank 0 writes and reads, from :func:`frostleaf.distributed.init`. Default: ``None``, for
            this process by itself, whatever others do.

    Raises:
        TypeError: If ``group`` is no group, or ``best`` no name.
        ValueError: If ``keep``, ``every``, ``mode`` or ``keep_best`` is none of these, or there is no metric for ``keep_best``.
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

    @refusing(refusal_of_arguments)
    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        every: int = 1,
        best: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep_best: int = 1,
        group: AnyGroup = None,
    ) -> None:
        ranks = None if group is None else as_group(group)
        self._group = ranks if ranks is not None and ranks.size() > 1 else None

        given = partial(options_of, directory, keep, every, best, mode, keep_best)
        require_alike("__init__", self._group, lambda: given().said())
        options = given()
        self._every, self._policy = options.every, options.policy()
        self._directory = Directory(options.path)
        by_first(self._group, self._directory.require_possible)
        self._process = os.getpid()
        self._mutex = threading.RLock()
        self._saving, self._checksums = Saving(self._directory, self._policy), Checksums()

    @refusing(refusal_in_save, refusal_without_tree)
    def save(self, step: int, tree: Any, metrics: Mapping[str, Any] | None = None) -> bool:
        """Begin to save a tree in the background, and return whether the step is one to be saved.

        The arrays are evaluated first. A checkpoint of the same step is replaced. With a group, a step that is not to be saved
        exchanges nothing; others wait for all ranks, of which rank 0 gives the metrics, scalars and numbers. Arrays must have
        the same values on all ranks that do not give shapes in their place.

        Args:
            step: The number of the step, 0 or more.
            tree: Any tree that :func:`frostleaf.save` takes.
            metrics: Numbers by name, such as ``{"loss": 0.25}``; an array of one element counts as a number. Default: none.

        Raises:
            CheckpointError: If the checkpoint before this one failed, or the step comes before the last.
            TypeError: If something in the tree can't be saved, or ``metrics`` are not numbers, or given as arguments.
            ValueError: If ``step`` is not a step, two arrays of the tree have the same dotted name, or there are metrics
                without the one that decides which is the best. On every rank, if ranks have unlike trees, or other values.

        Warns:
            PartialWeightsWarning: Without a group, if arrays are parts of larger ones, of which other ranks have the rest.
        """
        step = whole("step", step, 0)
        with self._checked_mutex():
            if step % self._every:
                if self._group is None and self._saving.background.is_idle:
                    self._wait()
                return False
            require_alike("save", self._group, lambda: {**said_of(tree, whole=True), "the step": str(step)}, _WHOLE_TREES)
            self._checksums.require_same(tree, self._group)
            if self._group is None:
                warn_of_parts(flat_of(tree).structure, self._directory.path, "tree", "checkpoints.save(step, whole)")
            by_first(self._group, lambda: self._save(step, tree, metrics))
        return True

    def wait(self) -> None:
        """Wait until nothing is being saved.

        Raises:
            CheckpointError: If saving failed.
        """
        self._for_all("wait", lambda: None)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in order, including those that other processes save.

        Raises:
            CheckpointError: If saving failed.
        """
        return self._for_all("steps", self._directory.steps)

    def latest_step(self) -> int | None:
        """Return the step that was saved last, which :meth:`restore` tries first, or ``None`` if there is none.

        It is the largest one, unless a run has gone back to an earlier. Its arrays are not looked at, and :meth:`restore`
        passes over it if they are damaged: go on from the step that it returns.

        Raises:
            CheckpointError: If saving failed.
        """
        return self._for_all("latest_step", self._directory.latest)

    @overload
    def restore(
        self,
        like: T,
        step: int | None = None,
        *,
        where: Where | None = None,
        strict: Literal[True] = True,
        rename: Rename | None = None,
    ) -> tuple[int, T]: ...
    @overload
    def restore(
        self,
        like: T,
        step: int | None = None,
        *,
        where: Where | None = None,
        strict: Literal[False],
        rename: Rename | None = None,
    ) -> tuple[int, T, LoadReport]: ...
    @overload
    def restore(
        self, like: T, step: int | None = None, *, where: Where | None = None, strict: bool, rename: Rename | None = None
    ) -> tuple[int, T] | tuple[int, T, LoadReport]: ...

    @refusing(refusal_in_restore, refusal_without_like)
    def restore(
        self, like: T, step: int | None = None, *, where: Where | None = None, strict: bool = True, rename: Rename | None = None
    ) -> tuple[int, T] | tuple[int, T, LoadReport]:
        """Restore a tree, and return its step and the tree. Saving goes on from there.

        What other Checkpointers of this process are writing to the directory is waited for.

        Args:
            like: A tree of the same structure, as for :func:`frostleaf.load`.
            step: Which step. Default: the one that was saved last. If that can't be read, it is passed over with a
                ``RuntimeWarning``, and the one saved before it is restored.
            where: What to restore, as for :func:`frostleaf.load`; the rest is that of ``like``. Default: everything.
            strict: With ``False``, restore what both trees have, as :func:`frostleaf.load` does, and return a
                :class:`LoadReport` as well. Default: ``True``.
            rename: The names in ``like`` of what the checkpoint has under others, as for :func:`frostleaf.load`. What is saved
                from then on has those of the tree. Default: the same.

        Returns:
            The step and the tree; with ``strict=False`` the step, the tree and the report.

        Raises:
            FileNotFoundError: If there is no checkpoint, or none of this step. It is a ``CheckpointError`` too.
            CheckpointError: If the checkpoint of this step is damaged, or all are; if it is of another structure than ``like``;
                or if saving failed.
            LookupError: If ``where`` selects nothing.
            TypeError: If ``rename`` is neither a function nor a mapping, or gives neither a string nor ``None``.
            ValueError: If ``rename`` gives one name twice. On every rank, if ranks give unlike arguments.

        >>> import frostleaf as fl, mlx.core as mx, tempfile
        >>> with tempfile.TemporaryDirectory() as folder, fl.Checkpointer(folder) as checkpoints:
        ...     saving = checkpoints.save(5, {"a": mx.array(1), "b": mx.array(2)})
        ...     checkpoints.restore({"a": mx.array(0), "c": mx.array(3)}, strict=False)
        (5, {'a': array(1, dtype=int32), 'c': array(3, dtype=int32)}, LoadReport(1 taken: 'a'; 1 left: 'b'; 1 new: 'c'))
        """
        at = step if step is None else whole("step", step, 0)

        def said() -> Said:
            by_name = dict(sorted(rename.items())) if isinstance(rename, Mapping) else rename
            choices = {"where=": said_of_value(where), "strict=": str(strict), "rename=": said_of_value(by_name)}
            return {**said_of(like), "the step": str(at), **choices}

        def read_file(file: str) -> Read:
            return read(file, like, where, strict, rename)

        with self._checked_mutex():
            require_alike("restore", self._group, said, _WHOLE_LIKE)
            step, found = read_by_first(self._group, like, lambda: self._restore(at, read_file))
        loaded = placed(like, found)
        return (step, loaded) if found.report is None else (step, *loaded)

    def best_step(self) -> int | None:
        """Return the step with the best metric, or ``None`` if none has it. Of equal ones it is the one saved first.

        ``nan`` is never the best. With ``None`` for a step, :meth:`restore` restores the latest. While another process saves,
        the best may be another, and this one removed, before it is restored: one that polls a run's directory catches
        :class:`frostleaf.NoCheckpointError` around ``restore(like, best_step())`` and asks again.

        Raises:
            ValueError: If the name of the metric was not given as ``best=``.
            CheckpointError: If saving failed.
        """
        best = self._policy.best
        if best is None:
            example = "fl.Checkpointer(directory, best='loss')"
            raise ValueError(f"best_step() needs the name of the metric that says which is best: {example}")
        return self._for_all("best_step", lambda: next(iter(bests_of(self._directory.entries(), *best)), None))

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the metrics that were given when a step was saved.

        Raises:
            ValueError: If ``step`` is not a step.
            FileNotFoundError: If there is no checkpoint of this step. It is a ``CheckpointError`` too.
            CheckpointError: If its header is damaged, or if saving failed.
        """

        said = {"step": describe(step)}
        return self._for_all("metrics", lambda: self._directory.metrics(whole("step", step, 0)), lambda: said)

    def info(self) -> CheckpointInfos:
        """Return what there is: for each step when it was saved, its metrics, and what its files take.

        Raises:
            CheckpointError: If saving failed.

        >>> import frostleaf as fl, mlx.core as mx, tempfile
        >>> model = fl.nn.Linear(1000, 100).freeze()
        >>> with tempfile.TemporaryDirectory() as folder, fl.Checkpointer(folder) as checkpoints:
        ...     for step in range(3):
        ...         saving = checkpoints.save(step, {"model": model, "step": step}, metrics={"loss": 1 / (1 + step)})
        ...     info = checkpoints.info()
        >>> info
        0: saved 2..., 0 bytes, 401,... shared, loss=1.0
        1: saved 2..., ... bytes, 401,... shared, loss=0.5
        2: saved 2..., ... bytes, 401,... shared, loss=0.3333333333333333
        >>> max(each.own for each in info) < 2000
        True
        """

        def here() -> list[list[Any]]:
            entries, sizes = self._directory.entries(), bytes_of_files(self._directory.files())
            return [[step, each.time, each.metrics, *sizes.get(step, (0, 0))] for step, each in entries.items()]

        return CheckpointInfos(
            CheckpointInfo(step, datetime.fromtimestamp(nanoseconds / 1e9).astimezone(), *others)
            for step, nanoseconds, *others in self._for_all("info", here)
        )

    def diff(self, step: int, other: int) -> Diff:
        """Return which arrays of a checkpoint another has not, or has otherwise. Headers are read, and no array.

        Values are compared by their checksums, of 32 bits. Numbers that are no arrays, and what is frozen, are not looked at:
        :func:`frostleaf.tree.diff` of the trees tells of them too.

        Args:
            step: The step before.
            other: The step after.

        Raises:
            FileNotFoundError: If there is no checkpoint of one of the steps. It is a ``CheckpointError`` too.
            CheckpointError: If a header is damaged, or if saving failed.

        >>> import frostleaf as fl, mlx.core as mx, tempfile
        >>> with tempfile.TemporaryDirectory() as folder, fl.Checkpointer(folder) as checkpoints:
        ...     saving = checkpoints.save(1, {"a": mx.zeros(2), "b": mx.zeros(3)})
        ...     saving = checkpoints.save(2, {"a": mx.zeros(2), "b": mx.ones(3), "c": mx.zeros(1)})
        ...     checkpoints.diff(1, 2)
        b: value f32[3] -> f32[3]
        c: added nothing -> f32[1]
        """
        steps = {"step": step, "other": other}
        before, after = self._for_all(
            "diff",
            lambda: [self._directory.arrays(whole(name, given, 0)) for name, given in steps.items()],
            lambda: {name: describe(given) for name, given in steps.items()},
        )
        return differences_of_arrays(before, after)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            # If this rank leaves by an error, the others are elsewhere.
            self.wait() if error is None else self._wait()
        finally:
            self._saving.lock = None  # what is still being written after an interrupt holds it

    if not TYPE_CHECKING:  # a checker that saw this would take every name for a method

        def __getattr__(self, name: str) -> Any:
            advice = f": {INSTEAD[name]}" if name in INSTEAD else ""
            raise AttributeError(f"Checkpointer has no attribute {name!r}{advice}", name=name, obj=self)

    def __repr__(self) -> str:
        best = self._policy.best
        chosen = "" if best is None else f", best={best.metric!r}, mode={best.mode!r}, keep_best={best.keep}"
        options = f"keep={self._policy.keep}, every={self._every}{chosen}"
        ranks = "" if self._group is None else f", group={self._group!r}"
        return f"Checkpointer({self._directory.path!r}, {options}{ranks})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Checkpointer has a lock and a thread, which can't be copied or pickled: make one with the same arguments"
        )

    def _checked_mutex(self) -> threading.RLock:
        if os.getpid() != self._process:
            raise RuntimeError("this Checkpointer was made in another process: make one after the fork")
        return self._mutex

    def _for_all(self, name: str, here: Callable[[], J], said: Callable[[], Said] = dict) -> J:
        """Wait until nothing is being saved, and return what a function returns here; with a group, on rank 0."""

        def waited() -> J:
            self._wait()
            return here()

        with self._checked_mutex():
            require_alike(name, self._group, said)
            return by_first(self._group, waited)

    def _wait(self) -> None:
        with self._checked_mutex():
            self._saving.wait()

    def _save(self, step: int, tree: Any, metrics: Mapping[str, Any] | None) -> None:
        numbers, best = numbers_in(metrics), self._policy.best
        if numbers and best is not None and best.metric not in numbers:
            raise ValueError(_NO_BEST.format(best=best.metric, names=listed(numbers)))
        self._wait()
        self._saving.save(step, tree, numbers)

    def _restore(self, step: int | None, read_file: Callable[[str], Read]) -> tuple[int, Read]:
        self._wait()
        seen = self._saving.seen()
        if step is None:
            step, found = restore_latest(self._directory, self._saving.broken, lambda step: self._read(step, read_file))
        else:
            try:
                found = self._read(step, read_file)
            except FileNotFoundError:
                self._directory.no_checkpoint(step)
        self._saving.restored(step, seen)
        return step, found

    def _read(self, step: int, read_file: Callable[[str], Read]) -> Read:
        file = self._directory.head(step)
        self._directory.require_named_rightly(step)
        stamp = stamp_of(os.stat(file))
        try:
            found = read_file(file)
        except OtherStructureError:
            raise
        except CheckpointError:  # what is damaged is not to be shared with those to come
            self._saving.arrays.forget()
            raise
        self._saving.arrays.know_restored(file, stamp, dict(zip(map(name_in_file, found.stored), found.arrays, strict=True)))
        return found
