"""Write the checkpoints of a run in the background, one at a time, and remove those that are not kept."""

from __future__ import annotations

import os
import time
import warnings
import weakref
from contextlib import suppress
from functools import partial
from typing import Any

from ..core.structure import flat_of
from ..core.words import level_of_caller
from .background import Background
from .describing import Describer
from .directory import Directory, Entry, latest_of
from .directory_lock import DirectoryLock
from .known import KnownArrays, Stamp, Watched
from .pruning import Policy, kept
from .safetensors import CheckpointError
from .shards import Draft, write_checkpoint
from .summary import BEST, METRICS, STEP, TIME
from .trees import take_snapshot

_GOES_BACK = (
    "step {step} comes before step {last}, which is in {directory} already, and going on would in time remove what was saved. "
    "To begin anew, save into another directory, or remove this one before with shutil.rmtree({directory!r}). To go on from "
    "the last, call restore(like) first, and to go back restore(like, step=...)"
)

_GONE = (
    ". The directory that this Checkpointer saved to before is gone: it was moved, or removed. Make another Checkpointer, with "
    "its new path or to begin anew"
)

_NO_LINKS = (
    "no hard link could be made in {directory} (the error is: {error}), so that checkpoints have arrays that did not change "
    "once again. On another file system they would be stored once"
)

_TOGETHER = 60 * 10**9  # nanoseconds within which the processes of a job begin


class Saving:
    """The one who writes to a directory of checkpoints.

    Args:
        directory: The directory.
        policy: Which checkpoints are kept.

    Attributes:
        background: What is writing, and what could not be written.
        last_step: The step that was saved or restored last, if that is known.
        broken: The times and steps of checkpoints that could not be read.
        arrays: The arrays that are in files already.
        lock: Held from the first save until it is set to ``None``.
    """

    def __init__(self, directory: Directory, policy: Policy) -> None:
        self._directory, self._policy, self._made = directory, policy, time.time_ns()
        self.background = Background()
        self.last_step: int | None = None
        self.broken: set[tuple[int, int]] = set()
        self.arrays = KnownArrays()
        self.lock: DirectoryLock | None = None
        # Whether it goes on from what was restored, and has not saved yet.
        self._goes_on = False
        # What was there when it restored or saved: it may go before that, and not before what others have saved since.
        self._seen: dict[int, Stamp] = {}
        self._describer = Describer()
        # The checkpoints that this one may remove.
        self._own: dict[int, Entry] = {}
        # Those that may be there, as they were begun: when, and what they replace.
        self._begun: dict[int, tuple[int, Entry | None]] = {}
        # The last of these.
        self._writing: int | None = None
        # What may belong to those of them that could not be read.
        self._of_unclear: dict[int, list[str]] = {}
        # Files that belong to none that is there. Removing them is tried until it succeeds.
        self._unneeded: set[str] = set()
        self._refusal: OSError | None = None
        self._has_warned = False
        _of_this_process.append(weakref.ref(self, _of_this_process.remove))

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: If something could not be written, once.

        Warns:
            RuntimeWarning: If nothing can be shared, once.
        """
        self.background.wait()
        refusal, self._refusal = self._refusal, None
        if refusal is not None and not self._has_warned:
            self._has_warned = True
            text = _NO_LINKS.format(directory=self._directory.path, error=refusal.strerror)
            warnings.warn(text, RuntimeWarning, stacklevel=level_of_caller())

    def seen(self) -> dict[int, Stamp]:
        """Return what is in the directory, with all that this process is writing there."""
        self._others_finished()
        return self._directory.stamps()

    def restored(self, step: int, seen: dict[int, Stamp]) -> None:
        """Go on from a step, knowing what :meth:`seen` has returned before it was restored."""
        self.last_step, self._seen, self._goes_on = step, seen, True

    def save(self, step: int, tree: Any, metrics: dict[str, Any]) -> None:
        """Begin to save a tree. Nothing else is being written.

        Raises:
            CheckpointError: If the step may not be saved here.
            TypeError: If something in the tree can't be saved.
        """
        was_held = self.lock is not None
        lock = self._hold()  # kept until it is given to what writes, as others of this process may let go of it here
        with suppress(OSError):
            self._own_begun()
        try:
            self._require_no_later(step)
        except CheckpointError:
            if not was_held:
                self.lock, self._own = None, {}
            raise
        now = max([time.time_ns(), *(each.time + 1 for each in self._own.values())])
        summary: dict[str, Any] = {STEP: step, TIME: now, METRICS: {**self._metrics_of_others(step), **metrics}}
        if self._policy.best is not None:
            summary[BEST] = self._policy.best
        snapshot, flat = take_snapshot(tree, summary, self._describer), flat_of(tree)
        objects = dict(zip(snapshot.arrays, flat.leaves, strict=True))
        known, watched = self.arrays.look_up(objects, snapshot.arrays)
        draft = Draft(snapshot, self._directory.new_beside(step), summary, flat.structure, known, self.arrays.last)
        self._writing = step
        self.background.start(f"saving step {step}", partial(self._write, step, draft, watched), lock)

    def _hold(self) -> DirectoryLock:
        """Lock the directory, and if nobody else has locked it, take over the checkpoints in it."""
        held = self.lock
        if held is not None and not held.is_there() and os.path.isdir(self._directory.path):
            self.lock, self.last_step, self._own = None, None, {}  # it is another directory
            held = None
        if held is not None:
            return held
        try:
            os.makedirs(self._directory.path, exist_ok=True)
            later = self._saved_since()
            if self._goes_on and not later:
                self._take_turn()
            lock = DirectoryLock(self._directory.path)
            try:
                entries = self._directory.entries()
                if lock.exclusive:
                    self._own = entries
                    self._of_unclear = self._directory.clean_up()
            finally:
                lock.share()
        except OSError as error:
            raise CheckpointError(f"{self._directory.path}: {error}") from error
        self.lock = lock
        latest = latest_of(entries)
        alone = lock.exclusive or lock.shared_here  # else other processes may have begun together with this one
        if self.last_step is None and latest is not None:
            if not alone:
                entries = {step: entry for step, entry in entries.items() if entry.time < self._made - _TOGETHER}
            self.last_step = latest_of(entries)
            self.arrays.know_file(self._directory.head(latest))
        elif later and alone:
            self.last_step = latest_of({step: entry for step, entry in entries.items() if step in later})
        return lock

    def _metrics_of_others(self, step: int) -> dict[str, Any]:
        """Return the metrics with which others of this process, who go on, have saved a step that is to be replaced."""
        metrics: dict[str, Any] = {}
        for other in self._others():
            if other._writing == step:
                other.background.finish()
            if other.lock is not None and step in other._own:
                metrics |= other._own[step].metrics
        return metrics

    def _saved_since(self) -> set[int]:
        """Return the steps that others have saved since this one restored or saved."""
        return {step for step, stamp in self._directory.stamps().items() if self._seen.get(step) != stamp}

    def _take_turn(self) -> None:
        """Take over from others of this process, once they have written what they are writing."""
        for other in self._others_finished():
            self._own.update(other._own)
            self._of_unclear.update(other._of_unclear)
            other.lock, other._own = None, {}

    def _others_finished(self) -> list[Saving]:
        """Return others of this process who save to the directory, once they have written what they are writing."""
        others = self._others()
        for other in others:
            other.background.finish()
        return others

    def _others(self) -> list[Saving]:
        """Return others of this process who save to the directory."""
        found = [each() for each in [*_of_this_process]]
        return [each for each in found if each not in (self, None) and each._directory.path == self._directory.path]

    def _wanted(self) -> set[int]:
        """Return the steps that stay by what this one keeps until it lets go of the directory, whoever saved them last."""
        begun = {*self._begun}  # first, as they become its own
        return begun if self.lock is None else begun | kept({**self._own}, self.broken, self._policy)

    def _require_no_later(self, step: int) -> None:
        if self.last_step is not None and step < self.last_step:
            later = [each for each in self._directory.steps() if each > step]
            if later:
                last = self.last_step if self.last_step in later else later[-1]
                raise CheckpointError(_GOES_BACK.format(step=step, last=last, directory=self._directory.path))

    def _write(self, step: int, draft: Draft, watched: Watched) -> None:
        try:
            replaced = self._directory.entry(step)
            self._begun[step] = draft.summary[TIME], replaced
            written = write_checkpoint(self._directory.head(step), draft)
            entry = Entry(draft.summary[TIME], draft.summary[METRICS], (*written.beside,), draft.summary.get(BEST))
            self._take(step, entry, replaced)
            self._refusal = written.refusal
            self.arrays.know(written.places, watched)
            with suppress(OSError):  # the checkpoint is there, whatever becomes of older ones
                self._prune()
        except Exception as error:
            reason = f"{error}{'' if os.path.isdir(self._directory.path) else _GONE}"
            said = f"the checkpoint of step {step} could not be saved in {self._directory.path}: {reason}"
            with suppress(OSError):
                self._own_begun()  # it may be there, and perhaps not on the disk: older ones stay
            self._unneeded.add(draft.beside)  # unless it is there
            raise CheckpointError(said) from error

    def _own_begun(self) -> None:
        """Take those that were begun, if they are there: an error or an interrupt may have come after that."""
        for step, (begun, replaced) in [*self._begun.items()]:
            there = self._directory.entry(step)
            if there is not None and there.time == begun:
                self._take(step, there, replaced)
            if there is None or there.beside is not None:  # else it can't be read, perhaps for a moment
                self._begun.pop(step, None)

    def _take(self, step: int, entry: Entry, replaced: Entry | None) -> None:
        """Let a checkpoint that is there be one that this one may remove."""
        for old in (replaced, self._own.get(step)):
            if old is not None and old.time != entry.time:
                self._need_not(step, old)
        self._own[step], self.last_step = entry, step
        self._goes_on = False
        with suppress(OSError):
            self._seen = self._directory.stamps()
        self._begun.pop(step, None)

    def _prune(self) -> None:
        own, others = self._own, self._others()  # another of this process may begin to go on from here
        for step in own.keys() & {step for other in others for step in [*other._own]}:
            there = self._directory.entry(step)
            if own[step].beside and there is not None and there.time != own[step].time:  # the other has replaced it
                self._unneeded.update(own[step].beside or ())
                own[step] = own[step]._replace(beside=())
        self._unneeded = self._directory.remove(self._unneeded)
        if self._policy.keep is not None:
            # One that somebody removed doesn't count as kept.
            for step in own.keys() - {*self._directory.steps()}:
                self._need_not(step, own.pop(step))
            wanted = kept(own, self.broken, self._policy).union(*[other._wanted() for other in others])
            for step in own.keys() - wanted:
                if self._directory.remove_head(step, own[step].time):  # else it is tried again after the next save
                    self._need_not(step, own.pop(step))
            self._unneeded = self._directory.remove(self._unneeded)

    def _need_not(self, step: int, entry: Entry) -> None:
        """Let the files of a checkpoint that is not there any more be removed."""
        self._unneeded.update(self._of_unclear.pop(step, ()) if entry.beside is None else entry.beside)


_of_this_process: list[weakref.ref[Saving]] = []  # any thread may look at it
