"""States of flattened optimizers and packed models, read where some arrays have other names now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import New, Old

import frostleaf as fl


class Reordered(fl.Module):
    head: fl.nn.Linear
    backbone: fl.nn.Linear


def net(kind: Any) -> Any:
    return kind(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2))


def to_new(name: str) -> str:
    return name.replace("encoder.", "backbone.")


def loss(model: Any) -> Any:
    return sum((leaf * leaf).sum() * number for number, leaf in enumerate(fl.tree.leaves(model), 1))


def trained(opt: Any, model: Any, state: Any, steps: int = 3) -> tuple[Any, Any]:
    for _ in range(steps):
        grads = fl.grad(loss)(model.unpack() if isinstance(model, fl.optim.Packed) else model)
        model, state = opt.update(model, grads, state)
    return model, state


def same(one: Any, other: Any) -> bool:
    """Return whether two trees have the same arrays, bit for bit, whatever holds them."""
    return fl.tree.equal(fl.tree.leaves(one), fl.tree.leaves(other))


ADAM = fl.optim.Adam(1e-2)
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda opt: opt,
    "accumulated": lambda opt: fl.optim.accumulate(opt, 2),
    "averaged": lambda opt: fl.optim.ema(opt, 0.5),
    "chained": lambda opt: fl.optim.chain(fl.optim.clip_by_value(1.0), opt),
}


@pytest.mark.parametrize("around", OPTIMIZERS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("max_size", [4, 4096])
def test_a_run_goes_on_as_one_that_is_not_flattened(
    around: str, packed: bool, strict: bool, max_size: int, tmp_path: Path
) -> None:
    flat, plain = (OPTIMIZERS[around](opt) for opt in (fl.optim.flatten(ADAM, max_size=max_size), ADAM))

    def as_given(model: Any) -> Any:
        return fl.optim.pack(model, max_size) if packed else model

    model, other = net(Old), net(New)
    _, state = after = trained(flat, as_given(model), flat.init(as_given(model)))
    fl.save(tmp_path / "a", state)
    fl.save(tmp_path / "b", {"model": after[0].unpack() if packed else after[0]})
    restored = fl.load(tmp_path / "a", flat.init(as_given(other)), rename=to_new, strict=strict)
    if not strict:
        restored, report = restored
        assert report[1:] == ((), (), ())
    weights = fl.load(tmp_path / "b", {"model": other}, rename=to_new, strict=False)[0]["model"]
    new, _ = trained(flat, as_given(weights), restored)
    straight, _ = trained(plain, *trained(plain, model, plain.init(model)))
    assert same(new.unpack() if packed else new, straight)


@pytest.mark.parametrize("where", [None, "state", "state.**"])
@pytest.mark.parametrize("rename", [to_new, "by name"])
def test_it_is_read_within_a_tree_too(rename: Any, where: Any, tmp_path: Path) -> None:
    flat = fl.optim.flatten(ADAM)
    model, state = trained(flat, net(Old), flat.init(net(Old)))
    fl.save(tmp_path / "a", {"model": model, "state": state})
    like = {"model": net(New), "state": flat.init(net(New))}
    if rename == "by name":  # those of a state that is not flattened
        rename = {name: to_new(name) for name in fl.tree.paths({"model": model, "state": ADAM.init(model)})}
    loaded, report = fl.load(tmp_path / "a", like, rename=rename, strict=False, where=where)
    assert report.new == ()
    assert same(loaded["state"], state)
    with fl.Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.save(1, {"model": model, "state": state})
        restored = checkpoints.restore(like, rename=rename, strict=False)[1]
        checkpoints.save(2, restored)
        assert same(checkpoints.restore(like)[1], {"model": model, "state": state})


def test_a_state_is_taken_out_of_a_tree(tmp_path: Path) -> None:
    flat = fl.optim.flatten(ADAM)
    model, state = trained(flat, net(Old), flat.init(net(Old)))
    fl.save(tmp_path / "a", {"run": [model, state]})
    taken = fl.load(
        tmp_path / "a",
        flat.init(net(New)),
        rename=lambda name: to_new(name).removeprefix("run.1.") if name.startswith("run.1.") else None,
    )
    assert same(taken, state)


def test_a_packed_model_follows(tmp_path: Path) -> None:
    packed = fl.optim.pack({"it's": fl.nn.Linear(2, 2).freeze(), 'a "b"': net(Old), "é": fl.nn.BatchNorm(2)})
    like = fl.optim.pack({"it's": fl.nn.Linear(2, 2).freeze(), 'a "b"': net(New), "ü": fl.nn.BatchNorm(2)})
    fl.save(tmp_path / "a", packed)
    rename = {name: to_new(name).replace("é", "ü") for name in fl.tree.paths(packed.unpack())}
    for each in (rename, lambda name: to_new(name).replace("é", "ü")):
        loaded, report = fl.load(tmp_path / "a", like, rename=each, strict=False)
        assert same(loaded.unpack(), packed.unpack())
        assert report.differs == ("layout",)  # it says of which classes the modules are


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("make", [fl.optim.pack, lambda model: fl.optim.flatten(ADAM).init(model)])
def test_what_is_packed_goes_with_its_vectors(make: Any, strict: bool, tmp_path: Path) -> None:
    saved = {"old": make(net(Old)), "n": 1}
    fl.save(tmp_path / "a", saved)
    names = [name for name in (*fl.tree.paths(saved), "old.step") if name.startswith("old.")]
    rename = {name: name.replace("old.", "new.") for name in names}
    loaded = fl.load(tmp_path / "a", {"new": make(net(Old)), "n": 0}, rename=rename, strict=strict)
    assert fl.tree.equal(loaded if strict else loaded[0], {"new": saved["old"], "n": 1})


STATES = {"flattened": fl.optim.flatten(ADAM).init, "packed": fl.optim.pack, "large": fl.optim.flatten(ADAM, max_size=0).init}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("old", "new", "rename"),
    [
        (Old, Reordered, to_new),
        (Old, New, None),
        (Old, New, lambda name: name),
        (Old, New, {"encoder.weight": "backbone.weight"}),
        (Old, New, lambda name: None if "encoder.bias" in name else to_new(name)),
        (Old, Old, lambda name: name.replace("encoder.", "x.").replace("head.", "encoder.").replace("x.", "head.")),
        (Old, New, lambda name: f"elsewhere.{to_new(name)}" if "encoder.weight" in name else to_new(name)),
    ],
)
def test_others_are_refused(kind: str, strict: bool, old: Any, new: Any, rename: Any, tmp_path: Path) -> None:
    fl.save(tmp_path / "a", STATES[kind](net(old)))
    with pytest.raises(fl.OtherStructureError, match="rename= for those that have other names now"):
        fl.load(tmp_path / "a", STATES[kind](net(new)), rename=rename, strict=strict)


def test_what_is_advised_leads_to_another_order(tmp_path: Path) -> None:
    first, runs = net(Old), {}
    for name, opt in {"flat": fl.optim.flatten(ADAM), "plain": ADAM}.items():
        model, state = trained(opt, first, opt.init(first))
        fl.save(tmp_path / name, state)
        other = Reordered(model.head, model.encoder)
        in_order = fl.load(tmp_path / name, opt.init(net(New)), rename=to_new)
        runs[name], _ = trained(opt, other, opt.adapt(in_order, other))
    assert fl.tree.equal(runs["flat"], runs["plain"])
    assert not same(runs["plain"], trained(ADAM, other, ADAM.init(other))[0])
