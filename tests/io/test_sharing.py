"""Files that share as trees do: what is one object is stored once and comes back as one; equal bytes are stored once."""

from __future__ import annotations

import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws.strategies import law, trees
from safetensors import SafetensorError
from safetensors.numpy import load_file

import frostleaf as fl
from frostleaf.io import safetensors
from frostleaf.io import trees as io_trees

LARGE = (16, 32)  # of 2 KiB: small arrays that are equal are stored each


def through(tree: Any, folder: Path, like: Any = None) -> Any:
    fl.save(folder / "tree.safetensors", tree)
    return fl.load(folder / "tree.safetensors", fl.eval_shape(lambda: tree) if like is None else like)


def pattern(tree: Any) -> list[int]:
    """Return for each leaf the number of the first that is the same object."""
    leaves = fl.tree.leaves(tree)
    return [next(number for number, other in enumerate(leaves) if other is leaf) for leaf in leaves]


def names_in(file: Path) -> list[str]:
    return sorted(mx.load(str(file), format="safetensors"))


@law
@given(trees(), st.data())
def test_a_tree_shares_as_it_did(tmp_path_factory: Any, tree: Any, data: st.DataObject) -> None:
    leaves, structure = fl.tree.flatten(tree)
    pool = [*leaves, mx.zeros(LARGE), mx.zeros(LARGE), mx.zeros(LARGE, mx.int32)]
    places = st.lists(st.integers(0, len(pool) - 1), min_size=len(leaves), max_size=len(leaves))
    tree = fl.tree.unflatten(structure, [pool[number] for number in data.draw(places)])
    loaded = through(tree, tmp_path_factory.mktemp("law"), tree)
    assert fl.tree.equal(loaded, tree)
    assert pattern(loaded) == pattern(tree)


def test_variants_of_a_model_take_the_bytes_of_one(tmp_path: Path) -> None:
    model = fl.nn.Sequential(*[fl.nn.Linear(256, 256) for _ in range(4)])
    variants = {"base": model, "frozen": model.freeze(), "other": model.at("layers.0.bias").set(mx.ones(256))}
    loaded = through(variants, tmp_path)
    assert fl.tree.nbytes(model) == 1_052_672
    assert os.path.getsize(tmp_path / "tree.safetensors") < 1_052_672 + 1024 + 5000
    assert fl.tree.equal(loaded, variants)
    assert pattern(loaded) == pattern(variants)


def test_what_like_shares_makes_no_difference(tmp_path: Path) -> None:
    one, other = mx.ones(LARGE), mx.ones(LARGE)
    assert pattern(through([one, one, other], tmp_path, [one, other, other])) == [0, 0, 2]
    assert pattern(through([one, other, other], tmp_path, [one, one, one])) == [0, 1, 1]


def test_equal_arrays_are_stored_once_and_are_two(tmp_path: Path) -> None:
    tree = {"a": mx.ones(LARGE), "b": mx.ones(LARGE), "c": mx.ones(LARGE).reshape(-1), "d": mx.ones(LARGE, mx.int32)}
    tree["e"] = tree["b"]
    loaded = through(tree, tmp_path)
    assert fl.tree.equal(loaded, tree)
    assert pattern(loaded) == pattern(tree) == [0, 1, 2, 3, 1]
    assert names_in(tmp_path / "tree.safetensors") == ["a", "c", "d"]
    np.asarray(loaded["a"])[0, 0] = 7  # its own memory
    loaded["e"][0, 1] = 8  # the very same object
    assert loaded["a"][0, 0] == 7
    assert loaded["b"][0, 0] == 1
    assert loaded["b"][0, 1] == 8


@pytest.mark.parametrize("one", [mx.arange(600).reshape(20, 30), mx.arange(600).reshape(30, 20).T], ids=["rows", "columns"])
def test_layouts_make_no_difference(one: mx.array, tmp_path: Path) -> None:
    tree = [one, mx.contiguous(one), mx.concatenate([one, one])[20:]]
    assert fl.tree.equal(through(tree, tmp_path), tree)
    assert names_in(tmp_path / "tree.safetensors") == ["0"]


def test_small_arrays_keep_their_names(tmp_path: Path) -> None:
    tree = [mx.zeros(2), mx.zeros(2), mx.zeros(0), mx.zeros(0)]
    assert pattern(through(tree, tmp_path)) == [0, 1, 2, 3]
    assert names_in(tmp_path / "tree.safetensors") == ["0", "1", "2", "3"]


def test_signed_zeros_and_nans_are_told_apart_by_their_bits(tmp_path: Path) -> None:
    bits = [0, 1 << 31, 0x7FC00000, 0x7FC00001, 0x7FC00001]
    tree = [mx.full(LARGE, pattern, mx.uint32).view(mx.float32) for pattern in bits]
    loaded = through(tree, tmp_path)
    assert [array.view(mx.uint32)[0, 0].item() for array in loaded] == bits
    assert names_in(tmp_path / "tree.safetensors") == ["0", "1", "2", "3"]


def test_arrays_with_one_checksum_are_told_apart(tmp_path: Path) -> None:
    one = np.zeros(2048, np.uint8)
    other = one.copy()
    # The polynomial, from its highest power, which leaves no remainder.
    for place, bit in enumerate(f"{0x104C11DB7:b}"):
        other[place // 8] |= int(bit) << place % 8
    assert zlib.crc32(one) == zlib.crc32(other)
    assert other.any()
    tree = [mx.array(one), mx.array(other), mx.array(other), mx.array(one)]
    loaded = through(tree, tmp_path)
    assert fl.tree.equal(loaded, tree)
    assert names_in(tmp_path / "tree.safetensors") == ["0", "1"]


def test_moments_that_have_not_moved_are_stored_once(tmp_path: Path) -> None:
    model, opt = fl.nn.Linear(32, 32, bias=False), fl.optim.Adam(0.1)
    tree = {"model": model, "target": model, "state": opt.init(model)}
    assert fl.tree.equal(through(tree, tmp_path), tree)
    large = [name for name, array in mx.load(f"{tmp_path}/tree.safetensors").items() if array.size == 1024]
    assert len(large) == 2
    assert "model.weight" in large


def test_arrays_that_nobody_has_evaluated_are_shared(tmp_path: Path) -> None:
    mx.save_safetensors(f"{tmp_path}/w.safetensors", {"w": mx.ones(LARGE)})
    lazy = mx.load(f"{tmp_path}/w.safetensors")["w"]
    tree = [lazy, lazy, lazy + 1]
    assert pattern(through(tree, tmp_path)) == [0, 0, 2]
    assert names_in(tmp_path / "tree.safetensors") == ["0", "2"]


def test_other_readers_have_what_is_stored_and_where_the_rest_is(tmp_path: Path) -> None:
    one = mx.ones(LARGE)
    fl.save(tmp_path / "a.safetensors", {"a": one, "b": one, "c": mx.ones(LARGE)})
    found, metadata = mx.load(f"{tmp_path}/a.safetensors", return_metadata=True)
    assert [*found] == [*load_file(tmp_path / "a.safetensors")] == ["a"]
    assert json.loads(metadata["frostleaf.shared"]) == {"b": "a"}
    assert json.loads(metadata["frostleaf.copies"]) == {"c": "a"}


def test_two_names_of_the_same_bytes_are_no_safetensors(tmp_path: Path) -> None:
    """The reason for names in the metadata: MLX reads such a file, and the reader of those who made the format doesn't."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert len(mx.load(f"{tmp_path}/a.safetensors")) == 2
    with pytest.raises(SafetensorError, match="invalid offset"):
        load_file(tmp_path / "a.safetensors")


def test_weights_are_read_under_all_their_names(tmp_path: Path) -> None:
    layer = fl.nn.Linear(32, 32)
    model = fl.nn.Sequential(layer, fl.nn.relu, layer, fl.tree.map(lambda array: array + 0, layer))
    fl.save(tmp_path / "a.safetensors", model)
    assert names_in(tmp_path / "a.safetensors") == ["layers.0.bias", "layers.0.weight", "layers.3.bias"]
    other = fl.nn.Sequential(*[fl.nn.Linear(32, 32) if number != 1 else fl.nn.relu for number in range(4)])
    loaded = other.load_weights(tmp_path / "a.safetensors")
    assert fl.tree.equal(loaded, model)
    assert pattern(loaded) == pattern(model)
    model.save_weights(tmp_path / "b.safetensors")
    assert names_in(tmp_path / "b.safetensors") == sorted(fl.tree.paths(model))


# Written by version 0.1.0, which stored each place.
OLD = (
    rb'{"__metadata__":{"frostleaf":"1","frostleaf.structure":"[[\"\",\"\",\"dict\"],[\"\",\"keys\",'
    rb"\"'w', 'again', 'n'\"],"
    rb'[\"w\",\"\",\"array f32[2]\"],[\"again\",\"\",\"array f32[2]\"],[\"n\",\"\",\"a Python int\"]]",'
    rb'"frostleaf.values":"[[\"int\", \"0x1\"]]","frostleaf.metadata":"{\"epoch\": 3}",'
    rb'"crc32":"2e3fa576 2e3fa576","crc32.header":"8aed1a28"},'
    rb'"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"again":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}      '
) + b"\x00\x00\x80?\x00\x00\x00@" * 2


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes((len(OLD) - 16).to_bytes(8, "little") + OLD)
    w = mx.array([1.0, 2.0])
    loaded = fl.load(tmp_path / "old", {"w": w, "again": w, "n": 0})
    assert fl.tree.equal(loaded, {"w": w, "again": w, "n": 1})
    assert pattern(loaded) == [0, 1]
    assert fl.load_metadata(tmp_path / "old") == {"epoch": 3}


@pytest.mark.parametrize(("second", "version"), [(0, "2"), (1, "1")])
def test_a_file_without_shared_arrays_is_one_of_the_earlier_version(second: int, version: str, tmp_path: Path) -> None:
    arrays = [mx.zeros(LARGE), mx.ones(LARGE)]
    fl.save(tmp_path / "a.safetensors", [arrays[0], arrays[second]])
    metadata = mx.load(f"{tmp_path}/a.safetensors", return_metadata=True)[1]
    assert metadata["frostleaf"] == version
    assert ("frostleaf.shared" in metadata) == (version == "2")


TREE = {"a": mx.ones(LARGE), "b": mx.zeros(LARGE), "i": mx.zeros(LARGE, mx.int32), "n": 1}


def forged(tmp_path: Path, shared: Any, copies: Any, change: Callable[[Any], None] = lambda arrays: None) -> Path:
    """Return a file with valid checksums that has the arrays ``s`` and ``t`` under other names."""
    snapshot = io_trees.take_snapshot({**TREE, "s": TREE["a"] + 0, "t": TREE["a"] + 0}, None)
    arrays = {name: array for name, array in snapshot.arrays.items() if name not in ("s", "t")}
    change(arrays)
    texts = {**snapshot.metadata, "frostleaf": "2", "frostleaf.shared": shared, "frostleaf.copies": copies}
    texts = {key: text if isinstance(text, str) else json.dumps(text) for key, text in texts.items() if text is not None}
    safetensors.write(f"{tmp_path}/a", arrays, texts)
    return tmp_path / "a"


LIKE = {**TREE, "s": TREE["a"], "t": TREE["a"]}
NOWHERE, OTHERS = "doesn't lead from other names to arrays in the file", "the header describes other arrays or values"


@pytest.mark.parametrize(
    ("shared", "copies", "reason"),
    [
        ({"s": "gone"}, {"t": "a"}, NOWHERE),
        ({"s": "a"}, {"t": "gone"}, NOWHERE),
        ({"s": "t", "t": "s"}, None, NOWHERE),
        ({"s": "s", "t": "a"}, None, NOWHERE),
        (None, {"s": "t", "t": "s"}, NOWHERE),
        (None, {"s": "t", "t": "a"}, NOWHERE),
        ({"s": "t"}, {"t": "s"}, NOWHERE),
        ({"s": "a", "t": "s"}, None, NOWHERE),
        ({"s": "a", "t": "a"}, {"t": "a"}, NOWHERE),
        ({"s": "a", "t": "a", "b": "a"}, None, NOWHERE),
        ({"s": "a", "t": "a"}, {"b": "a"}, NOWHERE),
        ({"s": "a", "t": 1}, None, NOWHERE),
        ({"s": "a", "t": ["a"]}, None, NOWHERE),
        ({"s": "a", "t": None}, None, NOWHERE),
        (["s", "t"], None, NOWHERE),
        ("[]", "7", NOWHERE),
        ("{", None, "the header can't be read"),
        ('{"s": "a", "s": "b", "t": "a"}', None, "the name 's' is there twice"),
        ({"s": "a"}, None, OTHERS),
        (None, None, OTHERS),
        ({"s": "i", "t": "a"}, None, OTHERS),
        ({"s": "a"}, {"t": "i"}, OTHERS),
        ({"s": "a", "t": "a", "u": "a"}, None, OTHERS),
        ({"s": "a", "t": "a"}, {"u": "a"}, OTHERS),
        ({"s": "a", "../t": "a"}, None, "the array name '../t' has a path separator in it"),
        ({"s": "a"}, {"..\\t": "a"}, "has a path separator in it"),
    ],
    ids=str,
)
def test_names_that_lead_elsewhere_are_an_error(shared: Any, copies: Any, reason: str, tmp_path: Path) -> None:
    file = forged(tmp_path, shared, copies)
    with pytest.raises(fl.CheckpointError) as caught:
        fl.load(file, LIKE)
    assert str(caught.value).startswith(f"{file}: ")
    assert reason in str(caught.value)


def test_what_is_forged_here_is_otherwise_a_file(tmp_path: Path) -> None:
    assert pattern(fl.load(forged(tmp_path, {"s": "a"}, {"t": "a"}), LIKE)) == [0, 1, 2, 0, 4]
    assert pattern(fl.load(forged(tmp_path, {"s": "t"}, {"t": "a"}), LIKE)) == [0, 1, 2, 3, 3]


def test_names_of_another_shape_are_an_error(tmp_path: Path) -> None:
    file = forged(tmp_path, {"s": "b", "t": "a"}, None, lambda arrays: arrays.update(b=mx.zeros(3)))
    with pytest.raises(fl.CheckpointError, match=OTHERS):
        fl.load(file, LIKE)


def test_weights_whose_names_lead_elsewhere_are_an_error(tmp_path: Path) -> None:
    mx.save_safetensors(f"{tmp_path}/a.safetensors", {"weight": mx.ones(2)}, {"frostleaf.shared": '{"bias": "gone"}'})
    with pytest.raises(fl.CheckpointError, match=NOWHERE):
        fl.nn.Linear(2, 2).load_weights(tmp_path / "a.safetensors")


def test_each_checksum_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(zlib, "crc32", lambda data, crc32=zlib.crc32: seen.append(len(data)) or crc32(data))
    one = mx.zeros(50_000)
    fl.save(tmp_path / "a", [one, one, mx.zeros(50_000), mx.ones(50_000)])
    assert sum(size == 200_000 for size in seen) == 3


def test_arrays_are_compared_a_part_at_a_time(tmp_path: Path) -> None:
    tree = [mx.zeros(5_000_000), mx.zeros(5_000_000)]
    mx.eval(tree)
    tracemalloc.start()
    try:
        fl.save(tmp_path / "a", tree)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert os.path.getsize(tmp_path / "a") < 21_000_000


@pytest.mark.parametrize("source", ["step-00000002.safetensors", "step-00000002-*", "step-00000002-*/*.json"])
def test_weights_are_read_from_a_checkpoint_in_several_files(source: str, tmp_path: Path) -> None:
    layer = fl.nn.Linear(64, 64)
    model = fl.nn.Sequential(layer, fl.nn.relu, layer, fl.nn.Linear(64, 64).replace(weight=layer.weight + 0))
    changed = model.at("layers.2.bias").set(mx.ones(64))
    with fl.Checkpointer(tmp_path) as checkpoints:
        checkpoints.save(1, model)
        checkpoints.save(2, changed)
    assert len([*tmp_path.glob("step-00000002-*/*.safetensors")]) == 2
    (path,) = tmp_path.glob(source)
    loaded = fl.tree.map(lambda array: array + 1, model).load_weights(path)
    assert fl.tree.equal(loaded, changed)
    assert loaded.layers[0].weight is loaded.layers[2].weight is not loaded.layers[3].weight


@pytest.mark.parametrize("text", ['{"a": "x"}', '{"b": "b"}', '{"a": 1}', "[", "[]"])
def test_an_index_whose_names_lead_elsewhere_is_an_error(text: str, tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"b": mx.zeros(1)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"frostleaf.shared": text}, "weight_map": {"b": "x.safetensors"}}))
    with pytest.raises(fl.CheckpointError, match=r"index.json: the header"):
        fl.nn.Linear(1, 1).load_weights(index)


@pytest.mark.parametrize("metadata", [None, 3, [], {}, {"total_size": 4, "frostleaf.shared": 3}])
def test_whatever_an_index_of_others_says_besides_is_left_alone(metadata: Any, tmp_path: Path) -> None:
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"weight": mx.zeros((1, 1)), "bias": mx.ones(1)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": metadata, "weight_map": dict.fromkeys(("weight", "bias"), "x.safetensors")}))
    assert fl.nn.Linear(1, 1).load_weights(index).bias.item() == 1
