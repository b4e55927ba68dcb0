"""Adapters in mlx-lm's files, both directions."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn
import pytest
from mlx.utils import tree_flatten
from tuned import assert_same, built, named

import frostleaf as fl
from frostleaf.interop import adapter_files

tuner = pytest.importorskip("mlx_lm.tuner.utils")

TOKENS = mx.array([0, 4, 1, 2, 11, 8])
WHERE = ["layers.1.**.q_proj", "layers.*.mlp.*", "lm_head"]
each_dora = pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
each_quantized = pytest.mark.parametrize("quantized", [False, True], ids=["full", "quantized"])


def filled(model: Any) -> Any:
    """Return a model in which no adapter leaves what is computed as it is."""
    return model.at("**.lora_b").apply(lambda array: 0.1 * mx.random.normal(array.shape, key=mx.random.key(array.size)))


@each_dora
@each_quantized
def test_mlx_lm_loads_what_was_saved(dora: bool, quantized: bool, tmp_path: Path) -> None:
    ours = filled(fl.lora(built(fl.nn, quantized=quantized), WHERE, rank=4, scale=2.0, dropout=0.1, dora=dora))
    fl.save_adapters(ours, tmp_path / "new" / "adapters")
    theirs = built(mlx.nn, quantized=quantized)
    tuner.load_adapters(theirs, str(tmp_path / "new" / "adapters"))
    assert_same(ours.parameters(), theirs.parameters())
    assert theirs.lm_head.scale == 2.0
    theirs.eval()
    assert mx.array_equal(ours.eval()(TOKENS), theirs(TOKENS))


@each_dora
@each_quantized
@pytest.mark.parametrize(
    ("layers", "keys"),
    [(1, None), (-1, ["self_attn.q_proj", "mlp.up_proj"]), (1, ["self_attn.q_proj", "lm_head"])],
    ids=["last layer", "keys", "keys and the head"],
)
def test_what_mlx_lm_saved_is_loaded(layers: int, keys: Any, dora: bool, quantized: bool, tmp_path: Path) -> None:
    theirs = built(mlx.nn, quantized=quantized)
    theirs.freeze()
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0, **({"keys": keys} if keys else {})}
    tuner.linear_to_lora_layers(theirs, layers, parameters, use_dora=dora)
    for _, module in theirs.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), dict(tree_flatten(theirs.trainable_parameters())))
    config = {"num_layers": layers, "lora_parameters": parameters, "fine_tune_type": "dora" if dora else "lora", "seed": 0}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    base = built(fl.nn, quantized=quantized)
    before = mx.random.state[0].tolist()
    ours = fl.load_adapters(base, tmp_path)
    assert mx.random.state[0].tolist() == before
    assert_same(ours.parameters(), theirs.parameters())
    assert_same(ours.trainable_parameters(), theirs.trainable_parameters())
    assert mx.array_equal(ours(TOKENS), theirs(TOKENS))
    assert {id(leaf) for leaf in fl.tree.leaves(base)} < {id(leaf) for leaf in fl.tree.leaves(ours)}


@each_dora
def test_a_round_trip_is_exact(dora: bool, tmp_path: Path) -> None:
    base = built(fl.nn).astype(mx.bfloat16)
    ours = filled(fl.lora(base, WHERE, dora=dora)).at("**.lora_a").astype(mx.float16)
    fl.save_adapters(ours, tmp_path)
    loaded = fl.load_adapters(base, tmp_path)
    assert fl.tree.equal(loaded, ours)
    assert [*named(loaded.parameters())] == [*named(ours.parameters())]


def test_a_model_trained_in_full_is_loaded(tmp_path: Path) -> None:
    theirs = built(mlx.nn, seed=3)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), dict(tree_flatten(theirs.layers[1].parameters(), ".layers.1")))
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "full", "num_layers": 1, "lora_parameters": null}')
    base = built(fl.nn)
    ours = fl.load_adapters(base, tmp_path)
    assert_same(ours.layers[1].parameters(), theirs.layers[1].parameters())
    assert ours.layers[0] is base.layers[0]


def test_old_adapters_never_stand_beside_a_new_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = built(fl.nn)
    one, other = fl.lora(base, "lm_head", rank=2), fl.lora(base, "lm_head", rank=2, scale=1.0)
    fl.save_adapters(one, tmp_path)

    def crash(*_: Any) -> None:
        raise RuntimeError("a crash")

    with monkeypatch.context() as patch:
        patch.setattr(adapter_files, "write_file", crash)
        with pytest.raises(RuntimeError, match="a crash"):
            fl.save_adapters(filled(one), tmp_path)
        assert fl.tree.equal(fl.load_adapters(base, tmp_path), one)
        with pytest.raises(RuntimeError, match="a crash"):
            fl.save_adapters(other, tmp_path)
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        fl.load_adapters(base, tmp_path)
    fl.save_adapters(other, tmp_path)
    assert fl.tree.equal(fl.load_adapters(base, tmp_path), other)
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", "adapters.safetensors"]


def test_a_frozen_adapter_is_saved_too(tmp_path: Path) -> None:
    base = built(fl.nn)
    fl.save_adapters(filled(fl.lora(base, "lm_head").freeze()), tmp_path)
    assert len(named(fl.load_adapters(base, tmp_path).trainable_parameters())) == 2


def head(**options: Any) -> Any:
    return fl.lora(built(fl.nn), "lm_head", **options)


UNSAVED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no model": (lambda: [head()], TypeError, "fl.save_adapters takes a model first, and was given builtins.list"),
    "no adapters": (lambda: built(fl.nn), ValueError, "this OurModel has no adapters to save: make some with fl.lora"),
    "an adapter": (lambda: fl.nn.LoRALinear(2, 3), ValueError, "this LoRALinear is an adapter itself"),
    "two ranks": (
        lambda: fl.lora(head(), "layers.0.**.q_proj", rank=2),
        ValueError,
        "have one rank, scale, dropout and kind for all adapters, and layers.0.self_attn.q_proj has {'rank': 2, 'scale'",
    ),
    "two kinds": (lambda: fl.lora(head(), "embed_tokens", dora=True), ValueError, "have one rank, scale, dropout and kind"),
    "others trained": (
        lambda: head().at("layers.*.norm").unfreeze(),
        ValueError,
        "layers.0.norm.weight, layers.1.norm.weight would be lost: they are trainable, and mlx-lm's files of adapters",
    ),
    "shapes": (lambda: fl.eval_shape(head), ValueError, "can't save lm_head.lora_a, which is a ShapeDtypeStruct"),
}


@pytest.mark.parametrize("kind", UNSAVED)
def test_what_cant_be_saved_is_told_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    model, error, message = UNSAVED[kind]
    with pytest.raises(error, match=re.escape(message)):
        fl.save_adapters(model(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_no_path_is_told() -> None:
    with pytest.raises(TypeError, match=re.escape("fl.save_adapters(model, directory) takes a path first, and was given 3")):
        fl.save_adapters(head(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=re.escape("fl.load_adapters(model, directory) takes a path first, and was given 3")):
        fl.load_adapters(built(fl.nn), 3)  # type: ignore[arg-type]


ARRAYS = {"lm_head.lora_a": mx.zeros((64, 8)), "lm_head.lora_b": mx.zeros((8, 12))}
LORA = {"rank": 8, "scale": 20.0, "dropout": 0.0}
MISFITS: dict[str, tuple[Any, dict[str, mx.array], str]] = {
    "no JSON": ("{", ARRAYS, "adapter_config.json: is no JSON"),
    "a list": ([], ARRAYS, "adapter_config.json: isn't a JSON object"),
    "another kind": ({"fine_tune_type": "vera"}, ARRAYS, "has fine_tune_type 'vera', where 'lora', 'dora' or 'full' is needed"),
    "no parameters": ({}, ARRAYS, "has lora_parameters None, where a dict of rank and scale is needed"),
    "of PEFT": (
        {"peft_type": "LORA", "r": 8, "lora_alpha": 16},
        ARRAYS,
        "is of PEFT, and mlx-lm's files are read here. Write model = fl.lora(model, where, rank=r, scale=lora_alpha / r)",
    ),
    "no rank": ({"lora_parameters": {"scale": 1}}, ARRAYS, "has no rank in lora_parameters"),
    "alpha": (
        {"lora_parameters": {"rank": 8, "alpha": 16}},
        ARRAYS,
        "has no scale in lora_parameters. It has an alpha: the scale is alpha / rank",
    ),
    "a rank that is none": ({"lora_parameters": {**LORA, "rank": 0}}, ARRAYS, "takes a positive int as rank, and was given 0"),
    "no arrays": ({"lora_parameters": LORA}, {}, "has no arrays"),
    "another layer": (
        {"lora_parameters": LORA},
        {"lm_haed.lora_a": mx.zeros((64, 8))},
        "has 'lm_haed.lora_a', and this OurModel has no such layer; the nearest is 'lm_head'",
    ),
    "no adapter": (
        {"lora_parameters": LORA},
        {**ARRAYS, "lm_head.weight": mx.zeros((12, 64))},
        "has 'lm_head.weight', which is no array of an adapter: these end in lora_a, lora_b, m",
    ),
    "half an adapter": ({"lora_parameters": LORA}, {"lm_head.lora_a": ARRAYS["lm_head.lora_a"]}, "has no lm_head.lora_b"),
    "no lengths": ({"lora_parameters": LORA, "fine_tune_type": "dora"}, ARRAYS, "has no lm_head.m"),
    "lengths": (
        {"lora_parameters": LORA},
        {**ARRAYS, "lm_head.m": mx.zeros(12)},
        "has lm_head.m, and the model has no such arrays",
    ),
    "another rank": (
        {"lora_parameters": {**LORA, "rank": 4}},
        ARRAYS,
        "has lm_head.lora_a as f32[64,8], where the model has f32[64,4]",
    ),
    "a layer that can't be adapted": (
        {"lora_parameters": LORA},
        {"layers.0.norm.lora_a": mx.zeros((64, 8))},
        "fl.lora can't adapt layers.0.norm, a RMSNorm",
    ),
    "full, another model's": (
        {"fine_tune_type": "full"},
        ARRAYS,
        "has lm_head.lora_a, lm_head.lora_b, and the model has no such",
    ),
    "full, another shape": (
        {"fine_tune_type": "full"},
        {"lm_head.weight": mx.zeros((12, 32))},
        "has lm_head.weight as f32[12,32], where the model has f32[12,64]",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_files_that_do_not_fit_are_refused(kind: str, tmp_path: Path) -> None:
    config, arrays, message = MISFITS[kind]
    (tmp_path / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), arrays)
    with pytest.raises((ValueError, fl.CheckpointError), match=re.escape(message)):
        fl.load_adapters(built(fl.nn), tmp_path)


def test_a_model_that_has_the_adapters_is_refused(tmp_path: Path) -> None:
    model = head()
    fl.save_adapters(filled(model), tmp_path)
    with pytest.raises(ValueError, match="lm_head is adapted already, as a LoRALinear"):
        fl.load_adapters(model, tmp_path)
    resumed = model.load_weights(tmp_path / "adapters.safetensors", strict=False)
    assert fl.tree.equal(resumed, filled(model))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        fl.load_adapters(built(fl.nn), tmp_path / "none")


@pytest.mark.parametrize("name", ["adapters.safetensors", "all.npz"])
@pytest.mark.parametrize("folder", ["", "run/", "run/2/"])
def test_a_file_where_a_directory_goes_is_told(name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = "takes a directory, which has adapters.safetensors and adapter_config.json, as mlx-lm does, and was given a file, "
    message = f"{files}{folder + name!r}: give {folder[:-1] or '.'!r}"
    for give in (lambda path: fl.save_adapters(filled(head()), path), lambda path: fl.load_adapters(built(fl.nn), path)):
        with pytest.raises(NotADirectoryError, match=re.escape(message)):
            give(folder + name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_no_directory(tmp_path: Path) -> None:
    fl.save_adapters(filled(head()), tmp_path)
    advice = re.escape(f"give {str(tmp_path)!r}, or read the file into adapters that are there with model.load_weights(file, s")
    for name in ("adapters.safetensors", "adapter_config.json"):
        with pytest.raises(NotADirectoryError, match=advice):
            fl.load_adapters(built(fl.nn), tmp_path / name)
        with pytest.raises(NotADirectoryError, match=re.escape(f"give {str(tmp_path)!r}") + "$"):
            fl.save_adapters(filled(head()), tmp_path / name)


def test_a_directory_that_is_named_like_a_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "run.npz").mkdir()
    fl.save_adapters(filled(head()), tmp_path / "run.npz")
    assert fl.tree.equal(fl.load_adapters(built(fl.nn), tmp_path / "run.npz"), filled(head()))
