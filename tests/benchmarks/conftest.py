"""One table for all benchmarks: ``pytest -n 0 tests/benchmarks`` prints it at the end. Nothing is asserted about time."""

import gc
import platform
import statistics
import time
from importlib.metadata import version

import pytest

ROWS = []


class Table:
    """Collects rows of the table."""

    def add(self, what, ours, theirs, unit="us", limit=None):
        """Add the ratio of two lists of measurements that were taken in turn: its median, its middle half, what it may be."""
        ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        quarter = len(ratios) // 4
        spread = f"{ratios[quarter]:.2f}-{ratios[-1 - quarter]:.2f}" if len(ratios) > 3 else ""
        factor = {"us": 1e6, "ms": 1e3, "MB": 1e-6, "": 1}[unit]
        ours, theirs = (statistics.median(each) for each in (ours, theirs))
        most = "" if limit is None else f"{limit:.1f}"
        ROWS.append(
            (what, f"{ours / theirs:.2f}", most, spread, f"{ours * factor:.1f} {unit}", f"{theirs * factor:.1f} {unit}")
        )

    def note(self, what, text):
        """Add a row that is not a ratio."""
        ROWS.append((what, "", "", "", text, ""))


def pytest_configure(config):
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("benchmarks are timed in one process: pytest -n 0 tests/benchmarks")


@pytest.fixture(scope="session")
def table():
    return Table()


@pytest.fixture
def without_collector():
    """Keep the garbage collector, whose cost is that of everything alive, out of what is timed, as ``timeit`` does."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def interleaved(without_collector):
    """Return a function that times functions in turn: a list of seconds for each."""

    def measure(*functions, rounds, between=lambda result: None):
        taken = [[] for _ in functions]
        for number in range(rounds + 3):
            for function, times in zip(functions, taken, strict=True):
                start = time.perf_counter()
                result = function()
                end = time.perf_counter()
                between(result)
                if number >= 3:
                    times.append(end - start)
        return taken

    return measure


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    header = ("", "ratio", "at most", "middle half", "frostleaf", "the other")
    widths = [max(len(row[column]) for row in [header, *ROWS]) for column in range(len(header))]
    versions = ", ".join(f"{name} {version(name)}" for name in ("frostleaf", "mlx", "optree", "attrs"))
    terminalreporter.section(f"{versions}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for row in [header, *ROWS]:
        cells = [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        terminalreporter.write_line("  ".join(cells).rstrip())
