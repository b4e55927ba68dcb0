"""Gradients of a model in which other places are tied."""

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn
import pytest

import frostleaf as fl

PLAIN = fl.nn.Sequential(fl.nn.Embedding(5, 2), fl.nn.Linear(2, 5, bias=False))
TIED = PLAIN.tie({"layers.1.weight": "layers.0.weight"})
REVERSED = PLAIN.tie({"layers.0.weight": "layers.1.weight"})

SGD = fl.optim.SGD(0.1)
OPTIMIZERS: dict[str, Any] = {
    "sgd": SGD,
    "adamw": fl.optim.AdamW(0.1),
    "flatten": fl.optim.flatten(SGD),
    "chain": fl.optim.chain(fl.optim.clip_by_global_norm(1.0), SGD),
    "accumulate": fl.optim.accumulate(SGD, 2),
    "ema": fl.optim.ema(SGD, 0.9),
    "multi": fl.optim.multi({"**": SGD}),
    "masked": fl.optim.masked(SGD, "layers.0"),
    "skip": fl.optim.skip_nonfinite(SGD),
}


def loss(model: Any) -> mx.array:
    return model(mx.array([1, 2])).square().sum()


def step(optimizer: Any, model: Any, grads: Any) -> Any:
    return optimizer.update(model, grads, optimizer.init(model))[0]


def jitted(optimizer: Any, model: Any, grads: Any) -> Any:
    return fl.jit(optimizer.update)(model, grads, optimizer.init(model))[0]


def packed(optimizer: Any, model: Any, grads: Any) -> Any:
    return step(optimizer, fl.optim.pack(model), grads)


STEPS: dict[str, Callable[[Any, Any, Any], Any]] = {"step": step, "jit": jitted, "packed": packed}


@pytest.mark.parametrize(
    ("optimizer", "call"),
    [*[(name, "step") for name in OPTIMIZERS], ("sgd", "jit"), ("flatten", "jit"), ("flatten", "packed")],
)
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_a_model_with_other_ties_are_refused(optimizer: str, call: str, tied: bool) -> None:
    model, other = (TIED, PLAIN) if tied else (PLAIN, TIED)
    which = "the tree" if tied else "the gradient"
    said = f"layers.1.weight is tied to layers.0.weight in {which} alone. Take the gradient of the model that is updated: "
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        STEPS[call](OPTIMIZERS[optimizer], model, fl.grad(loss)(other))
    code = str(raised.value).partition("updated: grads = ")[2].rstrip(".").replace(", ...", "")
    STEPS[call](OPTIMIZERS[optimizer], model, eval(code, {"fl": fl, "loss_fn": loss, "model": model}))


def test_gradients_of_what_is_frozen_have_no_place_to_be_lost() -> None:
    plain = fl.nn.Sequential(*PLAIN.layers, fl.nn.Linear(5, 1)).freeze(keys="weight")
    tied = plain.tie({"layers.1.weight": "layers.0.weight"})
    for model, other in ((plain, tied), (tied, plain)):
        grads = fl.grad(lambda model: model(mx.array([1])).sum())(other)
        assert mx.array_equal(step(SGD, model, grads).layers[2].bias, model.layers[2].bias - 0.1)


def test_gradients_of_a_model_that_is_tied_the_other_way_are_the_same() -> None:
    after = step(SGD, TIED, fl.grad(loss)(TIED.untie().tie({"layers.0.weight": "layers.1.weight"})))
    assert mx.allclose(after.layers[1].weight, step(SGD, TIED, fl.grad(loss)(TIED)).layers[0].weight)


class Theirs(mlx.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.head = mlx.nn.Embedding(5, 2), mlx.nn.Linear(2, 5, bias=False)

    def __call__(self, words: mx.array) -> mx.array:
        return self.head(self.emb(words))


def test_so_are_those_of_a_wrapped_model() -> None:
    plain = fl.from_mlx(Theirs())
    tied = plain.tie({"head.weight": "emb.weight"})
    for model, other in ((plain, tied), (tied, plain)):
        with pytest.raises(ValueError, match=r"head\.weight is tied to emb\.weight in"):
            step(SGD, model, fl.grad(loss)(other))
        step(SGD, model, fl.grad(loss)(model))
