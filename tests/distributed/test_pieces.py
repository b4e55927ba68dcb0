"""Exchanges and sharded layers go together with the other parts of the library."""

from pathlib import Path

import pytest
import ranks

SCRIPT = Path(__file__).with_name("pieces.py")


@pytest.mark.parametrize(
    "count", [2, pytest.param(3, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)], ids="{} ranks".format
)
def test_pieces(count):
    ranks.require(SCRIPT, count, timeout=120)
