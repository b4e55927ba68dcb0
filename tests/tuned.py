"""A tiny transformer twice, as a frozen tree and as a module of mlx.nn, with the names and shapes of mlx-lm's models."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn
from mlx.utils import tree_flatten

import frostleaf as fl

DIMS, WORDS = 64, 12


class OurBlock(fl.Module):
    self_attn: Any
    mlp: Any
    norm: Any

    def __call__(self, x: mx.array) -> mx.array:
        return block(self, x)


class OurModel(fl.Module):
    embed_tokens: Any
    layers: Any
    lm_head: Any

    def __call__(self, tokens: mx.array) -> mx.array:
        return model(self, tokens)


class TheirBlock(mlx.nn.Module):
    def __init__(self, self_attn: Any, mlp: Any, norm: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm = self_attn, mlp, norm

    def __call__(self, x: mx.array) -> mx.array:
        return block(self, x)


class TheirModel(mlx.nn.Module):
    def __init__(self, embed_tokens: Any, layers: Any, lm_head: Any) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.lm_head = embed_tokens, layers, lm_head

    def __call__(self, tokens: mx.array) -> mx.array:
        return model(self, tokens)


def block(self: Any, x: mx.array) -> mx.array:
    y = self.norm(x)
    q, k, v = [self.self_attn[name](y)[None, None] for name in ("q_proj", "k_proj", "v_proj")]
    attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=DIMS**-0.5, mask="causal")
    x = x + self.self_attn["o_proj"](attended[0, 0])
    return x + self.mlp["down_proj"](mlx.nn.relu(self.mlp["up_proj"](self.norm(x))))


def model(self: Any, tokens: mx.array) -> mx.array:
    x = self.embed_tokens(tokens)
    for layer in self.layers:
        x = layer(x)
    return self.embed_tokens.as_linear(x) if self.lm_head is None else self.lm_head(x)


def built(nn: Any, seed: int = 0, head: bool = True, quantized: bool = False) -> Any:
    """Return the model, of ``fl.nn`` or ``mlx.nn``, with the same numbers."""
    mx.random.seed(seed)
    block_type, model_type = (OurBlock, OurModel) if nn is fl.nn else (TheirBlock, TheirModel)

    def one() -> Any:
        attention = {name: nn.Linear(DIMS, DIMS, bias=name != "o_proj") for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        mlp = {"up_proj": nn.Linear(DIMS, 2 * DIMS), "down_proj": nn.Linear(2 * DIMS, DIMS)}
        return block_type(attention, mlp, nn.RMSNorm(DIMS))

    made = model_type(nn.Embedding(WORDS, DIMS), [one(), one()], nn.Linear(DIMS, WORDS, bias=False) if head else None)
    if not quantized:
        return made
    if nn is fl.nn:
        return fl.quantize(made, 32, 4)
    mlx.nn.quantize(made, 32, 4)
    return made


def named(tree: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


def assert_same(ours: Any, theirs: Any) -> None:
    """Check that two nested dicts of arrays have the same names in the same order, and the same bits."""
    one, other = named(ours), named(theirs)
    assert list(one) == list(other)
    for name, array in other.items():
        assert one[name].dtype == array.dtype, name
        assert mx.array_equal(one[name], array), name
