"""States of other optimizers: what is said where one can't be adapted, and that it works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl

MODEL = fl.nn.Linear(3, 2, key=mx.random.key(0))
X = mx.random.normal((5, 3), key=mx.random.key(1))
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "ema": lambda opt: fl.optim.ema(opt, 0.5),
    "accumulate": lambda opt: fl.optim.accumulate(opt, 1),
    "skip": fl.optim.skip_nonfinite,
    "a chain": lambda opt: fl.optim.chain(fl.optim.clip_by_value(9.0), fl.optim.ema(opt, 0.5)),
}
INNER: dict[str, Callable[[], Any]] = {
    "Adam": lambda: fl.optim.Adam(0.1),
    "flattened": lambda: fl.optim.flatten(fl.optim.Adam(0.1)),
    "averaged": lambda: fl.optim.ema(fl.optim.SGD(0.1, 0.9), 0.5),
}


def trained(opt: Any, model: Any, state: Any, steps: int = 2) -> tuple[Any, Any]:
    for _ in range(steps):
        model, state = opt.update(model, fl.grad(lambda each: (each(X) ** 2).mean())(model), state)
    return model, state


def refused(opt: Any, state: Any, model: Any = MODEL) -> str:
    with pytest.raises(TypeError, match=r"\.adapt takes the state that") as raised:
        opt.adapt(state, model)
    return str(raised.value)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_state_goes_on_in_an_optimizer_around_its_own(wrapper: str, inner: str) -> None:
    plain = INNER[inner]()
    opt = WRAPPERS[wrapper](plain)
    model, state = trained(plain, MODEL, plain.init(MODEL))
    code = re.search(r"in this one: (.*) goes on from it$", refused(opt, state, model))
    assert code is not None
    whole = eval(code[1], {"opt": opt, "model": model, "state": state})
    after, last = trained(opt, model, whole)
    expected, expected_state = trained(plain, model, state)
    assert fl.tree.allclose(after, expected)
    assert fl.tree.allclose(last.inner, expected_state)
    assert fl.tree.equal(opt.adapt(whole, model), whole)
    # And back.
    assert refused(plain, whole, model).endswith(". state.inner is one: give that")
    assert fl.tree.equal(plain.adapt(whole.inner, model), state)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("one", "other"), [("Adam", "AdamW"), ("AdamW", "Adam")])
def test_adam_and_adamw_remember_the_same(one: str, other: str, flat: bool) -> None:
    made = {"Adam": fl.optim.Adam(0.1), "AdamW": fl.optim.AdamW(0.1, weight_decay=0.0)}
    opts = {name: fl.optim.flatten(opt) if flat else opt for name, opt in made.items()}
    model, state = trained(opts[one], MODEL, opts[one].init(MODEL))
    code = re.search(r"remember the same: give (.*)$", refused(opts[other], state, model))
    assert code is not None
    state_there = opts[other].adapt(eval(code[1], {"state": state}), model)
    # Without decay they are one rule.
    assert fl.tree.allclose(trained(opts[other], model, state_there)[0], trained(opts[one], model, state)[0])
    assert not fl.tree.allclose(trained(opts[other], model, opts[other].init(model))[0], trained(opts[one], model, state)[0])


@pytest.mark.parametrize("rule", ["Adamax", "Lion", "RMSprop", "SGD"])
def test_others_do_not(rule: str) -> None:
    adam = fl.optim.Adam(0.1)
    other = getattr(fl.optim, rule)(0.1)
    assert refused(other, adam.init(MODEL)).endswith("something else: begin anew with opt.init(model)")
    assert refused(adam, other.init(MODEL)).endswith("something else: begin anew with opt.init(model)")


def test_a_flattened_state_and_another_do_not_become_each_other() -> None:
    plain, flat = fl.optim.Adam(0.1), fl.optim.flatten(fl.optim.Adam(0.1))
    assert "go on with the optimizer that isn't flattened, or begin anew" in refused(flat, plain.init(MODEL))
    assert "go on with fl.optim.flatten(opt), or begin anew" in refused(plain, flat.init(MODEL))
    _ = fl.optim.flatten(plain).adapt(flat.init(MODEL), MODEL)


@pytest.mark.parametrize("given", [None, 3, {"a": mx.ones(1)}, MODEL, fl.optim.shard(fl.optim.Adam(0.1)).init(MODEL)])
def test_nothing_is_said_of_what_is_another_thing(given: Any) -> None:
    for opt in (fl.optim.Adam(0.1), fl.optim.flatten(fl.optim.Adam(0.1)), fl.optim.ema(fl.optim.Adam(0.1), 0.9)):
        assert refused(opt, given).rpartition("was given ")[2].count(". ") == 0
    assert "in this one" not in refused(fl.optim.shard(fl.optim.Adam(0.1)), fl.optim.Adam(0.1).init(MODEL))
