"""What each process that runs tests has to itself."""

import os
import tempfile
from pathlib import Path

import pytest

# MLX keeps the kernels that it compiles for the CPU below the temporary directory, and two processes that write the same one
# at the same time break it.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    own = Path(tempfile.gettempdir(), f"frostleaf-tests-{worker}")
    own.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)


def pytest_collection_modifyitems(items):
    for item in items:
        if " at 0x" in item.nodeid:  # and so has another name in each process
            raise pytest.UsageError(f"{item.nodeid} is named after an address: give the parameters ids")
