"""The README's table of what goes wrong with mutation: each row, what MLX does and what happens here."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest

import frostleaf as fl


def test_a_compiled_step_draws_the_same_dropout_mask():
    theirs = mx.compile(nn.Dropout(0.5))
    assert mx.array_equal(theirs(mx.ones(64)), theirs(mx.ones(64)))
    ours = fl.jit(fl.nn.Dropout(0.5))
    assert not mx.array_equal(ours(mx.ones(64)), ours(mx.ones(64)))


def interrupted(asked):
    if asked:
        raise KeyboardInterrupt


def test_an_interrupt_in_a_compiled_step_ends_a_model():
    theirs, optimizer, stop = nn.Linear(2, 2), optim.SGD(0.1), [True]
    mx.eval(theirs.parameters())

    @partial(mx.compile, inputs=[theirs.state, optimizer.state], outputs=[theirs.state, optimizer.state])
    def their_step(x):
        loss, grads = nn.value_and_grad(theirs, lambda x: theirs(x).sum())(x)
        optimizer.update(theirs, grads)
        interrupted(stop[0])
        return loss

    with pytest.raises(KeyboardInterrupt):
        their_step(mx.ones((1, 2)))
    with pytest.raises(Exception, match=r"without a primitive|eval an array during"):
        mx.eval(theirs(mx.ones((1, 2))))

    model, optimizer = fl.nn.Linear(2, 2), fl.optim.SGD(0.1)
    state = optimizer.init(model)

    @fl.jit
    def our_step(model, state, x):
        loss, grads = fl.value_and_grad(lambda model: model(x).sum())(model)
        model, state = optimizer.update(model, grads, state)
        interrupted(stop[0])
        return model, state, loss

    with pytest.raises(KeyboardInterrupt):
        our_step(model, state, mx.ones((1, 2)))
    stop[0] = False
    fl.eval(model(mx.ones((1, 2))), our_step(model, state, mx.ones((1, 2))))


def test_a_compiled_function_goes_on_with_the_weights_that_it_was_traced_with():
    theirs, x = nn.Linear(2, 2), mx.ones((1, 2))
    compiled = mx.compile(lambda x: theirs(x))
    before = compiled(x)
    theirs.update({"weight": theirs.weight + 1})
    assert mx.array_equal(compiled(x), before)
    assert not mx.allclose(theirs(x), before)

    ours = fl.nn.Linear(2, 2)
    jitted = fl.jit(lambda model, x: model(x))
    assert not mx.allclose(jitted(ours.at("weight").apply(lambda weight: weight + 1), x), jitted(ours, x))


def test_a_layer_is_made_in_float32_and_cast_afterwards():
    assert nn.Linear(2, 2).weight.dtype == mx.float32
    with pytest.raises(TypeError):
        nn.Linear(2, 2, dtype=mx.bfloat16)
    assert fl.nn.Linear(2, 2, dtype=mx.bfloat16).weight.dtype == mx.bfloat16


def test_set_dtype_rounds_the_only_copy():
    theirs = nn.Linear(2, 2)
    weight = mx.array(theirs.weight)
    theirs.set_dtype(mx.bfloat16)
    theirs.set_dtype(mx.float32)
    assert not mx.array_equal(theirs.weight, weight)

    ours = fl.nn.Linear(2, 2)
    weight = ours.weight
    assert ours.set_dtype(mx.bfloat16).weight.dtype == mx.bfloat16
    assert ours.weight is weight


def test_a_layer_in_two_models_is_trained_by_both():
    shared = nn.Linear(2, 2)
    first, second = nn.Sequential(shared), nn.Sequential(shared)
    before = first(mx.ones((1, 2)))
    second.update({"layers": [{"weight": mx.zeros((2, 2))}]})
    assert not mx.allclose(first(mx.ones((1, 2))), before)

    shared = fl.nn.Linear(2, 2)
    first, second = fl.nn.Sequential(shared), fl.nn.Sequential(shared)
    before = first(mx.ones((1, 2)))
    second = second.update({"layers": [{"weight": mx.zeros((2, 2))}]})
    assert mx.array_equal(first(mx.ones((1, 2))), before)


def test_a_misspelt_attribute_is_a_new_one():
    theirs = nn.Linear(2, 2)
    theirs.wieght = mx.zeros((2, 2))
    assert "wieght" in theirs.parameters()
    with pytest.raises(AttributeError, match="wieght"):
        fl.nn.Linear(2, 2).wieght = mx.zeros((2, 2))
