"""Arrays that have no values yet are evaluated before a function is exported: its constants are arrays with values."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from exports import apply

import frostleaf as fl


def loaded(folder: Path) -> Any:
    made().save_weights(folder / "w.safetensors")
    return made().load_weights(folder / "w.safetensors")


def made() -> Any:
    return fl.nn.Linear(64, 64)


def one_step(model: Any, x: mx.array) -> Any:
    optimizer = fl.optim.SGD(1e-3)
    return optimizer.update(model, fl.grad(lambda model: model(x).sum())(model), optimizer.init(model))[0]


LATE: dict[str, Callable[[Path], Any]] = {
    "new": lambda folder: made(),
    "loaded": loaded,
    "trained": lambda folder: one_step(fl.jit(one_step)(made(), mx.ones((2, 64))), mx.ones((2, 64))),
    "cast": lambda folder: made().astype(mx.bfloat16).astype(mx.float32),
    "quantized": lambda folder: fl.quantize(made(), group_size=32),
}


@dataclasses.dataclass
class Holder:
    models: list[Any]


HELD: dict[str, Callable[[Any], Any]] = {
    "function": lambda model: model,
    "method": lambda model: model.__call__,
    "partial": lambda model: functools.partial(apply, model),
    "closure": lambda model: lambda x: model(x),
    "default": lambda model: lambda x, model=model: model(x),
    "object": lambda model: lambda x, run=Holder([{"a": model}]): run.models[0]["a"](x),  # noqa: B008
    "jitted": lambda model: lambda x, fn=fl.jit(lambda x: model(x)): fn(x),  # noqa: B008
    "gradient in a jitted function": lambda model: fl.jit(fl.grad(lambda x: model(x).sum())),
    "gradient": lambda model: lambda x: fl.grad(lambda x: model(x).sum())(x),
}


@pytest.mark.filterwarnings("ignore::frostleaf.CapturedArrayWarning")
@pytest.mark.parametrize("how", LATE)
@pytest.mark.parametrize("where", HELD)
def test_arrays_that_have_no_values_yet_are_constants_with_values(how: str, where: str, tmp_path: Path) -> None:
    model, x = LATE[how](tmp_path), mx.ones((2, 64))
    fn = HELD[where](model)
    fl.export_function(tmp_path / "late", fn, x, shapeless=how != "quantized")
    fl.eval(model)
    fl.export_function(tmp_path / "evaluated", fn, x, shapeless=how != "quantized")
    assert os.path.getsize(tmp_path / "late") == os.path.getsize(tmp_path / "evaluated")
    assert fl.tree.allclose(fl.import_function(tmp_path / "late")(x), fn(x), rtol=1e-5, atol=1e-5)


def test_what_is_made_anew_in_each_call_is_refused_with_what_to_do(tmp_path: Path) -> None:
    loaded(tmp_path)
    x = mx.ones((2, 64))
    models = iter([one_step(made(), x) for _ in range(9)])
    late: dict[str, Callable[[Any], Any]] = {
        "reads arrays from a file when it is called": lambda x: x @ mx.load(str(tmp_path / "w.safetensors"))["weight"],
        "must depend on its arguments alone": lambda x: next(models)(x),
    }
    for message, fn in late.items():
        with pytest.raises(ValueError, match=message):
            fl.export_function(tmp_path / "f", fn, x)
