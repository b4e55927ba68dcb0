"""What still applies of a state, for models that were frozen, unfrozen or changed, packed or not."""

import mlx.core as mx
import mlx.optimizers
import pytest
from optim.stacks import ACTIVE, DEEP, FEW, PACKABLE, SINGLES, gradients_of, named, same_shapes, stack, trained

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
    "another name": (lambda model: {"A": model["a"], "b": model["b"]}, {"b.c", "b.half"}),
    "all others": (lambda model: [mx.ones(2)], set()),
}


@each_make
@pytest.mark.parametrize(("change", "carried"), CHANGES.values(), ids=CHANGES)
def test_what_has_its_name_and_shape_is_carried_over(make, change, carried):
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


RULES = {
    "SGD": optim.SGD(0.1, momentum=0.9), "RMSprop": optim.RMSprop(0.1), "Adagrad": optim.Adagrad(0.1),
    "AdaDelta": optim.AdaDelta(0.1), "Adam": optim.Adam(0.1), "AdamW": optim.AdamW(0.1), "Adamax": optim.Adamax(0.1),
    "Lion": optim.Lion(0.1), "Adafactor": optim.Adafactor(0.1), "Adafactor with momentum": optim.Adafactor(beta_1=0.9),
    "Muon": optim.Muon(0.1),
}  # fmt: skip
CASTS = [(mx.float32, mx.bfloat16), (mx.float16, mx.float32)]
each_cast = pytest.mark.parametrize(("before", "after"), CASTS, ids=str)


def assert_cast(opt, before, after):
    """Follow the advice that the error gives after a cast, and check that the state is the one that was there, cast."""
    model, state = trained(opt, net().astype(before), 3)
    cast = model.astype(after)
    grads = gradients_of(cast)
    with pytest.raises(ValueError, match=r"and the state has .* carry over what still applies with .*\.adapt\(state, model\)"):
        _ = opt.update(cast, grads, state)
    adapted = opt.adapt(state, cast)
    assert fl.tree.equal(adapted, state.astype(after))
    assert same_shapes(adapted, opt.init(cast))
    _ = opt.update(cast, grads, adapted)
    unchanged = {path for path, array in named(state).items() if array.dtype == named(adapted)[path].dtype}
    assert any(path.endswith("step") for path in unchanged)
    assert all(named(adapted)[path] is named(state)[path] for path in unchanged)


@each_cast
@pytest.mark.parametrize("rule", RULES)
def test_what_has_another_dtype_is_cast(rule, before, after):
    assert_cast(RULES[rule], before, after)


@each_cast
@pytest.mark.parametrize("names", [*SINGLES, *FEW, *DEEP], ids=ids)
def test_what_has_another_dtype_is_cast_in_every_wrapper(names, before, after):
    assert_cast(stack(names, optim.AdamW(0.1), ACTIVE), before, after)


@each_cast
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", [(), ("ema",), ("accumulate", "ema"), ("skip_nonfinite",)], ids=ids)
def test_what_has_another_dtype_is_cast_in_vectors(names, packed, before, after):
    opt, flat = stack(names, optim.AdamW(0.1), ACTIVE), stack(names, optim.flatten(optim.AdamW(0.1)), ACTIVE)
    lay = optim.pack if packed else lambda model: model
    start = {"a": mx.ones(2, before), "b": mx.ones((2, 2), mx.float32), "c": mx.ones(3, before)}
    cast = fl.tree.map(lambda array: array.astype(after), start)
    expected = opt.adapt(trained(opt, start, 3)[1], cast)
    adapted = flat.adapt(trained(flat, lay(start), 3)[1], lay(cast))
    assert same_shapes(adapted, flat.init(lay(cast)))
    while hasattr(adapted, "inner"):
        adapted, expected = adapted.inner, expected.inner
    for key in ("m", "v"):
        laid = mx.concatenate([expected.slots[name][key].reshape(-1) for name in ("a", "b", "c")])
        assert mx.array_equal(adapted.slots[f"vectors.{str(after).split('.')[-1]}"][key], laid)
        assert mx.abs(laid).min() > 0


class Counting(mlx.optimizers.Optimizer):
    """Remembers a precise average and a count, whatever the dtype of the parameter."""

    def __init__(self, learning_rate):
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)

    def init_single(self, parameter, state):
        state["m"] = mx.zeros(parameter.shape, mx.float32)
        state["last"] = mx.zeros_like(parameter)
        state["count"] = mx.array(0, mx.uint32)

    def apply_single(self, gradient, parameter, state):
        state["m"] = state["m"] + gradient.astype(mx.float32)
        state["last"], state["count"] = gradient, state["count"] + 1
        return parameter - self.learning_rate.astype(gradient.dtype) * gradient


def test_what_a_rule_holds_in_a_dtype_of_its_own_stays_in_that():
    opt = optim.wrap(Counting)(0.1)
    model, state = trained(opt, {"a": mx.ones(3)}, 3)
    half = {"a": model["a"].astype(mx.bfloat16)}
    now, before = opt.adapt(state, half).slots["a"], state.slots["a"]
    assert now["m"] is before["m"]
    assert now["count"] is before["count"]
    assert now["last"].dtype == mx.bfloat16
    assert mx.array_equal(now["last"], before["last"].astype(mx.bfloat16))
    _ = opt.update(half, half, opt.adapt(state, half))
