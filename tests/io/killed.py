"""Processes that save in a loop and are killed at random instants. Run as a script: MLX does not survive a fork once used.

Nothing is computed in this process itself. Each child is forked from it, which takes no import. With ``shared`` the trees have
arrays that change at every seventh step only.
"""

from __future__ import annotations

import os
import pathlib
import random
import signal
import sys
import time
from typing import Any

import mlx.core as mx

from frostleaf import Checkpointer  # here, as children would each import it anew

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from checkpoints import left_over

SIZES = (3, 1000, 100_000)
CHANGED_EVERY = 7


def tree_of(step: int, shares: bool) -> dict[str, Any]:
    """Return the tree that belongs to a step: each of its numbers says which step that is, or which seven of them."""
    arrays = [mx.full(size, step, mx.int32) for size in SIZES]
    return {"step": step, "arrays": arrays, "still": [mx.full(100_000, step // CHANGED_EVERY, mx.int32)] * shares}


def is_whole(step: int, tree: dict[str, Any]) -> bool:
    arrays = [*((array, step) for array in tree["arrays"]), *((array, step // CHANGED_EVERY) for array in tree["still"])]
    return tree["step"] == step and all(bool((array == number).all()) for array, number in arrays)


def save_until_killed(folder: str, shares: bool) -> None:
    checkpoints = Checkpointer(folder, keep=2)
    step, tree = checkpoints.restore(tree_of(0, shares)) if checkpoints.steps() else (0, tree_of(0, shares))
    while True:
        step += 1
        new = tree_of(step, shares)
        tree = new if step % CHANGED_EVERY == 0 or step % 3 == 0 else {**new, "still": tree["still"]}
        checkpoints.save(step, tree)


def look(folder: str, least: int, shares: bool) -> int:
    """Return 0 if the directory has whole checkpoints only, the last of a step that is not before ``least``."""
    checkpoints = Checkpointer(folder)
    if not checkpoints.steps():
        return 0 if least == 0 else 2
    for each in checkpoints.steps():
        if not is_whole(*checkpoints.restore(tree_of(0, shares), each)):
            return 3
    step, _ = checkpoints.restore(tree_of(0, shares))
    with open(os.path.join(folder, "restored"), "w") as file:
        file.write(str(step))
    return 0 if step >= least else 4


def tidy(folder: str, least: int, shares: bool) -> int:
    """Go on as the only one, and return 0 if nothing is there then that no checkpoint needs."""
    checkpoints = Checkpointer(folder, keep=2)
    checkpoints.save(least + 1, tree_of(least + 1, shares))
    steps = checkpoints.steps()
    pathlib.Path(folder, "restored").unlink(missing_ok=True)
    return 0 if len(steps) <= 2 and not left_over(pathlib.Path(folder)) else 5


def forked(function: Any, *arguments: Any) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = function(*arguments)
    finally:
        os._exit(code)


def main(folder: str, kills: int, seed: int, shares: bool) -> int:
    draw = random.Random(seed)
    restored = 0
    for kill in range(kills):
        child = forked(save_until_killed, folder, shares)
        time.sleep(draw.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(f"kill {kill}: the process had ended with status {status}")
            return 1
        _, status = os.waitpid(forked(look, folder, restored, shares), 0)
        if status:
            print(f"kill {kill}: status {status} after step {restored}: {sorted(os.listdir(folder))}")
            return 1
        if os.path.exists(os.path.join(folder, "restored")):
            with open(os.path.join(folder, "restored")) as file:
                restored = int(file.read())
    left = len(os.listdir(folder))
    _, status = os.waitpid(forked(tidy, folder, restored, shares), 0)
    if status:
        print(f"status {status} in the end: {sorted(os.listdir(folder))}")
        return 1
    print(kills, restored, left)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "shared"))
