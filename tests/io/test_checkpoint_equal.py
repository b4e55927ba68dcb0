"""Arrays of a checkpoint that are equal and no one object: other programs find each under its own name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from checkpoints import left_over, nbytes

import frostleaf as fl

SIZE = 4096


class Ours(fl.Module):
    first: fl.nn.RMSNorm
    second: fl.nn.RMSNorm
    linear: fl.nn.Linear

    def __init__(self) -> None:
        self.first, self.second = fl.nn.RMSNorm(SIZE), fl.nn.RMSNorm(SIZE)
        self.linear = fl.nn.Linear(SIZE, 4)


class Theirs(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.linear = nn.RMSNorm(SIZE), nn.RMSNorm(SIZE), nn.Linear(SIZE, 4)


def read_by_others(folder: Path, step: int) -> dict[str, mx.array]:
    """Return the arrays that an index names, each from the file that it says."""
    (index,) = folder.glob(f"step-{step:08d}-*/model.safetensors.index.json")
    weight_map = json.loads(index.read_text())["weight_map"]
    return {name: mx.load(str(index.parent / file))[name] for name, file in weight_map.items()}


def changed(model: Any, step: int) -> Any:
    return model.at("linear.bias").apply(lambda bias: mx.full(bias.shape, float(step)))


@pytest.mark.parametrize("frozen", [["first", "second"], ["first"], []], ids=["both frozen", "one frozen", "none frozen"])
def test_mlx_loads_a_model_with_equal_arrays_from_the_files_of_a_checkpoint(frozen: list[str], tmp_path: Path) -> None:
    model = Ours().with_frozen(frozen) if frozen else Ours()
    with fl.Checkpointer(tmp_path, keep=None) as checkpoints:
        for step in range(3):
            checkpoints.save(step, changed(model, step))
    for step in range(0 if frozen else 1, 3):
        arrays = read_by_others(tmp_path, step)
        Theirs().load_weights([*arrays.items()])
        assert mx.array_equal(arrays["linear.bias"], mx.full(4, float(step)))
        _, found = fl.Checkpointer(tmp_path).restore(model, step)
        assert fl.tree.equal(found, changed(model, step))
        assert found.first.weight is not found.second.weight
    assert not left_over(tmp_path)


def test_a_fresh_state_has_each_of_its_arrays_in_the_files_and_later_ones_add_what_changed(tmp_path: Path) -> None:
    model = Ours().with_frozen("linear.weight")
    state = fl.optim.Adam(1e-3).init(model)
    tree = {"model": model, "state": state}
    objects = len({id(array) for array in fl.tree.leaves(tree)})
    with fl.Checkpointer(tmp_path, keep=None) as checkpoints:
        for step in range(3):
            before = nbytes(tmp_path)
            checkpoints.save(step, {**tree, "model": changed(model, step)})
            checkpoints.wait()
            assert len(read_by_others(tmp_path, step)) == objects
            assert step == 0 or nbytes(tmp_path) - before < SIZE
        assert fl.tree.equal(checkpoints.restore(tree, 0)[1], {**tree, "model": changed(model, 0)})


def test_what_is_one_object_is_in_the_files_once(tmp_path: Path) -> None:
    one, other = mx.zeros(SIZE), mx.zeros(SIZE)
    with fl.Checkpointer(tmp_path, keep=None) as checkpoints:
        for step in range(2):
            checkpoints.save(step, {"a": one, "b": one, "c": other, "d": other, "step": mx.array(step)})
        _, found = checkpoints.restore({name: mx.ones(SIZE) for name in "abcd"} | {"step": mx.array(0)})
    assert {*read_by_others(tmp_path, 1)} == {"a", "c", "step"}
    assert found["a"] is found["b"]
    assert found["c"] is found["d"]
    assert found["a"] is not found["c"]


def test_what_stays_under_another_name_is_written_once_more_and_not_again(tmp_path: Path) -> None:
    size, written = 25_000, []
    arrays = iter(mx.random.normal((2 * 9 + 1, size)))
    best = next(arrays)
    with fl.Checkpointer(tmp_path, keep=None) as checkpoints:
        for step in range(9):
            model, moment = next(arrays), next(arrays)
            best = model if step == 4 else best
            before = nbytes(tmp_path)
            checkpoints.save(step, {"model": model, "best": best, "moment": moment})
            checkpoints.wait()
            written.append(round((nbytes(tmp_path) - before) / size / 4, 1))
    # First it isn't known what will stay; the best of step 4 has its own name from step 5 on.
    assert written == [3, 3, 2, 2, 2, 3, 2, 2, 2]
    assert not left_over(tmp_path)
