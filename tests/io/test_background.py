"""What runs in the background is known, waited for, and holds the directory, whatever interrupts those who wait."""

from __future__ import annotations

import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import LIKE, restored, tree

import frostleaf as fl
from frostleaf.io import atomic
from frostleaf.io.background import Background
from frostleaf.io.directory import Directory


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    seconds, fsync = [0.0], atomic.fsync

    def slowly(path: str) -> None:
        time.sleep(seconds[0])
        fsync(path)

    monkeypatch.setattr(atomic, "fsync", slowly)
    yield lambda new: seconds.__setitem__(0, new)
    seconds[0] = 0


def after(seconds: float, function: Callable[[], Any]) -> None:
    """Call a function in a signal handler."""

    def handler(*_: Any) -> None:
        signal.signal(signal.SIGALRM, before)
        function()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_directory_is_another_run_s_only_when_the_interrupted_one_has_written(tmp_path: Path, slow_disk: Any) -> None:
    with pytest.raises(KeyboardInterrupt), fl.Checkpointer(tmp_path, keep=None) as first:  # noqa: PT012
        first.save(1, tree(1))
        first.wait()
        slow_disk(0.1)
        first.save(2, tree(2))
        after(0.05, interrupt)
    left = [*tmp_path.glob(".frostleaf-*safetensors")]
    assert left
    second = fl.Checkpointer(tmp_path, keep=1)
    second.save(9, tree(9))
    second.wait()
    first.wait()
    assert second.steps() == [1, 2, 9]  # those of one who lives
    assert restored(tmp_path, 2) == 2
    del first, second
    third = fl.Checkpointer(tmp_path, keep=1)
    third.save(10, tree(10))
    assert third.steps() == [10]


def test_a_block_that_has_ended_has_let_go_of_the_directory(tmp_path: Path) -> None:
    with fl.Checkpointer(tmp_path) as first:
        first.save(1, tree(1))
    with fl.Checkpointer(tmp_path, keep=1) as second:
        second.save(2, tree(2))
    assert second.steps() == [2]
    first.wait()


@pytest.mark.parametrize("waits", [True, False], ids=["and waits", "and goes on"])
@pytest.mark.parametrize("method", [lambda each: each.wait(), lambda each: each.save(3, tree(3))], ids=["wait", "save"])
def test_a_signal_handler_may_save_while_the_same_thread_waits(
    method: Any, waits: bool, tmp_path: Path, slow_disk: Any
) -> None:
    checkpoints, trees = fl.Checkpointer(tmp_path), [tree(step) for step in range(4)]
    fl.eval(trees)

    def save() -> None:
        checkpoints.save(2, trees[2])
        if waits:
            checkpoints.wait()

    slow_disk(0.05)
    checkpoints.save(1, trees[1])
    after(0.03, save)
    method(checkpoints)
    slow_disk(0)
    assert checkpoints.steps()[:2] == [1, 2]


@pytest.mark.parametrize("instant", ["before", "after"])
def test_an_interrupt_as_the_thread_starts_leaves_no_writer_that_nobody_knows(
    instant: str, tmp_path: Path, slow_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, start = fl.Checkpointer(tmp_path), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if instant == "after":
            start(thread)
        raise KeyboardInterrupt

    slow_disk(0.05)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(1, tree(1))
    checkpoints.wait()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saving") and thread.is_alive()][1:]
    assert checkpoints.steps() == [1][: instant == "after"]
    slow_disk(0)
    checkpoints.save(2, tree(2))
    assert checkpoints.restore(LIKE)[0] == 2


def test_a_signal_handler_that_saves_in_the_first_save_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = fl.Checkpointer(tmp_path)
    clean_up, said = Directory.clean_up, []

    def interrupted(directory: Directory) -> None:
        monkeypatch.undo()
        with pytest.raises(fl.CheckpointError, match="signal handler that saves too has interrupted") as caught:
            checkpoints.save(2, tree(2))
        said.append(str(caught.value))
        clean_up(directory)

    monkeypatch.setattr(Directory, "clean_up", interrupted)
    checkpoints.save(1, tree(1))
    assert said[0].startswith(f"{tmp_path}: ")
    checkpoints.save(2, tree(2))
    assert checkpoints.steps() == [1, 2]


def test_a_signal_handler_may_wait_while_a_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    background, run, start = Background(), [], threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        background.wait()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    background.start("a save", lambda: run.append(1))
    background.wait()
    assert (run, background.is_idle) == ([1], True)


def test_one_function_runs_at_a_time_and_all_are_waited_for() -> None:
    background, running, most, done = Background(), [], [0], []

    def function(number: int) -> None:
        running.append(number)
        most[0] = max(most[0], len(running))
        time.sleep(0.01)
        running.remove(number)
        done.append(number)

    for number in range(5):
        background.start("a test", lambda number=number: function(number))
    assert not background.is_idle
    background.wait()
    assert background.is_idle
    assert (most, sorted(done)) == ([1], [0, 1, 2, 3, 4])


def test_what_is_held_is_let_go_before_those_who_wait_go_on() -> None:
    class Held:
        pass

    background, let_go = Background(), []
    held = Held()
    weakref.finalize(held, let_go.append, 1)
    background.start("a test", lambda: time.sleep(0.02), held)
    del held
    assert not let_go
    background.wait()
    assert let_go
