"""Processes of the job that are lost."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import threading
from contextvars import ContextVar
from typing import Any, NamedTuple

from ..core.words import describe
from .context import Leaving, Scope
from .group import in_use, world


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

LATE = (
    "{name} waited for {seconds} s on rank {rank} of {ranks}: another process hangs, or does not exchange what this one does. "
    "The process ends with status {status}; start the job again from its last checkpoint"
)

# EX_TEMPFAIL of sysexits.h: a failure that another try may mend.
_TRY_AGAIN = 75


class Patience(NamedTuple):
    """For how long to wait for other processes.

    Attributes:
        name: What waits.
        seconds: For how long.
    """

    name: str
    seconds: float

    def timer(self) -> threading.Timer:
        """Return what ends this process after that time, once it is started, unless it is cancelled."""
        timer = threading.Timer(min(self.seconds, threading.TIMEOUT_MAX), self._end)
        timer.daemon = True
        return timer

    def _end(self) -> None:
        group = world()
        shown = {"rank": group.rank(), "ranks": group.size(), "status": _TRY_AGAIN}
        print(LATE.format(**self._asdict(), **shown), file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, or none
                stream.flush()
        os._exit(_TRY_AGAIN)  # the thread that waits can't be ended otherwise


# That of this evaluation, and that of all others in this process, if there is one.
patience: ContextVar[Patience | None] = ContextVar("patience", default=None)
_everywhere: list[Patience] = []


def wait_everywhere(seconds: float) -> None:
    """Wait for so long in each evaluation in this process."""
    _everywhere[:] = [Patience("an evaluation", seconds)]


def require_timeout(timeout: Any) -> None:
    """Require a timeout.

    Raises:
        ValueError: If it is neither a number above 0 nor ``None``.
    """
    is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and timeout > 0):
        raise ValueError(
            f"timeout is a number of seconds above 0, or None to wait for ever, and was given as {describe(timeout)}"
        )


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
    """Notice in a ``with`` block, in which arrays are evaluated, if another process is lost."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, RuntimeError) and _OF_A_TRANSPORT.match(str(error)):
            _lost.append(str(error))
            raise PeerLostError(LOST.format(error=error)) from error


class waiting(Scope):  # noqa: N801
    """End this process if others keep it waiting in a ``with`` block for too long."""

    def _enter(self, leaving: Leaving) -> None:
        waits = (patience.get() or next(iter(_everywhere), None)) if in_use else None
        timers = [] if waits is None else [waits.timer()]
        leaving().undo = functools.partial(_cancel, timers)
        with contextlib.suppress(RuntimeError):  # the process ends, and no thread can be started any more
            for timer in timers:
                timer.start()


def _cancel(timers: list[threading.Timer]) -> None:
    for timer in timers:
        timer.cancel()
