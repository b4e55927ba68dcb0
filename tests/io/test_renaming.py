"""Saved trees in which a layer has another name than in the model now: read under its new name, with the optimizer's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl


class Old(fl.Module):
    encoder: fl.nn.Sequential
    head: fl.nn.Linear
    rate: float = 0.5


class New(fl.Module):
    backbone: fl.nn.Sequential
    head: fl.nn.Linear
    rate: float = 0.5


def layers(heads: int = 2) -> Any:
    return fl.nn.Sequential(fl.nn.MultiHeadAttention(4, heads), fl.nn.ReLU(), fl.nn.Linear(4, 4))


def run(kind: Any, encoder: Any) -> Any:
    model = kind(encoder, fl.nn.Linear(4, 2))
    opt = fl.optim.AdamW(1e-2)
    model, state = opt.update(model, grads(model), opt.init(model))
    return {"model": model, "state": state, "step": 3}


def grads(model: Any) -> Any:
    return fl.grad(lambda model: sum(leaf.sum() for leaf in fl.tree.leaves(model)))(model)


def saved(tree: Any, folder: Path) -> Path:
    fl.save(folder / "a", tree)
    return folder / "a"


def swapped(name: str) -> str:
    return {"a": "b", "b": "a", "0": "1", "1": "0"}.get(name[0], name[0]) + name[1:]


def to_new(name: str) -> str:
    return name.replace("encoder.", "backbone.")


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_renamed_layer_is_read_with_its_state(as_dict: bool, tmp_path: Path) -> None:
    tree, like = run(Old, layers()), run(New, layers())
    named = [*fl.tree.paths(tree), "model.rate", "step"]
    rename = {name: to_new(name) for name in named} if as_dict else to_new
    loaded, report = fl.load(saved(tree, tmp_path), like, strict=False, rename=rename)
    assert fl.tree.equal(loaded["model"].backbone, tree["model"].encoder)
    assert fl.tree.equal(fl.tree.leaves(loaded["state"]), fl.tree.leaves(tree["state"]))
    assert loaded["step"] == 3
    assert report[1:3] == ((), ())
    assert report.differs == ("model",)
    with pytest.raises(fl.OtherStructureError, match=r"model: .*Old in the file, .*New in like"):
        fl.load(tmp_path / "a", like, rename=rename)
    state = fl.load(
        tmp_path / "a",
        like["state"],
        rename=lambda name: to_new(name).removeprefix("state.") if name.startswith("state.") else None,
    )
    assert fl.tree.equal(state, loaded["state"])


@pytest.mark.parametrize(
    ("tree", "like", "rename"),
    [
        ({"model": layers(), "n": 1}, layers(), lambda name: name.removeprefix("model.") if name != "n" else None),
        (layers(), {"model": layers()}, lambda name: f"model.{name}"),
        (
            {"a": layers(), "b": layers(), "n": 1},
            {"b": layers(), "a": layers(), "n": 0},
            swapped,
        ),
        ({"a": mx.ones(2), "b": mx.ones(3)}, {"c": mx.zeros(2), "b": mx.zeros(3)}, {"a": "c"}),
        ([mx.ones(2), layers()], [layers(), mx.zeros(2)], swapped),
    ],
)
def test_what_holds_arrays_follows_them(tree: Any, like: Any, rename: Any, tmp_path: Path) -> None:
    loaded = fl.load(saved(tree, tmp_path), like, rename=rename)
    named = dict(zip(fl.tree.paths(tree), fl.tree.leaves(tree), strict=True))
    for path, leaf in named.items():
        new = rename.get(path, path) if isinstance(rename, dict) else rename(path)
        assert fl.tree.equal(dict(zip(fl.tree.paths(loaded), fl.tree.leaves(loaded), strict=True))[new], leaf)


def test_what_is_renamed_is_compared(tmp_path: Path) -> None:
    file = saved({"a": layers(4), "n": 1}, tmp_path)
    like = {"b": layers(2), "n": 0}
    with pytest.raises(fl.OtherStructureError, match=r"b\.layers\.0\.num_heads \(static\): 4 in the file, 2 in like"):
        fl.load(file, like, rename=lambda name: name.replace("a.", "b."))
    _, report = fl.load(file, like, rename=lambda name: name.replace("a.", "b."), strict=False)
    assert report.differs == ("b.layers.0.num_heads",)
    _, report = fl.load(file, like, rename=lambda name: name.replace("a.", "b.") if "layers.2" in name else None, strict=False)
    assert report.left == tuple(path for path in [*fl.tree.paths({"a": layers()}), "n"] if "layers.2" not in path)
    loaded = fl.load(file, like, where="b.layers.2", rename=lambda name: name.replace("a.", "b."))
    assert loaded["b"].layers[0] is like["b"].layers[0]


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    [
        (7, TypeError, "rename is a function of a name, or a mapping of names"),
        (lambda name: 7, TypeError, "rename gave 7 for 'a'"),
        (lambda name: "x", ValueError, "rename gives 'x' for 'a' and for 'b'"),
    ],
)
def test_other_renames_are_refused(rename: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        fl.load(saved({"a": mx.ones(2), "b": mx.ones(2)}, tmp_path), {"x": mx.ones(2)}, rename=rename)


def only(*prefixes: str) -> Any:
    return lambda name: name if name.startswith(prefixes) else None


ADAM = fl.optim.Adam(1e-3)
MODEL = fl.nn.Linear(2, 3)


@pytest.mark.parametrize(
    ("tree", "like", "rename"),
    [
        ({"model": MODEL, "state": ADAM.init(MODEL), "n": 1}, {"model": MODEL}, only("model.")),
        ({"model": MODEL, "state": ADAM.init(MODEL), "n": 1}, {"model": MODEL, "n": 0}, only("model.", "n")),
        ({"a": MODEL, "b": layers()}, {"a": MODEL}, only("a.")),
        ({"a": {"b": layers(), "c": MODEL}}, {"a": {"c": MODEL}}, only("a.c.")),
        ((MODEL, ADAM.init(MODEL)), (MODEL,), only("0.")),
        ([MODEL, [1, 2]], [MODEL, [0]], only("0.", "1.0")),
        ((MODEL, layers()), {"x": MODEL, "y": layers()}, lambda name: {"0": "x", "1": "y"}[name[0]] + name[1:]),
        ({"x": MODEL, "y": layers()}, (layers(), MODEL), lambda name: {"y": "0", "x": "1"}[name[0]] + name[1:]),
        ({"encoder": layers(), "head": layers(), "n": 0}, {"head": layers()}, only("head.")),
    ],
)
def test_what_holds_what_is_left_out_is_left_out(tree: Any, like: Any, rename: Any, tmp_path: Path) -> None:
    loaded, report = fl.load(saved(tree, tmp_path), like, rename=rename, strict=False)
    assert not report.new
    assert fl.tree.equal(fl.load(tmp_path / "a", like, rename=rename), loaded)


@pytest.mark.parametrize(
    ("tree", "like", "rename"),
    [
        ({"a": layers(), "b": MODEL}, {"a": layers(4), "n": 1}, only("a.")),
        ({"a": layers(4), "b": MODEL}, {"a": layers()}, only("a.")),
        ({"a": (MODEL, fl.nn.ReLU()), "b": MODEL}, {"a": (MODEL, fl.nn.Tanh())}, only("a.")),
        ({"a": [MODEL], "b": MODEL}, {"a": (MODEL,)}, only("a.")),
        ({"a": [MODEL], "b": MODEL}, {"c": (MODEL,)}, lambda name: f"c{name[1:]}" if name[0] == "a" else None),
        ({"a": MODEL, "b": MODEL}, {"a": MODEL, "b": MODEL}, only("a.")),
    ],
)
def test_what_is_not_left_out_is_compared(tree: Any, like: Any, rename: Any, tmp_path: Path) -> None:
    with pytest.raises(fl.OtherStructureError):
        fl.load(saved(tree, tmp_path), like, rename=rename)
