"""Checkpoints that several ranks save and restore together."""

from pathlib import Path

import pytest
import ranks

SCRIPT = Path(__file__).with_name("together.py")


def test_two_ranks():
    ranks.require(SCRIPT, 2)


@pytest.mark.long
@pytest.mark.parametrize("count", [3, 4])
def test_more_ranks(count):
    ranks.require(SCRIPT, count, timeout=240)
