"""A training loop of which the last rank fails in a step, in the way that the first argument says."""

import os
import signal
import sys
import tempfile
import time

import mlx.core as mx
import ranks

import frostleaf as fl

GROUP = fl.distributed.init()
FAILS = GROUP.rank() == GROUP.size() - 1


@fl.jit
def step(model, x):
    grads = fl.grad(lambda model: model(x).sum())(model)
    return fl.tree.map(lambda leaf, grad: leaf - 0.1 * grad, model, fl.distributed.average_gradients(grads))


def fail(way):
    sys.stdout.flush()
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "ended":
        os._exit(3)
    time.sleep(60)


def save(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(f"{folder}/model.safetensors")


def save_tree(tree):
    with tempfile.TemporaryDirectory() as folder:
        fl.save(f"{folder}/tree", tree)


WAITING = {
    "all_sum": fl.distributed.all_sum,
    "broadcast": fl.distributed.broadcast,
    "shard_batch": lambda x: fl.distributed.shard_batch(mx.concatenate([x] * GROUP.size())),
    "barrier": lambda x: fl.distributed.barrier(),
    "save_weights": lambda x: save(fl.distributed.all_sum(fl.nn.Linear(2, 1))),
    "save": lambda x: save_tree(fl.jit(fl.distributed.all_sum)(x)),
    "eval": lambda x: fl.eval(fl.jit(fl.distributed.all_sum)(x)),
}


def wait(way, timeout, x):
    """Wait for a rank that hangs, with a timeout for the whole job."""
    assert fl.distributed.init(timeout=timeout) is fl.distributed.init()
    WAITING[way](x)
    fl.distributed.eval(x, timeout=100.0)
    if FAILS:
        time.sleep(60)
    WAITING[way](x)


def main(way, timeout):
    model = fl.distributed.broadcast(fl.nn.Linear(2, 1))
    x = mx.ones((3, 2))
    if way in WAITING:
        wait(way, timeout, x)
    for number in range(3):
        if FAILS and number == 2:
            fail(way)
        new = step(model, x)
        try:
            fl.distributed.eval(new, timeout=timeout)
        except fl.distributed.PeerLostError as error:
            print(f"lost in step {number}: {error}")
            break
        model = new
    begun = time.monotonic()
    for exchange in (lambda: step(model, x), lambda: fl.distributed.all_sum(x), fl.distributed.barrier):
        print(ranks.error_of(exchange, fl.distributed.PeerLostError))
    assert time.monotonic() - begun < 1
    print("whole", float(model.weight.sum()) < 100)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
