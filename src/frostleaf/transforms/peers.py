"""Processes of the job that are lost."""

from __future__ import annotations

import re
from typing import Any


class PeerLostError(RuntimeError):
    """A process of the job has ended, can't be reached or is out of step, so that nothing more can be exchanged with it.

    Raised by the evaluation that finds out, and at once by every exchange after it. What was exchanged before is whole. A job
    goes on from its last checkpoint, when it is started again.

    >>> import frostleaf as fl
    >>> issubclass(fl.distributed.PeerLostError, RuntimeError)
    True
    """


LOST = (
    "a process of the job was lost while arrays were exchanged with it ({error}): what is computed of them can't be had. Start "
    "the job again from its last checkpoint"
)
OUT_OF_STEP = (
    "{name} met another exchange on another process: the processes are out of step, as they are if one goes on after an error "
    "in the middle of a step, or exchanges something inside an if. What they exchanged last is not right, and nothing more can "
    "be exchanged. Start the job again from its last checkpoint"
)
GONE = "a process of the job was lost before ({error}): nothing can be exchanged any more. Start the job again"

# How MLX's errors of each transport begin.
_OF_A_TRANSPORT = re.compile(r"\[(ring|jaccl|mpi|nccl)\]")
_lost: list[str] = []


def require_peers() -> None:
    """Require that no process is known to be lost, before something is exchanged: MLX would wait for it for ever.

    Raises:
        PeerLostError: If one is.
    """
    if _lost:
        raise PeerLostError(GONE.format(error=_lost[0]))


def out_of_step(name: str) -> PeerLostError:
    """Note that what a function exchanges is not what others do, and return the error that says so."""
    _lost.append(f"out of step: {name} met another exchange")
    return PeerLostError(OUT_OF_STEP.format(name=name))


class noticing:  # noqa: N801
    """Evaluate arrays in a ``with`` block, and notice if another process is lost."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, RuntimeError) and _OF_A_TRANSPORT.match(str(error)):
            _lost.append(str(error))
            raise PeerLostError(LOST.format(error=error)) from error
