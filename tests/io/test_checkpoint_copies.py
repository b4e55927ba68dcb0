"""A directory of checkpoints that other tools copy while it is saved to: each step of the copy is whole, or said not to be."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import left_over

import frostleaf as fl

STILL = mx.array(np.arange(5000, dtype=np.int32))


def tree_of(step: int) -> dict[str, Any]:
    return {"still": STILL, "changes": mx.array(np.arange(5000, dtype=np.int32) + 10 * step), "step": step}


LIKE = tree_of(0)


def check(copy: Path) -> tuple[list[int], list[int]]:
    """Return the steps of a copy that are whole, and those that are said not to be, after going on from there."""
    whole, broken = [], []
    for step in fl.Checkpointer(copy).steps():
        try:
            assert fl.tree.equal(fl.Checkpointer(copy).restore(LIKE, step), (step, tree_of(step)))
            whole.append(step)
        except fl.CheckpointError as error:
            assert str(copy) in str(error)  # noqa: PT017
            broken.append(step)
    if whole and broken:
        with pytest.warns(RuntimeWarning, match="is passed over") if broken[-1] > whole[-1] else nullcontext():
            assert fl.Checkpointer(copy).restore(LIKE)[0] == whole[-1]
    with fl.Checkpointer(copy, keep=1) as again:
        for step in (1000, 1001):
            again.save(step, tree_of(step))
    # One that can't be read goes when as many as are kept have been saved since.
    assert again.steps() == [1001]
    assert not left_over(copy)
    assert fl.tree.equal(fl.Checkpointer(copy).restore(LIKE), (1001, tree_of(1001)))
    return whole, broken


def copies(source: Path, target: Path, between: Callable[[], None], order: Any) -> None:
    """Copy a directory as ``cp -r`` does, whose files may be gone before they are copied, and call a function before each."""

    def names(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir(), key=order):
            between()
            if path.is_dir():
                (target / path.name).mkdir()
                yield from names(path)
            else:
                yield path

    target.mkdir()
    for path in names(source):
        with suppress(FileNotFoundError):
            shutil.copyfile(path, target / path.relative_to(source))


@pytest.mark.parametrize("order", [lambda path: path.name, lambda path: [-ord(c) for c in path.name]], ids=["a to z", "z to a"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_copy_made_while_checkpoints_are_saved_and_removed(every: int, order: Any, tmp_path: Path) -> None:
    here, calls, step = tmp_path / "here", 0, 4
    checkpoints = fl.Checkpointer(here, keep=2)
    for each in range(1, 4):
        checkpoints.save(each, tree_of(each))
    checkpoints.wait()

    def saved() -> None:
        nonlocal calls, step
        calls += 1
        if calls % every == 0:
            checkpoints.save(step, tree_of(step))
            checkpoints.wait()
            step += 1

    with suppress(FileNotFoundError):  # a directory that is gone before it is listed
        copies(here, tmp_path / "copy", saved, order)
    assert calls > 1
    check(tmp_path / "copy")


@pytest.mark.parametrize("count", [pytest.param(3, id="short"), pytest.param(100, marks=pytest.mark.long, id="long")])
def test_copies_by_cp_while_a_run_goes_on(count: int, tmp_path: Path) -> None:
    here = tmp_path / "here"
    checkpoints, step, total = fl.Checkpointer(here, keep=2), 0, 0
    for number in range(count):
        copy = tmp_path / str(number)
        process = None
        while process is None or process.poll() is None:
            checkpoints.save(step, tree_of(step))
            if process is None and step >= 2:
                checkpoints.wait()
                process = subprocess.Popen(["cp", "-r", here, copy], stderr=subprocess.DEVNULL)
            step += 1
        if os.path.isdir(copy):
            whole, broken = check(copy)
            total += len(whole) + len(broken)
    checkpoints.wait()
    assert not left_over(here)
    assert total >= count / 2
