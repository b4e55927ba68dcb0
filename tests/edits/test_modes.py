"""Training and evaluation mode, as in mlx.nn.Module."""

from __future__ import annotations

from typing import Any

import pytest
from twins import MODELS, Block, Stack, linear, same, subject


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "calls",
    [["eval"], ["train"], ["eval", "train"], [("train", False)], [("train", True)], [("train", 0)], []],
    ids=str,
)
def test_each_module_is_in_the_mode_that_mlx_puts_it_in(name: str, calls: list[Any]) -> None:
    ours, theirs = subject(name)
    for call in calls:
        method, *arguments = call if isinstance(call, tuple) else (call,)
        ours = getattr(ours, method)(*arguments)
        getattr(theirs, method)(*arguments)
    assert [bool(module.training) for module in theirs.modules()] == [module.training for module in ours.modules()]
    assert same(ours.parameters(), theirs.parameters())


def test_a_module_is_in_training_mode_when_it_is_built() -> None:
    assert linear().training is True


def test_eval_returns_another_model_and_leaves_the_first_in_training_mode() -> None:
    model = Stack([linear()])
    after = model.eval()
    assert after is not model
    assert [module.training for module in model.modules()] == [True, True]
    assert [module.training for module in after.modules()] == [False, False]
    assert type(after) is type(model)


def test_only_the_modules_that_change_their_mode_are_new() -> None:
    model = Block(linear(1).eval(), linear(2))
    after = model.eval()
    assert after.second is model.second
    assert after.first is not model.first
    assert after.first.weight is model.first.weight


@pytest.mark.parametrize("mode", [1, "yes", [0]], ids=repr)
def test_the_mode_is_a_bool_whatever_is_given(mode: Any) -> None:
    model = linear().eval().train(mode)
    assert model.training is True
    assert model == model.train()


def test_the_mode_and_what_is_frozen_do_not_depend_on_one_another() -> None:
    model = linear().freeze(keys="bias").eval()
    assert list(model.trainable_parameters()) == ["weight"]
    assert model.freeze().training is False
    assert list(model.train().trainable_parameters()) == ["weight"]


def test_training_can_not_be_assigned() -> None:
    with pytest.raises(AttributeError, match=r"can't set Linear\.training"):
        linear().training = False
