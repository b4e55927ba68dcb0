"""Directories of safetensors files with an index, as Hugging Face lays them out."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from twins import Bag, linear

import frostleaf as fl
from frostleaf.io import sharded

INDEX = "model.safetensors.index.json"


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def bag(*lengths: int, start: float = 0.0) -> Bag:
    return Bag([mx.arange(float(length)) + start for length in lengths])


def header(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([1, 2, 3], 5 * 10**9, [["ws.0", "ws.1", "ws.2"]]),
        ([1, 2, 3], 12, [["ws.0", "ws.1"], ["ws.2"]]),
        ([1, 2, 3], 11, [["ws.0"], ["ws.1"], ["ws.2"]]),
        ([1, 9, 1, 1], 8, [["ws.0"], ["ws.1"], ["ws.2", "ws.3"]]),
        ([9, 0, 1], 1, [["ws.0"], ["ws.1"], ["ws.2"]]),
        ([1, 0, 0], 4, [["ws.0", "ws.1", "ws.2"]]),
        ([], 4, []),
    ],
    ids=str,
)
def test_the_layout_is_that_of_hugging_face(lengths: list[int], limit: int, expected: list[list[str]], tmp_path: Path) -> None:
    saved = bag(*lengths)
    saved.save_weights(tmp_path, max_shard_bytes=limit)
    names = [f"model-{number:05}-of-{len(expected):05}.safetensors" for number in range(1, len(expected) + 1)]
    assert files(tmp_path) == sorted([*names, INDEX])
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 4 * sum(lengths)}
    assert index["weight_map"] == {array: name for name, arrays in zip(names, expected, strict=True) for array in arrays}
    for name, arrays in zip(names, expected, strict=True):
        assert header(tmp_path / name).keys() == {*arrays, "__metadata__"}
        assert header(tmp_path / name)["__metadata__"] == {"format": "mlx"}
    # What other tools do: all files that look like a part of a model, one after the other.
    found = {key: array for file in tmp_path.glob("model*.safetensors") for key, array in mx.load(str(file)).items()}
    assert fl.tree.equal(Bag(list(saved.ws)), Bag([found[f"ws.{number}"] for number in range(len(lengths))]))
    for source in (tmp_path, str(tmp_path), tmp_path / INDEX):
        assert fl.tree.equal(fl.eval_shape(lambda: saved).load_weights(source), saved)


def test_the_default_limit_is_that_of_hugging_face() -> None:
    assert sharded.MAX_SHARD_BYTES == 5_000_000_000


@pytest.mark.parametrize("name", ["weights/", "weights.d/", "weights.safetensors.d"])
def test_what_is_no_file_is_a_directory(name: str, tmp_path: Path) -> None:
    if name == "weights.safetensors.d":
        (tmp_path / name).mkdir()
    linear(1).save_weights(f"{tmp_path}/{name}")
    assert files(tmp_path / name) == ["model-00001-of-00001.safetensors", INDEX]
    assert fl.tree.equal(linear().load_weights(f"{tmp_path}/{name}"), linear(1))


def test_with_a_limit_any_other_name_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    linear(1).save_weights("v1.5", max_shard_bytes=8)
    assert len(files(tmp_path / "v1.5")) == 3
    monkeypatch.chdir("v1.5")
    assert fl.tree.equal(linear().load_weights("."), linear(1))
    assert fl.tree.equal(linear().load_weights(INDEX), linear(1))


def test_a_directory_is_made_but_not_the_one_around_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        linear().save_weights(f"{tmp_path}/not/there/")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, and save_weights was to write a directory"):
        linear().save_weights(tmp_path / "file", max_shard_bytes=100)


def test_a_name_without_an_ending_is_an_error_as_in_mlx(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unsupported file extension for .*weights.*with a slash at the end"):
        linear().save_weights(tmp_path / "weights")
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("limit", "kind"), [(0, ValueError), (-1, ValueError), ("5GB", TypeError), (1.5, TypeError), (True, TypeError)]
)
def test_a_limit_is_a_positive_whole_number(limit: Any, kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind, match="max_shard_bytes is a positive whole number of bytes, and was given as"):
        linear().save_weights(tmp_path / "weights", max_shard_bytes=limit)
    assert files(tmp_path) == []


def test_a_single_file_of_hugging_face_is_loaded(tmp_path: Path) -> None:
    linear(1).save_weights(tmp_path / "model.safetensors")
    assert fl.tree.equal(linear().load_weights(tmp_path), linear(1))


def test_files_may_be_links_to_elsewhere(tmp_path: Path) -> None:
    linear(1).save_weights(f"{tmp_path}/blobs/")
    (tmp_path / "snapshot").mkdir()
    for name in files(tmp_path / "blobs"):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}")
    assert fl.tree.equal(linear().load_weights(tmp_path / "snapshot"), linear(1))


# Saving again

OTHERS = ["config.json", "model.py", "model-ema.safetensors", "model.safetensors.bak", "tokenizer.json", "weights.npz"]


def test_saving_again_leaves_only_the_new_files_and_those_of_others(tmp_path: Path) -> None:
    for name in OTHERS:
        (tmp_path / name).write_text("other")
    sizes = [(3, 4), (3, 4), (3,), (1, 2, 3), (3, 4), (3, 4)]
    for number, lengths in enumerate(sizes):
        saved = bag(*lengths, start=number)
        saved.save_weights(tmp_path, max_shard_bytes=4)
        index = json.loads((tmp_path / INDEX).read_text())
        assert files(tmp_path) == sorted([*OTHERS, INDEX, *index["weight_map"].values()])
        assert fl.tree.equal(bag(*lengths).load_weights(tmp_path), saved)
    assert {(tmp_path / name).read_text() for name in OTHERS} == {"other"}


def test_the_files_of_a_foreign_model_are_replaced(tmp_path: Path) -> None:
    linear(1).save_weights(tmp_path / "model.safetensors")
    linear(1).save_weights(tmp_path / "part.safetensors")
    (tmp_path / "config.json").touch()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"weight": "part.safetensors", "bias": "part.safetensors"}}))
    linear(2).save_weights(tmp_path)
    assert files(tmp_path) == ["config.json", "model-00001-of-00001.safetensors", INDEX]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"weight_map": {"weight": "../x.safetensors"}}', '{"weight_map": {"a": "config.json"}}']
)
def test_a_broken_index_is_replaced_and_nothing_is_removed_that_it_names(text: str, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "x.safetensors").touch()
    (inner / "config.json").touch()
    (inner / INDEX).write_text(text)
    linear(2).save_weights(inner)
    assert files(inner) == ["config.json", "model-00001-of-00001.safetensors", INDEX]
    assert (tmp_path / "x.safetensors").exists()


def test_what_a_killed_save_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    half = [f".frostleaf-0123456789abcdef-{name}" for name in ("model-2-00001-of-00002.safetensors", INDEX, "weights.npz")]
    for name in [*half, ".frostleaf-lock"]:
        (tmp_path / name).touch()
    linear().save_weights(tmp_path)
    assert files(tmp_path) == [half[2], ".frostleaf-lock", "model-00001-of-00001.safetensors", INDEX]


def test_a_model_can_be_saved_over_the_directory_it_was_loaded_from(tmp_path: Path) -> None:
    linear(1).save_weights(tmp_path)
    loaded = linear().load_weights(tmp_path)
    loaded.save_weights(tmp_path, max_shard_bytes=8)
    assert fl.tree.equal(linear().load_weights(tmp_path), linear(1))
    assert fl.tree.equal(loaded, linear(1))


@pytest.mark.filterwarnings("ignore:.* has two models")  # for an instant
@pytest.mark.parametrize("before", ["nothing", "one file", "shards", "a broken save"])
def test_at_every_instant_of_saving_the_old_model_or_the_new_one_is_there(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, old, new = tmp_path / "model", bag(2, 3), bag(2, 3, start=7)
    directory.mkdir()
    if before == "one file":
        old.save_weights(directory / "model.safetensors")
    elif before != "nothing":
        old.save_weights(directory, max_shard_bytes=8)
    if before == "a broken save":
        shutil.copy(directory / "model-00001-of-00002.safetensors", directory / "model-2-00002-of-00002.safetensors")
    found = []

    def look() -> None:
        copy = tmp_path / f"copy{len(found)}"
        shutil.copytree(directory, copy)
        found.append(copy)

    def looking(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            look()
            result = function(*arguments, **options)
            look()
            return result

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "remove", "fsync"):
            patch.setattr(os, name, looking(getattr(os, name)))
        new.save_weights(directory, max_shard_bytes=8)
    look()
    seen = []
    for copy in found:
        try:
            loaded = bag(2, 3).load_weights(copy)
        except FileNotFoundError:
            seen.append("nothing")
        else:
            seen.append("new" if fl.tree.equal(loaded, new) else "old" if fl.tree.equal(loaded, old) else "broken")
    assert len(seen) > 10
    first = "nothing" if before == "nothing" else "old"
    assert seen == [first] * seen.count(first) + ["new"] * seen.count("new")
    assert seen[0] == first
    assert seen[-1] == "new"
    assert len(list(directory.glob("model*.safetensors"))) == 2


@pytest.mark.parametrize("call", range(1, 9))
def test_when_saving_fails_the_old_model_is_whole_and_saving_again_tidies_up(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = bag(2, 3), bag(2, 3, start=7)
    old.save_weights(tmp_path, max_shard_bytes=8)
    calls = 0

    def failing(function: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise OSError("no space left")
            return function(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("replace", "fsync"):
            patch.setattr(os, name, failing(getattr(os, name)))
        with pytest.raises(OSError, match="no space left"):
            new.save_weights(tmp_path, max_shard_bytes=8)
    assert fl.tree.equal(bag(2, 3).load_weights(tmp_path), old)
    new.save_weights(tmp_path, max_shard_bytes=8)
    assert fl.tree.equal(bag(2, 3).load_weights(tmp_path), new)
    assert len(files(tmp_path)) == 3


def test_a_reader_sees_one_model_or_the_other_while_others_save(tmp_path: Path) -> None:
    models = [bag(2, 3, start=10.0 * number) for number in range(3)]
    models[0].save_weights(tmp_path, max_shard_bytes=8)
    failures: list[BaseException] = []

    def save(number: int) -> None:
        try:
            with mx.stream(mx.new_stream(mx.cpu)):
                for _ in range(4):
                    bag(2, 3, start=10.0 * number).save_weights(tmp_path, max_shard_bytes=8)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        loaded = bag(2, 3).load_weights(tmp_path)
        assert any(fl.tree.equal(loaded, model) for model in models)
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(files(tmp_path)) == 3


# What is broken


def index(directory: Path, given: Any) -> None:
    (directory / INDEX).write_text(given if isinstance(given, str) else json.dumps(given))


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("", ValueError, "can't be read"),
        ("hello", ValueError, "can't be read"),
        ("[" * 100_000, ValueError, "can't be read"),
        ('{"weight_map": {"a": "x", "a": "y"}}', ValueError, "the name 'a' is there twice"),
        ("[]", ValueError, "isn't the index of a model"),
        ({"metadata": {}}, ValueError, "isn't the index of a model"),
        ({"weight_map": []}, ValueError, "isn't the index of a model"),
        *(
            (
                {"weight_map": {"weight": shard}},
                ValueError,
                "as the file of 'weight', which isn't a .safetensors file in the directory",
            )
            for shard in (
                "../x.safetensors",
                "/x.safetensors",
                "a/b.safetensors",
                "a\\b.safetensors",
                "a\0.safetensors",
                "x.bin",
                "",
                "..",
                3,
                None,
            )
        ),
        (
            {"weight_map": {"weight": "gone.safetensors"}},
            FileNotFoundError,
            "names the file gone.safetensors, which is not there",
        ),
        ({"weight_map": {"weight": "x" * 5000 + ".safetensors"}}, FileNotFoundError, "which is not there"),
        (
            {"weight_map": {"wieght": "part.safetensors"}},
            ValueError,
            "names part.safetensors as the file of 'wieght', which isn't in there; the nearest is 'weight'",
        ),
        ({"weight_map": {"weight": "cut.safetensors"}}, ValueError, "cut.safetensors: "),
        ({"weight_map": {"weight": "directory.safetensors"}}, ValueError, "directory.safetensors: is not a file"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_broken_directory_is_an_error_that_names_file_and_reason(
    given: Any, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    linear().save_weights(tmp_path / "part.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "part.safetensors").read_bytes()[:-1])
    (tmp_path / "directory.safetensors").mkdir()
    index(tmp_path, given)
    with pytest.raises(kind) as caught:
        linear().load_weights(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_directory_without_an_index_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has neither a model.safetensors.index.json nor a model.safetensors$"):
        linear().load_weights(tmp_path)
    (tmp_path / "weights.npz").touch()
    (tmp_path / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"nor a model.safetensors; what it has is weights.npz$"):
        linear().load_weights(tmp_path)


def test_arrays_that_the_index_does_not_name_are_passed_over(tmp_path: Path) -> None:
    linear(1).save_weights(tmp_path / "a.safetensors")
    linear(2).save_weights(tmp_path / "b.safetensors")
    index(tmp_path, {"weight_map": {"weight": "a.safetensors", "bias": "b.safetensors"}})
    loaded = linear().load_weights(tmp_path)
    assert mx.array_equal(loaded.weight, linear(1).weight)
    assert mx.array_equal(loaded.bias, linear(2).bias)


@pytest.mark.parametrize("given", ["a directory", "its path", "the index"])
@pytest.mark.parametrize("has", [False, True])
def test_an_index_that_lacks_a_name_is_named(given: str, has: bool, tmp_path: Path) -> None:
    model = bag(2, 3)
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"ws.0": model.ws[0]} | ({"ws.1": model.ws[1]} if has else {}))
    index(tmp_path, {"weight_map": {"ws.0": "a.safetensors"}})
    source = {"a directory": tmp_path, "its path": f"{tmp_path}/", "the index": tmp_path / INDEX}[given]
    with pytest.raises(ValueError, match=r"^Missing 1 parameters: \nws\.1\.\n") as caught:
        model.load_weights(source)
    assert str(tmp_path / INDEX) in str(caught.value)
    assert ("a.safetensors, which it names, has 'ws.1' too: name it there" in str(caught.value)) == has
    if has:
        assert fl.tree.equal(bag(2, 3).load_weights([tmp_path / "a.safetensors"]), model)
    assert model.load_weights(source, strict=False).ws[1] is model.ws[1]


def test_what_is_not_read_by_an_index_says_nothing_of_one(tmp_path: Path) -> None:
    index(tmp_path, {"weight_map": {"ws.0": "model.safetensors"}})
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"ws.0": mx.zeros(2)})
    for source in (tmp_path, tmp_path / "model.safetensors", [tmp_path / "model.safetensors"], {"ws.0": mx.zeros(2)}):
        with pytest.raises(ValueError, match=r"Missing 1 parameters") as caught:
            bag(2, 3).load_weights(source)
        assert "index" not in str(caught.value)


def test_an_old_file_that_can_not_be_removed_is_no_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    model, new = fl.nn.Linear(2, 2), fl.nn.Linear(2, 2)
    model.save_weights(f"{tmp_path}/")
    with monkeypatch.context() as patch:
        patch.setattr(os, "remove", refuse)
        new.save_weights(f"{tmp_path}/")
    assert fl.tree.equal(model.load_weights(tmp_path), new)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    new.save_weights(f"{tmp_path}/")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


# Directories of others


def test_one_file_is_read_before_an_index_of_others_and_both_are_named(tmp_path: Path) -> None:
    linear(1).save_weights(f"{tmp_path}/")
    linear(2).save_weights(tmp_path / "model.safetensors")
    with pytest.warns(RuntimeWarning, match=r"has two models: model.safetensors, .* and model.safetensors.index.json") as seen:
        loaded = linear().load_weights(tmp_path)
    assert seen[0].filename == __file__
    assert fl.tree.equal(loaded, linear(2))
    assert fl.tree.equal(linear().load_weights(tmp_path / INDEX), linear(1))
    index(tmp_path, {"weight_map": {"weight": "model.safetensors", "bias": "model.safetensors"}})
    assert fl.tree.equal(linear().load_weights(tmp_path), linear(2))


def test_numbered_files_without_an_index_are_read(tmp_path: Path) -> None:
    model = bag(3, 4, 5)
    model.save_weights(tmp_path, max_shard_bytes=4)
    (tmp_path / INDEX).unlink()
    assert fl.tree.equal(bag(3, 4, 5).load_weights(tmp_path), model)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"of these numbers not model-00002-of-00003.safetensors, nor an index: give a list"
    ):
        bag(3, 4, 5).load_weights(tmp_path)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_files_is_read(kind: Any, tmp_path: Path) -> None:
    model = linear(1)
    parts = [tmp_path / "a.safetensors", str(tmp_path / "b.npz")]
    mx.save_safetensors(str(parts[0]), {"weight": model.weight})
    mx.savez(str(parts[1]), bias=model.bias)
    assert fl.tree.equal(linear().load_weights(kind(parts)), model)
    with pytest.raises(ValueError, match=r"a.safetensors has 'weight', which a file before it in .* has too: give one of them"):
        linear().load_weights([*parts, parts[0]])
