"""What the tests of exported functions share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

import frostleaf as fl


def through(folder: Path, fn: Callable[..., Any], *examples: Any, **options: Any) -> Any:
    fl.export_function(folder / "f.mlxfn", fn, *examples, **options)
    return fl.import_function(folder / "f.mlxfn")


def apply(model: Any, x: Any) -> Any:
    return model(x)


def batch(rows: int, columns: int = 4, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal((rows, columns)).astype(dtype)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(4, 4, bias=False), nn.RMSNorm(4)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = nn.gelu(layer(x))
        return x
