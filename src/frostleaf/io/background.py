"""Run functions in threads, one at a time, so that whatever interrupts those who wait, what runs is known and waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_SECONDS = 1.0  # after which one who waits looks again, in case another has been interrupted as it woke


class Background:
    """What is running in the background.

    Each method may be called by a signal handler while the same thread is in any other, or be ended by Ctrl-C.
    """

    def __init__(self) -> None:
        self._jobs: set[_Job] = set()
        self._turn = threading.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is running."""
        return all(job.has_ended for job in [*self._jobs])

    def start(self, name: str, function: Callable[[], Any], holding: object = None) -> None:
        """Run a function in a thread, after those that are running. While the interpreter shuts down, it is run here.

        Args:
            name: The thread's name.
            function: The function. It raises nothing.
            holding: What is not let go before the function has ended.
        """
        if not threading.main_thread().is_alive():  # the interpreter waits for no more threads
            function()
            return
        job = _Job(function, holding, self._turn)
        # Explicitly not a daemon, as it would be in a daemon thread: the process would end without it.
        thread = threading.Thread(target=job.run, name=name, daemon=False)
        try:
            self._jobs.add(job)
            thread.start()
        except BaseException:  # also an interrupt, before or after the thread has begun
            job.cancel()
            raise

    def wait(self) -> None:
        """Wait until nothing is running."""
        for job in [*self._jobs]:
            job.wait()
            self._jobs.discard(job)


class _Job:
    def __init__(self, function: Callable[[], Any], holding: object, turn: threading.Lock) -> None:
        self._given: tuple[Callable[[], Any], object] | None = (function, holding)
        self._turn = turn
        self._begun, self._ended = threading.Lock(), threading.Lock()
        self._ended.acquire()
        self.has_ended = False

    def run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        assert self._given is not None
        function, holding = self._given
        self._given = None
        try:
            with self._turn:
                function()
        finally:
            del function, holding
            self._end()

    def cancel(self) -> None:
        """Never run it, unless it has begun."""
        if self._begun.acquire(blocking=False):
            self._given = None
            self._end()

    def wait(self) -> None:
        # Neither an event nor a join will do: a signal handler that waits in the middle of either waits for ever.
        while not self.has_ended:
            if self._ended.acquire(timeout=_SECONDS):
                self._ended.release()
            else:  # its thread may be waiting for what a signal handler that waits here has interrupted
                self.run()

    def _end(self) -> None:
        self.has_ended = True
        self._ended.release()
