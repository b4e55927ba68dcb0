"""What arithmetic with a module says."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.utils
import pytest

import frostleaf as fl

LAYER: Any = fl.nn.Linear(2, 2)
BINARY = [
    (operator.add, "+"), (operator.sub, "-"), (operator.mul, "*"), (operator.truediv, "/"), (operator.floordiv, "//"),
    (operator.mod, "%"), (operator.pow, "**"), (operator.matmul, "@"),
]  # fmt: skip


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(TypeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(("compute", "symbol"), BINARY, ids=str)
@pytest.mark.parametrize("other", [LAYER, 2.0, mx.zeros(2)], ids=["module", "number", "array"])
def test_two_operands(compute: Callable[[Any, Any], Any], symbol: str, other: Any) -> None:
    message = f"a Linear is a tree, and {symbol} is for arrays: fl.tree.map(function, tree, ...) computes with those in it"
    assert said(lambda: compute(LAYER, other)).startswith(message)
    if not isinstance(other, mx.array):  # which raises an error of its own before a module is asked
        assert said(lambda: compute(other, LAYER)).startswith(message)


@pytest.mark.parametrize(("compute", "symbol"), [(operator.neg, "-"), (abs, "abs")])
def test_one_operand(compute: Callable[[Any], Any], symbol: str) -> None:
    assert f"{symbol} is for arrays" in said(lambda: compute(LAYER))


def test_what_an_assignment_says() -> None:
    grads = LAYER
    with pytest.raises(TypeError, match=r"fl\.tree\.map"):
        grads += LAYER


def test_gradients_in_a_function_of_mlx_for_trees() -> None:
    grads = fl.grad(lambda model, x: model(x).sum())(LAYER, mx.ones((1, 2)))
    assert "To mlx.utils.tree_map it is no tree" in said(lambda: mlx.utils.tree_map(lambda a, b: a + b, grads, grads))
    assert mx.array_equal(fl.tree.map(lambda a, b: a + b, grads, grads).weight, grads.weight * 2)


def test_a_class_may_have_operators_of_its_own() -> None:
    class Scaled(fl.Module):
        factor: mx.array

        def __mul__(self, other: float) -> Scaled:
            return self.replace(factor=self.factor * other)

    assert (Scaled(mx.array(2)) * 3).factor.item() == 6
