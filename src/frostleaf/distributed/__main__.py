"""Train on handwritten digits with two processes, compare with one, lose a process, and go on from the last checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

import frostleaf as fl

from ..__main__ import DigitNet, accuracy, batches, lacks_extras, load_digits, train_step

RANKS = 2
BATCH = 64
LATEST = 120  # seconds, after which a job is ended
TRY_AGAIN = 75  # the exit status of a rank that has lost another, as that of fl.distributed.eval
CLOSE = 1e-4
OPTIMIZER = fl.optim.shard(fl.optim.AdamW(2e-3), average=True)

Tree = tuple[DigitNet, Any]


def start() -> Tree:
    """Return a new model and the whole state of its optimizer, as a checkpoint has them.

    In evaluation mode there is no dropout, and batch norm does not look at the batch, of which each rank has a part only.
    """
    model = DigitNet().eval()
    return model, OPTIMIZER.optimizer.init(model)


def train(folder: str, epochs: int, seed: int, lost_in: int | None = None) -> DigitNet:
    """Train from the last checkpoint in a directory, or from the beginning, on the ranks of this job.

    Args:
        folder: The directory, which rank 0 alone looks at.
        epochs: How many epochs there are.
        seed: What the model and the order of the digits depend on.
        lost_in: In which epoch the last rank is killed. Default: in none.
    """
    group = fl.distributed.init()
    is_first, is_last = group.rank() == 0, group.rank() == group.size() - 1
    training, test = load_digits(seed)
    step = train_step(OPTIMIZER)
    mx.random.seed(seed)
    with fl.Checkpointer(folder, group=group) as checkpoints:
        begun = fl.distributed.broadcast(start())
        done, (model, whole) = checkpoints.restore(fl.eval_shape(start)) if checkpoints.steps() else (0, begun)
        if is_first and done:
            print(f"  from the checkpoint of epoch {done}", flush=True)
        state = OPTIMIZER.scatter(whole)
        if is_first:
            own, all_of_it = (fl.tree.nbytes(each) / 1024 for each in (state, whole))
            print(f"  each rank keeps {own:.0f} of {all_of_it:.0f} KiB of optimizer state", flush=True)
        for epoch in range(done + 1, epochs + 1):
            mx.random.seed(seed + epoch)  # on all ranks the same order
            for number, batch in enumerate(batches(training, BATCH)):
                if epoch == lost_in and number == 3 and is_last:
                    os.kill(os.getpid(), signal.SIGKILL)
                model, state, loss = step(model, state, fl.distributed.shard_batch(batch))
                fl.distributed.eval(model, state, timeout=LATEST)
            mean = fl.distributed.all_sum(loss).item() / group.size()
            if is_first:
                print(f"  epoch {epoch}/{epochs}: loss {mean:.4f}, test accuracy {accuracy(model, test):.2%}", flush=True)
            checkpoints.save(epoch, (model, OPTIMIZER.gather(state)))
    fl.distributed.require_same(model)
    return model


def run_as_rank(options: argparse.Namespace) -> int:
    """Take part in a job, and return the exit status."""
    with ExitStack() as stack:
        folder = options.checkpoints or stack.enter_context(tempfile.TemporaryDirectory())
        try:
            train(folder, options.epochs, options.seed, options.lose)
        except fl.distributed.PeerLostError as error:
            print(f"  rank {fl.distributed.init().rank()}: {error}", flush=True)
            return TRY_AGAIN
    return 0


@contextmanager
def started(*arguments: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the ranks of a job, as ``mlx.launch`` does on one machine, and end what is left of them afterwards."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        sockets = [stack.enter_context(socket.socket()) for _ in range(RANKS)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        hosts = Path(folder, "hosts.json")
        hosts.write_text(json.dumps([[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]))
        for each in sockets:
            each.close()
        job = []
        for rank in range(RANKS):
            command = [sys.executable, "-m", "frostleaf.distributed", *arguments]
            environment = {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
            job.append(subprocess.Popen(command, env=environment))
            stack.callback(_end, job[-1])
        yield job


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def statuses_of(*arguments: str) -> list[int | None]:
    """Run a job, and return the exit statuses: ``None`` for a rank that does not end in time."""
    with started(*arguments) as job:
        end = time.monotonic() + LATEST
        while any(each.poll() is None for each in job) and time.monotonic() < end:
            time.sleep(0.05)
        return [each.poll() for each in job]


def largest_difference(one: DigitNet, other: DigitNet) -> float:
    """Return the largest difference between two numbers of two models."""
    pairs = zip(fl.tree.leaves(one), fl.tree.leaves(other), strict=True)
    return max(float(mx.abs(ours - theirs).max()) for ours, theirs in pairs)


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration, or take part as a rank, and return the exit status: 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m frostleaf.distributed", description=__doc__)
    parser.add_argument("--epochs", type=int, default=4, help="passes over the training digits, 2 or more (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed prints the same (default: 0)")
    parser.add_argument("--checkpoints", metavar="DIRECTORY", help="of a rank, such as under mlx.launch: where checkpoints are")
    parser.add_argument("--lose", type=int, metavar="EPOCH", help="of a rank: in which epoch the last one is killed")
    options = parser.parse_args(argv)
    if options.epochs < 2:
        parser.error("--epochs is 2 or more")
    if lacks_extras():
        return 2
    if mx.default_device().type == mx.cpu:
        mx.disable_compile()  # it would take longer than to train
    if fl.distributed.init().size() > 1:
        return run_as_rank(options)

    with tempfile.TemporaryDirectory() as folder:
        given = f"--epochs={options.epochs}", f"--seed={options.seed}"
        lost_in = options.epochs // 2 + 1
        print("one process", flush=True)
        alone = train(f"{folder}/alone", options.epochs, options.seed)
        jobs = {
            f"{RANKS} ranks on this machine, each with a part of every batch and of the optimizer's state": (
                ("whole",), [0] * RANKS,
            ),
            f"again, and the last rank is killed in epoch {lost_in}": (
                ("lost", f"--lose={lost_in}"), [TRY_AGAIN] * (RANKS - 1) + [-signal.SIGKILL],
            ),
            "the same job, started again": (("lost",), [0] * RANKS),
        }  # fmt: skip
        for title, ((name, *more), expected) in jobs.items():
            print(f"\n{title}", flush=True)
            statuses = statuses_of(*given, f"--checkpoints={folder}/{name}", *more)
            if statuses != expected:
                print(f"the ranks ended with the exit statuses {statuses}; {expected} were expected", file=sys.stderr)
                return 1
        together, resumed = (
            fl.Checkpointer(f"{folder}/{name}").restore(fl.eval_shape(start), options.epochs)[1][0]
            for name in ("whole", "lost")
        )
    differences = {
        "two ranks and one process": largest_difference(together, alone),
        "with and without a lost rank": largest_difference(resumed, together),
    }
    print("\nthe largest difference between two numbers of the trained models")
    for name, difference in differences.items():
        print(f"  {name}: {difference:.1e}")
    if not max(differences.values()) < CLOSE:
        print(f"they were expected to differ by less than {CLOSE}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
