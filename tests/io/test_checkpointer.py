"""Checkpoints of a run: pruned, found again, and gone on from exactly."""

from __future__ import annotations

import copy
import errno
import math
import os
import pickle
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import runs
from checkpoints import LIKE, damage, files, restored, saved, tree
from runs import go_on, start

import frostleaf as fl
from frostleaf.io import checkpointer as module
from frostleaf.io import directory


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


@pytest.mark.parametrize("step", [np.int64(1), mx.array(1)], ids=lambda step: type(step).__name__)
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
    "not the best": (
        lambda folder: fl.Checkpointer(folder, best="loss").save(1, tree(0), {"acc": 1}),
        ValueError,
        "best='loss' is not among the metrics acc",
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


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_can_not_be_copied(copied: Callable[[Any], Any], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a Checkpointer has a lock and a thread, which can't be copied or pickled"):
        copied(fl.Checkpointer(tmp_path))


# Broken checkpoints


@pytest.mark.parametrize("place", [-1, 40, 0], ids=["array", "header", "length"])
def test_a_broken_newest_is_passed_over_with_a_warning(place: int, tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    damage(tmp_path, 3, place)
    file = tmp_path / "step-00000003.safetensors"
    with pytest.warns(RuntimeWarning, match=f"the checkpoint of step 3 is passed over: {file}: ") as caught:
        assert fl.tree.equal(fl.Checkpointer(tmp_path).restore(LIKE), (2, tree(2)))
    assert caught[0].filename == __file__
    with pytest.raises(fl.CheckpointError, match=f"{file}: "):
        restored(tmp_path, 3)
    assert restored(tmp_path, 1) == 1


def test_a_newest_that_the_disk_can_not_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1, 2)

    def failing(function: Any) -> Any:
        def call(file: str, *rest: Any, **options: Any) -> Any:
            if "step-00000002" in file:
                raise OSError(errno.EIO, "Input/output error", file)
            return function(file, *rest, **options)

        return call

    for owner, name in ((module, "read"), (directory, "load_metadata"), (directory, "read_summary")):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
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
    read = module.read

    def removing(file: str, *rest: Any) -> Any:
        with_step_2 = str(tmp_path / "step-00000002.safetensors")
        if file == with_step_2:
            os.unlink(file)
        return read(file, *rest)

    monkeypatch.setattr(module, "read", removing)
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
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    checkpoints.save(2, tree(2))
    assert checkpoints.restore(LIKE)[0] == 2


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


def test_a_checkpoint_that_can_not_be_removed_is_no_failed_save_and_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def refuse(path: Any) -> None:
        if path.endswith("step-00000001.safetensors"):
            raise PermissionError(path)
        unlink(path)

    with fl.Checkpointer(tmp_path, keep=1) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refuse)
            for step in (1, 2, 3):
                checkpoints.save(step, {"w": mx.array(step)})
            assert checkpoints.steps() == [1, 3]
        checkpoints.save(4, {"w": mx.array(4)})
        assert checkpoints.steps() == [4]


@pytest.mark.filterwarnings("ignore:the checkpoint of step")
def test_many_damaged_checkpoints_are_each_read_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    load_metadata = directory.load_metadata
    monkeypatch.setattr(directory, "load_metadata", lambda path: read.append(path) or load_metadata(path))
    for step in range(50):
        (tmp_path / f"step-{step:08d}.safetensors").write_bytes(b"damaged")
    with pytest.raises(fl.CheckpointError, match=r"no checkpoint that can be restored") as caught:
        fl.Checkpointer(tmp_path).restore({"w": mx.zeros(1)})
    assert len(read) <= 2 * 50
    assert str(caught.value).endswith(" and 42 more")
    fl.save(tmp_path / "step-00000003.safetensors", {"w": mx.ones(1)})
    assert fl.Checkpointer(tmp_path).restore({"w": mx.zeros(1)})[0] == 3


def test_a_step_under_a_name_of_more_digits_is_none(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / "step-000000001.safetensors").write_bytes((tmp_path / "step-00000001.safetensors").read_bytes())
    assert checkpoints.steps() == [1]
    assert [each.step for each in checkpoints.info()] == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda checkpoints: checkpoints.save(0, model=1, state=2), "save(step, {'model': model, 'state': state})"),
        (lambda checkpoints: checkpoints.save(0), "save() takes a step and a tree: write save(step, tree)"),
        (lambda checkpoints: checkpoints.save({"w": mx.zeros(1)}), "save() takes a step and a tree: write save(step, tree)"),
        (lambda checkpoints: checkpoints.restore(), "restore(like) takes as like a tree of the structure that was saved"),
        (lambda checkpoints: checkpoints.restore(step=1), "restore(like) takes as like a tree of the structure that was saved"),
    ],
)
def test_a_tree_that_is_left_out_is_asked_for(call: Any, message: str, tmp_path: Path) -> None:
    checkpoints = fl.Checkpointer(tmp_path)
    with pytest.raises(TypeError, match=re.escape(message)):
        call(checkpoints)
    assert checkpoints.steps() == []


def test_what_the_advice_names_works(tmp_path: Path) -> None:
    like = {"w": mx.zeros(1)}
    with fl.Checkpointer(tmp_path, best="loss") as checkpoints:
        for step, loss in ((1, 0.1), (2, 0.3)):
            checkpoints.save(step, {"w": mx.array([float(step)])}, {"loss": loss})
        assert checkpoints.restore(like, step=checkpoints.best_step())[0] == 1
        assert checkpoints.latest_step() == 2
