"""Optimizers around optimizers, for the tests of all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

import frostleaf as fl
from frostleaf import optim
from frostleaf.edits.freezing import trainable


def nothing(path: str, array: mx.array) -> bool:
    """Select nothing."""
    return False


# Each wrapper with arguments with which it changes nothing of what is trained.
NEUTRAL: dict[str, Callable[[Any], Any]] = {
    "clip_by_global_norm": lambda opt: optim.chain(optim.clip_by_global_norm(1e6), opt),
    "clip_by_value": lambda opt: optim.chain(optim.clip_by_value(1e6), opt),
    "accumulate": lambda opt: optim.accumulate(opt, 1),
    "ema": lambda opt: optim.ema(opt, 0.9),
    "masked": lambda opt: optim.masked(opt, "**"),
    "multi": lambda opt: optim.multi({nothing: optim.SGD(9.0), "**": opt}),
    "skip_nonfinite": optim.skip_nonfinite,
    "shard": lambda opt: optim.shard(opt, elementwise=True),
}
# The same with arguments with which it does something.
ACTIVE: dict[str, Callable[[Any], Any]] = {
    "clip_by_global_norm": lambda opt: optim.chain(optim.clip_by_global_norm(0.5), opt),
    "clip_by_value": lambda opt: optim.chain(optim.clip_by_value(0.1), opt),
    "accumulate": lambda opt: optim.accumulate(opt, 2),
    "ema": lambda opt: optim.ema(opt, 0.9),
    "masked": lambda opt: optim.masked(opt, "**"),
    "multi": lambda opt: optim.multi({"**.bias": optim.SGD(0.25), "**": opt}),
    "skip_nonfinite": optim.skip_nonfinite,
    "shard": lambda opt: optim.shard(opt, elementwise=True),
}
SINGLES = [(name,) for name in NEUTRAL]
PAIRS = [pair for pair in itertools.product(NEUTRAL, repeat=2) if pair != ("shard", "shard")]  # which is refused
FEW = [
    ("accumulate", "ema"), ("ema", "accumulate"), ("accumulate", "skip_nonfinite"), ("skip_nonfinite", "accumulate"),
    ("clip_by_global_norm", "clip_by_value"), ("masked", "multi"), ("multi", "masked"),
    ("shard", "ema"), ("accumulate", "shard"),
]  # fmt: skip
DEEP = [
    ("skip_nonfinite", "clip_by_global_norm", "accumulate", "ema", "multi"),
    ("accumulate", "ema", "skip_nonfinite", "clip_by_value", "masked"),
    ("ema", "skip_nonfinite", "accumulate", "clip_by_global_norm"),
]
PACKABLE = [names for names in [*SINGLES, *FEW, *DEEP] if not {"masked", "multi"} & set(names)]


def stack(names: tuple[str, ...], opt: Any, wrappers: dict[str, Callable[[Any], Any]] = NEUTRAL) -> Any:
    """Return an optimizer in wrappers, the first of which is the outermost."""
    for name in reversed(names):
        opt = wrappers[name](opt)
    return opt


def normal(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Return numbers drawn at random, the same for each shape."""
    return mx.random.normal(shape, key=mx.random.key(sum(shape) + len(shape))).astype(dtype)


def gradients_of(model: Any, seed: int = 0) -> Any:
    """Return a tree as ``fl.grad`` does, with numbers drawn at random."""
    leaves, structure = fl.tree.flatten(model)
    keys = mx.random.split(mx.random.key(seed), len(leaves) + 1)
    drawn = [
        mx.random.normal(leaf.shape, key=key).astype(leaf.dtype) if trains else None
        for leaf, key, trains in zip(leaves, keys, trainable(model), strict=False)
    ]
    return fl.tree.unflatten(structure, drawn)


def trained(opt: Any, model: Any, steps: int = 5, state: Any = None, update: Any = None) -> tuple[Any, Any]:
    """Return the model and the state after steps with gradients drawn at random, which are the same each time."""
    state = opt.init(model) if state is None else state
    for step in range(steps):
        grads = gradients_of(model.unpack() if isinstance(model, optim.Packed) else model, step)
        model, state = (update or opt.update)(model, grads, state)
        fl.eval(model, state)
    return model, state


def rates(state: Any, rate: float) -> Any:
    """Return the state with another learning rate everywhere."""
    return state.at("**.hyperparameters.learning_rate").set(mx.array(rate))


def named(tree: Any) -> dict[str, mx.array]:
    """Return the arrays of a tree by path."""
    return dict(zip(fl.tree.paths(tree), fl.tree.leaves(tree), strict=True))


def same_shapes(left: Any, right: Any) -> bool:
    """Return whether two trees have one structure, and arrays of the same shapes and dtypes."""
    shapes = [[(leaf.shape, leaf.dtype) for leaf in fl.tree.leaves(tree)] for tree in (left, right)]
    return fl.tree.structure(left) == fl.tree.structure(right) and shapes[0] == shapes[1]
