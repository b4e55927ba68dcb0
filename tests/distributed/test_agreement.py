"""What differs between ranks, or fails on one of them, is an error on each of them, and they go on working."""

from pathlib import Path

import pytest
import ranks

SCRIPT = Path(__file__).with_name("agreement.py")


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)], ids="{} ranks".format)
def test_agreement(count):
    ranks.require(SCRIPT, count)
