"""Checkpoints of which most stays: their bytes and time beside those of the first, and reading one of a hundred."""

import itertools
import time

import mlx.core as mx
import pytest
from checkpoints import nbytes
from models import Layer

import frostleaf as fl

ROUNDS = 8
HEADER = 105  # bytes


class Stack(fl.Module):
    layers: tuple


def stack(arrays, size):
    values = iter(mx.random.normal((arrays, size)))
    model = Stack([Layer(next(values), next(values), size) for _ in range(arrays // 2)])
    fl.eval(model)
    return model


class Run:
    """A run of which a twentieth of the layers changes, with two moments for each of their arrays."""

    def __init__(self, folder, model, keep=2):
        count = len(model.layers)
        self.folder, self.numbers = folder, itertools.count(1)
        self.trained = [f"layers.{number}" for number in range(count - max(1, count // 20), count)]
        frozen = model.freeze().with_frozen(self.trained, frozen=False)
        self.tree = {"model": frozen, "state": fl.optim.Adam(1e-3).init(frozen)}
        self.checkpoints = fl.Checkpointer(folder, keep=keep)
        changing = [*fl.tree.leaves(frozen.trainable_parameters()), *fl.tree.leaves(self.tree["state"])]
        self.changing, self.count = sum(array.nbytes for array in changing), len(changing)

    def step(self):
        """Change what is trained, and all of the state."""

        def other(tree):
            arrays = [array for array in fl.tree.leaves(tree) if array.size > 1]
            new = iter(mx.random.normal((len(arrays), arrays[0].size)))
            return fl.tree.map(lambda array: next(new) if array.size > 1 else array, tree)

        changed = {"model": self.tree["model"].at(self.trained).apply(other), "state": other(self.tree["state"])}
        fl.eval(changed)
        self.tree = changed

    def save(self):
        self.checkpoints.save(next(self.numbers), self.tree)
        self.checkpoints.wait()


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize(("arrays", "size"), [(200, 250_000), (10_000, 1000)], ids=["200 arrays", "10,000 arrays"])
def test_save_of_a_model_that_is_mostly_frozen(arrays, size, tmp_path, table):
    what = f"{arrays:,} arrays of {4 * size / 1e6:g} MB, 95 % of them frozen"
    model = stack(arrays, size)
    first, later, grown = [], [], []
    for number in range(ROUNDS):
        run = Run(tmp_path / str(number), model, keep=None)
        run.step()
        first.append(timed(run.save))
        run.step()
        before = nbytes(run.folder)
        later.append(timed(run.save))
        grown.append(nbytes(run.folder) - before)
        whole = before
    table.add(f"the second checkpoint / the first, {what}", later, first, "ms")
    table.add("its bytes / the first's", grown, [whole] * ROUNDS, "MB")
    table.add("its bytes / those of what changed, and 64 KB", grown, [run.changing + 2**16] * ROUNDS, "MB")
    # The header of a file says of each array in it its name, dtype, shape, place and checksum.
    names = HEADER * run.count
    what = f"its bytes / those of what changed, {HEADER} for each of these {run.count:,} arrays, and 64 KB"
    table.add(what, grown, [run.changing + names + 2**16] * ROUNDS, "MB", limit=1)


@pytest.mark.parametrize("arrays", [400, 10_000], ids=["400 arrays", "10,000 arrays"])
def test_restore_of_one_of_a_hundred(arrays, tmp_path, table, interleaved):
    chain, one = (Run(tmp_path / name, stack(arrays, 1000), keep=None) for name in ("chain", "one"))
    for _ in range(100):
        chain.save()
        chain.step()
    one.save()

    def restored(run):
        return fl.Checkpointer(run.folder).restore(run.tree)

    taken = interleaved(lambda: restored(chain), lambda: restored(one), rounds=ROUNDS)
    table.add(f"restoring the last of 100 checkpoints of {arrays:,} arrays / of one", *taken, "ms", limit=1.1)
