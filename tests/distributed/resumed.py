"""A run of 30 steps that saves checkpoints, or goes on from them, on any number of ranks; the last may be killed in step 23.

Run with the directory of the checkpoints, which rank 0 alone has, the file of the result, and ``killed`` or ``whole``.
"""

import os
import signal
import sys

import mlx.core as mx

import frostleaf as fl

STEPS, EVERY, KILLED_IN = 30, 5, 23
GROUP = fl.distributed.init()
# Rank 0 sees no other part of what is divided.
OPTIMIZER = fl.optim.shard(fl.optim.chain(fl.optim.clip_by_global_norm(1.0), fl.optim.AdamW(0.05)), average=True)


def start():
    model = fl.nn.Sequential(fl.nn.Linear(4, 5, key=mx.random.key(0)), fl.nn.relu, fl.nn.Linear(5, 1, key=mx.random.key(1)))
    return model, OPTIMIZER.optimizer.init(model)


def batch(step):
    x = mx.random.normal((12, 4), key=mx.random.key(step))
    return fl.distributed.shard_batch((x, x.sum(1, keepdims=True).square()))


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def main(folder, file, ending):
    folder = folder if GROUP.rank() == 0 else "/dev/null/nowhere"
    with fl.Checkpointer(folder, group=GROUP) as checkpoints:
        steps = checkpoints.steps()
        step, (model, whole) = checkpoints.restore(fl.eval_shape(start)) if steps else (0, start())
        print(f"from {step}", flush=True)
        state = OPTIMIZER.scatter(whole)
        while step < STEPS:
            step += 1
            if step == KILLED_IN and ending == "killed" and GROUP.rank() == GROUP.size() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            model, state = OPTIMIZER.update(model, fl.grad(loss)(model, batch(step)), state)
            fl.distributed.eval(model, state, timeout=30)
            if step % EVERY == 0:
                checkpoints.save(step, (model, OPTIMIZER.gather(state)))
    fl.distributed.require_same(model)
    whole = OPTIMIZER.gather(state)
    fl.distributed.barrier()
    if GROUP.rank() == 0:
        fl.save(file, (model, whole))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except fl.distributed.PeerLostError as error:
        print(f"lost: {error}", flush=True)
        sys.exit(3)
