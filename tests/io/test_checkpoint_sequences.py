"""Whatever is saved, restored, gone back to and killed in between: each checkpoint is whole, and nothing else is there."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
from checkpoints import left_over
from hypothesis import example, given
from hypothesis import strategies as st
from laws.strategies import law

import frostleaf as fl

SIZES = {"a": 6000, "b": 6000, "c": 6000, "small": 10}  # of 4 bytes each
LIKE = {name: mx.zeros(size, mx.int32) for name, size in SIZES.items()}
_numbers = itertools.count()

Tree = dict[str, mx.array]


def fresh(name: str) -> mx.array:
    return mx.array(np.arange(next(_numbers), next(_numbers) + SIZES[name] - 1, dtype=np.int32))


class KilledError(OSError):
    """Raised by everything that a process does to its files once it has been killed."""


@contextmanager
def killed_after(count: int) -> Iterator[None]:
    """Let only so many changes to files succeed inside the block."""
    left = iter(range(count))

    def until_killed(function: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise KilledError
            return function(*given, **options)

        return call

    changes = ("link", "replace", "unlink", "fsync", "mkdir", "rmdir")
    with mock.patch.multiple(os, **{name: until_killed(getattr(os, name)) for name in changes}):
        yield


class Run:
    """A directory, the one who saves to it, and what has to be in it.

    Attributes:
        saved: For each step that is there, or may be, the trees that may be there, the last of them first.
        order: The steps, as they were saved.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.saved: dict[int, list[Tree]] = {}
        self.tree: Tree = {name: fresh(name) for name in SIZES}
        self.older = [self.tree]
        self.step = 0
        self.start()

    def start(self) -> None:
        self.checkpoints = fl.Checkpointer(self.folder, keep=self.keep)

    def stop(self) -> None:
        with suppress(fl.CheckpointError):
            self.checkpoints.wait()
        if self.checkpoints._saving.lock is not None:
            self.checkpoints._saving.lock.release()

    def edit(self, how: str) -> None:
        if how == "nothing":
            return
        if how == "copy":
            self.tree = {name: mx.array(np.array(array)) for name, array in self.tree.items()}
        elif how == "older":
            self.tree = self.older[len(self.older) // 2]
        elif how == "in place":
            self.tree["a"][3] = next(_numbers)
            self.older = [self.tree]
        else:
            self.tree = {name: fresh(name) if name in how.split() else array for name, array in self.tree.items()}
        self.older.append(self.tree)

    def save(self) -> None:
        kept = {name: mx.array(np.array(array)) for name, array in self.tree.items()}
        self.saved[self.step] = [kept, *self.saved.pop(self.step, [])]
        self.checkpoints.save(self.step, self.tree)
        self.step += 1

    def has_saved(self) -> None:
        self.checkpoints.wait()
        last = self.step - 1
        self.saved = {step: trees[:1] if step == last else trees for step, trees in [*self.saved.items()][-self.keep :]}
        assert sorted(self.saved) == self.checkpoints.steps()
        assert not left_over(self.folder)
        self.check()

    def was_killed(self) -> None:
        there = sorted(fl.Checkpointer(self.folder).info(), key=lambda each: each.saved)
        self.saved = {each.step: self.saved[each.step] for each in there}
        self.check()

    def check(self) -> None:
        for step, trees in self.saved.items():
            _, tree = fl.Checkpointer(self.folder).restore(LIKE, step)
            assert any(fl.tree.equal(tree, each) for each in trees), step

    def restore(self, number: int) -> None:
        if self.saved:
            step = [*self.saved][number % len(self.saved)]
            _, self.tree = self.checkpoints.restore(LIKE, step)
            self.older.append(self.tree)
            self.step = step + 1


EDITS = st.sampled_from(["nothing", "copy", "older", "in place", "a", "b", "a b", "small", "a b c", "a b c small"])
ACTIONS = st.one_of(
    st.tuples(st.just("save"), EDITS),
    st.tuples(st.just("save"), EDITS),
    st.tuples(st.just("kill"), EDITS, st.integers(0, 25)),
    st.tuples(st.just("start"), st.integers(0, 5)),
    st.tuples(st.just("restore"), st.integers(0, 5)),
)


@law
@given(st.integers(1, 3), st.lists(ACTIONS, min_size=2, max_size=8))
def test_after_any_sequence_each_checkpoint_is_whole_and_nothing_else_is_there(
    tmp_path_factory: Any, keep: int, actions: list[Any]
) -> None:
    run = Run(tmp_path_factory.mktemp("run"), keep)
    for action, *details in [*actions, ("start", 0), ("save", "a")]:
        if action == "save":
            run.edit(details[0])
            run.save()
            run.has_saved()
        elif action == "kill":
            run.edit(details[0])
            with killed_after(details[1]):
                run.save()
                run.stop()
            run.was_killed()
            run.start()
            run.restore(-1)
        elif action == "start":
            run.stop()
            run.start()
            run.restore(details[0])
        else:
            run.restore(details[0])
    run.stop()


class Shared:
    """A directory to which two save, each with a number of checkpoints to keep."""

    def __init__(self, folder: Path, keeps: tuple[int, int]) -> None:
        self.folder, self.keeps = folder, keeps
        self.saved: dict[int, list[Tree]] = {}
        self.trees: list[Tree] = [{name: fresh(name) for name in SIZES}] * 2
        self.checkpoints = [fl.Checkpointer(folder, keep=keep) for keep in keeps]
        self.step, self.was_killed = 0, False
        # How many stay, of those who ended while the other had the directory, until that one has ended too.
        self.left = 0

    def start(self, who: int) -> None:
        self.stop(who)
        self.left += self.keeps[who] * (self.checkpoints[1 - who]._saving.lock is not None)
        self.checkpoints[who] = fl.Checkpointer(self.folder, keep=self.keeps[who])

    def stop(self, who: int) -> None:
        with suppress(fl.CheckpointError):
            self.checkpoints[who].wait()
        if self.checkpoints[who]._saving.lock is not None:
            self.checkpoints[who]._saving.lock.release()
            self.checkpoints[who]._saving.lock = None

    def save(self, who: int, changed: str, again: bool) -> None:
        self.step += not (again and self.step)
        self.trees[who] = {name: fresh(name) if name in changed else array for name, array in self.trees[who].items()}
        self.saved.setdefault(self.step, []).append(self.trees[who])
        self.checkpoints[who].save(self.step, self.trees[who])

    def restore(self, who: int) -> None:
        if self.checkpoints[who].steps():
            _, self.trees[who] = self.checkpoints[who].restore(LIKE)

    def check(self) -> None:
        there = fl.Checkpointer(self.folder)
        for step in there.steps():
            _, tree = there.restore(LIKE, step)
            assert any(fl.tree.equal(tree, each) for each in self.saved[step]), step
        if not self.was_killed:
            assert not left_over(self.folder)
            assert len(there.steps()) <= sum(self.keeps) + self.left


BOTH = st.one_of(
    st.tuples(st.integers(0, 1), st.just("save"), st.sampled_from(["", "a", "ab", "abc", "abcsmall"]), st.booleans()),
    st.tuples(st.integers(0, 1), st.just("save"), st.sampled_from(["", "a", "ab", "abc", "abcsmall"]), st.booleans()),
    st.tuples(st.integers(0, 1), st.just("kill"), st.sampled_from(["", "a", "abc"]), st.integers(0, 40)),
    st.tuples(st.integers(0, 1), st.just("start")),
    st.tuples(st.integers(0, 1), st.just("restore")),
)


@law
@given(st.tuples(st.integers(1, 3), st.integers(1, 3)), st.lists(BOTH, min_size=2, max_size=10))
@example((1, 2), [(0, "save", "a", False), (1, "save", "a", True), (0, "save", "a", True), (1, "kill", "abc", 12)])
@example((1, 1), [(0, "save", "", False), (1, "save", "", False), (0, "start"), (0, "save", "", False)])
def test_after_any_sequence_of_two_each_checkpoint_is_whole_and_one_alone_leaves_nothing_else(
    tmp_path_factory: Any, keeps: tuple[int, int], actions: list[Any]
) -> None:
    both = Shared(tmp_path_factory.mktemp("run"), keeps)
    for who, action, *details in actions:
        if action == "save":
            both.save(who, *details)
            both.checkpoints[who].wait()
            assert both.step in both.checkpoints[1 - who].steps()
        elif action == "kill":
            changed, count = details
            with killed_after(count):
                both.save(who, changed, again=False)
                both.stop(who)
            both.was_killed = True
            both.start(who)
        elif action == "start":
            both.start(who)
        else:
            both.restore(who)
        both.check()
    both.stop(0), both.stop(1)
    keep, both.was_killed, both.left = both.keeps[0], False, 0
    both.start(0)
    for _ in range(keep):  # alone, it takes over whatever there is
        both.save(0, "a", again=False)
        both.checkpoints[0].wait()
        assert not left_over(both.folder)
    assert both.checkpoints[0].steps() == [*range(both.step - keep + 1, both.step + 1)]
    both.check()
    both.stop(0)
