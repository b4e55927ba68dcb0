"""What is said of an argument that can't be taken apart: which one it is."""

import mlx.core as mx
import numpy as np
import pytest

import frostleaf as fl

LAYER = fl.nn.Linear(4, 4)
X = np.zeros((3, 4), np.float32)


def called(model, x):
    return model(x)


WAYS = {
    "eval_shape": lambda x: fl.eval_shape(called, LAYER, x),
    "eval_shape of a module": lambda x: fl.eval_shape(LAYER, x),
    "by keyword": lambda x: fl.eval_shape(called, LAYER, x=x),
    "checkpoint": lambda x: fl.checkpoint(called)(LAYER, x),
    "vmap": lambda x: fl.vmap(called, in_axes=(None, 0))(LAYER, x),
    "vmap of a module": lambda x: fl.vmap(LAYER)(x),
    "policy": lambda x: fl.Policy(compute_dtype=mx.bfloat16).wrap(called)(LAYER, x),
    "policy of a method": lambda x: fl.Policy(compute_dtype=mx.bfloat16).wrap(LAYER.__call__)(x),
    "summary": lambda x: fl.summary(LAYER, x),
    "summary by keyword": lambda x: fl.summary(LAYER, x=x),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_array_of_numpy_is_named_by_its_argument(way):
    with pytest.raises(fl.ForeignArrayError, match=r"of shape \(3, 4\) at x is no leaf"):
        WAYS[way](X)
    with pytest.raises(fl.ForeignArrayError, match=r"of shape \(3, 4\) at x\.batch\.0 is no leaf"):
        WAYS[way]({"batch": [X]})


def test_an_argument_without_a_name_has_its_number():
    with pytest.raises(fl.ForeignArrayError, match=r"at argument 1 is no leaf"):
        fl.eval_shape(lambda *args: args, mx.zeros(2), X)
    with pytest.raises(fl.HiddenArrayError, match=r"at argument 0 holds arrays"):
        fl.eval_shape(lambda *args: args, {mx.zeros(2)})
