"""What a :class:`~frostleaf.Checkpointer` is told when it is made."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ..core.words import describe
from ..transforms.agreement import Said
from .atomic import require_path
from .metrics import name_of_metric, whole
from .pruning import Policy
from .summary import Best


class Options(NamedTuple):
    """The arguments of a Checkpointer, which have been checked."""

    keep: int | None
    every: int
    best: str | None
    mode: str
    keep_best: int
    path: str

    def said(self) -> Said:
        """Say those that are the same on all ranks."""
        return {name: describe(value) for name, value in self._asdict().items() if name != "path"}

    def policy(self) -> Policy:
        """Return which checkpoints are kept."""
        return Policy(self.keep, None if self.best is None else Best(self.best, self.mode, self.keep_best))


def options_of(directory: Any, keep: Any, every: Any, best: Any, mode: Any, keep_best: Any) -> Options:
    """Return the arguments of a Checkpointer.

    Raises:
        TypeError: If ``best`` is no name, or ``directory`` no path.
        ValueError: If ``keep``, ``every``, ``mode`` or ``keep_best`` is none of those that there are, or there is no metric for
            ``keep_best``.
    """
    keep, every = keep if keep is None else whole("keep", keep, 1), whole("every", every, 1)
    if mode not in ("min", "max"):
        raise ValueError(f"mode is 'min' or 'max', and was given as {describe(mode)}")
    metric, count = name_of_metric(best), whole("keep_best", keep_best, 1)
    if metric is None and count > 1:
        raise ValueError(f"keep_best={count} needs the name of the metric that says which are best: best='loss'")
    # It stays the same when a link to it or the current directory changes.
    path = os.path.realpath(os.path.expanduser(require_path(directory, "fl.Checkpointer(directory)")))
    return Options(keep, every, metric, mode, count, path)
