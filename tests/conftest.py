"""What holds of all tests."""

import gc

import mlx.core as mx
import pytest
from hypothesis import settings

# How many examples every law is checked with: few, drawn anew each day, and with pytest -m long many.
settings.register_profile("few", max_examples=20)
settings.register_profile("many", max_examples=200)


def pytest_configure(config):
    settings.load_profile("many" if config.option.markexpr == "long" else "few")


def is_law(test):
    """Return whether a test draws examples, by hypothesis, or checks in itself a law that does."""
    return getattr(test, "is_hypothesis_test", False) or "law_for_each" in getattr(
        getattr(test, "__code__", None), "co_names", ()
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if config.option.markexpr == "long":
        for item in items:
            if is_law(getattr(item, "obj", None)):
                item.add_marker("long")
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.path.name == "activations.py":  # a kernel for each of the functions
            item.runtest = without_kernels(item.runtest)
        if " at 0x" in item.nodeid:  # and so has another name in each of the processes that run tests
            raise pytest.UsageError(f"{item.nodeid} is named after an address: give the parameters ids")


def without_kernels(run):
    """Return the function as one that calls this one without MLX's compiler."""

    def plain():
        mx.disable_compile()
        try:
            run()
        finally:
            mx.enable_compile()

    return plain


def pytest_collection_finish():
    """Keep the thousands of tests themselves out of what the collector looks through each time that a test calls it."""
    gc.collect()
    gc.freeze()
