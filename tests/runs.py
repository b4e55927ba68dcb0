"""A small training run, imported by the tests and run by them as a script in a process of its own."""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx

import frostleaf as fl


class Net(fl.Module):
    layer: fl.nn.Linear
    dropout: fl.nn.Dropout
    activation: Any = fl.static(default=fl.nn.relu)

    def __init__(self) -> None:
        self.layer = fl.nn.Linear(4, 1, bias=False)
        self.dropout = fl.nn.Dropout(0.5)

    def __call__(self, x: mx.array) -> mx.array:
        return self.dropout(self.layer(x))


optimizer = fl.optim.AdamW(fl.optim.cosine_decay(1e-2, 20))


def start() -> dict[str, Any]:
    mx.random.seed(3)
    model = Net()
    key = mx.random.key(5)
    return {"model": model, "state": optimizer.init(model), "key": key, "random": mx.random.state[0], "seen": 0, "best": None}


@fl.jit
def step(model: Any, state: Any, x: mx.array) -> tuple[Any, Any]:
    # No more than shows what is random and what an optimizer remembers: each kernel takes seconds to compile.
    return optimizer.update(model, fl.grad(lambda model: model(x).sum())(model), state)


def go_on(tree: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the tree of the run after more steps. Batches come from the key in the tree, dropout from MLX's random state."""
    mx.random.state[0][:] = tree["random"]
    model, state, key = tree["model"], tree["state"], tree["key"]
    for _ in range(steps):
        key, drawn = mx.random.split(key)
        model, state = step(model, state, mx.random.normal((16, 4), key=drawn))
        fl.eval(model, state)
    return {**tree, "model": model, "state": state, "key": key, "random": mx.random.state[0], "seen": tree["seen"] + steps}


if __name__ == "__main__":
    folder = sys.argv[1]
    with fl.Checkpointer(folder) as checkpoints:
        at, tree = checkpoints.restore(fl.eval_shape(start))
        checkpoints.save(at + 10, go_on(tree, 10))
