"""Paths that are not what is to be read: parts of checkpoints, directories, other names. What the error says to open works."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import as_before

import frostleaf as fl


def net(seed: int = 0) -> Any:
    keys = mx.random.split(mx.random.key(seed), 2)
    return fl.nn.Sequential(*[fl.nn.Linear(80, 80, key=key) for key in keys])


@pytest.fixture(params=["now", "before"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Any]:
    """Return a directory whose last checkpoint has a part that is the head of the first, and its model."""
    model = net()
    with fl.Checkpointer(tmp_path / "run", keep=None) as checkpoints:
        checkpoints.save(0, model)
        model = model.at("layers.0.bias").apply(lambda bias: bias + 1)
        checkpoints.save(2, model)
    if request.param == "before":
        as_before(tmp_path / "run")
    return tmp_path / "run", model


def test_the_parts_of_a_checkpoint_are_refused_for_its_head(run: tuple[Path, Any]) -> None:
    folder, model = run
    head = folder / "step-00000002.safetensors"
    parts = sorted([*folder.glob("step-00000002-*.safetensors"), *folder.glob("step-00000002-*/*.safetensors")])
    assert len(parts) >= 2
    for given in ([head, *parts], parts, parts[0]):
        with pytest.raises(fl.CheckpointError, match=r"is a part of the checkpoint step-00000002\.safetensors.* give that"):
            net(1).load_weights(given)
    with pytest.raises(fl.CheckpointError, match=r"is a part of the checkpoint step-00000002\.safetensors.* give that"):
        fl.load(parts[0], net(1))
    with pytest.raises(fl.CheckpointError, match="is a part of the checkpoint"):
        fl.load_metadata(parts[0])
    (index,) = [*folder.glob("step-00000002*.index.json"), *folder.glob("step-00000002-*/*.index.json")]
    for given in (head, index, [head]):
        assert fl.tree.equal(net(1).load_weights(given), model)
    assert fl.tree.equal(fl.load(head, net(1)), model)
    head.unlink()
    with pytest.raises(fl.CheckpointError, match="copy that here too"):
        fl.load(parts[0], net(1))


def test_a_directory_of_checkpoints_is_told_of_checkpointer(run: tuple[Path, Any]) -> None:
    folder, model = run
    with pytest.raises(fl.CheckpointError, match=r"reads the last, fl\.load a file step-00000002\.safetensors") as caught:
        fl.load(folder, net(1))
    called = re.search(r"fl\.Checkpointer\(.*?\)\.restore\(like\)", str(caught.value))
    assert called
    assert fl.tree.equal(eval(called[0], {"fl": fl, "like": net(1)})[1], model)


def test_a_directory_of_weights_is_told_of_load_weights(tmp_path: Path) -> None:
    net().save_weights(tmp_path, max_shard_bytes=20_000)
    with pytest.raises(fl.CheckpointError, match="load_weights") as caught:
        fl.load(tmp_path, net(1))
    called = re.search(r"model\.load_weights\(.*?\)", str(caught.value))
    assert called
    assert fl.tree.equal(eval(called[0], {"model": net(1)}), net())


@pytest.mark.parametrize("load", [lambda path: fl.load(path, net(1)), lambda path: net(1).load_weights(path), fl.load_metadata])
def test_a_name_without_its_ending_is_told_of_it(load: Any, tmp_path: Path) -> None:
    fl.save(tmp_path / "step-00000012.safetensors", net())
    with pytest.raises(FileNotFoundError, match=r"but one whose name ends in \.safetensors") as caught:
        load(tmp_path / "step-00000012")
    assert caught.value.filename == str(tmp_path / "step-00000012")
    with pytest.raises(FileNotFoundError) as caught:
        load(tmp_path / "step-13")
    assert "ends in" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "warned"), [("x.npz", True), ("x.pt", True), ("x.safetensors", False), ("x.run", False), ("x", False)]
)
def test_a_name_of_another_format_is_warned_of(name: str, warned: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fl.save(tmp_path / name, [mx.ones(2)])
    assert bool(caught) == warned
    for each in caught:
        assert f"{name} gets a safetensors file" in str(each.message)
        assert each.filename == __file__
    assert fl.tree.equal(fl.load(tmp_path / name, [mx.zeros(2)]), [mx.ones(2)])


@pytest.mark.parametrize("where", ["model.0", "model.0.**", "n"])
def test_what_is_selected_rather_than_what_holds_it_is_told(where: str, tmp_path: Path) -> None:
    like = fl.nn.Linear(2, 2)
    fl.save(tmp_path / "a", {"model": {"0": fl.nn.Linear(2, 2), "b": mx.ones(2)}, "n": 1})
    with pytest.raises(LookupError, match="selects nothing") as caught:
        fl.load(tmp_path / "a", like, where=where)
    given = re.search(r"give like=(.*), and take (.*) of what", str(caught.value))
    assert (given is None) == (where == "n")
    if given:
        whole = fl.load(tmp_path / "a", {"model": {"0": like}}, where=where)
        taken = eval(f"loaded{given[2]}", {"loaded": fl.load(tmp_path / "a", eval(given[1], {"like": like}), where=where)})
        assert fl.tree.equal(taken, whole["model"]["0"])
    with pytest.raises(LookupError, match="selects nothing"):
        fl.load(tmp_path / "none", like, where=where)


@pytest.mark.parametrize("name", ["a.npz", "model.safetensors.index.json"])
def test_weights_that_are_no_tree_are_told_of_what_reads_them(name: str, tmp_path: Path) -> None:
    model = net()
    if name.endswith(".npz"):
        model.save_weights(tmp_path / name)
    else:
        model.save_weights(tmp_path, max_shard_bytes=30_000)
    for read in (lambda path: fl.load(path, model), fl.load_metadata):
        with pytest.raises(fl.CheckpointError, match="is no file of fl") as caught:
            read(tmp_path / name)
    code = re.search(r"model\.load_weights\(.*?\)", str(caught.value))
    assert code is not None
    assert fl.tree.equal(eval(code[0], {"model": net(1)}), model)


@pytest.mark.filterwarnings("ignore:.*gets a safetensors file")
@pytest.mark.parametrize("name", ["a.npz", "a.gguf", "a.safetensors.index.json"])
def test_a_tree_is_read_whatever_its_name(name: str, tmp_path: Path) -> None:
    fl.save(tmp_path / name, net())
    assert fl.tree.equal(fl.load(tmp_path / name, net(1)), net())
    with pytest.raises(FileNotFoundError):
        fl.load(tmp_path / f"other-{name}", net())


def test_the_index_of_a_checkpoint_is_told_of_its_head(run: tuple[Path, Any]) -> None:
    folder, model = run
    (index,) = [*folder.glob("step-00000002*.index.json"), *folder.glob("step-00000002-*/*.index.json")]
    with pytest.raises(fl.CheckpointError, match="is the index of a checkpoint's weights") as caught:
        fl.load(index, net(1))
    found = re.search(r"in '(\S+)', (model\.load_weights\(.*?\))", str(caught.value))
    assert found is not None
    assert fl.tree.equal(fl.load(found[1], net(1)), model)
    assert fl.tree.equal(eval(found[2], {"model": net(1)}), model)
