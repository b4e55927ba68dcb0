"""Functions with a way of their own to a gradient: checkpointed ones are exported as plain ones, those of MLX are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from exports import apply, batch, through

import frostleaf as fl


def squared(model: Any, x: mx.array) -> mx.array:
    return fl.checkpoint(model)(x).square()  # type: ignore[no-any-return]


CHECKPOINTED: dict[str, Callable[[], tuple[Any, ...]]] = {
    "itself": lambda: (fl.checkpoint(apply), fl.nn.Linear(4, 3), batch(5)),
    "in the function": lambda: (squared, fl.nn.Linear(4, 3), batch(5)),
    "in the model": lambda: (apply, fl.nn.Sequential(fl.nn.Linear(4, 4)).at("layers.0").apply(fl.checkpoint), batch(5)),
    "jitted": lambda: (fl.jit(fl.checkpoint(fl.jit(apply))), fl.nn.Linear(4, 3), batch(5)),
    "mapped": lambda: (fl.vmap(fl.checkpoint(mx.sin)), batch(5)),
    "with its gradient": lambda: (fl.grad(lambda model, x: squared(model, x).sum()), fl.nn.Linear(4, 3), batch(5)),
}


@pytest.mark.parametrize("shapeless", [False, True])
@pytest.mark.parametrize("case", CHECKPOINTED)
def test_what_is_checkpointed_is_exported_as_a_plain_function(case: str, shapeless: bool, tmp_path: Path) -> None:
    fn, *trees = CHECKPOINTED[case]()
    imported = through(tmp_path, fn, *trees, shapeless=shapeless)
    for arguments in (trees, fl.tree.map(lambda leaf: leaf + 1, trees)):
        assert fl.tree.equal(imported(*arguments), fn(*arguments))
    rows = [*trees[:-1], batch(9)]
    if shapeless:
        assert fl.tree.allclose(imported(*rows), fn(*rows), rtol=1e-5, atol=1e-6)


def test_what_is_checkpointed_draws_from_a_key(tmp_path: Path) -> None:
    def dropped(key: mx.array, model: Any, x: mx.array) -> mx.array:
        with fl.rng(key):
            return fl.checkpoint(model)(x)

    model, x = fl.nn.Dropout(0.5), batch(5)
    with pytest.raises(ValueError, match="draws random numbers"):
        fl.export_function(tmp_path / "f.mlxfn", fl.checkpoint(model), x)
    imported = through(tmp_path, dropped, mx.random.key(1), model, x)
    for key in (mx.random.key(1), mx.random.key(2)):
        assert fl.tree.equal(imported(key, model, x), dropped(key, model, x))


@mx.custom_function
def doubled(x: mx.array) -> mx.array:
    return x * 2


@doubled.vjp
def _(primals: Any, cotangents: Any, _: Any) -> Any:
    return cotangents * 3


OF_MLX: dict[str, tuple[Callable[..., Any], str]] = {
    "checkpoint": (lambda x: mx.checkpoint(mx.sin)(x), "Write fl.checkpoint for mx.checkpoint"),
    "checkpoint of a module": (nn.utils.checkpoint(nn.ReLU()), "Write fl.checkpoint for mx.checkpoint"),
    "function": (lambda x: doubled(x), "what has a derivative of its own .*mx.custom_function"),
    "function, jitted": (fl.jit(lambda x: doubled(x)), "mx.custom_function"),
    "function, checkpointed": (fl.checkpoint(lambda x: doubled(x)), "mx.custom_function"),
    "tree of vectors": (lambda x: fl.tree.ravel([x])[1]({"float32": x.reshape(-1)}), "what fl.tree.ravel unravels"),
}


@pytest.mark.parametrize("shapeless", [False, True])
@pytest.mark.parametrize("case", OF_MLX)
def test_what_mlx_gives_a_derivative_is_refused(case: str, shapeless: bool, tmp_path: Path) -> None:
    fn, message = OF_MLX[case]
    with pytest.raises(ValueError, match=message):
        fl.export_function(tmp_path / "f.mlxfn", fn, batch(5), shapeless=shapeless)
    assert not [*tmp_path.iterdir()]


def test_its_own_derivative_is_exported(tmp_path: Path) -> None:
    fn, x = fl.grad(lambda x: doubled(x).sum()), batch(5)
    assert fl.tree.equal(through(tmp_path, fn, x)(x), mx.full(x.shape, 3.0))
