"""Peak memory of a jitted training step beside MLX's compiled idiom, and what the lower peak costs: six large layers, Adam."""

import time

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
from mlx.utils import tree_flatten

import frostleaf as fl

LAYERS, DIMS = 6, 2048
ROUNDS = 5


def frostleaf_step(x, at_once=None):
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
        fl.eval(now, loss, at_once=at_once)

    return call


def mlx_step(x):
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
    return lambda: mx.eval(state, compiled(x))


def peak_of(make):
    """Return the peak memory of a step that is not the first."""
    step = make()
    step()
    step()
    mx.clear_cache()
    mx.reset_peak_memory()
    step()
    return mx.get_peak_memory()


def test_peak_memory_of_a_step(table):
    x = mx.ones((4, DIMS))
    ours, theirs = peak_of(lambda: frostleaf_step(x)), peak_of(lambda: mlx_step(x))
    in_one_go = peak_of(lambda: frostleaf_step(x, at_once=float("inf")))
    name = "peak memory of a step, 6 x 2048 x 2048, Adam"
    table.add(f"{name} / MLX's captured state", [ours], [theirs], "MB")
    table.add(f"{name}, in one go / MLX's captured state", [in_one_go], [theirs], "MB")


def test_peak_memory_of_building(table):
    def peak(make, arrays_of, evaluate):
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        built = make()
        evaluate(built)
        size = sum(array.nbytes for array in arrays_of(built))
        return (mx.get_peak_memory() - before) / size

    def theirs():
        model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(24)))
        model.set_dtype(mx.bfloat16)
        return model

    def ours():
        return [fl.nn.Linear(1024, 1024, dtype=mx.bfloat16) for _ in range(24)]

    by_mlx = peak(
        theirs, lambda model: dict(tree_flatten(model.parameters())).values(), lambda model: mx.eval(model.parameters())
    )
    name = "peak memory of building 24 x Linear(1024, 1024) in bfloat16 / the size of that"
    in_one_go = peak(ours, fl.tree.leaves, lambda model: fl.eval(model, at_once=float("inf")))
    table.note(name, f"{peak(ours, fl.tree.leaves, fl.eval):.2f}")
    table.note(f"{name}, in one go", f"{in_one_go:.2f}")
    table.note(f"{name}, mlx.nn and set_dtype", f"{by_mlx:.2f}")


def test_time_of_a_step_in_pieces(table, without_collector):
    x = mx.ones((4, DIMS))
    steps, taken = [frostleaf_step(x), frostleaf_step(x, at_once=float("inf"))], ([], [])
    for number in range(ROUNDS + 1):
        for step, times in zip(steps, taken, strict=True):
            start = time.perf_counter()
            step()
            if number:
                times.append(time.perf_counter() - start)
    table.add("whole time of that step / in one go", *taken, unit="ms")
