"""Constants of exported functions: arrays that don't lie in memory row by row, and arrays that are examples as well."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from exports import apply

import frostleaf as fl

VIEWS: dict[str, Callable[[], mx.array]] = {
    "transposed": lambda: mx.random.normal((3, 4)).T,
    "sliced": lambda: mx.random.normal((4, 5))[:, 1:4],
    "every second": lambda: mx.random.normal((4, 6))[:, ::2],
    "reversed": lambda: mx.random.normal((4, 3))[::-1],
    "broadcast": lambda: mx.broadcast_to(mx.random.normal((4, 1)), (4, 3)),
    "bfloat16": lambda: mx.random.normal((3, 4)).astype(mx.bfloat16).T,
}
BOUND: dict[str, Callable[[Any], Any]] = {
    "module": lambda model: model,
    "method": lambda model: model.__call__,
    "partial": lambda model: functools.partial(apply, model),
    "by name": lambda model: functools.partial(lambda x, model: model(x), model=model),
    "jitted": fl.jit,
}


def viewed(view: str) -> Any:
    model = fl.nn.Linear(3, 4)
    weight = VIEWS[view]()
    mx.eval(weight)
    return model.astype(weight.dtype).replace(weight=weight)


@pytest.mark.parametrize("shapeless", [False, True])
@pytest.mark.parametrize("bind", BOUND)
@pytest.mark.parametrize("view", VIEWS)
def test_what_a_function_is_bound_to_is_laid_out_by_rows(view: str, bind: str, shapeless: bool, tmp_path: Path) -> None:
    model = viewed(view)
    weight = model.weight
    fl.export_function(tmp_path / "f", BOUND[bind](model), mx.zeros((2, 3), weight.dtype), shapeless=shapeless)
    x = mx.random.normal((2, 3)).astype(weight.dtype)
    assert mx.allclose(fl.import_function(tmp_path / "f")(x), model(x), rtol=1e-2, atol=1e-2)
    assert model.weight is weight


@pytest.mark.parametrize("view", VIEWS)
def test_other_constants_that_are_not_laid_out_by_rows_are_refused(view: str, tmp_path: Path) -> None:
    model = viewed(view)

    def call(x: mx.array) -> mx.array:
        return model(x)  # type: ignore[no-any-return]

    x = mx.zeros((2, 3), model.weight.dtype)
    shown = "bf16" if view == "bfloat16" else "f32"
    with pytest.raises(ValueError, match=rf"^call computes with an array {shown}\[(4,3|3,4)\] that .*mx\.contiguous\(array\)"):
        fl.export_function(tmp_path / "f", call, x)
    assert not [*tmp_path.iterdir()]
    model = fl.tree.map(mx.contiguous, model)
    fl.export_function(tmp_path / "f", call, x)
    assert mx.allclose(fl.import_function(tmp_path / "f")(x + 1), model(x + 1), rtol=1e-2, atol=1e-2)


def test_an_array_at_two_places_is_one_constant(tmp_path: Path) -> None:
    model = fl.nn.Linear(64, 64, bias=False)
    twice = fl.nn.Sequential(model, model)
    fl.export_function(tmp_path / "once", model, mx.ones((1, 64)))
    fl.export_function(tmp_path / "twice", twice, mx.ones((1, 64)))
    size = (tmp_path / "twice").stat().st_size
    assert size < (tmp_path / "once").stat().st_size + model.weight.nbytes // 2


def test_an_example_may_be_a_constant_as_well(tmp_path: Path) -> None:
    model, x = fl.nn.Linear(3, 3), mx.ones((2, 3))
    fl.export_function(tmp_path / "x", lambda z: z + x, x)
    assert fl.import_function(tmp_path / "x")(x + 1).tolist() == [[3.0] * 3] * 2
    fl.export_function(tmp_path / "model", lambda m, x: m(x) @ model.weight, model, x)
    other = fl.tree.map(lambda leaf: leaf + 1, model)
    found = fl.import_function(tmp_path / "model")(other, x)
    assert mx.allclose(found, other(x) @ model.weight, rtol=1e-5, atol=1e-5)
