"""What a flattened optimizer refuses, and the messages."""

import mlx.core as mx
import pytest
from laws.strategies import Snapshot
from optim.stacks import gradients_of, normal

import frostleaf as fl
from frostleaf import optim
from frostleaf.optim.optimizer import NOT_A_STATE, NOTHING_TO_TRAIN, OTHER_STATE
from frostleaf.optim.packing import KEEPS_MODE
from frostleaf.optim.parameters import MIXED, NO_GRADIENT
from frostleaf.optim.rule import PACKED

MISMATCH = "{what} does not have the structure of the tree it goes with. At {path}: {given} where there is {expected}."

LAYER = fl.nn.Linear(2, 3)
GRADIENT = gradients_of(LAYER)
PLAIN = optim.Adam(0.1)
ADAM = optim.flatten(PLAIN, max_size=6)
STATE = ADAM.init(LAYER)
MIXED_MODEL = {"a": normal(2), "b": normal(2, dtype=mx.bfloat16), "c": normal(2)}
TWO = (fl.nn.Linear(2, 3), fl.nn.Linear(2, 3))


def frozen(number):
    return tuple(each.freeze() if place == number else each for place, each in enumerate(TWO))


def other_state(*differences):
    return OTHER_STATE.format(method="update", optimizer="Flattened", differences="; ".join(differences))


def wrong_shape(path, gradient, parameter):
    return f"the gradient for {path!r} is {gradient}, and the parameter is {parameter}"


def bad_size(given):
    return f"max_size is the number of elements up to which an array is packed, 0 or more, and was {given!r}"


def nothing_to_train(tree):
    return NOTHING_TO_TRAIN.format(tree=tree, optimizer="Flattened", method="init")


def mixed(**gradients):
    return ADAM.update(MIXED_MODEL, {**gradients_of(MIXED_MODEL), **gradients}, ADAM.init(MIXED_MODEL))


PACKED_INSIDE = "there is a packed tree in what is to be trained. Pack the whole of it: fl.optim.pack(tree)"
ERRORS = {
    "every parameter is frozen": (
        lambda: ADAM.init(LAYER.freeze()), nothing_to_train("Linear"),
    ),
    "every parameter is frozen in the packed model": (
        lambda: ADAM.init(optim.pack(LAYER.freeze())), nothing_to_train("Packed"),
    ),
    "no array": (lambda: ADAM.init({"n": 3}), nothing_to_train("dict")),
    "only integers": (lambda: ADAM.init([mx.array(1)]), nothing_to_train("list")),
    "no gradient": (
        lambda: ADAM.update(LAYER, GRADIENT.replace(bias=None), STATE),
        NO_GRADIENT.format(path="bias", array="f32[3]", given="None"),
    ),
    "a number for a gradient": (
        lambda: ADAM.update({"a": normal(2)}, {"a": 3.0}, ADAM.init({"a": normal(2)})),
        NO_GRADIENT.format(path="a", array="f32[2]", given="3.0"),
    ),
    "a gradient of another shape": (
        lambda: ADAM.update(LAYER, GRADIENT.replace(bias=mx.ones(2)), STATE),
        wrong_shape("bias", "f32[2]", "f32[3]"),
    ),
    "a gradient that would broadcast": (
        lambda: ADAM.update(LAYER, GRADIENT.replace(weight=mx.ones((1, 2))), STATE),
        wrong_shape("weight", "f32[1,2]", "f32[3,2]"),
    ),
    "gradients with as many elements": (
        lambda: ADAM.update(LAYER, GRADIENT.replace(weight=mx.ones((2, 3))), STATE),
        wrong_shape("weight", "f32[2,3]", "f32[3,2]"),
    ),
    "a gradient of a large array of another shape": (
        lambda: optim.flatten(PLAIN, max_size=3).update(
            LAYER, GRADIENT.replace(weight=mx.ones(6)), optim.flatten(PLAIN, max_size=3).init(LAYER)
        ),
        wrong_shape("weight", "f32[6]", "f32[3,2]"),
    ),
    "no gradient for a packed model": (
        lambda: ADAM.update(optim.pack(LAYER), GRADIENT.replace(weight=None), STATE),
        NO_GRADIENT.format(path="weight", array="f32[3,2]", given="None"),
    ),
    "gradients of another class": (
        lambda: ADAM.update(LAYER, {"weight": mx.ones((3, 2)), "bias": mx.ones(3)}, STATE),
        MISMATCH.format(
            what="the gradient", path="the root", given="dict of 2 (weight, bias)", expected="Linear of 2 (weight, bias)"
        ),
    ),
    "no gradients": (
        lambda: ADAM.update(LAYER, None, STATE),
        MISMATCH.format(what="the gradient", path="the root", given="None", expected="Linear of 2 (weight, bias)"),
    ),
    "gradients of two dtypes": (
        lambda: mixed(c=mx.ones(2, mx.float16)),
        MIXED.format(dtype="float32", first="a", one=mx.float32, path="c", other=mx.float16),
    ),
    "gradients of two dtypes, the first another": (
        lambda: mixed(a=mx.ones(2, mx.bfloat16)),
        MIXED.format(dtype="float32", first="a", one=mx.bfloat16, path="c", other=mx.float32),
    ),
    "the state of a frozen model": (
        lambda: ADAM.update(LAYER, GRADIENT, ADAM.init(LAYER.freeze(keys="bias"))), other_state("'bias' has no state"),
    ),
    "a model that was frozen": (
        lambda: ADAM.update(LAYER.freeze(keys="bias"), GRADIENT.freeze(keys="bias"), STATE),
        other_state("'bias' is not trainable"),
    ),
    "a model in which something else of that size is frozen": (
        lambda: ADAM.update(frozen(0), gradients_of(frozen(0)), ADAM.init(frozen(1))),
        other_state(
            "'0.bias' is not trainable", "'0.weight' is not trainable", "'1.bias' has no state", "'1.weight' has no state",
        ),
    ),
    "the state of another model of that size": (
        lambda: ADAM.update({"a": normal(9)}, {"a": normal(9)}, optim.flatten(PLAIN).init(LAYER)),
        other_state("'a' has no state", "'bias' is not trainable", "'weight' is not trainable"),
    ),
    "the state of a model with other shapes": (
        lambda: ADAM.update({"a": normal(3, 2)}, {"a": normal(3, 2)}, ADAM.init({"a": normal(2, 3)})),
        other_state("'a' is in float32 (3, 2) and was in float32 (2, 3)"),
    ),
    "the state of another dtype": (
        lambda: ADAM.update({"a": normal(2)}, {"a": normal(2)}, ADAM.init({"a": normal(2, dtype=mx.float16)})),
        other_state("'a' is in float32 (2,) and was in float16 (2,)"),
    ),
    "the state of another order": (
        lambda: ADAM.update(
            {"a": normal(2), "b": normal(2)}, {"a": normal(2), "b": normal(2)}, ADAM.init({"b": normal(2), "a": normal(2)})
        ),
        other_state("the order of its arrays"),
    ),
    "the state of another size": (
        lambda: ADAM.update(LAYER, GRADIENT, optim.flatten(PLAIN, max_size=3).init(LAYER)),
        other_state("'weight' is in float32 (3, 2) and was in large (3, 2)"),
    ),
    "the state for a model that is packed otherwise": (
        lambda: ADAM.update(optim.pack(LAYER, 0), GRADIENT, STATE),
        other_state("'bias' is in large (3,) and was in float32 (3,)", "'weight' is in large (3, 2) and was in float32 (3, 2)"),
    ),
    "the state of a large other model": (
        lambda: ADAM.update([mx.ones(1)] * 9, [mx.ones(1)] * 9, STATE),
        other_state(*(f"'{n}' has no state" for n in range(6)), "..."),
    ),
    "a plain optimizer begins with a packed model": (lambda: PLAIN.init(optim.pack(LAYER)), PACKED),
    "a plain optimizer begins with a packed part": (lambda: PLAIN.init([{"a": optim.pack(LAYER)}]), PACKED_INSIDE),
    "a plain optimizer begins with a packed model of large arrays": (lambda: PLAIN.init(optim.pack(LAYER, 0)), PACKED),
    "a plain optimizer updates a packed model": (lambda: PLAIN.update(optim.pack(LAYER), GRADIENT, PLAIN.init(LAYER)), PACKED),
    "a model that was packed and then put in evaluation mode": (
        lambda: ADAM.update(optim.pack(LAYER).eval(), GRADIENT, STATE), KEEPS_MODE,
    ),
    "no size": (lambda: optim.flatten(PLAIN, max_size=-1), bad_size(-1)),
    "a size that is no integer": (lambda: optim.flatten(PLAIN, max_size=4096.0), bad_size(4096.0)),
    "a size that is a boolean": (lambda: optim.flatten(PLAIN, max_size=True), bad_size(True)),
    "None for a size": (lambda: optim.flatten(PLAIN, max_size=None), bad_size(None)),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_belong_together_is_an_error_that_names_paths(call, message):
    given = (LAYER, GRADIENT, STATE, TWO, MIXED_MODEL)
    snapshot, before = Snapshot(given), [leaf.tolist() for leaf in fl.tree.leaves(given)]
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert str(raised.value) == message
    snapshot.assert_unchanged()
    assert [leaf.tolist() for leaf in fl.tree.leaves(given)] == before
    _ = ADAM.update(LAYER, GRADIENT, STATE)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (None, "None"), (dict(STATE.slots), None), (optim.pack(LAYER), "Packed(...)"),
        (PLAIN.init(LAYER), "OptimizerState(...)"),
        (optim.flatten(optim.AdamW(0.1)).init(LAYER), "the state of AdamW, where the rule is Adam"),
    ],
)  # fmt: skip
def test_what_is_no_state_of_a_flattened_optimizer_is_refused(state, shown):
    with pytest.raises(TypeError) as raised:
        ADAM.update(LAYER, GRADIENT, state)
    assert str(raised.value).startswith(NOT_A_STATE.format(method="update", optimizer="Flattened", given="").rstrip())
    assert shown is None or str(raised.value) == NOT_A_STATE.format(method="update", optimizer="Flattened", given=shown)


def test_the_state_of_a_flattened_optimizer_is_none_of_a_plain_one():
    with pytest.raises(TypeError) as raised:
        PLAIN.update(LAYER, GRADIENT, STATE)
    assert str(raised.value) == NOT_A_STATE.format(method="update", optimizer="Adam", given="FlattenedState(...)")


def test_gradients_with_respect_to_the_packed_model_are_refused():
    packed = optim.pack(LAYER)
    gradients = fl.grad(lambda packed: packed.unpack()(mx.ones((1, 2))).sum())(packed)
    with pytest.raises(ValueError, match=r"the gradient .*Packed .*where there is Linear"):
        ADAM.update(packed, gradients, STATE)
