"""``flatten`` of a model that was just built, and ``unflatten``, beside optree's own attrs integration: 192 arrays."""

import time

import optree
from models import Block, Layer, Model, OptreeBlock, OptreeLayer, OptreeModel, build

import frostleaf as fl

BLOCKS = 12
ROUNDS = 200


def test_flatten_of_a_new_model(table, without_collector):
    flatten = {
        (Model, Block, Layer): fl.tree.flatten,
        (OptreeModel, OptreeBlock, OptreeLayer): lambda tree: optree.tree_flatten(tree, namespace="benchmark"),
    }
    taken = [], []
    for _ in range(ROUNDS):
        for times, (classes, function) in zip(taken, flatten.items(), strict=True):
            tree = build(BLOCKS, *classes, size=1)
            start = time.perf_counter()
            result = function(tree)
            times.append(time.perf_counter() - start)
            assert len(result[0]) == 16 * BLOCKS
            del tree, result
    table.add("flatten, 192 arrays, never flattened before / optree's attrs", *taken)


def test_unflatten(table, interleaved):
    leaves, structure = fl.tree.flatten(build(BLOCKS, size=1))
    theirs = build(BLOCKS, OptreeModel, OptreeBlock, OptreeLayer, size=1)
    their_leaves, spec = optree.tree_flatten(theirs, namespace="benchmark")
    taken = interleaved(
        lambda: fl.tree.unflatten(structure, leaves), lambda: optree.tree_unflatten(spec, their_leaves), rounds=ROUNDS
    )
    table.add("unflatten, 192 arrays / optree's attrs", *taken)
