"""Gradients made smaller, against MLX's function and the formula."""

import math
import pickle

import mlx.core as mx
import mlx.optimizers
import pytest

import frostleaf as fl
from frostleaf import optim
from frostleaf.core.words import describe

GRADIENTS = {
    "of several shapes": {"a": mx.array([[3.0, -4.0]]), "b": mx.array(12.0), "c": mx.zeros((0,))},
    "of zeros": {"a": mx.zeros(3)},
    "of no parameter": {},
    "in float16": {"a": mx.array([300.0, -400.0], mx.float16)},
    "in bfloat16": {"a": mx.array([3.0, -4.0], mx.bfloat16), "b": mx.array([1.0])},
    "that are not finite": {"a": mx.array([mx.inf, 1.0]), "b": mx.array([mx.nan])},
}
each_gradient = pytest.mark.parametrize("grads", GRADIENTS.values(), ids=GRADIENTS)


@each_gradient
@pytest.mark.parametrize("limit", [0, 0.5, 13.0, 1e3, math.inf])
def test_the_global_norm_is_clipped_as_by_mlx(grads, limit):
    assert fl.tree.equal(optim.clip_by_global_norm(limit)(grads), mlx.optimizers.clip_grad_norm(grads, limit)[0])


@pytest.mark.parametrize("limit", [0.5, 13.0, 1e3])
def test_the_global_norm_is_that_of_the_formula(limit):
    grads = GRADIENTS["of several shapes"]
    norm = math.sqrt(3**2 + 4**2 + 12**2)
    scale = min(1.0, limit / (norm + 1e-6))
    clipped = optim.clip_by_global_norm(limit)(grads)
    assert fl.tree.allclose(clipped, fl.tree.map(lambda grad: grad * scale, grads), rtol=1e-6)
    after = math.sqrt(sum((grad**2).sum().item() for grad in clipped.values()))
    assert after == pytest.approx(min(norm, limit), rel=1e-5)


@each_gradient
@pytest.mark.parametrize("limit", [0, 0.5, 4, math.inf])
def test_values_are_cut_off(grads, limit):
    clipped = optim.clip_by_value(limit)(grads)
    assert fl.tree.equal(clipped, {name: mx.clip(grad, -limit, limit) for name, grad in grads.items()})
    assert all(clipped[name].dtype == grad.dtype for name, grad in grads.items())
    numbers = [number for grad in clipped.values() for number in grad.reshape(-1).tolist()]
    assert all(math.isnan(number) or abs(number) <= limit for number in numbers)


@pytest.mark.parametrize("function", [optim.clip_by_global_norm, optim.clip_by_value])
@pytest.mark.parametrize("given", [-1.0, math.nan, "1", None, True, [1.0], mx.array(1.0)], ids=str)
def test_what_is_no_limit_is_refused(function, given):
    name = "max_norm" if function is optim.clip_by_global_norm else "max_value"
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        function(given)
    assert str(raised.value) == f"{name} of {function.__name__} is a number, 0 or more, and was given as {describe(given)}"


@pytest.mark.parametrize(
    ("function", "shown"),
    [(optim.clip_by_global_norm, "ClipByGlobalNorm(max_norm=2.0)"), (optim.clip_by_value, "ClipByValue(max_value=2.0)")],
)
def test_what_clips_is_a_value(function, shown):
    clip = function(2)
    assert fl.tree.structure(clip) == fl.tree.structure(function(2.0)) != fl.tree.structure(function(3.0))
    assert repr(clip) == shown
    assert fl.tree.structure(pickle.loads(pickle.dumps(clip))) == fl.tree.structure(clip)
    with pytest.raises(AttributeError):
        clip.max_norm = 1.0


def layers():
    return fl.nn.Sequential(fl.nn.Linear(4, 2).freeze(keys="bias"), fl.nn.BatchNorm(2))


@each_gradient
@pytest.mark.parametrize("limit", [0, 0.5, 13.0, math.inf])
def test_the_gradients_and_their_norm_are_those_of_mlx(grads, limit):
    clipped, norm = optim.clip_grad_norm(grads, limit)
    expected, expected_norm = mlx.optimizers.clip_grad_norm(grads, limit)
    assert fl.tree.equal(clipped, expected)
    assert mx.array_equal(norm, expected_norm, equal_nan=True)
    assert norm.dtype == expected_norm.dtype


@pytest.mark.parametrize("wrap", [lambda clip: clip, fl.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_tree_of_gradients_keeps_its_class_and_what_is_none(wrap, dtype):
    model = layers().astype(dtype)
    grads = fl.grad(lambda m: 100 * m.layers[0](mx.ones((3, 4), dtype)).sum() + m.layers[1].weight.sum())(model)
    clipped, norm = wrap(lambda grads: optim.clip_grad_norm(grads, 2.0))(grads)
    assert fl.tree.structure(clipped) == fl.tree.structure(grads)
    assert clipped.layers[0].bias is None
    assert {leaf.dtype for leaf in fl.tree.leaves(clipped)} == {dtype}
    assert norm.item() == pytest.approx(math.sqrt(8 * 300**2 + 2), rel=1e-2)
    expected, _ = mlx.optimizers.clip_grad_norm(fl.tree.leaves(grads), 2.0)
    assert fl.tree.allclose(fl.tree.leaves(clipped), expected, rtol=1e-2)
    lists, _ = optim.clip_grad_norm([{"a": mx.ones(4)}, (None, mx.ones(5))], 1.0)
    assert (type(lists), type(lists[1]), lists[1][0]) == (list, tuple, None)


@pytest.mark.parametrize("given", [-1.0, math.nan, "1", None, True], ids=str)
def test_what_is_no_norm_is_refused(given):
    with pytest.raises(ValueError, match="max_norm of clip_grad_norm is a number, 0 or more, and was given as"):
        optim.clip_grad_norm({"a": mx.ones(2)}, given)
