"""How much is done to read large trees, counted and not timed: it is in proportion to them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

import frostleaf as fl


def calls(function: Callable[[], Any]) -> list[str]:
    """Return the names of the functions, also of C, that a function calls, whether or not it succeeds."""
    names: list[str] = []

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event in ("call", "c_call"):
            names.append(frame.f_code.co_name if event == "call" else function.__name__)

    sys.setprofile(note)
    try:
        with suppress(fl.OtherStructureError):
            function()
    finally:
        sys.setprofile(None)
    return names


class Layer(fl.Module):
    weight: mx.array
    inner: Any = None
    eps: float = fl.static(default=1.0)
    about: Any = fl.static(default=None)


class Model(fl.Module):
    layers: Any
    heads: Any = None


def of(count: int, **options: Any) -> Model:
    return Model([Layer(mx.zeros(1), **options) for _ in range(count)], [mx.zeros(1) for _ in range(count)])


def tied(count: int) -> Model:
    return of(count).tie({f"heads.{at}": f"layers.{at}.weight" for at in range(count)})


class OfMLX(nn.Module):
    def __init__(self, count: int, twice: bool) -> None:
        super().__init__()
        self.layers = [nn.Linear(1, 1) for _ in range(count)]
        self.heads = self.layers if twice else [nn.Linear(1, 1) for _ in range(count)]


LOADS: dict[str, tuple[Callable[[int], Any], Callable[[int], Any], Callable[[Path, Any], Any]]] = {
    "static values": (of, lambda count: of(count, eps=2.0), fl.load),
    "static objects": (of, lambda count: of(count, about=range(2)), fl.load),
    "modes": (of, lambda count: of(count).at("layers").apply(lambda layers: [each.eval() for each in layers]), fl.load),
    "ties": (tied, of, fl.load),
    "ties, not strict": (tied, of, lambda file, like: fl.load(file, like, strict=False)),
    "modules at two places, not strict": (
        lambda count: fl.from_mlx(OfMLX(count, True)),
        lambda count: fl.from_mlx(OfMLX(count, False)),
        lambda file, like: fl.load(file, like, strict=False),
    ),
    "weights": (tied, of, lambda file, like: like.load_weights(file, strict=False)),
}


@pytest.mark.parametrize("load", LOADS)
def test_twice_as_large_a_tree_is_twice_the_work(load: str, tmp_path: Path) -> None:
    saved, like, read = LOADS[load]
    work = []
    for count in (200, 400):
        file, tree = tmp_path / f"{count}.safetensors", like(count)
        fl.save(file, saved(count))
        work.append(len(calls(lambda file=file, tree=tree: read(file, tree))))
    assert work[1] < 2.5 * work[0]


@pytest.mark.parametrize("strict", [True, False])
def test_a_deep_tree_that_is_as_the_file_is_not_searched(strict: bool, tmp_path: Path) -> None:
    tree = Layer(mx.zeros(1))
    for _ in range(20):
        tree = Layer(mx.zeros(1), tree)
    fl.save(tmp_path / "a", tree)
    assert "enclosing" not in calls(lambda: fl.load(tmp_path / "a", tree, strict=strict))
