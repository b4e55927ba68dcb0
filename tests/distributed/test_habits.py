"""What people write from habit works on several ranks, or is an error that says what to write."""

from pathlib import Path

import pytest
import ranks

SCRIPT = Path(__file__).with_name("habits.py")


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.long)], ids="{} ranks".format)
def test_habits(count):
    ranks.require(SCRIPT, count, timeout=120)
