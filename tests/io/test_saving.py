"""What is said of a checkpoint that failed, which step may be saved, and whose a step is that was interrupted."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import LIKE, files, left_over, restored, saved, tree
from damage import at_most

import frostleaf as fl
from frostleaf.io import atomic

# What nobody asks for


def written() -> None:
    """Wait until nothing is being written, without asking for errors."""
    for thread in threading.enumerate():
        if thread.name.startswith("saving"):
            thread.join()


def run(script: str, *given: Any) -> subprocess.CompletedProcess[str]:
    start = "import gc, os, sys, threading, mlx.core as mx, frostleaf as fl\nsys.path.append(sys.argv[1])\n"
    start += "from damage import at_most\n"
    command = [sys.executable, "-c", start + script, Path(__file__).parents[1], *given]
    return subprocess.run(command, capture_output=True, text=True, check=True)


FAILS = (
    "checkpoints = fl.Checkpointer(sys.argv[2])\n"
    "checkpoints.save(1, {'w': mx.zeros(3)}), checkpoints.wait()\n"
    "with at_most(0):\n"
    "    checkpoints.save(2, {'w': mx.zeros(3)})\n"
    "    for thread in threading.enumerate(): thread.name.startswith('saving') and thread.join()\n"
)

ENDS = {
    "the end": ("", 1),
    "it is dropped": ("del checkpoints; gc.collect(); sys.stderr.write('dropped')", 1),
    "another object holds it": ("kept = [checkpoints]; kept.append(kept)", 1),
    "it was raised": ("try: checkpoints.wait()\nexcept fl.CheckpointError: pass", 0),
    "it was raised, and none since": ("try: checkpoints.wait()\nexcept fl.CheckpointError: checkpoints.wait()", 0),
    "an interrupt as it ends": ("import atexit; atexit.register(lambda: checkpoints.steps() if False else None)", 1),
    "a child ends": ("if os.fork() == 0: sys.exit()\nos.wait()", 1),
    "a child drops it": ("if os.fork() == 0:\n    del checkpoints; gc.collect(); os._exit(0)\nos.wait()", 1),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_failure_that_nobody_asked_for_is_said_once(name: str, tmp_path: Path) -> None:
    script, times = ENDS[name]
    done = run(FAILS + script, tmp_path)
    said = f"frostleaf.io.safetensors.CheckpointError: the checkpoint of step 2 could not be saved in {tmp_path}: "
    assert done.stderr.count(said) == done.stderr.count(f"saved in {tmp_path}") == times
    assert "File too large" in done.stderr or not times
    if name == "it is dropped":
        assert done.stderr.endswith("dropped")
    if name == "it was raised":
        assert not done.stderr


def test_a_failure_while_the_process_ends_is_said(tmp_path: Path) -> None:
    script = (
        "import atexit\n"
        "def last():\n"
        "    with at_most(0):\n"
        "        checkpoints.save(3, {'w': mx.zeros(3)})\n"
        "        for thread in threading.enumerate(): thread.name.startswith('saving') and thread.join()\n"
        "checkpoints = None\n"
        "atexit.register(last)\n"
        "checkpoints = fl.Checkpointer(sys.argv[2])\n"
        "checkpoints.save(2, {'w': mx.zeros(3)}), checkpoints.wait()\n"
    )
    for text in (script, script.replace("import atexit\n", "import atexit, weakref\nweakref.finalize(mx, print)\n")):
        assert f"step 3 could not be saved in {tmp_path}: " in run(text, tmp_path).stderr


def test_a_failure_holds_neither_the_tree_nor_the_one_who_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda given: said.append(str(given.exc_value)))
    checkpoints = saved(tmp_path, 1)
    mx.clear_cache()
    before = mx.get_active_memory()
    with at_most(0):
        checkpoints.save(2, mx.zeros(1_000_000))
        written()
    assert mx.get_active_memory() - before < 1_000_000
    gc.disable()
    try:
        del checkpoints
        assert len(said) == 1
    finally:
        gc.enable()
    assert said[0].startswith(f"the checkpoint of step 2 could not be saved in {tmp_path}: ")


def test_each_of_two_failures_is_raised(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    with at_most(0):
        for step in (2, 3):  # as a signal handler may, without having waited
            checkpoints._saving.save(step, tree(step), {})
            written()
    for step in (2, 3):
        with pytest.raises(fl.CheckpointError, match=f"step {step} could not"):
            checkpoints.wait()
    checkpoints.wait()


# Which step may come next


def test_a_second_one_in_the_same_process_does_not_begin_anew(tmp_path: Path) -> None:
    early = fl.Checkpointer(tmp_path)
    first = saved(tmp_path, 0, 1, 2, 3)
    for second in (fl.Checkpointer(tmp_path), early):
        with pytest.raises(fl.CheckpointError, match=rf"step 0 comes before step 3, which is in {tmp_path} already.*restore"):
            second.save(0, tree(0))
        assert second.save(3, tree(3))
        second.wait()
    assert first.steps() == [1, 2, 3]


HOLDS = (
    "checkpoints = fl.Checkpointer(sys.argv[2])\n"
    "print('made', flush=True), sys.stdin.readline()\n"
    "for step in map(int, sys.argv[3:]): checkpoints.save(step, {'w': mx.full(3, float(step))})\n"
    "checkpoints.wait(), print('saved', flush=True), sys.stdin.readline()\n"
)


class Other:
    """Another process, which makes a Checkpointer and when it is told to saves some steps, and lives on."""

    def __init__(self, folder: Path, *steps: int) -> None:
        command = [sys.executable, "-c", "import sys, mlx.core as mx, frostleaf as fl\n" + HOLDS, "", folder, *map(str, steps)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("made")

    def _expect(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n"

    def save(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._expect("saved")

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def test_an_idle_process_does_not_let_another_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns
    with Other(tmp_path, 2, 3) as other:
        early = fl.Checkpointer(tmp_path)
        other.save()
        together = fl.Checkpointer(tmp_path)
        monkeypatch.setattr(time, "time_ns", lambda: now() + 61 * 10**9)
        with pytest.raises(fl.CheckpointError, match="step 0 comes before step 3"):
            fl.Checkpointer(tmp_path).save(0, tree(0))
        for each in (early, together):
            assert each.save(0, tree(0))
            each.wait()
        del early, together, each
        again = fl.Checkpointer(tmp_path)
        assert again.restore(LIKE)[0] == 0
        assert again.save(1, tree(1))
        assert again.steps() == [0, 1, 2, 3]


TRAINS_ON = (
    "import sys, mlx.core as mx, frostleaf as fl\n"
    "with fl.Checkpointer(sys.argv[1], keep=2) as checkpoints:\n"
    "    step, _ = checkpoints.restore({'w': mx.zeros(3)})\n"
    "    for step in range(step + 1, step + 11): checkpoints.save(step, {'w': mx.full(3, float(step))})\n"
)


def train_on_here(folder: Path) -> None:
    with fl.Checkpointer(folder, keep=2) as checkpoints:
        step, _ = checkpoints.restore(LIKE)
        for each in range(step + 1, step + 11):
            checkpoints.save(each, tree(each))


TRAIN_ON: dict[str, Callable[[Path], Any]] = {
    "in this process": train_on_here,
    "in another": lambda folder: subprocess.run([sys.executable, "-c", TRAINS_ON, folder], check=True),
}


@pytest.mark.parametrize("how", TRAIN_ON)
@pytest.mark.parametrize("before", [lambda one: one.restore(LIKE), lambda one: one.restore(LIKE, 8)], ids=["last", "back"])
def test_what_others_saved_since_one_restored_is_the_last_again(how: str, before: Any, tmp_path: Path) -> None:
    with saved(tmp_path, 8, 9, keep=2):
        pass
    early = fl.Checkpointer(tmp_path, keep=2)
    before(early)
    TRAIN_ON[how](tmp_path)
    for _ in range(2):
        with pytest.raises(fl.CheckpointError, match="step 10 comes before step 19"):
            early.save(10, tree(10))
    assert files(tmp_path) == [18, 19]
    assert early.restore(LIKE)[0] == 19
    assert early.save(20, tree(20))
    assert early.steps() == [19, 20]
    early.restore(LIKE, 19)  # and going back on purpose stays possible
    assert early.save(19, tree(19))
    assert early.steps() == [19, 20]


@pytest.mark.parametrize("how", TRAIN_ON)
def test_what_others_saved_since_a_block_ended_is_the_last_again(how: str, tmp_path: Path) -> None:
    with saved(tmp_path, 8, 9, keep=2) as first:
        pass
    TRAIN_ON[how](tmp_path)
    with pytest.raises(fl.CheckpointError, match="step 10 comes before step 19"):
        first.save(10, tree(10))
    assert files(tmp_path) == [18, 19]


def test_what_another_of_this_process_saved_since_one_saved_is_the_last_again(tmp_path: Path) -> None:
    first = saved(tmp_path, 8, 9, keep=2)
    train_on_here(tmp_path)
    assert files(tmp_path) == [18, 19]
    with pytest.raises(fl.CheckpointError, match="step 10 comes before step 19"):
        first.save(10, tree(10))
    assert files(tmp_path) == [18, 19]


def test_what_to_do_is_said_to_those_who_begin_anew(tmp_path: Path) -> None:
    saved(tmp_path / "run", 0, 4)
    with pytest.raises(fl.CheckpointError, match="To begin anew, save into another directory, or remove this one") as caught:
        fl.Checkpointer(tmp_path / "run").save(0, tree(0))
    said = re.search(r"shutil\.rmtree\('(.*?)'\)", str(caught.value))
    assert said is not None
    shutil.rmtree(said[1])
    assert saved(tmp_path / "run", 0).steps() == [0]


# Runs that go on in one process


def go_on(folder: Path) -> fl.Checkpointer:
    checkpoints = fl.Checkpointer(folder, keep=2)
    step = 0 if checkpoints.latest_step() is None else checkpoints.restore(LIKE)[0]
    for each in range(step + 1, step + 4):
        checkpoints.save(each, tree(each))
    return checkpoints


@pytest.mark.parametrize("waits", [True, False], ids=["idle", "still saving"])
@pytest.mark.parametrize("kept", ["all", "the first", "the last"])
def test_those_who_restore_take_over_from_others_of_this_process(kept: str, waits: bool, tmp_path: Path) -> None:
    live: list[fl.Checkpointer] = []
    for number in range(4):
        checkpoints = go_on(tmp_path)
        if waits:
            checkpoints.wait()
        if kept == "all" or number == 0 or kept == "the last":
            live = [*([] if kept == "the last" else live), checkpoints]
    checkpoints.wait()
    assert len(checkpoints.steps()) == 2
    assert not left_over(tmp_path)
    first = live[0]
    assert first.restore(LIKE)[0] == checkpoints.latest_step()
    step = checkpoints.steps()[-1]
    assert first.save(step + 1, tree(step + 1))
    assert first.steps() == [step, step + 1]


def test_those_who_restore_take_over_from_others_of_this_process_though_another_lives(tmp_path: Path) -> None:
    with Other(tmp_path, 1) as other:
        other.save()
        live = [go_on(tmp_path) for _ in range(3)]
        assert live[-1].steps() == [1, 9, 10]


def test_two_of_this_process_that_begin_together_each_keep_their_own(tmp_path: Path) -> None:
    with saved(tmp_path, 1, keep=1):
        pass
    one, other = fl.Checkpointer(tmp_path, keep=1), fl.Checkpointer(tmp_path, keep=1)
    one.restore(LIKE), other.restore(LIKE)
    for step in (2, 4, 6):
        for each, its in ((one, step), (other, step + 1)):
            each.save(its, tree(its))
            each.wait()
    assert files(tmp_path) == [6, 7]


def test_going_on_from_the_latest_step_is_always_going_on(tmp_path: Path) -> None:
    with saved(tmp_path, 10, 20, 30, keep=None) as checkpoints:
        checkpoints.restore(LIKE, 10)
        checkpoints.save(11, tree(11))
    again = fl.Checkpointer(tmp_path, keep=None)
    with pytest.raises(fl.CheckpointError, match="step 10 comes before step 11"):
        again.save(10, tree(10))
    latest = again.latest_step()
    assert latest == 11
    assert again.save(latest + 1, tree(12))
    assert again.steps() == [10, 11, 12, 20, 30]


def test_where_nothing_comes_after_a_step_it_may_be_saved(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3)
    for name in os.listdir(tmp_path):
        os.unlink(tmp_path / name)
    checkpoints.save(0, tree(0))
    assert checkpoints.steps() == [0]
    assert (tmp_path / ".frostleaf-lock").exists()  # of the directory as it is now
    with pytest.raises(fl.CheckpointError, match="step 0 comes before step 1"):
        (checkpoints.save(1, tree(1)), checkpoints.save(0, tree(0)))


STEPS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "too large": (lambda folder: fl.Checkpointer(folder).save(10**300, LIKE), "step is a whole number below 2"),
    "much too large": (
        lambda folder: fl.Checkpointer(folder).save(10**5000, LIKE),
        "step is a whole number below 2.*int of 16,610 bits",
    ),
    "to restore": (lambda folder: restored(folder, 10**300), "step is a whole number below 2"),
    "a bool": (lambda folder: saved(folder, True), "step is a whole number, 0 or more, and was given as True"),
    "keep": (lambda folder: fl.Checkpointer(folder, keep=True), "keep is a whole number, 1 or more, and was given as True"),
    "every": (lambda folder: fl.Checkpointer(folder, every=True), "every is a whole number"),
    "best": (lambda folder: restored(folder, "best"), r"given as 'best'; best_step\(\) and latest_step\(\) return one"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", STEPS)
def test_what_is_no_step_is_refused_at_once(name: str, tmp_path: Path) -> None:
    call, reason = STEPS[name]
    with pytest.raises(ValueError, match=reason):
        call(tmp_path)
    assert not files(tmp_path)


def test_a_step_that_failed_may_be_followed_by_any(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    with at_most(0):
        checkpoints.save(50, tree(50))
        with pytest.raises(fl.CheckpointError, match="step 50 could not be saved"):
            checkpoints.wait()
    assert checkpoints.save(2, tree(2))
    assert checkpoints.steps() == [1, 2]


# Interrupts


def test_an_interrupt_in_the_question_whether_the_main_thread_lives_changes_nothing(tmp_path: Path) -> None:
    checkpoints, written = saved(tmp_path, 1, keep=2), []

    def interrupted(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_name in ("is_alive", "_wait_for_tstate_lock") and frame.f_locals["self"] is threading.main_thread():
            sys.settrace(None)
            raise KeyboardInterrupt
        return interrupted

    sys.settrace(interrupted)
    try:
        checkpoints.save(2, tree(2))
    finally:
        sys.settrace(None)
    assert threading.main_thread().is_alive()
    checkpoints.wait()
    replace = os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *given: (written.append(threading.current_thread().name), replace(*given)))
        checkpoints.save(3, tree(3))
        checkpoints.wait()
    assert {*written} == {"saving step 3"}


def test_a_save_without_another_thread_is_done_in_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    checkpoints = fl.Checkpointer(tmp_path, keep=2)
    monkeypatch.setattr(threading.Thread, "start", refused)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step))
    assert files(tmp_path) == [2, 3]


@pytest.mark.parametrize("instant", ["before", "after"])
def test_a_step_that_was_interrupted_is_pruned_or_was_never_there(
    instant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refused)
    checkpoints, replace = fl.Checkpointer(tmp_path, keep=2), os.replace

    def interrupted(source: str, target: str) -> None:
        if instant == "after":
            replace(source, target)
        raise KeyboardInterrupt

    for step in range(8):
        with monkeypatch.context() as patch:
            if step % 2:
                patch.setattr(atomic.os, "replace", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    checkpoints.save(step, tree(step))
            else:
                checkpoints.save(step, tree(step))
                assert len(checkpoints.steps()) <= 2
    assert checkpoints.save(8, tree(8))
    assert checkpoints.steps() == ([7, 8] if instant == "after" else [6, 8])
    assert not left_over(tmp_path)


# Directories that go


def replace_by_a_file(folder: Path) -> None:
    rename(folder)
    folder.write_text("text")


def remove(folder: Path) -> None:
    for name in os.listdir(folder):
        os.unlink(folder / name)
    folder.rmdir()


def rename(folder: Path) -> None:
    folder.rename(folder.with_name("renamed"))


@pytest.mark.parametrize("change", [remove, rename, replace_by_a_file])
def test_a_directory_that_is_gone_is_one_error_that_says_so(change: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = tmp_path / "a"
    checkpoints = saved(folder, 1)
    change(folder)
    checkpoints.save(2, tree(2))
    reason = rf"step 2 could not be saved in {folder}: .*\. The directory .* is gone.* another Checkpointer"
    with pytest.raises(fl.CheckpointError, match=reason):
        checkpoints.wait()
    assert checkpoints.steps() == []
    with pytest.raises(fl.NoCheckpointError):
        checkpoints.restore(LIKE)


def test_a_directory_that_was_made_anew_is_locked(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    checkpoints = saved(folder, 5, 6)
    rename(folder)
    saved(folder, 1, 2)
    checkpoints.save(7, tree(7))
    assert checkpoints.steps() == [1, 2, 7]
    assert saved(folder, 8, keep=1).steps() == [1, 2, 7, 8]
    checkpoints.save(9, tree(9))
    checkpoints.save(10, tree(10))
    assert checkpoints.steps() == [7, 8, 9, 10]


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is None, reason="nobody takes Ctrl-C here")
def test_many_interrupts_leave_no_more_than_are_kept(tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    checkpoints, trees = fl.Checkpointer(tmp_path, keep=2), [tree(step) for step in range(60)]
    fl.eval(trees)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for step, given in enumerate(trees):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-4 + step * 5e-5)
                    checkpoints.save(step, given)
                    checkpoints.wait()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
    finally:
        signal.signal(signal.SIGALRM, before)
    checkpoints.save(100, tree(100))
    assert len(checkpoints.steps()) <= 2
    assert threading.main_thread().is_alive()
