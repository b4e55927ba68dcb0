"""A training step in each of the ways in which ranks divide it: what it keeps, its peak, what it sends, and how long it takes.

Run by each rank of a job; rank 0 prints a line of JSON.
"""

import json
import os
import socket
import statistics
import struct
import sys
import time
from pathlib import Path

import mlx.core as mx

import frostleaf as fl

WIDTH, PAIRS, ROWS, ROUNDS = 1024, 12, 32, 3
GROUP = fl.distributed.init()
ADAM = fl.optim.AdamW(1e-3)
AVERAGE = fl.distributed.average_gradients


def whole():
    layers = [layer for _ in range(PAIRS) for layer in (fl.nn.Linear(WIDTH, WIDTH), fl.nn.Linear(WIDTH, WIDTH))]
    return fl.nn.Sequential(*layers)


def fully_sharded(model):
    return model.at("layers.*").apply(lambda layer: fl.distributed.fully_shard(layer))


def checkpointed(model):
    return model.replace(layers=[fl.checkpoint(layer) for layer in fully_sharded(model).layers])


def tensor_parallel(model):
    ways = ("all-to-sharded", "sharded-to-all")
    return model.replace(layers=[fl.distributed.shard_linear(layer, ways[at % 2]) for at, layer in enumerate(model.layers)])


MODES = {
    "one process": (lambda model: model, ADAM),
    "data parallel": (lambda model: model, fl.optim.chain(AVERAGE, ADAM)),
    "sharded state": (lambda model: model, fl.optim.chain(AVERAGE, fl.optim.shard(ADAM))),
    "sharded state, average=True": (lambda model: model, fl.optim.shard(ADAM, average=True)),
    "fully sharded": (fully_sharded, fl.optim.chain(AVERAGE, ADAM)),
    "fully sharded, layers in fl.checkpoint": (checkpointed, fl.optim.chain(AVERAGE, ADAM)),
    "tensor parallel": (tensor_parallel, ADAM),
}


def sent():
    """Return how many bytes this process has sent over TCP so far."""
    total = 0
    for path in Path("/proc/self/fd").iterdir():
        if not (path.is_symlink() and os.readlink(path).startswith("socket:")):
            continue
        with socket.socket(fileno=os.dup(int(path.name))) as each:
            if each.type != socket.SOCK_STREAM or each.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            info = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        total += struct.unpack_from("Q", info, 120)[0]  # tcpi_bytes_acked
    return total


def measured(divide, optimizer):
    model = divide(whole())
    state = optimizer.init(model)
    fl.eval(model, state, at_once=0)
    x = mx.random.normal((ROWS, WIDTH), key=mx.random.key(GROUP.rank()))

    def step(model, state):
        grads = fl.grad(lambda model: model(x).square().mean())(model)
        return optimizer.update(model, grads, state)

    model, state = step(model, state)
    fl.distributed.eval(model, state)
    kept, before = mx.get_active_memory(), sent()
    mx.reset_peak_memory()
    taken = []
    for _ in range(ROUNDS):
        fl.distributed.barrier()
        start = time.perf_counter()
        model, state = step(model, state)
        fl.distributed.eval(model, state)
        taken.append(time.perf_counter() - start)
    fl.distributed.barrier()
    time.sleep(0.1)  # for what has been sent to be acknowledged
    return kept, mx.get_peak_memory(), (sent() - before) / ROUNDS, statistics.median(taken)


if __name__ == "__main__":
    nbytes = fl.tree.nbytes(whole())
    found = {name: measured(*MODES[name]) for name in MODES if GROUP.size() > 1 or name == "one process"}
    if GROUP.rank() == 0:
        print(json.dumps({"nbytes": nbytes, "activation": 4 * ROWS * WIDTH, "found": found}))
    sys.exit()
