"""Flattened optimizers beside the same optimizers on the arrays one by one: which can be, and the same numbers."""

import pickle
import re
from typing import Any

import mlx.core as mx
import mlx.optimizers
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import Snapshot, arrays_of, law_for_each, trees
from optim.stacks import gradients_of, normal

import frostleaf as fl
from frostleaf import optim
from frostleaf.edits.freezing import trainable
from frostleaf.optim.flattening import ELEMENTWISE, NOT_ELEMENTWISE, FlattenedState
from frostleaf.optim.flattening import NOT_A_RULE as NOT_AN_OPTIMIZER

STEPS = 10
CLASSES = [
    each
    for each in vars(mlx.optimizers).values()
    if isinstance(each, type) and issubclass(each, mlx.optimizers.Optimizer) and each is not mlx.optimizers.Optimizer
]


def falling():
    return optim.join_schedules([optim.linear_schedule(0.01, 0.1, 4), optim.cosine_decay(0.1, 10)], [4])


# Each optimizer of MLX, with each of its options in use. One that is not here fails a test.
RULES = {
    "SGD": (mlx.optimizers.SGD, lambda: ((0.1,), {})),
    "SGD with momentum": (mlx.optimizers.SGD, lambda: ((0.1, 0.9), {"dampening": 0.3})),
    "SGD of Nesterov with decay": (mlx.optimizers.SGD, lambda: ((0.1, 0.9, 0.01), {"nesterov": True})),
    "SGD with a schedule": (mlx.optimizers.SGD, lambda: ((falling(), 0.9), {})),
    "Adam": (mlx.optimizers.Adam, lambda: ((0.01,), {})),
    "Adam with its bias corrected": (mlx.optimizers.Adam, lambda: ((0.01, [0.8, 0.99], 1e-6, True), {})),
    "AdamW": (mlx.optimizers.AdamW, lambda: ((0.01,), {"weight_decay": 0.1})),
    "AdamW with everything": (mlx.optimizers.AdamW, lambda: ((falling(),), {"weight_decay": 0.1, "bias_correction": True})),
    "Lion": (mlx.optimizers.Lion, lambda: ((falling(),), {"weight_decay": 0.1})),
    "RMSprop": (mlx.optimizers.RMSprop, lambda: ((0.01,), {"alpha": 0.9})),
    "Adagrad": (mlx.optimizers.Adagrad, lambda: ((0.1,), {})),
    "AdaDelta": (mlx.optimizers.AdaDelta, lambda: ((1.0,), {"rho": 0.8})),
    "Adamax": (mlx.optimizers.Adamax, lambda: ((0.01,), {"betas": [0.8, 0.9]})),
    "Adafactor": (mlx.optimizers.Adafactor, lambda: ((), {})),
    "Adafactor of a rate alone": (
        mlx.optimizers.Adafactor, lambda: ((0.01,), {"scale_parameter": False, "relative_step": False}),
    ),
    "Muon": (mlx.optimizers.Muon, lambda: ((0.01,), {})),
    "MultiOptimizer": (
        mlx.optimizers.MultiOptimizer,
        lambda: (([mlx.optimizers.SGD(0.1), mlx.optimizers.SGD(0.2)], [lambda name, array: array.ndim == 1]), {}),
    ),
}  # fmt: skip
each_rule = pytest.mark.parametrize("name", RULES)
each_rule_for_one_array = pytest.mark.parametrize("name", [name for name in RULES if name != "MultiOptimizer"])
each_elementwise = pytest.mark.parametrize("name", [name for name, (rule, _) in RULES.items() if rule in ELEMENTWISE])
FEW = ["SGD with momentum", "AdamW with everything"]


def optimizer(name):
    rule, arguments = RULES[name]
    args, kwargs = arguments()
    return optim.Rule(rule, *args, **kwargs)


# Which optimizers are elementwise


def outcome(name, parameters, gradients):
    """Return what MLX makes of each parameter, and what it remembers of it, as rows of numbers."""
    rule, arguments = RULES[name]
    args, kwargs = arguments()
    made = rule(*args, **kwargs)
    for gradient in gradients:
        parameters = made.apply_gradients(dict(zip(parameters, gradient, strict=True)), parameters)
    states = made.state.get("states", [made.state])
    remembered = [
        {slot: array.reshape(-1) for slot, array in state.items()}
        for path in parameters
        for state in (each[path] for each in states if path in each)
    ]
    return [array.reshape(-1) for array in parameters.values()], remembered


def end_to_end(arrays):
    return mx.concatenate([array.reshape(-1) for array in arrays])


def is_elementwise(name):
    """Return whether the rule makes the same of two arrays, one after the other, as of their numbers in a row."""
    shapes, keys = [(3, 4), (2, 2)], iter(mx.random.split(mx.random.key(0), 8))
    rows = [[mx.random.normal(shape, key=next(keys)) for shape in shapes] for _ in range(4)]
    alone, remembered = outcome(name, dict(zip("ab", rows[0], strict=True)), rows[1:])
    together, row = outcome(name, {"row": end_to_end(rows[0])}, [[end_to_end(each)] for each in rows[1:]])
    if not mx.array_equal(end_to_end(alone), together[0]) or any(each.keys() != row[0].keys() for each in remembered):
        return False
    return all(mx.array_equal(end_to_end([each[slot] for each in remembered]), row[0][slot]) for slot in row[0])


def test_each_optimizer_of_mlx_is_tried():
    assert {rule for rule, _ in RULES.values()} == set(CLASSES)
    assert set(CLASSES) >= ELEMENTWISE


@each_rule
def test_an_optimizer_is_known_as_elementwise_if_it_is(name):
    assert is_elementwise(name) is (RULES[name][0] in ELEMENTWISE)


@each_rule_for_one_array
def test_what_is_elementwise_can_be_flattened_and_nothing_else(name):
    opt, known = optimizer(name), ", ".join(sorted(each.__name__ for each in ELEMENTWISE))
    if RULES[name][0] in ELEMENTWISE:
        assert optim.flatten(opt).optimizer is opt
        return
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        optim.flatten(opt)
    assert str(raised.value) == NOT_ELEMENTWISE.format(rule=RULES[name][0].__name__, known=known)


class Own(mlx.optimizers.Adam):
    """A rule of one's own, which may do whatever it likes."""


class Normed(mlx.optimizers.SGD):
    def apply_single(self, gradient, parameter, state):
        return super().apply_single(gradient / mx.linalg.norm(gradient), parameter, state)


@pytest.mark.parametrize("rule", [Own, Normed])
@pytest.mark.parametrize("elementwise", [None, False])
def test_a_rule_of_ones_own_is_flattened_only_if_one_says_so(rule, elementwise):
    opt = optim.wrap(rule)(0.1)
    with pytest.raises(ValueError, match=f"{rule.__name__} can't be flattened"):
        optim.flatten(opt, elementwise=elementwise)
    assert optim.flatten(opt, elementwise=True).optimizer is opt


def test_a_known_rule_is_not_flattened_if_one_says_that_it_is_not_elementwise():
    with pytest.raises(ValueError, match="SGD can't be flattened"):
        optim.flatten(optim.SGD(0.1), elementwise=False)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (None, "None"), (3, "3"), (optim.Adam, "Adam"), (mlx.optimizers.Adam, "Adam"), (fl.nn.Linear(2, 3), "Linear(...)"),
        (optim.flatten(optim.SGD(0.1)), "Flattened(...)"),
    ],
)  # fmt: skip
def test_what_is_no_optimizer_is_refused(given, shown):
    with pytest.raises(TypeError) as raised:
        optim.flatten(given)
    assert str(raised.value) == NOT_AN_OPTIMIZER.format(given=shown)
    with pytest.raises(TypeError, match=re.escape(NOT_AN_OPTIMIZER.partition("{")[0])):
        optim.flatten(mlx.optimizers.Adam(0.1), elementwise=True)


# The same numbers


class Everything(fl.Module):
    """Parameters of several dtypes and sizes, frozen and not, and what is no parameter."""

    weight: mx.array
    parts: Any
    _hidden: mx.array = fl.parameter(factory=lambda: mx.ones(2))
    seen: mx.array = fl.buffer(factory=lambda: mx.ones(2))
    count: mx.array = fl.parameter(factory=lambda: mx.array([1, 2]))
    note: str = fl.static(default="note")


def everything():
    return Everything(
        normal(3, 2),
        [
            fl.nn.Linear(2, 2).freeze(keys="bias"),
            {"a": normal(2), "b": None, "c": 3, "empty": mx.zeros((0, 2)), "scalar": mx.array(0.5)},
            (normal(4, dtype=mx.bfloat16), [normal(dtype=mx.bfloat16)], normal(7, dtype=mx.float16)),
            fl.nn.BatchNorm(3).eval(),
            [normal(5, 5), normal(2, 9, dtype=mx.bfloat16), mx.array([True])],
        ],
    )


shares_arrays = pytest.mark.filterwarnings("ignore::frostleaf.optim.SharedArrayWarning")
SHARED = normal(3)
TWICE = fl.nn.Linear(2, 2)
MODELS = {
    "everything": everything,
    "a layer": lambda: fl.nn.Linear(2, 3),
    "a layer in bfloat16": lambda: fl.nn.Linear(2, 3).astype(mx.bfloat16),
    "an array": lambda: normal(3),
    "a scalar": lambda: mx.array(0.5),
    "a tuple": lambda: (normal(3), None, 3, normal(2, dtype=mx.bfloat16)),
    "a list": lambda: [normal(3), [[normal(2, 2)]]],
    "a dict": lambda: {"step": normal(3), "learning_rate": {"m": normal(2), 3: normal(1)}, "vectors": {"float32": normal(4)}},
    "nothing but large arrays": lambda: {"large": (normal(4, 4), normal(5, 5))},
    "an array at two places": lambda: {"a": SHARED, "b": [SHARED]},
    "a layer at two places": lambda: (TWICE, TWICE),
    "batch norm": lambda: fl.nn.Sequential(fl.nn.Linear(2, 3).freeze(), fl.nn.BatchNorm(3), fl.nn.Dropout(0.5)),
    "an array without elements": lambda: [mx.zeros((0,)), mx.zeros((2, 0))],
}


def bit_for_bit(left, right):
    # The small epsilon of Adam is no number in half precision, and what MLX makes of it is nan.
    return mx.array_equal(left, right, equal_nan=True)


def close(left, right):
    return mx.allclose(left, right, rtol=1e-4, atol=1e-6)


def slots_of(state):
    """Return what a flattened optimizer remembers of each array, in the shape of the array."""
    slots, positions, large = {}, {}, 0
    for name, place, shape in state.trained.arrays:
        if place == "large":
            slots[name] = dict(state.slots[f"large.{large}"])
            large += 1
            continue
        start, size = positions.get(place, 0), mx.zeros(shape).size
        vectors = state.slots[f"vectors.{place}"]
        slots[name] = {slot: vector[start : start + size].reshape(shape) for slot, vector in vectors.items()}
        positions[place] = start + size
    return slots


def named(model, state):
    """Return every array of a model and its state by name."""
    slots = slots_of(state) if isinstance(state, FlattenedState) else state.slots
    everything = {"model": model, "step": state.step, "hyperparameters": state.hyperparameters, "slots": slots}
    return dict(zip(fl.tree.paths(everything), fl.tree.leaves(everything), strict=True))


def assert_same(flattened, plain, compare=bit_for_bit):
    """Fail unless a model and its state are what they are without flattening."""
    assert fl.tree.structure(flattened[0]) == fl.tree.structure(plain[0])
    left, right = named(*flattened), named(*plain)
    assert {name: (each.shape, each.dtype) for name, each in left.items()} == {
        name: (each.shape, each.dtype) for name, each in right.items()
    }
    equal = {name: compare(each, right[name]) for name, each in left.items()}
    fl.eval(equal)
    assert [name for name, each in equal.items() if not each.item()] == []


def ten_steps(opt, model, gradients):
    """Return the model and the state after steps with the gradients."""
    state = opt.init(model)
    for gradient in gradients:
        model, state = opt.update(model, gradient, state)
    return model, state


def assert_flattening_changes_nothing(opt, model, max_size):
    gradients = [gradients_of(model, step) for step in range(STEPS)]
    plain, flat = ten_steps(opt, model, gradients), optim.flatten(opt, max_size=max_size)
    fl.eval(plain)
    assert_same(ten_steps(flat, model, gradients), plain)
    packed, state = ten_steps(flat, optim.pack(model, max_size), gradients)
    assert_same((packed.unpack(), state), plain)
    return plain


@pytest.mark.parametrize("max_size", [4096, 6])
@each_elementwise
def test_ten_steps_are_the_same_bit_for_bit(name, max_size):
    after, _ = assert_flattening_changes_nothing(optimizer(name), everything(), max_size)
    assert not mx.array_equal(after.weight, everything().weight)


@shares_arrays
@pytest.mark.parametrize("max_size", [4096, 3])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("name", FEW)
def test_ten_steps_of_any_tree_are_the_same_bit_for_bit(name, make, max_size):
    assert_flattening_changes_nothing(optimizer(name), make(), max_size)


@shares_arrays
@law_for_each
@given(trees(), st.sampled_from([0, 2, 4096]))
def test_a_step_of_any_tree_changes_what_a_plain_step_changes(tree, max_size):
    opt = optim.SGD(0.5, momentum=0.5)
    flat, gradients, snapshot = optim.flatten(opt, max_size=max_size), gradients_of(tree), Snapshot(tree)
    if not any(trainable(tree)):
        with pytest.raises(ValueError, match="nothing to train"):
            flat.init(tree)
        return
    expected = opt.update(tree, gradients, opt.init(tree))
    after = flat.update(tree, gradients, flat.init(tree))
    assert_same(after, expected)
    for (path, left), (_, before), trains in zip(arrays_of(after[0]), arrays_of(tree), trainable(tree), strict=True):
        assert trains or left is before, path
    snapshot.assert_unchanged()


@pytest.mark.parametrize("name", FEW)
def test_large_arrays_are_updated_by_themselves(name):
    model, flat = {"a": normal(3), "b": normal(4), "c": normal(2), "d": normal(5)}, optim.flatten(optimizer(name), max_size=3)
    state = flat.init(model)
    assert {path: next(iter(slots.values())).shape for path, slots in state.slots.items()} == {
        "vectors.float32": (5,), "large.0": (4,), "large.1": (5,),
    }  # fmt: skip
    assert state.trained.arrays == (("a", "float32", (3,)), ("b", "large", (4,)), ("c", "float32", (2,)), ("d", "large", (5,)))


def test_what_is_not_trained_is_the_same_object_afterwards():
    model, flat = MODELS["batch norm"](), optim.flatten(optim.Adam(0.1))
    packed = optim.pack(model)
    after, _ = flat.update(packed, gradients_of(model), flat.init(packed))
    assert after.rest == packed.rest
    for each in (after.unpack(), flat.update(model, gradients_of(model), flat.init(model))[0]):
        assert each.layers[0].weight is model.layers[0].weight
        assert each.layers[1].running_mean is model.layers[1].running_mean
        assert each.layers[1].weight is not model.layers[1].weight


def test_a_packed_model_goes_on_with_the_state_of_the_model_and_the_model_with_that_of_the_packed_one():
    opt, model = optimizer("AdamW"), everything()
    flat = optim.flatten(opt, max_size=6)
    plain, now, state = (model, opt.init(model)), model, flat.init(model)
    for step in range(4):
        plain = opt.update(plain[0], gradients_of(model, step), plain[1])
        now, state = flat.update(optim.pack(now, 6) if step % 2 else now, gradients_of(model, step), state)
        now = now.unpack() if step % 2 else now
    assert_same((now, state), plain)


def test_a_model_that_was_packed_with_another_size_stays_as_it_is_packed():
    model, opt = everything(), optimizer("AdamW")
    packed, gradients = optim.pack(model, 7), [gradients_of(model, step) for step in range(3)]
    after, state = ten_steps(optim.flatten(opt, max_size=2), packed, gradients)
    assert after.layout is packed.layout
    assert_same((after.unpack(), state), ten_steps(opt, model, gradients))


def test_a_rule_of_ones_own_is_applied_as_it_is():
    opt, model = optim.wrap(Own)(0.1), everything()
    gradients = [gradients_of(model, step) for step in range(3)]
    flat = optim.flatten(opt, elementwise=True, max_size=6)
    assert_same(ten_steps(flat, model, gradients), ten_steps(opt, model, gradients))


@pytest.mark.parametrize("opt", [optim.Adam(0.05), optim.flatten(optim.Adam(0.05))], ids=["plain", "flattened"])
def test_running_statistics_go_on_in_a_packed_model(opt):
    """Train with a layer that records buffers, and compare with the buffers of plain training."""
    xs = [mx.random.normal((4, 2), key=key) for key in mx.random.split(mx.random.key(3), 5)]
    flattened = isinstance(opt, optim.Flattened)

    def loss_of(model, x):
        out, model = fl.stateful(model, x)
        return (out**2).sum(), model

    def trained(opt, flattened):
        model = fl.nn.Sequential(fl.nn.Linear(2, 3, key=mx.random.key(1)), fl.nn.BatchNorm(3))
        model, state = (optim.pack(model) if flattened else model), opt.init(model)
        for x in xs:
            (_, model), grads = fl.value_and_grad(loss_of, has_aux=True)(model.unpack() if flattened else model, x)
            model, state = opt.update(optim.pack(model) if flattened else model, grads, state)
        return model.unpack() if flattened else model

    assert fl.tree.equal(trained(opt, flattened), trained(optim.Adam(0.05), False))


# Jitted


def mean_square(model, x):
    return ((model.scale * model.layer(x)) ** 2).mean()


class Net(fl.Module):
    layer: fl.nn.Linear
    scale: mx.array
    large: mx.array = fl.parameter(factory=lambda: mx.ones((2, 3)))
    seen: mx.array = fl.buffer(factory=lambda: mx.ones(2))


def step_of(opt):
    def step(model, state, x):
        if isinstance(model, optim.Packed):
            return opt.update(model, fl.grad(mean_square)(model.unpack(), x), state)
        return opt.update(model, fl.grad(mean_square)(model, x), state)

    return step


@pytest.mark.parametrize("max_size", [4096, 4])
@pytest.mark.parametrize("name", ["SGD with a schedule", "AdamW"])
def test_jitted_steps_are_the_same_within_rounding_and_traced_once(name, max_size):
    opt, model = optimizer(name), Net(fl.nn.Linear(2, 3, key=mx.random.key(0)), mx.array(0.5))
    flat, xs = optim.flatten(opt, max_size=max_size), list(mx.random.normal((STEPS, 4, 2), key=mx.random.key(1)))
    plain, step = (model, opt.init(model)), step_of(opt)
    for x in xs:
        plain = step(*plain, x)
    for start in (model, optim.pack(model, max_size)):
        jitted, now = fl.jit(step_of(flat)), (start, flat.init(start))
        for x in xs:
            now = jitted(*now, x)
        assert jitted.trace_count == 1
        assert fl.tree.leaves(now[0])[-1] is model.seen
        assert_same((now[0].unpack() if start is not model else now[0], now[1]), plain, close)


def test_an_update_can_be_jitted_with_the_optimizer_as_an_argument():
    step = fl.jit(lambda opt, model, gradients, state: opt.update(model, gradients, state))
    flat, model = optim.flatten(optim.SGD(0.5)), {"a": mx.ones(2), "b": [mx.array(1.0)]}
    now = flat.update(model, gradients_of(model), flat.init(model))
    assert fl.tree.allclose(step(flat, model, gradients_of(model), flat.init(model)), now)
    assert fl.tree.allclose(step(optim.flatten(optim.SGD(0.5)), model, gradients_of(model), flat.init(model)), now)
    assert step.trace_count == 1
    step(optim.flatten(optim.SGD(0.25)), model, gradients_of(model), flat.init(model))
    other = optim.flatten(optim.SGD(0.5), max_size=1)
    step(other, model, gradients_of(model), other.init(model))
    assert step.trace_count == 3


def test_many_models_are_updated_at_once():
    flat = optim.flatten(optim.SGD(0.5, momentum=0.5), max_size=3)
    models = [optim.pack({"a": normal(2) * number, "b": normal(4) * number}, 3) for number in range(1, 4)]
    gradients = [gradients_of(each.unpack(), number) for number, each in enumerate(models)]
    states = [flat.init(each) for each in models]
    stacked = fl.vmap(flat.update)(*map(fl.tree.stack, (models, gradients, states)))
    each = [flat.update(*given) for given in zip(models, gradients, states, strict=True)]
    assert fl.tree.allclose(fl.tree.unstack(stacked[0]), [model for model, _ in each])
    assert fl.tree.allclose(fl.tree.unstack(stacked[1]), [state for _, state in each])


# Values


def test_a_flattened_optimizer_and_its_state_are_frozen_values():
    flat, model = optim.flatten(optim.AdamW(0.1), max_size=7), everything()
    again, state = pickle.loads(pickle.dumps((flat, flat.init(model))))
    assert repr(again) == repr(flat)
    assert fl.tree.structure(again) == fl.tree.structure(flat) != fl.tree.structure(optim.flatten(optim.AdamW(0.1)))
    assert fl.tree.leaves(flat) == []
    assert fl.tree.equal(state, flat.init(model))
    gradients = gradients_of(model)
    assert fl.tree.equal(again.update(model, gradients, state), flat.update(model, gradients, flat.init(model)))
    with pytest.raises(AttributeError):
        flat.max_size = 3


def test_a_state_can_be_edited_like_any_module():
    flat, model = optim.flatten(optim.SGD(0.5)), {"w": mx.array(1.0)}
    state = flat.init(model).at("hyperparameters.learning_rate").set(mx.array(0.25))
    after, state = flat.update(model, {"w": mx.array(2.0)}, state)
    assert (after["w"].item(), state.hyperparameters["learning_rate"].item()) == (0.5, 0.25)


def test_a_model_and_its_state_are_cast_together():
    flat, model = optim.flatten(optim.SGD(0.5, momentum=0.5)), fl.nn.Linear(2, 3)
    packed, state = optim.pack(model).astype(mx.float16), flat.init(model).astype(mx.float16)
    after, _ = flat.update(packed, gradients_of(packed.unpack()), state)
    half = model.astype(mx.float16)
    assert fl.tree.equal(after.unpack(), flat.update(half, gradients_of(half), flat.init(half))[0])


def test_a_frozen_vector_is_not_trained_and_stays_frozen():
    model, flat = {"a": normal(2), "b": normal(4)}, optim.flatten(optim.SGD(0.5), max_size=3)
    packed = optim.pack(model, 3).at("vectors").freeze()
    state = flat.init(packed)
    assert list(state.slots) == ["large.0"]
    after, state = flat.update(packed, gradients_of(model), state)
    assert fl.tree.structure(after) == fl.tree.structure(packed)
    assert after.vectors["float32"] is packed.vectors["float32"]
    assert mx.array_equal(after.large[0], model["b"] - 0.5 * gradients_of(model)["b"])
    with pytest.raises(ValueError, match="nothing to train"):
        flat.init(packed.freeze())
    with pytest.raises(ValueError, match=r"'vectors.float32' is not trainable"):
        flat.update(packed, gradients_of(model), flat.init(model))


def test_gradients_of_one_other_dtype_are_taken():
    model, opt = {"a": normal(2), "b": normal(3)}, optim.Adam(0.1)
    flat = optim.flatten(opt)
    gradients = fl.tree.map(lambda leaf: leaf.astype(mx.bfloat16), gradients_of(model))
    assert_same(flat.update(model, gradients, flat.init(model)), opt.update(model, gradients, opt.init(model)))


def test_a_state_is_of_its_class():
    flat, layer = optim.flatten(optim.Adam(0.1), max_size=6), fl.nn.Linear(2, 3)
    state = flat.init(layer)
    assert type(state) is FlattenedState
    assert type(flat.update(layer, gradients_of(layer), state)[1]) is FlattenedState
    assert isinstance(state, optim.OptimizerState)
