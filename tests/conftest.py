"""What holds of all tests."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if " at 0x" in item.nodeid:  # and so has another name in each of the processes that run tests
            raise pytest.UsageError(f"{item.nodeid} is named after an address: give the parameters ids")
