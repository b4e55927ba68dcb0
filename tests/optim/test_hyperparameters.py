"""The learning rate and what else is in a state: how it is changed, what a restored state keeps, and what is refused."""

import warnings

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from optim.stacks import (
    ACTIVE,
    DEEP,
    FEW,
    NEUTRAL,
    PACKABLE,
    SINGLES,
    gradients_of,
    named,
    nothing,
    rates,
    same_shapes,
    stack,
    trained,
)

import frostleaf as fl
from frostleaf import optim
from frostleaf.core.words import PACKAGE
from frostleaf.optim.optimizer import NOT_IN_STATE
from frostleaf.optim.rule import A_SCHEDULE, NOT_A_VALUE, OTHER_VALUE, SCHEDULED

ids = " of ".join
STACKS = [(), *SINGLES, *FEW, *DEEP]
each_stack = pytest.mark.parametrize("names", STACKS, ids=ids)


def net():
    return fl.nn.Sequential(fl.nn.Linear(2, 3, key=mx.random.key(0)), fl.nn.Linear(3, 1, key=mx.random.key(1)))


class Twofold(mlx.optimizers.Optimizer):
    """A rule with two hyperparameters in its state."""

    def __init__(self, learning_rate, damping=0.5):
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)
        self._maybe_schedule("damping", damping)

    def init_single(self, parameter, state):
        state["v"] = mx.zeros_like(parameter)

    def apply_single(self, gradient, parameter, state):
        state["v"] = state["v"] * self.state["damping"].astype(gradient.dtype) + gradient
        return parameter - self.learning_rate.astype(gradient.dtype) * state["v"]


# Changing the state


@each_stack
@pytest.mark.parametrize("flat", [False, True], ids=["as it is", "flattened"])
def test_a_learning_rate_is_changed_in_every_optimizer_inside(names, flat):
    if flat and names and names not in PACKABLE:
        return
    opt = stack(names, optim.flatten(optim.SGD(0.5, momentum=0.5)) if flat else optim.SGD(0.5, momentum=0.5), ACTIVE)
    model, state = trained(opt, net(), 2)
    changed = opt.with_learning_rate(state, 0.125)
    assert fl.tree.equal(changed, rates(state, 0.125))
    assert fl.tree.structure(changed) == fl.tree.structure(state)
    assert opt.learning_rate(changed).dtype == mx.float32
    assert fl.tree.equal(opt.with_hyperparameters(state, learning_rate=0.125), changed)
    assert fl.tree.equal(trained(opt, model, 3, changed), trained(opt, model, 3, rates(state, 0.125)))
    kept = [one is two for one, two in zip(*map(fl.tree.leaves, (state, changed)), strict=True)]
    assert len(kept) - sum(kept) == 1 + ("multi" in names)


@pytest.mark.parametrize(
    "rate", [0.25, 1, 0, np.float32(0.25), mx.array(0.25), mx.array(1), mx.array(0.25, mx.bfloat16)], ids=repr
)
def test_a_learning_rate_is_any_real_number(rate):
    opt = optim.SGD(0.5)
    changed = opt.with_learning_rate(opt.init(mx.ones(2)), rate)
    assert (opt.learning_rate(changed).item(), opt.learning_rate(changed).dtype) == (float(rate), mx.float32)


class AnyArguments(mlx.optimizers.SGD):
    """A rule that names none of its arguments."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


WHOLE = {
    "SGD": lambda: optim.SGD(1), "Adam": lambda: optim.Adam(1), "RMSprop": lambda: optim.RMSprop(learning_rate=1),
    "by name": lambda: optim.wrap(AnyArguments)(learning_rate=1), "damping": lambda: optim.wrap(Twofold)(1, 1),
    "of numpy": lambda: optim.SGD(np.int64(1)), "half": lambda: optim.SGD(np.float16(1)),
    "array": lambda: optim.SGD(mx.array(1)),
}  # fmt: skip


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("names", [(), *SINGLES], ids=ids)
def test_a_whole_number_is_a_rate_in_float32_too(names, make, tmp_path):
    opt = stack(names, make(), NEUTRAL)
    state = opt.init(net())
    changed = opt.with_learning_rate(state, 0.5)
    assert opt.learning_rate(changed).item() == 0.5
    assert opt.learning_rate(state).dtype == opt.learning_rate(changed).dtype == mx.float32
    assert {leaf.dtype for path, leaf in named(state).items() if "hyperparameters" in path} == {mx.float32}
    rate = fl.jit(lambda state, rate: opt.learning_rate(opt.with_learning_rate(state, rate)))(state, mx.array(0.5))
    assert (rate.item(), rate.dtype) == (0.5, mx.float32)
    fl.save(tmp_path / "state", state)
    assert fl.tree.equal(fl.load(tmp_path / "state", changed), state)


def test_a_hyperparameter_of_integers_takes_a_half():
    opt = optim.wrap(AnyArguments)(1)  # by position: which argument the rule keeps is not known
    state = opt.init(mx.ones(2))
    for rate in (0.5, mx.array(0.5), np.float32(0.5)):
        assert opt.learning_rate(opt.with_learning_rate(state, rate)).item() == 0.5
    assert fl.jit(opt.with_learning_rate)(state, mx.array(0.5)).hyperparameters["learning_rate"].item() == 0.5
    assert opt.learning_rate(opt.with_learning_rate(state, 2)).dtype == mx.int32


@pytest.mark.parametrize("names", [*SINGLES, *DEEP], ids=ids)
def test_a_step_may_be_given_its_rate(names):
    opt = stack(names, optim.SGD(0.5), NEUTRAL)
    step = fl.jit(lambda model, grads, state, rate: opt.update(model, grads, opt.with_learning_rate(state, rate)))
    model, state = net(), opt.init(net())
    for number, rate in enumerate((0.1, 0.2, 0.3)):
        grads = gradients_of(net(), number)
        expected, _ = optim.SGD(rate).update(model, grads, optim.SGD(rate).init(model))
        model, state = step(model, grads, state, mx.array(rate))
        assert fl.tree.allclose(model, expected, rtol=1e-5, atol=1e-6)
    assert step.trace_count == 1


def test_the_members_of_an_ensemble_have_one_rate_or_each_their_own():
    opt = optim.SGD(0.5)
    states = fl.vmap(opt.init)(mx.ones((3, 2)))
    states = states.at("hyperparameters.learning_rate").set(mx.array([0.1, 0.2, 0.3]))
    for rate, expected in ((0.5, [0.5] * 3), (mx.array(0.5), [0.5] * 3), (mx.array([1.0, 2.0, 3.0]), [1, 2, 3])):
        assert opt.learning_rate(opt.with_learning_rate(states, rate)).tolist() == expected
    assert opt.learning_rate(fl.vmap(opt.with_learning_rate)(states, mx.array([1.0, 2.0, 3.0]))).tolist() == [1, 2, 3]


def test_other_hyperparameters_are_changed_by_their_names():
    opt = optim.ema(optim.wrap(Twofold)(0.1), 0.9)
    state = opt.with_hyperparameters(opt.init(mx.ones(2)), damping=0.25)
    assert {name: round(value.item(), 3) for name, value in state.inner.hyperparameters.items()} == {
        "learning_rate": 0.1, "damping": 0.25,
    }  # fmt: skip
    assert opt.with_hyperparameters(state).inner.hyperparameters == state.inner.hyperparameters


def test_of_several_optimizers_those_that_have_it_are_changed():
    opt = optim.multi({"a": optim.Adafactor(), "b": optim.wrap(Twofold)(0.1), "**": optim.SGD(0.1)})
    state = opt.init({name: mx.ones(2) for name in "abc"})
    changed = opt.with_hyperparameters(state, learning_rate=0.25, damping=0.75)
    shown = [{name: value.item() for name, value in inner.hyperparameters.items()} for inner in changed.inner]
    assert shown == [{}, {"learning_rate": 0.25, "damping": 0.75}, {"learning_rate": 0.25}]


# What is refused


@each_stack
def test_a_rate_on_a_schedule_is_refused(names):
    rule = optim.SGD(optim.linear_schedule(0.1, 0.2, 3))
    opt = stack(names, rule)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.with_learning_rate(opt.init(net()), 0.1)
    assert str(raised.value) == SCHEDULED.format(name="learning_rate", optimizer="SGD(...)")


@each_stack
@pytest.mark.parametrize(
    ("value", "shown"),
    [("fast", "'fast'"), (None, "None"), (True, "True"), (mx.array([0.1, 0.2]), "f32[2]"), (abs, "abs")],
    ids=str,
)
def test_what_is_no_number_is_refused(names, value, shown):
    opt = stack(names, optim.SGD(0.5))
    with pytest.raises(TypeError) as raised:
        opt.with_learning_rate(opt.init(net()), value)
    advice = A_SCHEDULE if value is abs else ""
    message = NOT_A_VALUE.format(name="learning_rate", optimizer="\0", given=shown, advice=advice).split("\0")
    assert str(raised.value).startswith(message[0])
    assert str(raised.value).endswith(message[1])


@pytest.mark.parametrize(
    ("opt", "name", "has"),
    [
        (optim.Adam(0.1), "betas", "learning_rate"),
        (optim.SGD(0.1), "momentum", "learning_rate"),
        (optim.Adafactor(), "learning_rate", "none"),
        (optim.ema(optim.wrap(Twofold)(0.1), 0.9), "decay", "damping, learning_rate"),
        (optim.multi({"**": optim.flatten(optim.Adam(0.1))}), "eps", "learning_rate"),
    ],
    ids=lambda each: each if isinstance(each, str) else type(each).__name__,
)
def test_what_is_not_in_the_state_is_refused(opt, name, has):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        opt.with_hyperparameters(opt.init(net()), **{name: 0.1})
    begin, end = NOT_IN_STATE.format(name=name, optimizer="\0", names=has).split("\0")
    assert (str(raised.value).startswith(begin), str(raised.value).endswith(end)) == (True, True)


def test_the_state_of_another_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"Adam\.with_hyperparameters takes the state that"):
        optim.Adam(0.1).with_learning_rate(optim.SGD(0.1).init(net()), 0.1)


# Going on with another optimizer


def resumed(rule, names, flat):
    return stack(names, optim.flatten(rule) if flat else rule, ACTIVE)


@pytest.mark.parametrize("flat", [False, True], ids=["as it is", "flattened"])
@each_stack
def test_a_state_is_adapted_to_a_new_learning_rate(names, flat, tmp_path):
    if flat and names and names not in PACKABLE:
        return
    first, again = (resumed(optim.AdamW(rate), names, flat) for rate in (0.5, 0.125))
    model, state = trained(first, net(), 4)
    fl.save(tmp_path / "state", state)
    restored = fl.load(tmp_path / "state", again.init(model))
    assert fl.tree.equal(restored, state)
    adapted = again.adapt(restored, model)
    assert same_shapes(adapted, state)
    changed = state.at(lambda path, array: path.endswith("hyperparameters.learning_rate") and array == 0.5).set(mx.array(0.125))
    assert fl.tree.equal(trained(again, model, 3, adapted)[0], trained(first, model, 3, changed)[0])
    assert fl.tree.equal(again.adapt(adapted, model), adapted)
    assert fl.tree.equal(fl.jit(lambda state, model: again.adapt(state, model))(restored, model), adapted)


@pytest.mark.parametrize("wrap", [lambda adapt: adapt, fl.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("flat", [False, True], ids=["as it is", "flattened"])
def test_what_was_changed_in_the_state_is_kept_until_the_optimizer_has_another(wrap, flat):
    first, same, other = (resumed(optim.Adam(rate), (), flat) for rate in (0.5, 0.5, 0.125))
    model, state = trained(first, net(), 2)
    state = first.with_learning_rate(state, 0.25)
    frozen = model.freeze(keys="bias")
    for opt, rate in ((first, 0.25), (same, 0.25), (other, 0.125)):
        adapted = wrap(opt.adapt)(state, frozen)
        assert opt.learning_rate(adapted).item() == rate
        # Adapted once more, by the same, it stays; changed after that, it is kept.
        assert opt.learning_rate(wrap(opt.adapt)(adapted, model)).item() == rate
        assert opt.learning_rate(wrap(opt.adapt)(opt.with_learning_rate(adapted, 0.75), model)).item() == 0.75
    _, state = trained(other, frozen, 2, other.adapt(state, frozen))
    assert first.learning_rate(first.adapt(state, model)).item() == 0.5


def test_all_rates_selected_by_name_are_those_in_use():
    opt = optim.SGD(0.5)
    state = opt.init(mx.ones(2)).at("**.learning_rate").set(mx.array(0.25))
    assert opt.learning_rate(opt.adapt(state, mx.ones(3))).item() == 0.25


SCHEDULE = optim.linear_schedule(1.0, 0.0, 8)


def test_from_a_schedule_to_a_number_and_back():
    scheduled, number = optim.SGD(SCHEDULE), optim.SGD(1.0)  # which is where the schedule began
    model, state = trained(scheduled, net(), 4)
    assert scheduled.learning_rate(state).item() == 0.625
    adapted = number.adapt(state, model)
    assert number.learning_rate(adapted).item() == 1.0
    assert scheduled.learning_rate(scheduled.adapt(state, model)) is scheduled.learning_rate(state)
    back = scheduled.adapt(adapted, model)
    _, after = trained(scheduled, model, 1, back)
    assert scheduled.learning_rate(after).item() == SCHEDULE(mx.array(4)).item() == 0.5


def test_from_a_rule_without_a_rate_to_one_with():
    without, with_rate = optim.Adafactor(), optim.Adafactor(0.125, relative_step=False)
    model, state = trained(without, net(), 2)
    adapted = with_rate.adapt(state, model)
    assert (with_rate.learning_rate(adapted).item(), adapted.step.item()) == (0.125, 2)
    trained(with_rate, model, 1, adapted)
    assert without.adapt(adapted, model).configured == ()


# A state used by another optimizer, without adapt


def warned(call):
    """Return what a call warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert not any(each.filename.startswith(PACKAGE) for each in caught)
    return [str(each.message) for each in caught if each.category is fl.OtherHyperparametersWarning]


def said(value, own, rule="SGD", name="learning_rate"):
    call = f"with_hyperparameters(state, {name}=...)" if name == "damping" else "with_learning_rate(state, rate)"
    return OTHER_VALUE.format(name=name, value=value, own=own, rule=rule, change=f"optimizer.{call}")


@pytest.mark.parametrize("flat", [False, True], ids=["as it is", "flattened"])
@each_stack
def test_a_state_with_another_rate_than_the_optimizer_warns_until_it_is_adapted(names, flat):
    if flat and names and names not in PACKABLE:
        return
    first, same, other = (resumed(optim.SGD(rate), names, flat) for rate in (0.1, 0.1, 0.9))
    model = net()
    state = first.init(model)
    for opt, of, expected in [
        (first, state, []),
        (same, state, []),
        (other, state, [said(0.1, 0.9)]),
        (other, other.adapt(state, model), []),
        (other, other.with_learning_rate(state, 0.5), []),
        (first, first.with_learning_rate(state, 0.5), []),
        (same, first.with_learning_rate(state, 0.5), []),
        (other, first.with_learning_rate(state, 0.5), [said(0.5, 0.9)]),
        (other, first.with_learning_rate(state, 0.9), []),
    ]:
        assert warned(lambda opt=opt, of=of: trained(opt, model, 1, of)) == expected


def test_a_schedule_is_used_whatever_the_state_has_and_a_number_is_not():
    scheduled, number = optim.SGD(SCHEDULE), optim.SGD(0.25)
    model, state = trained(scheduled, net(), 4)
    assert warned(lambda: trained(number, model, 1, state)) == [said(0.625, 0.25)]
    state = number.init(model)
    assert warned(lambda: trained(scheduled, model, 1, state)) == []
    assert trained(scheduled, model, 1, state)[1].hyperparameters["learning_rate"].item() == 1.0
    assert warned(lambda: trained(optim.SGD(lambda step: SCHEDULE(step) / 2), model, 1, scheduled.init(model))) == []


def test_every_hyperparameter_in_the_state_is_looked_at():
    one, two = optim.wrap(Twofold)(0.5), optim.wrap(Twofold)(0.5, damping=0.25)
    state = one.init(mx.ones(2))
    expected = [said(0.5, 0.25, "Twofold", "damping")]
    assert warned(lambda: two.update(mx.ones(2), mx.ones(2), state)) == expected
    changed = two.with_learning_rate(state, 0.125)
    assert warned(lambda: two.update(mx.ones(2), mx.ones(2), changed)) == expected


def test_no_warning_without_a_number_to_compare_or_a_parameter_to_train():
    one, two = optim.SGD(0.1), optim.SGD(0.9)
    state = one.init(mx.ones(2))
    assert warned(lambda: fl.jit(one.update)(mx.ones(2), mx.ones(2), state)) == []
    assert warned(lambda: fl.vmap(one.update)(mx.ones((3, 2)), mx.ones((3, 2)), fl.vmap(one.init)(mx.ones((3, 2))))) == []
    half = fl.tree.map(lambda leaf: leaf.astype(mx.bfloat16) if leaf.dtype == mx.float32 else leaf, state)
    assert warned(lambda: one.update(mx.ones(2, mx.bfloat16), mx.ones(2, mx.bfloat16), half)) == []
    ones, twos = (optim.multi({nothing: opt, "**": optim.SGD(0.5)}) for opt in (one, two))
    assert warned(lambda: twos.update(mx.ones(2), mx.ones(2), ones.init(mx.ones(2)))) == []


def test_a_compiled_step_around_a_state_it_captured_warns_once():
    state = optim.SGD(0.1).init(mx.ones(2))
    step = fl.jit(lambda weight, grad: optim.SGD(0.9).update(weight, grad, state)[0])
    assert warned(lambda: [step(mx.ones(2), mx.ones(2)) for _ in range(3)]) == [said(0.1, 0.9)]


COMPILED = {
    "a function": lambda opt: fl.jit(lambda *given: opt.update(*given)),
    "the method": lambda opt: fl.jit(opt.update),
    "in another": lambda opt: fl.jit(lambda *given: fl.jit(opt.update)(*given)),
    "shapeless": lambda opt: fl.jit(opt.update, shapeless=True),
}


@pytest.mark.parametrize("compiled", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("names", STACKS, ids=ids)
def test_a_compiled_step_warns_of_another_rate_when_it_is_traced(names, compiled, tmp_path):
    first, other = (stack(names, optim.SGD(rate), ACTIVE) for rate in (0.1, 0.9))
    model, grads = net(), gradients_of(net())
    fl.save(tmp_path / "state", first.init(model))
    state = fl.load(tmp_path / "state", other.init(model))
    for opt, of, expected in [
        (first, state, []),
        (other, state, [said(0.1, 0.9)]),
        (other, other.adapt(state, model), []),
        (other, other.with_learning_rate(state, 0.5), []),
        (first, first.with_learning_rate(state, 0.5), []),
        (other, first.with_learning_rate(state, 0.5), [said(0.5, 0.9)]),
    ]:
        step = compiled(opt)
        assert warned(lambda step=step, of=of: [step(model, grads, of) for _ in range(3)]) == expected


def test_a_compiled_step_that_sets_the_rate_itself_does_not_warn():
    first, other = optim.SGD(0.1), optim.SGD(0.9)
    given = mx.ones(2), mx.ones(2), first.init(mx.ones(2)), mx.array(0.5)
    for step in (
        lambda weight, grad, state, rate: other.update(weight, grad, other.with_learning_rate(state, rate)),
        lambda weight, grad, state, rate: other.update(weight, grad, other.adapt(state, weight)),
        lambda weight, grad, state, rate: other.update(weight, grad, other.init(weight)),
    ):
        assert warned(lambda step=step: fl.jit(step)(*given)) == []
        assert warned(lambda step=step: fl.jit(lambda *given: fl.jit(step)(*given))(*given)) == []


def test_a_compiled_step_over_many_states_does_not_warn():
    other, states = optim.SGD(0.9), fl.vmap(lambda _: optim.SGD(0.1).init(mx.ones(2)))(mx.ones(3))
    step = fl.jit(fl.vmap(other.update))
    assert warned(lambda: step(mx.ones((3, 2)), mx.ones((3, 2)), states)) == []
