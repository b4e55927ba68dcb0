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


@pytest.mark.parametrize("dtype", ["float16", float, None, 16], ids=repr)
def test_what_is_no_dtype_is_an_error_that_says_so(dtype: Any) -> None:
    message = f"can't cast to {dtype!r}: give an mx.Dtype, such as mx.float16"
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
