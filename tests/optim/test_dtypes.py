"""Parameters keep their dtype, whatever that of the gradients: every rule of MLX, in every wrapper, eager and under jit."""

import itertools

import mlx.core as mx
import mlx.optimizers
import pytest
from optim.stacks import ACTIVE, DEEP, NEUTRAL, PACKABLE, SINGLES, gradients_of, named, same_shapes, stack

import frostleaf as fl
from frostleaf import optim

RULES = {
    "SGD": lambda: optim.SGD(0.1),
    "SGD with momentum": lambda: optim.SGD(0.1, momentum=0.9),
    "SGD of Nesterov": lambda: optim.SGD(0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "RMSprop": lambda: optim.RMSprop(0.1),
    "Adagrad": lambda: optim.Adagrad(0.1),
    "AdaDelta": lambda: optim.AdaDelta(100.0),
    "Adam": lambda: optim.Adam(0.1, bias_correction=True),
    "AdamW": lambda: optim.AdamW(0.1),
    "Adamax": lambda: optim.Adamax(0.1),
    "Lion": lambda: optim.Lion(0.1, weight_decay=0.1),
    "Adafactor": lambda: optim.Adafactor(0.5, beta_1=0.9, weight_decay=0.1, relative_step=False),
    "Muon": lambda: optim.Muon(0.1),
}
DTYPES = [mx.float32, mx.float16, mx.bfloat16]
MIXED = [(ours, theirs) for ours, theirs in itertools.product(DTYPES, repeat=2) if ours != theirs]
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_mixture = pytest.mark.parametrize(("dtype", "other"), MIXED, ids=str)


def net(dtype):
    return fl.nn.Sequential(fl.nn.Linear(4, 4, key=mx.random.key(0)), fl.nn.LayerNorm(4)).astype(dtype)


def steps(opt, model, other, count, update):
    state = opt.init(model)
    before, fresh = model, state
    for step in range(count):
        grads = fl.tree.map(lambda g: g.astype(other), gradients_of(model, step))
        model, state = update(model, grads, state)
        assert same_shapes(model, before)
        assert same_shapes(state, fresh)
    return model, state


def moved(before, after):
    """Return whether every trained array changed, and to numbers."""
    return all(
        mx.isfinite(leaf).all().item() and not mx.array_equal(leaf, named(before)[path]) for path, leaf in named(after).items()
    )


def test_every_rule_of_mlx_is_here():
    of_mlx = {name for name in optim.__all__ if hasattr(mlx.optimizers, name) and isinstance(getattr(optim, name), type)}
    assert {type(rule()).__name__ for rule in RULES.values()} == of_mlx - {"MultiOptimizer", "Optimizer"}


@each_rule
@each_mixture
def test_model_and_state_keep_their_dtypes(rule, dtype, other):
    model = net(dtype)
    after, _ = steps(rule(), model, other, 3, rule().update)
    assert moved(model, after)


@each_rule
def test_under_jit_there_is_one_trace(rule):
    update, model = fl.jit(rule().update), {"w": mx.random.normal((4, 4), key=mx.random.key(0)).astype(mx.bfloat16)}
    jitted, _ = steps(rule(), model, mx.float32, 3, update)
    eager, _ = steps(rule(), model, mx.float32, 3, rule().update)
    assert update.trace_count == 1
    assert fl.tree.allclose(jitted, eager, rtol=0.1, atol=0.05)


@each_rule
def test_the_first_step_is_that_of_mlx_rounded_once(rule):
    model, opt = {"weight": mx.random.normal((4, 4), key=mx.random.key(0)).astype(mx.bfloat16)}, rule()
    grads = {"weight": mx.random.normal((4, 4), key=mx.random.key(1))}
    after, state = opt.update(model, grads, opt.init(model))
    theirs = opt._new_rule()
    theirs.init(model)
    expected = theirs.apply_gradients(grads, model)["weight"]
    assert mx.array_equal(after["weight"], expected.astype(mx.bfloat16))
    for name, value in state.slots["weight"].items():
        assert mx.array_equal(value, theirs.state["weight"][name].astype(mx.bfloat16)), name


@pytest.mark.parametrize("flat", [False, True], ids=["as it is", "flattened"])
@pytest.mark.parametrize("names", [*SINGLES, *DEEP], ids=" of ".join)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_in_wrappers(names, flat, dtype):
    if flat and names not in PACKABLE:
        return
    wrappers = {**ACTIVE, "accumulate": NEUTRAL["accumulate"]}
    opt = stack(names, optim.flatten(optim.SGD(0.5)) if flat else optim.SGD(0.5), wrappers)
    after, _ = steps(opt, net(dtype), mx.float32, 3, opt.update)
    assert moved(net(dtype), after)
    update, model = fl.jit(opt.update), {"bias": mx.ones(2, dtype)}
    jitted, _ = steps(opt, model, mx.float32, 2, update)
    assert update.trace_count == 1
    assert fl.tree.allclose(jitted, steps(opt, model, mx.float32, 2, opt.update)[0], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_a_packed_model(dtype):
    opt, packed = optim.flatten(optim.AdamW(0.1)), optim.pack(net(dtype))
    state = opt.init(packed)
    after, new = opt.update(packed, gradients_of(net(dtype)).astype(mx.float32), state)
    assert same_shapes(after, packed)
    assert same_shapes(new, state)
    assert moved(net(dtype), after.unpack())


def test_parameters_of_several_dtypes_in_one_model():
    model = net(mx.float32).at("layers.0").astype(mx.bfloat16).at("layers.1.bias").astype(mx.float16)
    for other in DTYPES:
        after, _ = steps(optim.Adam(0.1, bias_correction=True), model, other, 2, optim.Adam(0.1, bias_correction=True).update)
        assert moved(model, after)


@pytest.mark.parametrize("gradient", [mx.array([1, 2]), mx.array([True, False]), mx.array([1j, 2])], ids=lambda a: str(a.dtype))
def test_gradients_that_are_no_numbers_of_their_kind_are_refused(gradient):
    """MLX would round the learning rate to the dtype of the gradient: to zero."""
    opt, model = optim.SGD(0.5), {"w": mx.ones(2)}
    with pytest.raises(ValueError, match=r"the gradient for 'w' is (i32|bool|c64)\[2\], and the parameter is f32\[2\]"):
        opt.update(model, {"w": gradient}, opt.init(model))
