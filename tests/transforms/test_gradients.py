"""value_and_grad and grad: what is differentiated, what comes back, and what is an error."""

import functools
import re
from typing import Any

import mlx.core as mx
import mlx.nn
import pytest

import frostleaf as fl
from frostleaf.edits.freezing import trainable
from frostleaf.transforms.gradients import NOTHING_TRAINABLE, THAW

NAMED_TWICE = "can't differentiate {fn} with respect to arguments {argnums}: one of them is named twice"
NO_ARGUMENT = "can't differentiate {fn} with respect to argument {number}: it was called with {count} positional arguments"
NO_AUX = "{fn} must return a pair (value, aux) when has_aux=True, and returned {given}"
NO_NAME = "can't differentiate {fn} with respect to argument {name!r}: it was called with {given}"
NOT_A_SCALAR = "{fn} must return a scalar floating-point array, and returned {given}{advice}"

X = mx.array([[1.0, 2.0], [3.0, 4.0]])


class Tied(fl.Module):
    first: fl.nn.Linear
    second: fl.nn.Linear
    by_name: Any = None
    activation: Any = fl.static(default=mx.tanh)

    def __call__(self, x: mx.array) -> mx.array:
        return self.second(self.activation(self.first(x)))

    def loss(self, x: mx.array, scale: float = 1.0) -> mx.array:
        return (self(x) * scale).sum()


def tied() -> Tied:
    layer = fl.nn.Linear(2, 2)
    return Tied(layer, layer)


def loss(model, x=X, scale=1.0):
    return (model(x) ** 2).sum() * scale


def product(a, b):
    return (a * b).sum()


A, B = mx.array([1.0, 2.0]), mx.array([3.0, 5.0])


@pytest.mark.parametrize(
    ("argnums", "expected"),
    [(0, B), (1, A), (-1, A), (-2, B), (True, A), ((0,), (B,)), ((0, 1), (B, A)), ((1, 0), (A, B)), ([-1, -2], (A, B))],
)
def test_argnums_say_for_which_arguments_and_whether_there_is_a_tuple(argnums, expected):
    gradient = fl.grad(product, argnums)(A, B)
    assert fl.tree.equal(gradient, expected)
    value, same = fl.value_and_grad(product, argnums=argnums)(A, B)
    assert value.item() == 13.0
    assert fl.tree.equal(same, expected)


@pytest.mark.parametrize(
    ("argnums", "argnames"),
    [*((argnums, argnames) for argnums in (None, 0, (0,), []) for argnames in ("b", ["b"])),
     *((argnums, argnames) for argnums in (None, []) for argnames in (("b", "a"), ["a"]))],
)  # fmt: skip
def test_argnames_are_those_of_mlx(argnums, argnames):
    args, kwargs = ((), {"a": A, "b": B}) if "a" in argnames else ((A,), {"b": B})
    expected = mx.grad(product, argnums=argnums, argnames=argnames)(*args, **kwargs)
    positional = expected[0]
    if isinstance(argnums, tuple) and not isinstance(positional, tuple):
        positional = (positional,)  # MLX leaves out a tuple of one, which JAX and frostleaf do not
    ours = fl.grad(product, argnums=argnums, argnames=argnames)(*args, **kwargs)
    # MLX sorts the names.
    assert fl.tree.equal(ours, (positional, {name: expected[1][name] for name in ours[1]}))
    assert list(ours[1]) == ([argnames] if isinstance(argnames, str) else list(argnames))
    value, same = fl.value_and_grad(product, argnums=argnums, argnames=argnames)(*args, **kwargs)
    assert (value.item(), fl.tree.equal(same, ours)) == (13.0, True)


def test_argnames_with_aux_and_trees():
    def function(x, *, model, other):
        return loss(model, x), (other, model)

    model = tied()
    gradient, (other, same) = fl.grad(function, argnames="model", has_aux=True)(X, model=model, other="text")
    assert fl.tree.equal(gradient, (None, {"model": fl.grad(loss)(model)}))
    assert other == "text"
    assert fl.tree.equal(same, model)


@pytest.mark.parametrize("argnums", [(0, 0), (0, -2), (1, 0, -1)])
def test_an_argument_that_is_named_twice_is_refused_or_has_its_gradient_twice(argnums):
    try:
        gradients = fl.grad(product, argnums)(A, B)
    except ValueError:
        return
    assert fl.tree.equal(gradients, tuple((B, A)[number] for number in argnums))


def by_name(name):
    return f". Give it by position, or name what was given by name: argnames={name!r}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fl.grad(product, 2)(A, B), NO_ARGUMENT.format(fn="product", number=2, count=2)),
        (lambda: fl.grad(product, -3)(A, B), NO_ARGUMENT.format(fn="product", number=-3, count=2)),
        (lambda: fl.grad(product, (0, 5))(A, b=B), NO_ARGUMENT.format(fn="product", number=5, count=1) + by_name("b")),
        (lambda: fl.grad(product, argnames="c")(A, b=B), NO_NAME.format(fn="product", name="c", given="'b'")),
        (lambda: fl.grad(product, 0, argnames="b")(A, B), NO_NAME.format(fn="product", name="b", given="no keyword arguments")),
        (lambda: fl.grad(product, argnames=("b", "b"))(A, b=B), NAMED_TWICE.format(fn="product", argnums=("b", "b"))),
        (
            lambda: fl.grad(product, argnames="b")(A, b={"n": mx.array(1)}),
            NOTHING_TRAINABLE.format(number="'b'", fn="product", found="n i32[]"),
        ),
        (lambda: fl.grad(product)(a=A, b=B), NO_ARGUMENT.format(fn="product", number=0, count=0) + by_name("a")),
        (lambda: fl.grad(product)(), NO_ARGUMENT.format(fn="product", number=0, count=0)),
        (
            lambda: fl.value_and_grad(product, (0, 1))(A, 3.0),
            NOTHING_TRAINABLE.format(number=1, fn="product", found="no array"),
        ),
        (lambda: fl.grad(loss)({}), NOTHING_TRAINABLE.format(number=0, fn="loss", found="no array")),
        (
            lambda: fl.grad(loss)(mx.array([1, 2])),
            NOTHING_TRAINABLE.format(number=0, fn="loss", found="(the argument) i32[2]"),
        ),
        (
            lambda: fl.grad(loss)(fl.nn.Linear(2, 3).freeze()),
            NOTHING_TRAINABLE.format(number=0, fn="loss", found="weight ❄f32[3,2], bias ❄f32[3]" + THAW),
        ),
        (
            lambda: fl.grad(loss)([mx.array(1)] * 9),
            NOTHING_TRAINABLE.format(number=0, fn="loss", found=", ".join(f"{n} i32[]" for n in range(8)) + ", ..."),
        ),
        (
            lambda: fl.grad(lambda a: a + a)(A),
            NOT_A_SCALAR.format(fn="<lambda>", given="f32[2]", advice=""),
        ),
        (lambda: fl.grad(lambda a: 3.0)(A), NOT_A_SCALAR.format(fn="<lambda>", given="3.0", advice="")),
        (lambda: fl.grad(lambda a: None)(A), NOT_A_SCALAR.format(fn="<lambda>", given="None", advice="")),
        (
            lambda: fl.grad(lambda a: (a.sum(), "aux"))(A),
            NOT_A_SCALAR.format(fn="<lambda>", given="(f32[], 'aux')",
                                advice=". For a pair (loss, aux) say has_aux=True"),
        ),
        (
            lambda: fl.grad(lambda a: ("aux", a.sum()), has_aux=True)(A),
            NOT_A_SCALAR.format(fn="<lambda>", given="'aux'", advice=""),
        ),
        (lambda: fl.grad(lambda a: None, has_aux=True)(A), NO_AUX.format(fn="<lambda>", given="None")),
        (lambda: fl.grad(lambda a: a.sum(), has_aux=True)(A), NO_AUX.format(fn="<lambda>", given="f32[]")),
        (lambda: fl.grad(lambda a: (1, 2, 3), has_aux=True)(A), NO_AUX.format(fn="<lambda>", given="(1, 2, 3)")),
        (lambda: fl.grad(fl.nn.Linear(2, 2))(A), NOT_A_SCALAR.format(fn="Linear", given="f32[2]", advice="")),
        (
            lambda: fl.grad(functools.partial(product, b=1))(1.0),
            NOTHING_TRAINABLE.format(number=0, fn="partial", found="no array"),
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_differentiated_is_an_error_that_says_so(call, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        call()
    assert str(raised.value) == message


def test_an_error_of_the_function_comes_through_and_the_next_call_works():
    def fails(a, good):
        if not good:
            raise KeyError("mine")
        return a.sum()

    gradient = fl.grad(fails)
    with pytest.raises(KeyError, match="mine"):
        gradient(A, False)
    with pytest.raises(ValueError, match="broadcast"):
        fl.grad(product)(A, mx.ones(3))
    assert gradient(A, True).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("has_aux", [False, True])
def test_value_and_gradient_are_those_of_mlx(has_aux):
    mx.random.seed(0)
    ours = fl.nn.Sequential(fl.nn.Linear(2, 3), mx.tanh, fl.nn.Linear(3, 1))
    mx.random.seed(0)
    theirs = mlx.nn.Sequential(mlx.nn.Linear(2, 3), mx.tanh, mlx.nn.Linear(3, 1))
    value, gradient = mlx.nn.value_and_grad(theirs, lambda x: loss(theirs, x))(X)
    if has_aux:
        (ours_value, aux), ours_gradient = fl.value_and_grad(lambda m, x: (loss(m, x), {"m": m}), has_aux=True)(ours, X)
        assert fl.tree.equal(aux, {"m": ours})
    else:
        ours_value, ours_gradient = fl.value_and_grad(loss)(ours, X)
    assert mx.array_equal(value, ours_value)
    assert type(ours_gradient) is fl.nn.Sequential
    flat = dict(mlx.utils.tree_flatten(gradient))
    assert fl.tree.paths(ours_gradient) == list(flat)
    for path, leaf in zip(flat, fl.tree.leaves(ours_gradient), strict=True):
        assert mx.array_equal(leaf, flat[path]), path


def test_a_module_at_two_places_has_two_gradients():
    model = tied()
    gradient = fl.grad(loss)(model)
    assert gradient.first is not gradient.second
    assert not mx.allclose(gradient.first.weight, gradient.second.weight)
    weight, bias = model.first.weight, model.first.bias

    def flat(parameters):
        w1, b1, w2, b2 = parameters
        return ((mx.tanh(X @ w1.T + b1) @ w2.T + b2) ** 2).sum()

    expected = mx.grad(flat)([weight, bias, weight, bias])
    assert all(mx.allclose(a, b) for a, b in zip(fl.tree.leaves(gradient), expected, strict=True))
    assert gradient.activation is mx.tanh
    assert gradient.by_name is None


def test_other_arguments_are_passed_as_they_are():
    marker = object()

    def function(model, *rest, scale, **more):
        assert rest == (marker, "text")
        assert more == {"other": marker}
        return loss(model, scale=scale)

    model = tied()
    doubled = fl.grad(function)(model, marker, "text", scale=2.0, other=marker)
    once = fl.grad(loss)(model)
    assert fl.tree.allclose(doubled, fl.tree.map(lambda leaf: leaf + leaf, once))


def test_a_bound_method_is_differentiated_by_its_first_argument():
    model = tied()
    gradient = fl.grad(model.loss)(X, scale=2.0)
    assert gradient.shape == X.shape
    assert fl.tree.allclose(gradient, mx.grad(lambda x: model.loss(x, 2.0))(X))


def test_a_gradient_of_a_gradient_is_that_of_mlx():
    model = {"w": A, "n": 3, "frozen": mx.array(1)}

    def cube(tree):
        return (tree["w"] ** tree["n"]).sum()

    def norm(tree):
        return (fl.grad(cube)(tree)["w"] ** 2).sum()

    second = fl.grad(norm)(model)
    assert fl.tree.equal(second, {"w": mx.grad(lambda w: (mx.grad(lambda v: (v**3).sum())(w) ** 2).sum())(A), "n": None,
                                  "frozen": None})  # fmt: skip
    gradient = fl.grad(loss)(tied())
    third = fl.grad(lambda m: sum((leaf**2).sum() for leaf in fl.tree.leaves(fl.grad(loss)(m))))(tied())
    assert fl.tree.structure(third) == fl.tree.structure(gradient)


@pytest.mark.filterwarnings("ignore::frostleaf.CapturedArrayWarning")
def test_a_gradient_can_be_jitted_and_the_jitted_differentiated():
    model = tied()
    plain = fl.value_and_grad(loss)(model)
    assert fl.tree.allclose(fl.jit(fl.value_and_grad(loss))(model), plain, rtol=1e-4, atol=1e-5)
    assert fl.tree.allclose(fl.value_and_grad(fl.jit(loss))(model), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::frostleaf.UncollectedStateWarning")
def test_only_trainable_parts_have_a_gradient():
    norm = fl.nn.BatchNorm(2)
    gradient = fl.grad(loss)(Tied(fl.nn.Linear(2, 2).freeze(keys="bias"), norm))
    assert (gradient.first.bias, gradient.second.running_mean, gradient.second.running_var) == (None, None, None)
    assert gradient.first.weight.shape == (2, 2)
    assert gradient.second.weight.shape == (2,)


PARTLY = [
    fl.nn.Linear(2, 2),
    fl.nn.Linear(2, 2).freeze(keys="bias"),
    fl.nn.Linear(2, 2, bias=False),
    fl.nn.BatchNorm(2),
    fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.relu, fl.nn.Linear(2, 2).freeze(), fl.nn.Dropout()),
    {"layers": [fl.nn.Linear(2, 2), fl.nn.BatchNorm(2)], "n": 3, "name": "x", "none": None, "empty": ()},
    [mx.ones(2), mx.array(1), mx.ones(3)],
    (mx.ones(2), [mx.array(1)], fl.nn.Linear(2, 2).astype(mx.float16)),
    mx.ones(2),
    Tied(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)),
    tied(),
]


@pytest.mark.parametrize("tree", PARTLY)
def test_the_structure_of_a_gradient_is_that_of_the_tree_without_what_is_not_trained(tree):
    def total(tree):
        trained = [leaf for leaf in fl.tree.leaves(tree) if mx.issubdtype(leaf.dtype, mx.floating)]
        return sum(leaf.astype(mx.float32).sum() for leaf in trained)

    gradient, structure = fl.grad(total)(tree), fl.tree.structure(tree)
    rest = iter(fl.tree.leaves(gradient))
    values = [next(rest) if trains else None for trains in trainable(tree)]
    anew = fl.tree.unflatten(structure, values, static=lambda _: None)  # without a structure of its own
    assert fl.tree.structure(gradient) == fl.tree.structure(anew)
    assert fl.tree.paths(gradient) == fl.tree.paths(anew)
    assert repr(gradient) == repr(anew)


def test_the_result_is_called_as_the_function_is():
    def documented(a):
        """What it does."""
        return a.sum()

    for transformed in (fl.grad(documented), fl.value_and_grad(documented)):
        assert (transformed.__name__, transformed.__doc__) == ("documented", "What it does.")
    assert fl.grad(functools.partial(product, b=B))(A).tolist() == B.tolist()
    assert fl.grad(fl.jit(documented))(A).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [mx.int32, mx.bool_, mx.complex64], ids=str)
def test_a_loss_that_is_no_real_number_is_refused(dtype):
    with pytest.raises(ValueError, match="scalar floating-point array"):
        fl.value_and_grad(lambda w: w.sum().astype(dtype))(A)


def test_mlxs_order_of_arguments_is_explained():
    with pytest.raises(TypeError, match=r"fl\.value_and_grad\(fn\)\(model, x\)"):
        fl.value_and_grad(fl.nn.Linear(1, 1), lambda x: x)


def test_where_all_is_frozen_the_message_marks_it_and_says_what_to_write() -> None:
    said = "has weight ❄f32[1,2], bias ❄f32[1]. ❄ is frozen: write model.unfreeze(), or model.at(where).unfreeze() for a part"
    with pytest.raises(ValueError, match=re.escape(said)):
        fl.grad(lambda model: model(mx.ones((1, 2))).sum())(fl.nn.Linear(2, 1).freeze())
    with pytest.raises(ValueError, match=r"has \(the argument\) i32\[\]$"):
        fl.grad(lambda number: number)(mx.array(1))
