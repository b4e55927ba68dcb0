"""Gradients that go through functions before they are used."""

import mlx.core as mx
import mlx.optimizers
import pytest
from optim.stacks import gradients_of, trained

import frostleaf as fl
from frostleaf import optim
from frostleaf.optim.chaining import A_SCHEDULE, OTHER_GRADIENTS, STARRED
from frostleaf.optim.optimizer import NOT_A_STATE, NOT_AN_OPTIMIZER, OTHER_STATE

MODEL = {"a": mx.ones((2, 2)), "b": [mx.zeros(3)]}
GRADIENTS = gradients_of(MODEL)
SGD = optim.SGD(1.0)


def halves(grads):
    return {name: grad / 2 for name, grad in grads.items()}


def plus_one(grads):
    return {name: grad + 1 for name, grad in grads.items()}


@pytest.mark.parametrize(
    ("functions", "expected"),
    [
        ((), lambda grad: grad),
        ((halves,), lambda grad: grad / 2),
        ((halves, plus_one), lambda grad: grad / 2 + 1),
        ((plus_one, halves), lambda grad: (grad + 1) / 2),
        ((lambda grads: fl.tree.map(mx.sign, grads),), mx.sign),
        ((optim.clip_by_value(0.1), halves), lambda grad: mx.clip(grad, -0.1, 0.1) / 2),
        ((halves, optim.clip_by_value(0.1)), lambda grad: mx.clip(grad / 2, -0.1, 0.1)),
    ],
)
def test_the_functions_are_called_one_after_the_other(functions, expected):
    opt = optim.chain(*functions, SGD)
    after, state = opt.update(MODEL, GRADIENTS, opt.init(MODEL))
    assert fl.tree.equal(after, fl.tree.map(lambda leaf, grad: leaf - expected(grad), MODEL, GRADIENTS))
    assert fl.tree.equal(state, SGD.update(MODEL, GRADIENTS, SGD.init(MODEL))[1])


def test_a_function_is_given_the_gradients_by_path_and_of_what_is_trained_alone():
    seen = []

    def look(grads):
        seen.append({name: grad.shape for name, grad in grads.items()})
        return grads

    model = [fl.nn.Linear(2, 3).freeze(keys="bias"), MODEL]
    opt = optim.chain(look, SGD)
    _ = opt.update(model, gradients_of(model), opt.init(model))
    assert seen == [{"0.weight": (3, 2), "1.a": (2, 2), "1.b.0": (3,)}]


def test_a_chain_in_a_chain_and_around_multi():
    opt = optim.chain(halves, optim.chain(plus_one, optim.multi({"a": SGD, "**": optim.SGD(0.5)})))
    after, _ = opt.update(MODEL, GRADIENTS, opt.init(MODEL))
    assert mx.array_equal(after["a"], MODEL["a"] - (GRADIENTS["a"] / 2 + 1))
    assert mx.array_equal(after["b"][0], MODEL["b"][0] - 0.5 * (GRADIENTS["b"][0] / 2 + 1))


def test_twenty_steps_with_clipping_are_those_of_mlx_bit_for_bit():
    opt, rule = optim.chain(optim.clip_by_global_norm(0.5), optim.AdamW(0.01)), mlx.optimizers.AdamW(0.01)
    ours, _ = trained(opt, MODEL, 20)
    theirs = {"a": MODEL["a"], "b": list(MODEL["b"])}
    for step in range(20):
        theirs = rule.apply_gradients(mlx.optimizers.clip_grad_norm(gradients_of(MODEL, step), 0.5)[0], theirs)
    assert fl.tree.equal(ours, theirs)


def test_a_model_keeps_its_dtype_whatever_a_function_computes_in():
    model = {"a": mx.ones(2, mx.bfloat16)}
    opt = optim.chain(lambda grads: fl.tree.map(lambda grad: grad * mx.array(0.5), grads), optim.SGD(1.0))
    after, _ = opt.update(model, {"a": mx.ones(2, mx.bfloat16)}, opt.init(model))
    assert (after["a"].dtype, after["a"].tolist()) == (mx.bfloat16, [0.5, 0.5])


def test_a_function_that_writes_into_the_dict_it_is_given_does_no_harm():
    def emptying(grads):
        return {name: grads.pop(name) for name in [*grads]}

    opt = optim.chain(emptying, emptying, SGD)
    state, gradients = opt.init(MODEL), dict(GRADIENTS)
    assert fl.tree.equal(opt.update(MODEL, gradients, state)[0], SGD.update(MODEL, GRADIENTS, SGD.init(MODEL))[0])
    assert gradients == GRADIENTS


RESULTS = {
    "nothing": (lambda grads: None, "'a', 'b.0'"),
    "a list": (lambda grads: [*grads.values()], "'a', 'b.0'"),
    "one less": (lambda grads: {"a": grads["a"]}, "'b.0'"),
    "one less, and taken away": (lambda grads: [grads.pop("b.0"), grads][1], "'b.0'"),
    "one more": (lambda grads: {**grads, "c": grads["a"]}, "'c'"),
    "another shape": (lambda grads: {**grads, "a": grads["a"].sum()}, "'a'"),
    "another shape that broadcasts": (lambda grads: {**grads, "a": grads["a"][:1]}, "'a'"),
    "a number": (lambda grads: {**grads, "b.0": 0.0}, "'b.0'"),
    "None": (lambda grads: {**grads, "b.0": None}, "'b.0'"),
}


@pytest.mark.parametrize(("function", "names"), RESULTS.values(), ids=RESULTS)
def test_a_function_that_returns_something_else_is_named(function, names):
    opt = optim.chain(halves, function, SGD)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.update(MODEL, GRADIENTS, opt.init(MODEL))
    assert str(raised.value) == OTHER_GRADIENTS.format(number=2, names=names)


LAST = "chain, as the last of its arguments,"
NOT_A_FUNCTION = "chain takes functions of the gradients and then an optimizer; "


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), NOT_AN_OPTIMIZER.format(function=LAST, given="None")),
        ((halves,), NOT_AN_OPTIMIZER.format(function=LAST, given="halves")),
        ((SGD, halves), NOT_AN_OPTIMIZER.format(function=LAST, given="halves")),
        ((SGD, optim.clip_by_value(1.0)), NOT_AN_OPTIMIZER.format(function=LAST, given="ClipByValue(...)")),
        ((optim.SGD,), NOT_AN_OPTIMIZER.format(function=LAST, given="SGD")),
        ((halves, 1.0, SGD), NOT_A_FUNCTION + "argument 2 is 1.0"),
        ((None, SGD), NOT_A_FUNCTION + "argument 1 is None"),
        ((SGD, SGD), NOT_A_FUNCTION + "argument 1 is SGD(...)"),
        (([halves, SGD],), STARRED.format(kind="list")),
        (((halves, SGD),), STARRED.format(kind="tuple")),
        ((optim.cosine_decay(0.1, 3), SGD), A_SCHEDULE.format(number=1)),
        ((halves, optim.join_schedules([optim.step_decay(0.1, 0.9, 3)] * 2, [3]), SGD), A_SCHEDULE.format(number=2)),
    ],
)
def test_what_is_no_chain_is_refused(parts, message):
    with pytest.raises(TypeError) as raised:
        optim.chain(*parts)
    assert str(raised.value) == message


def test_the_errors_of_a_chain():
    opt = optim.chain(halves, optim.Adam(0.1))
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.update(MODEL, GRADIENTS, opt.init({"a": MODEL["a"]}))
    assert str(raised.value) == OTHER_STATE.format(optimizer="Chain", method="update", differences="'b.0' has no state")
    with pytest.raises(TypeError) as raised:
        opt.update(MODEL, GRADIENTS, None)
    assert str(raised.value) == NOT_A_STATE.format(optimizer="Adam", method="update", given="None")
