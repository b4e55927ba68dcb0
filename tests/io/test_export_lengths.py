"""Functions that are exported for all lengths of some axes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from exports import Wrapped, apply, batch, through

import frostleaf as fl

SHAPELESS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "linear": lambda: (True, apply, fl.nn.Linear(4, 3), batch(4)),
    "wrapped": lambda: (True, apply, fl.from_mlx(Wrapped()), batch(4)),
    "quantized": lambda: (True, apply, fl.quantize(fl.nn.Linear(32, 4), group_size=32), batch(4, 32)),
    "loss": lambda: (True, lambda model, x, y: ((model(x) - y) ** 2).mean(), fl.nn.Linear(4, 3), batch(4), batch(4, 3)),
    "gradients": lambda: (True, fl.grad(lambda model, x: (model(x) ** 2).sum()), fl.nn.Linear(4, 3), batch(4)),
    "gradients of more axes": lambda: (
        True,
        fl.grad(lambda model, x: (model(x) ** 2).sum()),
        fl.nn.Linear(4, 3),
        mx.random.normal((4, 2, 4)),
    ),
    "layer norm": lambda: (True, apply, fl.nn.LayerNorm(4), batch(4)),
    "in a tree": lambda: (True, lambda run: run["model"](run["x"]), {"model": fl.nn.Linear(4, 3), "x": batch(4)}),
    "another axis": lambda: ((None, 1), lambda scale, x: scale * x, batch(2, 1), batch(2, 4)),
    "two lengths": lambda: (True, lambda x, y: x @ y.T, batch(4), batch(5)),
    "some of a tree": lambda: (({"x": 0, "w": None},), lambda tree: tree["x"] @ tree["w"], {"x": batch(3), "w": batch(4)}),
    "bfloat16": lambda: (True, apply, fl.nn.Linear(4, 3).astype(mx.bfloat16), batch(4, dtype=mx.bfloat16)),
}


@pytest.mark.parametrize("case", SHAPELESS)
@pytest.mark.parametrize("rows", [2, 4, 9, 300])
def test_one_export_serves_all_lengths(case: str, rows: int, tmp_path: Path) -> None:
    shapeless, fn, *examples = SHAPELESS[case]()
    imported = through(tmp_path, fn, *examples, shapeless=shapeless)

    def resized(path: str, leaf: mx.array) -> mx.array:
        axis = 1 if case == "another axis" else 0
        is_open = re.fullmatch("[0-9]|.*x", path) and leaf.shape[axis] > 1
        return mx.take(leaf, mx.arange(rows) % leaf.shape[axis], axis=axis) if is_open else leaf

    others = fl.tree.map_with_path(resized, examples)
    expected = fn(*others)
    assert fl.tree.allclose(imported(*others), expected, rtol=1e-5, atol=2e-2 if case == "bfloat16" else 1e-5)


@pytest.mark.parametrize("limit", [8, 50, 500, 5000, 50_000])
def test_what_changes_from_a_number_of_rows_on_is_refused(limit: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"can't be exported with shapeless: with .* in the place of 3"):
        fl.export_function(tmp_path / "f", lambda x: x * (1 if len(x) < limit else 100), batch(3), shapeless=True)
    assert not [*tmp_path.iterdir()]


def test_a_length_of_one_is_refused_where_mlx_would_end_the_process(tmp_path: Path) -> None:
    model, x = fl.nn.Linear(4, 3), batch(1)
    summed = through(tmp_path, lambda x: x.sum(axis=0), batch(4), shapeless=True)
    rows = through(tmp_path, apply, model, batch(4), shapeless=True)
    with pytest.raises(ValueError, match="x has 1, and MLX can compute this with 2 or more"):
        summed(x)
    assert fl.tree.allclose(rows(model, x), model(x), atol=1e-6)


@pytest.mark.parametrize("rows", [2, 4])
def test_lengths_of_one_are_told_by_axis(rows: int, tmp_path: Path) -> None:
    mean = through(tmp_path, lambda x: x.mean(axis=1), batch(rows, 5), shapeless=((0, 1),))
    assert fl.tree.allclose(mean(mx.ones((1, 9))), mx.ones(1))
    with pytest.raises(ValueError, match="x has 1, and MLX can compute this with 2 or more"):
        mean(batch(3, 1))


class Language(fl.Module):
    embedding: fl.nn.Embedding
    attention: fl.nn.MultiHeadAttention
    norm: fl.nn.RMSNorm

    def __init__(self) -> None:
        self.embedding, self.norm = fl.nn.Embedding(11, 8), fl.nn.RMSNorm(8)
        self.attention = fl.nn.MultiHeadAttention(8, 2)

    def __call__(self, tokens: mx.array, mask: mx.array | None = None) -> mx.array:
        x = self.norm(self.embedding(tokens))
        return self.embedding.as_linear(x + self.attention(x, x, x, mask))


@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (1, 7), (4, 1), (2, 40), (5, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_batch_and_length_may_both_vary(shape: tuple[int, int], masked: bool, tmp_path: Path) -> None:
    def arguments(batch: int, length: int) -> Any:
        mask = nn.MultiHeadAttention.create_additive_causal_mask(length)
        return mx.random.randint(0, 11, (batch, length)), mask if masked else None

    model = Language()
    axes = (None, (0, -1), (0, 1) if masked else None)
    imported = through(tmp_path, lambda model, tokens, mask: model(tokens, mask), model, *arguments(3, 5), shapeless=axes)
    plain: Any = mx.import_function(str(tmp_path / "f.mlxfn"))
    tokens, mask = arguments(*shape)
    positional = [tokens] if mask is None else [tokens, mask]
    weights = dict(model.save_weights(tmp_path / "w.safetensors") or mx.load(str(tmp_path / "w.safetensors")))
    assert fl.tree.allclose(imported(model, tokens, mask), model(tokens, mask), rtol=1e-5, atol=1e-5)
    assert fl.tree.allclose(plain(*positional, **weights)[0], model(tokens, mask), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"tokens: array i32\[n1,n2\] in the file, array f32\[n1,n2,1\] in the arguments"):
        imported(model, mx.ones((2, 2, 1)), mask)


def test_one_row_may_be_the_example(tmp_path: Path) -> None:
    model, x = fl.nn.Linear(4, 3), batch(7)
    imported = through(tmp_path, apply, model, x[:1], shapeless=True)
    assert fl.tree.allclose(imported(model, x), model(x), atol=1e-6)


def test_lengths_that_are_one_in_the_example_are_one_in_each_call(tmp_path: Path) -> None:
    imported = through(tmp_path, lambda x, y: (x + 1, y + 1), batch(3), batch(3), shapeless=True)
    assert imported(batch(5), batch(5))[1].shape == (5, 4)
    with pytest.raises(ValueError, match=r"x has 5, y has 4, which are of one length \(3\) in the example"):
        imported(batch(5), batch(4))
    with pytest.raises(ValueError, match="x has 0, y has 0, and MLX can compute this with 1 or more"):
        imported(batch(0), batch(0))
