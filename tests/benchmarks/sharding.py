"""Print the peak memory of a training step on this rank, and the bytes of the state, as parts of the size of the model."""

import json
import sys

import mlx.core as mx

import frostleaf as fl
from frostleaf import optim

LAYERS, DIMS = 60, 1024
OPTIMIZERS = {
    "whole": lambda opt: optim.chain(fl.distributed.average_gradients, opt),
    "shard": lambda opt: optim.chain(fl.distributed.average_gradients, optim.shard(opt)),
    "shard, average=True": lambda opt: optim.shard(opt, average=True),
}


def measured(opt):
    mx.random.seed(0)
    model = fl.nn.Sequential(*(fl.nn.Linear(DIMS, DIMS, bias=False) for _ in range(LAYERS)))
    size = fl.tree.nbytes(model)
    now = [model, opt.init(model)]
    del model
    x = mx.random.normal((4, DIMS), key=mx.random.key(fl.distributed.init().rank()))

    @fl.jit
    def step(model, state, x):
        loss, grads = fl.value_and_grad(lambda model: model(x).square().mean())(model)
        return *opt.update(model, grads, state), loss

    for _ in range(2):
        mx.clear_cache()
        mx.reset_peak_memory()
        *now[:], loss = step(*now, x)
        fl.distributed.eval(now, loss)
    return mx.get_peak_memory() / size, fl.tree.nbytes(now[1]) / size


if __name__ == "__main__":
    print(json.dumps(measured(OPTIMIZERS[sys.argv[1]](optim.AdamW(1e-3)))))
