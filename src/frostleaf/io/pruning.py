"""Which checkpoints of a run are kept: the latest that can be read, and the best, also that of an earlier run."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .directory import Entry
from .metrics import best_of


def kept(entries: Mapping[int, Entry], broken: Collection[tuple[int, int]], keep: int, best: str | None, mode: str) -> set[int]:
    """Return the steps of the checkpoints to keep.

    One that can't be read doesn't count, and goes when as many as are to be kept have been saved since.

    Args:
        entries: The checkpoints by step.
        broken: The times and steps of those that can't be read, besides those whose entries say so.
        keep: How many of the latest to keep.
        best: The name of the metric that decides which is the best, or ``None``.
        mode: Whether it is the smallest, ``"min"``, or the largest, ``"max"``.
    """
    whole = {step: entry for step, entry in entries.items() if entry.beside is not None and (entry.time, step) not in broken}
    times = sorted(entry.time for entry in whole.values())
    oldest = times[-keep] if len(times) >= keep else 0
    steps = {step for step, entry in entries.items() if entry.time >= oldest}
    bests = [best_of(whole, best, mode)]
    # Each checkpoint says by what the run that saved it chose its best.
    for chosen in {entry.best for entry in whole.values() if entry.best is not None} - {(best, mode)}:
        bests.append(best_of({step: entry for step, entry in whole.items() if entry.best == chosen}, *chosen))
    return steps.union(step for step in bests if step is not None)
