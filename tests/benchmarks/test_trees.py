"""Cost per array of the functions on trees, from 10 to 100,000 arrays: it should stay flat."""

import statistics
import time

import mlx.core as mx
import pytest
from models import Layer

import frostleaf as fl

SIZES = [10, 1_000, 100_000]
FUNCTIONS = {
    "flatten (new each time)": lambda model: fl.tree.flatten(model),
    "map": lambda model: fl.tree.map(lambda leaf: leaf, model),
    "astype": lambda model: model.astype(mx.float16),
    "at(glob).set": lambda model: model.at("layers.*.bias").set(mx.array(0)),
    "freeze": lambda model: model.freeze(),
}


class Stack(fl.Module):
    layers: tuple


def build(arrays):
    one = mx.ones(1)
    return Stack([Layer(one, one, 1) for _ in range(arrays // 2)])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_cost_per_array(name, table):
    costs = []
    for arrays in SIZES:
        times = []
        for _ in range(max(3, 3_000 // arrays)):
            model = build(arrays)
            start = time.perf_counter()
            FUNCTIONS[name](model)
            times.append(time.perf_counter() - start)
        costs.append(statistics.median(times) / arrays * 1e6)
    shown = ", ".join(f"{cost:.2f} us at {arrays:,}" for cost, arrays in zip(costs, SIZES, strict=True))
    table.note(f"{name}, per array", shown)
