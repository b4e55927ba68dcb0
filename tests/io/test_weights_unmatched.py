"""Weights that are none of the model's, and what else is given in the place of weights by mistake: told, with what to write."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
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


def wide(seed: int = 0) -> Any:
    return fl.nn.Sequential(*[fl.nn.Linear(32, 32, key=key) for key in mx.random.split(mx.random.key(seed), 2)])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"weight": mx.ones((3, 2))}, r"the model has another shape, .*: 'weight' f32\[3,2\] for f32\[2,2\]\."),
        ({"weight": mx.ones((2, 2), mx.uint32)}, r"'weight' u32\[2,2\] for f32\[2,2\]\."),
        (
            {"weight": mx.ones((2, 2), mx.bool_), "bias": mx.ones((1, 2))},
            r"'weight' bool\[2,2\] .*'bias' f32\[1,2\] for",
        ),
    ],
)
@pytest.mark.parametrize("blank", [True, False])
def test_what_has_another_shape_or_kind_is_told_and_loaded_as_by_mlx(weights: Any, words: str, blank: bool) -> None:
    model = fl.nn.Linear(2, 2)
    given = fl.eval_shape(fl.nn.Linear, 2, 2) if blank else model
    with pytest.warns(fl.UnmatchedWeightsWarning, match=words) as seen:
        loaded = given.load_weights(weights, strict=False)
    assert seen[0].filename == __file__
    assert len(str(seen[0].message)) < 600
    theirs = nn.Linear(2, 2)
    theirs.load_weights([*weights.items()], strict=False)
    for name in weights:
        assert getattr(loaded, name) is weights[name]
        assert fl.tree.equal(getattr(loaded, name), theirs[name])
    code = re.search(r"as (rename=.*) does$", str(seen[0].message))
    assert code is not None
    if len(weights) == 1:
        assert model.load_weights(weights, False, rename={"weight": None}) is model
        assert code[1] == "rename={'weight': None}"


def test_the_name_in_the_file_is_the_one_to_leave_out() -> None:
    with pytest.warns(fl.UnmatchedWeightsWarning, match=r"'weight' f32\[3\] .*as rename={'w': None} does"):
        _ = fl.nn.Linear(2, 2).load_weights({"w": mx.ones(3), "bias": mx.ones(2)}, False, rename={"w": "weight"})


def quantized(**options: Any) -> Any:
    return fl.quantize(fl.nn.Linear(32, 32, bias=False), 32, 8, **options)


STRICT_KINDS: dict[str, tuple[Any, dict[str, mx.array], str]] = {
    "integers": (fl.nn.Linear(3, 2), {"weight": mx.ones((2, 3), mx.int32), "bias": mx.zeros(2)}, r"i32\[2,3\] for f32\[2,3\]"),
    "bool": (fl.nn.Linear(3, 2), {"weight": mx.ones((2, 3), mx.bool_), "bias": mx.zeros(2)}, r"bool\[2,3\] for f32\[2,3\]"),
    "complex": (fl.nn.Linear(3, 2), {"weight": mx.ones((2, 3), mx.complex64), "bias": mx.zeros(2)}, r"c64\[2,3\] for f32"),
    "floats": (
        quantized(),
        {"weight": mx.ones((32, 8)), "scales": mx.ones((32, 1)), "biases": mx.ones((32, 1))},
        r"f32\[32,8\] for u32\[32,8\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("blank", [True, False])
@pytest.mark.parametrize("kind", STRICT_KINDS)
def test_another_kind_of_numbers_is_told_in_strict_mode_as_well_and_loaded_as_by_mlx(
    kind: str, blank: bool, strict: bool
) -> None:
    model, weights, words = STRICT_KINDS[kind]
    given = fl.eval_shape(lambda: model) if blank else model
    with pytest.warns(fl.UnmatchedWeightsWarning, match=f"another kind of numbers .*'weight' {words}") as seen:
        loaded = given.load_weights(weights, strict)
    assert [warning.filename for warning in seen] == [__file__]
    for name, array in weights.items():
        assert getattr(loaded, name) is array
    theirs = fl.to_mlx(model)
    theirs.load_weights([*weights.items()], strict=strict)
    assert fl.tree.equal(loaded.weight, theirs.weight)
    code = re.search(r"as rename=(\{.*?\})( with strict=False)? does$", str(seen[0].message))
    assert code is not None
    assert bool(code[2]) == strict
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.load_weights(weights, strict=False, rename=eval(code[1])).weight is model.weight


def test_packed_weights_are_told_of_quantize_and_many_are_counted() -> None:
    model = wide()
    small = fl.quantize(model, 32, 8)
    weights = dict(zip(fl.tree.paths(small), fl.tree.leaves(small), strict=True))
    with pytest.warns(fl.UnmatchedWeightsWarning, match=r"u32\[32,8\] for f32\[32,32\](.|\n)*fl.quantize\(model"):
        assert model.load_weights(weights, strict=False) is not model
    with pytest.warns(
        fl.UnmatchedWeightsWarning, match=r"f32\[32,32\] for u32\[32,8\](.|\n)*into the model as it was before fl"
    ):
        _ = small.load_weights(dict(zip(fl.tree.paths(model), fl.tree.leaves(model), strict=True)), False)
    many = fl.nn.Sequential(*[fl.nn.Linear(2, 2) for _ in range(50)])
    with pytest.warns(fl.UnmatchedWeightsWarning, match=r"'layers\.0\.bias' .* and 47 more"):
        _ = many.load_weights({f"layers.{index}.bias": mx.ones(3) for index in range(50)}, strict=False)


class Odd(fl.Module):
    scale: mx.array
    later: mx.array
    mask: mx.array
    ids: mx.array


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_other_floats_integers_and_arrays_of_one_are_not_told(dtype: mx.Dtype) -> None:
    odd = Odd(mx.array(1.0), mx.zeros(0), mx.zeros(2, mx.bool_), mx.zeros(2, mx.int32))
    given = {"scale": mx.ones(1, dtype), "later": mx.ones((2, 2)), "mask": mx.ones(2, mx.uint8), "ids": mx.ones(2, mx.int64)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = odd.load_weights(given, strict=False)
        _ = fl.nn.Linear(2, 2).load_weights({"weight": mx.ones((2, 2), dtype)}, strict=False)
        _ = fl.nn.Linear(2, 2).load_weights({"weight": mx.ones((2, 2), dtype), "bias": mx.ones(2)})
        kinds = [dict(zip(fl.tree.paths(each), fl.tree.leaves(each), strict=True)) for each in (odd, quantized())]
        _ = odd.load_weights({**kinds[0], "scale": mx.ones((), mx.int32)})
        _ = odd.load_weights({**kinds[0], "mask": mx.ones(2, mx.uint8), "scale": mx.ones((), dtype)})
        _ = quantized().load_weights(kinds[1])
        _ = fl.nn.Linear(2, 2).astype(mx.complex64).load_weights({"bias": mx.ones(2, mx.complex64)}, strict=False)
        _ = fl.eval_shape(lambda: odd).load_weights({"scale": mx.ones(())}, False)
        nets = fl.from_mlx(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm(2)))
        _ = nets.load_weights(dict(zip(fl.tree.paths(nets), fl.tree.leaves(nets), strict=True)), strict=False)


def test_the_names_of_one_alone_are_found_as_the_docstring_says(tmp_path: Path) -> None:
    model = fl.nn.Linear(2, 2)
    mx.savez(tmp_path / "a.npz", weight=mx.ones((2, 2)), other=mx.ones(1))
    assert mx.load(str(tmp_path / "a.npz")).keys() ^ {*fl.tree.paths(model)} == {"bias", "other"}


NAMES = {"enc.W": mx.ones((2, 2)), "bias": mx.ones(2)}


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        ({"encoder.W": "weight"}, r"rename has 'encoder.W', .*; the nearest is 'enc.W'\. A dict renames whole names"),
        ({"enc": "x", "bias": "bias"}, r"rename has 'enc', and no weight has such a name.* a function may rename a part"),
        ({1: "weight", "enc.W": "weight2"}, r"rename has 1, and"),
        ({str(number) * 200: "weight" for number in range(9)}, r"and 6 more, and no weight"),
    ],
)
def test_a_name_in_rename_that_names_nothing_is_told(rename: Any, words: str, tmp_path: Path) -> None:
    model = fl.nn.Linear(2, 2)
    mx.save_safetensors(str(tmp_path / "a.safetensors"), NAMES)
    for given in (NAMES, tmp_path / "a.safetensors"):
        with pytest.warns(fl.UnmatchedWeightsWarning, match=words) as seen:
            loaded = model.load_weights(given, strict=False, rename=rename)
        assert loaded.weight is model.weight
        assert loaded.bias.tolist() == [1, 1]
        assert [warning.filename for warning in seen] == [__file__]
        assert len(str(seen[0].message)) < 500
    fl.save(tmp_path / "b", NAMES)
    like = {"weight": mx.zeros((2, 2)), "bias": mx.zeros(2)}
    with pytest.warns(fl.UnmatchedWeightsWarning, match=words) as seen:
        read, _ = fl.load(tmp_path / "b", like, strict=False, rename=rename)
    assert read["weight"] is like["weight"]
    assert [warning.filename for warning in seen] == [__file__]
    with pytest.raises(fl.OtherStructureError, match=words):
        fl.load(tmp_path / "b", like, rename=rename)
    with fl.Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.save(1, NAMES)
        with pytest.warns(fl.UnmatchedWeightsWarning, match=words):
            _ = checkpoints.restore(like, strict=False, rename=rename)


class Tied(fl.Module):
    a: fl.nn.Linear
    b: fl.nn.Linear


@pytest.mark.parametrize("strict", [True, False])
def test_a_name_in_rename_that_names_something_is_not_told(strict: bool, tmp_path: Path) -> None:
    tied = Tied(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)).tie({"b.weight": "a.weight"})
    packed, adam = fl.optim.pack(tied), fl.optim.flatten(fl.optim.Adam(1e-3))
    fl.save(tmp_path / "tied", tied)
    fl.save(tmp_path / "all", {"m": packed, "s": adam.init(tied)})
    fl.save(tmp_path / "old", {"a": mx.ones(1), "left": mx.ones(1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = tied.load_weights(tmp_path / "tied", strict, rename={"b.weight": "b.weight", "x": None})
        _ = fl.load(tmp_path / "tied", tied, strict=strict, rename={"b.weight": "b.weight", "x": None})
        names = {"m.a.weight": "m.a.weight", "s.slots.a.bias.m": "s.slots.a.bias.m"}
        _ = fl.load(tmp_path / "all", {"m": packed, "s": adam.init(tied)}, strict=strict, rename=names)
        # What was renamed once, and saved since, is given the same call.
        like = {"a": mx.ones(1), "left": mx.ones(1), **({} if strict else {"c": mx.ones(1)})}
        _ = fl.load(tmp_path / "old", like, strict=strict, rename={"old": "a"})
        # All that is asked for was found, and each of several files has some of the names.
        _ = fl.load(tmp_path / "old", {"a": mx.ones(1), "left": mx.ones(1)}, strict=strict, rename={"old": "b"})
        _ = fl.nn.Linear(2, 2).load_weights({"weight": mx.ones((2, 2)), "bias": mx.ones(2)}, strict, rename={"w": "weight"})
