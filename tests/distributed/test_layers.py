"""Sharded layers on several ranks: outputs, gradients, segments and files are those of MLX."""

from pathlib import Path

import pytest
import ranks

SCRIPT = Path(__file__).with_name("layers.py")


@pytest.mark.parametrize(
    "count", [2, pytest.param(3, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)], ids="{} ranks".format
)
def test_layers(count):
    ranks.require(SCRIPT, count)
