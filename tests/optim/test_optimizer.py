"""Optimizers as values: what is updated, what is shared, and what is refused."""

import pickle
import warnings
from typing import Any

import attrs
import mlx.core as mx
import mlx.optimizers
import pytest

import frostleaf as fl
from frostleaf import optim
from frostleaf.optim.optimizer import (
    COMPLEX,
    IN_THE_STATE,
    INSTEAD,
    INTEGERS,
    NEVER_CHANGES,
    NO_NUMBERS,
    NO_STATE,
    NOTHING_TO_TRAIN,
    OTHER_STATE,
    RATE_OF_STATE,
)  # fmt: skip
from frostleaf.optim.parameters import NO_GRADIENT

MAKE = {
    "SGD": lambda: optim.SGD(0.5),
    "SGD with momentum": lambda: optim.SGD(0.5, momentum=0.9),
    "Adam": lambda: optim.Adam(0.5),
    "AdamW": lambda: optim.AdamW(0.5),
    "Lion": lambda: optim.wrap(mlx.optimizers.Lion)(0.5),
    "Adafactor": lambda: optim.wrap(mlx.optimizers.Adafactor)(),
}
each_optimizer = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


class Mixed(fl.Module):
    """Something of every kind."""

    weight: mx.array
    parts: Any
    _hidden: mx.array = fl.parameter(factory=lambda: mx.ones(2))
    seen: mx.array = fl.buffer(factory=lambda: mx.ones(2))
    count: mx.array = fl.parameter(factory=lambda: mx.array([1, 2]))
    note: str = fl.static(default="note")


def mixed():
    return Mixed(mx.ones(3), [fl.nn.Linear(2, 2).freeze(keys="bias"), {"a": mx.ones(2), "b": None, "c": 3}])


def ones(model):
    """Return a gradient of ones for every trainable leaf."""
    return fl.grad(lambda tree: sum(leaf.sum() for leaf in fl.tree.leaves(tree) if leaf.dtype == mx.float32))(model)


@each_optimizer
def test_only_trainable_leaves_are_updated_and_remembered(make):
    opt, model = make(), mixed()
    state = opt.init(model)
    trained = {"weight", "parts.0.weight", "parts.1.a"}
    assert set(state.slots) == trained
    assert (state.step.item(), state.step.dtype) == (0, mx.uint64)
    after, new = opt.update(model, ones(model), state)
    assert fl.tree.structure(after) == fl.tree.structure(model)
    assert set(new.slots) == trained
    for path, before, now in zip(fl.tree.paths(model), fl.tree.leaves(model), fl.tree.leaves(after), strict=True):
        assert (now is before) is (path not in trained), path
        assert path not in trained or not mx.array_equal(now, before), path
    assert fl.tree.structure(new) == fl.tree.structure(state)
    assert [(each.dtype, each.shape) for each in fl.tree.leaves(new)] == [
        (each.dtype, each.shape) for each in fl.tree.leaves(state)
    ]


@each_optimizer
def test_nothing_that_was_given_changes(make):
    opt, model = make(), mixed()
    state, gradient = opt.init(model), ones(model)
    given = (opt, model, gradient, state)
    before = [(leaf, leaf.tolist()) for leaf in fl.tree.leaves(given)]
    first = opt.update(model, gradient, state)
    assert fl.tree.equal(first, opt.update(model, gradient, state))
    assert all(now is then for now, (then, _) in zip(fl.tree.leaves(given), before, strict=True))
    assert [leaf.tolist() for leaf in fl.tree.leaves(given)] == [numbers for _, numbers in before]


@each_optimizer
def test_one_optimizer_serves_two_models(make):
    opt = make()
    models = [{"w": mx.ones(2)}, fl.nn.Linear(2, 3)]
    together = [(model, opt.init(model)) for model in models]
    for _ in range(3):
        together = [opt.update(model, ones(model), state) for model, state in together]
    for model, (trained, state) in zip(models, together, strict=True):
        alone = make()
        single = model, alone.init(model)
        for _ in range(3):
            single = alone.update(single[0], ones(single[0]), single[1])
        assert fl.tree.equal((trained, state), single)
        assert state.step.item() == 3
    assert fl.tree.leaves(opt) == []


NAMES = ["step", "learning_rate", "slots", "hyperparameters", "v", "m", "state", "weight_decay"]


@pytest.mark.parametrize("tree_of", [lambda names, make: {name: make() for name in names},
                                     lambda names, make: {name: {name: make()} for name in names}])  # fmt: skip
@each_optimizer
def test_a_parameter_may_have_any_name(make, tree_of):
    opt = make()
    model, plain = tree_of(NAMES, lambda: mx.ones(2)), {"w": mx.ones(2)}
    state, plain_state = opt.init(model), opt.init(plain)
    for _ in range(3):
        model, state = opt.update(model, ones(model), state)
        plain, plain_state = opt.update(plain, ones(plain), plain_state)
    assert all(mx.array_equal(leaf, plain["w"]) for leaf in fl.tree.leaves(model))
    assert state.step.item() == 3


@pytest.mark.parametrize(
    "model",
    [
        {"a": {"b": mx.array(1.0)}, "a.b": mx.array(5.0)},
        {1: mx.array(1.0), "1": mx.array(5.0)},
        {"a": [mx.array(1.0)], "a.0": mx.array(5.0)},
    ],
)
def test_parameters_whose_dotted_names_are_the_same_are_told_apart_or_refused(model):
    opt = optim.SGD(0.5, momentum=0.5)
    gradient = fl.tree.map(mx.ones_like, model)
    try:
        state = opt.init(model)
        once, state = opt.update(model, gradient, state)
    except ValueError:
        return
    assert [leaf.item() for leaf in fl.tree.leaves(once)] == [0.5, 4.5]


@pytest.mark.parametrize("model", [mx.array(1.0), [mx.array(1.0)], (mx.array(1.0), None, 3), {"a": (mx.array(1.0),)}])
def test_any_tree_can_be_trained(model):
    opt = optim.SGD(0.5)
    after, state = opt.update(model, fl.grad(lambda tree: fl.tree.leaves(tree)[0])(model), opt.init(model))
    assert fl.tree.equal(after, fl.tree.map(lambda leaf: leaf / 2, model))
    assert len(state.slots) == 1


def test_a_module_at_two_places_is_trained_at_each():
    shared = fl.nn.Linear(2, 2, bias=False)
    model, opt = [shared, shared], optim.SGD(0.5, momentum=0.5)
    with pytest.warns(optim.SharedArrayWarning, match=r"'0\.weight' and '1\.weight'"):
        state = opt.init(model)
    after, state = opt.update(model, [ones(shared), shared], state)
    assert sorted(state.slots) == ["0.weight", "1.weight"]
    assert mx.allclose(after[0].weight, shared.weight - 0.5)
    assert mx.allclose(after[1].weight, shared.weight / 2)


@pytest.mark.parametrize(
    ("count", "said"),
    [(1, "'0' and '1', which"), (2, "(and so does 1 other at other places)"), (3, "(and so do 2 others at other places)")],
)
def test_arrays_at_several_places_are_counted(count, said):
    with pytest.warns(optim.SharedArrayWarning) as caught:
        optim.SGD(0.5).init([each for number in range(count) for each in [mx.array(float(number))] * 2])
    assert said in str(caught[0].message)


class Scaled(fl.Module):
    """A scale of any dtype, and arrays that are declared not to be parameters."""

    scale: mx.array
    layer: Any = None
    _table: mx.array = None
    count: mx.array = fl.buffer(factory=lambda: mx.array(0))
    index: mx.array = fl.parameter(factory=lambda: mx.array([0, 1]))

    def __init__(self, scale, layer=None):
        self.scale, self.layer, self._table = scale, layer, mx.array([1, 2])


LINEAR = fl.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Scaled(mx.array(1), LINEAR), "'scale'"),
        (Scaled(mx.array(1.0), LINEAR.at("weight").set(mx.zeros((2, 2), mx.int32))), "'layer.weight'"),
        ([Scaled(mx.arange(3), {"n": mx.array(1, mx.int64), "w": mx.ones(2)})], "'0.scale', '0.layer.n'"),
        (fl.nn.Sequential(LINEAR, *(Scaled(mx.array(1)) for _ in range(10))), None),
    ],
    ids=["a scalar", "a weight", "in containers", "many"],
)
def test_integers_in_the_place_of_parameters_are_warned_of(model, names):
    with pytest.warns(optim.UntrainedParameterWarning) as caught:
        optim.ema(optim.SGD(0.1), 0.9).init(model)
    shown = ", ".join(f"'layers.{number}.scale'" for number in range(1, 9)) + " and 2 more" if names is None else names
    assert [str(each.message) for each in caught] == [INTEGERS.format(names=shown)]
    assert caught[0].filename == __file__


class Turned(fl.Module):
    turn: mx.array = fl.parameter()
    table: mx.array = fl.buffer(factory=lambda: mx.array(1j))
    _private: mx.array = fl.parameter(factory=lambda: mx.array(1j), init=False)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ({"w": mx.array(1j), "b": mx.ones(2)}, "'w'"),
        ([LINEAR, Turned(mx.array([1j]))], "'1.turn'"),
        (Scaled(mx.array(1j), LINEAR), "'scale'"),
        ([LINEAR, Turned(mx.array([1j])).freeze()], None),
    ],
)
def test_complex_parameters_are_warned_of(model, names):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = optim.SGD(0.1).init(model)
    assert [str(each.message) for each in caught] == ([] if names is None else [COMPLEX.format(names=names)])
    assert not {*(names or "").strip("'").split()} & {*state.slots}


@pytest.mark.parametrize(
    "model",
    [
        Scaled(mx.array(1.0)),
        Scaled(mx.array(1), LINEAR).freeze(recurse=False, keys="scale"),
        Scaled(mx.ones(2), {"key": mx.random.key(0), "mask": mx.array([True]), "bytes": mx.array([1], mx.uint8)}),
        {"w": mx.ones(2), "step": mx.array(0)},
        [LINEAR, fl.nn.Linear(64, 64).to_quantized(), fl.nn.BatchNorm(2)],
    ],
    ids=["floating", "frozen", "not signed", "outside of modules", "layers"],
)
def test_integers_that_nobody_expects_to_be_trained_are_not_warned_of(model):
    optim.SGD(0.1).init(model)


@pytest.mark.parametrize("name", INSTEAD)
@pytest.mark.parametrize(
    "opt", [optim.SGD(0.1), optim.ema(optim.Adam(0.1), 0.9), optim.multi({"**": optim.SGD(0.1)})], ids=repr
)
def test_what_an_optimizer_of_mlx_has_names_what_to_write(opt, name):
    with pytest.raises(AttributeError) as raised:
        getattr(opt, name)
    assert str(raised.value) == f"{type(opt).__name__} has no attribute {name!r}: {INSTEAD[name]}"
    assert not hasattr(opt, name)


def test_the_learning_rate_of_a_state_names_what_to_write():
    state = optim.SGD(0.1).init(mx.ones(2))
    for each in (state, fl.jit(lambda state: state)(state), optim.ema(optim.SGD(0.1), 0.9).init(mx.ones(2))):
        with pytest.raises(AttributeError) as raised:
            each.learning_rate  # noqa: B018
        assert str(raised.value) == f"{type(each).__name__} has no attribute 'learning_rate': {RATE_OF_STATE}"
    with pytest.raises(AttributeError, match="'SGD' object has no attribute 'momentums'"):
        optim.SGD(0.1).momentums  # noqa: B018


def test_an_update_without_a_state_says_where_it_comes_from():
    for update in (optim.SGD(0.1).update, fl.jit(optim.SGD(0.1).update)):
        with pytest.raises(TypeError) as raised:
            update(mx.ones(2), mx.ones(2))
        assert str(raised.value) == NO_STATE.format(optimizer="SGD")


def test_a_frozen_part_is_the_same_object_afterwards():
    model = fl.nn.Sequential(fl.nn.Linear(2, 2).freeze(), fl.nn.BatchNorm(2), fl.nn.Linear(2, 2))
    opt = optim.Adam(0.1)
    after, state = opt.update(model, ones(model), opt.init(model))
    assert after.layers[0].weight is model.layers[0].weight
    assert after.layers[0].bias is model.layers[0].bias
    assert after.layers[1].running_mean is model.layers[1].running_mean
    assert not any(path.startswith("layers.0") or "running" in path for path in state.slots)


def test_freezing_goes_on_with_a_new_state():
    model = fl.nn.Linear(2, 2)
    opt = optim.Adam(0.1)
    model, _ = opt.update(model, ones(model), opt.init(model))
    frozen = model.freeze(keys="bias")
    after, state = opt.update(frozen, ones(frozen), opt.init(frozen))
    assert after.bias is frozen.bias
    assert list(state.slots) == ["weight"]


def changed(tree, where, value):
    return tree.at(where).set(value)


LAYER = fl.nn.Linear(2, 3)
GRADIENT = ones(LAYER)
ADAM = optim.Adam(0.1)
STATE = ADAM.init(LAYER)


def other_state(*differences):
    return OTHER_STATE.format(method="update", optimizer="Adam", differences="; ".join(differences))


ERRORS = {
    "every parameter is frozen": (
        lambda: ADAM.init(LAYER.freeze()), NOTHING_TO_TRAIN.format(tree="Linear", optimizer="Adam", method="init"),
    ),
    "no array": (lambda: ADAM.init({"n": 3}), NOTHING_TO_TRAIN.format(tree="dict", optimizer="Adam", method="init")),
    "only integers": (
        lambda: optim.wrap(mlx.optimizers.Lion)(0.1).init([mx.array(1)]),
        NOTHING_TO_TRAIN.format(tree="list", optimizer="Rule", method="init"),
    ),
    "only buffers": (
        lambda: ADAM.init(fl.nn.BatchNorm(2, affine=False)),
        NOTHING_TO_TRAIN.format(tree="BatchNorm", optimizer="Adam", method="init"),
    ),
    "no gradient": (
        lambda: ADAM.update(LAYER, GRADIENT.replace(bias=None), STATE),
        NO_GRADIENT.format(path="bias", array="f32[3]", given="None"),
    ),
    "a number for a gradient": (
        lambda: ADAM.update([mx.ones(2)], [3.0], ADAM.init([mx.ones(2)])),
        NO_GRADIENT.format(path="0", array="f32[2]", given="3.0"),
    ),
    "a gradient of another shape": (
        lambda: ADAM.update(LAYER, GRADIENT.replace(bias=mx.ones(2)), STATE),
        "the gradient for 'bias' is f32[2], and the parameter is f32[3]",
    ),
    "a gradient that would broadcast": (
        lambda: ADAM.update(LAYER, GRADIENT.replace(weight=mx.ones((1, 2))), STATE),
        "the gradient for 'weight' is f32[1,2], and the parameter is f32[3,2]",
    ),
    "a state of a frozen model": (
        lambda: ADAM.update(LAYER, GRADIENT, ADAM.init(LAYER.freeze(keys="bias"))), other_state("'bias' has no state"),
    ),
    "a model that was frozen": (
        lambda: ADAM.update(LAYER.freeze(keys="bias"), ones(LAYER.freeze(keys="bias")), STATE),
        other_state("'bias' is not trainable"),
    ),
    "a state of another model": (
        lambda: ADAM.update(LAYER, GRADIENT, ADAM.init([mx.ones(2)])),
        other_state("'0' is not trainable", "'bias' has no state", "'weight' has no state"),
    ),
    "a state of a large other model": (
        lambda: ADAM.update([mx.ones(1)] * 8, [mx.ones(1)] * 8, STATE),
        other_state(*(f"'{n}' has no state" for n in range(6)), "..."),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_belong_together_is_an_error_that_names_paths(call, message):
    before = [leaf.tolist() for leaf in fl.tree.leaves((LAYER, GRADIENT, STATE))]
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert str(raised.value) == message
    assert [leaf.tolist() for leaf in fl.tree.leaves((LAYER, GRADIENT, STATE))] == before


@pytest.mark.parametrize(
    ("gradient", "path"),
    [
        (lambda: {"weight": mx.ones((3, 2)), "bias": mx.ones(3)}, "the root"),
        (lambda: None, "the root"),
        (lambda: ones(fl.nn.Linear(2, 3, bias=False)), "the root|bias"),
        (lambda: ones(fl.nn.LayerNorm(2)), "the root"),
    ],
    ids=["a dict", "nothing", "of a layer without bias", "of another class"],
)
def test_gradients_of_another_structure_are_refused(gradient, path):
    with pytest.raises(ValueError, match=rf"the gradient.*({path})|no gradient for '({path})'"):
        ADAM.update(LAYER, gradient(), STATE)


OTHER_STATES = {
    "a state for other shapes": lambda: ADAM.init(fl.nn.Linear(2, 1).replace(weight=mx.ones((1, 2)), bias=mx.ones(1))),
    "a state of another rule with fewer slots": lambda: optim.SGD(0.1, momentum=0.9).init(LAYER),
    "no state": lambda: None,
    "slots alone": lambda: dict(STATE.slots),
}


@pytest.mark.parametrize("state", OTHER_STATES.values(), ids=OTHER_STATES)
def test_a_state_that_is_not_for_this_optimizer_and_model_is_refused(state):
    given = state()
    with pytest.raises((ValueError, TypeError), match=r"(?i)state"):
        ADAM.update(LAYER, GRADIENT, given)


def test_the_second_moment_of_adam_is_not_taken_for_a_momentum():
    with pytest.raises((ValueError, TypeError), match=r"(?i)state"):
        optim.SGD(0.1, momentum=0.9).update(LAYER, GRADIENT, STATE)


def test_an_optimizer_and_its_state_are_frozen_values():
    opt = optim.AdamW(0.1, betas=[0.8, 0.9])
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        opt.options = {}
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        STATE.step = mx.array(1)
    with pytest.raises(TypeError):
        STATE.slots["weight"]["m"] = mx.ones(1)
    assert fl.tree.structure(opt) == fl.tree.structure(optim.AdamW(0.1, betas=(0.8, 0.9)))
    assert fl.tree.structure(opt) != fl.tree.structure(optim.AdamW(0.2, betas=(0.8, 0.9)))
    again, state = pickle.loads(pickle.dumps((opt, opt.init(LAYER))))
    assert fl.tree.equal((again, state), (opt, opt.init(LAYER)))
    assert fl.tree.equal(again.update(LAYER, GRADIENT, state), opt.update(LAYER, GRADIENT, opt.init(LAYER)))


def test_what_is_set_in_an_optimizer_or_a_state_says_what_to_write():
    wrapped = [
        optim.SGD(0.1),
        optim.ema(optim.SGD(0.1), 0.9),
        optim.skip_nonfinite(optim.SGD(0.1)),
        optim.flatten(optim.SGD(0.1)),
    ]
    for opt in [*wrapped, optim.multi({"**": optim.SGD(0.1)}), optim.accumulate(optim.SGD(0.1), 2)]:
        with pytest.raises(fl.FrozenModuleError) as raised:
            opt.learning_rate = 0.5
        assert str(raised.value) == f"can't set {type(opt).__name__}.learning_rate: {NEVER_CHANGES}"
        state = opt.init(LAYER)
        with pytest.raises(fl.FrozenModuleError) as raised:
            state.learning_rate = 0.5
        assert str(raised.value) == f"can't set {type(state).__name__}.learning_rate: {IN_THE_STATE}"
        with pytest.raises(fl.FrozenModuleError) as raised:
            state["learning_rate"] = 0.5
        assert str(raised.value) == f"can't set {type(state).__name__}.learning_rate: {IN_THE_STATE}"
    with pytest.raises(fl.FrozenModuleError, match=r"\.replace\(step=\.\.\.\)"):
        STATE.step = mx.array(1)
    with pytest.raises(fl.FrozenModuleError, match=r"max_value: it never changes\. Make another one\.$"):
        optim.clip_by_value(1.0).max_value = 2.0


def test_a_state_can_be_edited_like_any_module():
    opt = optim.SGD(0.5)
    model = {"w": mx.array(1.0)}
    state = opt.init(model).at("hyperparameters.learning_rate").set(mx.array(0.25))
    after, state = opt.update(model, {"w": mx.array(2.0)}, state)
    assert after["w"].item() == 0.5
    assert state.hyperparameters["learning_rate"].item() == 0.25


def test_an_update_can_be_jitted_with_everything_as_an_argument():
    step = fl.jit(lambda opt, model, gradient, state: opt.update(model, gradient, state))
    opt, model = optim.SGD(0.5), mixed()
    eager, jitted = (model, opt.init(model)), (model, opt.init(model))
    for _ in range(3):
        eager = opt.update(eager[0], ones(eager[0]), eager[1])
        jitted = step(opt, jitted[0], ones(jitted[0]), jitted[1])
        assert fl.tree.allclose(eager[0], jitted[0])
        assert fl.tree.allclose(eager[1], jitted[1])
    assert step.trace_count == 1
    step(optim.SGD(0.25), *[mixed(), ones(mixed()), opt.init(mixed())])
    assert step.trace_count == 2


def test_an_update_of_many_models_at_once():
    opt = optim.SGD(0.5)

    def one(w, gradient):
        return opt.update({"w": w}, {"w": gradient}, opt.init({"w": w}))[0]["w"]

    rows = mx.vmap(one)(mx.ones((3, 2)), mx.arange(3.0)[:, None] + mx.zeros((3, 2)))
    assert rows.tolist() == [[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("shape", [(), (2,)])
def test_moments_of_another_dtype_are_refused_and_a_learning_rate_is_not(shape):
    half = mx.zeros(shape, mx.float16)
    with pytest.raises(ValueError, match=r"m of '' is f16.* and the state has f32"):
        ADAM.update(half, half, ADAM.init(mx.zeros(shape)))
    state = ADAM.init(half).at("hyperparameters.learning_rate").set(mx.array(0.5, mx.float16))
    assert ADAM.update(half, half, state)[1].hyperparameters["learning_rate"].dtype == mx.float16


def test_a_state_of_another_dtype_is_refused():
    half = LAYER.astype(mx.float16)
    with pytest.raises(ValueError, match=r"is f16.* and the state has f32"):
        ADAM.update(half, half, STATE)
    assert ADAM.update(half, half, STATE.astype(mx.float16))[0].weight.dtype == mx.float16


@pytest.mark.parametrize("wrap", [
    lambda opt: opt, optim.flatten, optim.skip_nonfinite, lambda opt: optim.ema(opt, 0.9), lambda opt: optim.multi({"**": opt}),
])  # fmt: skip
def test_a_model_of_shapes_has_no_numbers_to_train(wrap):
    opt, shapes = wrap(optim.Adam(0.1)), fl.eval_shape(lambda: fl.nn.Linear(2, 2))
    for method, call in {"init": opt.init, "adapt": lambda model: opt.adapt(opt.init(fl.nn.Linear(2, 2)), model)}.items():
        with pytest.raises(TypeError) as raised:
            call(shapes)
        shown = {"tree": "Linear", "optimizer": type(opt).__name__, "method": method, "name": "weight"}
        assert str(raised.value) == NO_NUMBERS.format(**shown)
    assert fl.tree.structure(fl.eval_shape(opt.init, shapes)) == fl.tree.structure(opt.init(fl.nn.Linear(2, 2)))
