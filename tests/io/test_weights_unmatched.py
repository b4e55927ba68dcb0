"""Weights that are none of the model's, and what else is given in the place of weights by mistake: told, with what to write."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"model.weight": 1, "model.bias": 1}, [r"removeprefix\('model.'\)"]),
        (
            {"Weight": 1, "x": 1},
            ["none of the 2 weights has the name of a parameter of this Linear", "the nearest is 'weight'"],
        ),
        ({"q.lora_a": 1, "q.lora_b": 1}, [r"adapters of LoRA, for a model that has them: fl.lora\(model\)"]),
    ],
)
def test_that_nothing_is_loaded_is_told(weights: dict[str, Any], words: list[str]) -> None:
    model = fl.nn.Linear(2, 2)
    with pytest.warns(fl.UnmatchedWeightsWarning, match=".*".join(words)) as seen:
        assert model.load_weights({name: mx.ones(2) for name in weights}, strict=False) is model
    assert seen[0].filename == __file__


@pytest.mark.parametrize("weights", [{}, [], {}.items()])
def test_that_there_is_nothing_to_load_is_told(weights: Any) -> None:
    model = fl.nn.Linear(2, 2)
    with pytest.warns(fl.UnmatchedWeightsWarning, match="there are no weights.* give load_weights its path"):
        assert model.load_weights(weights, strict=False) is model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fl.nn.ReLU().load_weights(weights, strict=False) is not None


@pytest.mark.parametrize("weights", [{"bias": mx.ones(2)}, {"bias": mx.ones(2), "other": mx.ones(2)}])
def test_that_something_is_loaded_is_not(weights: dict[str, mx.array]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = fl.nn.Linear(2, 2).load_weights(weights, strict=False)
        assert "bias" not in weights or loaded.bias.tolist() == [1, 1]
        assert fl.nn.ReLU().load_weights(weights, strict=False) is not None


def test_nested_dicts_are_told_of_update() -> None:
    model = fl.nn.Sequential(fl.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"was given a nested dict. For nested dicts of arrays, .* there is update"):
        model.load_weights(model.parameters())
    assert fl.tree.equal(model.update(model.parameters()), model)


def test_the_weights_of_a_saved_run_are_renamed_as_the_error_says(tmp_path: Path) -> None:
    model = fl.nn.Sequential(fl.nn.Linear(2, 2))
    state = fl.optim.Adam(1e-3).init(model)
    fl.save(tmp_path / "run.safetensors", {"model": model, "state": state})
    other = fl.nn.Sequential(fl.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="rename=") as error:
        other.load_weights(tmp_path / "run.safetensors")
    rename = eval(str(error.value).partition("rename=")[2].rstrip("."))
    assert fl.tree.equal(other.load_weights(tmp_path / "run.safetensors", rename=rename), model)


@pytest.mark.parametrize("name", ["x.npz", "x.gguf", "x.safetensors", "x.pt", "x.pkl", "x.h5", "x.ckpt", "x.bin", "x.eqx", "x"])
def test_a_saved_tree_is_read_whatever_its_name_ends_with(name: str, tmp_path: Path) -> None:
    model = fl.nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fl.save(tmp_path / name, model)
    for given in (tmp_path / name, str(tmp_path / name), [str(tmp_path / name)]):
        assert fl.tree.equal(fl.nn.Linear(2, 2).load_weights(given), model)
