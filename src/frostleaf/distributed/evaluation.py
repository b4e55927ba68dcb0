"""Evaluating what was exchanged, without waiting for ever."""

from __future__ import annotations

from typing import Any

from ..transforms import evaluation
from ..transforms.collectives import forget_stages, stages, tokens
from ..transforms.context import setting
from ..transforms.peers import Patience, PeerLostError, patience, require_timeout

__all__ = ["PeerLostError", "eval"]


def eval(*trees: Any, timeout: float | None = None) -> None:
    """Evaluate every array in the trees, and take part in everything that was exchanged before in this thread.

    As :func:`frostleaf.eval`, for a training loop on several processes. A process that is lost is an error here; for one that
    hangs MLX waits for ever, and can't be interrupted: with a ``timeout`` this process ends instead, with exit status 75
    (``EX_TEMPFAIL``) and a message on the standard error output, so that what started the job can start it again.

    On the CPU it takes less memory after a step of :func:`frostleaf.optim.shard`: the gradients are averaged and dropped bucket
    by bucket, where MLX makes room for all that a result needs before it computes it.

    Args:
        *trees: Any trees.
        timeout: For how many seconds to wait. Longer than any step takes, with the first, which compiles, among them. Default:
            that of :func:`init`, or for ever. Only that of :func:`init` ends other waits too: before arrays are exchanged
            outside of :func:`frostleaf.jit` ranks are compared, which waits for the slowest.

    Raises:
        PeerLostError: If another process is lost. Every exchange after that raises it at once.
        ValueError: If ``timeout`` is not a number above 0.

    >>> import frostleaf as fl, mlx.core as mx
    >>> loss = fl.distributed.all_sum(mx.array(1.0))
    >>> fl.distributed.eval(loss, timeout=600)
    """
    require_timeout(timeout)
    waits = patience.get() if timeout is None else Patience("fl.distributed.eval", timeout)
    with setting(patience, waits):
        evaluation.eval_after(stages(), *trees, tokens())
    forget_stages()
