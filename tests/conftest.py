"""What holds of all tests."""

import gc

import pytest
from hypothesis import settings

# How many examples every law is checked with: few, drawn anew each day, and with pytest -m long many.
settings.register_profile("few", max_examples=20)
settings.register_profile("many", max_examples=200)


def pytest_configure(config):
    settings.load_profile("many" if config.option.markexpr == "long" else "few")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if config.option.markexpr == "long":
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker("long")
    for item in items:
        if " at 0x" in item.nodeid:  # and so has another name in each of the processes that run tests
            raise pytest.UsageError(f"{item.nodeid} is named after an address: give the parameters ids")


def pytest_collection_finish():
    """Keep the thousands of tests themselves out of what the collector looks through each time that a test calls it."""
    gc.collect()
    gc.freeze()
