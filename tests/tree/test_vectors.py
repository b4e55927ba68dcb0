"""stack, unstack, ravel, size and nbytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from laws.strategies import Snapshot, identical, law, trees

import frostleaf as fl
from frostleaf.core.words import describe

WRONG_VECTORS = "unravel expects {expected} and was given {given}"


class Net(fl.Module):
    weight: Any
    size: Any = fl.static(default=2)
    bias: Any = None


def net(value: float) -> Net:
    return Net(mx.full((2, 3), value), bias={"a": mx.array([value])})


# stack and unstack


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_stacking_puts_the_leaves_along_a_new_axis(axis: int) -> None:
    trees = [net(1), net(2), net(3), net(4)]
    stacked = fl.tree.stack(trees, axis)
    assert stacked.weight.shape == {0: (4, 2, 3), 1: (2, 4, 3), -1: (2, 3, 4)}[axis]
    assert stacked.bias["a"].shape == {0: (4, 1), 1: (1, 4), -1: (1, 4)}[axis]
    again = fl.tree.unstack(stacked, axis)
    assert len(again) == 4
    assert all(fl.tree.equal(one, other) for one, other in zip(again, trees, strict=True))


@pytest.mark.parametrize("tree", [mx.array(1), [mx.array(1), None, 3], {"a": (mx.zeros((2, 2)), "text")}], ids=str)
def test_any_tree_can_be_stacked(tree: Any) -> None:
    stacked = fl.tree.stack((tree, tree))
    assert fl.tree.structure(stacked) == fl.tree.structure(tree)
    assert all(fl.tree.equal(each, tree) for each in fl.tree.unstack(stacked))


def test_one_tree_can_be_stacked() -> None:
    assert fl.tree.stack([net(1)]).weight.shape == (1, 2, 3)
    assert len(fl.tree.unstack(fl.tree.stack([net(1)]))) == 1


def test_trees_without_leaves_can_be_stacked() -> None:
    assert fl.tree.stack([[None, 1], [None, 1]]) == [None, 1]


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_leaves_without_elements_can_be_stacked_and_unstacked(shape: tuple[int, ...]) -> None:
    trees = [[mx.zeros(shape), mx.array(float(number))] for number in range(3)]
    again = fl.tree.unstack(fl.tree.stack(trees))
    assert [tree[0].shape for tree in again] == [shape] * 3
    assert [tree[1].item() for tree in again] == [0.0, 1.0, 2.0]


def test_a_stack_along_an_axis_of_length_zero_is_no_trees() -> None:
    assert fl.tree.unstack([mx.zeros((0, 2))]) == []


def test_no_tree_can_not_be_stacked() -> None:
    with pytest.raises(ValueError, match="there is no tree to stack: give at least one"):
        fl.tree.stack([])


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        ([[mx.array(1)], [mx.array(1), None]], "tree 2 does not have the structure of the first:\n1: added"),
        (
            [[mx.array(1)], [mx.array(1)], (mx.array(1),)],
            "tree 3 does not have the structure of the first:\n(root): class",
        ),
        ([Net(mx.array(1)), Net(mx.array(1), size=3)], "size: static 2 -> 3"),
        ([net(1), net(1).eval()], "(root): mode 'train' -> 'eval'"),
        (
            [{"a": [mx.zeros(2)]}, {"a": [mx.zeros(2)]}, {"a": [mx.zeros(3)]}],
            "can't stack 'a.0': it is f32[2] and f32[3] in the trees given, and must be of one shape",
        ),
    ],
    ids=str,
)
def test_trees_that_do_not_fit_can_not_be_stacked(trees: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"can't stack|does not have the structure") as caught:
        fl.tree.stack(trees)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "axis", "message"),
    [
        ([mx.array(1)], 0, "can't unstack '0' along axis 0: it is i32[]"),
        ({"a": mx.zeros((2, 2)), "b": mx.zeros(2)}, 1, "can't unstack 'b' along axis 1: it is f32[2]"),
        ({"a": mx.zeros(2)}, -2, "can't unstack 'a' along axis -2: it is f32[2]"),
        (
            {"a": mx.zeros(2), "b": [mx.zeros(3)]},
            0,
            "can't unstack along axis 0: 'a' has length 2 there and 'b.0' is f32[3]",
        ),
    ],
    ids=str,
)
def test_what_can_not_be_taken_apart_is_an_error_that_names_the_path(tree: Any, axis: int, message: str) -> None:
    with pytest.raises(ValueError, match="can't unstack") as caught:
        fl.tree.unstack(tree, axis)
    assert str(caught.value) == message


def test_a_tree_without_leaves_can_not_be_taken_apart() -> None:
    with pytest.raises(ValueError, match=r"tree|leaf|leaves"):
        fl.tree.unstack([None, 1])


def test_stacked_models_can_be_mapped_over() -> None:
    stacked = fl.tree.stack([net(1), net(2)])
    out = mx.vmap(lambda weight: weight.sum())(stacked.weight)
    assert out.tolist() == [6.0, 12.0]


# ravel


def mixed() -> dict[str, Any]:
    return {
        "w": mx.arange(6.0).reshape(2, 3), "n": mx.array([1, 2]), "h": mx.ones(2, mx.bfloat16), "s": mx.array(9.0),
        "e": mx.zeros((0, 4)), "b": mx.array([True]), "c": mx.array([1 + 2j]), "static": 3,
    }  # fmt: skip


def test_ravel_lays_the_leaves_of_each_dtype_end_to_end() -> None:
    vectors, unravel = fl.tree.ravel(mixed())
    assert {name: vector.tolist() for name, vector in vectors.items()} == {
        "float32": [0, 1, 2, 3, 4, 5, 9],
        "int32": [1, 2],
        "bfloat16": [1, 1],
        "bool": [True],
        "complex64": [1 + 2j],
    }
    assert all(str(vector.dtype).endswith(name) and vector.ndim == 1 for name, vector in vectors.items())
    assert fl.tree.equal(unravel(vectors), mixed())


def test_unravel_takes_other_numbers() -> None:
    vectors, unravel = fl.tree.ravel(mixed())
    doubled = unravel({name: vector + vector for name, vector in vectors.items()})
    assert doubled["w"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert doubled["s"].item() == 18.0
    assert doubled["static"] == 3


@pytest.mark.parametrize("tree", [[], None, 3, [None, "text"]], ids=repr)
def test_a_tree_without_leaves_has_no_vectors(tree: Any) -> None:
    vectors, unravel = fl.tree.ravel(tree)
    assert vectors == {}
    assert unravel({}) == tree


def test_a_single_array_can_be_ravelled() -> None:
    vectors, unravel = fl.tree.ravel(mx.zeros((2, 2)))
    assert vectors["float32"].shape == (4,)
    assert unravel(vectors).shape == (2, 2)


def test_a_module_comes_back_as_a_module() -> None:
    model = net(3).eval().freeze()
    vectors, unravel = fl.tree.ravel(model)
    assert fl.tree.equal(unravel(vectors), model)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"float32": mx.zeros(2)},
        {"float32": mx.zeros(4), "int32": mx.zeros(1)},
        {"float16": mx.zeros(3)},
        {"float32": mx.zeros((3, 1))},
        {"float32": mx.zeros(())},
        {"float32": mx.zeros(3, mx.float16)},
        {"float32": [0.0, 0.0, 0.0]},
        mx.zeros(3),
        None,
    ],
    ids=str,
)
def test_vectors_that_do_not_fit_are_an_error(given: Any) -> None:
    _, unravel = fl.tree.ravel([mx.zeros(3)])
    shown = {name: describe(each) for name, each in given.items()} if isinstance(given, dict) else describe(given)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        unravel(given)
    assert str(raised.value) == WRONG_VECTORS.format(expected={"float32": "f32[3]"}, given=shown)


def test_the_vectors_may_come_in_any_order() -> None:
    vectors, unravel = fl.tree.ravel(mixed())
    assert fl.tree.equal(unravel(dict(reversed(vectors.items()))), mixed())


def test_ravel_is_differentiable_both_ways() -> None:
    _, unravel = fl.tree.ravel([mx.zeros((2, 2)), mx.zeros(1)])
    gradient = mx.grad(lambda vector: (unravel({"float32": vector})[0] ** 2).sum())(mx.arange(5.0))
    assert gradient.tolist() == [0, 2, 4, 6, 0]
    gradient = mx.grad(lambda array: (fl.tree.ravel([array, mx.zeros(1)])[0]["float32"] ** 2).sum())(mx.arange(2.0))
    assert gradient.tolist() == [0, 2]


@law
@given(trees())
def test_any_tree_is_laid_end_to_end_and_comes_back(tree: Any) -> None:
    snapshot = Snapshot(tree)
    vectors, unravel = fl.tree.ravel(tree)
    again = unravel(vectors)
    assert fl.tree.equal(again, tree)
    assert fl.tree.structure(again) == fl.tree.structure(tree)
    assert sum(vector.size for vector in vectors.values()) == fl.tree.size(tree)
    assert all(vector.ndim == 1 for vector in vectors.values())
    snapshot.assert_unchanged()
    assert identical(fl.tree.map(lambda leaf: 0, again), fl.tree.map(lambda leaf: 0, tree))


# The gradient of unravel is laid end to end as the vectors are. All of this is compared with what MLX makes of slices.

SHAPES = [(2, 3), (), (0, 2), (1,), (2, 1, 2)]
LENGTH = 12


def by_slices(vector: mx.array) -> list[mx.array]:
    starts = [0, 6, 7, 7, 8]
    return [
        vector[start : start + size].reshape(shape) for start, size, shape in zip(starts, [6, 1, 0, 1, 4], SHAPES, strict=True)
    ]


def unravelled(dtype: mx.Dtype = mx.float32) -> Callable[[mx.array], list[mx.array]]:
    _, unravel = fl.tree.ravel([mx.zeros(shape, dtype) for shape in SHAPES])
    name = str(dtype).removeprefix("mlx.core.")
    return lambda vector: unravel({name: vector})


def mixing(parts: list[mx.array]) -> mx.array:
    """A function in which the parts meet, one stands twice, and one is left out."""
    matrix, scalar, _, one, cube = parts
    return (matrix**3).sum() * scalar**2 + (matrix[:, :2] * cube).sum() + (cube**2).sum() * matrix[:1].sum() + 0 * one.sum()


def first_only(parts: list[mx.array]) -> mx.array:
    return (parts[0] ** 3).sum()


def without_using_any(parts: list[mx.array]) -> mx.array:
    return mx.array(1.0)


V = mx.arange(1.0, LENGTH + 1) / 4
W = mx.cos(V)
MANY = mx.stack([V, W, V - W])


def of(function: Callable[[list[mx.array]], mx.array], take: Callable[[mx.array], list[mx.array]]) -> Callable[..., Any]:
    return lambda vector: function(take(vector))


TRANSFORMED: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "value": lambda f: f(V),
    "gradient": lambda f: mx.grad(f)(V),
    "value and gradient": lambda f: mx.value_and_grad(f)(V),
    "jvp": lambda f: mx.jvp(f, [V], [W]),
    "vjp": lambda f: mx.vjp(f, [V], [mx.array(2.0)]),
    "gradient of the gradient": lambda f: mx.grad(lambda v: (mx.grad(f)(v) * W).sum())(V),
    "third derivative": lambda f: mx.grad(lambda v: mx.grad(lambda u: (mx.grad(f)(u) * W).sum())(v).sum())(V),
    "jvp of the gradient": lambda f: mx.jvp(mx.grad(f), [V], [W]),
    "gradient of the jvp": lambda f: mx.grad(lambda v: mx.jvp(f, [v], [W])[1][0])(V),
    "vmap": lambda f: mx.vmap(f)(MANY),
    "vmap along another axis": lambda f: mx.vmap(f, in_axes=1)(MANY.T),
    "vmap of the gradient": lambda f: mx.vmap(mx.grad(f))(MANY),
    "vmap of the gradient along another axis": lambda f: mx.vmap(mx.grad(f), in_axes=1, out_axes=1)(MANY.T),
    "gradient of the vmap": lambda f: mx.grad(lambda many: (mx.vmap(f)(many) * mx.arange(3.0)).sum())(MANY),
    "vmap of the gradient of the gradient": lambda f: mx.vmap(mx.grad(lambda v: (mx.grad(f)(v) * W).sum()))(MANY),
    "vmap of vmap": lambda f: mx.vmap(mx.vmap(f))(mx.stack([MANY, MANY + 1])),
    "checkpoint": lambda f: mx.grad(mx.checkpoint(f))(V),
}
each_transformation = pytest.mark.parametrize("transformed", TRANSFORMED.values(), ids=TRANSFORMED)


@each_transformation
@pytest.mark.parametrize("function", [mixing, first_only, without_using_any])
def test_unravel_is_transformed_as_slices_are(transformed: Any, function: Any) -> None:
    assert fl.tree.allclose(transformed(of(function, unravelled())), transformed(of(function, by_slices)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gradient", "vmap of the gradient"])
def test_unravel_is_transformed_in_a_compiled_function(name: str) -> None:
    jitted = fl.jit(lambda: TRANSFORMED[name](of(first_only, unravelled())))
    assert fl.tree.allclose(jitted(), TRANSFORMED[name](of(first_only, by_slices)), rtol=1e-4, atol=1e-4)


def test_a_compiled_function_that_unravels_is_traced_once() -> None:
    gradient = fl.jit(lambda tree: fl.grad(lambda vectors: first_only(fl.tree.ravel(tree)[1](vectors)))(fl.tree.ravel(tree)[0]))
    for _ in range(2):
        assert mx.allclose(gradient(by_slices(V))["float32"], mx.grad(of(first_only, by_slices))(V))
    assert gradient.trace_count == 1


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_the_gradient_has_the_dtype_of_the_vector(dtype: mx.Dtype) -> None:
    gradient = mx.grad(of(mixing, unravelled(dtype)))(V.astype(dtype))
    assert gradient.dtype == dtype
    assert mx.allclose(gradient, mx.grad(of(mixing, by_slices))(V.astype(dtype)), rtol=1e-2)


def test_vectors_of_several_dtypes_are_transformed_together() -> None:
    tree = {"w": mx.array([1.0, 2.0]), "n": mx.array([3, 4]), "h": mx.array([0.5], mx.float16), "b": mx.array(2.0)}
    vectors, unravel = fl.tree.ravel(tree)

    def loss(tree: Any) -> mx.array:
        return (tree["w"] ** 2 * tree["n"]).sum() * tree["b"] + tree["h"].astype(mx.float32).sum() * 3

    value, gradients = fl.value_and_grad(lambda vectors: loss(unravel(vectors)))(vectors)
    assert value.item() == loss(tree).item()
    assert gradients["int32"] is None
    assert gradients["float32"].tolist() == [12.0, 32.0, 19.0]
    assert gradients["float16"].tolist() == [3.0]
    stacked = fl.vmap(unravel)(fl.tree.stack([vectors, vectors]))
    assert fl.tree.equal(stacked, fl.tree.stack([tree, tree]))


def operations_of_the_gradient(count: int) -> tuple[int, int]:
    """Return how many operations there are in the gradient of ``count`` arrays, and how many of them write into a vector."""
    vectors, unravel = fl.tree.ravel([mx.zeros(3)] * count)
    gradient = mx.grad(lambda vector: sum((part * part).sum() for part in unravel({"float32": vector})))(vectors["float32"])
    graph = io.StringIO()
    mx.export_to_dot(graph, gradient)
    return graph.getvalue().count("shape=rectangle"), graph.getvalue().count('"SliceUpdate"')


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 12, 50])
def test_no_vector_is_made_for_each_array_in_the_gradient(count: int) -> None:
    operations, writing = operations_of_the_gradient(count)
    assert writing == 0
    assert operations <= 13 * count


def test_the_gradient_grows_with_the_number_of_arrays() -> None:
    few, more, most = (operations_of_the_gradient(count)[0] for count in (20, 40, 80))
    assert most - more == 2 * (more - few)


def peak_of_the_gradient(count: int) -> float:
    """Return the most memory that the gradient of ``count`` arrays takes, in bytes for each of their numbers."""
    vectors, unravel = fl.tree.ravel([mx.zeros(256)] * count)
    vector = vectors["float32"]
    mx.eval(vector)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.grad(lambda vector: sum((part * part).sum() for part in unravel({"float32": vector})))(vector))
    return (mx.get_peak_memory() - before) / vector.size


def test_the_memory_of_the_gradient_grows_with_the_number_of_arrays() -> None:
    assert peak_of_the_gradient(80) < 1.2 * peak_of_the_gradient(20)


# size and nbytes


@pytest.mark.parametrize(
    ("tree", "size", "nbytes"),
    [
        (None, 0, 0),
        (3, 0, 0),
        ([], 0, 0),
        (mx.array(1), 1, 4),
        (mx.zeros((2, 3)), 6, 24),
        (mx.zeros((0, 3)), 0, 0),
        ([mx.zeros(2, mx.float16), mx.zeros(2, mx.int8), 5, "text"], 4, 6),
        (net(1), 7, 28),
        (mx.zeros(3, mx.bfloat16), 3, 6),
        (mx.zeros(3, mx.complex64), 3, 24),
        (mx.zeros(3, mx.bool_), 3, 3),
        (mx.zeros(3, mx.uint64), 3, 24),
    ],
    ids=str,
)
def test_size_and_nbytes(tree: Any, size: int, nbytes: int) -> None:
    assert fl.tree.size(tree) == size
    assert fl.tree.nbytes(tree) == nbytes


def test_an_array_at_two_places_takes_its_bytes_once_and_counts_its_numbers_twice() -> None:
    shared = mx.zeros(4)
    assert fl.tree.nbytes([shared, shared]) == 16
    assert fl.tree.size([shared, shared]) == 8
    assert fl.tree.nbytes([mx.zeros(4), mx.zeros(4)]) == 32


def test_nothing_is_evaluated_to_know_the_size() -> None:
    # The shape of an array this large is known; its numbers would not fit.
    large = mx.zeros((1 << 20, 1 << 20))
    assert fl.tree.size([large]) == 1 << 40
    assert fl.tree.nbytes([large]) == 1 << 42
