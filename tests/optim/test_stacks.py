"""What holds for every optimizer, alone and in every wrapper, and in every wrapper in every other."""

import pickle

import mlx.core as mx
import pytest
from laws.strategies import Snapshot
from optim.stacks import (
    ACTIVE,
    DEEP,
    FEW,
    NEUTRAL,
    PACKABLE,
    PAIRS,
    SINGLES,
    gradients_of,
    named,
    rates,
    same_shapes,
    stack,
    trained,
)

import frostleaf as fl
from frostleaf import optim
from frostleaf.optim.optimizer import OTHER_STATE
from frostleaf.optim.parameters import NO_GRADIENT
from frostleaf.optim.rule import PACKED

MISMATCH = "{what} does not have the structure of the tree it goes with. At {path}: {given} where there is {expected}."

ids = " of ".join
every_pair = pytest.mark.parametrize("names", [*SINGLES, *PAIRS], ids=ids)
each_stack = pytest.mark.parametrize("names", [*SINGLES, *FEW, *DEEP], ids=ids)
each_wrapper = pytest.mark.parametrize("names", [*SINGLES, *DEEP], ids=ids)
LAYERS = [fl.nn.Linear(2, 3, key=mx.random.key(0)), fl.nn.Linear(3, 1, key=mx.random.key(1))]


def base():
    return optim.SGD(0.5, momentum=0.5)


def net():
    return fl.nn.Sequential(LAYERS[0], fl.nn.relu, fl.nn.BatchNorm(3), LAYERS[1].freeze(keys="weight"))


@every_pair
def test_a_wrapper_that_has_nothing_to_do_changes_nothing(names):
    assert fl.tree.equal(trained(stack(names, base()), net(), 2)[0], trained(base(), net(), 2)[0])


@each_stack
def test_a_state_keeps_its_structure_shapes_and_dtypes(names):
    opt = stack(names, base(), ACTIVE)
    state = opt.init(net())
    assert all(isinstance(leaf, mx.array) for leaf in fl.tree.leaves(state))
    model, after = trained(opt, net(), 3)
    assert same_shapes(state, after)
    assert same_shapes(model, net())


@each_stack
def test_nothing_that_is_given_changes_and_frozen_arrays_are_the_same_objects(names):
    opt, model = stack(names, base(), ACTIVE), net()
    state, grads = opt.init(model), gradients_of(model)
    given = (model, grads, state)
    snapshot, numbers = Snapshot(given), [leaf.tolist() for leaf in fl.tree.leaves(given)]
    once, again = opt.update(*given), opt.update(*given)
    assert fl.tree.equal(once, again)
    snapshot.assert_unchanged()
    assert [leaf.tolist() for leaf in fl.tree.leaves(given)] == numbers
    before, after = named(model), named(once[0])
    untrained = before.keys() - {"layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias", "layers.3.bias"}
    assert {path for path in before if after[path] is before[path]} >= untrained


@each_stack
def test_the_state_of_a_model_that_did_not_change_is_carried_over_whole(names):
    opt = stack(names, base(), ACTIVE)
    model, state = trained(opt, net(), 3)
    after = opt.adapt(state, model)
    assert same_shapes(after, state)
    assert all(one is other for one, other in zip(fl.tree.leaves(after), fl.tree.leaves(state), strict=True))


@each_stack
def test_freezing_is_noticed_and_unfreezing_carries_over_what_applies(names):
    opt = stack(names, base(), ACTIVE)
    model, state = trained(opt, net(), 3)
    frozen = model.freeze(keys="bias")
    with pytest.raises(ValueError, match=r"'layers\.0\.bias' is not trainable") as raised:
        opt.update(frozen, gradients_of(frozen), state)
    name = type(opt).__name__
    assert str(raised.value).startswith(OTHER_STATE.format(optimizer=name, method="update", differences="").split(":")[0])
    assert f"{name}.adapt(state, model)" in str(raised.value)
    adapted = opt.adapt(state, frozen)
    assert same_shapes(adapted, opt.init(frozen))
    before = {path: leaf for path, leaf in named(state).items() if ".bias" not in path}
    assert all(leaf is before[path] for path, leaf in named(adapted).items())
    assert named(adapted).keys() == before.keys()
    after, adapted = trained(opt, frozen, 2, adapted)
    assert after.layers[0].bias is frozen.layers[0].bias
    back = opt.adapt(adapted, after.unfreeze(keys="bias"))
    assert all(leaf is back_leaf for path, back_leaf in named(back).items() if (leaf := named(adapted).get(path)) is not None)
    fresh = named(opt.init(after.unfreeze(keys="bias")))
    assert all(mx.array_equal(leaf, fresh[path]) for path, leaf in named(back).items() if ".bias" in path)
    trained(opt, after.unfreeze(keys="bias"), 1, back)


@each_stack
def test_a_state_is_pickled_saved_and_stacked_like_any_tree(names, tmp_path):
    opt = stack(names, base(), ACTIVE)
    model, state = trained(opt, net(), 3)
    assert fl.tree.equal(pickle.loads(pickle.dumps(state)), state)
    state.save_weights(tmp_path / "state.safetensors")
    assert fl.tree.equal(opt.init(net()).load_weights(tmp_path / "state.safetensors"), state)
    assert fl.tree.equal(fl.tree.unstack(fl.tree.stack([state, opt.init(model)]))[0], state)
    assert len(set(fl.tree.paths(state))) == len(fl.tree.leaves(state))
    # Going on from what was read is going on.
    assert fl.tree.equal(trained(opt, model, 2, pickle.loads(pickle.dumps(state))), trained(opt, model, 2, state))


@each_stack
def test_a_state_goes_in_half_precision_with_its_model(names):
    opt = stack(names, optim.AdamW(0.1), ACTIVE)
    model, state = trained(opt, net(), 3)
    half = state.astype(mx.bfloat16)
    for path, leaf in named(half).items():
        kept = path.split(".")[-1] in {"step", "count", "skipped", "learning_rate"}
        assert leaf.dtype == (named(state)[path].dtype if kept or ".slots." not in f".{path}" else mx.bfloat16), path
    after, state = trained(opt, model.astype(mx.bfloat16), 2, half)
    assert after.layers[0].weight.dtype == mx.bfloat16
    assert same_shapes(state, half)


@each_stack
def test_the_learning_rate_is_read_and_changed_in_the_state(names):
    opt = stack(names, base())
    state = opt.init(net())
    assert opt.learning_rate(state).item() == (9.0 if names[0] == "multi" else opt.learning_rate(state).item())
    slower = rates(state, 0.125)
    assert (opt.learning_rate(slower).item(), opt.learning_rate(slower).dtype) == (0.125, mx.float32)
    assert fl.tree.equal(trained(opt, net(), 3, slower)[0], trained(optim.SGD(0.125, momentum=0.5), net(), 3)[0])


NAMES = ["step", "learning_rate", "inner", "slots", "hyperparameters", "average", "gradients", "count", "skipped", "v", "bias"]


@each_stack
def test_a_parameter_may_have_any_name(names):
    opt = stack(names, base())
    model = {name: {name: mx.ones(2)} for name in NAMES} | {"": mx.ones(2)}
    model, state = trained(opt, model, 3)
    named_plainly, _ = trained(base(), {str(n): {str(n): mx.ones(2)} for n in range(len(NAMES))} | {"x": mx.ones(2)}, 3)
    for ours, plain in zip(fl.tree.leaves(model), fl.tree.leaves(named_plainly), strict=True):
        assert mx.array_equal(ours, plain)
    assert fl.tree.equal(opt.adapt(state, model), state)


RATES = {
    "a number": 0.1,
    "a schedule": optim.linear_schedule(0.1, 0.2, 3),
}
TRACED = [
    *((names, "a number") for names in SINGLES),
    (("ema",), "a schedule"),
    pytest.param(("skip_nonfinite", "accumulate", "ema"), "a schedule", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("names", "rate"), TRACED)
def test_a_step_is_traced_once(names, rate):
    opt, model = stack(names, optim.SGD(RATES[rate]), ACTIVE), {"weight": mx.ones(3)}
    update = fl.jit(opt.update)
    jitted, state = trained(opt, model, 4, update=update)
    eager, other = trained(opt, model, 4)
    if rate == "a number":
        state, other = rates(state, 0.2), rates(other, 0.2)
    jitted, state = trained(opt, jitted, 2, state, update)
    eager, other = trained(opt, eager, 2, other)
    assert update.trace_count == 1
    assert fl.tree.allclose((jitted, state), (eager, other), rtol=1e-5, atol=1e-6)


@each_wrapper
def test_an_ensemble_has_a_learning_rate_each(names):
    opt = stack(names, base(), ACTIVE)
    models = [fl.nn.Linear(2, 3, key=mx.random.key(n)) for n in range(3)]
    alone = []
    for model, rate in zip(models, (0.1, 0.2, 0.3), strict=True):
        alone.append(trained(opt, model, 3, rates(opt.init(model), rate)))
    model = fl.tree.stack(models)
    state = fl.tree.stack([opt.init(model) for model in models])
    state = state.at("**.hyperparameters.learning_rate").set(mx.array([0.1, 0.2, 0.3]))
    for step in range(3):
        grads = fl.tree.stack([gradients_of(each, step) for each in models])
        model, state = fl.vmap(opt.update)(model, grads, state)
    expected = fl.tree.stack([model for model, _ in alone]), fl.tree.stack([state for _, state in alone])
    assert fl.tree.allclose((model, state), expected, rtol=1e-6, atol=1e-7)
    assert fl.vmap(opt.learning_rate)(state).shape == (3,)


@each_wrapper
def test_the_states_of_an_ensemble_are_made_by_vmap(names):
    opt, models = stack(names, base()), [fl.nn.Linear(2, 3, key=mx.random.key(n)) for n in range(3)]
    assert fl.tree.equal(fl.vmap(opt.init)(fl.tree.stack(models)), fl.tree.stack([opt.init(model) for model in models]))


@pytest.mark.parametrize("names", PACKABLE, ids=ids)
def test_packed_models_are_trained_alike(names):
    def plain_and_flat(opt):
        return stack(names, opt, ACTIVE), stack(names, optim.flatten(opt), ACTIVE)

    opt, flat = plain_and_flat(optim.AdamW(0.1))
    model, packed = net(), optim.pack(net())
    expected, _ = trained(opt, model)
    after, packed_state = trained(flat, packed)
    assert fl.tree.allclose(after.unpack(), expected, rtol=1e-5, atol=1e-6)
    unpacked, unpacked_state = trained(flat, model)
    assert fl.tree.allclose(unpacked, expected, rtol=1e-5, atol=1e-6)
    assert flat.learning_rate(packed_state).item() == flat.learning_rate(unpacked_state).item()
    assert fl.tree.equal(flat.adapt(packed_state, after), packed_state)
    assert fl.tree.equal(pickle.loads(pickle.dumps(packed_state)), packed_state)


@pytest.mark.parametrize("names", [("masked",), ("multi",)], ids=ids)
def test_parts_of_a_packed_model_cannot_be_selected(names):
    opt = stack(names, optim.flatten(base()))
    with pytest.raises(ValueError, match="parts of a packed model can't be selected"):
        opt.init(optim.pack(net()))
    with pytest.raises(ValueError, match="parts of a packed model can't be selected"):
        optim.MultiOptimizer([optim.flatten(base())]).init(optim.pack(net()))


def wrong_gradients():
    grads = gradients_of(net())
    layer = grads.layers[0]
    yield grads.at("layers.0.bias").set(None), NO_GRADIENT.format(path="layers.0.bias", array="f32[3]", given="None")
    with_a_number = fl.tree.map_with_path(lambda path, array: 1.0 if path == "layers.0.bias" else array, grads)
    yield with_a_number, NO_GRADIENT.format(path="layers.0.bias", array="f32[3]", given="1.0")
    for wrong, shown in ((layer.weight.T, "f32[2,3]"), (mx.ones((3, 1)), "f32[3,1]")):
        message = f"the gradient for 'layers.0.weight' is {shown}, and the parameter is f32[3,2]"
        yield grads.at("layers.0.weight").set(wrong), message
    where = {"what": "the gradient", "path": "layers.0", "expected": "Linear of 2 (weight, bias)"}
    yield grads.at("layers.0").set({"weight": layer.weight}), MISMATCH.format(**where, given="dict of 1 (weight)")
    where |= {"path": "the root", "expected": "Sequential of 1 (layers)"}
    yield layer, MISMATCH.format(**where, given="Linear of 2 (weight, bias)")
    yield None, MISMATCH.format(**where, given="None")


@each_wrapper
@pytest.mark.parametrize(("grads", "message"), [*wrong_gradients()])
def test_gradients_that_do_not_belong_to_the_model_are_refused(names, grads, message):
    opt, model = stack(names, base()), net()
    state = opt.init(model)
    snapshot, numbers = Snapshot((model, grads, state)), [leaf.tolist() for leaf in fl.tree.leaves((model, state))]
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.update(model, grads, state)
    assert str(raised.value).replace("mappingproxy", "dict") == message
    snapshot.assert_unchanged()
    assert [leaf.tolist() for leaf in fl.tree.leaves((model, state))] == numbers


@each_wrapper
@pytest.mark.parametrize(
    ("rate", "shown"), [(0.5, "0.5"), (None, "None"), (mx.array([0.1, 0.2]), "f32[2]"), ("fast", "'fast'")], ids=str
)
@pytest.mark.parametrize("model", [net(), mx.ones(2)], ids=["a module", "an array"])
def test_a_learning_rate_in_the_state_that_is_no_scalar_array_is_refused(names, rate, shown, model):
    opt = stack(names, base())
    place = "hyperparameters.learning_rate"
    state = fl.tree.map_with_path(lambda path, array: rate if path.endswith(place) else array, opt.init(model))
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.update(model, gradients_of(model), state)
    differences = f"learning_rate of the optimizer is f32[] and the state has {shown}"
    assert str(raised.value) == OTHER_STATE.format(optimizer=type(opt).__name__, method="update", differences=differences)


@pytest.mark.parametrize("names", PACKABLE, ids=ids)
def test_a_packed_model_without_flatten_is_refused(names):
    opt, packed = stack(names, base()), optim.pack(net())
    state = opt.init(net())
    for call in (
        lambda: opt.init(packed),
        lambda: opt.update(packed, gradients_of(net()), state),
        lambda: opt.adapt(state, packed),
    ):
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            call()
        assert str(raised.value) == PACKED


@each_wrapper
def test_a_model_with_nothing_to_train_is_refused(names):
    opt, state = stack(names, base()), stack(names, base()).init(net())
    for call, method in ((lambda: opt.init(net().freeze()), "init"), (lambda: opt.adapt(state, net().freeze()), "adapt")):
        with pytest.raises(ValueError, match=rf"the Sequential given to {type(opt).__name__}.{method} has nothing to train"):
            call()


def kind_of(opt):
    """Return what tells its states from others'."""
    inner = getattr(opt, "optimizer", None)
    return kind_of(inner) if isinstance(opt, optim.Chain | optim.Masked) else (type(opt), inner and kind_of(inner))


@each_stack
def test_the_state_of_another_optimizer_is_refused(names):
    """An optimizer in chain or masked has the state that it has alone."""
    opt, model, grads = stack(names, base()), net(), gradients_of(net())
    for others in [(), *SINGLES, *FEW]:
        other = stack(others, base())
        if kind_of(other) == kind_of(opt):
            continue
        state = other.init(model)
        snapshot = Snapshot((model, state))
        for call in (
            lambda: opt.update(model, grads, state), lambda: opt.adapt(state, model), lambda: opt.learning_rate(state),  # noqa: B023
        ):  # fmt: skip
            with pytest.raises(TypeError, match="takes the state that"):
                call()
        snapshot.assert_unchanged()


@each_stack
def test_an_optimizer_is_a_value(names):
    opt = stack(names, base())
    same, other = stack(names, base()), stack(names, optim.SGD(0.25))
    assert fl.tree.structure(opt) == fl.tree.structure(same) != fl.tree.structure(other)
    assert fl.tree.structure(pickle.loads(pickle.dumps(opt))) == fl.tree.structure(opt)
    assert fl.tree.leaves(opt) == []
    assert "SGD(learning_rate=0.5, momentum=0.5, weight_decay=0.0, dampening=0.0, nesterov=False)" in repr(opt)
    with pytest.raises(AttributeError):
        opt.optimizer = base()


def test_a_step_can_be_differentiated_with_respect_to_a_learning_rate():
    opt, w = optim.ema(optim.skip_nonfinite(optim.chain(optim.clip_by_value(2.0), optim.SGD(0.1))), 0.5), mx.array(3.0)

    def loss_after_a_step(rate):
        after, _ = opt.update(w, mx.array(4.0), opt.init(w).at("**.hyperparameters.learning_rate").set(rate))
        return after**2

    assert fl.grad(loss_after_a_step)(mx.array(0.5)).item() == 2 * (3.0 - 0.5 * 2.0) * -2.0


def test_there_is_a_stack_for_each_wrapper():
    wrappers = {"accumulate", "ema", "masked", "multi", "shard", "skip_nonfinite"}
    assert wrappers | {"clip_by_global_norm", "clip_by_value"} == set(NEUTRAL) == set(ACTIVE)
    made = {type(wrap(base())) for wrap in NEUTRAL.values()}
    assert made == {
        each for each in (getattr(optim, name) for name in dir(optim))
        if isinstance(each, type) and issubclass(each, optim.Optimizer) and not issubclass(each, optim.Rule)
    } - {optim.Optimizer, optim.Flattened}  # fmt: skip
