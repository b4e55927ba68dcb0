"""Evaluating what was exchanged, without waiting for ever."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from ..core.words import describe
from ..transforms import evaluation
from ..transforms.collectives import tokens
from ..transforms.group import world
from ..transforms.peers import PeerLostError

__all__ = ["PeerLostError", "eval"]

# EX_TEMPFAIL of sysexits.h: a failure that another try may mend.
_TRY_AGAIN = 75

LATE = (
    "fl.distributed.eval waited for {timeout} s on rank {rank} of {ranks}: another process hangs, or does not exchange what "
    "this one does. The process ends with status {status}; start the job again from its last checkpoint"
)


def eval(*trees: Any, timeout: float | None = None) -> None:
    """Evaluate every array in the trees, and take part in everything that was exchanged before in this thread.

    As :func:`frostleaf.eval`, for a training loop on several processes. A process that is lost is an error here; for one that
    hangs MLX waits for ever, and can't be interrupted: with a ``timeout`` this process ends instead, with exit status 75
    (``EX_TEMPFAIL``) and a message on the standard error output, so that what started the job can start it again.

    Args:
        *trees: Any trees.
        timeout: For how many seconds to wait. Longer than any step takes, with the first, which compiles, among them. Default:
            for ever.

    Raises:
        PeerLostError: If another process is lost. Every exchange after that raises it at once.
        ValueError: If ``timeout`` is not a number above 0.

    >>> import frostleaf as fl, mlx.core as mx
    >>> loss = fl.distributed.all_sum(mx.array(1.0))
    >>> fl.distributed.eval(loss, timeout=600)
    """
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout > 0):
        raise ValueError(
            f"timeout is a number of seconds above 0, or None to wait for ever, and was given as {describe(timeout)}"
        )
    with _ending_after(timeout):
        evaluation.eval(*trees, tokens())


@contextlib.contextmanager
def _ending_after(timeout: float | None) -> Iterator[None]:
    """End the process if a ``with`` block takes longer."""
    if timeout is None:
        yield
        return
    watch = threading.Timer(min(timeout, threading.TIMEOUT_MAX), _end, [timeout])
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _end(timeout: float) -> None:
    group = world()
    said = LATE.format(timeout=timeout, rank=group.rank(), ranks=group.size(), status=_TRY_AGAIN)
    print(said, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or none
            stream.flush()
    os._exit(_TRY_AGAIN)  # the thread that waits can't be ended otherwise
