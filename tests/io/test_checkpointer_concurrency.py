"""Checkpoints saved in the background, by several processes, in directories that change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import LIKE, files, left_over, restored, saved, tree

import frostleaf as fl
from frostleaf.io import saving as module

# In the background


@contextmanager
def slow(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> Iterator[list[str]]:
    """Make writing wait until the block ends, and then fail if there is an error. Yield the list of what was written."""
    begun, go, write, written = threading.Event(), threading.Event(), module.write_checkpoint, []

    def held(file: str, given: Any) -> Any:
        begun.set()
        go.wait()
        if error is not None:
            raise error
        done = write(file, given)
        written.append(os.path.basename(file)[:13])
        return done

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_checkpoint", held)
        yield written
        assert begun.wait(5)
        assert not written
        go.set()


def test_saving_goes_on_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, given = fl.Checkpointer(tmp_path), tree(1)
    with slow(monkeypatch):
        assert checkpoints.save(1, given)
        assert not files(tmp_path)
        given["w"][0] = 7  # after it was saved, so this is not in the file
    assert checkpoints.steps() == [1]
    assert fl.tree.equal(checkpoints.restore(LIKE)[1], tree(1))


def test_one_tree_at_a_time_is_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, computed = fl.Checkpointer(tmp_path), tree(2)
    mx.eval(computed)  # MLX can't compute in one thread what another has begun
    with slow(monkeypatch) as written:
        checkpoints.save(1, tree(1))
        other = threading.Thread(target=checkpoints.save, args=(2, computed))
        other.start()
        other.join(0.05)
        assert other.is_alive()
    other.join()
    assert written[0] == "step-00000001"
    assert checkpoints.steps() == [1, 2]


def test_what_is_being_saved_is_still_waited_for_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, main = fl.Checkpointer(tmp_path), threading.main_thread().ident
    assert main == threading.get_ident()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with slow(monkeypatch):
            checkpoints.save(1, tree(1))
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                checkpoints.wait()
            other = threading.Thread(target=checkpoints.wait)
            other.start()
            other.join(0.05)
            assert other.is_alive()
    finally:
        signal.signal(signal.SIGINT, handler)
    other.join()
    assert checkpoints.steps() == [1]


def test_saving_goes_on_when_the_thread_that_asked_for_it_is_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, computed = fl.Checkpointer(tmp_path), tree(1)
    mx.eval(computed)
    with slow(monkeypatch):
        daemon = threading.Thread(target=checkpoints.save, args=(1, computed), daemon=True)
        daemon.start()
        daemon.join()
        assert not next(thread for thread in threading.enumerate() if thread.name == "saving step 1").daemon
    assert checkpoints.steps() == [1]


def test_a_tree_that_was_saved_is_let_go(tmp_path: Path) -> None:
    checkpoints = fl.Checkpointer(tmp_path)
    mx.clear_cache()
    before = mx.get_active_memory()
    checkpoints.save(1, mx.zeros(1_000_000))
    checkpoints.wait()
    assert mx.get_active_memory() - before < 1_000_000


CALLS: dict[str, Callable[[fl.Checkpointer], Any]] = {
    "save": lambda checkpoints: checkpoints.save(10, tree(10)),
    "wait": lambda checkpoints: checkpoints.wait(),
    "steps": lambda checkpoints: checkpoints.steps(),
    "restore": lambda checkpoints: checkpoints.restore(LIKE),
    "best_step": lambda checkpoints: checkpoints.best_step(),
    "metrics": lambda checkpoints: checkpoints.metrics(0),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_failure_is_raised_once_by_the_next_call(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 0, best="loss")
    with slow(monkeypatch, OSError("the disk is on fire")):
        checkpoints.save(1, tree(1))
    with pytest.raises(fl.CheckpointError, match=r"step 1 could not be saved in .*: the disk is on fire") as caught:
        CALLS[name](checkpoints)
    assert isinstance(caught.value.__cause__, OSError)
    CALLS[name](checkpoints)
    assert checkpoints.steps() == ([0, 10] if name == "save" else [0])


def test_a_failure_is_raised_by_a_step_that_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = fl.Checkpointer(tmp_path, every=10)
    with slow(monkeypatch, OSError("the disk is on fire")):
        checkpoints.save(10, tree(1))
        assert not checkpoints.save(11, tree(11))  # which does not wait for it
        thread = next(thread for thread in threading.enumerate() if thread.name == "saving step 10")
    thread.join()
    with pytest.raises(fl.CheckpointError, match="on fire"):
        checkpoints.save(12, tree(12))
    assert not checkpoints.save(13, tree(13))


def test_leaving_a_block_waits_and_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fl.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1))
    assert files(tmp_path) == [1]
    with pytest.raises(fl.CheckpointError, match="on fire"), fl.Checkpointer(tmp_path) as checkpoints:  # noqa: SIM117
        with slow(monkeypatch, OSError("the disk is on fire")):
            checkpoints.save(2, tree(2))


@pytest.mark.parametrize("call", ["{}", "import atexit; atexit.register(lambda: {})"], ids=["before", "as it ends"])
def test_a_process_that_ends_has_saved(call: str, tmp_path: Path) -> None:
    script = (
        "import sys, time, mlx.core as mx, frostleaf as fl; from frostleaf.io import saving\n"
        "write = saving.write_checkpoint\n"
        "saving.write_checkpoint = lambda *given: (time.sleep(0.2), write(*given))[1]\n"
        + call.format("fl.Checkpointer(sys.argv[1]).save(1, {'w': mx.full(3, 1.0)})")
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert restored(tmp_path) == 1


# Several processes


def test_those_who_live_do_not_remove_what_others_saved(tmp_path: Path) -> None:
    one, other, third = saved(tmp_path, 1, keep=1), saved(tmp_path, 101, keep=1), saved(tmp_path, 201, keep=1)
    del one  # and those who come later know that others still live
    fourth = saved(tmp_path, 301, keep=1)
    for step in (2, 3):
        assert other.save(100 + step, tree(0))
        assert third.save(200 + step, tree(0))
        assert fourth.save(300 + step, tree(0))
        other.wait(), third.wait(), fourth.wait()
    assert files(tmp_path) == [1, 103, 203, 303]
    del other, third, fourth
    assert saved(tmp_path, 401, keep=1).steps() == [401]


def test_two_who_save_the_same_step_leave_one_of_the_two_whole(tmp_path: Path) -> None:
    one, other = saved(tmp_path, 1, keep=1), fl.Checkpointer(tmp_path, keep=1)
    other.save(1, {"w": mx.full(3, 7.0)})
    other.wait()
    assert fl.tree.equal(one.restore(LIKE, 1)[1], {"w": mx.full(3, 7.0)})
    one.save(2, tree(2))  # and step 1 is now the other's
    assert one.steps() == [1, 2]
    assert fl.tree.equal(one.restore(LIKE, 1)[1], {"w": mx.full(3, 7.0)})


def test_another_process_that_lives_is_seen_and_one_that_is_dead_is_not(tmp_path: Path) -> None:
    script = (
        "import sys, mlx.core as mx, frostleaf as fl\n"
        "checkpoints = fl.Checkpointer(sys.argv[1], keep=1)\n"
        "for step in (1, 2): checkpoints.save(step, {'w': mx.full(3, 1.0)})\n"
        "checkpoints.wait()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert saved(tmp_path, 3, 4, keep=1).steps() == [2, 4]
        process.kill()
    assert saved(tmp_path, 5, keep=1).steps() == [5]


def test_what_a_dead_process_was_writing_is_removed(tmp_path: Path) -> None:
    half, other = (tmp_path / f".frostleaf-0123456789abcdef-{name}" for name in ("step-00000001.safetensors", "w.safetensors"))
    half.write_text("half of it")
    other.write_text("half of it")
    checkpoints = saved(tmp_path, 1)
    # What others than checkpointers write, with fl.save or save_weights, may still be written.
    assert set(os.listdir(tmp_path)) == {".frostleaf-lock", other.name, "step-00000001.safetensors"}
    half.write_text("half of it")
    saved(tmp_path, 2)  # checkpoints is still there
    assert half.exists()
    del checkpoints


def test_a_forked_process_has_to_make_its_own(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, frostleaf as fl\n"
        "checkpoints = fl.Checkpointer(sys.argv[1], keep=1)\n"
        "checkpoints.save(1, {'n': 1})\n"
        "checkpoints.wait()\n"
        "reading, writing = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        checkpoints.save(2, {'n': 2})\n"
        "    except RuntimeError as error:\n"
        "        print(error, flush=True)\n"
        "    os.close(writing)\n"
        "    os.read(reading, 1)\n"  # until the test ends: the parent's lock must not live on in the child
        "    os._exit(0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True, stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "this Checkpointer was made in another process: make one after the fork\n"
        process.wait()
        checkpoints = fl.Checkpointer(tmp_path, keep=1)
        checkpoints.save(2, {"n": 2})
        assert checkpoints.steps() == [2]


# Directories


def test_the_directory_stays_the_same_wherever_links_and_the_process_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    checkpoints = saved(Path("link"), 1)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("other")
    monkeypatch.chdir("other")
    checkpoints.save(2, tree(2))
    assert checkpoints.steps() == files(tmp_path / "real") == [1, 2]
    assert not os.listdir(tmp_path / "other")


def test_a_directory_that_is_removed_is_an_error_and_not_made_again(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "a", 1)
    for name in os.listdir(tmp_path / "a"):
        os.unlink(tmp_path / "a" / name)
    os.rmdir(tmp_path / "a")
    assert checkpoints.steps() == []
    checkpoints.save(2, tree(2))
    with pytest.raises(fl.CheckpointError, match=r"step 2 could not be saved in .*No such file or directory"):
        checkpoints.wait()
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        checkpoints.restore(LIKE)


def test_a_directory_that_can_not_be_locked_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    os.unlink(tmp_path / ".frostleaf-lock")
    os.mkdir(tmp_path / ".frostleaf-lock")  # as a directory that can't be written to, which the superuser could
    checkpoints = fl.Checkpointer(tmp_path)
    assert checkpoints.restore(LIKE)[0] == 1
    with pytest.raises(fl.CheckpointError, match=f"{tmp_path}: .*Is a directory"):
        checkpoints.save(2, tree(2))


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may write everywhere")
def test_a_directory_that_can_only_be_read_can_be_restored_from(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    tmp_path.chmod(0o555)
    try:
        assert restored(tmp_path) == 1
        checkpoints = fl.Checkpointer(tmp_path)
        with pytest.raises(fl.CheckpointError, match="Permission denied"), checkpoints:
            checkpoints.save(2, tree(2))
    finally:
        tmp_path.chmod(0o755)


def test_two_processes_that_share_arrays_and_keep_differently_leave_what_each_keeps(tmp_path: Path) -> None:
    script = (
        "import sys, mlx.core as mx, frostleaf as fl\n"
        "first, keep = int(sys.argv[2]), int(sys.argv[3])\n"
        "still = [mx.full(10_000, number, mx.int32) for number in range(3)]\n"
        "with fl.Checkpointer(sys.argv[1], keep=keep) as checkpoints:\n"
        "    checkpoints.save(first, {'still': still, 'step': mx.array(first)})\n"
        "    checkpoints.wait()\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    for step in range(first + 2, 30, 2):\n"
        "        still = still if step % 5 else [array + 1 for array in still]\n"
        "        checkpoints.save(step, {'still': still, 'step': mx.array(step)})\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path, str(first), str(keep)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first, keep in ((0, 1), (1, 3))
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n")
        assert process.returncode == 0
    checkpoints = fl.Checkpointer(tmp_path)
    assert checkpoints.steps() == [25, 27, 28, 29]
    assert not left_over(tmp_path)
    for step in checkpoints.steps():
        like = {"still": [fl.ShapeDtypeStruct((10_000,), mx.int32)] * 3, "step": mx.array(0)}
        _, there = checkpoints.restore(like, step)
        changes = len([each for each in range(step % 2, step + 1, 2) if each % 5 == 0 and each > 1])
        assert [int(array[0]) for array in there["still"]] == [number + changes for number in range(3)], step
