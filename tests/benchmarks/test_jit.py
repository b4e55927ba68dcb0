"""A jitted training step beside bare ``mx.compile`` and MLX's captured state.

Host time is that of the call alone: each step is evaluated outside of the timed region. The whole time has both.
"""

import time

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import pytest
from models import build, loss_of

import frostleaf as fl

LEARNING_RATE = 1e-3


def frostleaf_step(blocks, x):
    """Model, AdamW state and batch in; model, state and loss out."""
    model, optimizer = build(blocks), fl.optim.AdamW(LEARNING_RATE)
    now = [model, optimizer.init(model)]

    @fl.jit
    def step(model, state, x):
        loss, grads = fl.value_and_grad(lambda model: loss_of(fl.tree.leaves(model), x))(model)
        return *optimizer.update(model, grads, state), loss

    def call():
        *now[:], loss = step(*now, x)
        return loss

    return call, lambda loss: fl.eval(now, loss)


def packed_step(blocks, x):
    """The same with model and state packed."""
    model, optimizer = fl.optim.pack(build(blocks)), fl.optim.flatten(fl.optim.AdamW(LEARNING_RATE))
    now = [model, optimizer.init(model)]

    @fl.jit
    def step(model, state, x):
        loss, grads = fl.value_and_grad(lambda model: loss_of(fl.tree.leaves(model), x))(model.unpack())
        return *optimizer.update(model, grads, state), loss

    def call():
        *now[:], loss = step(*now, x)
        return loss

    return call, lambda loss: fl.eval(now, loss)


def flattened_step(blocks, x):
    """The same with the state packed and the model as it is."""
    model, optimizer = build(blocks), fl.optim.flatten(fl.optim.AdamW(LEARNING_RATE))
    now = [model, optimizer.init(model)]

    @fl.jit
    def step(model, state, x):
        loss, grads = fl.value_and_grad(lambda model: loss_of(fl.tree.leaves(model), x))(model)
        return *optimizer.update(model, grads, state), loss

    def call():
        *now[:], loss = step(*now, x)
        return loss

    return call, lambda loss: fl.eval(now, loss)


def bare_step(blocks, x):
    """The same rule in ``mx.compile`` over flat lists."""
    leaves = fl.tree.leaves(build(blocks))
    rule = mlx.optimizers.AdamW(LEARNING_RATE)
    now = [leaves, [rule.state["step"], rule.state["learning_rate"]], *([mx.zeros_like(a) for a in leaves] for _ in "mv")]

    def step(parameters, scalars, ms, vs, x):
        loss, grads = mx.value_and_grad(lambda leaves: loss_of(leaves, x))(parameters)
        rule = mlx.optimizers.AdamW(LEARNING_RATE)
        slots = [{"m": m, "v": v} for m, v in zip(ms, vs, strict=True)]
        rule.state = {"step": scalars[0], "learning_rate": scalars[1], "slots": slots}
        new = rule.apply_gradients({"slots": grads}, {"slots": parameters})["slots"]
        slots = rule.state["slots"]
        scalars = [rule.state["step"], rule.state["learning_rate"]]
        return new, scalars, [slot["m"] for slot in slots], [slot["v"] for slot in slots], loss

    compiled = mx.compile(step)

    def call():
        *now[:], loss = compiled(*now, x)
        return loss

    return call, lambda loss: mx.eval(now, loss)


class MLXLayer(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias


class MLXModel(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.blocks = [[MLXLayer(getattr(block, name)) for name in block.__frostleaf__.children] for block in model.blocks]

    def __call__(self, x):
        return loss_of([leaf for block in self.blocks for layer in block for leaf in (layer.weight, layer.bias)], x)


def mlx_step(blocks, x):
    """MLX's idiom: the state of model and optimizer captured as inputs and outputs."""
    model, optimizer = MLXModel(build(blocks)), mlx.optimizers.AdamW(LEARNING_RATE)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    def step(x):
        loss, grads = nn.value_and_grad(model, model)(x)
        optimizer.update(model, grads)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    return lambda: compiled(x), lambda loss: mx.eval(state, loss)


def take_turns(steps, rounds):
    """Return the host times and the whole times of the steps, which are taken in turn."""
    host, whole = [[] for _ in steps], [[] for _ in steps]
    for number in range(rounds + 3):
        for position, (call, evaluate) in enumerate(steps):
            start = time.perf_counter()
            loss = call()
            returned = time.perf_counter()
            evaluate(loss)
            end = time.perf_counter()
            if number >= 3:
                host[position].append(returned - start)
                whole[position].append(end - start)
    return host, whole


@pytest.mark.parametrize(("blocks", "rounds"), [(1, 600), (12, 150), (96, 40)])
def test_a_training_step(blocks, rounds, table, without_collector):
    x = mx.ones((8,))
    (ours, bare, mlx_idiom), _ = take_turns([make(blocks, x) for make in (frostleaf_step, bare_step, mlx_step)], rounds)
    name = f"host time of a step, {blocks * 16} arrays"
    table.add(f"{name} / bare mx.compile on lists", ours, bare)
    table.add(f"{name} / MLX's captured state", ours, mlx_idiom)


def test_a_packed_training_step(table, without_collector):
    x = mx.ones((8,))
    makers = {"model and state packed": packed_step, "fl.optim.flatten alone": flattened_step}
    host, whole = take_turns([make(12, x) for make in (mlx_step, *makers.values())], 150)
    for name, taken, taken_whole in zip(makers, host[1:], whole[1:], strict=True):
        table.add(f"host time of a step, 192 arrays, {name} / MLX's captured state", taken, host[0])
        table.add(f"whole time of a step, 192 arrays, {name} / MLX's captured state", taken_whole, whole[0])
