"""Crashes, damage and full disks: what is left is a whole checkpoint, or an error that says what is wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from damage import JUNK, at_most, mutated

import frostleaf as fl
from frostleaf.io.safetensors import checksum_of, write


@pytest.mark.parametrize("kind", ["whole", "shared"])
@pytest.mark.parametrize(
    ("kills", "seed"), [pytest.param(5, 0, id="short"), pytest.param(200, 1, marks=pytest.mark.long, id="long")]
)
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(kills: int, seed: int, kind: str, tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).with_name("killed.py"), tmp_path, str(kills), str(seed), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made, last, left = map(int, done.stdout.split())
    print(f"{made} kills, {last} checkpoints saved")
    assert made == kills
    assert last > kills / 2
    # Two checkpoints and perhaps a third, the lock, the number of the last step, and what the last process was writing. One
    # that is killed just before or after it has written leaves an empty directory, which nobody can tell from one in use.
    assert left <= (6 if kind == "whole" else 15) + kills / 3


def small_tree() -> Any:
    model = fl.nn.Sequential(fl.nn.Linear(3, 4, key=mx.random.key(0)), fl.nn.relu, fl.nn.BatchNorm(4)).at("layers.0").freeze()
    half = mx.arange(7).astype(mx.bfloat16)
    return {
        "model": model,
        "state": fl.optim.AdamW(1e-3).init(model),
        "step": 3,
        "rate": 0.1,
        "note": "ä",
        "none": None,
        "half": half,
        "variant": model.at("layers.0.bias").set(mx.ones(4)),
        "equal": [mx.ones(400), mx.ones(400), mx.zeros(400)],
    }


def pattern(tree: Any) -> list[int]:
    """Return for each leaf the number of the first that is the same object."""
    leaves = fl.tree.leaves(tree)
    return [next(number for number, other in enumerate(leaves) if other is leaf) for leaf in leaves]


@pytest.mark.parametrize(
    ("count", "seed"), [pytest.param(500, 0, id="short"), pytest.param(10_000, 1, marks=pytest.mark.long, id="long")]
)
def test_a_damaged_file_is_an_error_or_has_exactly_what_was_saved(count: int, seed: int, tmp_path: Path) -> None:
    tree, file = small_tree(), tmp_path / "a.safetensors"
    fl.save(file, tree, {"note": "x"})
    like = fl.eval_shape(lambda: tree)
    content = file.read_bytes()
    draw = random.Random(seed)
    refused: dict[str, int] = {}
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for number in range(count):
        kind, changed = mutated(content, draw)
        file.write_bytes(changed)
        try:
            loaded = fl.load(file, like)
        except fl.CheckpointError as error:
            assert str(error).startswith(f"{file}: "), (number, kind)  # noqa: PT017
            refused[kind] = refused.get(kind, 0) + 1
        else:
            assert fl.tree.equal(loaded, tree), (number, kind)
            assert pattern(loaded) == pattern(tree), (number, kind)
            assert changed == content or json.loads(header_of(changed)) == json.loads(header_of(content)), (number, kind)
    print(f"{count} mutations, refused: {refused}")
    assert sum(refused.values()) > 0.9 * count
    assert mx.get_peak_memory() - before < 10 * len(content)


@pytest.mark.parametrize(
    ("count", "seed"), [pytest.param(300, 0, id="short"), pytest.param(10_000, 1, marks=pytest.mark.long, id="long")]
)
def test_names_that_lead_elsewhere_give_an_error_or_arrays_of_the_right_kind(count: int, seed: int, tmp_path: Path) -> None:
    """Whoever forges the checksum of the header, too, can let one array stand for another of its kind, and no more."""
    tree, file = small_tree(), tmp_path / "a.safetensors"
    fl.save(file, tree)
    arrays, texts = mx.load(str(file), return_metadata=True)
    like = fl.eval_shape(lambda: tree)
    texts = {key: text for key, text in texts.items() if not key.startswith("crc32")}
    draw = random.Random(seed)
    names = [*arrays, *json.loads(texts["frostleaf.shared"]), "x", "../x"]
    loads = 0
    for number in range(count):
        key = draw.choice(["frostleaf.shared", "frostleaf.copies"])
        given = json.loads(texts[key])
        for _ in range(draw.choice([1, 1, 2])):
            at = draw.choice([*given, draw.choice(names)])
            given[at] = draw.choice([*names, draw.choice(JUNK)])
        if draw.random() < 0.2:
            given.pop(draw.choice([*given]))
        write(str(file), arrays, {**texts, key: json.dumps(given)})
        try:
            loaded = fl.load(file, like)
        except fl.CheckpointError as error:
            assert str(error).startswith(f"{file}: "), number  # noqa: PT017
        else:
            loads += 1
            assert fl.tree.structure(loaded) == fl.tree.structure(tree)
            kinds = [[(leaf.shape, leaf.dtype) for leaf in fl.tree.leaves(each)] for each in (loaded, tree)]
            assert kinds[0] == kinds[1], number
    print(f"{count} forged, {loads} loaded")
    assert 0 < loads < count / 2


def test_exchanged_checksums_are_an_error(tmp_path: Path) -> None:
    tree = {"a": mx.ones(400), "b": mx.zeros(400), "c": mx.ones(400)}
    arrays = {"a": tree["a"], "b": tree["b"]}
    fl.save(tmp_path / "a", tree)
    texts = mx.load(str(tmp_path / "a"), format="safetensors", return_metadata=True)[1]
    checksums = {"a": checksum_of(arrays["b"]), "b": checksum_of(arrays["a"])}
    write(str(tmp_path / "a"), arrays, {key: text for key, text in texts.items() if not key.startswith("crc32")}, checksums)
    with pytest.raises(fl.CheckpointError, match="array 'a' is damaged"):
        fl.load(tmp_path / "a", tree)
    with pytest.raises(fl.CheckpointError, match="array 'a' is damaged"):
        fl.load(tmp_path / "a", tree, where="c")


def header_of(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


@pytest.mark.parametrize("size", [0, 5, 1000, 100_000, 399_999])
def test_a_full_disk_leaves_the_checkpoint_before(size: int, tmp_path: Path) -> None:
    tree = {"w": mx.arange(100_000)}
    checkpoints = fl.Checkpointer(tmp_path, keep=1)
    assert checkpoints.save(1, tree)
    checkpoints.wait()
    with at_most(size):
        assert checkpoints.save(2, {"w": tree["w"] + 1})
        with pytest.raises(
            fl.CheckpointError, match=f"the checkpoint of step 2 could not be saved in {tmp_path}: .*File too large"
        ):
            checkpoints.wait()
        assert checkpoints.steps() == [1]
    assert fl.tree.equal(checkpoints.restore(tree), (1, tree))
    assert sorted(os.listdir(tmp_path)) == [".frostleaf-lock", "step-00000001.safetensors"]
    assert checkpoints.save(2, {"w": tree["w"] + 2})
    assert fl.tree.equal(checkpoints.restore(tree), (2, {"w": tree["w"] + 2}))
    assert checkpoints.steps() == [2]


def test_a_full_disk_leaves_the_file_before(tmp_path: Path) -> None:
    fl.save(tmp_path / "a", mx.array(1))
    with at_most(1000), pytest.raises(OSError, match="File too large"):
        fl.save(tmp_path / "a", mx.zeros(1000))
    assert fl.load(tmp_path / "a", mx.array(0)).item() == 1
    assert os.listdir(tmp_path) == ["a"]
