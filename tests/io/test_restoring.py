"""Checkpoints that are restored under other names, and gone on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import left_over, nbytes

import frostleaf as fl

KIB = 1024


def numbers(seed: int) -> mx.array:
    """Return an array of 32 KiB."""
    return mx.array(np.random.default_rng(seed).random(8 * KIB, np.float32))


OLD = {"encoder": {"w": numbers(1), "v": numbers(2)}, "head": numbers(3), "n": 4}
NEW = {"backbone": {"w": mx.zeros(8 * KIB), "v": mx.zeros(8 * KIB)}, "head": mx.zeros(8 * KIB), "n": 0}
SWAPPED = {"encoder.w": "encoder.v", "encoder.v": "encoder.w"}
MOVED = {"encoder.w": "head", "head": "encoder.v", "encoder.v": "encoder.w"}


def to_new(name: str) -> str:
    return name.replace("encoder.", "backbone.")


def named(tree: Any) -> dict[str, mx.array]:
    return dict(zip(fl.tree.paths(tree), fl.tree.leaves(tree), strict=True))


def saved(folder: Path, tree: Any = OLD, **options: Any) -> fl.Checkpointer:
    with fl.Checkpointer(folder, **options) as checkpoints:
        checkpoints.save(1, tree)
    return checkpoints


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize("rename", [to_new, {name: to_new(name) for name in fl.tree.paths(OLD)}])
@pytest.mark.parametrize("options", [{}, {"strict": False}, {"where": "backbone.w"}, {"where": "backbone", "strict": False}])
def test_it_is_read_as_a_file_is(step: int | None, rename: Any, options: dict[str, Any], tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    found = checkpoints.restore(NEW, step, rename=rename, **options)
    loaded = fl.load(tmp_path / "step-00000001.safetensors", NEW, rename=rename, **options)
    assert found[0] == 1
    assert fl.tree.equal(found[1], loaded if options.get("strict", True) else loaded[0])
    assert found[2:] == (() if options.get("strict", True) else loaded[1:])
    assert fl.tree.equal(found[1]["backbone"]["w"], OLD["encoder"]["w"])


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    [
        (7, TypeError, "rename is a function of a name, or a mapping of names"),
        (lambda name: 7, TypeError, "rename gave 7 for 'encoder"),
        (lambda name: "x", ValueError, "rename gives 'x' for"),
        (None, fl.OtherStructureError, "rename=lambda name"),
    ],
)
def test_another_is_refused(rename: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    with pytest.raises(error, match=message):
        checkpoints.restore(NEW, rename=rename)
    assert checkpoints.restore(NEW, rename=to_new)[1]["n"] == 4


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("rename", [to_new, SWAPPED, MOVED, {"head": "encoder.w", "encoder.w": "head"}])
@pytest.mark.parametrize("options", [{}, {"strict": False}, {"where": "**.w", "strict": False}, {"where": "**.w"}])
def test_what_is_saved_from_then_on_is_what_was_restored(
    rename: Any, options: dict[str, Any], again: bool, tmp_path: Path
) -> None:
    checkpoints = saved(tmp_path)
    if again:  # some of which other checkpoints have, and in files beside the head
        checkpoints.save(2, {**OLD, "n": 5, "head": numbers(9)})
        checkpoints.wait()
    like = NEW if rename is to_new else fl.tree.map(mx.zeros_like, OLD)
    step, tree, *_ = checkpoints.restore(like, rename=rename, **options)
    there = fl.load(tmp_path / f"step-0000000{step}.safetensors", OLD)
    new = {rename.get(name, name) if isinstance(rename, Mapping) else rename(name): leaf for name, leaf in named(there).items()}
    for name, leaf in named(tree).items():
        assert fl.tree.equal(leaf, new[name] if not options.get("where") or name.endswith(".w") else named(like)[name])
    for later in (step + 1, step + 2):
        checkpoints.save(later, tree)
    checkpoints.wait()
    assert not left_over(tmp_path)
    for later in (step + 1, step + 2):
        assert fl.tree.equal(fl.Checkpointer(tmp_path).restore(like, later), (later, tree))
    assert fl.tree.equal(fl.load(tmp_path / f"step-0000000{step}.safetensors", OLD), there)


def test_what_keeps_its_name_is_not_written_again(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path)
    _, tree = checkpoints.restore(NEW, rename=to_new)
    sizes = [nbytes(tmp_path)]
    for step, each in enumerate([tree, tree, {**tree, "n": 7}], 2):
        checkpoints.save(step, each)
        checkpoints.wait()
        sizes.append(nbytes(tmp_path))
    # What has another name is written once, under that.
    assert 64 * KIB <= sizes[1] - sizes[0] <= 112 * KIB
    assert sizes[3] - sizes[1] <= 16 * KIB


def test_one_object_under_two_names_is_one_after_it_is_renamed(tmp_path: Path) -> None:
    shared = numbers(1)
    checkpoints = saved(tmp_path, {"a": shared, "b": shared, "c": numbers(2)})
    rename = {"a": "c", "c": "a"}
    _, tree = checkpoints.restore({"a": shared, "b": shared, "c": shared}, rename=rename)
    assert tree["b"] is tree["c"]
    checkpoints.save(2, tree)
    _, found = checkpoints.restore(tree)
    assert fl.tree.equal(found, {"a": numbers(2), "b": shared, "c": shared})
    assert found["b"] is found["c"]


def test_a_run_goes_on_from_what_is_renamed(tmp_path: Path) -> None:
    class Old(fl.Module):
        encoder: fl.nn.Linear

    class New(fl.Module):
        backbone: fl.nn.Linear

    opt = fl.optim.Adam(1e-2)

    def trained(tree: Any) -> Any:
        model, state = tree
        return opt.update(
            model, fl.grad(lambda model: sum((leaf * leaf).sum() for leaf in fl.tree.leaves(model)))(model), state
        )

    old = Old(fl.nn.Linear(3, 2))
    tree = trained((old, opt.init(old)))
    checkpoints = saved(tmp_path, tree)
    like = New(fl.nn.Linear(3, 2))
    _, found, report = checkpoints.restore((like, opt.init(like)), rename=to_new, strict=False)
    assert report[1:3] == ((), ())
    assert fl.tree.equal(fl.tree.leaves(trained(found)), fl.tree.leaves(trained(tree)))
