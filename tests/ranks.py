"""Processes of one job on 127.0.0.1, which exchange arrays over MLX's ring, each with a bounded time.

A script of checks has functions ``check_*``, and calls ``ranks.run(globals())`` if it is run as a program. All ranks run them
in order, in one launch, because starting Python and MLX takes longer than a check. Its test is ``ranks.require(script, 2)``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx

import frostleaf as fl

TESTS = Path(__file__).parent
GRACE = 5.0  # seconds, for the others once a rank has failed
PRINTED = 4000


@attrs.define
class Rank:
    """One process of a job.

    Attributes:
        process: The process.
        file: What it prints.
    """

    process: subprocess.Popen[bytes]
    file: Any

    def printed(self) -> str:
        """Return what it has printed so far."""
        return Path(self.file.name).read_text(errors="replace")


@contextmanager
def started(script: str | Path, ranks: int, *arguments: str, **environment: str) -> Iterator[list[Rank]]:
    """Start the processes of a job, as ``mlx.launch`` does for the ring, and end what is left of them afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(ranks)]))
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        found = []
        for rank in range(ranks):
            file = stack.enter_context(open(folder / f"rank{rank}", "w"))
            launched = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if ranks > 1 else {}  # MLX has no ring of one
            given = {**os.environ, **launched, "PYTHONPATH": path, **environment}
            command = [sys.executable, str(script), *arguments]
            process = subprocess.Popen(command, env=given, stdout=file, stderr=subprocess.STDOUT)
            stack.callback(_end, process)
            found.append(Rank(process, file))
        yield found


def wait(job: list[Rank], timeout: float, grace: float = GRACE) -> list[int | None]:
    """Wait for a job and return the exit statuses: ``None`` for a rank that did not end, even a while after another failed."""
    begun, failed = time.monotonic(), None
    while True:
        statuses, now = [rank.process.poll() for rank in job], time.monotonic()
        failed = failed or (now if any(statuses) else None)
        late = now > begun + timeout or (failed is not None and now > failed + grace)
        if None not in statuses or late:
            return statuses
        time.sleep(0.02)


def require(script: str | Path, ranks: int, *arguments: str, timeout: float = 60.0, **environment: str) -> None:
    """Run a script on some ranks.

    Raises:
        AssertionError: If a rank fails or does not end, with what all have printed.
    """
    with started(script, ranks, *arguments, **environment) as job:
        statuses = wait(job, timeout)
        if any(statuses) or None in statuses:
            said = [
                f"rank {at}: status {status}\n{rank.printed()[-PRINTED:]}"
                for at, (status, rank) in enumerate(zip(statuses, job, strict=True))
            ]
            raise AssertionError("\n".join(said))


def run(names: dict[str, Any]) -> None:
    """Run the checks of a script, in the order in which they stand there, and end the process at the first that fails."""
    wanted = re.compile(sys.argv[1] if len(sys.argv) > 1 else "")
    checks: list[Callable[[], None]] = [
        value for name, value in names.items() if name.startswith("check_") and wanted.search(name)
    ]
    for check in checks:
        begun = time.perf_counter()
        try:
            check()
        except BaseException:
            print(f"{check.__name__} failed", flush=True)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # without waiting for what the other ranks will not send
        print(f"{check.__name__} {time.perf_counter() - begun:.2f} s", flush=True)


def error_of(fn: Callable[[], Any], kind: type[Exception]) -> str:
    """Return what the error says that a call raises, on this rank."""
    try:
        fn()
    except kind as error:
        return str(error)
    raise AssertionError("no error")


def everywhere(fn: Callable[[], Any], *parts: str) -> None:
    """Require that a call is a ValueError on every rank whose message has some parts, and that the group goes on working."""
    said = error_of(fn, ValueError)
    for part in parts:
        assert re.search(part, said), said
    group = fl.distributed.init()
    assert fl.distributed.all_sum(mx.array(group.rank() + 1)).item() == sum(range(group.size() + 1))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
