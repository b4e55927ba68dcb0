"""``flatten`` and ``unflatten`` beside optree's own attrs integration, on a model of 12 blocks and 192 arrays.

Run with ``pytest -s tests/benchmarks``. Prints ratios; asserts nothing about time.
"""

import statistics
import time

import mlx.core as mx
import optree
from optree.integrations import attrs as optree_attrs

import frostleaf as fl

BLOCKS = 12
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


def build(model, block, layer):
    array = mx.zeros((1,))
    return model(tuple(block(*(layer(array, array, 4) for _ in LAYERS)) for _ in range(BLOCKS)))


def interleaved(*functions, rounds=400):
    """Return the median seconds of each function, called in turn."""
    times = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def test_flatten_and_unflatten_beside_optree_attrs():
    ours = build(Model, Block, Layer)
    theirs = build(OptreeModel, OptreeBlock, OptreeLayer)
    leaves, structure = fl.tree.flatten(ours)
    their_leaves, spec = optree.tree_flatten(theirs, namespace="benchmark")
    assert len(leaves) == len(their_leaves) == 16 * BLOCKS

    flat, their_flat = interleaved(lambda: fl.tree.flatten(ours), lambda: optree.tree_flatten(theirs, namespace="benchmark"))
    back, their_back = interleaved(
        lambda: fl.tree.unflatten(structure, leaves), lambda: optree.tree_unflatten(spec, their_leaves)
    )
    print(f"\nflatten   {flat * 1e6:7.1f} us, optree attrs {their_flat * 1e6:7.1f} us, ratio {flat / their_flat:.2f}")
    print(f"unflatten {back * 1e6:7.1f} us, optree attrs {their_back * 1e6:7.1f} us, ratio {back / their_back:.2f}")
