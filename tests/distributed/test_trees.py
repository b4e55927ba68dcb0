"""What exchanges whole trees, on several ranks."""

from pathlib import Path

import pytest
import ranks

CHECKS = Path(__file__).with_name("trees.py")


def test_two_ranks():
    ranks.require(CHECKS, 2)


@pytest.mark.long
@pytest.mark.parametrize("count", [3, 4])
def test_more_ranks(count):
    ranks.require(CHECKS, count, timeout=240)
