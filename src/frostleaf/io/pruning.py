"""Which checkpoints of a run are kept: the latest that can be read, and the best ones, also those of an earlier run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from .directory import Entry
from .metrics import bests_of
from .summary import Best


class Policy(NamedTuple):
    """What a run keeps.

    Attributes:
        keep: How many of the latest, or ``None`` for all.
        best: By what it chooses its best, and how many of them it keeps besides, or ``None``.
    """

    keep: int | None
    best: Best | None


def kept(entries: Mapping[int, Entry], broken: Collection[tuple[int, int]], policy: Policy) -> set[int]:
    """Return the steps of the checkpoints to keep.

    One that can't be read doesn't count, and goes when as many as are to be kept have been saved since.

    Args:
        entries: The checkpoints by step.
        broken: The times and steps of those that can't be read, besides those whose entries say so.
        policy: What is to be kept.
    """
    if policy.keep is None:
        return {*entries}
    whole = {step: entry for step, entry in entries.items() if entry.beside is not None and (entry.time, step) not in broken}
    times = sorted(entry.time for entry in whole.values())
    oldest = times[-policy.keep] if len(times) >= policy.keep else 0
    steps = {step for step, entry in entries.items() if entry.time >= oldest}
    if policy.best is not None:
        steps.update(bests_of(whole, *policy.best))
    # Each checkpoint says by what the run that saved it chose its best.
    for chosen in {entry.best for entry in whole.values() if entry.best is not None}:
        if policy.best is None or policy.best[:2] != chosen[:2]:
            steps.update(bests_of({step: entry for step, entry in whole.items() if entry.best == chosen}, *chosen))
    return steps
