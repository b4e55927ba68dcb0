"""Checks that a step with a divided state peaks lower than one with a whole state, run by each of several ranks.

The models are a sixteenth of the size that they stand for, and so is what the library takes for large.
"""

import gc

import mlx.core as mx
import ranks

import frostleaf as fl
from frostleaf import optim
from frostleaf.optim import parts
from frostleaf.transforms import collectives

GROUP = fl.distributed.init()
parts.BUCKET = BUCKET = collectives.BUCKET // 16
parts._TOGETHER //= 16
parts._ALONE //= 16
collectives._LARGE //= 16


def average(gradients):
    return fl.distributed.average_gradients(gradients, all_reduce_size=BUCKET)


def peak_of(opt, model, x, jitted):
    """Return the middle one of the peaks of three steps, in sizes of the model."""

    def step(model, state, x):
        return opt.update(model, fl.grad(lambda model: model(x).square().mean())(model), state)

    run = fl.jit(step) if jitted else step
    size, peaks = fl.tree.nbytes(model), []
    now = [fl.tree.map(lambda leaf: leaf + 0, model), opt.init(model)]
    fl.eval(now)
    before = mx.get_active_memory() - fl.tree.nbytes(now)
    for _ in range(3):
        gc.collect()
        mx.reset_peak_memory()
        now[:] = run(*now, x)
        fl.distributed.eval(now)
        peaks.append((mx.get_peak_memory() - before) / size)
    return sorted(peaks)[1]


def require_lower(layers, dims, rows, jitted):
    adam, clip = optim.AdamW(1e-3), optim.clip_by_global_norm(1.0)
    keys = mx.random.split(mx.random.key(0), layers)
    model = fl.nn.Sequential(*(fl.nn.Linear(dims, dims, bias=False, key=key) for key in keys))
    x = mx.random.normal((rows, dims), key=mx.random.key(GROUP.rank()))
    fl.eval(model, x)
    whole = peak_of(optim.chain(average, adam), model, x, jitted)
    after = peak_of(optim.chain(average, optim.shard(adam)), model, x, jitted)
    inside = peak_of(optim.shard(adam, average=True), model, x, jitted)
    clipped = peak_of(optim.shard(optim.chain(clip, adam), average=True), model, x, jitted)
    found = f"{whole:.2f}, {after:.2f}, {inside:.2f}, {clipped:.2f}"
    print(found)
    assert max(after, clipped) < whole - 0.1, found
    assert inside < after - 0.1, found


def check_few_large_arrays_in_a_jitted_step():
    require_lower(12, 512, 4, True)


def check_few_large_arrays():
    require_lower(12, 512, 4, False)


def check_many_arrays():
    require_lower(60, 256, 4, True)


def check_a_larger_batch():
    require_lower(24, 256, 32, True)


if __name__ == "__main__":
    ranks.run(globals())
