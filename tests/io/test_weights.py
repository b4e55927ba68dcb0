"""Weights by name in files and lists, against mlx.nn.Module."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from twins import MODELS, Bag, Norm, Stack, Twin, linear, outcome, same, subject

import frostleaf as fl
from frostleaf.edits import updating
from frostleaf.io import parts

FORMATS = ["npz", "safetensors"]
PLACES = ["weights.npz", "weights.safetensors", "weights.gguf", "weights/"]
STRICT = [True, False]
DTYPES = [
    mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64, mx.float16, mx.bfloat16,
    mx.float32, mx.float64, mx.complex64,
]  # fmt: skip


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return subject(request.param)


def pairs(model: Any) -> list[tuple[str, Any]]:
    return list(tree_flatten(model.parameters()))


def agree(ours: Any, theirs: Any, call: Callable[[Any], Any]) -> Any:
    before = fl.tree.flatten(ours)
    one, other = outcome(call, ours), outcome(call, theirs)
    assert one[0] == other[0], (one, other)
    if one[0] == "raised":
        assert one[1] is other[1], (one, other)
    else:
        assert same(one[1], theirs)
    after = fl.tree.flatten(ours)
    assert after[1] == before[1]
    assert all(new is old for new, old in zip(after[0], before[0], strict=True))
    return one[1]


CHANGES: dict[str, Callable[[list[tuple[str, Any]]], Any]] = {
    "the same": lambda weights: weights,
    "other numbers": lambda weights: [(name, array + 1) for name, array in weights],
    "in another order": lambda weights: [(name, array + 1) for name, array in reversed(weights)],
    "other dtypes": lambda weights: [(name, array.astype(mx.float16)) for name, array in weights],
    "one extra": lambda weights: [*weights, ("extra.weight", mx.zeros(1))],
    "one of a field that is there": lambda weights: [*weights, ("weight.more", mx.zeros(1))][-1:],
    "one missing": lambda weights: weights[1:],
    "one missing and one extra": lambda weights: [*weights[1:], ("extra", mx.zeros(1))],
    "wrong shapes": lambda weights: [(name, array[None]) for name, array in weights],
    "numbers": lambda weights: [(name, 1.0) for name, array in weights],
    "none at all": lambda weights: [],
    "past the end of a list": lambda weights: [*weights, ("layers.7.weight", mx.zeros(1)), ("ws.9", mx.zeros(1))],
    "as a tuple": lambda weights: tuple(weights),
}


@pytest.mark.parametrize("change", CHANGES)
def test_strict_loading_does_what_mlx_does(change: str) -> None:
    for name in MODELS:
        ours, theirs = subject(name)
        weights = CHANGES[change](pairs(theirs))
        agree(ours, theirs, lambda m, weights=weights: m.load_weights(weights))


@pytest.mark.filterwarnings("ignore::frostleaf.UnmatchedWeightsWarning")
@pytest.mark.parametrize("change", [change for change in CHANGES if change not in ("numbers", "one of a field that is there")])
def test_loading_that_is_not_strict_does_what_mlx_does(change: str) -> None:
    for name in MODELS:
        ours, theirs = subject(name)
        weights = CHANGES[change](pairs(theirs))
        # MLX puts {} in place of the arrays that come before one that is named in a list: nothing to imitate.
        if all(name in dict(weights) for name, _ in pairs(theirs) if name.split(".")[0] in ("ws", "table")):
            agree(ours, theirs, lambda m, weights=weights: m.load_weights(weights, strict=False))


@pytest.mark.parametrize("name", ["ws.0", "ws.1", "ws.2", "table.a.1", "table.b"])
def test_loading_one_array_of_a_container_leaves_the_others_as_they_are(name: str) -> None:
    bag = Bag([mx.ones(1), mx.ones(2), mx.ones(3)], {"a": [mx.ones(1), mx.ones(2)], "b": mx.ones(3)})
    new = mx.zeros(5)
    with pytest.warns(fl.UnmatchedWeightsWarning, match=re.escape(f"{name!r} f32[5] for f32[")):
        after = bag.load_weights([(name, new)], strict=False)
    assert after.at(name).get() is new
    for path, leaf in zip(fl.tree.paths(bag), fl.tree.leaves(bag), strict=True):
        assert path == name or after.at(path).get() is leaf


@pytest.mark.parametrize("strict", STRICT)
@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_that_mlx_wrote_can_be_loaded(model: tuple[Any, Any], ending: str, strict: bool, tmp_path: Path) -> None:
    ours, theirs = model
    theirs.update(theirs.filter_and_map(theirs.valid_parameter_filter, lambda array: array + 3))
    theirs.save_weights(str(tmp_path / f"weights.{ending}"))
    after = ours.load_weights(str(tmp_path / f"weights.{ending}"), strict=strict)
    assert same(after.parameters(), theirs.parameters())
    assert fl.tree.structure(after) == fl.tree.structure(ours)


@pytest.mark.parametrize("ending", FORMATS)
def test_mlx_can_load_a_file_that_was_written(model: tuple[Any, Any], ending: str, tmp_path: Path) -> None:
    ours, theirs = model
    saved = ours.apply(lambda array: array + 3)
    saved.save_weights(tmp_path / f"weights.{ending}")
    theirs.load_weights(str(tmp_path / f"weights.{ending}"))
    assert same(saved.parameters(), theirs.parameters())


@pytest.mark.parametrize("place", PLACES)
def test_what_was_saved_is_loaded(model: tuple[Any, Any], place: str, tmp_path: Path) -> None:
    ours, _ = model
    saved = ours.apply(lambda array: array + 3)
    assert saved.save_weights(f"{tmp_path}/{place}") is None
    after = ours.load_weights(f"{tmp_path}/{place}")
    assert fl.tree.equal(after.parameters(), saved.parameters())
    assert fl.tree.structure(after) == fl.tree.structure(ours)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_may_be_a_string_or_a_path(kind: Any, tmp_path: Path) -> None:
    linear(1).save_weights(kind(tmp_path / "weights.npz"))
    assert fl.tree.equal(linear(2).load_weights(kind(tmp_path / "weights.npz")), linear(1))


NOT_HELD = {
    "weights.npz": set(),
    "weights.safetensors": {mx.float64},
    "weights/": {mx.float64},
    "weights.gguf": set(DTYPES) - {mx.float16, mx.float32, mx.int8, mx.int16, mx.int32},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_dtype_is_loaded_as_it_was_saved_or_saving_raises(dtype: mx.Dtype, place: str, tmp_path: Path) -> None:
    shapes = [(), (1,), (3,), (0,), (2, 0), (2, 3)]
    with mx.stream(mx.cpu):
        arrays = [mx.arange(int(mx.ones(shape).size)).reshape(shape).astype(dtype) for shape in shapes]
        saved = Bag([*arrays, arrays[-1].T, mx.broadcast_to(arrays[1], (2, 2)), mx.arange(6).astype(dtype)[::2]])
        if dtype in NOT_HELD[place]:
            with pytest.raises(ValueError, match=rf"{place}.*can't hold 'ws\.0', which is {dtype}"):
                saved.save_weights(f"{tmp_path}/{place}")
            assert os.listdir(tmp_path) == []
            return
        saved.save_weights(f"{tmp_path}/{place}")
        loaded = fl.eval_shape(lambda: saved).load_weights(f"{tmp_path}/{place}")
        assert fl.tree.equal(loaded, saved)
        assert [(array.dtype, array.shape) for array in loaded.ws] == [(array.dtype, array.shape) for array in saved.ws]


@pytest.mark.parametrize("values", [[float("nan"), float("inf"), -0.0], [1e-45, 3.4e38, -1e-30]], ids=["special", "extreme"])
@pytest.mark.parametrize("place", PLACES)
def test_numbers_are_kept_bit_for_bit(values: list[float], place: str, tmp_path: Path) -> None:
    bag = Bag([mx.array(values)])
    bag.save_weights(f"{tmp_path}/{place}")
    loaded = Bag([mx.zeros(3)]).load_weights(f"{tmp_path}/{place}")
    assert loaded.ws[0].view(mx.uint32).tolist() == bag.ws[0].view(mx.uint32).tolist()


ODD_KEYS = ["0", "01", "a.b", "weight", "", "a b", "ä", "../x", "a\\b", 'q"\n\t', "x.npy", "é" * 300, 5, 7]


@pytest.mark.parametrize("place", PLACES)
def test_whatever_the_keys_of_a_dict_are_what_was_saved_is_loaded(place: str, tmp_path: Path) -> None:
    saved = Bag([], {key: mx.full(2, float(number)) for number, key in enumerate(ODD_KEYS)})
    saved.save_weights(f"{tmp_path}/{place}")
    blank = fl.tree.map(mx.zeros_like, saved)
    assert fl.tree.equal(blank.load_weights(f"{tmp_path}/{place}"), saved)


class File(fl.Module):
    """A module with field names that mean something to mx.savez, or to a format."""

    file: mx.array
    args: mx.array


@pytest.mark.parametrize("place", PLACES)
def test_fields_may_have_the_names_of_arguments(place: str, tmp_path: Path) -> None:
    saved = File(mx.ones(2), mx.zeros(3))
    saved.save_weights(f"{tmp_path}/{place}")
    assert fl.tree.equal(fl.eval_shape(lambda: saved).load_weights(f"{tmp_path}/{place}"), saved)


@pytest.mark.parametrize(
    ("place", "key"),
    [("weights.npz", "a\0b"), ("weights.npz", "x" * 2**16), *((place, "\ud800") for place in PLACES)],
    ids=lambda value: ascii(value)[:20],
)
def test_a_name_that_a_file_can_not_hold_is_an_error(place: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"can't save to .*{place}.*under the name 'table\."):
        Bag([], {key: mx.ones(2)}).save_weights(f"{tmp_path}/{place}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keys", [["0", "1"], ["1", "0"], [0, 1], [1, 0], [3], ["a.b", "a.c"]], ids=str)
def test_a_dict_of_numbered_layers_is_loaded_from_pairs(keys: list[Any]) -> None:
    model = Stack({key: linear(number) for number, key in enumerate(keys)})
    new = Stack({key: linear(number + 10) for number, key in enumerate(keys)})
    after = model.load_weights(list(zip(fl.tree.paths(new), fl.tree.leaves(new), strict=True)))
    assert fl.tree.equal(after, new)


def test_what_is_loaded_is_the_array_itself() -> None:
    new = mx.ones((2, 2))
    model = linear()
    after = model.load_weights([("weight", new)], strict=False)
    assert after.weight is new
    assert after.bias is model.bias


def test_a_dict_can_be_loaded() -> None:
    new = linear(4)
    assert fl.tree.equal(linear().load_weights(dict(pairs(new))), new)
    assert fl.tree.equal(linear().load_weights(dict(pairs(new)).items()), new)
    with pytest.warns(fl.UnmatchedWeightsWarning, match="there are no weights"):
        assert linear().load_weights({}, strict=False).weight.shape == (2, 2)


def test_of_two_arrays_under_one_name_the_later_is_loaded() -> None:
    # MLX recurses without end.
    weights = [("weight", mx.zeros((2, 2))), ("bias", mx.zeros(2)), ("weight", mx.ones((2, 2)))]
    assert linear().load_weights(weights).weight.tolist() == [[1, 1], [1, 1]]


def test_modes_and_frozen_fields_are_not_loaded() -> None:
    model = Stack([linear()]).eval().freeze()
    assert fl.tree.structure(model.load_weights(pairs(Stack([linear(2)])))) == fl.tree.structure(model)


def test_buffers_are_saved_and_recomputed_arrays_are_not(tmp_path: Path) -> None:
    norm = Norm(mx.ones(2))
    norm.save_weights(tmp_path / "weights.npz")
    assert set(mx.load(str(tmp_path / "weights.npz"))) == {"weight", "running_mean"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([("wieght", mx.zeros(1))], "Received 1 parameters not in model: \nwieght; the nearest is 'weight'."),
        ([("weight", mx.zeros((2, 2)))], "Missing 1 parameters: \nbias."),
        ([("x", 1), ("a", 1)], "Received 2 parameters not in model: \na,\nx."),
        ([], "Missing 2 parameters: \nbias,\nweight."),
        (
            [("weight", mx.zeros((2, 2))), ("bias", mx.zeros(3))],
            "Expected shape (2,) but received shape (3,) for parameter bias",
        ),
        (
            [("weight", 3), ("bias", mx.zeros(2))],
            "Expected mx.array but received <class 'int'> for parameter weight: give mx.array(...)",
        ),
    ],
    ids=str,
)
def test_the_errors_say_what_does_not_fit(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match="parameter") as caught:
        linear().load_weights(weights)
    assert str(caught.value) == message


@pytest.mark.parametrize("file", ["weights.txt", "v1.5", "weights.npz.bak", ".safetensor"])
def test_an_unknown_ending_is_an_error_that_names_the_known_ones(file: str, tmp_path: Path) -> None:
    for call in (linear().save_weights, linear().load_weights):
        with pytest.raises(ValueError, match="Unsupported file extension for"):
            call(tmp_path / file)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", [*PLACES, "model.safetensors.index.json"])
def test_a_file_that_is_not_there_is_an_error_that_names_it(place: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=place):
        linear().load_weights(f"{tmp_path}/{place}")


@pytest.mark.parametrize("strict", STRICT)
@pytest.mark.parametrize(
    ("weights", "given"), [([(1, mx.zeros(2))], "1"), ({None: mx.zeros(2)}, "None")], ids=["pairs", "dict"]
)
def test_a_name_that_is_no_string_is_an_error(weights: Any, given: str, strict: bool) -> None:
    with pytest.raises(
        TypeError, match=f"the weights have a name that isn't a string but {given}: give pairs of a dotted name"
    ):
        linear().load_weights(weights, strict)


@pytest.mark.parametrize("ending", FORMATS)
def test_saving_replaces_the_file_and_leaves_nothing_beside_it(ending: str, tmp_path: Path) -> None:
    for start in (1, 2):
        linear(start).save_weights(tmp_path / f"weights.{ending}")
    assert os.listdir(tmp_path) == [f"weights.{ending}"]
    assert fl.tree.equal(linear(0).load_weights(tmp_path / f"weights.{ending}"), linear(2))


@pytest.mark.parametrize("ending", [*FORMATS, "gguf"])
def test_when_saving_fails_the_old_file_is_whole_and_nothing_is_left_beside_it(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"weights.{ending}"
    linear(1).save_weights(file)
    before = file.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        linear(2).save_weights(file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize("ending", [*FORMATS, "gguf"])
def test_a_model_can_be_saved_over_the_file_it_was_loaded_from(ending: str, tmp_path: Path) -> None:
    # Arrays are loaded lazily, so the file is still to be read when it is written.
    file = tmp_path / f"weights.{ending}"
    linear(1).save_weights(file)
    loaded = linear(0).load_weights(file)
    loaded.save_weights(file)
    assert fl.tree.equal(linear(0).load_weights(file), linear(1))
    assert fl.tree.equal(loaded, linear(1))


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        linear().save_weights(tmp_path / "nope" / "weights.npz")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_can_be_saved_in_the_current_folder(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    linear(1).save_weights(f"weights.{ending}")
    assert fl.tree.equal(linear(2).load_weights(f"weights.{ending}"), linear(1))
    assert os.listdir(tmp_path) == [f"weights.{ending}"]


def test_a_model_without_parameters_can_be_saved_as_mlx_saves_it(tmp_path: Path) -> None:
    empty = Bag([])
    for ending in FORMATS:
        one = outcome(empty.save_weights, tmp_path / f"ours.{ending}")
        other = outcome(Twin(empty).save_weights, str(tmp_path / f"theirs.{ending}"))
        assert one == other
        if one[0] == "returned":
            assert empty.load_weights(tmp_path / f"ours.{ending}") is empty


@pytest.mark.parametrize("ending", FORMATS)
def test_a_link_to_a_file_without_an_ending_is_written_through(ending: str, tmp_path: Path) -> None:
    (tmp_path / "blob").touch()
    (tmp_path / f"weights.{ending}").symlink_to("blob")
    linear(1).save_weights(tmp_path / f"weights.{ending}")
    assert (tmp_path / f"weights.{ending}").is_symlink()
    assert fl.tree.equal(linear().load_weights(tmp_path / f"weights.{ending}"), linear(1))


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_can_not_be_written_is_an_error_and_leaves_the_old_one(place: str, tmp_path: Path) -> None:
    linear(1).save_weights(f"{tmp_path}/{place}")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            Bag([mx.zeros(1000)]).save_weights(f"{tmp_path}/{place}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert fl.tree.equal(linear().load_weights(f"{tmp_path}/{place}"), linear(1))


def quantized(number: int) -> Any:
    return fl.quantize(fl.nn.Sequential(fl.nn.Linear(64, 32, key=mx.random.key(number)), fl.nn.relu))


@pytest.mark.parametrize("ending", FORMATS)
def test_quantized_models_go_both_ways_between_mlx_and_here(ending: str, tmp_path: Path) -> None:
    theirs = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
    nn.quantize(theirs)
    theirs.save_weights(str(tmp_path / f"theirs.{ending}"))
    loaded = quantized(0).load_weights(tmp_path / f"theirs.{ending}")
    assert mx.array_equal(loaded(mx.ones(64)), theirs(mx.ones(64)))
    quantized(1).save_weights(tmp_path / f"ours.{ending}")
    theirs.load_weights(str(tmp_path / f"ours.{ending}"))
    assert mx.array_equal(quantized(1)(mx.ones(64)), theirs(mx.ones(64)))


# Foreign names

FOREIGN = [("model.w", mx.ones((2, 2))), ("model.b", mx.ones(2))]
RENAMES: dict[str, Any] = {
    "a mapping": {"model.w": "weight", "model.b": "bias"},
    "a function": lambda name: {"w": "weight", "b": "bias"}[name.removeprefix("model.")],
    "what is left out": {"model.w": "weight", "model.b": "bias", "not there": "other", "model.x": None},
}


@pytest.mark.parametrize("rename", RENAMES)
def test_foreign_names_are_renamed(rename: str, tmp_path: Path) -> None:
    assert fl.tree.equal(linear().load_weights(FOREIGN, rename=RENAMES[rename]), linear().apply(mx.ones_like))
    mx.save_safetensors(str(tmp_path / "foreign.safetensors"), dict(FOREIGN))
    loaded = linear().load_weights(tmp_path / "foreign.safetensors", rename=RENAMES[rename])
    assert fl.tree.equal(loaded, linear().apply(mx.ones_like))


def test_names_that_are_not_in_the_mapping_stay_and_none_leaves_out() -> None:
    weights = [("weight", mx.ones((2, 2))), ("b", mx.ones(2)), ("rotary", mx.ones(1))]
    loaded = linear().load_weights(weights, rename={"b": "bias", "rotary": None})
    assert fl.tree.equal(loaded, linear().apply(mx.ones_like))
    model = linear()
    assert model.load_weights(weights, strict=False, rename=lambda name: None) is model


@pytest.mark.parametrize(
    ("rename", "kind", "message"),
    [
        (3, TypeError, "rename is a function of a name, or a mapping of names, and was given as a int"),
        (lambda name: 3, TypeError, "rename gave 3 for 'model.w', where a string or None is needed"),
        (lambda name: "weight", ValueError, "rename gives 'weight' for 'model.w' and for 'model.b'"),
        ({"model.w": "model.b"}, ValueError, "rename gives 'model.b' for 'model.w' and for 'model.b'"),
        (
            {"model.w": "weight", "model.b": "bais"},
            ValueError,
            "Received 1 parameters not in model: \nbais (given as 'model.b'); the nearest is 'bias'.",
        ),
        ({"model.w": "weight", "model.b": None}, ValueError, "Missing 1 parameters: \nbias."),
    ],
)
def test_what_is_wrong_with_renaming_is_said(rename: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        linear().load_weights(FOREIGN, rename=rename)
    assert str(caught.value) == message


def layers(*names: str) -> Any:
    return fl.nn.Sequential(*(fl.nn.Linear(2, 2) for _ in names))


FULL = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
CUT = "They begin with 'model.': give rename=lambda name: name.removeprefix('model.')."
CUT_OTHERS = (
    "They begin with 'model.': give rename=lambda name: name.removeprefix('model.') if name.startswith('model.') else None."
)
ADD = "The model's begin with 'layers.': give rename=lambda name: 'layers.' + name."
UNUSED = "rename has {}, and no weight has such a name. A dict renames whole names, and a function may rename a part of each."


@pytest.mark.parametrize(
    ("names", "rename", "advice"),
    [
        ([f"model.{name}" for name in FULL], None, CUT),
        ([*(f"model.{name}" for name in FULL), "lm_head.weight"], None, CUT_OTHERS),
        ([f"model.{name}" for name in FULL[:2]] + FULL[2:], None, CUT),
        ([name.removeprefix("layers.") for name in FULL], None, ADD),
        ([f"model.{name}" for name in FULL], {"model.": ""}, UNUSED.format("'model.'")),
        (FULL[1:], {"model.x": "layers.0.weight", "a": None}, UNUSED.format("'model.x'")),
        ([f"model.{name}" for name in FULL[1:]], None, None),
        ([f"model.{name}" for name in FULL], lambda name: name, None),
        (FULL[1:], None, None),
        ([*FULL, "model.x"], None, None),
    ],
)  # fmt: skip
def test_names_that_differ_by_a_prefix_say_how_to_rename_them(names: list[str], rename: Any, advice: str | None) -> None:
    weights = [(name, mx.ones((2, 2) if "weight" in name else 2)) for name in names]
    with pytest.raises(ValueError, match=r"Received|Missing") as caught:
        layers("a", "b").load_weights(weights, rename=rename)
    last = str(caught.value).splitlines()[-1]
    assert last == advice if advice else "rename" not in str(caught.value)
    if advice and "lambda" in advice:
        written = eval(advice.partition("rename=")[2].rstrip("."))
        assert layers("a", "b").load_weights(weights, rename=written).layers[1].bias.tolist() == [1, 1]


# Endings and limits


def test_a_limit_and_the_name_of_one_file_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is the name of one file, and max_shard_bytes asks for a directory"):
        linear().save_weights(tmp_path / "weights.npz", max_shard_bytes=100)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("strict", STRICT)
@pytest.mark.parametrize("value", [np.ones(2, np.float32), [1.0, 2.0], 3, None, "text", fl.ShapeDtypeStruct((2,))], ids=repr)
def test_what_is_no_array_is_not_loaded(value: Any, strict: bool) -> None:
    with pytest.raises(ValueError, match=r"Expected mx.array but received .* for parameter bias: give mx.array"):
        linear().load_weights([("weight", mx.ones((2, 2))), ("bias", value)], strict=strict)


class Pair:
    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


fl.register_pytree_node(Pair, lambda pair: ([pair.a, pair.b], None, ["a", "b"]), lambda _, children: Pair(*children))


@pytest.mark.parametrize("place", PLACES)
def test_what_is_in_registered_nodes_is_saved_and_loaded(place: str, tmp_path: Path) -> None:
    def make(number: float) -> Any:
        return Bag([Pair(mx.array([number]), {"k": Pair(linear(), mx.array([number]))}), mx.array([number])])

    model, other = make(1.0), make(2.0)
    model.save_weights(f"{tmp_path}/{place}")
    loaded = other.load_weights(f"{tmp_path}/{place}")
    assert fl.tree.equal(loaded, model)
    named = dict(pairs(model))
    assert set(named) == set(fl.optim.SGD(0.1, 0.9).init(model).slots)
    with pytest.raises(ValueError, match=r"Missing 1 parameters: \nws.0.a."):
        other.load_weights([(name, array) for name, array in named.items() if name != "ws.0.a"])


class Tied(fl.Module):
    emb: fl.nn.Embedding
    head: fl.nn.Linear


def test_a_name_that_is_tied_says_to_what_and_how_to_leave_it_out() -> None:
    tied = Tied(fl.nn.Embedding(3, 2), fl.nn.Linear(2, 3, bias=False)).tie({"head.weight": "emb.weight"})
    weights = {"emb.weight": mx.ones((3, 2)), "head.weight": mx.zeros((3, 2))}
    said = "head.weight, which is tied to 'emb.weight', whose array is used: rename={{{!r}: None}} leaves it out"
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        tied.load_weights(weights)
    assert str(raised.value) == f"Received 1 parameters not in model: \n{said.format('head.weight')}."
    renamed = {"emb.weight": weights["emb.weight"], "out": mx.zeros((3, 2))}
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        tied.load_weights(renamed, rename={"out": "head.weight"})
    assert said.format("out") in str(raised.value)
    assert tied.load_weights(weights, rename={"head.weight": None}).head.weight is weights["emb.weight"]
    both = {"in": weights["emb.weight"], "out": mx.zeros((3, 2))}
    with pytest.raises(ValueError, match="leaves it out") as raised:
        tied.load_weights(both, rename={"in": "emb.weight", "out": "head.weight"})
    code = str(raised.value).partition("whose array is used: rename=")[2].removesuffix(" leaves it out.")
    assert tied.load_weights(both, rename=eval(code)).head.weight is both["in"]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("weights", "given"), [([("a",)], "a tuple"), (("bias", 1), "'bias'"), (["ab"], "'ab'"), ([None], "None")]
)
def test_what_is_no_pair_is_an_error(weights: Any, given: str, strict: bool) -> None:
    with pytest.raises(TypeError, match="where a pair is needed: give pairs of a dotted name and an array") as raised:
        fl.nn.Linear(1, 1).load_weights(weights, strict)
    assert given == "a tuple" or str(raised.value).startswith(f"the weights have {given} ")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.save_weights(None), "save_weights(file) takes a path first, and was given None for it"),
        (lambda model: fl.save(None, model), "fl.save(path, tree) takes a path first, and was given None for it"),
        (lambda model: fl.save(model, "f"), "fl.save(path, tree) takes a path first, and was given Linear(...) for it"),
        (lambda model: fl.save(1, model), "fl.save(path, tree) takes a path first, and was given 1 for it"),
        (lambda model: fl.load(model, "f"), "fl.load(path, like) takes a path first, and was given Linear(...) for it"),
        (lambda model: fl.load_metadata(None), "fl.load_metadata(path) takes a path first, and was given None for it"),
        (lambda model: fl.Checkpointer(None), "fl.Checkpointer(directory) takes a path first, and was given None for it"),
    ],
)
def test_what_is_no_path_is_an_error(call: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        call(fl.nn.Linear(1, 1))
    assert str(raised.value) == message


class Hidden(fl.Module):
    _w: mx.array


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("order", [1, -1])
def test_of_two_arrays_of_one_name_the_one_that_is_not_private_is_saved(place: str, order: int, tmp_path: Path) -> None:
    model = Bag([], dict([("a._w", mx.ones(2)), ("a", Hidden(mx.zeros(2)))][::order]))
    model.save_weights(f"{tmp_path}/{place}")
    blank = fl.tree.map(mx.zeros_like, model)
    assert blank.load_weights(f"{tmp_path}/{place}").table["a._w"].tolist() == [1, 1]


@pytest.mark.parametrize("strict", [True, False])
def test_a_model_of_numpy_arrays_has_no_weights(strict: bool, tmp_path: Path) -> None:
    model = fl.tree.map(np.array, fl.nn.Linear(2, 3))
    said = r"^a numpy\.ndarray of shape \(3, 2\) at weight is no leaf of a tree"
    with pytest.raises(TypeError, match=said):
        model.save_weights(f"{tmp_path}/a.npz")
    with pytest.raises(TypeError, match=said):
        model.load_weights([], strict)
    assert not os.listdir(tmp_path)


def test_names_are_worked_out_once_a_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, flags = [], updating.leaf_flags
    monkeypatch.setattr(updating, "leaf_flags", lambda structure, flag: looked.append(structure) or flags(structure, flag))
    model = Bag([mx.ones(2)], {"b": mx.zeros(3), "a": fl.nn.BatchNorm(2)})
    for number in range(3):
        model.save_weights(f"{tmp_path}/{number}.npz")
        assert fl.tree.equal(model.load_weights(f"{tmp_path}/{number}.npz"), model)
        model = fl.tree.map(lambda array: array + 1, model)
    assert len(looked) == 1
    other = Bag([mx.ones(2), mx.ones(1)], {"b": mx.zeros(3), "a": fl.nn.BatchNorm(2)})
    other.save_weights(f"{tmp_path}/a.npz")
    assert sorted(mx.load(f"{tmp_path}/a.npz")) == sorted(name for name, _ in tree_flatten(other.parameters()))


def test_a_header_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, header = [], parts.read_header
    monkeypatch.setattr(parts, "read_header", lambda file: read.append(file) or header(file))
    model = fl.nn.Linear(2, 3)
    model.save_weights(tmp_path / "a.safetensors")
    assert fl.tree.equal(model.load_weights(tmp_path / "a.safetensors"), model)
    assert len(read) == 1


class Words(fl.Module):
    words: Any
    inner: Any
    head: Any


@pytest.mark.parametrize(
    ("left_out", "is_said"), [("head.weight", True), ("words.weight", True), ("inner.weight", False), ("head.bias", False)]
)
def test_a_matrix_that_a_file_has_once_is_told_of_ties(left_out: str, is_said: bool) -> None:
    model = Words(fl.nn.Embedding(5, 3), fl.nn.Linear(3, 3), fl.nn.Linear(3, 5))
    weights = dict(zip(fl.tree.paths(model), fl.tree.leaves(model), strict=True))
    del weights[left_out]
    with pytest.raises(ValueError, match="Missing 1 parameters") as caught:
        model.load_weights(weights)
    assert ("model = model.tie(" in str(caught.value)) == is_said
    if is_said:
        ties = {left_out: ({"head.weight", "words.weight"} - {left_out}).pop()}
        assert str(ties) in str(caught.value)
        model.tie(ties).load_weights(weights)


@pytest.mark.parametrize("place", PLACES)
def test_what_was_loaded_stays_when_other_weights_are_saved_in_its_place(place: str, tmp_path: Path) -> None:
    file = f"{tmp_path}/{place}"
    old, new = linear(), linear(5)
    old.save_weights(file)
    loaded = linear(1).load_weights(file)
    new.save_weights(file)
    assert fl.tree.equal(loaded, old)
    loaded = linear(1).load_weights(file)
    doubled = loaded.apply(lambda array: array * 2)
    doubled.save_weights(file)
    assert fl.tree.equal(linear(1).load_weights(file), new.apply(lambda array: array * 2))
    assert fl.tree.equal(loaded, new)
    if place.endswith(".safetensors"):
        loaded = linear(1).load_weights(file)
        fl.save(file, old)
        assert fl.tree.equal(loaded, doubled)
