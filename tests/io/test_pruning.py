"""Which checkpoints are kept, whatever earlier runs kept, and whichever of them can't be read."""

from __future__ import annotations

import gc
import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import LIKE, damage, files, left_over, restored, saved, tree
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import law

import frostleaf as fl
from frostleaf.io.known import KnownArrays


def losses(step: int) -> dict[str, float]:
    return {"loss": abs(step - 2.0), "accuracy": float(step % 3)}


@pytest.mark.parametrize(
    ("again", "left"),
    [
        ({}, [2, 5]),
        ({"best": "loss"}, [2, 5]),
        ({"best": "loss", "mode": "max"}, [2, 5]),
        ({"best": "accuracy", "mode": "max"}, [2, 5]),
        ({"keep": 2}, [2, 4, 5]),
    ],
)
def test_what_an_earlier_run_kept_as_its_best_stays(again: dict[str, Any], left: list[int], tmp_path: Path) -> None:
    with saved(tmp_path, 1, 2, 3, keep=1, best="loss", metrics=losses):
        pass
    assert files(tmp_path) == [2, 3]
    options = {"keep": 1, **again}
    for step in (4, 5):
        with fl.Checkpointer(tmp_path, **options) as checkpoints:
            checkpoints.restore(LIKE)
            checkpoints.save(step, tree(step), losses(step))
    assert files(tmp_path) == left


def test_the_best_of_one_run_is_replaced_by_a_better_one_of_a_later(tmp_path: Path) -> None:
    for step in (4, 3, 2):
        with fl.Checkpointer(tmp_path, keep=1, best="loss") as checkpoints:
            checkpoints.save(10 - step, tree(step), {"loss": step})
    assert files(tmp_path) == [8]


@law
@given(
    st.lists(st.one_of(st.none(), st.just(math.nan), st.integers(-3, 3)), max_size=12),
    st.integers(1, 4), st.integers(1, 4), st.sampled_from(["min", "max"]), st.integers(0, 12),
)  # fmt: skip
def test_the_best_and_the_latest_are_kept(losses: list[Any], keep: int, keep_best: int, mode: Any, again: int) -> None:
    """They are, whatever the metrics, and if another run goes on after some steps."""
    options = {"keep": keep, "best": "loss", "mode": mode, "keep_best": keep_best}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, there = fl.Checkpointer(folder, **options), set[int]()
        for step, loss in enumerate(losses):
            if step == again:
                checkpoints.__exit__(None, None, None)
                checkpoints = fl.Checkpointer(folder, **options)
            checkpoints.save(step, {"n": step}, None if loss is None else {"loss": loss})
            numbers = {each: number for each in (*there, step) if (number := losses[each]) is not None and number == number}
            best = sorted(numbers, key=lambda each: (numbers[each] if mode == "min" else -numbers[each], each))[:keep_best]
            there = {*sorted({*there, step})[-keep:], *best}
            assert {*checkpoints.steps()} == there
            assert checkpoints.best_step() == (best[0] if best else None)


def test_fewer_best_ones_are_kept_by_a_run_that_keeps_fewer(tmp_path: Path) -> None:
    def save(steps: range, **options: Any) -> list[int]:
        with fl.Checkpointer(tmp_path, keep=1, best="loss", **options) as checkpoints:
            for step in steps:
                checkpoints.save(step, tree(step), {"loss": step % 5})
        return files(tmp_path)

    assert save(range(4), keep_best=3) == [0, 1, 2, 3]
    assert save(range(4, 6), keep_best=2) == [0, 5]
    with fl.Checkpointer(tmp_path, keep=1, best="accuracy") as checkpoints:
        checkpoints.save(6, tree(6), {"accuracy": 1})
    assert files(tmp_path) == [0, 5, 6]


@pytest.mark.parametrize(("options", "reason"), [
    ({"keep_best": 0, "best": "loss"}, "keep_best is a whole number, 1 or more"),
    ({"keep_best": 2}, r"keep_best=2 needs the name of the metric that says which are best: best='loss'"),
])  # fmt: skip
def test_how_many_best_ones_are_kept_is_a_number_of_those_with_a_metric(options: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        fl.Checkpointer(tmp_path, **options)


def test_metrics_that_are_given_as_arguments_are_told_where_to_write_them(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=re.escape("save() takes no argument 'loss': give metrics={'loss': ..., 'b': ...}")):
        fl.Checkpointer(tmp_path).save(1, LIKE, loss=0.3, b=2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"force": True}, "leave every= out of Checkpointer(...), and call save for the steps to save"),
        ({"args": 1}, "give one tree"),
        ({"items": {}}, "give one tree"),
        ({"save_kwargs": {}}, "give one tree"),
    ],
)
def test_arguments_of_save_of_other_libraries_are_told_of_ours(given: Any, words: str, tmp_path: Path) -> None:
    checkpoints: Any = fl.Checkpointer(tmp_path, every=5)
    for trees in ([LIKE], []):
        with pytest.raises(TypeError, match=re.escape(f"save() takes no argument {next(iter(given))!r}: {words}")):
            checkpoints.save(7, *trees, **given)
    assert checkpoints.steps() == []


@pytest.mark.parametrize(("given", "words"), [({"args": 1}, "give restore(like)"), ({"other": 1}, "its arguments are like,")])
def test_arguments_of_restore_of_other_libraries_are_told_of_ours(given: Any, words: str, tmp_path: Path) -> None:
    checkpoints: Any = fl.Checkpointer(tmp_path)
    with pytest.raises(TypeError, match=re.escape(f"restore() takes no argument {next(iter(given))!r}: {words}")):
        checkpoints.restore(7, **given)


def test_a_last_step_that_is_no_multiple_is_saved_as_the_message_says(tmp_path: Path) -> None:
    last = 7
    with fl.Checkpointer(tmp_path, keep=None) as checkpoints:
        for step in range(last + 1):
            if step % 5 == 0 or step == last:
                checkpoints.save(step, LIKE)
    assert files(tmp_path) == [0, 5, 7]


def test_multiples_of_a_period_stay_in_a_second_directory_as_the_message_says(tmp_path: Path) -> None:
    with fl.Checkpointer(tmp_path / "a", keep=1) as latest, fl.Checkpointer(tmp_path / "b", keep=None, every=2) as kept:
        for step in range(4):
            for checkpoints in (latest, kept):
                checkpoints.save(step, LIKE)
    assert (files(tmp_path / "a"), files(tmp_path / "b")) == ([3], [0, 2])


@pytest.mark.parametrize("place", [-1, 20])
def test_a_broken_checkpoint_does_not_count_as_kept(place: int, tmp_path: Path) -> None:
    with saved(tmp_path, 1, 2, 3, keep=2):
        pass
    damage(tmp_path, 3, place)
    with fl.Checkpointer(tmp_path, keep=2) as checkpoints:
        with pytest.warns(RuntimeWarning, match="the checkpoint of step 3 is passed over"):
            assert checkpoints.restore(LIKE)[0] == 2
        checkpoints.save(4, tree(4))
        checkpoints.wait()
        assert {2, 4} <= {*files(tmp_path)}
        checkpoints.save(5, tree(5))
    assert files(tmp_path) == [4, 5]


@pytest.mark.parametrize("best", [min, True, ("loss",)])
def test_the_best_is_chosen_by_the_name_of_a_metric(best: Any, tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"best is the name of a metric, such as best='loss' with mode='min', and was given as "
    ):
        fl.Checkpointer(tmp_path, best=best)


def test_nothing_is_created_before_something_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fl.Checkpointer(tmp_path / "mistyped") as checkpoints:
        assert checkpoints.steps() == []
        assert not checkpoints.info()
        with pytest.raises(fl.NoCheckpointError, match="it has none at all, as there is no such directory"):
            checkpoints.restore(LIKE)
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    with fl.Checkpointer("~/runs/one") as checkpoints:
        checkpoints.save(1, {"w": mx.zeros(3)})
    assert files(tmp_path / "runs" / "one") == [1]


def test_the_latest_step_is_the_one_that_was_saved_last(tmp_path: Path) -> None:
    assert fl.Checkpointer(tmp_path).latest_step() is None
    with saved(tmp_path, 1, 2, 9, keep=None) as checkpoints:
        assert checkpoints.latest_step() == 9
        checkpoints.restore(LIKE, 2)
        checkpoints.save(3, tree(3))
        assert (checkpoints.latest_step(), checkpoints.steps()[-1]) == (3, 9)
        assert checkpoints.restore(LIKE)[0] == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("all_steps", "write steps()"),
        ("wait_until_finished", "write wait()"),
        ("close", "write wait(), or use it in a with block"),
        ("latest", "write latest_step(), or restore(like)"),
        ("best", "write best_step()"),
        ("restore_best", "write restore(like, step=checkpoints.best_step())"),
    ],
)
def test_names_of_other_libraries_are_told_of_ours(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match=re.escape(f"Checkpointer has no attribute {name!r}: {words}")):
        getattr(fl.Checkpointer(tmp_path), name)
    assert not hasattr(fl.Checkpointer(tmp_path), "other")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("max_to_keep", ": give keep"),
        ("save_total_limit", ": give keep"),
        ("keep_n_best", ": give keep_best"),
        ("metric_for_best_model", ": give best, the name"),
        ("async_save", ": leave it out"),
        ("best_fn", ": give best, the name"),
        ("every_n_train_steps", ": give every"),
        ("save_best_only", ": give best, the name of a metric, and keep=1"),
        ("monitor", ": give best, the name"),
        ("metric", ": give best, the name"),
        ("dirpath", ": give it first, as directory"),
        ("prefix", ": leave it out: the files are step-00000010.safetensors"),
        ("cleanup", ": leave it out"),
        ("keep_period", ": save these with a second Checkpointer as well"),
        ("keeps", "; the nearest is 'keep'"),
        ("other", ""),
    ],
)
def test_arguments_of_other_libraries_are_told_of_ours(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=re.escape(f"Checkpointer() takes no argument {name!r}{words}")):
        fl.Checkpointer(tmp_path, **{name: 3})


def test_what_is_dropped_is_forgotten_without_a_line_of_python_and_told_briefly() -> None:
    known = KnownArrays()
    arrays = {"w": mx.ones(3), "v": mx.zeros(3)}
    watched = known._watch(arrays, {name: mx.zeros(3) for name in arrays})
    for object, memory in watched.values():
        known._hold(object, memory, None)
        assert len(repr(object.__callback__)) < 200
    assert len(known._held) == 2
    called: list[str] = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    try:
        arrays.clear()
    finally:
        sys.setprofile(None)
    assert not known._held
    assert not called


def test_where_no_array_differs_that_is_what_is_said(tmp_path: Path) -> None:
    layer = fl.nn.Linear(2, 2)
    checkpoints = fl.Checkpointer(tmp_path)
    checkpoints.save(1, {"layer": layer, "n": 1})
    checkpoints.save(2, {"layer": layer.freeze(), "n": 2})
    checkpoints.save(3, {"layer": layer.freeze(), "n": 2, "w": mx.array(1)})
    assert not checkpoints.diff(1, 2)
    assert str(checkpoints.diff(1, 2)) == repr(checkpoints.diff(1, 2)) == "no array differs"
    assert "no array differs" in checkpoints.diff(1, 2)._repr_html_()
    assert str(checkpoints.diff(2, 3)) == "w: added nothing -> i32[]"
    assert isinstance(checkpoints.diff(1, 2), fl.tree.Diff)


@pytest.mark.parametrize("waits", [False, True])
def test_a_step_stays_as_long_as_one_of_the_checkpointers_of_a_process_wants_it(waits: bool, tmp_path: Path) -> None:
    by_loss = fl.Checkpointer(tmp_path, keep=1, best="loss")
    by_accuracy = fl.Checkpointer(tmp_path, keep=1, best="accuracy", mode="max")
    milestones = fl.Checkpointer(tmp_path, keep=None, every=5)
    for step in range(13):
        given = [{"loss": abs(step - 3)}, {"accuracy": -abs(step - 6)}, None]
        for checkpoints, metrics in zip((by_loss, by_accuracy, milestones), given, strict=True):
            checkpoints.save(step, tree(step), metrics)
            if waits:
                checkpoints.wait()
    for checkpoints in (by_loss, by_accuracy, milestones):
        checkpoints.wait()
    wanted = {0, 3, 5, 6, 10, 12}
    assert wanted <= {*by_loss.steps()} <= {*wanted, 11}  # which goes when the one who saved it last saves again
    assert (by_loss.best_step(), by_accuracy.best_step()) == (3, 6)
    assert milestones.metrics(10) == {"loss": 7, "accuracy": -4}
    assert not left_over(tmp_path)
    for step in by_loss.steps():
        assert restored(tmp_path, step) == step


def test_what_a_checkpointer_wanted_goes_when_that_is_dropped(tmp_path: Path) -> None:
    checkpoints, other = fl.Checkpointer(tmp_path, keep=1), fl.Checkpointer(tmp_path, keep=None)
    for step in range(3):
        for each in (checkpoints, other):
            each.save(step, tree(step))
            each.wait()
    del each, other
    gc.collect()
    for step in range(3, 5):
        checkpoints.save(step, tree(step))
    checkpoints.wait()
    assert checkpoints.steps() == [0, 1, 2, 4]  # of a Checkpointer that is gone, as those of another process
