"""What still applies of a state, for models that were frozen, unfrozen or changed, packed or not."""

import mlx.core as mx
import mlx.optimizers
import pytest
from optim.stacks import ACTIVE, PACKABLE, gradients_of, named, same_shapes, stack, trained

import frostleaf as fl
from frostleaf import optim

ids = " of ".join
LAYERS = [fl.nn.Linear(2, 3, key=mx.random.key(0)), fl.nn.Linear(3, 1, key=mx.random.key(1))]


def net():
    return fl.nn.Sequential(LAYERS[0], fl.nn.relu, fl.nn.BatchNorm(3), LAYERS[1].freeze(keys="weight"))


MAKE = {
    "plain": lambda opt: (opt, lambda model: model, lambda model: model),
    "flattened": lambda opt: (optim.flatten(opt), lambda model: model, lambda model: model),
    "packed": lambda opt: (optim.flatten(opt), optim.pack, lambda packed: packed.unpack()),
    "packed, but for the large ones": (
        lambda opt: (optim.flatten(opt, max_size=3), lambda tree: optim.pack(tree, 3), lambda packed: packed.unpack())
    ),
}
each_make = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
MODEL = {"a": mx.ones(2), "b": {"c": mx.zeros((2, 2)), "half": mx.ones(3, mx.bfloat16)}}
CHANGES = {
    "nothing": (lambda model: model, {"a", "b.c", "b.half"}),
    "one less": (lambda model: {"a": model["a"]}, {"a"}),
    "one more": (lambda model: {**model, "z": mx.ones(1)}, {"a", "b.c", "b.half"}),
    "one more before the others": (lambda model: {"0": mx.ones(1), **model}, {"a", "b.c", "b.half"}),
    "another order": (lambda model: dict(reversed(model.items())), {"a", "b.c", "b.half"}),
    "another shape": (lambda model: {**model, "a": mx.ones(5)}, {"b.c", "b.half"}),
    "another shape of that size": (lambda model: {**model, "a": mx.ones((2, 1))}, {"b.c", "b.half"}),
    "another dtype": (lambda model: {**model, "a": mx.ones(2, mx.bfloat16)}, {"b.c", "b.half"}),
    "another name": (lambda model: {"A": model["a"], "b": model["b"]}, {"b.c", "b.half"}),
    "all others": (lambda model: [mx.ones(2)], set()),
}


@each_make
@pytest.mark.parametrize(("change", "carried"), CHANGES.values(), ids=CHANGES)
def test_what_has_its_name_shape_and_dtype_is_carried_over(make, change, carried):
    opt, pack, unpack = make(optim.SGD(1.0, momentum=0.5))
    packed, state = trained(opt, pack(MODEL), 2)
    changed = change(unpack(packed))
    adapted = opt.adapt(state, pack(changed))
    assert same_shapes(adapted, opt.init(pack(changed)))
    assert adapted.step is state.step
    # The momentum goes on by itself where there is any.
    after, _ = opt.update(pack(changed), fl.tree.map(mx.zeros_like, changed), adapted)
    before, now = named(changed), named(unpack(after))
    assert {path for path in before if not mx.array_equal(before[path], now[path])} == carried
    plain, plain_state = trained(optim.SGD(1.0, momentum=0.5), MODEL, 2)
    expected, _ = optim.SGD(1.0, momentum=0.5).update(plain, fl.tree.map(mx.zeros_like, plain), plain_state)
    assert all(mx.array_equal(now[path], named(expected)[path]) for path in carried)


@each_make
def test_what_did_not_change_is_carried_over_as_the_same_objects(make):
    opt, pack, unpack = make(optim.Adam(0.1))
    packed, state = trained(opt, pack(MODEL), 2)
    assert all(one is other for one, other in zip(*map(fl.tree.leaves, (opt.adapt(state, packed), state)), strict=True))
    # Of the vectors only that in which something changed is laid out anew.
    adapted = opt.adapt(state, pack({**unpack(packed), "a": mx.ones(5)}))
    before, after = named(state), named(adapted)
    kept = {path for path in after if before.get(path) is after[path]}
    assert {path for path in after if path.endswith(("step", "learning_rate"))} <= kept
    assert {path for path in after if "bfloat16" in path or "half" in path} <= kept


def test_hyperparameters_are_carried_over_and_the_state_of_another_rule_is_not():
    opt = optim.SGD(0.1, momentum=0.9)
    state = opt.init(MODEL).at("hyperparameters.learning_rate").set(mx.array(0.5))
    adapted = optim.SGD(0.1, momentum=0.8).adapt(state, MODEL)
    assert adapted.hyperparameters["learning_rate"].item() == 0.5
    for other in (optim.RMSprop(0.1), optim.Muon(0.1), optim.wrap(mlx.optimizers.Adagrad)(0.1)):  # they remember a "v" as well
        with pytest.raises(TypeError, match=r"\.adapt takes the state .* was given the state of SGD, where the rule is "):
            other.adapt(state, MODEL)


@pytest.mark.parametrize("names", PACKABLE, ids=ids)
def test_a_packed_model_is_frozen_and_carries_over_what_applies(names):
    opt, flat = stack(names, optim.AdamW(0.1), ACTIVE), stack(names, optim.flatten(optim.AdamW(0.1)), ACTIVE)
    model, state = trained(opt, net(), 3)
    packed, packed_state = trained(flat, optim.pack(net()), 3)
    for change in (lambda each: each.freeze(keys="bias"), lambda each: each.unfreeze().at("layers.0").freeze()):
        model, packed = change(model), optim.pack(change(packed.unpack()))
        with pytest.raises(ValueError, match=r"is not trainable.*Flattened.adapt|is not trainable.*\.adapt\(state, model\)"):
            flat.update(packed, gradients_of(packed.unpack()), packed_state)
        model, state = trained(opt, model, 3, opt.adapt(state, model))
        packed, packed_state = trained(flat, packed, 3, flat.adapt(packed_state, packed))
        assert fl.tree.allclose(packed.unpack(), model, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [("ema",), ("accumulate",), ("ema", "accumulate", "skip_nonfinite")], ids=ids)
def test_vectors_of_one_length_are_not_taken_for_each_other(names):
    """What is remembered of one layer is nothing of another, though it is packed into as many numbers."""
    flat = stack(names, optim.flatten(optim.SGD(0.5)), ACTIVE)
    layers = [fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)]
    _, state = trained(flat, optim.pack([layers[0], layers[1].freeze()]), 1)
    other = optim.pack([layers[0].freeze(), layers[1]])
    adapted, fresh = named(flat.adapt(state, other)), named(flat.init(other))
    counts = {path for path in fresh if path.split(".")[-1] in {"step", "count"}}
    assert all(mx.array_equal(adapted[path], array) for path, array in fresh.items() if path not in counts)
