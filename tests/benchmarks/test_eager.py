"""A forward pass without jit beside the same model in ``mlx.nn``, and the cost of importing."""

import os
import subprocess
import sys
import time

import mlx.core as mx
import mlx.nn as nn

import frostleaf as fl

DIMS = 16


class Block(fl.Module):
    norm: fl.nn.LayerNorm
    up: fl.nn.Linear
    down: fl.nn.Linear

    def __init__(self):
        self.norm, self.up, self.down = fl.nn.LayerNorm(DIMS), fl.nn.Linear(DIMS, DIMS), fl.nn.Linear(DIMS, DIMS)

    def __call__(self, x):
        return x + self.down(fl.nn.relu(self.up(self.norm(x))))


class MLXBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(DIMS), nn.Linear(DIMS, DIMS), nn.Linear(DIMS, DIMS)

    def __call__(self, x):
        return x + self.down(nn.relu(self.up(self.norm(x))))


def test_a_forward_pass(table, interleaved):
    x = mx.ones((2, DIMS))
    ours, theirs = fl.nn.Sequential(*(Block() for _ in range(12))), nn.Sequential(*(MLXBlock() for _ in range(12)))
    fl.eval(ours)
    mx.eval(theirs.parameters())
    taken = interleaved(lambda: ours(x), lambda: theirs(x), rounds=200, between=mx.eval)
    table.add("host time of an eager forward pass, 12 blocks / mlx.nn", *taken)


def test_importing(table):
    taken = [], []
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # what is imported again has its bytecode
    for number in range(6):
        for times, module in zip(taken, ("frostleaf", "mlx.nn, mlx.optimizers"), strict=True):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment)
            if number:
                times.append(time.perf_counter() - start)
    table.add("a process that imports frostleaf / one that imports mlx.nn and mlx.optimizers", *taken, unit="ms")
