"""Trees saved and loaded: exact, or an error that says why."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from laws.strategies import identical, law, trees
from optim.stacks import PACKABLE, SINGLES, stack, trained

import frostleaf as fl
from frostleaf.io import description, safetensors
from frostleaf.io import trees as io_trees

DTYPES = list(safetensors.DTYPES.values())


def through(tree: Any, folder: Path, like: Any = None) -> Any:
    fl.save(folder / "tree.safetensors", tree)
    return fl.load(folder / "tree.safetensors", tree if like is None else like)


@law
@given(trees())
def test_what_was_saved_is_loaded_and_saves_as_the_same_file(tmp_path_factory: Any, tree: Any) -> None:
    folder = tmp_path_factory.mktemp("law")
    before = fl.tree.flatten(tree)
    loaded = through(tree, folder)
    assert fl.tree.equal(loaded, tree)
    after = fl.tree.flatten(tree)
    assert after[1] == before[1]
    assert all(new is old for new, old in zip(after[0], before[0], strict=True))
    fl.save(folder / "again", loaded)
    assert (folder / "again").read_bytes() == (folder / "tree.safetensors").read_bytes()


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 0), (2, 3), (1, 2, 2), (1,) * 8 + (2,), (2, 40_000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_come_back_bit_for_bit(dtype: mx.Dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    size = math.prod(shape)
    pattern = mx.array(np.random.default_rng(0).integers(0, 2 if dtype == mx.bool_ else 256, size * dtype.size, np.uint8))
    array = pattern.view(dtype, stream=mx.cpu).reshape(shape, stream=mx.cpu) if size else mx.zeros(shape, dtype, stream=mx.cpu)
    for like in (array, fl.ShapeDtypeStruct(shape, dtype)):
        loaded = through([array], tmp_path, [like])[0]
        assert loaded.dtype == dtype
        assert loaded.shape == shape
        assert memoryview(loaded).tobytes() == memoryview(array).tobytes()


VALUES = [
    True, False, 0, 1, -1, 10**5000, -(2**64), 0.0, -0.0, 0.1, 1e308, 5e-324, math.inf, -math.inf, math.nan, 1j,
    complex(-0.0, -0.0), complex(math.nan, -math.inf), "", "text", "ä€😀", "\ud800", "\ud83d\ude00", "\0", "a\nb", b"",
    b"\0\xff", None,
]  # fmt: skip


def bits(value: Any) -> Any:
    """Return what two values share if nothing can tell them apart; ``nan`` is one value."""
    if isinstance(value, complex):
        return bits(value.real), bits(value.imag)
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("d", value)
    return type(value), value


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_numbers_and_texts_come_back(value: Any, tmp_path: Path) -> None:
    like = [None if value is None else type(value)()]
    assert bits(through([value], tmp_path, like)[0]) == bits(value)
    assert bits(through({"a": value}, tmp_path, {"a": like[0]})["a"]) == bits(value)


W = mx.array([1.0, 2.0])


class Layer(fl.Module):
    weight: mx.array
    note: Any = None


@pytest.mark.parametrize(
    "value",
    [object(), Path("/a"), np.float32(1), mx.random.state, {1, object()}, range(3), (1 for _ in "a")],
    ids=lambda value: type(value).__name__,
)
def test_what_can_not_be_kept_is_refused(value: Any, tmp_path: Path) -> None:
    for tree, path in [({"a": [value]}, "a.0"), (value, "the root")]:
        with pytest.raises(TypeError, match=f"what stands at {path} is a [a-zA-Z0-9_.]+, which a checkpoint can't keep"):
            fl.save(tmp_path / "a", tree)
    with pytest.raises(TypeError, match="what stands at the root is a "):
        fl.save(tmp_path / "a", {value if value.__hash__ else object(): W})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("value", [np.float32(2), np.float64(2), np.int8(2), np.bool_(True)], ids=lambda v: type(v).__name__)
def test_a_number_of_numpy_is_told_to_be_one_of_python(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"what stands at best is a numpy\.\w+, .*\. Of a number of NumPy write \.item\(\)"):
        fl.save(tmp_path / "a", {"best": value})
    fl.save(tmp_path / "a", {"best": value.item()})
    assert fl.load(tmp_path / "a", {"best": type(value.item())()}) == {"best": value}


def test_an_array_of_numpy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a numpy\.ndarray of shape \(2,\) at a\.0 is no leaf .* mx\.array\(...\)"):
        fl.save(tmp_path / "a", {"a": [np.zeros(2)]})
    assert not os.listdir(tmp_path)


def test_a_placeholder_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a\.0 is a ShapeDtypeStruct, f32\[\], and has no numbers"):
        fl.save(tmp_path / "a", {"a": [fl.ShapeDtypeStruct(())]})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("tree", [{"a.b": W, "a": {"b": W}}, {1: W, "1": W}], ids=["dot", "type"])
def test_two_arrays_of_one_name_are_an_error(tree: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two arrays have the name '(a\.b|1)', so that a file can't tell them apart"):
        fl.save(tmp_path / "a", tree)


def test_odd_names_are_kept_apart_and_out_of_the_way(tmp_path: Path) -> None:
    names = [
        "a/b",
        "a%2Fb",
        "a\\b",
        "",
        ".",
        "..",
        "../a",
        "__metadata__",
        "%__metadata__",
        "\0",
        "\n",
        "\ud800",
        "\ud83d\ude00",
        "😀",
        " ",
    ]
    tree = {name: mx.array(number) for number, name in enumerate(names)}
    assert fl.tree.equal(through(tree, tmp_path), tree)
    found = mx.load(f"{tmp_path}/tree.safetensors")
    assert found.keys() >= {"a%2Fb", "a%252Fb", "%__metadata__", "%25__metadata__", "😀", " ", "%00", "%0A"}
    assert sorted(array.item() for array in found.values()) == list(range(len(names)))


def test_other_tools_find_the_arrays_under_their_paths(tmp_path: Path) -> None:
    tree = {"model": fl.nn.Sequential(fl.nn.Linear(2, 3), fl.nn.relu, fl.nn.BatchNorm(3)), "step": 3}
    fl.save(tmp_path / "a.safetensors", tree)
    found = mx.load(f"{tmp_path}/a.safetensors")
    assert sorted(found) == sorted(fl.tree.paths(tree))
    assert fl.tree.equal([found[path] for path in fl.tree.paths(tree)], fl.tree.leaves(tree))


@pytest.mark.parametrize(
    ("names", "packed"),
    [(names, packed) for names in [(), *SINGLES, PACKABLE[-1]] for packed in [False, True][: 1 + (names in PACKABLE)]],
)
def test_optimizers_go_on_as_if_nothing_had_been(names: tuple[str, ...], packed: bool, tmp_path: Path) -> None:
    model, opt = fl.nn.Sequential(fl.nn.Linear(2, 3), fl.nn.Linear(3, 1)), fl.optim.Adam(1e-2)
    if packed:
        model, opt = fl.optim.pack(model), fl.optim.flatten(opt)
    opt = stack(names, opt)
    model, state = trained(opt, model, 3)
    like = fl.eval_shape(lambda: (model, opt.init(model)))
    again = through((model, state), tmp_path, like)
    assert fl.tree.equal(again, (model, state))
    assert fl.tree.equal(trained(opt, again[0], 2, again[1]), trained(opt, model, 2, state))


def test_a_loss_scale_and_quantized_layers_come_back(tmp_path: Path) -> None:
    scale = fl.optim.DynamicLossScale()
    tree = {
        "scale": scale,
        "model": fl.quantize(fl.nn.Sequential(fl.nn.Linear(64, 64)), bits=4),
        "embedding": fl.nn.Embedding(3, 4),
    }
    like = fl.eval_shape(lambda: tree)
    assert identical_arrays(through(tree, tmp_path, like), tree)


def identical_arrays(one: Any, other: Any) -> bool:
    return fl.tree.equal(one, other) and not any(
        a is b for a, b in zip(fl.tree.leaves(one), fl.tree.leaves(other), strict=True)
    )


def test_a_tied_array_is_saved_once_and_comes_back_tied(tmp_path: Path) -> None:
    model = fl.nn.Sequential(fl.nn.Embedding(5, 3), fl.nn.Linear(3, 5, bias=False)).tie({"layers.1.weight": "layers.0.weight"})
    loaded = through(model, tmp_path, fl.eval_shape(lambda: model))
    assert list(mx.load(f"{tmp_path}/tree.safetensors")) == ["layers.0.weight"]
    assert loaded.layers[1].weight is loaded.layers[0].weight
    assert fl.tree.equal(loaded, model)


def test_like_is_not_used_or_changed(tmp_path: Path) -> None:
    tree, like = {"w": W, "n": 1, "m": Layer(W, 7)}, {"w": W + 1, "n": 2, "m": Layer(W + 1, 8)}
    before = fl.tree.flatten(like)
    assert fl.tree.equal(through(tree, tmp_path, like), tree)
    after = fl.tree.flatten(like)
    assert identical(after[0], before[0])
    assert after[1] == before[1]


def test_what_is_done_to_the_arrays_later_is_not_saved(tmp_path: Path) -> None:
    tree = {"w": mx.array([1.0, 2.0]), "v": mx.arange(4)[::2]}
    given = io_trees.take_snapshot(tree, None)
    tree["w"][0] = 7
    tree["v"] += 1
    io_trees.write_snapshot(tmp_path / "a", given)
    assert fl.tree.equal(fl.load(tmp_path / "a", tree), {"w": mx.array([1.0, 2.0]), "v": mx.array([0, 2])})


@pytest.mark.parametrize(
    "metadata", [None, {}, {"a": [1, {"b": None}], "ä": "\ud800", "c": 0.1, "d": 10**100}, {"a": -math.inf}]
)
def test_metadata_come_back_from_the_header_alone(metadata: Any, tmp_path: Path) -> None:
    fl.save(tmp_path / "a", {"w": mx.zeros(1000)}, metadata)
    assert fl.load_metadata(tmp_path / "a") == (metadata or {})
    content = bytearray((tmp_path / "a").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a").write_bytes(content)
    assert fl.load_metadata(tmp_path / "a") == (metadata or {})


@pytest.mark.parametrize("metadata", [[1], "text", {"a": W}, {(1,): 1}, {"a": {1}}], ids=repr)
def test_metadata_that_json_can_not_hold_are_refused(metadata: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata is a mapping that JSON can hold, and was given as"):
        fl.save(tmp_path / "a", W, metadata)
    assert not os.listdir(tmp_path)


def texts_of(tree: Any) -> tuple[dict[str, mx.array], dict[str, str]]:
    given = io_trees.take_snapshot(tree, None)
    return dict(given.arrays), dict(given.metadata)


TREE = {"w": W, "n": 1}


def without(key: str) -> Callable[[Any, Any], Any]:
    return lambda arrays, texts: texts.pop(key)


def with_text(key: str, text: str) -> Callable[[Any, Any], Any]:
    return lambda arrays, texts: texts.update({key: text})


# What a file with valid checksums can still have wrong.
FORGED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "no format": (without("frostleaf"), "is not a checkpoint written by fl.save"),
    "a later version": (with_text("frostleaf", "4"), "has version '4' of the format, and this version of frostleaf reads '3'"),
    "no structure": (without("frostleaf.structure"), "the header can't be read"),
    "another structure": (with_text("frostleaf.structure", "[1]"), "the header's frostleaf.structure isn't what it should be"),
    "facts of numbers": (
        with_text("frostleaf.structure", "[[1, 2, 3]]"),
        "the header's frostleaf.structure isn't what it should be",
    ),
    "an object": (with_text("frostleaf.structure", '{"a": 1}'), "the header's frostleaf.structure isn't what it should be"),
    "deep structure": (with_text("frostleaf.structure", "[" * 100_000), "the header can't be read"),
    "no values": (without("frostleaf.values"), "the header can't be read"),
    "fewer values": (with_text("frostleaf.values", "[]"), "the header describes other arrays or values"),
    "more values": (
        with_text("frostleaf.values", '[["int", "0x1"], ["int", "0x1"]]'),
        "the header describes other arrays or values",
    ),
    "values of another type": (
        with_text("frostleaf.values", '[["float", "1"]]'),
        "the header describes other arrays or values",
    ),
    "values of an unknown type": (with_text("frostleaf.values", '[["eval", "1"]]'), "the header's frostleaf.values isn't"),
    "values that are none": (with_text("frostleaf.values", '[["int", "x"]]'), "the header's frostleaf.values isn't"),
    "values that are numbers": (with_text("frostleaf.values", "[1]"), "the header's frostleaf.values isn't"),
    "values of three": (with_text("frostleaf.values", '[["int", "1", "2"]]'), "the header's frostleaf.values isn't"),
    "one number": (with_text("frostleaf.values", "7"), "the header's frostleaf.values isn't"),
    "another array": (lambda arrays, texts: arrays.update(v=W), "the header describes other arrays or values"),
    "no array": (lambda arrays, texts: arrays.clear(), "the header describes other arrays or values"),
    "an array of another dtype": (lambda arrays, texts: arrays.update(w=mx.zeros(2, mx.int32)), "the header describes other"),
    "a path": (lambda arrays, texts: arrays.update({"../w": W}), "the array name '../w' has a path separator in it"),
    "a path of another system": (
        lambda arrays, texts: arrays.update({"..\\w": W}),
        "the array name '..\\\\w' has a path separator in it",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_header_that_contradicts_itself_is_an_error(name: str, tmp_path: Path) -> None:
    change, reason = FORGED[name]
    arrays, texts = texts_of(TREE)
    change(arrays, texts)
    mx.eval(arrays)
    safetensors.write(f"{tmp_path}/a", arrays, texts)
    with pytest.raises(fl.CheckpointError) as caught:
        fl.load(tmp_path / "a", TREE)
    assert str(caught.value).startswith(f"{tmp_path}/a: {reason}")


def test_metadata_that_are_no_mapping_are_an_error(tmp_path: Path) -> None:
    arrays, texts = texts_of(TREE)
    safetensors.write(f"{tmp_path}/a", arrays, {**texts, "frostleaf.metadata": "[]"})
    with pytest.raises(fl.CheckpointError, match=r"a: the header's frostleaf\.metadata isn't what it should be"):
        fl.load_metadata(tmp_path / "a")


def test_a_file_of_weights_is_no_checkpoint(tmp_path: Path) -> None:
    fl.nn.Linear(2, 2).save_weights(tmp_path / "a.safetensors")
    with pytest.raises(fl.CheckpointError, match=r"is not a checkpoint written by fl\.save.*load_weights"):
        fl.load(tmp_path / "a.safetensors", fl.nn.Linear(2, 2))


def test_weights_are_read_from_a_checkpoint_of_a_model(tmp_path: Path) -> None:
    model = fl.nn.Linear(2, 2)
    fl.save(tmp_path / "a.safetensors", model)
    assert fl.tree.equal(fl.nn.Linear(2, 2).load_weights(tmp_path / "a.safetensors"), model)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (b"", "array 'w' is damaged: it doesn't have the checksum"),
        (b"'v', 'w'", "the header is damaged: it doesn't have the checksum"),
        (b"crc32.header", "the header has no valid checksums"),
        (b"data_offsets", "array '[vw]' is described by"),
    ],
)
def test_a_flipped_bit_is_an_error_that_says_where(place: bytes, reason: str, tmp_path: Path) -> None:
    fl.save(tmp_path / "a", {"v": W, "w": mx.zeros(2)})
    content = bytearray((tmp_path / "a").read_bytes())
    content[content.index(place) if place else -1] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(fl.CheckpointError, match=f"^{tmp_path}/a: {reason}"):
        fl.load(tmp_path / "a", {"v": W, "w": W})


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fl.save(tmp_path / "a", TREE)
    before = (tmp_path / "a").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("the disk is on fire")))
    with pytest.raises(OSError, match="on fire"):
        fl.save(tmp_path / "a", {"w": W + 1})
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("shapes", [[(1_000_000,)], [(100_000,)] * 10], ids=["one array", "ten arrays"])
def test_loading_takes_no_more_memory_than_the_arrays(shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    fl.save(tmp_path / "a", [mx.random.normal(shape) for shape in shapes])
    like = fl.eval_shape(lambda: [mx.zeros(shape) for shape in shapes])
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    loaded = fl.load(tmp_path / "a", like)
    assert mx.get_peak_memory() - before <= 1.1 * max(fl.tree.nbytes(loaded), os.path.getsize(tmp_path / "a"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_small_arrays_are_evaluated_at_once(dtype: mx.Dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [mx.ones((2, 3), dtype, stream=mx.cpu) for _ in range(50)]
    fl.save(tmp_path / "a", arrays)
    evaluated, eval_ = [], mx.eval
    monkeypatch.setattr(mx, "eval", lambda *trees: evaluated.append(len(trees)) or eval_(*trees))
    fl.load(tmp_path / "a", arrays)
    fl.save(tmp_path / "a", arrays)
    assert len(evaluated) == 2


def test_a_header_is_put_together_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, entries = [], safetensors._json_entries
    monkeypatch.setattr(safetensors, "_json_entries", lambda given: made.append(len(given)) or entries(given))
    fl.save(tmp_path / "a", TREE)
    fl.load(tmp_path / "a", TREE)
    assert len(made) == 2


def test_a_class_is_named_once_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, name_of = [], description.qualified_name
    monkeypatch.setattr(description, "qualified_name", lambda value: named.append(value) or name_of(value))
    layers = [fl.nn.Linear(2, 2) for _ in range(20)]
    fl.save(tmp_path / "a", layers)
    assert named == [fl.nn.Linear]


@pytest.mark.parametrize("damage", ["lies", "structure"])
def test_nothing_is_allocated_for_a_file_that_is_refused(damage: str, tmp_path: Path) -> None:
    arrays, texts = texts_of([mx.zeros(1_000_000)])
    safetensors.write(f"{tmp_path}/a", arrays, texts)
    content = (tmp_path / "a").read_bytes()
    if damage == "lies":
        content = content.replace(b'"shape":[1000000]', b'"shape":[9000000]')
    (tmp_path / "a").write_bytes(content)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with pytest.raises(fl.CheckpointError):
        fl.load(tmp_path / "a", [fl.ShapeDtypeStruct((9_000_000,))])
    assert mx.get_peak_memory() - before < 1000


PATHS: dict[str, Callable[[Any], Any]] = {
    "save": lambda path: fl.save(path, {"n": 1}),
    "load": lambda path: fl.load(path, {"n": 0}),
    "metadata": lambda path: fl.load_metadata(path),
    "weights": lambda path: fl.nn.Linear(2, 2).save_weights(path),
    "checkpoints": lambda path: fl.Checkpointer(path),
}


@pytest.mark.parametrize("empty", ["", b""])
@pytest.mark.parametrize("name", PATHS)
def test_an_empty_path_is_an_error(name: str, empty: Any) -> None:
    with pytest.raises(ValueError, match="takes a path first, and was given an empty one"):
        PATHS[name](empty)


def test_a_path_may_be_bytes(tmp_path: Path) -> None:
    path, tree = os.fsencode(tmp_path / "ä.safetensors"), {"w": mx.ones(2), "n": 1}
    fl.save(path, tree, {"a": 1})
    assert fl.tree.equal(fl.load(path, {"w": mx.zeros(2), "n": 0}), tree)
    assert fl.load_metadata(path) == {"a": 1}
    with pytest.raises(fl.CheckpointError, match=re.escape(f"{tmp_path / 'ä.safetensors'}: ")):
        fl.load(path, {"v": mx.ones(2)})
    folder = os.fsencode(tmp_path / "ö")
    with fl.Checkpointer(folder) as checkpoints:
        checkpoints.save(1, tree)
        checkpoints.save(2, tree)
    assert fl.tree.equal(fl.Checkpointer(folder).restore({"w": mx.zeros(2), "n": 0}), (2, tree))
    assert len(fl.Checkpointer(folder).info()) == 2


def test_loading_without_a_tree_asks_for_one(tmp_path: Path) -> None:
    file = str(tmp_path / "a.safetensors")
    fl.save(file, {"w": mx.ones(2)})
    with pytest.raises(TypeError, match=r"takes as like a tree .* Without one, mx\.load\(file\) reads the arrays"):
        fl.load(file)  # type: ignore[call-overload]
    assert mx.array_equal(mx.load(file)["w"], mx.ones(2))
