"""Exchanges are in the order of the program."""

from pathlib import Path

import pytest
import ranks

CHECKS = Path(__file__).with_name("collectives.py")


def test_two_ranks():
    ranks.require(CHECKS, 2)


@pytest.mark.long
@pytest.mark.parametrize("count", [3, 4])
def test_more_ranks(count):
    ranks.require(CHECKS, count, timeout=240)
