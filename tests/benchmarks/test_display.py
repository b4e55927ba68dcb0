"""What it takes to show a model of a thousand modules: all equal, which are shown once, and all different."""

import statistics
import time

import mlx.core as mx
import pytest
from models import LAYERS, Block, Layer, Model, build

BLOCKS = 111  # of nine modules


def different(blocks):
    sizes = iter(range(1, blocks * len(LAYERS) + 1))
    layers = (Layer(mx.zeros(size), mx.zeros(size), size) for size in sizes)
    return Model(tuple(Block(*[next(layers) for _ in LAYERS]) for _ in range(blocks)))


@pytest.mark.parametrize(("name", "make"), [("equal", build), ("different", different)])
def test_html(name, make, table, without_collector):
    times, size = [], 0
    for _ in range(7):
        model = make(BLOCKS)
        start = time.perf_counter()
        size = len(model._repr_html_().encode())
        times.append(time.perf_counter() - start)
    table.note(f"HTML of 1,000 {name} modules", f"{statistics.median(times) * 1e3:.1f} ms, {size / 1e3:.0f} kB")
