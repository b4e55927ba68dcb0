"""Transformations and wrapped optimizers outside jit beside what MLX has for them, with 12 small layers: host time is all."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map

import frostleaf as fl

DIMS, LAYERS = 4, 12
X, XS = mx.ones((2, DIMS)), mx.ones((3, 2, DIMS))


def linear(library):
    return library.Sequential(*[library.Linear(DIMS, DIMS) for _ in range(LAYERS)])


def normalized(library):
    return library.Sequential(
        *[layer for _ in range(LAYERS) for layer in (library.Linear(DIMS, DIMS), library.BatchNorm(DIMS))]
    )


def forms():
    """Return for each row what it says, our call, that of MLX, and the most that it may be."""
    ours, theirs, normalized_ours, normalized_theirs = linear(fl.nn), linear(nn), normalized(fl.nn), normalized(nn)
    for each in (theirs, normalized_theirs):
        mx.eval(each.parameters())
    fl.eval(ours, normalized_ours)
    by_half = fl.Policy(compute_dtype=mx.bfloat16).wrap(ours)
    checkpointed, theirs_checkpointed = fl.checkpoint(ours), nn.utils.checkpoint(theirs)
    mapped, theirs_mapped = fl.vmap(ours), mx.vmap(theirs)

    def half_of_mlx():
        before = theirs.parameters()
        theirs.set_dtype(mx.bfloat16)
        out = theirs(X.astype(mx.bfloat16)).astype(mx.float32)
        theirs.update(before)
        return out

    return {
        "stateful": ("fl.stateful without buffers / a call", lambda: fl.stateful(ours, X)[0], lambda: theirs(X), 3.0),
        "buffers": (
            "fl.stateful with 12 BatchNorm / a call that writes in place",
            lambda: fl.stateful(normalized_ours, X)[0],
            lambda: normalized_theirs(X),
            3.0,
        ),
        "vmap": ("fl.vmap / mx.vmap", lambda: mapped(XS), lambda: theirs_mapped(XS), 2.5),
        "checkpoint": ("fl.checkpoint / nn.utils.checkpoint", lambda: checkpointed(X), lambda: theirs_checkpointed(X), 2.0),
        "policy": ("Policy.wrap / set_dtype there and back", lambda: by_half(X), half_of_mlx, 1.5),
    }


@pytest.mark.parametrize("name", ["stateful", "buffers", "vmap", "checkpoint", "policy"])
def test_a_call(name, table, interleaved):
    what, ours, theirs, limit = forms()[name]
    table.add(what, *interleaved(ours, theirs, rounds=200, between=mx.eval), limit=limit)


class ByHand:
    """MLX's Adam with what our wrappers do written out, in place."""

    def __init__(self):
        self.model, self.rule = linear(nn), optim.Adam(1e-3)
        self.rule.init(self.model.trainable_parameters())
        self.gradients = nn.value_and_grad(self.model, lambda model: model(X).sum())(self.model)[1]
        self.total = tree_map(mx.zeros_like, self.gradients)

    def skip_nonfinite(self):
        finite = mx.stack([mx.isfinite(each).all() for _, each in tree_flatten(self.gradients)]).all()
        before = self.model.parameters(), self.rule.state
        self.rule.update(self.model, self.gradients)
        now = self.model.parameters(), self.rule.state
        model, self.rule.state = tree_map(lambda new, old: mx.where(finite, new, old), now, before)
        self.model.update(model)

    def accumulate(self):
        for last in (False, True):
            self.total = tree_map(mx.add, self.total, self.gradients)
            if last:
                self.rule.update(self.model, tree_map(lambda array: array / 2, self.total))
                self.total = tree_map(mx.zeros_like, self.total)


# What the row says, the optimizer, how many updates go with one call by hand, and the most that the ratio may be.
WRAPPERS = {
    "skip_nonfinite": ("skip_nonfinite(Adam)", fl.optim.skip_nonfinite(fl.optim.Adam(1e-3)), 1, 1.2),
    "accumulate": ("two updates of accumulate(Adam, 2)", fl.optim.accumulate(fl.optim.Adam(1e-3), 2), 2, 3.0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_an_update(name, table, interleaved):
    what, optimizer, times, limit = WRAPPERS[name]
    model, theirs = linear(fl.nn), ByHand()
    gradients = fl.grad(lambda model: model(X).sum())(model)
    now = [model, optimizer.init(model)]

    def update():
        for _ in range(times):
            now[:] = optimizer.update(now[0], gradients, now[1])

    def between(_):
        mx.eval(fl.tree.leaves((now, gradients)), theirs.model.state, theirs.rule.state, theirs.total, theirs.gradients)

    between(None)
    taken = interleaved(update, getattr(theirs, name), rounds=100, between=between)
    table.add(f"{what} / mlx by hand", *taken, limit=limit)
