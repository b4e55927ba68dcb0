"""Checkpoints of a run: saved in the background, pruned, found again, and gone on from exactly."""

from __future__ import annotations

import copy
import errno
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import runs
from runs import go_on, start

import frostleaf as fl
from frostleaf.io import checkpointer as module

LIKE = {"w": mx.zeros(3)}


def tree(step: int) -> dict[str, mx.array]:
    return {"w": mx.full(3, float(step))}


def saved(folder: Path, *steps: int, metrics: Any = None, **options: Any) -> fl.Checkpointer:
    checkpoints = fl.Checkpointer(folder, **options)
    for step in steps:
        assert checkpoints.save(step, tree(step), metrics(step) if metrics else None)
    checkpoints.wait()
    return checkpoints


def files(folder: Path) -> list[int]:
    return sorted(int(name[5:13]) for name in os.listdir(folder) if name.endswith(".safetensors"))


def damage(folder: Path, step: int, place: int = -1) -> None:
    file = folder / f"step-{step:08d}.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def restored(folder: Path, step: int | None = None) -> int:
    found, value = fl.Checkpointer(folder).restore(LIKE, step)
    assert fl.tree.equal(value, tree(found))
    return found


def test_what_was_saved_is_restored(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "a" / "b", 3, 20)
    for step, like in [(3, LIKE), (20, {"w": fl.ShapeDtypeStruct((3,))})]:
        assert fl.tree.equal(checkpoints.restore(like, step), (step, tree(step)))
    assert fl.tree.equal(checkpoints.restore(LIKE), (20, tree(20)))
    assert fl.tree.equal(fl.load(tmp_path / "a" / "b" / "step-00000003.safetensors", LIKE), tree(3))


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5]), (None, [1, 2, 3, 4, 5])])
def test_the_newest_are_kept(keep: int | None, left: list[int], tmp_path: Path) -> None:
    assert saved(tmp_path, 1, 2, 3, 4, 5, keep=keep).steps() == left
    assert files(tmp_path) == left


def test_steps_between_are_not_saved(tmp_path: Path) -> None:
    checkpoints = fl.Checkpointer(tmp_path, every=3)
    assert not checkpoints.save(1, None, {"loss": "not looked at"})
    assert [checkpoints.save(step, tree(step)) for step in range(8)] == [step % 3 == 0 for step in range(8)]
    assert checkpoints.steps() == [0, 3, 6]


def test_a_large_step_has_a_longer_name(tmp_path: Path) -> None:
    assert saved(tmp_path, 99_999_999, 10**9).steps() == [99_999_999, 10**9]
    assert restored(tmp_path) == 10**9


LOSSES = {1: 3.0, 2: 1.0, 3: math.nan, 4: 2.0, 5: 1.0, 6: None, 7: 4.0, 8: 2.5}


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 7)])
def test_the_best_is_kept_besides(mode: Any, best: int, tmp_path: Path) -> None:
    def metrics(step: int) -> Any:
        return None if LOSSES[step] is None else {"loss": LOSSES[step], "other": step}

    checkpoints = saved(tmp_path, *LOSSES, keep=1, best="loss", mode=mode, metrics=metrics)
    assert checkpoints.best_step() == best
    assert checkpoints.steps() == [best, 8]
    assert checkpoints.metrics(best) == {"loss": LOSSES[best], "other": best}
    del checkpoints
    again = fl.Checkpointer(tmp_path, keep=1, best="loss", mode=mode)
    assert again.best_step() == best
    again.save(9, tree(9), {"loss": math.nan})
    assert again.steps() == [best, 9]


def test_without_a_number_there_is_no_best(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, keep=1, best="loss", metrics=lambda step: {"loss": math.nan})
    assert checkpoints.best_step() is None
    assert checkpoints.steps() == [2]
    assert math.isnan(checkpoints.metrics(2)["loss"])
    with pytest.raises(ValueError, match=r"best_step\(\) needs the name of the metric"):
        saved(tmp_path / "other", 1).best_step()


def test_numbers_of_every_kind_are_metrics(tmp_path: Path) -> None:
    given = {
        "a": mx.array(0.5),
        "b": np.float32(0.25),
        "c": 3,
        "d": True,
        "e": math.inf,
        "f": np.float64(0.1),
        "g": mx.array([2]),
    }
    assert saved(tmp_path, 1, metrics=lambda step: given).metrics(1) == {
        "a": 0.5, "b": 0.25, "c": 3, "d": True, "e": math.inf, "f": 0.1, "g": 2,
    }  # fmt: skip
    assert saved(tmp_path, 2).metrics(2) == {}


def test_a_metric_may_be_too_long_for_a_float(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, keep=1, best="loss", metrics=lambda step: {"loss": 10**400 * step})
    assert checkpoints.best_step() == 1
    assert checkpoints.steps() == [1, 3]


@pytest.mark.parametrize("step", [True, np.int64(1), mx.array(1)], ids=lambda step: type(step).__name__)
def test_a_step_comes_back_as_a_number(step: Any, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, step, metrics=lambda step: {"a": 1})
    found, _ = checkpoints.restore(LIKE, step)
    assert (type(found), found, checkpoints.metrics(step)) == (int, 1, {"a": 1})


WRONG: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "keep": (
        lambda folder: fl.Checkpointer(folder, keep=0),
        ValueError,
        "keep is a whole number, 1 or more, and was given as 0",
    ),
    "half a keep": (lambda folder: fl.Checkpointer(folder, keep=1.5), ValueError, "keep is a whole number, 1 or more"),  # type: ignore[arg-type]
    "every": (
        lambda folder: fl.Checkpointer(folder, every=0),
        ValueError,
        "every is a whole number, 1 or more, and was given as 0",
    ),
    "mode": (
        lambda folder: fl.Checkpointer(folder, mode="least"),
        ValueError,
        "mode is 'min' or 'max', and was given as 'least'",
    ),  # type: ignore[arg-type]
    "step": (lambda folder: fl.Checkpointer(folder).save(-1, tree(0)), ValueError, "step is a whole number, 0 or more"),
    "half a step": (lambda folder: fl.Checkpointer(folder).save(0.5, tree(0)), ValueError, "step is a whole number, 0 or more"),  # type: ignore[arg-type]
    "metrics": (
        lambda folder: fl.Checkpointer(folder).save(1, tree(0), {"a": "b"}),
        TypeError,
        "metrics is a mapping of names",
    ),
    "a list": (lambda folder: fl.Checkpointer(folder).save(1, tree(0), [1]), TypeError, "metrics is a mapping of names"),  # type: ignore[arg-type]
    "a tree": (lambda folder: fl.Checkpointer(folder).save(1, [object()]), TypeError, "what stands at 0 is a builtins.object"),
    "twins": (lambda folder: fl.Checkpointer(folder).save(1, {1: mx.array(1), "1": mx.array(1)}), ValueError, "the name '1'"),
    "nothing there": (
        lambda folder: fl.Checkpointer(folder).restore(LIKE),
        FileNotFoundError,
        "has no checkpoint; it has none at all",
    ),
    "no such step": (
        lambda folder: saved(folder, 1, 3).restore(LIKE, 2),
        FileNotFoundError,
        "has no checkpoint of step 2; it has 1, 3",
    ),
    "metrics of no step": (
        lambda folder: saved(folder, 1).metrics("1"),  # type: ignore[arg-type]
        ValueError,
        "step is a whole number, 0 or more, and was given as '1'",
    ),
    "no metrics": (lambda folder: saved(folder, 1).metrics(2), fl.CheckpointError, "has no checkpoint of step 2; it has 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_an_error(name: str, tmp_path: Path) -> None:
    call, kind, reason = WRONG[name]
    with pytest.raises(kind, match=reason):
        call(tmp_path)


def test_no_checkpoint_is_a_checkpoint_error_too(tmp_path: Path) -> None:
    with pytest.raises(fl.CheckpointError, match=f"{tmp_path} has no checkpoint"):
        fl.Checkpointer(tmp_path).restore(LIKE)


# In the background


@contextmanager
def slow(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> Iterator[list[str]]:
    """Return a context in which writing waits for its end, and fails if there is an error; its value is what was written."""
    begun, go, write, written = threading.Event(), threading.Event(), module.write, []

    def held(file: str, given: Any) -> None:
        begun.set()
        go.wait()
        if error is not None:
            raise error
        write(file, given)
        written.append(os.path.basename(file)[:13])

    with monkeypatch.context() as patch:
        patch.setattr(module, "write", held)
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
        assert checkpoints._thread is not None
        assert not checkpoints._thread.daemon
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
        thread = checkpoints._thread
    assert thread is not None
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
        "import sys, time, mlx.core as mx, frostleaf as fl; from frostleaf.io import checkpointer; write = checkpointer.write\n"
        "checkpointer.write = lambda *given: (time.sleep(0.2), write(*given))\n"
        + call.format("fl.Checkpointer(sys.argv[1]).save(1, {'w': mx.full(3, 1.0)})")
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert restored(tmp_path) == 1


# Broken checkpoints


@pytest.mark.parametrize("place", [-1, 40, 0], ids=["array", "header", "length"])
def test_a_broken_newest_is_passed_over_with_a_warning(place: int, tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path, 3, place)
    file = tmp_path / "step-00000003.safetensors"
    with pytest.warns(RuntimeWarning, match=f"the checkpoint of step 3 is passed over: {file}: ") as caught:
        assert restored(tmp_path) == 2
    assert caught[0].filename == __file__
    with pytest.raises(fl.CheckpointError, match=f"{file}: "):
        restored(tmp_path, 3)
    assert restored(tmp_path, 1) == 1


def test_a_newest_that_the_disk_can_not_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1, 2)

    def failing(function: Any) -> Any:
        def call(file: str, *rest: Any) -> Any:
            if "step-00000002" in file:
                raise OSError(errno.EIO, "Input/output error", file)
            return function(file, *rest)

        return call

    for name in ("load", "load_metadata"):
        monkeypatch.setattr(module, name, failing(getattr(module, name)))
    with pytest.warns(RuntimeWarning, match="step 2 is passed over: .*Input/output error"):
        assert restored(tmp_path) == 1
    assert saved(tmp_path, 3).steps() == [1, 2, 3]


@pytest.mark.parametrize("metadata", [{}, {"saved": "x"}, {"saved": 1, "metrics": "ab"}, {"saved": 1, "metrics": [1]}], ids=str)
def test_a_file_that_somebody_else_wrote_is_a_checkpoint_too(metadata: Any, tmp_path: Path) -> None:
    fl.save(tmp_path / "step-00000001.safetensors", tree(1), metadata)
    assert restored(tmp_path) == 1
    assert saved(tmp_path, 2, keep=1, best="loss").steps() == [2]


def test_if_all_are_broken_each_is_named(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    damage(tmp_path, 1)
    os.unlink(tmp_path / "step-00000002.safetensors")
    os.mkdir(tmp_path / "step-00000002.safetensors")
    with (
        pytest.warns(RuntimeWarning, match="is passed over"),
        pytest.raises(fl.CheckpointError, match=r"has no checkpoint that can be restored:\n.*\n.*") as caught,
    ):
        restored(tmp_path)
    assert "step-00000001.safetensors: array 'w' is damaged" in str(caught.value)
    assert "step-00000002.safetensors: is not a file" in str(caught.value)


def test_a_checkpoint_of_another_tree_is_not_passed_over(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    checkpoints.save(2, {"v": mx.zeros(3)})
    with pytest.raises(
        fl.CheckpointError, match=r"step-00000002\.safetensors: the tree in the file doesn't have the structure"
    ):
        checkpoints.restore(LIKE)


def test_a_checkpoint_that_is_removed_while_it_is_looked_for_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1, 2)
    load = module.load

    def removing(file: str, like: Any) -> Any:
        with_step_2 = str(tmp_path / "step-00000002.safetensors")
        if file == with_step_2:
            os.unlink(file)
        return load(file, like)

    monkeypatch.setattr(module, "load", removing)
    assert restored(tmp_path) == 1


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    others = [
        "step-1.safetensors",
        "step-0000000001.safetensors",
        "step-00000001.safetensors.bak",
        "notes",
        "step-.safetensors",
        "1",
    ]
    for name in others:
        (tmp_path / name).write_text("text")
    assert saved(tmp_path, 1, 2, keep=1).steps() == [2]
    assert {*others, "step-00000002.safetensors", ".frostleaf-lock"} == set(os.listdir(tmp_path))


# Going on, and going back


def test_a_run_that_is_started_again_prunes_what_was_left(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    again = fl.Checkpointer(tmp_path)
    assert again.restore(LIKE)[0] == 3
    again.save(4, tree(4))
    assert again.steps() == [2, 3, 4]


def test_what_somebody_removed_is_not_one_of_those_that_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, keep=2)
    (tmp_path / "step-00000003.safetensors").unlink()
    checkpoints.save(4, tree(4))
    assert checkpoints.steps() == [2, 4]


def test_starting_from_nothing_in_a_directory_with_checkpoints_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    forgetful = fl.Checkpointer(tmp_path)
    with pytest.raises(fl.CheckpointError, match=f"step 0 comes before step 3, which is in {tmp_path} already.*restore"):
        forgetful.save(0, tree(0))
    assert files(tmp_path) == [1, 2, 3]
    forgetful.save(3, tree(3))  # the same step is no step back
    assert forgetful.steps() == [1, 2, 3]


def test_going_back_makes_the_newest_what_was_saved_last(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20, 30)
    assert checkpoints.restore(LIKE, 10)[0] == 10
    checkpoints.save(11, tree(11))
    assert checkpoints.steps() == [11, 20, 30]
    assert restored(tmp_path) == 11
    checkpoints.save(12, tree(12))
    checkpoints.save(13, tree(13))
    assert checkpoints.steps() == [11, 12, 13]


def test_a_clock_that_was_put_back_does_not_change_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)
    monkeypatch.setattr(module.time, "time_ns", lambda: 0)
    checkpoints.save(2, tree(2))
    assert checkpoints.restore(LIKE)[0] == 2


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
    one, other = saved(tmp_path, 1, keep=1), saved(tmp_path, 0, keep=1)
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


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_can_not_be_copied(copied: Callable[[Any], Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a Checkpointer has a lock and a thread, which can't be copied or pickled"):
        copied(fl.Checkpointer(tmp_path))


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


# Exact resume


def test_going_on_in_a_new_process_computes_what_going_on_here_does(tmp_path: Path) -> None:
    straight = go_on(start(), 20)
    half = go_on(start(), 10)
    with fl.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(10, half)
    subprocess.run([sys.executable, runs.__file__, tmp_path], check=True)
    step, resumed = fl.Checkpointer(tmp_path).restore(fl.eval_shape(start))
    assert step == 20
    assert fl.tree.equal(resumed, straight)
    # Dropout and the batches are drawn at random, so a random state that was not carried over would show.
    other = go_on({**half, "random": mx.random.key(0)}, 10)
    assert not fl.tree.equal(other["model"], straight["model"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fl.tree.equal(go_on(half, 10), straight)
