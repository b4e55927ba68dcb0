"""Files of 20,000 small arrays, beside MLX's of the same names and arrays, whose checksums are computed as well."""

import zlib

import mlx.core as mx
import pytest
from models import Layer

import frostleaf as fl

ARRAYS, SIZE, ROUNDS = 20_000, 8, 10


class Stack(fl.Module):
    layers: tuple


def checksums(arrays):
    return [zlib.crc32(memoryview(array)) for array in arrays.values()]


@pytest.fixture(scope="module")
def model():
    stack = Stack([Layer(mx.full(SIZE, number), mx.zeros(SIZE), SIZE) for number in range(ARRAYS // 2)])
    fl.eval(stack)
    return stack


@pytest.fixture
def arrays(model):
    return dict(zip(fl.tree.paths(model), fl.tree.leaves(model), strict=True))


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "ours.safetensors")


@pytest.fixture
def their_file(tmp_path):
    return str(tmp_path / "theirs.safetensors")


def loaded(file):
    arrays = mx.load(file)
    mx.eval(arrays)
    return arrays


def test_checksums_alone(model, arrays, table, interleaved):
    (taken,) = interleaved(lambda: checksums(arrays), rounds=ROUNDS)
    table.note("checksums of 20,000 small arrays, in memory", f"{min(taken) * 1e3:.1f} ms")


def test_save(model, arrays, file, their_file, table, interleaved):
    def theirs():
        mx.save_safetensors(their_file, arrays)
        checksums(arrays)

    taken = interleaved(lambda: fl.save(file, model), theirs, rounds=ROUNDS)
    table.add("fl.save of 20,000 small arrays / mx.save_safetensors and checksums", *taken, "ms", limit=1.5)


def test_load(model, arrays, file, their_file, table, interleaved):
    fl.save(file, model)
    mx.save_safetensors(their_file, arrays)
    taken = interleaved(lambda: fl.load(file, model), lambda: checksums(loaded(their_file)), rounds=ROUNDS)
    table.add("fl.load of 20,000 small arrays / mx.load and checksums", *taken, "ms", limit=1.5)


def test_save_weights(model, arrays, file, their_file, table, interleaved):
    ours, theirs = (lambda: model.save_weights(file)), (lambda: mx.save_safetensors(their_file, arrays))
    taken = interleaved(ours, theirs, rounds=ROUNDS)
    table.add("save_weights of 20,000 small arrays / mx.save_safetensors", *taken, "ms", limit=1.5)


def test_load_weights(model, arrays, file, their_file, table, interleaved):
    model.save_weights(file)
    mx.save_safetensors(their_file, arrays)
    taken = interleaved(lambda: fl.eval(model.load_weights(file)), lambda: loaded(their_file), rounds=ROUNDS)
    table.add("load_weights of 20,000 small arrays / mx.load", *taken, "ms", limit=1.5)
