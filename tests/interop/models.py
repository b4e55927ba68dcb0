"""Modules of ``mlx.nn`` that do what real models do."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import mlx.nn as nn


@dataclasses.dataclass
class Args:
    """Arguments that can be changed, and not hashed."""

    dims: int = 4
    scaling: dict[str, Any] = dataclasses.field(default_factory=lambda: {"type": "none", "factors": [1.0, 2.0]})


class Rope(nn.Module):
    """Has a table in a private name."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self._freqs = mx.arange(dims, dtype=mx.float32)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self._freqs


class Block(nn.Module):
    def __init__(self, dims: int, bias: bool, index: int) -> None:
        super().__init__()
        self.up = nn.Linear(dims, 2 * dims, bias=bias)
        self.down = nn.Linear(2 * dims, dims)
        self.norm = nn.LayerNorm(dims)
        self.scale = 0.5
        self.index = index

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.scale * self.down(nn.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    """Linear layers, norms, a list of blocks whose layouts differ, dicts, tuples, private arrays, plain attributes."""

    def __init__(self, args: Args | None = None) -> None:
        super().__init__()
        args = args or Args()
        dims = args.dims
        self.args = args
        self.embed = nn.Embedding(8, dims)
        self.blocks = [Block(dims, index > 0, index) for index in range(2)]
        self.heads = {"main": nn.Linear(dims, 3), "extra.one": [nn.Linear(dims, 2)]}
        self.rope = Rope(dims)
        self.pair = (mx.ones(dims), mx.zeros(dims))
        self.sizes = [1, 2, 3]
        self.shape = (2, 3)
        self.name = "tiny"
        self.activation = nn.silu
        self.missing = None
        self.head = self.project
        self.embed.freeze()
        self.blocks[1].eval()

    @property
    def layers(self) -> list[Block]:
        return self.blocks

    @property
    def width(self) -> int:
        return self.args.dims

    @staticmethod
    def double(x: Any) -> Any:
        return 2 * x

    @classmethod
    def build(cls) -> Model:
        return cls()

    def project(self, x: mx.array) -> mx.array:
        return self.heads["main"](x)

    def tokens(self, x: mx.array) -> Any:
        for index in range(x.shape[1]):
            yield self.embed(x[:, index])

    def add_to_extra(self, amount: float) -> None:
        self.extra = amount

    def scale_blocks(self, scale: float) -> int:
        for block in self.blocks:
            block.scale = scale
        return len(self.blocks)

    def __call__(self, x: mx.array, twice: bool = False) -> mx.array:
        assert type(self.blocks) is list
        assert type(self.heads) is dict
        assert type(self.pair) is tuple
        assert self.sizes == [1, 2, 3]
        assert type(self.embed) is nn.Embedding
        y = self.rope(self.embed(x)) * self.pair[0]
        for block in self.blocks:
            y = block(y)
        y = self.head(self.pair[1] + self.activation(y))
        return 2 * y if twice else y


class Counter(nn.Module):
    """Changes itself in every way in its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = mx.array(0.0)
        self.table = mx.zeros(3)
        self.weight = mx.ones(3)
        self.calls = 0
        self.seen = []
        self.inner = nn.Linear(3, 3)

    def __call__(self, x: mx.array) -> mx.array:
        self.count += 1
        self.table[0] = x.sum()
        self.calls += 1
        self.seen.append(self.calls)
        self.memo = {"x": x}
        return x * self.weight + self.count + self.calls


class Shared(nn.Module):
    """A layer at two places, and an array at two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.third = nn.Linear(3, 3)
        self.third.weight = self.first.weight

    def __call__(self, x: mx.array) -> mx.array:
        assert type(self.first) is not nn.Linear or self.first is self.second
        return self.third(self.second(self.first(x)))
