"""The modes of adapters: that of a new one is training mode, as in mlx-lm, whatever that of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from interop.test_tuner import CASES, CONFIG, TOKENS, adapted, adapted_by_mlx_lm, base_of, each_case, filled, loss, tuner

import frostleaf as fl


def modes(model: Any) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@each_case
def test_new_adapters_have_the_modes_that_they_have_in_mlx_lm(case: str) -> None:
    ours, theirs = adapted(case, dropout=0.5), adapted_by_mlx_lm(case, dropout=0.5)
    found = modes(ours)
    assert found == modes(theirs)
    assert {True, False} <= {*found.values()}  # the layers that were there are in evaluation mode
    assert modes(fl.to_mlx(ours)) == found


@pytest.mark.parametrize("case", [case for case in CASES if case != "head"])
def test_dropout_of_a_model_that_came_in_evaluation_mode_is_that_of_mlx_lm(case: str) -> None:
    ours, theirs = filled(adapted(case, dropout=0.5)), adapted_by_mlx_lm(case, dropout=0.5)
    theirs.update(ours.parameters())
    losses = []
    for seed in range(2):
        mx.random.seed(seed)
        value, _ = fl.value_and_grad(loss)(ours, TOKENS)
        mx.random.seed(seed)
        expected, _ = nn.value_and_grad(theirs, loss)(theirs, TOKENS)
        assert mx.array_equal(value, expected)
        losses.append(value.item())
    assert losses[0] != losses[1]
    assert not mx.array_equal(loss(ours.eval(), TOKENS), loss(ours, TOKENS))


@pytest.mark.parametrize("converted", [False, True])
def test_adapters_that_are_loaded_have_the_modes_that_mlx_lm_gives_them(converted: bool, tmp_path: Path) -> None:
    base = fl.from_mlx(base_of("dense"))
    base = fl.convert(base) if converted else base
    fl.save_adapters(adapted("dense", base, dropout=0.5), tmp_path)
    loaded, theirs = fl.load_adapters(base, tmp_path), tuner.load_adapters(base_of("dense"), str(tmp_path))
    assert modes(loaded) == modes(theirs)
    assert any(modes(loaded).values())
    assert not any(modes(loaded.eval()).values())


@each_case
@pytest.mark.parametrize("mode", [True, False])
def test_a_fused_model_has_the_modes_of_the_base(case: str, mode: bool) -> None:
    base = fl.from_mlx(base_of(case)).train(mode)
    fused = fl.fuse(adapted(case, base, dropout=0.5))
    assert modes(fused) == modes(base)
    assert modes(fl.fuse(adapted(case, base).train(not mode))) == dict.fromkeys(modes(base), not mode)


@pytest.mark.parametrize("dora", [False, True])
def test_a_native_layer_keeps_its_mode_inside_an_adapter_that_trains(dora: bool, tmp_path: Path) -> None:
    base = fl.nn.Sequential(fl.nn.Embedding(9, 4), fl.nn.Linear(4, 4)).eval()
    like = fl.lora(base, ["layers.0", "layers.1"], **CONFIG, dora=dora)
    for layer, held in zip(like.layers, base.layers, strict=True):
        assert layer.training
        assert layer.dropout.training
        assert getattr(layer, layer.held) is not None
        assert not getattr(layer, layer.held).training
        assert not held.training
    fl.save(tmp_path / "all.safetensors", like)
    assert modes(fl.load(tmp_path / "all.safetensors", like)) == modes(like)
