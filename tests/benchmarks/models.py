"""Models of n blocks, each of eight layers with two arrays, as frostleaf modules, optree's attrs classes and lists."""

import mlx.core as mx
from optree.integrations import attrs as optree_attrs

import frostleaf as fl

LAYERS = ("query", "key", "value", "out", "up", "down", "norm1", "norm2")


class Layer(fl.Module):
    weight: mx.array
    bias: mx.array
    dims: int = fl.static()


class Block(fl.Module):
    query: Layer
    key: Layer
    value: Layer
    out: Layer
    up: Layer
    down: Layer
    norm1: Layer
    norm2: Layer


class Model(fl.Module):
    blocks: tuple


@optree_attrs.frozen(namespace="benchmark")
class OptreeLayer:
    weight: mx.array
    bias: mx.array
    dims: int = optree_attrs.field(pytree_node=False)
    training: bool = optree_attrs.field(pytree_node=False, default=True)
    frozen: frozenset = optree_attrs.field(pytree_node=False, default=frozenset())


@optree_attrs.frozen(namespace="benchmark")
class OptreeBlock:
    query: OptreeLayer
    key: OptreeLayer
    value: OptreeLayer
    out: OptreeLayer
    up: OptreeLayer
    down: OptreeLayer
    norm1: OptreeLayer
    norm2: OptreeLayer
    training: bool = optree_attrs.field(pytree_node=False, default=True)
    frozen: frozenset = optree_attrs.field(pytree_node=False, default=frozenset())


@optree_attrs.frozen(namespace="benchmark")
class OptreeModel:
    blocks: tuple
    training: bool = optree_attrs.field(pytree_node=False, default=True)
    frozen: frozenset = optree_attrs.field(pytree_node=False, default=frozenset())


def build(blocks, model=Model, block=Block, layer=Layer, size=8):
    """Return a model of ``blocks`` times sixteen vectors."""
    one = [mx.ones((size,)) for _ in range(2)]
    return model(tuple(block(*(layer(one[0] + 0, one[1] * 0.5, size) for _ in LAYERS)) for _ in range(blocks)))


def loss_of(leaves, x):
    """Return a scalar that depends on every leaf."""
    for leaf in leaves:
        x = x * leaf
    return x.sum()
