"""Functions that were exported for all lengths are refused where MLX would compute another derivative than theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from exports import apply, batch, through

import frostleaf as fl

pytestmark = pytest.mark.filterwarnings("ignore::frostleaf.CapturedArrayWarning")

Call = Callable[[mx.array], mx.array]

DERIVED: dict[str, Callable[[Call, mx.array], Any]] = {
    "mx.grad": lambda f, x: mx.grad(lambda x: f(x).sum())(x),
    "mx.vjp": lambda f, x: mx.vjp(f, [x], [mx.ones((x.shape[0], 3))]),
    "mx.jvp": lambda f, x: mx.jvp(f, [x], [x]),
    "mx.vmap": lambda f, x: mx.vmap(f)(mx.stack([x, x])),
    "mx.compile": lambda f, x: mx.compile(mx.grad(lambda x: f(x).sum()))(x),
    "mx.checkpoint": lambda f, x: mx.grad(lambda x: mx.checkpoint(f)(x).sum())(x),
    "fl.grad": lambda f, x: fl.grad(lambda x: f(x).sum())(x),
    "fl.vjp": lambda f, x: fl.vjp(f, (x,), mx.ones((x.shape[0], 3))),
    "fl.jvp": lambda f, x: fl.jvp(f, (x,), (x,)),
    "fl.vmap": lambda f, x: fl.vmap(f)(mx.stack([x, x])),
    "fl.jit": lambda f, x: fl.jit(fl.grad(lambda x: f(x).sum()))(x),
    "fl.checkpoint": lambda f, x: fl.grad(lambda x: fl.checkpoint(f)(x).sum())(x),
    "in a batch of vectors": lambda f, x: fl.vmap(lambda row: f(row[None]))(x),
}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: Any) -> Any:
    return through(tmp_path_factory.mktemp("imported"), fl.nn.Linear(4, 3), batch(4), shapeless=True)


@pytest.mark.parametrize("way", DERIVED)
def test_a_function_for_all_lengths_is_neither_differentiated_nor_mapped(way: str, imported: Any) -> None:
    for rows in (4, 5):
        with pytest.raises(ValueError, match=r"neither differentiate nor map.*fl\.value_and_grad.*fl\.exporter"):
            DERIVED[way](imported, batch(rows))


def test_neither_is_a_function_of_a_model(tmp_path: Path) -> None:
    model, x = fl.nn.Linear(4, 3), batch(4)
    imported = through(tmp_path, apply, model, x, shapeless=True)
    for loss in (lambda model: imported(model, x).sum(), lambda model: imported(model=model, x=x).sum()):
        for grad in (fl.grad(loss), fl.jit(fl.grad(loss))):
            with pytest.raises(ValueError, match="neither differentiate nor map"):
                grad(model)


def test_neither_is_what_has_it_inside(tmp_path: Path) -> None:
    x = batch(4)
    inner = through(tmp_path, fl.nn.Linear(4, 3), x, shapeless=True)
    for shapeless in (False, True):
        outer = through(tmp_path, lambda x: 2 * inner(x), x, shapeless=shapeless)
        assert fl.tree.allclose(outer(x), 2 * inner(x))
        with pytest.raises(ValueError, match="neither differentiate nor map"):
            mx.grad(lambda x: outer(x).sum())(x)  # noqa: B023
        with pytest.raises(ValueError, match="neither differentiate nor map"):
            through(tmp_path, mx.grad(lambda x: inner(x).sum()), x, shapeless=shapeless)


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_everything_else_is_as_for_other_functions(rows: int, tmp_path: Path) -> None:
    model, x, scale = fl.nn.Linear(4, 3), batch(rows), mx.array(2.0)
    imported = through(tmp_path, model, batch(4), shapeless=True)
    for run in (imported, mx.compile(imported), fl.jit(imported)):
        assert fl.tree.allclose(run(x), model(x), atol=1e-6)
    assert fl.eval_shape(imported, x) == fl.ShapeDtypeStruct((rows, 3))

    def loss(fn: Call, scale: mx.array) -> mx.array:
        return (scale * fn(mx.stop_gradient(scale) * x)).sum()

    for transform in (mx.grad, fl.grad, lambda fn: mx.compile(mx.grad(fn)), lambda fn: fl.jit(fl.grad(fn))):
        found, expected = (transform(lambda scale: loss(fn, scale))(scale) for fn in (imported, model))  # noqa: B023
        assert fl.tree.allclose(found, expected, rtol=1e-5)
    assert fl.tree.allclose(fl.vmap(lambda scale: scale * imported(x))(mx.ones(2))[0], model(x), atol=1e-6)


def test_a_gradient_that_was_exported_is_right_at_all_lengths(tmp_path: Path) -> None:
    fn, model = fl.value_and_grad(lambda model, x: (model(x) ** 2).sum()), fl.nn.Linear(4, 3)
    through_file = through(tmp_path, fn, model, batch(4), shapeless=True)
    for rows in (2, 4, 9):
        x = batch(rows)
        assert fl.tree.allclose(through_file(model, x), fn(model, x), rtol=1e-5, atol=1e-5)


def test_what_has_no_arrays_has_no_derivatives(imported: Any, tmp_path: Path) -> None:
    x = batch(6)
    constant = through(tmp_path, lambda: imported(x), shapeless=False)
    assert fl.tree.allclose(constant(), imported(x))
    nothing = through(tmp_path, lambda x: {"n": 3}, x, shapeless=True)
    assert nothing(batch(2)) == {"n": 3}


@pytest.mark.parametrize("way", DERIVED)
def test_compiled_for_all_shapes_a_function_has_the_derivatives_that_it_has(way: str) -> None:
    model = fl.nn.Sequential(fl.nn.Linear(4, 4), fl.nn.gelu, fl.nn.LayerNorm(4), fl.nn.Linear(4, 3))
    jitted = fl.jit(model, shapeless=True)
    for rows in (4, 1, 9):
        x = batch(rows)
        jitted(x)
        assert fl.tree.allclose(DERIVED[way](jitted, x), DERIVED[way](model, x), rtol=1e-4, atol=1e-5)
