"""Weights loaded into models that were never built, and saved from them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from twins import MODELS, Linear, linear, subject

import frostleaf as fl

PLACES = ["weights.npz", "weights.safetensors", "weights.gguf", "weights/"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return subject(request.param)


@pytest.mark.parametrize("place", ["weights.npz", "weights/"])
def test_a_model_that_was_never_built_is_filled(model: tuple[Any, Any], place: str, tmp_path: Path) -> None:
    ours, _ = model
    ours.save_weights(f"{tmp_path}/{place}")
    blank = fl.eval_shape(lambda: ours.eval().freeze())
    private = [path for path in fl.tree.paths(ours) if path not in dict(tree_flatten(ours.parameters()))]
    if private:
        with pytest.raises(ValueError, match=rf"^{', '.join(map(re.escape, private))} can't come from weights"):
            blank.load_weights(f"{tmp_path}/{place}")
    loaded = blank.load_weights(f"{tmp_path}/{place}", strict=False)
    assert fl.tree.equal(loaded.parameters(), ours.parameters())
    named = zip(fl.tree.paths(loaded), fl.tree.leaves(loaded), strict=True)
    assert [path for path, leaf in named if isinstance(leaf, fl.ShapeDtypeStruct)] == private
    if not private:
        assert fl.tree.structure(blank.load_weights(f"{tmp_path}/{place}")) == fl.tree.structure(ours.eval().freeze())


@pytest.mark.parametrize("place", PLACES)
def test_a_model_without_numbers_can_not_be_saved(place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"can't save weight, which is a ShapeDtypeStruct and has no numbers"):
        fl.eval_shape(linear).save_weights(f"{tmp_path}/{place}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            [("weight", mx.zeros(3)), ("bias", mx.zeros(2))],
            "Expected shape (2, 2) but received shape (3,) for parameter weight",
        ),
        ([("weight", mx.zeros((2, 2)))], "Missing 1 parameters: \nbias."),
    ],
    ids=str,
)
def test_the_errors_are_the_same_where_the_model_was_never_built(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match="parameter") as caught:
        fl.eval_shape(linear).load_weights(weights)
    assert str(caught.value) == message


def test_what_weights_do_not_name_stays_blank() -> None:
    loaded = fl.eval_shape(linear).load_weights([("bias", mx.ones(2))], strict=False)
    assert loaded.weight == fl.ShapeDtypeStruct((2, 2))
    assert loaded.bias.tolist() == [1, 1]


def test_a_static_field_with_a_shape_is_not_filled() -> None:
    spec = fl.ShapeDtypeStruct((3,))
    assert Linear(mx.ones(2), size=spec).load_weights([("weight", mx.zeros(2))]).size == spec
