"""vjp and jvp: products with trees, what may be left out of them, and what is an error."""

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms.gradients import NOTHING_TRAINABLE, THAW

NO_DERIVATIVE = "{path} is given a tangent, and is not differentiated: it is {reason}. Give None there"
NOT_A_TUPLE = "fl.{of} takes {what} as a tuple with a tree for each argument, and was given {given}"
STRAY = "{given} cotangents were given, and the result of {fn} has an array for {used} of them"
UNLIKE = "the {what} of {path} is {given}, and must be {expected} or None"
WRONG_COUNT = "fl.{of} was given {primals} primals and {tangents} tangents"
MISMATCH = "{what} does not have the structure of the tree it goes with. At {path}: {given} where there is {expected}."

A, B = mx.array([1.0, 2.0]), mx.array([3.0, 5.0])


class Scale(fl.Module):
    factor: mx.array
    offset: mx.array
    seen: mx.array = fl.buffer(factory=lambda: mx.zeros(2))
    power: int = fl.static(default=2)

    def __call__(self, x):
        return {"y": (x * self.factor) ** self.power + self.offset + self.seen, "name": "scale", "n": x.astype(mx.int32)}


def scale() -> Scale:
    return Scale(mx.array([2.0, 3.0]), mx.array([1.0, 1.0])).freeze(keys="offset")


def call(model, x):
    return model(x)


def flat(factor, x):
    return (x * factor) ** 2 + 1


def test_vjp_is_that_of_mlx_in_the_form_of_the_trees():
    model = scale()
    out, grads = fl.vjp(call, (model, A), {"y": B, "name": None, "n": None})
    assert fl.tree.equal(out, model(A))
    (_,), (factor, x) = mx.vjp(flat, (model.factor, A), (B,))
    assert isinstance(grads, tuple)
    assert type(grads[0]) is Scale
    assert fl.tree.equal((grads[0].factor, grads[1]), (factor, x))
    assert (grads[0].offset, grads[0].seen, grads[0].power) == (None, None, 2)


def test_jvp_is_that_of_mlx_in_the_form_of_the_result():
    model = scale()
    direction = fl.tree.map(lambda leaf: None, model).replace(factor=B)
    out, tangent = fl.jvp(call, (model, A), (direction, A))
    assert fl.tree.equal(out, model(A))
    _, (expected,) = mx.jvp(flat, (model.factor, A), (B, A))
    assert fl.tree.equal(tangent, {"y": expected, "name": None, "n": None})


def test_a_gradient_is_a_tangent():
    model = scale()

    def loss(model):
        return model(A)["y"].sum()

    grads = fl.grad(loss)(model)
    assert fl.jvp(loss, (model,), (grads,))[1].item() == (grads.factor**2).sum().item()


@pytest.mark.parametrize("cotangents", [B, (B,), [B]])
def test_the_cotangent_of_one_array_may_stand_in_a_tuple(cotangents):
    out, (grad,) = fl.vjp(mx.sin, (A,), cotangents)
    (expected,), (same,) = mx.vjp(mx.sin, (A,), (B,))
    assert fl.tree.equal((out, grad), (expected, same))


def test_none_stands_for_zero_in_the_place_of_an_array_or_of_a_part():
    def both(x):
        return {"a": (x * 2, x * 3), "b": [x * 5, x.astype(mx.int32)]}

    zero, ones = mx.zeros(2), mx.ones(2)
    assert fl.tree.equal(fl.vjp(both, (A,), {"a": None, "b": [ones, None]})[1], (ones * 5,))
    assert fl.tree.equal(fl.vjp(both, (A,), {"b": None, "a": (None, ones)})[1], (ones * 3,))
    assert fl.tree.equal(fl.vjp(both, (A,), {"a": (ones, ones), "b": (ones, mx.ones(2, mx.int32))})[1], (ones * 10,))
    assert fl.tree.equal(fl.vjp(both, [A], None)[1], (zero,))
    model = scale()
    assert fl.tree.equal(fl.jvp(call, (model, A), (None, None))[1]["y"], zero)
    assert fl.tree.equal(fl.jvp(call, (model, A), (None, B))[1]["y"], mx.jvp(lambda x: flat(model.factor, x), [A], [B])[1][0])


def test_a_stopped_gradient_in_the_result_does_not_take_the_next_cotangent():
    out, (grad,) = fl.vjp(lambda x: (mx.stop_gradient(x), x * 2), (A,), (A, B))
    assert fl.tree.equal((out, grad), ((A, A * 2), B * 2))


def test_the_same_cotangent_may_stand_at_several_places():
    assert fl.tree.equal(fl.vjp(lambda x: (x * 2, x * 3), (A,), (B, B))[1], (B * 5,))


def test_one_primal_may_have_nothing_trainable():
    index = mx.array([1, 0])
    _, (x, none) = fl.vjp(lambda x, index: x[index], (A, index), B)
    assert (x.tolist(), none) == ([5.0, 3.0], None)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: fl.vjp(mx.sin, A, A), NOT_A_TUPLE.format(of="vjp", what="primals", given="f32[2]")),
        (lambda: fl.jvp(mx.sin, (A,), A), NOT_A_TUPLE.format(of="jvp", what="tangents", given="f32[2]")),
        (lambda: fl.jvp(mx.sin, (A,), (A, A)), WRONG_COUNT.format(of="jvp", primals=1, tangents=2)),
        (
            lambda: fl.vjp(call, ({"x": mx.array([1])},), A),
            NOTHING_TRAINABLE.format(number=0, fn="call", found="x i32[1]"),
        ),
        (
            lambda: fl.jvp(call, (scale().freeze(), mx.array(1)), (None, None)),
            NOTHING_TRAINABLE.format(number="0 and every other", fn="call", found="0.factor ❄f32[2], 0.offset ❄f32[2], "
                                     "0.seen f32[2], 1 i32[]" + THAW),
        ),
        (lambda: fl.vjp(mx.sin, (A,), mx.ones(3)), UNLIKE.format(what="cotangent", path="the result", given="f32[3]",
                                                                 expected="f32[2]")),
        (
            lambda: fl.vjp(call, (scale(), A), {"y": A.astype(mx.float16), "name": None, "n": None}),
            UNLIKE.format(what="cotangent", path="y", given="f16[2]", expected="f32[2]"),
        ),
        (
            lambda: fl.vjp(call, (scale(), A), {"y": 1.0, "name": None, "n": None}),
            UNLIKE.format(what="cotangent", path="y", given="1.0", expected="f32[2]"),
        ),
        (
            lambda: fl.vjp(call, (scale(), A), {"y": A}),
            MISMATCH.format(what="the tree of cotangents", path="the root", given="dict of 1 (y)",
                            expected="dict of 3 (y, name, n)"),
        ),
        (lambda: fl.vjp(call, (scale(), A), {"y": A, "name": A, "n": None}), STRAY.format(fn="call", given=2, used=1)),
        (
            lambda: fl.jvp(call, (scale(), A), (scale(), A)),
            NO_DERIVATIVE.format(path="offset of argument 0", reason="frozen or a buffer"),
        ),
        (
            lambda: fl.jvp(lambda x: x[0], ([A, mx.array(1)],), ([A, mx.array(1)],)),
            NO_DERIVATIVE.format(path="1 of argument 0", reason="i32[]"),
        ),
        (
            lambda: fl.jvp(lambda x: x[0], ([A],), ([mx.ones(3)],)),
            UNLIKE.format(what="tangent", path="0 of argument 0", given="f32[3]", expected="f32[2]"),
        ),
        (
            lambda: fl.jvp(lambda x: x[0], ([A],), ({"a": A},)),
            MISMATCH.format(what="the tangent of argument 0", path="the root", given="dict of 1 (a)",
                            expected="list of 1 (0)"),
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_that_says_where(run, message):
    before = mx.random.state[0]
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        run()
    assert str(raised.value) == message
    assert mx.random.state[0] is before


def test_both_compose_with_themselves_and_with_grad():
    def cube(x):
        return {"y": x**3}

    def slope(x):
        return fl.vjp(cube, (x,), {"y": mx.ones_like(x)})[1][0]

    assert fl.tree.equal(fl.vjp(slope, (A,), B), (3 * A**2, (6 * A * B,)))
    assert fl.tree.equal(fl.jvp(slope, (A,), (B,)), (3 * A**2, 6 * A * B))
    assert fl.tree.equal(fl.grad(lambda x: fl.vjp(cube, (x,), {"y": x})[0]["y"].sum())(A), 3 * A**2)
    assert fl.tree.equal(fl.grad(lambda x: fl.jvp(cube, (x,), (B,))[1]["y"].sum())(A), 6 * A * B)
