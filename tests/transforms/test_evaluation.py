"""eval and async_eval of whole trees."""

import mlx.core as mx
import pytest

import frostleaf as fl

TREES = {
    "nothing": (),
    "None": (None,),
    "static values": (1, "text", len, {"a": 2.0}),
    "an array": (mx.ones(2) + 1,),
    "a module": (fl.nn.Linear(2, 2),),
    "several trees": ([mx.ones(2) + 1, {"a": (mx.zeros(3) * 2, None)}], fl.nn.BatchNorm(2), 3),
    "an empty array": (mx.zeros((0,)) + 1,),
}


@pytest.mark.parametrize("function", [fl.eval, fl.async_eval])
@pytest.mark.parametrize("trees", TREES.values(), ids=TREES)
def test_any_trees_can_be_evaluated(function, trees):
    before = fl.tree.leaves(trees)
    assert function(*trees) is None
    assert all(after is leaf for after, leaf in zip(fl.tree.leaves(trees), before, strict=True))
    mx.eval(before)


def test_what_was_evaluated_needs_no_computation_any_more():
    total = mx.zeros(1000)
    for _ in range(10):
        total = total + 1
    fl.eval({"total": [total]})
    assert total.tolist() == [10.0] * 1000


@pytest.mark.parametrize("function", [fl.eval, fl.async_eval])
def test_an_array_of_a_trace_can_not_be_evaluated_and_the_next_call_works(function):
    evaluating = fl.jit(lambda x, stop: (function({"x": x + x}) if stop else None, x)[1])
    with pytest.raises(ValueError, match="eval"):
        evaluating(mx.ones(2), True)
    assert evaluating(mx.ones(2), False).tolist() == [1.0, 1.0]
    assert mx.random.normal((2,)).shape == (2,)
