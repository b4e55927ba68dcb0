"""Numbers of an optimizer's state are read for the same rule alone, whatever their names are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl

MODEL = fl.nn.Linear(2, 2)
RULES: dict[str, Callable[[], Any]] = {
    "SGD": lambda: fl.optim.SGD(0.1, momentum=0.9),
    "RMSprop": lambda: fl.optim.RMSprop(0.1),
    "Adam": lambda: fl.optim.Adam(0.1),
    "AdamW": lambda: fl.optim.AdamW(0.1),
    "Lion": lambda: fl.optim.Lion(0.1),
}
AROUND: dict[str, Callable[[Any], Any]] = {
    "alone": lambda opt: opt,
    "flattened": fl.optim.flatten,
    "averaged": lambda opt: fl.optim.ema(opt, 0.9),
    "in a chain": lambda opt: fl.optim.chain(fl.optim.clip_by_global_norm(1.0), opt),
    "of some": lambda opt: fl.optim.multi({"weight": opt, "**": fl.optim.SGD(0.1)}),
}


def trained(opt: Any) -> tuple[Any, Any]:
    model, state = opt.update(MODEL, fl.tree.map(mx.ones_like, MODEL), opt.init(MODEL))
    fl.eval(model, state)
    return model, state


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("other", RULES)
@pytest.mark.parametrize("rule", RULES)
def test_a_state_is_read_for_its_own_rule_alone(rule: str, other: str, around: str, tmp_path: Path) -> None:
    saved = trained(AROUND[around](RULES[rule]()))
    opt = AROUND[around](RULES[other]())
    like = (MODEL, opt.init(MODEL))
    fl.save(tmp_path / "run", saved)
    (model, state), report = fl.load(tmp_path / "run", like, strict=False)
    assert fl.tree.equal(model, saved[0])
    if rule == other:
        assert fl.tree.equal(state, saved[1])
        assert not report.differs
        assert not report.new
        return
    (holder,) = [path.removesuffix("rule") for path in report.differs]
    assert not any(name.startswith(holder) for name in report.taken)
    assert all(name.startswith(holder) for name in (*report.new, *report.left))
    fl.eval(opt.update(model, fl.tree.map(mx.ones_like, model), state))
    with pytest.raises(
        fl.OtherStructureError, match=r"rule' mean something else in the file, .* strict=False keeps those of like"
    ):
        fl.load(tmp_path / "run", like)


@pytest.mark.parametrize("where", ["1.slots.**", "1.slots.weight.v", ["0.**", "1.slots.weight.v"]])
def test_slots_of_another_rule_are_not_selected_either(where: Any, tmp_path: Path) -> None:
    fl.save(tmp_path / "run", trained(RULES["SGD"]()))
    like = (MODEL, RULES["RMSprop"]().init(MODEL))
    with pytest.raises(fl.OtherStructureError, match=r"1\.rule \(static\): 'SGD' in the file, 'RMSprop' in like\nThe numbers"):
        fl.load(tmp_path / "run", like, where=where)
    assert fl.load(tmp_path / "run", like, where="0.**")[1] is like[1]
    with pytest.raises(fl.OtherStructureError) as caught:
        fl.load(tmp_path / "run", (fl.nn.Linear(3, 2), like[1]), where="0.**")
    assert "mean something else" not in str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
def test_where_there_is_nothing_else_it_is_an_error(strict: bool, tmp_path: Path) -> None:
    state = trained(RULES["SGD"]())[1]
    fl.save(tmp_path / "run", state)
    with pytest.raises(fl.OtherStructureError, match=r"rule \(static\): 'SGD' in the file, (.|\n)* go on from those of like"):
        fl.load(tmp_path / "run", RULES["Adam"]().init(MODEL), strict=strict)


def test_renamed_slots_are_of_the_rule_that_they_were(tmp_path: Path) -> None:
    fl.save(tmp_path / "run", {"old": trained(RULES["SGD"]())[1], "n": 1})
    like = {"new": RULES["RMSprop"]().init(MODEL), "n": 2}
    loaded, report = fl.load(tmp_path / "run", like, strict=False, rename=lambda name: name.replace("old.", "new."))
    assert report.taken == ("n",)
    assert report.differs == ("new.rule",)
    assert fl.tree.equal(loaded, {**like, "n": 1})


@pytest.mark.parametrize("around", ["alone", "averaged", "in a chain"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("flat_in_file", [False, True])
def test_the_state_of_a_flattened_optimizer_is_none_of_another(
    flat_in_file: bool, packed: bool, around: str, tmp_path: Path
) -> None:
    plain, flat = [AROUND[around](opt) for opt in (fl.optim.Adam(0.1), fl.optim.flatten(fl.optim.Adam(0.1)))]
    one, other = (flat, plain) if flat_in_file else (plain, flat)
    model, state = trained(one)
    fl.save(tmp_path / "run", {"m": model, "s": state})
    begun = other.init(fl.optim.pack(MODEL) if packed and other is flat else MODEL)
    like = {"m": MODEL, "s": begun}
    with pytest.raises(fl.OtherStructureError) as raised:
        fl.load(tmp_path / "run", like)
    words = "state of fl.optim.flatten(opt) there" if flat_in_file else "state of opt rather than of fl.optim.flatten(opt)"
    assert words in str(raised.value)
    assert "strict=False" not in str(raised.value)
    loaded, report = fl.load(tmp_path / "run", like, strict=False)
    assert fl.tree.equal(loaded["m"], model)
    fl.eval(loaded)
    moved = [name for name in report.taken if name.startswith("s.") and ".average." not in name]
    assert moved == []
    with pytest.raises(fl.OtherStructureError, match="flattened"):
        fl.load(tmp_path / "run", like, where="s" if around != "averaged" else "s.inner", strict=False)
    # What is said works.
    assert fl.tree.equal(fl.load(tmp_path / "run", {"m": MODEL, "s": one.init(MODEL)}), {"m": model, "s": state})
