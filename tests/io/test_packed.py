"""Vectors of arrays that lie end to end, read into those of a model with other fields, or with these in another order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl


class Net(fl.Module):
    encoder: fl.nn.Linear
    head: fl.nn.Linear


class Swapped(fl.Module):
    head: fl.nn.Linear
    encoder: fl.nn.Linear


class Renamed(fl.Module):
    head: fl.nn.Linear
    backbone: fl.nn.Linear


class Same(fl.Module):
    encoder: fl.nn.Linear
    head: fl.nn.Linear
    rate: float = fl.static(default=0.5)


def net(kind: Any) -> Any:
    return kind(fl.nn.Linear(2, 2), fl.nn.Linear(2, 2))


flat = fl.optim.flatten(fl.optim.Adam(1e-2))
STATES: dict[str, Callable[[Any], Any]] = {
    "flattened": flat.init,
    "accumulated": lambda model: fl.optim.accumulate(flat, 2).init(fl.optim.pack(model)),
    "averaged": lambda model: fl.optim.ema(flat, 0.5).init(fl.optim.pack(model)),
    "packed": fl.optim.pack,
    "chained": lambda model: fl.optim.chain(fl.optim.clip_by_value(1.0), flat).init(model),
    "large": fl.optim.flatten(fl.optim.Adam(1e-2), max_size=0).init,
}


def renamed(name: str) -> str:
    return name.replace("encoder.", "backbone.")


def saved(tree: Any, folder: Path) -> Path:
    fl.save(folder / "a", tree)
    return folder / "a"


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize(("other", "rename"), [(Swapped, None), (Renamed, renamed), (Renamed, None)])
@pytest.mark.parametrize("options", [{}, {"strict": False}, {"strict": False, "where": "state.**"}])
def test_numbers_are_never_read_as_those_of_other_arrays(
    kind: str, other: Any, rename: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    file = saved({"model": net(Net), "state": STATES[kind](net(Net))}, tmp_path)
    like = {"model": net(other), "state": STATES[kind](net(other))}
    with pytest.raises(fl.OtherStructureError) as error:
        fl.load(file, like, rename=rename, **options)
    assert "adapt(state, model)" in str(error.value)
    assert "reads them" not in str(error.value)


@pytest.mark.parametrize("where", ["state.slots", "state.slots.**", "**.m", lambda path, _: "slots" in path])
def test_a_part_of_a_state_is_none_either(where: Any, tmp_path: Path) -> None:
    file = saved({"state": flat.init(net(Net))}, tmp_path)
    with pytest.raises(fl.OtherStructureError, match="packed end to end"):
        fl.load(file, {"state": flat.init(net(Swapped))}, where=where)


def test_what_is_advised_carries_over_by_name(tmp_path: Path) -> None:
    model = net(Net)
    grads = fl.grad(lambda each: 5 * each.encoder.weight.sum() + each.head(mx.ones(2)).sum())(model)
    model, state = flat.update(model, grads, flat.init(model))
    restored = fl.load(saved(state, tmp_path), flat.init(net(Net)))
    after = flat.adapt(restored, net(Swapped))
    old, new = state.slots["vectors.float32"]["m"], after.slots["vectors.float32"]["m"]
    assert mx.array_equal(mx.concatenate([new[6:], new[:6]]), old)


@pytest.mark.parametrize("kind", STATES)
def test_what_lies_in_the_same_order_is_read(kind: str, tmp_path: Path) -> None:
    tree = {"model": net(Net), "state": STATES[kind](net(Net)), "vectors": {"large": mx.ones(2)}}
    like = {"model": net(Same), "state": STATES[kind](net(Same)), "vectors": {"large": mx.zeros(2)}}
    loaded, report = fl.load(saved(tree, tmp_path), like, strict=False)
    assert report[1:3] == ((), ())
    assert fl.tree.equal(fl.tree.leaves(loaded), fl.tree.leaves(tree))
    assert fl.load(tmp_path / "a", like, where="vectors")["vectors"]["large"].tolist() == [1, 1]


@pytest.mark.parametrize("options", [{"where": "model.**"}, {"where": "state.step"}, {"where": "vectors"}])
def test_what_is_not_packed_is_read_without_it(options: dict[str, Any], tmp_path: Path) -> None:
    tree, like = [
        {"model": net(kind), "state": flat.init(net(kind)), "vectors": {"large": mx.ones(2)}} for kind in (Net, Swapped)
    ]
    assert fl.load(saved(tree, tmp_path), like, strict=False, **options)[1].taken


def test_vectors_that_are_left_out_are_not_compared(tmp_path: Path) -> None:
    tree, like = [{"model": net(kind), "state": flat.init(net(kind))} for kind in (Net, Swapped)]
    _, report = fl.load(saved(tree, tmp_path), like, strict=False, rename=lambda name: None if ".vectors." in name else name)
    assert "state.slots.vectors.float32.m" in report.new
    assert "model.head.weight" in report.taken
