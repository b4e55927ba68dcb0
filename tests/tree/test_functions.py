"""Functions of the leaves of trees: which come first, and what is said where there is nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl

MODEL = fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.relu).at("layers.0.bias").freeze()
GRADS = fl.grad(lambda model: model(mx.ones((1, 2))).sum())(MODEL)
MAPS = [fl.tree.map, fl.tree.map_with_path, fl.tree.reduce]


@pytest.mark.parametrize("function", MAPS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("first", [MODEL, {"a": mx.ones(2)}, [mx.ones(2)], mx.ones(2), None], ids=type)
def test_the_function_comes_first(function: Any, first: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"fl\.tree\.{function.__name__} takes the function first, and was given .* as the tree"
    ):
        function(first, lambda *given: given)


def test_a_module_and_a_method_are_functions_and_a_function_may_be_a_tree() -> None:
    layer = fl.nn.Linear(2, 2)
    assert fl.tree.map(layer, [mx.ones(2), 3])[1] == 3
    assert fl.tree.map(mx.negative, fl.nn.relu) is fl.nn.relu
    assert fl.tree.map(layer.__call__, fl.nn.relu) is fl.nn.relu


BESIDE_NONE: list[Callable[[], Any]] = [
    lambda: fl.tree.map(lambda p, g: p - 0.1 * g, MODEL, GRADS),
    lambda: fl.tree.map(mx.add, fl.tree.map(mx.zeros_like, MODEL), GRADS),
    lambda: fl.tree.map(lambda a, b, c: a + c, MODEL, MODEL, GRADS),
    lambda: fl.tree.map_with_path(lambda path, p, g: p * g, MODEL, GRADS),
]


@pytest.mark.parametrize("call", BESIDE_NONE)
def test_a_function_that_fails_where_a_gradient_has_none_says_where(call: Any) -> None:
    with pytest.raises(
        TypeError, match=r"failed at layers\.0\.bias, .* None .* frozen.*fl\.tree\.map\(mx\.zeros_like, grads\)"
    ) as raised:
        call()
    assert isinstance(raised.value.__cause__, TypeError)


def test_a_function_that_takes_none_is_called_with_it_and_other_errors_are_its_own() -> None:
    after = fl.tree.map(lambda p, g: p if g is None else p - g, MODEL, GRADS)
    assert after.layers[0].bias is MODEL.layers[0].bias
    begun = fl.tree.map(mx.zeros_like, GRADS)
    assert fl.tree.equal(fl.tree.map(mx.add, begun, GRADS), GRADS)
    for second in (GRADS, MODEL):
        with pytest.raises(TypeError, match=r"^unsupported operand"):
            fl.tree.map(lambda p, g: {} + {}, MODEL, second)
        with pytest.raises(KeyError):
            fl.tree.map(lambda p, g: {}["key"], MODEL, second)
    with pytest.raises(TypeError, match=r"^unsupported operand"):
        fl.tree.map(lambda p: {} + {}, MODEL)


@pytest.mark.parametrize("map_", [fl.tree.map, fl.tree.map_with_path])
def test_the_tree_with_all_arrays_comes_first(map_: Any) -> None:
    message = r"At layers\.0\.bias: f32\[2\] where there is None\. Put tree 2 first, which has arrays where the first has None"
    with pytest.raises(ValueError, match=message):
        map_(lambda *given: given[-1], GRADS, MODEL)
    with pytest.raises(ValueError, match="tree 2") as raised:
        map_(lambda *given: given[-1], GRADS, fl.nn.Linear(2, 2))
    assert "first" not in str(raised.value)


SKELETON = fl.eval_shape(lambda: fl.nn.Linear(2, 2))
OF_SHAPES: dict[str, tuple[Callable[[], Any], str]] = {
    "ravel": (lambda: fl.tree.ravel(SKELETON), "fl.tree.ravel"),
    "stack": (lambda: fl.tree.stack([SKELETON, SKELETON]), "fl.tree.stack"),
    "stack with a model": (lambda: fl.tree.stack([fl.nn.Linear(2, 2), SKELETON]), "fl.tree.stack"),
    "unstack": (lambda: fl.tree.unstack(SKELETON), "fl.tree.unstack"),
    "grad": (lambda: fl.grad(lambda m: m(mx.ones(2)).sum())(SKELETON), "fl.grad(fn)"),
    "grad of several": (lambda: fl.grad(lambda x, m: x.sum(), (0, 1))(mx.ones(2), SKELETON), "fl.grad(fn)"),
    "vjp": (lambda: fl.vjp(lambda m: m(mx.ones(2)), (SKELETON,), (mx.ones(2),)), "fl.vjp"),
    "jvp": (lambda: fl.jvp(lambda m: m(mx.ones(2)), (SKELETON,), (SKELETON,)), "fl.jvp"),
}


@pytest.mark.parametrize("name", OF_SHAPES)
def test_what_needs_values_refuses_shapes_and_says_how_to_get_the_shapes_of_its_result(name: str) -> None:
    call, function = OF_SHAPES[name]
    with pytest.raises(TypeError, match=r"a shape without values, f32\[2.*\], as fl\.eval_shape returns") as raised:
        call()
    assert f"{function} takes arrays" in str(raised.value)
    assert f"fl.eval_shape({function}, ...)" in str(raised.value)


@pytest.mark.parametrize("layer", [fl.nn.Linear(2, 2), fl.nn.Bilinear(2, 2, 2), fl.nn.Sequential(fl.nn.Linear(2, 2))], ids=type)
def test_a_skeleton_that_is_called_says_that_it_has_shapes_only(layer: Any) -> None:
    skeleton = fl.eval_shape(lambda: layer)
    with pytest.raises(
        AttributeError, match=r"ShapeDtypeStruct has no \w+: it is a shape without values\. .*fl\.eval_shape\(model"
    ):
        skeleton(*[mx.ones((2, 2))] * (2 if isinstance(layer, fl.nn.Bilinear) else 1))


def test_what_differentiates_and_maps_works_on_the_shapes_in_eval_shape() -> None:
    assert fl.eval_shape(fl.grad(lambda m: m(mx.ones(2)).sum()), SKELETON).weight.shape == (2, 2)
    assert fl.eval_shape(fl.tree.stack, [SKELETON, SKELETON]).bias.shape == (2, 2)
    assert fl.eval_shape(fl.tree.ravel, SKELETON)[0]["float32"].shape == (6,)
    assert not hasattr(SKELETON.weight, "tolist")
    with pytest.raises(AttributeError, match=r"has no wieght$"):
        _ = SKELETON.weight.wieght
