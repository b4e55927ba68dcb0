"""The job that this process is one of."""

from __future__ import annotations

import mlx.core as mx

from ..transforms.agreement import agreed
from ..transforms.collectives import NO_VALUES, AnyGroup, all_sum, is_evaluated
from ..transforms.group import Group, as_group, world
from ..transforms.peers import require_timeout, wait_everywhere

__all__ = ["Group", "barrier", "init"]


def init(strict: bool = False, backend: str = "any", timeout: float | None = None) -> Group:
    """Return the group of all processes of this job, which the first call connects.

    ``mlx.launch`` starts the processes, and tells each which it is; a process that was started otherwise is a group of its own.
    All calls return the same object, which is a value: see :class:`Group`. Functions that take a ``group`` use it for ``None``,
    and take groups of ``mx.distributed`` too.

    Args:
        strict: Whether it is an error if no backend finds a job to connect to. Default: ``False``.
        backend: ``"ring"``, ``"mpi"``, ``"nccl"``, ``"jaccl"``, or ``"any"`` for the first that works. Default: ``"any"``.

        timeout: For how many seconds the functions of frostleaf wait in this process: for what is exchanged, as
            :func:`frostleaf.distributed.eval` does with a ``timeout`` of its own, in :func:`frostleaf.eval`, and where ranks
            are compared. MLX's own, ``mx.eval`` and ``item()``, wait for ever. Default: what an earlier call said, or for
            ever.

    Raises:
        ValueError: If ``timeout`` is not a number above 0.
        RuntimeError: If ``strict`` and there is no such job, or it can't be connected.

    >>> import frostleaf as fl
    >>> group = fl.distributed.init()
    >>> group.rank(), group.size(), group is fl.distributed.init()
    (0, 1, True)
    """
    require_timeout(timeout)
    group = world(strict, backend)
    if timeout is not None:
        wait_everywhere(timeout)
    return group


def barrier(group: AnyGroup = None) -> None:
    """Wait until all ranks are here, and everything that was exchanged before has been.

    Args:
        group: The ranks. Default: those of the whole job.

    Raises:
        TypeError: If ``group`` is no group.
        ValueError: On every rank, if one calls another function. In a function that is being traced.
        PeerLostError: If another process is lost.

    >>> import frostleaf as fl
    >>> fl.distributed.barrier()
    """
    group = as_group(group)
    agreed("barrier", group, lambda: (None, {}))
    if group.size() > 1 and not is_evaluated(all_sum(mx.array(0, mx.uint8), group)):
        raise ValueError(NO_VALUES.format(name="barrier"))
