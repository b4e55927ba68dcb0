"""What is given to fl.optim.wrap by mistake is told with what to write."""

from __future__ import annotations

import mlx.optimizers
import pytest

import frostleaf as fl


def test_an_optimizer_in_the_place_of_its_class_is_told_of_the_class() -> None:
    class Mine(mlx.optimizers.SGD):
        pass

    with pytest.raises(TypeError, match=r"Give its class, then hyperparameters: fl.optim.wrap\(Mine\)\(...\)"):
        fl.optim.wrap(Mine(learning_rate=0.1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"was given 3$"):
        fl.optim.wrap(3)  # type: ignore[arg-type]
