"""Checkpoints write what has changed: how many bytes that is, whatever told them so, and that it is right."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import as_before, left_over, nbytes

import frostleaf as fl
from frostleaf.io import known, safetensors, shards, sharing
from frostleaf.io.sharded import read_index

KIB = 1024
INDEX = 64 * KIB  # what names, headers and indices may take


def numbers(*seed: int, size: int = 8 * KIB) -> mx.array:
    """Return an array of ``4 * size`` bytes."""
    return mx.array(np.random.default_rng((len(seed), *seed)).random(size, np.float32))


def tree_of(step: int) -> dict[str, Any]:
    """Return a tree of which a part is the same at all steps."""
    return {
        "backbone": {name: numbers(0, number) for number, name in enumerate("abcdefgh")},
        "head": numbers(step),
        "step": step,
    }


def copied(tree: Any) -> Any:
    """Return an equal tree of other arrays."""
    return fl.tree.map(lambda array: mx.array(np.array(array)), tree)


def save(checkpoints: fl.Checkpointer, step: int, tree: Any) -> int:
    """Save a tree and return by how much what the directory holds has grown."""
    folder = Path(checkpoints._directory.path)
    before = nbytes(folder)
    assert checkpoints.save(step, tree)
    checkpoints.wait()
    assert not left_over(folder)
    return nbytes(folder) - before


def check(checkpoints: fl.Checkpointer, trees: dict[int, Any]) -> None:
    """Check that a directory has these steps and nothing else, and that all of them can be restored."""
    folder = Path(checkpoints._directory.path)
    assert checkpoints.steps() == [*trees]
    assert not left_over(folder)
    for step, tree in trees.items():
        assert fl.tree.equal(fl.Checkpointer(folder).restore({**tree, "step": 0}, step), (step, tree))


# How many bytes


@pytest.mark.parametrize("same", [lambda tree: tree, copied], ids=["the same objects", "equal ones"])
def test_what_has_not_changed_is_written_once(same: Callable[[Any], Any], tmp_path: Path) -> None:
    checkpoints, trees = fl.Checkpointer(tmp_path, keep=2), {step: tree_of(step) for step in range(6)}
    changing = trees[0]["head"].nbytes
    assert save(checkpoints, 0, trees[0]) > 8 * changing
    for step in range(1, 6):
        trees[step] = {**same(trees[step - 1]), "head": trees[step]["head"], "step": step}
        grown = save(checkpoints, step, trees[step])
        assert grown <= changing + INDEX
        check(checkpoints, {each: trees[each] for each in (step - 1, step)})
    assert nbytes(tmp_path) <= 11 * changing + INDEX  # the first head is in the file with the backbone


def test_what_is_frozen_has_a_file_of_its_own(tmp_path: Path) -> None:
    def begin() -> Any:
        model = fl.nn.Sequential(*[fl.nn.Linear(64, 64, key=mx.random.key(number)) for number in range(20)])
        model = model.with_frozen([f"layers.{number}" for number in range(19)])
        return {"model": model, "state": optimizer.init(model), "step": 0}

    optimizer = fl.optim.Adam(1e-3)
    checkpoints, tree = fl.Checkpointer(tmp_path, keep=1), begin()
    save(checkpoints, 0, tree)
    layer = fl.tree.nbytes(tree["model"].layers[0])
    changing = fl.tree.nbytes((tree["model"].layers[19], tree["state"]))
    for step in range(1, 4):
        gradients = fl.grad(lambda model: sum(array.sum() for array in fl.tree.leaves(model)) * step)(tree["model"])  # noqa: B023
        model, state = optimizer.update(tree["model"], gradients, tree["state"])
        tree = {"model": model, "state": state, "step": step}
        fl.eval(tree)
        before = nbytes(tmp_path)
        save(checkpoints, step, tree)
        check(checkpoints, {step: tree})
        # What only the checkpoint before needed is gone: neither its trained layer nor its state is left.
        assert abs(nbytes(tmp_path) - (19 * layer + changing)) < INDEX
        assert nbytes(tmp_path) - before < INDEX


def test_a_tree_in_which_nothing_changes_takes_the_bytes_of_one(tmp_path: Path) -> None:
    model = fl.nn.Linear(256, 256)
    checkpoints = fl.Checkpointer(tmp_path, keep=None)
    for step in range(5):
        save(checkpoints, step, {"model": model, "step": step})
    check(checkpoints, {step: {"model": model, "step": step} for step in range(5)})
    assert nbytes(tmp_path) < fl.tree.nbytes(model) + INDEX


def test_a_run_that_goes_on_knows_what_it_has_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trees = {step: tree_of(step) for step in range(3)}
    save(fl.Checkpointer(tmp_path), 0, trees[0])
    again = fl.Checkpointer(tmp_path)
    _, restored = again.restore(trees[0])
    looked_at = count_checksums(monkeypatch)
    assert save(again, 1, {**restored, "head": trees[1]["head"], "step": 1}) < trees[1]["head"].nbytes + INDEX
    assert looked_at == [trees[1]["head"].shape]
    forgetful = fl.Checkpointer(tmp_path)  # which compares with the last one
    assert save(forgetful, 2, trees[2]) < trees[1]["head"].nbytes + INDEX
    check(forgetful, trees)


def test_of_a_part_that_is_restored_only_that_is_known(tmp_path: Path) -> None:
    trees = {step: tree_of(step) for step in range(2)}
    like = copied({**trees[0], "head": numbers(9)})
    save(fl.Checkpointer(tmp_path), 0, trees[0])
    again = fl.Checkpointer(tmp_path)
    _, restored = again.restore(like, where="backbone")
    assert fl.tree.equal(restored, {**trees[0], "head": like["head"]})
    assert restored["head"] is like["head"]
    save(again, 1, {**restored, "step": 1})
    check(again, {0: trees[0], 1: {**restored, "step": 1}})


def count_checksums(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list to which the shape of each array that a checksum is computed of will be added."""
    looked_at: list[tuple[int, ...]] = []
    compute = sharing.checksum_of
    monkeypatch.setattr(sharing, "checksum_of", lambda array: looked_at.append(array.shape) or compute(array))
    return looked_at


def test_an_object_that_was_written_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, tree = fl.Checkpointer(tmp_path, keep=1), tree_of(0)
    variants = [numbers(1), numbers(2)]
    save(checkpoints, 0, {**tree, "head": variants[0]})
    save(checkpoints, 1, {**tree, "head": variants[1], "step": 1})
    looked_at = count_checksums(monkeypatch)
    for step in range(2, 5):
        save(checkpoints, step, {**tree, "head": variants[1], "step": step})
        check(checkpoints, {step: {**tree, "head": variants[1], "step": step}})
    assert not looked_at


def test_what_is_left_of_a_file_that_changed_is_written_again_when_it_is_little(tmp_path: Path) -> None:
    checkpoints = fl.Checkpointer(tmp_path, keep=1)
    still, size = numbers(0), numbers(0).nbytes
    for step in range(5):
        tree = {"a": numbers(1, step), "b": numbers(2, step), "still": still, "step": step}
        grown = save(checkpoints, step, tree)
        check(checkpoints, {step: tree})
        assert nbytes(tmp_path) < 3 * size + INDEX
    assert grown < INDEX


# When it may not be shared


CHANGES: dict[str, Callable[[mx.array], Any]] = {
    "an element": lambda array: array.__setitem__(0, 7.0),
    "all of it": lambda array: array.__setitem__(slice(None), array * 2),
    "its order": lambda array: array.__setitem__(slice(None), array[::-1]),
    "its axes": lambda array: array.__setitem__(..., array.T),
    "by adding": lambda array: array.__iadd__(1),
    "and the memory used again": lambda array: (array.__iadd__(1), mx.eval(array), array.__iadd__(1), mx.eval(array)),
}


@pytest.mark.parametrize("evaluated", [True, False], ids=["evaluated", "not evaluated"])
@pytest.mark.parametrize("name", CHANGES)
def test_an_array_that_is_assigned_to_is_another(name: str, evaluated: bool, tmp_path: Path) -> None:
    checkpoints, array = fl.Checkpointer(tmp_path), numbers(0, size=16 * KIB).reshape(128, 128)
    trees = {}
    for step in range(4):
        save(checkpoints, step, {"array": array, "step": step})
        trees[step] = {"array": mx.array(np.array(array)), "step": step}
        CHANGES[name](array)
        if evaluated:
            mx.eval(array)
    del trees[0]
    check(checkpoints, trees)


def test_equal_checksums_are_not_enough(tmp_path: Path) -> None:
    start = np.random.default_rng(0).integers(0, 256, 16 * KIB, np.uint8)
    seen: dict[int, bytes] = {}
    so_far = zlib.crc32(start.tobytes())
    for number in range(1_000_000):
        end = np.array([number * 2654435761 % 2**61], np.uint64).tobytes()
        checksum = zlib.crc32(end, so_far)
        if seen.setdefault(checksum, end) != end:
            break
    one, other = (mx.array(np.frombuffer(start.tobytes() + each, np.uint8)) for each in (seen[checksum], end))
    assert not mx.array_equal(one, other)
    checkpoints = fl.Checkpointer(tmp_path)
    trees = {0: {"a": one, "step": 0}, 1: {"a": other, "step": 1}}
    for step, tree in trees.items():
        save(checkpoints, step, tree)
    check(checkpoints, trees)


@pytest.mark.parametrize("other", [lambda x: x.reshape(2, -1), lambda x: x.view(mx.int32)], ids=["shape", "dtype"])
def test_equal_bytes_of_another_shape_or_dtype_are_another_array(other: Any, tmp_path: Path) -> None:
    checkpoints = fl.Checkpointer(tmp_path)
    trees = {0: {"a": numbers(0), "step": 0}}
    trees[1] = {"a": other(trees[0]["a"]), "step": 1}
    for step, tree in trees.items():
        save(checkpoints, step, tree)
    check(checkpoints, trees)


def test_an_array_under_another_name_is_written_again_for_other_programs(tmp_path: Path) -> None:
    checkpoints, array = fl.Checkpointer(tmp_path), numbers(0)
    save(checkpoints, 0, {"a": array, "step": 0})
    save(checkpoints, 1, {"b": array, "step": 1})
    assert fl.tree.equal(checkpoints.restore({"b": array, "step": 0}), (1, {"b": array, "step": 1}))


def test_what_the_caller_drops_is_let_go(tmp_path: Path) -> None:
    checkpoints, tree = fl.Checkpointer(tmp_path), tree_of(0)
    total = fl.tree.nbytes(tree)
    mx.clear_cache()
    before = mx.get_active_memory()
    save(checkpoints, 0, tree)
    tree = {**tree, "head": numbers(1)}
    save(checkpoints, 1, tree)
    assert abs(mx.get_active_memory() - before) < 4 * KIB
    del tree
    assert mx.get_active_memory() <= before - total + 4 * KIB
    restored = checkpoints.restore(fl.eval_shape(lambda: tree_of(0)))
    assert mx.get_active_memory() > before - total + 16 * KIB
    del restored
    assert mx.get_active_memory() <= before - total + 4 * KIB


# What may happen to the files


def test_files_that_are_gone_or_others_are_written_again(tmp_path: Path) -> None:
    checkpoints, tree = fl.Checkpointer(tmp_path), tree_of(0)
    trees = {step: {**tree, "head": numbers(step), "step": step} for step in range(5)}
    save(checkpoints, 0, trees[0])
    (tmp_path / "step-00000000.safetensors").unlink()
    assert save(checkpoints, 1, trees[1]) > 8 * tree["head"].nbytes
    shard = next(tmp_path.glob("step-00000001-*/01.safetensors"))
    os.utime(shard, ns=(0, 0))  # as if somebody had written to it
    assert save(checkpoints, 2, trees[2]) > 8 * tree["head"].nbytes
    assert save(checkpoints, 3, trees[3]) < tree["head"].nbytes + INDEX
    check(checkpoints, {step: trees[step] for step in (1, 2, 3)})


@pytest.mark.parametrize("count", [3, 70])
def test_what_only_the_best_checkpoint_has_any_more_is_not_written_again(count: int, tmp_path: Path) -> None:
    checkpoints, still = fl.Checkpointer(tmp_path, keep=1, best="loss"), numbers(0)
    for step in range(count):
        checkpoints.save(step, {"still": still, "step": step}, {"loss": step}), checkpoints.wait()
    for step in range(count, count + 2):
        checkpoints.save(step, {"step": step}, {"loss": step}), checkpoints.wait()
    before = nbytes(tmp_path)
    checkpoints.save(count + 2, {"still": still, "step": 0}, {"loss": count}), checkpoints.wait()
    assert checkpoints.steps() == [0, count + 2]
    assert nbytes(tmp_path) - before < 16 * KIB
    assert not left_over(tmp_path)


def test_files_that_a_file_system_with_coarse_times_does_not_tell_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives a file the number of another that was removed within the same second."""
    for module in (known, shards):
        monkeypatch.setattr(module, "stamp_of", lambda status: (status.st_dev, 0, status.st_size, 0))
    checkpoints, tree = fl.Checkpointer(tmp_path, keep=None), {}
    for step, name in enumerate("abcdc"):
        tree[name] = numbers(step)
        save(checkpoints, step, tree)
        assert fl.tree.equal(checkpoints.restore(tree, step)[1], tree)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EMLINK, errno.EXDEV, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_without_hard_links_everything_is_written(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    checkpoints, tree = fl.Checkpointer(tmp_path, keep=2), tree_of(0)
    trees = {step: {**tree, "head": numbers(step), "step": step} for step in range(4)}
    reason = rf"no hard link could be made in {tmp_path} .*{os.strerror(number)}.*, so that checkpoints have arrays .* again"
    for step in (0, 1):
        checkpoints.save(step, trees[step])
    with pytest.warns(RuntimeWarning, match=reason) as caught:
        checkpoints.wait()
    assert [each.filename for each in caught] == [__file__]
    for step in (2, 3):  # of which nothing more is said
        save(checkpoints, step, trees[step])
    check(checkpoints, {step: trees[step] for step in (2, 3)})


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(tmp_path: Path) -> None:
    tree = tree_of(0)
    fl.save(tmp_path / "step-00000010.safetensors", {**tree, "step": 10}, {"step": 10, "saved": 1, "metrics": {"loss": 1}})
    checkpoints = fl.Checkpointer(tmp_path, keep=1)
    _, restored = checkpoints.restore(tree)
    assert save(checkpoints, 11, {**restored, "head": numbers(1), "step": 11}) <= INDEX  # step 10 is gone, and all but its name
    check(checkpoints, {11: {**tree, "head": numbers(1), "step": 11}})


def test_a_directory_in_which_files_are_beside_the_heads_is_gone_on_from(tmp_path: Path) -> None:
    trees = {step: {**tree_of(0), "head": numbers(step), "twin": None, "step": step} for step in range(5)}
    for tree in trees.values():
        tree["twin"] = tree["head"]
    with fl.Checkpointer(tmp_path, keep=None) as checkpoints:
        for step in range(3):
            save(checkpoints, step, trees[step])
    as_before(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    again = fl.Checkpointer(tmp_path, keep=3)
    assert [again.restore(trees[0], step)[1]["step"] for step in range(3)] == [0, 1, 2]
    assert [change.path for change in again.diff(1, 2)] == ["head", "twin"]
    assert sum(each.own for each in again.info()) + again.info()[1].shared == nbytes(tmp_path)
    _, restored = again.restore(trees[0])
    for step in (3, 4):
        new = {**restored, "head": trees[step]["head"], "twin": trees[step]["head"], "step": step}
        before = nbytes(tmp_path)
        again.save(step, new)
        again.wait()
        assert nbytes(tmp_path) - before < trees[0]["head"].nbytes + INDEX
    assert again.steps() == [2, 3, 4]
    for step in again.steps():
        assert fl.tree.equal(fl.Checkpointer(tmp_path).restore(trees[0], step), (step, trees[step]))
    again.save(5, {**trees[4], "step": 5}), again.save(6, {**trees[4], "step": 6})
    check(again, {4: trees[4], 5: {**trees[4], "step": 5}, 6: {**trees[4], "step": 6}})


def test_names_that_stay_are_written_once(tmp_path: Path) -> None:
    layers = fl.nn.Sequential(*[fl.nn.Linear(4, 4) for _ in range(300)])
    trees = {
        step: {"model": layers, "variant": layers.at("layers.0").freeze(), "head": numbers(step), "step": step}
        for step in range(5)
    }
    trees[3] = {**trees[3], "more": mx.zeros(1)}  # names change once, and back
    checkpoints = fl.Checkpointer(tmp_path, keep=None)
    save(checkpoints, 0, trees[0])
    names = fl.tree.nbytes(trees[0]["head"])
    for step in range(1, 5):
        assert (save(checkpoints, step, trees[step]) < names + 2 * KIB) == (step in (2, 4)), step
    again = fl.Checkpointer(tmp_path, keep=None)
    assert save(again, 5, {**again.restore(trees[0])[1], "step": 5}) < 2 * KIB
    for step, tree in trees.items():
        assert fl.tree.equal(again.restore({**tree, "step": 0}, step), (step, tree))
        assert step == 0 or fl.tree.equal(merged(tmp_path, step)["head"], tree["head"])
    for path in tmp_path.glob("*/tree.safetensors"):
        assert mx.load(str(path)) == {}


def test_files_of_names_that_are_links_or_others_are_written_again(tmp_path: Path) -> None:
    checkpoints = fl.Checkpointer(tmp_path, keep=None)
    for step in range(3):
        save(checkpoints, step, tree_of(step))
    (beside,) = tmp_path.glob("step-00000002-*")
    index = beside / "model.safetensors.index.json"
    index.rename(beside / "elsewhere")
    index.symlink_to("elsewhere")
    checkpoints.save(3, tree_of(3))
    checkpoints.wait()
    (beside,) = tmp_path.glob("step-00000003-*")
    assert not (beside / index.name).is_symlink()
    assert merged(tmp_path, 3).keys() == {*fl.tree.paths(tree_of(3))}


@pytest.mark.parametrize("keeps_links", [True, False])
def test_a_copy_of_the_directory_is_whole_and_can_be_gone_on_from(keeps_links: bool, tmp_path: Path) -> None:
    tree = tree_of(0)
    trees = {step: {**tree, "head": numbers(step), "step": step} for step in range(4)}
    with fl.Checkpointer(tmp_path / "here") as checkpoints:
        for step in range(3):
            save(checkpoints, step, trees[step])
    if keeps_links:
        (tmp_path / "here").rename(tmp_path / "there")
    else:
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        shutil.rmtree(tmp_path / "here")
    there = fl.Checkpointer(tmp_path / "there", keep=3)
    _, restored = there.restore(tree)
    assert save(there, 3, {**restored, "head": numbers(3), "step": 3}) <= tree["head"].nbytes + INDEX
    check(there, {step: trees[step] for step in (1, 2, 3)})


def test_one_checkpoint_can_be_taken_away_and_read_by_others(tmp_path: Path) -> None:
    model = fl.nn.Sequential(*[fl.nn.Linear(64, 64) for _ in range(4)]).at("layers.0").freeze()
    checkpoints = fl.Checkpointer(tmp_path / "here")
    (tmp_path / "there").mkdir()
    for step in range(3):
        model = model.replace(layers=(*model.layers[:3], fl.nn.Linear(64, 64)))
        save(checkpoints, step, model)
    shutil.copy(tmp_path / "here" / "step-00000002.safetensors", tmp_path / "there")
    (beside,) = (tmp_path / "here").glob("step-00000002-*")
    shutil.copytree(beside, tmp_path / "there" / beside.name)
    shutil.rmtree(tmp_path / "here")
    head, (index,) = tmp_path / "there" / "step-00000002.safetensors", (tmp_path / "there").glob("*/*.index.json")
    empty = fl.nn.Sequential(*[fl.nn.Linear(64, 64) for _ in range(4)])
    assert fl.tree.equal(fl.load(head, model), model)
    assert fl.tree.equal(empty.load_weights(str(index)).at("layers.0").freeze(), model)
    assert fl.tree.equal(empty.load_weights(str(head)).at("layers.0").freeze(), model)
    assert read_index(str(index)).keys() == {*fl.tree.paths(model)}
    (link := tmp_path / "link.safetensors").symlink_to(head)
    assert fl.tree.equal(fl.load(link, model), model)


def test_two_with_different_keep_share_and_remove_their_own(tmp_path: Path) -> None:
    tree = tree_of(0)
    one, other = fl.Checkpointer(tmp_path, keep=1), fl.Checkpointer(tmp_path, keep=3)
    trees = {step: {**tree, "head": numbers(step), "step": step} for step in range(12)}
    for step in range(0, 12, 2):
        save(one, step, trees[step])
        save(other, step + 1, trees[step + 1])
    check(one, {step: trees[step] for step in (7, 9, 10, 11)})
    assert nbytes(tmp_path) < 2 * 9 * tree["head"].nbytes + 4 * tree["head"].nbytes + 3 * INDEX


def test_a_step_that_is_saved_again_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    checkpoints, tree = fl.Checkpointer(tmp_path), tree_of(0)
    save(checkpoints, 0, tree)
    for number in range(3):
        again = {**tree, "head": numbers(number, 1), "step": 1}
        save(checkpoints, 1, again)
        check(checkpoints, {0: tree, 1: again})
    assert save(checkpoints, 1, {"small": mx.zeros(1)}) < 0
    assert len(os.listdir(tmp_path)) == 3


# What a directory has


def test_info_says_what_is_there_and_what_it_takes(tmp_path: Path) -> None:
    checkpoints, tree = fl.Checkpointer(tmp_path, best="loss"), tree_of(0)
    assert repr(checkpoints.info()) == "no checkpoints"
    for step in range(3):
        checkpoints.save(step, {**tree, "head": numbers(step), "step": step}, {"loss": step / 2})
    info = checkpoints.info()
    assert [(each.step, each.metrics) for each in info] == [(step, {"loss": step / 2}) for step in range(3)]
    size = tree["head"].nbytes
    assert [size * 9 <= each.shared < size * 9 + INDEX for each in info] == [True] * 3
    assert all(size <= each.own < size + INDEX for each in info[1:])
    # The last two have the shared index as well as the shared arrays.
    assert sum(each.own for each in info) + info[1].shared == nbytes(tmp_path)
    assert info[1].shared == info[2].shared
    assert info[0].saved <= info[2].saved
    assert info[0].saved.tzinfo is not None
    assert repr(info).split("\n")[1].endswith(f"{info[1].own:,} bytes, {info[1].shared:,} shared, loss=0.5")


def test_diff_says_which_arrays_changed(tmp_path: Path) -> None:
    checkpoints, tree = fl.Checkpointer(tmp_path), tree_of(0)
    save(checkpoints, 0, {**tree, "gone": mx.zeros(1), "cast": mx.zeros(3), "grown": mx.zeros(3), "a/b": mx.zeros(1)})
    later = {**tree, "head": numbers(1), "new": mx.zeros(2), "cast": mx.zeros(3, mx.float16), "grown": mx.zeros(4)}
    save(checkpoints, 1, {**later, "a/b": mx.ones(1), "step": 1})
    changes = checkpoints.diff(0, 1)
    assert {(change.path, change.kind) for change in changes} == {
        ("head", "value"), ("gone", "removed"), ("cast", "dtype"), ("grown", "shape"), ("a/b", "value"), ("new", "added"),
    }  # fmt: skip
    assert {(change.path, change.kind) for change in checkpoints.diff(1, 0)} >= {("gone", "added"), ("new", "removed")}
    assert not checkpoints.diff(1, 1)
    with pytest.raises(fl.NoCheckpointError, match="no checkpoint of step 7"):
        checkpoints.diff(0, 7)
    with pytest.raises(ValueError, match="other is a whole number"):
        checkpoints.diff(0, "1")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [*safetensors.DTYPES.values()], ids=str)
def test_diff_knows_every_dtype(dtype: mx.Dtype, tmp_path: Path) -> None:
    checkpoints = fl.Checkpointer(tmp_path)
    zero, one = ({"a": mx.array(number).astype(dtype, stream=mx.cpu)} for number in (0, 1))
    save(checkpoints, 0, zero), save(checkpoints, 1, one)
    assert [(change.path, change.kind) for change in checkpoints.diff(0, 1)] == [("a", "value")]


def test_restore_takes_what_both_have(tmp_path: Path) -> None:
    checkpoints, tree = fl.Checkpointer(tmp_path), tree_of(3)
    save(checkpoints, 3, tree)
    like = {"backbone": tree_of(0)["backbone"], "new": mx.zeros(2), "step": 0}
    step, restored, report = checkpoints.restore(like, strict=False)
    assert (step, report.left, report.new) == (3, ("head",), ("new",))
    assert fl.tree.equal(restored, {"backbone": tree["backbone"], "new": mx.zeros(2), "step": 3})
    step, restored, report = checkpoints.restore(like, 3, where="backbone.**", strict=False)
    assert restored["step"] == 0
    with pytest.raises(LookupError, match="selects nothing"):
        checkpoints.restore(like, where="spine.**")


# For other programs


def merged(folder: Path, step: int) -> dict[str, mx.array]:
    """Return what those read who load all files of an index in order, and keep the last of each name."""
    (index,) = folder.glob(f"step-{step:08d}-*/model.safetensors.index.json")
    weight_map = json.loads(index.read_text())["weight_map"]
    files = [str(index.parent / file) for file in sorted({*weight_map.values()})]
    arrays = {name: array for file in files for name, array in mx.load(file).items()}
    return {name: arrays[name] for name in sorted(weight_map)}


@pytest.mark.parametrize("kind", ["more is new", "one at a time", "back and forth"])
def test_those_who_load_every_file_and_keep_the_last_get_the_newest(kind: str, tmp_path: Path) -> None:
    changes = {
        "more is new": ["abcd", "aefghij", "", "k"],
        "one at a time": ["abcdefghijklmnop", *"abcdefghijklmnop"],
        "back and forth": ["abcdefgh", "a", "b", "-ab", "c", "-a", "d"],
    }
    checkpoints, tree, older = fl.Checkpointer(tmp_path, keep=None), {}, {}
    for step, names in enumerate(changes[kind]):
        new = {name: numbers(step, ord(name)) for name in names if name != "-"}
        new = {name: older[name] for name in new} if names.startswith("-") else new
        older |= {name: tree[name] for name in new if name in tree}
        tree = {**tree, **new}
        save(checkpoints, step, {**tree, "step": step})
        if step:
            assert fl.tree.equal(merged(tmp_path, step), tree)
    assert len({*tmp_path.glob(f"step-{step:08d}-*/*")}) > 2


def test_files_that_would_come_in_the_wrong_order_are_not_shared(tmp_path: Path) -> None:
    checkpoints, tree = (
        fl.Checkpointer(tmp_path, keep=None),
        {name: numbers(0, number) for number, name in enumerate("abcdefgh")},
    )
    save(checkpoints, 0, {**tree, "step": 0})
    newer = {**tree, "a": numbers(1)}
    save(checkpoints, 1, {**newer, "step": 1})
    (shard,) = tmp_path.glob("step-00000001-*/02.safetensors")
    os.utime(shard, ns=(0, 0))  # a clock that was put back
    again = fl.Checkpointer(tmp_path, keep=None)
    _, restored = again.restore({**newer, "step": 0})
    save(again, 2, {**restored, "step": 2})
    assert fl.tree.equal(merged(tmp_path, 2), newer)
    check(again, {0: {**tree, "step": 0}, 1: {**newer, "step": 1}, 2: {**newer, "step": 2}})


@pytest.mark.parametrize("again", [lambda array: array, copied], ids=["the same object", "an equal one"])
@pytest.mark.parametrize("names", [("teacher", "student"), ("student", "teacher")], ids="-".join)
def test_an_array_at_several_places_keeps_its_name_in_the_file(names: tuple[str, str], again: Any, tmp_path: Path) -> None:
    checkpoints, kept = fl.Checkpointer(tmp_path, keep=None), numbers(0, size=64 * KIB)
    first, second = names
    trees = {0: {first: numbers(1), second: kept, "step": 0}}
    save(checkpoints, 0, trees[0])
    for step in range(1, 4):
        other = kept if step % 2 else numbers(step + 1)
        trees[step] = {first: other, second: again(kept), "step": step}
        assert save(checkpoints, step, trees[step]) < 2 * INDEX < kept.nbytes
    check(checkpoints, trees)


def test_an_array_that_is_left_out_is_in_the_shared_file_and_not_in_the_checkpoint(tmp_path: Path) -> None:
    tree = {name: numbers(0, ord(name)) for name in "abcdefgh"}
    checkpoints = fl.Checkpointer(tmp_path, keep=None)
    trees = {0: {**tree, "step": 0}, 1: {**{name: tree[name] for name in "bcdefgh"}, "step": 1}}
    trees[2] = {**trees[1], "h": numbers(1), "step": 2}
    for step, each in trees.items():
        grown = save(checkpoints, step, each)
        assert step == 0 or grown < tree["a"].nbytes + 2 * KIB
    check(checkpoints, trees)
    assert [(change.path, change.kind) for change in checkpoints.diff(0, 2)] == [("a", "removed"), ("h", "value")]
    with pytest.raises(fl.OtherStructureError, match="a: nothing in the file"):
        checkpoints.restore({**tree, "step": 0}, 2)
    assert merged(tmp_path, 2).keys() == {*"bcdefgh"}
