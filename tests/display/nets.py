"""A model to look at, and what it is called with."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

import frostleaf as fl

X = fl.ShapeDtypeStruct((3, 4))


class Net(fl.Module):
    norm: fl.nn.BatchNorm
    inner: fl.nn.Linear
    drop: fl.nn.Dropout
    spare: fl.nn.Linear

    def __init__(self) -> None:
        self.norm, self.inner, self.drop = fl.nn.BatchNorm(4), fl.nn.Linear(4, 4), fl.nn.Dropout(0.1)
        self.spare = fl.nn.Linear(9, 9)

    def encode(self, x: mx.array) -> mx.array:
        return self.drop(self.norm(x))

    def __call__(self, x: mx.array, scale: float = 1.0) -> Any:
        y = self.inner(self.inner(self.encode(x)))
        return y * scale, {"first": y[0]}
