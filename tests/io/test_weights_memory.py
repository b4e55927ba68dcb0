"""What loading weights takes of memory: never two copies of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import frostleaf as fl

PLACES = ["weights.npz", "weights.safetensors", "weights.gguf", "weights/"]


def model() -> Any:
    # Most of the numbers are in one array, as in a model with a large vocabulary.
    return fl.nn.Sequential(fl.nn.Embedding(8000, 128), fl.nn.Linear(128, 256), fl.nn.Linear(256, 128))


def peak_of(function: Any) -> int:
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    fl.eval(function())
    return mx.get_peak_memory() - before


@pytest.mark.parametrize("place", PLACES)
def test_loading_takes_the_memory_of_one_model(place: str, tmp_path: Path) -> None:
    saved = model()
    saved.save_weights(f"{tmp_path}/{place}", **({"max_shard_bytes": 2**18} if place == "weights/" else {}))
    size = fl.tree.nbytes(saved)
    # Neither a model that was never built nor one that nobody has looked into takes memory itself.
    assert peak_of(lambda: fl.eval_shape(model).load_weights(f"{tmp_path}/{place}")) <= 1.1 * size
    assert peak_of(lambda: model().load_weights(f"{tmp_path}/{place}")) <= 1.1 * size


@pytest.mark.parametrize("place", ["weights.safetensors", "weights/"])
def test_arrays_of_safetensors_are_read_when_they_are_used(place: str, tmp_path: Path) -> None:
    saved = model()
    saved.save_weights(f"{tmp_path}/{place}")
    size, embedding = fl.tree.nbytes(saved), fl.tree.nbytes(saved.layers[0])
    loaded: list[Any] = []
    assert peak_of(lambda: loaded.append(model().load_weights(f"{tmp_path}/{place}"))) < 0.01 * size
    assert embedding <= peak_of(lambda: loaded[0].layers[0]) <= 1.1 * embedding


def test_what_is_cast_as_it_is_loaded_takes_the_memory_of_the_file(tmp_path: Path) -> None:
    saved = model()
    saved.save_weights(tmp_path / "weights.safetensors")
    peak = peak_of(lambda: _cast(fl.eval_shape(model).load_weights(tmp_path / "weights.safetensors")))
    assert peak <= 1.6 * fl.tree.nbytes(saved)


def _cast(loaded: Any) -> None:
    half = loaded.astype(mx.float16)
    del loaded
    fl.eval(half, at_once=0)


PROCESS = """
import os, resource, sys
import mlx.core as mx
import frostleaf as fl
import frostleaf.io.weights

# What is imported when it is first used, so that it is not counted.
fl.nn.Sequential, fl.nn.Embedding, fl.nn.Linear, fl.eval_shape, fl.eval

model = lambda: fl.nn.Sequential(fl.nn.Embedding(120_000, 128), fl.nn.Linear(128, 1024), fl.nn.Linear(1024, 128))

def in_child(function):
    # The parent computes nothing, so that its children begin alike.
    child = os.fork()
    if not child:
        function()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def save():
    saved = model().apply(mx.zeros_like)
    for place in sys.argv[1:]:
        saved.save_weights(place, **({"max_shard_bytes": 1_000_000} if place.endswith("/") else {}))

def load(place):
    mx.eval(mx.ones(1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = fl.eval_shape(model).load_weights(place)
    fl.eval(loaded)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(grown * (1 if sys.platform == "darwin" else 1024) / fl.tree.nbytes(loaded), flush=True)

in_child(save)
for place in sys.argv[1:]:
    in_child(lambda: load(place))
"""


def test_a_process_that_loads_grows_by_one_model(tmp_path: Path) -> None:
    # Not for GGUF: MLX maps the file into memory, and counted with it are the pages of the file, which the kernel may drop.
    places = [f"{tmp_path}/{place}" for place in PLACES if not place.endswith(".gguf")]
    result = subprocess.run([sys.executable, "-c", PROCESS, *places], capture_output=True, text=True, check=True)
    grown = dict(zip(places, map(float, result.stdout.split()), strict=True))
    assert all(0.9 < factor <= 1.1 for factor in grown.values()), grown
