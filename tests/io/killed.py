"""Processes that save in a loop and are killed at random instants. Run as a script: MLX does not survive a fork once used.

Nothing is computed in this process itself. Each child is forked from it, which takes no import.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import Any

import mlx.core as mx

import frostleaf as fl

SIZES = (3, 1000, 100_000)


def tree_of(step: int) -> dict[str, Any]:
    """Return the tree that belongs to a step: each of its numbers says which step that is."""
    return {"step": step, "arrays": [mx.full(size, step, mx.int32) for size in SIZES]}


def is_whole(step: int, tree: dict[str, Any]) -> bool:
    return tree["step"] == step and all(bool((array == step).all()) for array in tree["arrays"])


def save_until_killed(folder: str) -> None:
    checkpoints = fl.Checkpointer(folder, keep=2)
    step = checkpoints.restore(tree_of(0))[0] if checkpoints.steps() else 0
    while True:
        step += 1
        checkpoints.save(step, tree_of(step))


def look(folder: str, least: int) -> int:
    """Return 0 if the directory restores to a whole checkpoint of a step that is not before ``least``."""
    checkpoints = fl.Checkpointer(folder)
    if not checkpoints.steps():
        return 0 if least == 0 else 2
    step, tree = checkpoints.restore(tree_of(0))
    with open(os.path.join(folder, "restored"), "w") as file:
        file.write(str(step))
    return 0 if is_whole(step, tree) and step >= least else 3


def forked(function: Any, *arguments: Any) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = function(*arguments)
    finally:
        os._exit(code)


def main(folder: str, kills: int, seed: int) -> int:
    draw = random.Random(seed)
    restored = 0
    for kill in range(kills):
        child = forked(save_until_killed, folder)
        time.sleep(draw.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(f"kill {kill}: the process had ended with status {status}")
            return 1
        _, status = os.waitpid(forked(look, folder, restored), 0)
        if status:
            print(f"kill {kill}: status {status} after step {restored}: {sorted(os.listdir(folder))}")
            return 1
        if os.path.exists(os.path.join(folder, "restored")):
            with open(os.path.join(folder, "restored")) as file:
                restored = int(file.read())
    print(kills, restored, len(os.listdir(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
