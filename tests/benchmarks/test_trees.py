"""Cost per module of what is done with trees, from 10 to 10,000 modules side by side, in a dict, and inside one another."""

import statistics
import sys
import time

import mlx.core as mx
import pytest
from models import Layer

import frostleaf as fl

SIZES = [10, 100, 1_000, 10_000]
FUNCTIONS = {
    "flatten (new each time)": lambda model, path: fl.tree.flatten(model),
    "map": lambda model, path: fl.tree.map(lambda leaf: leaf, model),
    "astype": lambda model, path: model.astype(mx.float16),
    "freeze": lambda model, path: model.freeze(),
    "freeze(keys=...)": lambda model, path: model.freeze(keys="bias"),
    "map_modules": lambda model, path: model.map_modules(lambda path, module: None),
    "at(glob).set": lambda model, path: model.at("**.bias").set(mx.array(0)),
    "at(path).set": lambda model, path: model.at(path).set(mx.array(0)),
}


class Stack(fl.Module):
    layers: object


class Nested(fl.Module):
    layer: Layer
    inner: object


def in_a_row(modules):
    return Stack([_layer() for _ in range(modules)]), f"layers.{modules // 2}.bias"


def in_a_dict(modules):
    return Stack({f"layer{number}": _layer() for number in range(modules)}), f"layers.layer{modules // 2}.bias"


def inside_one_another(modules):
    model = None
    for _ in range(modules // 2):
        model = Nested(_layer(), model)
    return model, f"{'inner.' * (modules // 4)}layer.bias"


def _layer():
    return Layer(ONE, ONE, 1)


ONE = mx.ones(1)
# A tree can be as deep as Python's recursion limit allows. The name of a place in it is as long as the place is deep.
SHAPES = {"in a row": (in_a_row, SIZES), "in a dict": (in_a_dict, SIZES), "nested": (inside_one_another, SIZES[:3])}


@pytest.fixture
def deep():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_cost_per_module(name, shape, table, deep, without_collector):
    build, sizes = SHAPES[shape]
    whole = name == "at(path).set"  # whose cost is that of the path
    costs = []
    for modules in sizes:
        times = []
        for _ in range(max(3, 1_000 // modules)):
            model, path = build(modules)
            start = time.perf_counter()
            FUNCTIONS[name](model, path)
            times.append(time.perf_counter() - start)
        costs.append(statistics.median(times) / (1 if whole else modules) * 1e6)
    shown = ", ".join(f"{cost:.1f} us at {modules:,}" for cost, modules in zip(costs, sizes, strict=True))
    table.note(f"{name}, modules {shape}, {'in all' if whole else 'per module'}", shown)


SEEN = {
    "fl.summary": lambda model, other: fl.summary(model),
    "fl.summary with inputs": lambda model, other: fl.summary(model, ONE[None]),
    "fl.tree.diff of dtypes": lambda model, other: fl.tree.diff(model, model.astype(mx.float16)),
    "fl.tree.diff of values": lambda model, other: fl.tree.diff(model, other),
    "fl.tree.diff(values=True)": lambda model, other: fl.tree.diff(model, other, values=True),
    "repr of a model": lambda model, other: model,
}


@pytest.mark.parametrize("name", SEEN)
def test_what_a_person_sees_of_1000_modules(name, table, without_collector):
    model = fl.nn.Sequential(*[fl.nn.Linear(1, 1) for _ in range(1_000)])
    other = fl.tree.map(lambda leaf: leaf + 1, model)
    fl.eval(model, other)
    making, printing = [], []
    for _ in range(3):
        start = time.perf_counter()
        made = SEEN[name](model, other)
        begin = time.perf_counter()
        shown = repr(made)
        making.append(begin - start)
        printing.append(time.perf_counter() - begin)
    assert len(shown.splitlines()) < 20
    table.note(f"{name}, 1,000 modules", f"{min(making) * 1e3:.1f} ms, and {min(printing) * 1e3:.1f} ms to print")
