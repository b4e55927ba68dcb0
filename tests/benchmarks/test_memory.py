"""Peak memory of a jitted training step beside MLX's compiled idiom: six layers of 2048 x 2048, Adam."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers

import frostleaf as fl

LAYERS, DIMS = 6, 2048


def peak_of(step, evaluate):
    """Return the peak memory of a step that is not the first."""
    for number in range(3):
        if number == 2:
            mx.clear_cache()
            mx.reset_peak_memory()
        evaluate(step())
    return mx.get_peak_memory()


def frostleaf_peak(x):
    model = fl.nn.Sequential(*(fl.nn.Linear(DIMS, DIMS, bias=False) for _ in range(LAYERS)))
    optimizer = fl.optim.Adam(1e-3)
    now = [model, optimizer.init(model)]
    del model
    fl.eval(now)

    @fl.jit
    def step(model, state, x):
        loss, grads = fl.value_and_grad(lambda model: model(x).square().mean())(model)
        return *optimizer.update(model, grads, state), loss

    def call():
        *now[:], loss = step(*now, x)
        return loss

    return peak_of(call, lambda loss: fl.eval(now, loss))


def mlx_peak(x):
    model = nn.Sequential(*(nn.Linear(DIMS, DIMS, bias=False) for _ in range(LAYERS)))
    optimizer = mlx.optimizers.Adam(1e-3)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]
    mx.eval(state)

    def step(x):
        loss, grads = nn.value_and_grad(model, lambda x: model(x).square().mean())(x)
        optimizer.update(model, grads)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    return peak_of(lambda: compiled(x), lambda loss: mx.eval(state, loss))


def test_peak_memory_of_a_step(table):
    x = mx.ones((4, DIMS))
    table.add("peak memory of a step, 6 x 2048 x 2048, Adam / MLX's captured state", [frostleaf_peak(x)], [mlx_peak(x)], "MB")
