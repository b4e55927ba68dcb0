"""Casting, against mlx.nn.Module.set_dtype where there is such a method, and its errors. The law is in tests/laws."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from twins import MODELS, Norm, Stack, linear, same, subject

import frostleaf as fl

PREDICATES: dict[str, Any] = {
    "default": [],
    "none": [None],
    "floating": [lambda dtype: mx.issubdtype(dtype, mx.floating)],
    "nothing": [lambda dtype: False],
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("predicate", PREDICATES)
@pytest.mark.parametrize("method", ["astype", "set_dtype"])
def test_the_parameters_have_the_dtypes_that_mlx_gives_them(name: str, dtype: Any, predicate: str, method: str) -> None:
    ours, theirs = subject(name)
    after = getattr(ours, method)(dtype, *PREDICATES[predicate])
    theirs.set_dtype(dtype, *PREDICATES[predicate])
    assert same(after.parameters(), theirs.parameters())


def test_arrays_that_are_no_parameters_are_cast_as_well() -> None:
    norm = Norm(mx.ones(2)).astype(mx.float16)
    assert [leaf.dtype for leaf in fl.tree.leaves(norm)] == [mx.float16] * 3


def test_the_model_itself_is_returned_by_set_dtype() -> None:
    model = linear()
    assert model.set_dtype(mx.float32) is model
    assert model.set_dtype(mx.float16).weight.dtype == mx.float16
    assert model.weight.dtype == mx.float32


def test_the_predicate_is_asked_about_the_dtype_of_each_array() -> None:
    asked: list[Any] = []
    Stack([linear(), mx.array(1)]).astype(mx.float16, lambda dtype: asked.append(dtype))
    assert asked == [mx.float32, mx.float32, mx.int32]


@pytest.mark.parametrize(("dtype", "shown"), [("float16", "'float16'"), (float, "float"), (None, "None"), (16, "16")])
def test_what_is_no_dtype_is_an_error_that_says_so(dtype: Any, shown: str) -> None:
    message = f"can't cast to {shown}: give an mx.Dtype, such as mx.float16"
    for method in (linear().astype, linear().set_dtype, linear().at("weight").astype):
        with pytest.raises(TypeError, match=message):
            method(dtype)


def test_a_cast_is_differentiable() -> None:
    layer = linear()

    def loss(weight: mx.array) -> mx.array:
        return layer.replace(weight=weight).astype(mx.float16).weight.sum()

    assert mx.grad(loss)(layer.weight).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "cast", [lambda m: m.astype(mx.float16), lambda m: m.at("weight").astype(mx.float16)], ids=["all", "at"]
)
def test_a_cast_is_not_undone_by_the_converter_of_the_field(cast: Any) -> None:
    class Converted(fl.Module):
        weight: mx.array = fl.parameter(converter=lambda value: mx.array(value, mx.float32))

    assert cast(Converted([1.0])).weight.dtype == mx.float16


class Scaled(fl.Module):
    weight: mx.array
    scales: Any = fl.buffer(cast=False)
    mean: mx.array = fl.buffer(factory=lambda: mx.zeros(1))


def scaled() -> Stack:
    return Stack([Scaled(mx.ones(1), {"a": mx.ones(1), "b": linear()}), linear()], {"scales": Scaled(mx.ones(1), mx.ones(1))})


def cast_paths(model: Any) -> list[str]:
    return [path for path, leaf in zip(fl.tree.paths(model), fl.tree.leaves(model), strict=True) if leaf.dtype == mx.float16]


OTHERS = [
    "layers.0.weight",
    "layers.0.mean",
    "layers.1.weight",
    "layers.1.bias",
    "experts.scales.weight",
    "experts.scales.mean",
]


def test_what_is_not_cast_by_default_is_shared() -> None:
    model = scaled()
    after = model.astype(mx.float16)
    assert cast_paths(after) == OTHERS
    assert after.layers[0].scales is model.layers[0].scales
    assert after.astype(mx.float16) is after
    assert cast_paths(model.set_dtype(mx.float16)) == OTHERS
    assert cast_paths(model.at("layers").astype(mx.float16)) == OTHERS[:4]
    assert cast_paths(model.at(Scaled).astype(mx.float16)) == [*OTHERS[:2], *OTHERS[4:]]


@pytest.mark.parametrize("predicate", [PREDICATES["none"], PREDICATES["floating"]], ids=["none", "floating"])
def test_a_predicate_is_asked_about_all_arrays(predicate: Any) -> None:
    assert cast_paths(scaled().astype(mx.float16, *predicate)) == fl.tree.paths(scaled())


@pytest.mark.parametrize(
    "where", ["layers.0.scales", "layers.0.scales.**", lambda path, leaf: "0.scales" in path], ids=["path", "glob", "predicate"]
)
def test_what_is_selected_itself_is_cast(where: Any) -> None:
    paths = [path for path in fl.tree.paths(scaled()) if "0.scales" in path]
    assert cast_paths(scaled().at(where).astype(mx.float16)) == paths
