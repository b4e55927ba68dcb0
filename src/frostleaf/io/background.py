"""Run functions in threads, one at a time, so that whatever interrupts those who wait, what runs is known and waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .failures import Failures

_SECONDS = 1.0  # after which one who waits looks again, in case another has been interrupted as it woke


class Background:
    """What is running in the background.

    Each method may be called by a signal handler while the same thread is in any other, or be ended by Ctrl-C.
    """

    def __init__(self) -> None:
        self._jobs: set[_Job] = set()
        self._turn = threading.Lock()
        self._failures = Failures(self)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is running."""
        return all(job.has_ended for job in [*self._jobs])

    def start(self, name: str, function: Callable[[], Any], holding: object = None) -> None:
        """Run a function in a thread, after those that are running. If no thread can begin, it is run here.

        While the interpreter shuts down, this returns when the function has ended.

        Args:
            name: The thread's name.
            function: The function. An exception of it is raised by :meth:`wait`, or said in the end.
            holding: What is not let go before the function has ended.
        """
        job = _Job(function, holding, self._turn, self._failures)
        # Explicitly not a daemon, as it would be in a daemon thread: the process would end without it.
        thread = threading.Thread(target=job.begin, name=name, daemon=False)
        try:
            self._jobs.add(job)
            thread.start()
        except RuntimeError:  # from Python 3.12 on, none begins while the interpreter shuts down
            job.run()
        except BaseException:  # also an interrupt, before or after the thread has begun
            job.cancel()
            raise
        else:
            if job.is_the_last_chance():
                thread.join()

    def wait(self) -> None:
        """Wait until nothing is running.

        Raises:
            Exception: What a function has raised, the first of those that were not raised yet.
        """
        self.finish()
        self._failures.raise_next()

    def finish(self) -> None:
        """Wait until nothing is running, and leave what was raised to those who call :meth:`wait`."""
        for job in [*self._jobs]:
            job.wait()
            self._jobs.discard(job)


class _Job:
    def __init__(self, function: Callable[[], Any], holding: object, turn: threading.Lock, failures: Failures) -> None:
        self._given: tuple[Callable[[], Any], object] | None = (function, holding)
        self._turn, self._failures = turn, failures
        self._begun, self._asked, self._ended = threading.Lock(), threading.Lock(), threading.Lock()
        self._asked.acquire()
        self._ended.acquire()
        self._main_lives = True
        self.has_ended = False

    def begin(self) -> None:
        """Run it in the thread that it has for itself."""
        # Ctrl-C in the main thread, while that asks this, would mark it as ended (https://bugs.python.org/issue45274).
        self._main_lives = threading.main_thread().is_alive()
        self._asked.release()
        self.run()

    def is_the_last_chance(self) -> bool:
        """Return whether the interpreter waits for no more threads, once its thread has begun."""
        self._asked.acquire()
        return not self._main_lives

    def run(self) -> None:
        if not self._begun.acquire(blocking=False):
            return
        assert self._given is not None
        function, holding = self._given
        self._given = None
        try:
            with self._turn:
                function()
        except Exception as error:
            self._failures.add(error)
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
