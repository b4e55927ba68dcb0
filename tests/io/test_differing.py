"""What a report tells of modes and of what is frozen, which a tree keeps when arrays are read into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl


class Net(fl.Module):
    encoder: fl.nn.Sequential
    norm: fl.nn.BatchNorm
    head: fl.nn.Linear


class Names(fl.Module):
    parts: dict[str, Any]


def net() -> Net:
    return Net(
        fl.nn.Sequential(fl.nn.Linear(2, 2), fl.nn.Dropout(0.5), fl.nn.RMSNorm(2)), fl.nn.BatchNorm(2), fl.nn.Linear(2, 2)
    )


def frozen(*where: str) -> Any:
    return net().at([*where]).freeze()


def evaluated(*where: str) -> Any:
    return net().at([*where]).apply(lambda module: module.eval())


def differs(folder: Path, tree: Any, like: Any, **options: Any) -> tuple[str, ...]:
    fl.save(folder / "a", tree)
    loaded, report = fl.load(folder / "a", like, strict=False, **options)
    assert fl.tree.structure(loaded) == fl.tree.structure(like)
    return report.differs


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (net(), net(), ()),
        (net().eval(), net(), ("(root) (mode)",)),
        ({"a": [net().eval()], "b": net()}, {"a": [net()], "b": net()}, ("a.0 (mode)",)),
        (evaluated("encoder"), net(), ("encoder (mode)",)),
        (evaluated("encoder", "norm"), evaluated("encoder"), ("norm (mode)",)),
        (net().eval(), evaluated("encoder", "norm"), ("(root) (mode)",)),
        (net().eval(), net().eval().at("encoder").apply(lambda module: module.train()), ("encoder (mode)",)),
        (net().freeze(), net(), ("(root) (frozen)",)),
        ([net().freeze(), net()], [net(), net()], ("0 (frozen)",)),
        (frozen("encoder"), net(), ("encoder (frozen)",)),
        (frozen("encoder.layers.2"), net(), ("encoder.layers.2 (frozen)",)),
        (frozen("head.bias"), net(), ("head (frozen)",)),
        (net().freeze(), frozen("encoder", "head"), ("norm (frozen)",)),
        (net().freeze(), frozen("encoder", "head.bias"), ("norm (frozen)", "head (frozen)")),
        (frozen("encoder"), frozen("encoder.layers.0"), ("encoder.layers.2 (frozen)",)),
        (frozen("norm"), frozen("norm.weight", "norm.bias"), ()),
        (net().replace(head=None).freeze(), net().replace(head=None), ("(root) (frozen)",)),
        (frozen("norm").eval(), net(), ("(root) (mode)", "norm (frozen)")),
    ],
)
def test_modes_and_what_is_frozen_are_told(one: Any, other: Any, expected: tuple[str, ...], swap: bool, tmp_path: Path) -> None:
    tree, like = (other, one) if swap else (one, other)
    found = differs(tmp_path, tree, like)
    assert found == expected
    if not found:
        return
    with pytest.raises(fl.OtherStructureError) as error:
        fl.load(tmp_path / "a", like)
    for place in found:
        inside = place.replace("(root) ", "").partition("(")[0].strip()
        assert f"{place}: " in str(error.value) or (place.endswith("(frozen)") and f"\n{inside}" in str(error.value))


def test_a_name_that_covers_what_is_below_is_the_same_as_the_names_there(tmp_path: Path) -> None:
    by_name = net().freeze(recurse=False, keys="encoder", strict=False)
    assert fl.tree.structure(by_name) != fl.tree.structure(frozen("encoder"))
    assert differs(tmp_path, by_name, frozen("encoder")) == ()
    assert differs(tmp_path, by_name, net()) == ("encoder (frozen)",)


@pytest.mark.parametrize("change", [fl.nn.Sequential.eval, fl.nn.Sequential.freeze])
def test_a_report_over_many_modules_is_short(change: Any, tmp_path: Path) -> None:
    block = fl.nn.Sequential(fl.nn.RMSNorm(2), fl.nn.Linear(2, 2))
    model = fl.nn.Sequential(*[block] * 500)
    assert len(differs(tmp_path, {"model": change(model), "n": 1}, {"model": model, "n": 1})) == 1


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("norm", ()),
        ("head", ("head (mode)", "head (frozen)")),
        ("head.weight", ()),
        ("encoder", ()),
        ("**", ("head (mode)", "head (frozen)")),
    ],
)
def test_only_what_is_selected_is_told_of(where: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    tree = net().at("head").apply(lambda module: module.eval().freeze())
    assert differs(tmp_path, tree, net(), where=where) == expected


def test_what_only_one_has_is_not_told_of(tmp_path: Path) -> None:
    norm, head = fl.nn.RMSNorm(2), fl.nn.Linear(2, 2)
    assert differs(tmp_path, {"a": norm, "b": head}, {"a": norm, "c": head.eval().freeze()}) == ()
    assert differs(tmp_path, [norm.freeze(), head.eval()], [norm, fl.nn.Sequential(norm)]) == ("1", "1 (mode)", "0 (frozen)")


def test_modes_and_frozen_names_follow_what_is_renamed(tmp_path: Path) -> None:
    tree, like = ({name: fl.nn.Linear(2, 2).eval().freeze() for name in names} for names in (("a", "n"), ("b", "n")))
    assert differs(tmp_path, tree, like, rename=lambda name: name.replace("a.", "b.")) == ()
    trained = {**like, "b": fl.nn.Linear(2, 2)}
    expected = ("b (mode)", "b (frozen)")
    assert differs(tmp_path, tree, trained, rename=lambda name: name.replace("a.", "b.")) == expected


def test_arrays_that_get_another_name_in_a_module_stay_frozen(tmp_path: Path) -> None:
    class One(fl.Module):
        weight: mx.array
        bias: mx.array

    class Other(fl.Module):
        kernel: mx.array
        bias: mx.array

    one, other = One(mx.ones(2), mx.ones(1)), Other(mx.ones(2), mx.ones(1))
    rename = {"a.weight": "a.kernel"}
    assert differs(tmp_path, {"a": one.freeze()}, {"a": other.freeze()}, rename=rename) == ("a",)
    assert differs(tmp_path, {"a": one.freeze()}, {"a": other}, rename=rename) == ("a", "a (frozen)")
    with pytest.raises(fl.OtherStructureError) as error:
        fl.load(tmp_path / "a", {"a": other}, rename=rename)
    assert "kernel in like" not in str(error.value)


@pytest.mark.parametrize("frozen", [False, True])
def test_ties_follow_what_is_renamed(frozen: bool, tmp_path: Path) -> None:
    def tied(name: str) -> Any:
        model = fl.nn.Sequential(fl.nn.Embedding(3, 2), fl.nn.Linear(2, 3))
        tree = Names({name: model.layers[0], "out": model.layers[1]}).tie({"parts.out.weight": f"parts.{name}.weight"})
        return tree.freeze() if frozen else tree

    fl.save(tmp_path / "a", {"model": tied("old")})
    like = {"model": tied("new")}
    loaded = fl.load(tmp_path / "a", like, rename=lambda name: name.replace("old.", "new."))
    assert fl.tree.structure(loaded) == fl.tree.structure(like)
